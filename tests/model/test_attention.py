"""Attention kernels against float64, and which one runs where."""

import math

import pytest
import torch
import torch.nn.functional as F

from model_transformer import SkeletonEncoder
from tests.conftest import refusal, run
from tools.benchmarking.plain import use_plain_attention
from util import attention


@pytest.mark.parametrize('score_bytes', [1, 20_000, 10 ** 9])
@pytest.mark.parametrize('dtype, tolerance', [(torch.float64, 1e-12), (torch.bfloat16, 3e-2)])
def test_blocked_attention_against_float64(score_bytes, dtype, tolerance, monkeypatch):
    """Values and all gradients; one head at a time, some, and all of them."""
    monkeypatch.setattr(attention, 'SCORE_BYTES', score_bytes)
    torch.manual_seed(0)
    b, h, tokens, width = shape = (3, 2, 50, 8)
    qkv = torch.randn(b, tokens, 3, h, width).to(dtype).requires_grad_().permute(2, 0, 3, 1, 4).unbind(0)
    grad = torch.randn(shape).to(dtype)
    q, k, v = (part.detach().double().requires_grad_() for part in qkv)
    scores = (q @ k.transpose(2, 3) / math.sqrt(width)).exp()
    expected = scores / scores.sum(dim=-1, keepdim=True) @ v
    out = attention.blocked_attention(*qkv)
    for result, reference in zip([out, *torch.autograd.grad(out, qkv, grad)],
                                 [expected, *torch.autograd.grad(expected, (q, k, v), grad.double())], strict=True):
        assert result.dtype == dtype and (result - reference).norm() < tolerance * reference.norm()


@pytest.mark.parametrize('bf16, fused, expected', [
    (False, True, ['scaled_dot_product_attention']), (True, True, ['blocked_attention']), (True, False, [])])
def test_each_precision_has_its_kernel_and_all_agree(bf16, fused, expected, monkeypatch):
    calls = []

    def watch(module, name: str) -> None:
        kernel = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *args, **options: calls.append(name) or kernel(*args, **options))
    watch(attention, 'blocked_attention')
    watch(F, 'scaled_dot_product_attention')
    torch.manual_seed(0)
    model = SkeletonEncoder(dim_feat=32, depth=1, num_heads=4, num_frames=16, num_joints=5)
    x, toward = torch.randn(2, 3, 16, 5, 2, requires_grad=True), torch.randn(2, 2, 4, 5, 32)
    reference = model.double().features(x.double())
    reference_grad, = torch.autograd.grad((reference * toward).sum(), x)
    model.float()
    if not fused:
        use_plain_attention(model)
    calls.clear()
    with torch.autocast('cpu', torch.bfloat16, enabled=bf16):
        features = model.features(x)
    assert calls == expected
    grad, = torch.autograd.grad((features * toward).sum(), x)
    tolerance = 2e-2 if bf16 else 1e-5
    assert (features - reference).norm() < tolerance * reference.norm()
    assert (grad - reference_grad).norm() < 3 * tolerance * reference_grad.norm()


def test_kernels_are_selected_on_a_gpu_only(monkeypatch):
    model = SkeletonEncoder(dim_feat=32, depth=1, num_heads=2, num_frames=16, num_joints=5)
    gpu, switches = torch.device('cuda', 0), {}
    for name in ('flash', 'cudnn', 'mem_efficient'):
        monkeypatch.setattr(torch.backends.cuda, f'enable_{name}_sdp',
                            lambda on, name=name: switches.update({name: on}))
    monkeypatch.setattr(attention, '_find_triton', lambda width, device: None)
    refusal(lambda: attention.select_attention(model, 'flash', torch.device('cpu')), '--attention flash')
    refusal(lambda: attention.select_attention(model, 'triton', gpu), '--attention triton', 'not 16')
    attention.select_attention(model, 'efficient', gpu)
    assert switches == {'flash': False, 'cudnn': False, 'mem_efficient': True}
    attention.select_attention(model, 'auto', gpu)
    assert all(switches.values())
    monkeypatch.setattr(torch, 'are_deterministic_algorithms_enabled', lambda: True)
    refusal(lambda: attention.select_attention(model, 'cudnn', gpu), '--attention cudnn')


INTERPRETED = """
import torch
from util.triton_attention import triton_attention
torch.manual_seed(0)
for shift in 0., 20.:      # with 20, all scores are about -200: no weight may be computed without the largest score
    qkv = torch.randn(2, 150, 3, 2, 16)
    qkv[:, :, 0] -= shift
    qkv[:, :, 1] += shift / 8
    q, k, v = qkv.requires_grad_().permute(2, 0, 3, 1, 4).double().unbind(0)
    expected = ((q @ k.transpose(2, 3) / 4).softmax(dim=-1) @ v).transpose(1, 2)
    grad = torch.randn(expected.shape)
    expected_grad, = torch.autograd.grad(expected, qkv, grad.double())
    out = triton_attention(qkv)
    out_grad, = torch.autograd.grad(out, qkv, grad)
    tolerance = 1e-5 * (1 + shift)
    assert (out - expected).norm() < tolerance * expected.norm(), shift
    assert (out_grad - expected_grad).norm() < tolerance * expected_grad.norm(), shift
"""


def test_triton_attention_against_float64():
    """In Triton's interpreter, which runs the kernels' code on a CPU; tests/util/test_gpu.py runs them compiled."""
    pytest.importorskip('triton')
    done = run('-c', INTERPRETED, env={'TRITON_INTERPRET': '1'})
    assert done.returncode == 0, done.stderr
