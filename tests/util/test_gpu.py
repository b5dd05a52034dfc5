"""What holds on a GPU as on the CPU; skipped without one."""

import json
import os

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.nn.attention import sdpa_kernel

import main_finetune
import main_linprobe
import main_pretrain
import tools.benchmark
from data.common import one_hot, write_npz
from feeder.augment import ClipMaker
from feeder.dataset import EvalBatches, SkeletonDataset, TrainBatches
from feeder.loader import BatchLoader, PackedDataset
from model_mamp import MAMP
from tests.conftest import read_weights, refusal, run, torchrun
from util import attention
from util.dist import World
from util.errors import UserError
from util.precision import compile_blocks
from util.rng import uniform

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason='no CUDA GPU')


def read_result(folder) -> dict:
    return json.loads((folder / 'result.json').read_text())


def test_random_numbers_are_the_same_on_both():
    position = torch.arange(300)
    assert torch.equal(uniform(12345, position, 750), uniform(12345, position.cuda(), 750).cpu())


def test_masks_and_loss_are_the_same_on_both():
    torch.manual_seed(0)
    model = MAMP(dim_feat=32, decoder_dim_feat=32, depth=2, decoder_depth=1, num_heads=4, num_frames=24)
    clips, draw = torch.randn(2, 3, 24, 25, 2), torch.rand(4, 150)
    loss, _, mask = model(clips, uniform=draw)
    loss_gpu, _, mask_gpu = model.cuda()(clips.cuda(), uniform=draw.cuda())
    assert torch.equal(mask, mask_gpu.cpu())
    assert loss_gpu.item() == pytest.approx(loss.item(), rel=1e-5)


CUDA = torch.device('cuda', 0)


@pytest.mark.parametrize('workers, on_device', [(0, False), (2, False), (0, True)])
def test_batches_are_those_of_the_cpu(tiny_npz, workers, on_device):
    """Copied ahead on another stream: slow work on the batches must find them whole, and nothing may wait for it."""
    dataset, maker = SkeletonDataset(tiny_npz, 'train', 5), ClipMaker(16, 'joint', seed=0)
    batches = TrainBatches(range(len(dataset)), 2, 1, 0, 1, seed=0)
    loader = BatchLoader(dataset, batches, CUDA, workers, on_device)
    for epoch in (0, 1):
        batches.start_at(epoch)
        found = []
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode('error')
        try:
            for step, batch in enumerate(loader):
                assert all(field.device == CUDA for field in batch)
                torch.cuda._sleep(20_000_000)                       # some 10 ms in which later batches are copied
                found.append([*batch[2:], batch.frames[batch.first], maker.train_view(batch, epoch, step)])
                del batch
        finally:
            torch.cuda.set_sync_debug_mode('default')
        assert len(found) == len(batches)
        for step, (ours, places) in enumerate(zip(found, batches, strict=True)):
            batch = dataset[places]
            for one, other in zip(ours[:-1], [*batch[2:], batch.frames[batch.first]], strict=True):
                assert torch.equal(one.cpu(), other)
            torch.testing.assert_close(ours[-1].cpu(), maker.train_view(batch, epoch, step), rtol=0, atol=1e-5)


def test_a_damaged_clip_ends_the_reading_on_a_gpu_too(tmp_path):
    x, y = np.ones((8, 6, 15), np.float32), one_hot([0, 1] * 4, 2)
    x[4, 3, 2] = np.nan
    write_npz(tmp_path / 'f.npz', x_train=x, y_train=y, x_test=x, y_test=y)
    dataset, batches, seen = SkeletonDataset(tmp_path / 'f.npz', 'train', 5), EvalBatches(range(8), 2, 0, 1), []
    with pytest.raises(UserError, match='clip 4 of x_train'):
        seen.extend(BatchLoader(dataset, batches, CUDA, 0))
    assert len(seen) == 1       # the second batch was waiting to be used
    with pytest.raises(UserError, match='clip 4 of x_train'):
        BatchLoader(dataset, batches, CUDA, on_device=True)


