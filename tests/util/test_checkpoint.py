import argparse
import errno
import json
import os
import pathlib
import resource
import signal
from contextlib import contextmanager

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from model_mamp import MAMP
from model_transformer import ActionTransformer
from tests import golden_numbers
from util import files
from util.checkpoint import Checkpoint
from util.errors import UserError
from util.weights import load_checkpoint, load_encoder, resize_temp_embed

SIZE = {'dim_feat': 32, 'depth': 2, 'num_heads': 4, 'num_frames': 24}          # as in the golden file mamp_small
DECODER = {'decoder_dim_feat': 32, 'decoder_depth': 1}


@pytest.fixture(scope='module')
def golden_weights():
    return golden_numbers.weights(golden_numbers.load('mamp_small'))


@pytest.fixture
def authors(golden_weights):
    """What the authors' program writes."""
    adam = {'step': 3130, 'exp_avg': torch.ones(2, 2), 'exp_avg_sq': torch.ones(2, 2)}
    group = {'lr': 1e-3, 'betas': (0.9, 0.95), 'eps': 1e-8, 'weight_decay': 0.05, 'amsgrad': False, 'params': [0]}
    return {'model': dict(golden_weights), 'optimizer': {'state': {0: adam}, 'param_groups': [group]},
            'scaler': {'scale': 65536., 'growth_factor': 2., 'backoff_factor': 0.5, 'growth_interval': 2000,
                       '_growth_tracker': 0},
            'epoch': 399, 'args': argparse.Namespace(lr=1e-3, mask_ratio=0.9, output_dir='./out', resume='',
                                                     model_args={'dim_feat': 256}, distributed=True, dist_url=None)}


def refusal(call, *args):
    """The message of the UserError that `call` raises: one line."""
    with pytest.raises(UserError) as caught:
        call(*args)
    message = str(caught.value)
    assert message and '\n' not in message and len(message) < 1000
    return message


