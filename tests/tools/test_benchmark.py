"""The benchmark runs every stage under every mode a CPU has, and counts right."""

import json
import time
from argparse import Namespace

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

import tools.benchmark
from model_mamp import MAMP
from model_transformer import SkeletonEncoder
from tests.conftest import refusal
from tools.benchmarking.flops import block_bytes, clip_flops
from tools.benchmarking.measure import Watched, matmul_peak, table, write_clips
from tools.benchmarking.plain import set_fused_attention
from util.dist import World

SMALL = {'num_frames': 24, 'num_joints': 5, 't_patch_size': 4, 'dim_feat': 32, 'depth': 2, 'num_heads': 2,
         'mlp_ratio': 4}


@pytest.mark.parametrize('stages, modes', [('pretrain,finetune,linprobe,evaluate,data', 'plain,fused,bf16')])
def test_every_stage_and_mode(stages, modes, tmp_path, capsys):
    config, path = tmp_path / 'small.yaml', tmp_path / 'rows.json'
    config.write_text('{num_frames: 8, num_joints: 5, dim_feat: 16, depth: 1, num_heads: 2, '
                      'pretrain: {decoder_dim_feat: 16, decoder_depth: 1, mask_ratio: 0.5}}')
    assert tools.benchmark.main(['--config', str(config), '--batch_size', '4', '--steps', '2', '--repeats', '2',
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


def test_what_cannot_be_measured_is_refused_first(tmp_path):
    write_clips(tmp_path / 'few.npz', 3, 25, 60)
    given = ['--data_path', str(tmp_path / 'few.npz'), '--device', 'cpu', '--stages', 'pretrain', '--modes']
    refusal(lambda: tools.benchmark.main([*given, 'fused']), '3 clips', '--steps 2')
    refusal(lambda: tools.benchmark.main([*given, 'fused,tf32']), '--modes tf32', 'GPU')
    refusal(lambda: tools.benchmark.main([*given, 'fused', '--json', str(tmp_path)]),
            str(tmp_path), 'cannot be written')
    refusal(lambda: tools.benchmark.main([*given, 'fused', '--profile', '/nowhere/p']), '/nowhere/p')
    given += ['fused', '--stages', 'finetune', '--batch_size', '1']
    refusal(lambda: tools.benchmark.main(given), '--batch_size 1')
    refusal(lambda: tools.benchmark.main(['--modes', 'slow']), '--modes', 'slow')


@pytest.fixture
def turns(tiny_npz, tmp_path):
    """A mode of a stage at the tiny size, ready to run."""
    config = tmp_path / 'small.yaml'
    config.write_text('{num_frames: 8, num_joints: 5, dim_feat: 16, depth: 1, num_heads: 2, '
                      'pretrain: {decoder_dim_feat: 16, decoder_depth: 1, mask_ratio: 0.5}}')
    options = Namespace(config=[str(config)], batch_size=4, steps=2, num_workers=0)
    return lambda stage, mode: tools.benchmark.Turns(stage, mode, options, str(tiny_npz),
                                                    World(0, 1, torch.device('cpu')))


def test_each_mode_computes_in_its_own_way(turns, monkeypatch):
    """Whatever was set before: precision and kernel are set anew for each turn, and `plain` is plain."""
    kernels = []
    monkeypatch.setattr(tools.benchmark, 'use_kernel', kernels.append)
    fast, half, plain = (turns('pretrain', mode) for mode in ('fused', 'bf16', 'plain'))
    for turn, name in ((half, 'bf16'), (fast, 'fp32'), (half, 'bf16'), (plain, 'fp32')):
        turn.trainer.precision, turn.trainer.attention = None, f'kernel of {name}'
        turn.run()
        assert turn.trainer.precision.name == name and kernels[-1] == f'kernel of {name}'
    assert not any(block.attn.fused_attn for block in plain.trainer.raw_model.blocks)
    assert all(block.attn.fused_attn for block in fast.trainer.raw_model.blocks)
    assert turns('pretrain', 'nonempty').args.skip_empty_bodies and not fast.args.skip_empty_bodies


def test_rows_are_what_the_turns_say(turns):
    """8 clips a turn of 2 steps; the first turn, warm-up, does not count, and ratios are of turns side by side."""
    fast, plain = turns('linprobe', 'fused'), turns('linprobe', 'plain')
    fast.seconds, plain.seconds = [100, 1., 2., 4.], [1, 6., 6., 6.]
    fast.waited, fast.memory = [100, .5, .2, .4], 3e9
    row = fast.row(plain, peak=1e12, train_clips=1000, test_clips=500)
    flops = clip_flops('linprobe', fast.args)
    assert row['clips_per_s'] == 4 and row['ms_per_step'] == 1000 and row['ratio_to_plain'] == 3
    assert row['tflops'] == pytest.approx(4 * flops / 1e12) and row['share_of_peak'] == pytest.approx(4 * flops / 1e12)
    assert row['waiting_for_data'] == .2 and row['memory_gb'] == 3
    assert row['recipe_hours'] == pytest.approx(100 * (1000 + 500) / 4 / 3600)
    fine = turns('finetune', 'fused')
    fine.seconds, fine.waited = [0, 1.], [0, 0.]
    assert fine.row(None, 1., 1000, 300)['recipe_hours'] == pytest.approx(100 * (1000 + 300 / 3) / 8 / 3600)
    assert fine.row(None, 1., 1000, 300)['ratio_to_plain'] is None


def test_waiting_is_noticed_and_a_reader_may_be_stopped():
    loader = Watched(slowly(.02, 3))
    assert list(loader) == [0, 1, 2] and .05 < loader.waited < 10
    loader.most = 2
    assert list(loader) == [0, 1]


class slowly(list):
    """Numbers that take their time."""

    def __init__(self, seconds: float, count: int):
        super().__init__(range(count))
        self.seconds = seconds

    def __iter__(self):
        for value in super().__iter__():
            time.sleep(self.seconds)
            yield value


def counted(forward) -> int:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        forward()
    return counter.get_total_flops()


def test_bytes_are_those_of_the_tensors_that_pass():
    """Against the sizes of what each operation of a block reads and writes, seen one by one."""
    moved = 0

    class Seen(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            nonlocal moved
            out = function(*args, **(kwargs or {}))
            if function.overloadpacket.__name__ in ('native_layer_norm', 'addmm', 'mm', 'gelu', 'add',
                                                    '_scaled_dot_product_flash_attention_for_cpu'):
                given = {id(arg): arg for arg in args if isinstance(arg, torch.Tensor) and arg.ndim > 1
                         and not isinstance(arg, torch.nn.Parameter) and arg.shape[-2:] != (32, 32)}
                given = [arg for arg in given.values() if arg.untyped_storage().data_ptr() not in weights]
                made = out[0] if isinstance(out, tuple) else out
                moved += sum(arg.numel() for arg in given) + made.numel()
            return out

    block = SkeletonEncoder(**SMALL).blocks[0]
    weights = {parameter.untyped_storage().data_ptr() for parameter in block.parameters()}
    with torch.no_grad(), Seen():
        block(torch.randn(1, 30, 32))
    assert block_bytes(30, 32, 4) == 2 * moved


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
