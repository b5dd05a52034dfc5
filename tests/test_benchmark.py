"""The benchmark runs every stage under every mode a CPU has, and counts right."""

import json
from argparse import Namespace

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import main_benchmark
from model_mamp import MAMP
from model_transformer import SkeletonEncoder
from tests.conftest import refusal
from util.bench import Watched, matmul_peak, table, write_clips
from util.flops import clip_flops
from util.plain import set_fused_attention

SMALL = {'num_frames': 24, 'num_joints': 5, 't_patch_size': 4, 'dim_feat': 32, 'depth': 2, 'num_heads': 2,
         'mlp_ratio': 4}


@pytest.mark.parametrize('stages, modes', [('pretrain,finetune,linprobe,evaluate,data', 'plain,fused,bf16')])
def test_every_stage_and_mode(stages, modes, tmp_path, capsys):
    config, path = tmp_path / 'small.yaml', tmp_path / 'rows.json'
    config.write_text('{num_frames: 8, num_joints: 5, dim_feat: 16, depth: 1, num_heads: 2, '
                      'pretrain: {decoder_dim_feat: 16, decoder_depth: 1, mask_ratio: 0.5}}')
    assert main_benchmark.main(['--config', str(config), '--batch_size', '4', '--steps', '2', '--repeats', '2',
                                '--device', 'cpu', '--stages', stages, '--modes', modes, '--json', str(path),
                                '--profile', str(tmp_path / 'profile.txt')]) == 0
    assert (tmp_path / 'profile.txt').read_text().count('Self CPU time total') == len(stages.split(',')) * 3
    rows = json.loads(path.read_text())
    assert [(row['stage'], row['mode']) for row in rows] == [
        (stage, mode) for stage in stages.split(',') for mode in modes.split(',')]
    for row in rows:
        assert row['clips_per_s'] > 0 and row['ratio_to_plain'] > 0 and 0 <= row['waiting_for_data'] <= 1
        assert (row['tflops'] is None) == (row['stage'] == 'data')
        assert (row['recipe_hours'] is None) == (row['stage'] in ('evaluate', 'data'))
        assert row['ratio_to_plain'] == 1 or row['mode'] != 'plain'
        assert row['ms_per_step'] == pytest.approx(4000 / row['clips_per_s'])
    assert '| pretrain | plain |' in capsys.readouterr().out


def test_too_few_clips_or_a_mode_that_needs_a_gpu_are_refused(tmp_path):
    write_clips(tmp_path / 'few.npz', 3, 25, 60)
    given = ['--data_path', str(tmp_path / 'few.npz'), '--device', 'cpu', '--stages', 'pretrain', '--modes']
    refusal(lambda: main_benchmark.main([*given, 'fused']), '3 clips', '--steps 2')
    with pytest.raises(SystemExit):
        main_benchmark.main([*given, 'slow'])


def counted(forward) -> int:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        forward()
    return counter.get_total_flops()


def test_flops_are_those_that_pytorch_counts():
    args = Namespace(**SMALL, decoder_dim_feat=16, decoder_depth=1, mask_ratio=.6)
    x = torch.randn(3, 3, 24, 5, 2)
    encoder = SkeletonEncoder(**SMALL)
    pretraining = MAMP(**SMALL, decoder_dim_feat=16, decoder_depth=1)
    for model in (encoder, pretraining):
        set_fused_attention(model, False)       # so that its two products are seen
    assert counted(lambda: encoder.eval().features(x)) == 3 * clip_flops('evaluate', args)
    assert counted(lambda: pretraining(x, .6)) == 3 * clip_flops('pretrain', args) / 3
    assert clip_flops('finetune', args) == 3 * clip_flops('linprobe', args) and clip_flops('data', args) == 0


def test_made_up_clips_are_like_ntu(tmp_path):
    write_clips(tmp_path / 'clips.npz', 400, 25, 60)
    with np.load(tmp_path / 'clips.npz') as npz:
        x, y = npz['x_train'].reshape(400, 300, 2, 75), npz['y_train']
    lengths = (x.sum(axis=(2, 3)) != 0).sum(axis=1)
    assert 65 < np.median(lengths) < 85 and lengths.min() >= 30 and lengths.max() > 150
    assert .35 < (~x.any(axis=(1, 3))).mean() < .47         # of all bodies, as in NTU RGB+D 60
    assert (y.sum(axis=1) == 1).all() and y.shape == (400, 60)


def test_a_watched_loader_gives_all_and_tells_the_wait():
    loader = Watched([1, 2, 3])
    assert list(loader) == [1, 2, 3] == list(loader) and 0 <= loader.waited < 1


def test_table_and_peak():
    assert table([{'a': 1.234, 'b_c': None}, {'a': 2, 'b_c': 3}], {'a': '.1f', 'b_c': 'd'}) == (
        '| a | b c |\n|---|---|\n| 1.2 | – |\n| 2.0 | 3 |')
    assert matmul_peak(torch.device('cpu'), 'fp32', repeats=1) > 1e8