@pytest.mark.parametrize('zipped', [True, False], ids=['today', 'before torch 1.6'])
def test_authors_file_loads_strictly_for_pretraining(tmp_path, authors, zipped):
    path = tmp_path / 'checkpoint-399.pth'
    torch.save(authors, path, _use_new_zipfile_serialization=zipped)
    checkpoint = Checkpoint.read(path)
    assert checkpoint.epoch == 399 and checkpoint.optimizer['param_groups'][0]['betas'] == (0.9, 0.95)
    assert checkpoint.args == vars(authors['args']) and type(checkpoint.args) is dict and checkpoint.is_authors

    model = MAMP(**SIZE, **DECODER)
    assert set(model.state_dict()) == set(authors['model'])
    load_checkpoint(model, checkpoint, path)
    assert all(torch.equal(value, authors['model'][key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize('protocol', ['linprobe', 'finetune'])
def test_authors_file_loads_into_the_encoder_alone(tmp_path, authors, protocol):
    authors['model']['head.fc.1.weight'] = torch.full((7, 32), 9.)             # a head of other weights stays out
    path = tmp_path / 'checkpoint-399.pth'
    torch.save(authors, path)
    model = ActionTransformer(7, protocol, **SIZE)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    load_encoder(model, Checkpoint.read(path), options(path))
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key] if key.startswith('head.') else authors['model'][key]), key


def test_a_checkpoint_is_read_as_it_was_written(tmp_path, golden_weights):
    path = tmp_path / 'new/folder/checkpoint.pth'
    Checkpoint(golden_weights, {'lr': 0.1}, 3, class_names=['a'], progress={'loss_sum': 0.}).write(path)
    checkpoint = Checkpoint.read(path)
    assert (checkpoint.epoch, checkpoint.args, checkpoint.class_names) == (3, {'lr': 0.1}, ['a'])
    assert checkpoint.model.keys() == golden_weights.keys() and not checkpoint.is_authors
    assert all(torch.equal(value, golden_weights[key]) for key, value in checkpoint.model.items())
    assert os.listdir(path.parent) == ['checkpoint.pth']


def test_files_of_the_first_format_and_of_ddp_models_are_read(tmp_path, golden_weights):
    torch.save({'model': {f'module.{name}': value for name, value in golden_weights.items()}, 'epoch': 1, 'step': 2,
                'args': {'lr': 0.1}, 'record': {'loss_sum': 1.}, 'classes': ['a'], 'version': 'abc',
                'prepared': {'centre': True, 'scale': 1.}}, tmp_path / 'old.pth')
    checkpoint = Checkpoint.read(tmp_path / 'old.pth')
    assert (checkpoint.progress, checkpoint.class_names, checkpoint.code_version) == ({'loss_sum': 1.}, ['a'], 'abc')
    assert checkpoint.preparation == {'centre': True, 'scale': 1.} and checkpoint.model.keys() == golden_weights.keys()
    torch.save({'model': golden_weights, 'format_version': 99}, tmp_path / 'new.pth')
    assert 'newer version' in refusal(Checkpoint.read, tmp_path / 'new.pth')


def test_bare_state_dict_is_taken_for_the_model(tmp_path, golden_weights):
    torch.save(golden_weights, tmp_path / 'weights.pth')
    assert Checkpoint.read(tmp_path / 'weights.pth').model.keys() == golden_weights.keys()


class Saboteur:
    """Unpickled without care, it makes a folder."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


class Plain:
    """Harmless, but not ours to build."""


@pytest.mark.parametrize('place', ['args', 'in args', 'model', 'optimizer'])
def test_nothing_in_a_file_is_run(tmp_path, authors, place):
    path, trace = tmp_path / 'evil.pth', tmp_path / 'trace'
    if place == 'in args':
        authors['args'].output_dir = Saboteur(trace)
    else:
        authors[place] = {'blocks.0.norm1.weight': Saboteur(trace)}
    torch.save(authors, path)
    assert not trace.exists()
    message = refusal(Checkpoint.read, path)
    assert not trace.exists()
    assert message.startswith(str(path))

    torch.load(path, weights_only=False)                            # that it would have run, read without care
    assert trace.is_dir()


@pytest.mark.parametrize('thing', [pathlib.PosixPath('/tmp'), Plain(), np.float64(0.5), torch.nn.Linear(1, 1)])
def test_other_classes_are_refused(tmp_path, authors, thing):
    path = tmp_path / 'other.pth'
    authors['args'].thing = thing
    torch.save(authors, path)
    assert refusal(Checkpoint.read, path).startswith(str(path))


@pytest.mark.parametrize('share', [0.001, 0.01, 0.3, 0.6, 0.9, 0.99, 0.9999])
def test_truncated_file(tmp_path, authors, share):
    path = tmp_path / 'cut.pth'
    torch.save(authors, path)
    with open(path, 'rb+') as file:
        file.truncate(int(path.stat().st_size * share))
    assert refusal(Checkpoint.read, path).startswith(str(path))


@pytest.mark.parametrize('content', [
    '', 'hello\n', '{"model": 1}\n', '<html>\n', 'version https://git-lfs.github.com\n', 'import torch\n',
    # text that begins with a pickle opcode which pops from an empty stack
    'this is not it\n', 'epoch: 3\n', 'a b\n'])
def test_empty_and_text_files(tmp_path, content):
    path = tmp_path / 'notes.pth'
    path.write_text(content)
    assert refusal(Checkpoint.read, path).startswith(str(path))


def options(path):
    return argparse.Namespace(finetune=path, layout=None, num_joints=25, num_heads=4, stream='joint', num_frames=24)


@pytest.mark.parametrize('load, make', [
    (load_checkpoint, lambda **size: MAMP(**size, **DECODER)),
    (lambda model, checkpoint, path: load_encoder(model, checkpoint, options(path)),
     lambda **size: ActionTransformer(7, 'finetune', **size))], ids=['model', 'encoder'])
def test_weights_that_do_not_fit(golden_weights, load, make):
    def message(weights, **size):
        model = make(**SIZE | size)
        before = {key: value.clone() for key, value in model.state_dict().items()}
        text = refusal(load, model, Checkpoint(weights), 'some/file.pth')
        assert text.startswith('some/file.pth: ')
        assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())    # nothing half done
        return text

    wide = message(golden_weights, dim_feat=64)
    assert '(1, 1, 25, 32)' in wide and '(1, 1, 25, 64)' in wide and ' more' in wide
    assert 'blocks.2.norm1.weight is missing' in message(golden_weights, depth=3)
    assert 'blocks.1.norm1.weight is not a weight' in message(golden_weights, depth=1)
    assert '(1, 1, 20, 32)' in message(golden_weights, num_joints=20)

    without = {key: value for key, value in golden_weights.items() if key != 'norm.bias'}
    assert 'norm.bias is missing' in message(without)
    assert 'cls_token is not a weight' in message(golden_weights | {'cls_token': torch.ones(1)})


def cubic(distance):
    """Keys' convolution kernel with a = −0.75."""
    d = abs(distance)
    if d < 1:
        return (1.25 * d - 2.25) * d * d + 1
    return ((-0.75 * d + 3.75) * d - 6) * d + 3 if d < 2 else 0.


def loop_resized(rows, length):
    """(P, D) -> (length, D): row centres on a common axis, the end rows repeated beyond the ends."""
    out = []
    for i in range(length):
        place = (i + 0.5) * len(rows) / length - 0.5
        first = int(np.floor(place)) - 1
        out.append(sum(cubic(place - j) * rows[min(max(j, 0), len(rows) - 1)] for j in range(first, first + 4)))
    return np.stack(out)


@pytest.mark.parametrize('segments', [3, 5, 10, 30])
def test_segment_embeddings_are_resized_bicubically(golden_weights, segments):
    model = ActionTransformer(7, 'finetune', **SIZE | {'num_frames': 4 * segments})
    embedding, resized = golden_weights['temp_embed'], resize_temp_embed(golden_weights, model)['temp_embed']
    assert (embedding.shape[1], resized.shape[1]) == (6, segments)
    expected = F.interpolate(embedding.permute(0, 3, 1, 2), (segments, 1), mode='bicubic', align_corners=False)
    assert torch.equal(resized, expected.permute(0, 2, 3, 1))
    np.testing.assert_allclose(resized[0, :, 0], loop_resized(embedding[0, :, 0].double().numpy(), segments), atol=1e-6)


@pytest.fixture
def old(tmp_path):
    path = tmp_path / 'kept.pth'
    path.write_bytes(b'old')
    return path


@contextmanager
def small_files_only():
    """No file of this process may grow beyond 100 kB meanwhile: what a full disk looks like to a writer."""
    limits, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)


