"""Conversion of checkpoints of the authors' program: no output changes, and invalid files are refused."""

import argparse
import json
import os

import numpy as np
import pytest
import torch

import main_finetune
import tools.export
from data.dataset_file import one_hot, write_npz
from model_mamp import MAMP
from model_transformer import ActionTransformer
from tests.authors_file import FULL, authors_checkpoint, write
from tests.conftest import NUM_TEST, read_result, refusal, train
from util.checkpoint import Checkpoint

SIZE = {'dim_feat': 32, 'depth': 2, 'num_heads': 4, 'num_frames': 16, 'num_joints': 5, 't_patch_size': 4}
DECODER = {'decoder_dim_feat': 32, 'decoder_depth': 1}


def convert(*options):
    return tools.export.main(['--authors', *map(str, options)])


def output(stage, weights):
    """The output of a stage's model with these weights, loaded by PyTorch alone."""
    model = MAMP(**SIZE, **DECODER) if stage == 'pretrain' else ActionTransformer(3, stage, **SIZE)
    model.load_state_dict(weights)
    clips = torch.randn(4, 3, 16, 5, 2, generator=torch.Generator().manual_seed(1))
    clips[1, ..., 1] = 0
    with torch.inference_mode():
        if stage == 'pretrain':
            return model.eval()(clips, 0.5, uniform=torch.rand(8, 20, generator=torch.Generator().manual_seed(2)))[1]
        return model.eval()(clips)


@pytest.mark.parametrize('stage, kind, prefix', [
    ('pretrain', 'pre-training', ''), ('linprobe', 'linear probe', 'module.'), ('finetune', 'fine-tuning', '')])
def test_conversion_changes_no_output(stage, kind, prefix, tmp_path, capsys):
    original, out = authors_checkpoint(stage), tmp_path / 'converted.pth'
    convert(write(tmp_path / 'original.pth', original, prefix), '--out', out)
    printed = capsys.readouterr().out
    assert f'original.pth: {kind}, epoch 99' in printed and 'width 32, 2 blocks of 4 heads, 16 frames' in printed
    assert ('3 classes' in printed) == (stage != 'pretrain')
    refusal(lambda: convert(out, '--out', tmp_path / 'again.pth'), out, 'already a checkpoint')

    converted = Checkpoint.read(out)
    before, after = output(stage, original['model']), output(stage, converted.model)
    assert torch.equal(before, after) and before.std() > 0.01
    assert set(converted.model) == set(original['model']) and converted.epoch == 99 and converted.method == 'authors'
    expected = SIZE | {'mlp_ratio': 4, 'lr': 3e-4, 'blr': None, 'epochs': 100, 'seed': 4, 'output_dir': None}
    expected |= DECODER | {'mask_ratio': 0.8} if stage == 'pretrain' else {'num_classes': 3}
    assert {name: converted.args[name] for name in expected} == expected and 'them' not in json.dumps(converted.args)


def test_files_come_before_their_args_and_options_after(tmp_path):
    (tmp_path / 'b.yaml').write_text('benchmark: ntu60_xsub\nmin_lr: 0.5\nlabel_draw: balanced\n')
    original = write(tmp_path / 'original.pth', authors_checkpoint('finetune'))
    convert(original, '--out', tmp_path / 'converted.pth', '--config', tmp_path / 'b.yaml', '--weight_decay', 0.5,
            '--data_path', 'data/X.npz')
    settings = Checkpoint.read(tmp_path / 'converted.pth').args
    assert (settings['min_lr'], settings['weight_decay'], settings['label_draw']) == (1e-5, 0.5, 'balanced')
    assert (settings['benchmark'], settings['data_path']) == ('ntu60_xsub', 'data/X.npz')


