"""Checkpoint files: the authors' and this project's, hostile and damaged ones, and weights that do not fit."""

import argparse
import errno
import functools
import os
import resource
import signal

import numpy as np
import pytest
import torch

from model_mamp import MAMP
from model_transformer import ActionTransformer
from tests import golden_numbers
from tests.authors_file import authors_checkpoint, write
from tests.conftest import refusal
from util.checkpoint import Checkpoint
from util.errors import UserError
from util.files import atomic_write
from util.weights import load_checkpoint, load_encoder, resize_temp_embed

SIZE = {'dim_feat': 32, 'depth': 2, 'num_heads': 4, 'num_frames': 24}          # as in the golden file mamp_small
DECODER = {'decoder_dim_feat': 32, 'decoder_depth': 1}


@pytest.fixture
def golden_weights():
    return golden_numbers.weights(golden_numbers.load('mamp_small'))


@pytest.fixture
def authors(golden_weights):
    return authors_checkpoint('pretrain') | {'model': golden_weights}


def encoder_args(path):
    return argparse.Namespace(finetune=path, layout=None, num_joints=25, num_heads=4, stream='joint', num_frames=24,
                              keypoints='3d')


@pytest.mark.parametrize('zipped, prefix', [(True, ''), (False, 'module.')], ids=['plain', 'old format, under DDP'])
def test_checkpoints_of_the_authors_load_strictly(tmp_path, authors, zipped, prefix):
    path, weights = tmp_path / 'checkpoint-99.pth', authors['model']
    write(path, authors, prefix, zipped)
    checkpoint = Checkpoint.read(path)
    assert checkpoint.epoch == 99 and checkpoint.optimizer['param_groups'][0]['betas'] == (0.9, 0.95)
    assert checkpoint.args == vars(authors['args']) and type(checkpoint.args) is dict and checkpoint.is_authors
    model = MAMP(**SIZE, **DECODER)
    load_checkpoint(model, checkpoint, path)
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    checkpoint.model['head.fc.1.weight'] = torch.full((7, 32), 9.)
    model = ActionTransformer(7, 'linprobe', **SIZE)        # takes the encoder alone, without this head
    before = {name: value.clone() for name, value in model.state_dict().items()}
    load_encoder(model, checkpoint, encoder_args(path))
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name] if name.startswith('head.') else weights[name]), name


def test_files_of_the_first_format_are_read_and_of_a_newer_one_refused(tmp_path, golden_weights):
    torch.save({'model': golden_weights, 'epoch': 1, 'step': 2, 'args': {'lr': 0.1}, 'record': {'loss_sum': 1.},
                'classes': ['a'], 'version': 'abc', 'prepared': {'centre': True, 'scale': 1.}}, tmp_path / 'old.pth')
    checkpoint = Checkpoint.read(tmp_path / 'old.pth')
    assert (checkpoint.progress, checkpoint.class_names, checkpoint.code_version) == ({'loss_sum': 1.}, ['a'], 'abc')
    assert checkpoint.preparation == {'centre': True, 'scale': 1.} and not checkpoint.is_authors
    torch.save({'model': golden_weights, 'format_version': 99}, tmp_path / 'new.pth')
    refusal(lambda: Checkpoint.read(tmp_path / 'new.pth'), 'newer version')


class MakeFolder:
    """Makes a folder when it is unpickled without care."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize('place', ['args', 'in args', 'model', 'optimizer'])
def test_nothing_in_a_checkpoint_is_executed(tmp_path, authors, place):
    path, trace = tmp_path / 'hostile.pth', tmp_path / 'trace'
    if place == 'in args':
        authors['args'].output_dir = MakeFolder(trace)
    else:
        authors[place] = {'blocks.0.norm1.weight': MakeFolder(trace)}
    torch.save(authors, path)
    refusal(lambda: Checkpoint.read(path), path, 'refused')
    assert not trace.exists() and argparse.Namespace not in torch.serialization.get_safe_globals()
    torch.load(path, weights_only=False)        # without care it would have been executed
    assert trace.is_dir()


@pytest.mark.parametrize('part', ['model', 'encoder'])
def test_weights_that_do_not_fit_change_nothing(golden_weights, part):
    def refused(weights, *parts, **size):
        model = (MAMP(**SIZE | DECODER | size) if part == 'model' else ActionTransformer(7, 'finetune', **SIZE | size))
        before = {name: value.clone() for name, value in model.state_dict().items()}
        refusal(lambda: load_checkpoint(model, Checkpoint(weights), 'some/file.pth') if part == 'model' else
                load_encoder(model, Checkpoint(weights), encoder_args('some/file.pth')), 'some/file.pth: ', *parts)
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())

    refused(golden_weights, '(1, 1, 25, 32)', '(1, 1, 25, 64)', ' more', dim_feat=64)
    refused(golden_weights, 'blocks.2.norm1.weight is missing', depth=3)
    refused(golden_weights | {'cls_token': torch.ones(1)}, 'cls_token is not a weight')
    refused(golden_weights | {'norm.bias': torch.full((32,), torch.nan)}, 'norm.bias holds NaN')


def resize_by_loops(rows, length):
    """(P, D) -> (length, D): Keys' kernel with a = −0.75 on a common axis, the end rows repeated beyond the ends."""
    def cubic(d):
        if d < 1:
            return (1.25 * d - 2.25) * d * d + 1
        return ((-0.75 * d + 3.75) * d - 6) * d + 3 if d < 2 else 0.
    out = []
    for i in range(length):
        place = (i + 0.5) * len(rows) / length - 0.5
        near = range(int(np.floor(place)) - 1, int(np.floor(place)) + 3)
        out.append(sum(cubic(abs(place - j)) * rows[min(max(j, 0), len(rows) - 1)] for j in near))
    return np.stack(out)


@pytest.mark.parametrize('segments', [3, 10])
def test_segment_embeddings_are_resized_bicubically(golden_weights, segments):
    model = ActionTransformer(7, 'finetune', **SIZE | {'num_frames': 4 * segments})
    embedding, resized = golden_weights['temp_embed'], resize_temp_embed(golden_weights, model)['temp_embed']
    assert (embedding.shape[1], resized.shape[1]) == (6, segments)
    np.testing.assert_allclose(resized[0, :, 0], resize_by_loops(embedding[0, :, 0].double().numpy(), segments),
                               atol=1e-6)


def interrupted_write(error, path):
    with atomic_write(path) as partial:
        partial.write_bytes(b'ne')
        raise error


def write_to_a_full_disk(path):
    """A checkpoint of 400 kB where no file of this process may grow beyond 100 kB."""
    limits, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        Checkpoint({'a': torch.zeros(100_000)}).write(path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)


@pytest.mark.parametrize('attempt, error, part', [
    (functools.partial(interrupted_write, KeyboardInterrupt('Ctrl-C')), KeyboardInterrupt, 'Ctrl-C'),
    (functools.partial(interrupted_write, OSError(errno.ENOSPC, 'No space left')), UserError, 'No space left'),
    (write_to_a_full_disk, UserError, 'free up disk space')])
def test_a_failed_write_leaves_the_file_as_it_was(tmp_path, attempt, error, part):
    path = tmp_path / 'file.pth'
    path.write_bytes(b'old')
    with pytest.raises(error, match=part):
        attempt(path)
    assert os.listdir(tmp_path) == ['file.pth'] and path.read_bytes() == b'old'
