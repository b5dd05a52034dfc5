"""Captured steps on the CPU: a tape records the operations of one call and repeats them, as a CUDA graph does.

What a graph does not see, a Python number that changes or a new tensor, the tape does not see either.
"""

import itertools

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import main_finetune
import main_linprobe
import main_pretrain
import util.trainer
from tests.conftest import read_lines
from util.capture import Graph, GraphRecorder


class Tape(TorchDispatchMode):
    """Records operations on tensors, and repeats them into the same memory."""

    def __init__(self):
        super().__init__()
        self.operations = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        self.operations.append((function, args, kwargs or {}, result))
        return result

    @torch.no_grad()
    def replay(self) -> None:
        for function, args, kwargs, result in self.operations:
            for old, new in zip(tree_leaves(result), tree_leaves(function(*args, **kwargs)), strict=True):
                if isinstance(old, torch.Tensor) and old.data_ptr() != new.data_ptr():
                    old.copy_(new)


class TapeRecorder(GraphRecorder):
    """A recorder for CPUs. As a graph does, recording leaves everything as it was."""

    recorded = 0

    def record(self, function, inputs) -> Graph:
        TapeRecorder.recorded += 1
        buffers, tape = tuple(value.clone() for value in inputs), Tape()
        with tape:
            outputs = function(*buffers)
        calls = itertools.count()
        return Graph(buffers, outputs, lambda: tape.replay() if next(calls) else None)      # the first is done already


@pytest.fixture
def capture_on_cpu(monkeypatch):
    monkeypatch.setattr(util.trainer, 'GraphRecorder', lambda device, enabled: TapeRecorder(device))


@pytest.mark.parametrize('stage, options', [
    ('pretrain', []), ('pretrain', ['--effective_batch_size', '8', '--batch_size', '4', '--clip_grad', '0.1']),
    ('pretrain', ['--skip_empty_bodies']), ('finetune', ['--drop_path_rate', '0.3']), ('linprobe', [])])
def test_captured_training_gives_the_weights_of_eager_training(stage, options, tiny, tiny_pretrain, tmp_path,
                                                               monkeypatch):
    main = {'pretrain': main_pretrain, 'finetune': main_finetune, 'linprobe': main_linprobe}[stage].main
    given = [*(tiny_pretrain if stage == 'pretrain' else tiny), *options, '--epochs', '3',
             *(['--random_encoder'] if stage == 'linprobe' else [])]
    main([*given, '--output_dir', str(tmp_path / 'eager')])
    monkeypatch.setattr(util.trainer, 'GraphRecorder', lambda device, enabled: TapeRecorder(device))
    before = TapeRecorder.recorded
    main([*given, '--output_dir', str(tmp_path / 'captured')])
    assert TapeRecorder.recorded > before
    eager, captured = ([line['train_loss'] for line in read_lines(tmp_path / name)] for name in ('eager', 'captured'))
    assert captured == pytest.approx(eager, rel=1e-5)
