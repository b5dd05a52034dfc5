"""Attention's kernels: ours against float64, and which one runs where."""

import math

import pytest
import torch
import torch.nn.functional as F

from model_transformer import SkeletonEncoder
from tests.conftest import refusal
from tools.benchmarking.plain import set_fused_attention
from util import attention
from util.dist import World

CPU, CUDA = World(0, 1, torch.device('cpu')), World(0, 1, torch.device('cuda', 0))


def heads(shape: tuple[int, ...], dtype: torch.dtype) -> list[torch.Tensor]:
    """q, k, v (B, H, L, E) as a block makes them, views of one tensor, and a gradient of the result."""
    torch.manual_seed(0)
    b, h, tokens, width = shape
    made = torch.randn(b, tokens, 3, h, width).to(dtype).requires_grad_().permute(2, 0, 3, 1, 4).unbind(0)
    return [*made, torch.randn(shape).to(dtype)]


def attend(function, q, k, v, grad) -> list[torch.Tensor]:
    out = function(q, k, v)
    return [out, *torch.autograd.grad(out, (q, k, v), grad)]


@pytest.mark.parametrize('shape', [(3, 2, 50, 8), (1, 1, 7, 16), (2, 4, 33, 32)])
@pytest.mark.parametrize('at_once', [1, 20_000, 10 ** 9])
@pytest.mark.parametrize('dtype, close', [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 3e-2)])
def test_blocked_attention_is_attention(shape, at_once, dtype, close, monkeypatch):
    """Values and all gradients, with every head by itself, some and all of them at once, the last part smaller."""
    monkeypatch.setattr(attention, 'SCORE_BYTES', at_once)
    given = heads(shape, dtype)
    q, k, v, grad = (tensor.detach().double().requires_grad_() for tensor in given)
    scores = (q @ k.transpose(2, 3) / math.sqrt(shape[-1])).exp()
    expected = scores / scores.sum(dim=-1, keepdim=True) @ v
    expected = [expected, *torch.autograd.grad(expected, (q, k, v), grad)]
    for ours, right in zip(attend(attention.blocked_attention, *given), expected, strict=True):
        assert ours.dtype == dtype
        assert (ours - right).norm() < close * right.norm()


def test_scores_never_take_more_than_they_may():
    q = torch.empty(128, 750, 32, dtype=torch.bfloat16)
    parts = attention._parts(q)
    assert sorted(i for part in parts for i in range(128)[part]) == list(range(128))
    for part in parts:
        assert len(q[part]) * 750 ** 2 * 2 <= attention.SCORE_BYTES
    assert len(attention._parts(torch.empty(3, 5000, 32))) == 3     # one head is more than that: by itself


@pytest.fixture
def calls(monkeypatch) -> list[str]:
    """Names of the kernels that ran."""
    seen = []

    def watch(module, name: str) -> None:
        real = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *args, **kwargs: seen.append(name) or real(*args, **kwargs))
    watch(attention, 'blocked_attention')
    watch(F, 'scaled_dot_product_attention')
    return seen


@pytest.mark.parametrize('bf16, fused, expected', [
    (False, True, ['scaled_dot_product_attention']), (True, True, ['blocked_attention']), (True, False, []),
    (False, False, [])])
def test_each_precision_has_its_kernel_and_all_agree(bf16, fused, expected, calls):
    torch.manual_seed(0)
    model = SkeletonEncoder(dim_feat=32, depth=1, num_heads=4, num_frames=16, num_joints=5)
    x, toward = torch.randn(2, 3, 16, 5, 2, requires_grad=True), torch.randn(2, 2, 4, 5, 32)
    reference = model.double().features(x.double())
    reference_grad, = torch.autograd.grad((reference * toward).sum(), x)
    set_fused_attention(model.float(), fused)
    calls.clear()
    with torch.autocast('cpu', torch.bfloat16, enabled=bf16):
        features = model.features(x)
    assert calls == expected
    grad, = torch.autograd.grad((features * toward).sum(), x)
    close = 2e-2 if bf16 else 1e-5
    assert (features - reference).norm() < close * reference.norm()
    assert (grad - reference_grad).norm() < 3 * close * reference_grad.norm()