def test_a_split_larger_than_the_gpu_is_the_users_error(tiny_npz, monkeypatch):
    dataset = SkeletonDataset(tiny_npz, 'train', 5)
    too_many = torch.cuda.mem_get_info(CUDA)[1] // (2 * 5 * 3 * 4)
    dataset.num_valid[:] = too_many                     # what the clips are said to hold
    said = refusal(lambda: PackedDataset(dataset, CUDA), tiny_npz, 'cuda:0', 'are free', '--data_on_device')
    assert f'needs {len(dataset) * too_many * 120 / 1e9:.2f} GB' in said


def test_data_on_the_device_trains_the_same(tiny_pretrain, tmp_path):
    losses = []
    for name, options in (('usual', ['--num_workers', '2']), ('resident', ['--data_on_device'])):
        main_pretrain.main([*tiny_pretrain, *options, '--device', 'cuda', '--precision', 'fp32', '--output_dir',
                            str(tmp_path / name)])
        losses.append(read_result(tmp_path / name)['train_loss'])
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)


def test_every_stage_runs_in_bf16_by_default(tiny, tiny_pretrain, tmp_path):
    pretrained, device = tmp_path / 'pretrain', ['--device', 'cuda']
    main_pretrain.main([*tiny_pretrain, *device, '--output_dir', str(pretrained)])
    start = ['--finetune', str(pretrained / 'checkpoint-last.pth')]
    main_linprobe.main([*tiny, *device, *start, '--output_dir', str(tmp_path / 'linprobe')])
    main_finetune.main([*tiny, *device, *start, '--output_dir', str(tmp_path / 'finetune')])
    for stage in ('pretrain', 'linprobe', 'finetune'):
        assert read_result(tmp_path / stage)['precision'] == 'bf16'


def test_fp32_pretraining_follows_the_cpu(tiny_pretrain, tmp_path):
    losses = []
    for device in ('cpu', 'cuda'):
        folder = tmp_path / device
        main_pretrain.main([*tiny_pretrain, '--device', device, '--precision', 'fp32', '--output_dir', str(folder)])
        losses.append(read_result(folder)['train_loss'])
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)


@pytest.mark.parametrize('kernel', ['flash', 'cudnn', 'efficient', 'math'])
def test_attention_kernels_agree(kernel):
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 4, 8, 750, 32, device=CUDA).unbind(0)
    expected = (q.double() @ k.double().transpose(2, 3) / 32 ** .5).softmax(-1) @ v.double()
    with sdpa_kernel(attention.KERNELS[kernel]):
        found = F.scaled_dot_product_attention(q.bfloat16(), k.bfloat16(), v.bfloat16())
    assert (found - expected).norm() < .02 * expected.norm()


def test_the_fastest_kernel_is_found_and_used():
    try:
        chosen = attention.choose_kernel('auto', World(0, 1, CUDA), torch.bfloat16, (16, 8, 750, 32))
        assert chosen in attention.KERNELS
        q = torch.randn(2, 8, 750, 32, device=CUDA, dtype=torch.bfloat16)
        assert F.scaled_dot_product_attention(q, q, q).isfinite().all()
    finally:
        attention.use_kernel('auto')


def test_compiled_blocks_give_the_same_losses_and_gradients():
    torch.manual_seed(0)
    model = MAMP(dim_feat=64, decoder_dim_feat=64, depth=2, decoder_depth=2, num_heads=2, num_frames=24).cuda()
    clips, draw = torch.randn(4, 3, 24, 25, 2, device=CUDA), torch.rand(8, 150, device=CUDA)

    def losses() -> list[float]:
        model.zero_grad()
        loss, _, _ = model(clips, uniform=draw)
        loss.backward()
        return [loss.item(), model.blocks[0].attn.qkv.weight.grad.norm().item()]
    eager = losses()
    assert compile_blocks(model, 'on', CUDA)
    assert losses() == pytest.approx(eager, rel=1e-3)