def test_every_command_takes_a_converted_file(tiny, tmp_path):
    tiny = [*tiny, '--dim_feat', '32', '--num_heads', '4', '--epochs', '1']
    for stage in ('pretrain', 'finetune'):
        convert(write(tmp_path / f'{stage}.original', authors_checkpoint(stage)), '--out', tmp_path / f'{stage}.pth')
    for stage in ('linprobe', 'finetune'):
        train(stage, tiny, tmp_path / stage, '--finetune', str(tmp_path / 'pretrain.pth'))
        result = read_result(tmp_path / stage)
        assert result['method'] == 'authors' and result['pretraining']['mask_ratio'] == 0.8
    scores = []
    for name in ('finetune.original', 'finetune.pth'):
        train('finetune', tiny, tmp_path / 'eval', '--eval', '--resume', str(tmp_path / name))
        scores.append(json.loads((tmp_path / 'eval/eval.json').read_text()))
    assert scores[0]['loss'] == scores[1]['loss'] and scores[0]['samples'] == NUM_TEST
    tools.export.main(['--checkpoint', str(tmp_path / 'finetune.pth'), '--pt2', str(tmp_path / 'm.pt2')])


def test_their_own_sizes_need_no_option_but_the_benchmark(tmp_path):
    benchmark = ['--config', 'config/finetune.yaml', 'config/ntu60_xsub.yaml']
    x, y = np.random.default_rng(0).normal(size=(2, 8, 150)).astype(np.float32), one_hot([3, 59], 60)
    write_npz(tmp_path / 'D.npz', x_train=x, y_train=y, x_test=x, y_test=y)
    path = write(tmp_path / 'original.pth', authors_checkpoint('finetune', FULL, 60))
    convert(path, '--out', tmp_path / 'converted.pth', *benchmark)
    main_finetune.main([*benchmark, '--data_path', str(tmp_path / 'D.npz'), '--eval', '--resume',
                        str(tmp_path / 'converted.pth'), '--output_dir', str(tmp_path / 'eval'), '--num_workers', '0',
                        '--device', 'cpu'])
    assert json.loads((tmp_path / 'eval/eval.json').read_text())['samples'] == 2


@pytest.mark.parametrize('changed, part', [
    ({'pos_embed': torch.ones(5, 32)}, 'pos_embed is (5, 32)'),
    ({'norm.bias': torch.full((32,), torch.nan)}, 'norm.bias holds NaN'),
    ({'norm.bias': torch.ones(32, dtype=torch.long)}, 'norm.bias is torch.int64'),
    ({'head.fc1.weight': None, 'head.fc1.bias': None}, 'neither a decoder'),
    (authors_checkpoint('pretrain')['model'], 'head.fc1.weight is not a weight'),
    ({'joints_embed.proj.weight': torch.ones(1_000_000, 3, 4, 1)}, 'the weights take')])
def test_spoilt_weights_are_refused_and_nothing_is_left(changed, part, tmp_path):
    original = authors_checkpoint('finetune')
    weights = {name: value for name, value in (original['model'] | changed).items() if value is not None}
    path = write(tmp_path / 'original.pth', original | {'model': weights, 'args': argparse.Namespace()})
    refusal(lambda: convert(path, '--out', tmp_path / 'converted.pth'), path, part)
    assert os.listdir(tmp_path) == ['original.pth']


@pytest.mark.parametrize('args, options, parts', [
    ({'model_args': {'depth': 8}}, '', ['depth is 2', '8 in its args']), ({'lr': 'fast'}, '', ['its args: lr', 'fast']),
    ({'num_frames': 'many'}, '', ['num_frames is 16', "'many'"]), ({}, '--num_heads 2', ['num_heads 4', 'not 2']),
    ({'model_args': {'num_heads': 5}}, '', ['multiple of num_heads 5']), ({}, '--mask_ratio 0.5', ['--mask_ratio']),
    ({'model_args': {'num_heads': 'all'}}, '', ['invalid model settings']),
    ({}, '--config config/ntu60_xsub.yaml', ['num_classes 3', 'not 60']), ({}, '--onnx x', ['needs --out'])], ids=str)
def test_contradictions_are_refused_and_nothing_is_left(args, options, parts, tmp_path):
    original = authors_checkpoint('finetune')
    vars(original['args']).update(args)
    path = write(tmp_path / 'original.pth', original)
    refusal(lambda: convert(path, '--out', tmp_path / 'converted.pth', *options.split()), *parts)
    assert os.listdir(tmp_path) == ['original.pth']
