"""GPU and CPU compute the same; skipped without a CUDA GPU. Takes a minute with pytest-xdist: -n 6."""

import os

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

import main_finetune
import main_linprobe
import main_pretrain
import tools.benchmark
from data.dataset_file import one_hot, write_npz
from feeder.augment import ClipMaker
from feeder.dataset import EvalBatches, SkeletonDataset, TrainBatches
from feeder.loader import BatchLoader, PackedDataset
from model_mamp import MAMP
from tests.conftest import read_lines, read_result, read_weights, refusal, run, torchrun
from util.capture import WARMUP, GraphRecorder
from util.errors import UserError
from util.rng import uniform

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason='no CUDA GPU')

CUDA = torch.device('cuda', 0)
VISIBLE = {'CUDA_VISIBLE_DEVICES': os.environ.get('CUDA_VISIBLE_DEVICES', '0')}


def test_random_numbers_masks_and_losses_are_those_of_the_cpu():
    torch.manual_seed(0)
    position = torch.arange(300)
    assert torch.equal(uniform(12345, position, 750), uniform(12345, position.cuda(), 750).cpu())
    model = MAMP(dim_feat=32, decoder_dim_feat=32, depth=2, decoder_depth=1, num_heads=4, num_frames=24)
    clips, draw = torch.randn(2, 3, 24, 25, 2), torch.rand(4, 150)
    loss, _, mask = model(clips, uniform=draw)
    loss_gpu, _, mask_gpu = model.cuda()(clips.cuda(), uniform=draw.cuda())
    assert torch.equal(mask, mask_gpu.cpu()) and loss_gpu.item() == pytest.approx(loss.item(), rel=1e-5)


@pytest.mark.parametrize('threads, on_device', [(0, False), (2, False), (0, True)])
def test_batches_are_those_of_the_cpu(tiny_npz, threads, on_device):
    """Batches that are copied while the GPU works on earlier ones arrive whole, and nothing waits for the GPU."""
    dataset, maker = SkeletonDataset(tiny_npz, 'train', 5), ClipMaker(16, 'joint', seed=0)
    batches = TrainBatches(range(len(dataset)), 2, 1, 0, 1, seed=0)
    loader, results = BatchLoader(dataset, batches, CUDA, threads, on_device), []
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode('error')
    try:
        for step, batch in enumerate(loader):
            torch.cuda._sleep(20_000_000)                       # some 10 ms in which later batches are copied
            results.append((*batch[2:], batch.frames[batch.first], maker.train_view(batch, 0, step)))
            del batch
    finally:
        torch.cuda.set_sync_debug_mode('default')
    assert len(results) == len(batches)
    for step, ((*fields, clips), places) in enumerate(zip(results, batches, strict=True)):
        batch = dataset[places]
        for result, expected in zip(fields, [*batch[2:], batch.frames[batch.first]], strict=True):
            assert result.device == CUDA and torch.equal(result.cpu(), expected)
        torch.testing.assert_close(clips.cpu(), maker.train_view(batch, 0, step), rtol=0, atol=1e-5)


def test_damaged_clips_and_splits_larger_than_the_gpu_are_reported(tmp_path, tiny_npz):
    x, y = np.ones((8, 6, 15), np.float32), one_hot([0, 1] * 4, 2)
    x[4, 3, 2] = np.nan
    write_npz(tmp_path / 'f.npz', x_train=x, y_train=y, x_test=x, y_test=y)
    dataset, batches, read = SkeletonDataset(tmp_path / 'f.npz', 'train', 5), EvalBatches(range(8), 2, 0, 1), []
    with pytest.raises(UserError, match='clip 4 of x_train'):
        read.extend(BatchLoader(dataset, batches, CUDA, 2))
    assert len(read) <= 2
    dataset = SkeletonDataset(tiny_npz, 'train', 5)
    dataset.num_valid[:] = torch.cuda.mem_get_info(CUDA)[1] // (2 * 5 * 3 * 4)
    refusal(lambda: PackedDataset(dataset, CUDA), tiny_npz, 'cuda:0', 'are free', '--data_on_device')


def train(stage: str, tiny: list[str], folder, *options: str) -> list[float]:
    """Train on the GPU; returns the losses of the epochs."""
    module = {'pretrain': main_pretrain, 'finetune': main_finetune, 'linprobe': main_linprobe}[stage]
    sizes = ['--decoder_dim_feat', '16', '--decoder_depth', '1', '--mask_ratio', '0.5'] if stage == 'pretrain' else []
    start = ['--random_encoder'] if stage == 'linprobe' else []
    module.main([*tiny, *sizes, *start, '--device', 'cuda', *options, '--output_dir', str(folder)])
    return [line['train_loss'] for line in read_lines(folder)]


@pytest.mark.parametrize('stage, options', [
    ('pretrain', ['--accum_iter', '2']), ('linprobe', []),
    ('finetune', ['--drop_path_rate', '0', '--head_dropout', '0'])])
def test_compiled_steps_in_graphs_train_as_eager_ones(stage, options, tiny, tmp_path):
    """Without dropout, for which a compiled model draws other random numbers."""
    eager = train(stage, tiny, tmp_path / 'eager', *options, '--compile', 'off', '--precision', 'fp32')
    fast = train(stage, tiny, tmp_path / 'fast', *options, '--precision', 'fp32')
    assert fast == pytest.approx(eager, rel=1e-3)
    assert read_result(tmp_path / 'fast')['compiled'] and not read_result(tmp_path / 'eager')['compiled']