@pytest.mark.parametrize('stage', ['pretrain', 'linprobe', 'finetune'])
@pytest.mark.parametrize('options', [['--precision', 'bf16'], ['--precision', 'fp32'], ['--compile', 'off']],
                         ids=' '.join)
def test_deterministic_runs_give_equal_weights(stage, options, tiny, tiny_pretrain, tmp_path):
    """Each in a process of its own, as cuBLAS must be told before CUDA starts."""
    given = {'pretrain': tiny_pretrain, 'linprobe': [*tiny, '--random_encoder'],
             'finetune': [*tiny, '--drop_path_rate', '0.3']}[stage]
    given = [*given, *options, '--device', 'cuda', '--deterministic']
    env = {'CUDA_VISIBLE_DEVICES': os.environ.get('CUDA_VISIBLE_DEVICES', '0')}
    for name in ('one', 'other'):
        done = run(f'main_{stage}.py', *given, '--output_dir', str(tmp_path / name), env=env, timeout=600)
        assert done.returncode == 0, done.stderr
        assert read_result(tmp_path / name)['attention'] == ('efficient' if 'fp32' in options else 'flash')
    one, other = read_weights(tmp_path / 'one'), read_weights(tmp_path / 'other')
    assert all(torch.equal(one[name], other[name]) for name in one)


# Two processes on one GPU, which nccl would refuse and gloo does not: each normalises its half of a batch.
SHARED_STATISTICS = """
import os
from argparse import Namespace
import torch
import torch.distributed as dist
from engine_finetune import shared_statistics
from model_transformer import FinetuneHead
from util.dist import World

dist.init_process_group('gloo')
rank, device = dist.get_rank(), torch.device('cuda', 0)
torch.manual_seed(0)
head, features = FinetuneHead(8, 5, 3, dropout=0.).to(device).train(), torch.randn(6, 2, 4, 5, 8, device=device)
whole = head(features)
fresh = FinetuneHead(8, 5, 3, dropout=0.).to(device).train()
fresh.load_state_dict({name: value for name, value in head.state_dict().items() if 'running' not in name and
                       'tracked' not in name}, strict=False)
shared = shared_statistics(Namespace(sync_batchnorm=True), World(rank, 2, device), fresh)
part = shared(features[4 * rank:4 * rank + 4 - 2 * rank])       # uneven: four clips and two
torch.testing.assert_close(part, whole[4 * rank:4 * rank + 4 - 2 * rank], rtol=1e-4, atol=1e-5)
torch.testing.assert_close(shared.bn.running_var, head.bn.running_var)
assert shared.state_dict().keys() == head.state_dict().keys()
part.sum().backward()
print('shared', flush=True)
dist.destroy_process_group()
"""


def test_statistics_shared_by_two_processes_are_those_of_the_whole_batch(tmp_path):
    script = tmp_path / 'shared.py'
    script.write_text(SHARED_STATISTICS)
    env = {'CUDA_VISIBLE_DEVICES': os.environ.get('CUDA_VISIBLE_DEVICES', '0')}
    done = torchrun(2, str(script), env=env)
    assert done.returncode == 0 and done.stdout.count('shared') == 2, done.stderr


def test_the_benchmark_measures_every_mode(tmp_path):
    config, path = tmp_path / 'small.yaml', tmp_path / 'rows.json'
    config.write_text('{num_frames: 24, dim_feat: 64, depth: 2, num_heads: 2, num_workers: 0, '
                      'pretrain: {decoder_dim_feat: 64, decoder_depth: 1}}')
    modes = 'plain,fused,tf32,bf16,compiled,resident'
    assert tools.benchmark.main(['--config', str(config), '--batch_size', '8', '--steps', '3', '--repeats', '1',
                                '--num_workers', '0', '--stages', 'pretrain,finetune,linprobe,evaluate,data',
                                '--modes', modes, '--json', str(path)]) == 0
    assert len(json.loads(path.read_text())) == 5 * 6
