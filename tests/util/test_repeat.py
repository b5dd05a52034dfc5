"""--deterministic: on while a run lasts, and the same weights from two runs."""

import os
from argparse import Namespace

import pytest
import torch

import main_finetune
import main_pretrain
from tests.conftest import read_weights, refusal
from util import attention
from util.dist import World
from util.repeat import repeatable
from util.trainer import Trainer

MAINS = {'pretrain': main_pretrain.main, 'finetune': main_finetune.main}


def flags() -> tuple:
    return (torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled(),
            torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark, torch._inductor.config.deterministic)


@pytest.mark.parametrize('stage', MAINS)
def test_two_runs_give_equal_weights_and_leave_no_flag_on(stage, tiny, tiny_pretrain, tmp_path, monkeypatch):
    options = tiny_pretrain if stage == 'pretrain' else [*tiny, '--drop_path_rate', '0.3']
    before, during, update = flags(), [], Trainer.update
    monkeypatch.setattr(Trainer, 'update', lambda trainer: during.append(flags()) or update(trainer))
    for name in ('one', 'other'):
        MAINS[stage]([*options, '--deterministic', '--output_dir', str(tmp_path / name)])
        assert flags() == before
    assert set(during) == {(True, False, True, False, True)} and before[0] is False
    one, other = read_weights(tmp_path / 'one'), read_weights(tmp_path / 'other')
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
    during.clear()
    MAINS[stage]([*options, '--output_dir', str(tmp_path / 'without')])
    assert set(during) == {before}


def test_a_run_that_fails_leaves_no_flag_on_either(monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, 'benchmark', True)
    before = flags()
    with pytest.raises(KeyError), repeatable(True, 'cpu'):
        assert flags() != before
        raise KeyError
    assert flags() == before


@pytest.mark.parametrize('started, given, device, expected', [
    (False, None, 'auto', ':4096:8'), (False, ':16:8', 'cuda', ':16:8'), (True, ':4096:8', 'auto', ':4096:8'),
    (False, ':0:0', 'cuda:1', ':4096:8'), (True, None, 'cpu', None), (True, None, 'cuda', 'refused')])
def test_cublas_is_told_before_cuda_starts(started, given, device, expected, monkeypatch):
    monkeypatch.setenv('CUBLAS_WORKSPACE_CONFIG', given or '')
    if given is None:
        monkeypatch.delenv('CUBLAS_WORKSPACE_CONFIG')
    monkeypatch.setattr(torch.cuda, 'is_initialized', lambda: started)

    def enter() -> str | None:
        with repeatable(True, device):
            return os.environ.get('CUBLAS_WORKSPACE_CONFIG')
    if expected == 'refused':
        refusal(enter, '--deterministic', 'CUBLAS_WORKSPACE_CONFIG', 'set it')
        assert not torch.are_deterministic_algorithms_enabled()
    else:
        assert enter() == expected


@pytest.mark.parametrize('dtype, wanted, chosen', [
    (torch.bfloat16, 'auto', 'flash'), (torch.float32, 'auto', 'efficient'), (torch.bfloat16, 'cudnn', None),
    (torch.bfloat16, 'math', 'math')])
def test_a_rule_and_no_clock_chooses_the_attention_kernel(dtype, wanted, chosen, monkeypatch):
    used, timed = [], []
    monkeypatch.setattr(attention, 'use_kernel', lambda name: used.append(name) or name)
    monkeypatch.setattr(attention, 'time_kernels', lambda names, *_: timed.append(names) or dict.fromkeys(names, 1.))
    world = Namespace(device=torch.device('cuda', 0), size=1, sum=lambda tensor: tensor)
    monkeypatch.setattr(torch, 'tensor', lambda values, dtype, device, make=torch.tensor: make(values, dtype=dtype))
    with repeatable(True, 'cpu'):
        if chosen is None:
            refusal(lambda: attention.choose_kernel(wanted, world, dtype, (1, 1, 1, 1)), '--attention cudnn')
        else:
            assert attention.choose_kernel(wanted, world, dtype, (1, 1, 1, 1)) == chosen
            assert used == [chosen] and timed == ([] if wanted == 'auto' else [[wanted]])


def test_a_cpu_has_no_kernel_to_choose():
    with repeatable(True, 'cpu'):
        assert attention.choose_kernel('auto', World(0, 1, torch.device('cpu')), torch.float32, (1, 1, 1, 1)) == 'auto'
