"""Precision, compilation and deterministic mode."""

import os
import shutil

import pytest
import torch

from model_mamp import MAMP
from tests.conftest import refusal
from util.precision import Precision, compile_model, deterministic

CPU = torch.device('cpu')


def flags() -> tuple:
    return (torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled(),
            torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark, torch._inductor.config.deterministic)


def test_deterministic_mode_ends_with_its_context(monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, 'benchmark', True)
    before = flags()
    with deterministic(False, 'cpu'):
        assert flags() == before
    with pytest.raises(KeyError), deterministic(True, 'cpu'):
        assert flags() == (True, False, True, False, True)
        raise KeyError
    assert flags() == before


@pytest.mark.parametrize('cuda_started, setting, device, expected', [
    (False, '', 'auto', ':4096:8'), (True, ':16:8', 'cuda', ':16:8'), (True, '', 'cpu', ''), (True, '', 'cuda', None)])
def test_cublas_is_set_before_cuda_starts(cuda_started, setting, device, expected, monkeypatch):
    monkeypatch.setenv('CUBLAS_WORKSPACE_CONFIG', setting)
    monkeypatch.setattr(torch.cuda, 'is_initialized', lambda: cuda_started)

    def enter() -> str:
        with deterministic(True, device):
            return os.environ['CUBLAS_WORKSPACE_CONFIG']
    if expected is None:
        refusal(enter, '--deterministic', 'CUBLAS_WORKSPACE_CONFIG')
    else:
        assert enter() == expected


def test_precision_of_a_cpu():
    refusal(lambda: Precision('tf32', CPU), '--precision tf32')
    assert Precision(None, CPU).name == 'fp32'
    with Precision('bf16', CPU).autocast():
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.bfloat16


@pytest.mark.slow
@pytest.mark.skipif(shutil.which('g++') is None, reason='no C++ compiler')
def test_a_compiled_model_computes_the_same():
    torch.manual_seed(0)
    model = MAMP(dim_feat=16, decoder_dim_feat=16, depth=1, decoder_depth=1, num_heads=2, num_frames=16, num_joints=5)
    clips, uniform, results = torch.randn(2, 3, 16, 5, 2), torch.rand(4, 20), []
    for requested in ('auto', 'on'):
        assert compile_model(model, requested, CPU) == (requested == 'on')
        model.zero_grad()
        loss, pred, _ = model(clips, .6, uniform=uniform)
        loss.backward()
        results.append([loss, pred, *(p.grad.clone() for p in model.parameters())])
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-6)
