"""The benchmark runs every stage and mode of a CPU, and counts right."""

import json
import time
from argparse import Namespace

import numpy as np
import pytest
import torch

import tools.benchmark
from tests.conftest import refusal
from tools.benchmarking import preparation
from tools.benchmarking.measure import TimedLoader, clip_flops


def test_every_stage_and_mode(tmp_path, capsys):
    config, path = tmp_path / 'small.yaml', tmp_path / 'rows.json'
    config.write_text('{num_frames: 8, num_joints: 5, dim_feat: 16, depth: 1, num_heads: 2, '
                      'pretrain: {decoder_dim_feat: 16, decoder_depth: 1, mask_ratio: 0.5}}')
    stages, modes = ['pretrain', 'finetune', 'linprobe', 'evaluate', 'data'], ['plain', 'fp32', 'bf16', 'nonempty']
    assert tools.benchmark.main(['--config', str(config), '--batch_size', '4', '--steps', '2', '--repeats', '1',
                                 '--device', 'cpu', '--stages', ','.join(stages), '--modes', ','.join(modes),
                                 '--json', str(path), '--profile', str(tmp_path / 'profile.txt')]) == 0
    rows = json.loads(path.read_text())
    assert [(row['stage'], row['mode']) for row in rows] == [
        (stage, mode) for stage in stages for mode in modes if mode != 'nonempty' or stage == 'pretrain']
    for row in rows:
        assert row['clips_per_s'] > 0 and row['ratio_to_plain'] > 0 and 0 <= row['waiting_for_data'] <= 1
        assert (row['tflops'] is None) == (row['stage'] == 'data')
        assert row['ms_per_step'] == pytest.approx(4000 / row['clips_per_s'])
    assert '| pretrain | plain |' in capsys.readouterr().out
    assert (tmp_path / 'profile.txt').read_text().count('Self CPU time total') == len(rows)


@pytest.mark.parametrize('options, parts', [
    (['--modes', 'tf32'], ['--modes tf32', 'GPU']), (['--modes', 'nonempty'], ['--modes nonempty']),
    (['--modes', 'slow'], ['--modes', 'slow']), (['--batch_size', '1'], ['--batch_size 1'])], ids=' '.join)
def test_settings_that_cannot_be_measured_are_refused(options, parts):
    refusal(lambda: tools.benchmark.main(['--device', 'cpu', '--stages', 'finetune', *options]), *parts)


def test_a_loader_is_timed_after_its_warm_up():
    batches = ([time.sleep(pause)] for pause in (.5, .02, .02, .02, .02))
    loader, began = TimedLoader(batches, 2, torch.device('cpu')), time.perf_counter()
    assert len(list(loader)) == 5 and loader.start > began + .5 and .06 <= loader.waited < .5


def test_operations_against_a_count_by_hand():
    args = Namespace(num_frames=24, num_joints=5, t_patch_size=4, dim_feat=32, depth=2, num_heads=2, mlp_ratio=4,
                     decoder_dim_feat=16, decoder_depth=1, mask_ratio=.6, motion_stride=1, motion_aware_tau=.8,
                     num_classes=3, patch_drop_rate=0.5)

    def block(tokens: int, width: int) -> int:
        return 2 * tokens * width ** 2 * (4 + 2 * 4) + 4 * tokens ** 2 * width
    embed, tokens, visible = 2 * 30 * 4 * 3 * 32, 30, 12
    encoder = 2 * (embed + 2 * block(tokens, 32))
    halved = 2 * (embed + 2 * block(tokens // 2, 32))       # by patch dropout
    decoder = 2 * visible * 32 * 16 + block(tokens, 16) + 2 * tokens * 16 * 12
    pretraining = 2 * (embed + 2 * block(visible, 32) + decoder)
    assert [clip_flops(stage, args) for stage in ('evaluate', 'linprobe', 'finetune', 'pretrain', 'data')] == [
        encoder, encoder, 3 * halved, 3 * pretraining, 0]


def test_preparation_is_compared_with_the_usual_way(tmp_path):
    rows = preparation.compare_preparation(None, 36, 1, tmp_path)
    assert [row['way'] for row in rows] == ['usual', '1 worker', '2 workers']
    assert all(row['files'] == 36 and row['seconds'] > 0 for row in rows) and rows[0]['ratio'] == 1
    path = tmp_path / 'usual' / 'SYNTH_XSub.npz'
    members = dict(np.load(path))
    members['x_test'][0, 5, 7] += 1e-6
    np.savez(tmp_path / 'changed.npz', **members)
    refusal(lambda: preparation.check_equal([path, tmp_path / 'changed.npz']), 'changed.npz', 'x_test')