def test_training_follows_the_cpu_and_is_in_bf16_by_default(tiny, tmp_path):
    expected = train('pretrain', tiny, tmp_path / 'cpu', '--device', 'cpu')
    for name, options, tolerance in (('fp32', ['--precision', 'fp32'], 1e-4), ('bf16', [], 2e-2),
                                     ('resident', ['--precision', 'fp32', '--data_on_device'], 1e-4)):
        losses = train('pretrain', tiny, tmp_path / name, *options, '--compile', 'off')
        assert losses == pytest.approx(expected, rel=tolerance), name
    assert read_result(tmp_path / 'bf16')['precision'] == 'bf16'


def test_random_numbers_of_a_graph_are_those_of_eager_calls():
    def drop(values):
        return F.dropout(values, .5)
    captured, values = GraphRecorder(CUDA).capture(drop), torch.ones(64, 1024, device=CUDA)
    results = []
    for call in range(WARMUP + 3):
        torch.manual_seed(call)
        results.append(captured(values).clone())
        torch.manual_seed(call)
        assert torch.equal(results[-1], drop(values)), call
    assert not torch.equal(results[-1], results[-2])


def test_a_step_that_waits_for_the_gpu_cannot_be_captured():
    """In a process of its own: the random generator is of no use afterwards."""
    script = '''
import torch
from util.capture import GraphRecorder
captured = GraphRecorder(torch.device('cuda', 0)).capture(lambda values: values * values.sum().item())
for _ in range(4):
    captured(torch.ones(3, device='cuda'))
'''
    assert '--compile off' in run('-c', script, env=VISIBLE).stderr


@pytest.mark.parametrize('kernel', ['flash', 'cudnn', 'efficient', 'math', 'triton'])
def test_attention_kernels_agree_with_float64(kernel):
    torch.manual_seed(0)
    qkv = torch.randn(4, 750, 3, 8, 32, device=CUDA, dtype=torch.bfloat16, requires_grad=True)
    toward = torch.randn(4, 750, 8, 32, device=CUDA, dtype=torch.bfloat16)

    def attend(qkv):
        if kernel == 'triton' and qkv.dtype == torch.bfloat16:
            from util.triton_attention import triton_attention
            return triton_attention(qkv)
        return F.scaled_dot_product_attention(*qkv.permute(2, 0, 3, 1, 4).unbind(0)).transpose(1, 2)
    with sdpa_kernel(SDPBackend.MATH):
        expected = attend(exact := qkv.detach().double().requires_grad_())
        expected_grad, = torch.autograd.grad(expected, exact, toward.double())
    backends = {'flash': SDPBackend.FLASH_ATTENTION, 'cudnn': SDPBackend.CUDNN_ATTENTION,
                'efficient': SDPBackend.EFFICIENT_ATTENTION}
    with sdpa_kernel(backends.get(kernel, SDPBackend.MATH)):
        out = attend(qkv)
        grad, = torch.autograd.grad(out, qkv, toward)
    assert (out - expected).norm() < .01 * expected.norm()
    assert (grad - expected_grad).norm() < .01 * expected_grad.norm()


def test_a_deterministic_run_and_its_resumption_give_equal_weights(tiny, tmp_path):
    """In processes of their own, as cuBLAS is set before CUDA starts."""
    command = ['main_finetune.py', *tiny, '--drop_path_rate', '0.3', '--patch_drop_rate', '0.5', '--head', 'linear',
               '--device', 'cuda', '--deterministic',
               '--save_epochs', '1', '--epochs', '3', '--output_dir']
    for options in ([str(tmp_path / 'whole')],
                    [str(tmp_path / 'resumed'), '--resume', str(tmp_path / 'whole' / 'checkpoint-1.pth')]):
        done = run(*command, *options, env=VISIBLE)
        assert done.returncode == 0, done.stderr
    whole, resumed = read_weights(tmp_path / 'whole'), read_weights(tmp_path / 'resumed')
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


# Two processes on one GPU, which nccl refuses and gloo does not: each normalises its part of a batch.
SHARED_STATISTICS = """
import torch
import torch.distributed as dist
from torch import nn
from model_transformer import FinetuneHead

dist.init_process_group('gloo')
rank, device = dist.get_rank(), torch.device('cuda', 0)
torch.manual_seed(0)
head, features = FinetuneHead(8, 5, 3, dropout=0.).to(device).train(), torch.randn(6, 2, 4, 5, 8, device=device)
fresh = FinetuneHead(8, 5, 3, dropout=0.).to(device).train()
fresh.load_state_dict(head.state_dict())
whole, shared = head(features), nn.SyncBatchNorm.convert_sync_batchnorm(fresh)
rows = slice(4 * rank, 4 + 2 * rank)        # four clips and two
part = shared(features[rows])
torch.testing.assert_close(part, whole[rows], rtol=1e-4, atol=1e-5)
torch.testing.assert_close(shared.bn.running_var, head.bn.running_var)
part.sum().backward()
print('shared', flush=True)
dist.destroy_process_group()
"""


def test_statistics_of_two_processes_are_those_of_the_whole_batch(tmp_path):
    script = tmp_path / 'shared.py'
    script.write_text(SHARED_STATISTICS)
    done = torchrun(2, str(script), env=VISIBLE)
    assert done.returncode == 0 and done.stdout.count('shared') == 2, done.stderr


def test_the_benchmark_measures_modes_of_a_gpu(tmp_path):
    config = tmp_path / 'small.yaml'
    config.write_text('{num_frames: 24, dim_feat: 64, depth: 1, num_heads: 2, '
                      'pretrain: {decoder_dim_feat: 64, decoder_depth: 1}}')
    assert tools.benchmark.main(['--config', str(config), '--batch_size', '8', '--steps', '3', '--repeats', '1',
                                 '--num_workers', '0', '--stages', 'pretrain', '--modes', 'plain,tf32,compiled']) == 0