def test_a_bf16_model_without_autocast_takes_it_too(calls):
    model = SkeletonEncoder(dim_feat=32, depth=1, num_heads=4, num_frames=16, num_joints=5).bfloat16()
    assert model.features(torch.randn(2, 3, 16, 5, 2).bfloat16()).dtype == torch.bfloat16
    assert calls == ['blocked_attention']


@pytest.mark.parametrize('backward', [True, False])
def test_kernels_of_this_device_are_timed_and_others_are_infinitely_slow(backward):
    names = ('flash', 'cudnn', 'math', 'blocked')
    found = attention.time_kernels(names, CPU.device, torch.float32, (2, 2, 40, 8), backward)
    assert list(found) == list(names) and found['cudnn'] == math.inf
    assert all(0 < found[name] < 10 for name in ('flash', 'math', 'blocked'))


def test_a_device_without_memory_is_no_reason_to_do_without_a_kernel(monkeypatch):
    def full(*_, **__):
        raise torch.OutOfMemoryError('full')
    monkeypatch.setattr(F, 'scaled_dot_product_attention', full)
    with pytest.raises(torch.OutOfMemoryError):
        attention.time_kernels(['flash'], CPU.device, torch.float32, (2, 2, 40, 8))


def test_a_mask_is_not_forgotten():
    torch.manual_seed(0)
    layer, x = attention.Attention(16, 2), torch.randn(2, 6, 16)
    reference = layer(x, is_causal=True)
    with torch.autocast('cpu', torch.bfloat16):
        causal, free = layer(x, is_causal=True), layer(x)
    assert (causal - reference).norm() < .03 * reference.norm() < (free - reference).norm()


@pytest.fixture
def switches(monkeypatch) -> dict[str, bool]:
    """What is switched on for GPUs; the real switches stay as they were."""
    state = {}
    for name in ('flash', 'cudnn', 'mem_efficient', 'math'):
        monkeypatch.setattr(torch.backends.cuda, f'enable_{name}_sdp', lambda on, name=name: state.update({name: on}))
    return state


@pytest.mark.parametrize('seconds, chosen', [
    ({'flash': 2., 'cudnn': 1., 'efficient': 3.}, 'cudnn'), ({'flash': 1.04, 'cudnn': 1., 'efficient': 3.}, 'flash'),
    ({'flash': math.inf, 'cudnn': math.inf, 'efficient': 3.}, 'efficient'),
    ({'flash': math.inf, 'cudnn': math.inf, 'efficient': math.inf}, 'math')])
def test_the_fastest_kernel_of_a_gpu_is_taken(seconds, chosen, switches, monkeypatch):
    asked = []

    def time_kernels(names, *given):
        asked.append(given)
        return {name: seconds[name] for name in names}
    monkeypatch.setattr(attention, 'time_kernels', time_kernels)
    monkeypatch.setattr(torch, 'tensor', lambda values, dtype, device, make=torch.tensor: make(values, dtype=dtype))
    assert attention.choose_kernel('auto', CUDA, torch.bfloat16, (64, 8, 750, 32)) == chosen
    assert asked == [(CUDA.device, torch.bfloat16, (64, 8, 750, 32), True)]
    names = {'flash': 'flash', 'cudnn': 'cudnn', 'mem_efficient': 'efficient'}
    assert {name: on for name, on in switches.items() if on} == {
        name: True for name in switches if names.get(name) == chosen or name == 'math'}


def test_a_kernel_that_does_not_run_is_refused(switches, monkeypatch):
    monkeypatch.setattr(attention, 'time_kernels', lambda names, *_: dict.fromkeys(names, math.inf))
    monkeypatch.setattr(torch, 'tensor', lambda values, dtype, device, make=torch.tensor: make(values, dtype=dtype))
    refusal(lambda: attention.choose_kernel('flash', CUDA, torch.float32, (1, 1, 4, 8)), '--attention flash', 'auto')
    refusal(lambda: attention.choose_kernel('flash', CPU, torch.float32, (1, 1, 4, 8)), '--attention flash', 'CPU')
    assert attention.choose_kernel('auto', CPU, torch.float32, (1, 1, 4, 8)) == 'auto' and not switches