def assert_untouched(path):
    assert os.listdir(path.parent) == [path.name] and path.read_bytes() == b'old'


@pytest.mark.parametrize('error', [RuntimeError('out of luck'), KeyboardInterrupt()])
def test_replacing_leaves_the_old_file_when_the_body_fails(old, error):
    with pytest.raises(type(error)), files.atomic_write(old) as partial:
        partial.write_bytes(b'ne')
        raise error
    assert_untouched(old)


def test_replacing_names_the_file_on_a_full_disk(old):
    def body():
        with files.atomic_write(old) as partial:
            partial.write_bytes(b'ne')
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    message = refusal(body)
    assert message.startswith(str(old)) and 'No space left on device' in message
    assert_untouched(old)


def test_json_has_no_numbers_that_are_not_finite(tmp_path):
    inf, nan = float('inf'), float('nan')
    files.write_json(tmp_path / 'a.json', {'a': inf, 'b': [nan, (1.5, -inf)], 'c': {'d': True, 'e': None, 'f': 'NaN'}})
    text = (tmp_path / 'a.json').read_text()
    assert json.loads(text, parse_constant=pytest.fail) == {
        'a': None, 'b': [None, [1.5, None]], 'c': {'d': True, 'e': None, 'f': 'NaN'}}


def test_a_full_disk_while_saving_leaves_the_old_checkpoint(old):
    with small_files_only(), pytest.raises((UserError, RuntimeError)):
        Checkpoint({'a': torch.zeros(100_000)}).write(old)
    assert_untouched(old)
