"""Captured steps on the CPU: a tape repeats the operations of one call, and like a CUDA graph sees nothing else."""

import itertools

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import util.trainer
from tests.conftest import read_lines, train
from util.capture import WARMUP, Graph, GraphRecorder


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

    def record(self, function, buffers) -> Graph:
        TapeRecorder.recorded += 1
        tape = Tape()
        with tape:
            outputs = function(*buffers)
        calls = itertools.count()
        return Graph(outputs, lambda: tape.replay() if next(calls) else None)      # the first is done already


@pytest.mark.parametrize('stage, options', [
    ('pretrain', ['--effective_batch_size', '8', '--batch_size', '4', '--clip_grad', '0.1']),
    ('pretrain', ['--skip_empty_bodies']), ('finetune', ['--save_scores']), ('linprobe', ['--save_scores'])])
def test_captured_training_equals_eager_training(stage, options, stage_options, tmp_path, monkeypatch):
    """Fails for a learning rate that is recorded, an input that is not copied, gradients that are made anew."""
    options = [*stage_options[stage], *options, '--epochs', '3']
    train(stage, options, tmp_path / 'eager')
    monkeypatch.setattr(util.trainer, 'GraphRecorder', lambda device, enabled: TapeRecorder(device))
    before = TapeRecorder.recorded
    train(stage, options, tmp_path / 'captured')
    assert TapeRecorder.recorded > before
    eager, captured = ([line['train_loss'] for line in read_lines(tmp_path / name)] for name in ('eager', 'captured'))
    assert captured == pytest.approx(eager, rel=1e-5)
    if '--save_scores' in options:      # of all test clips, the last batch of which is padded
        eager, captured = (np.load(tmp_path / name / 'scores.npz')['scores'] for name in ('eager', 'captured'))
        np.testing.assert_allclose(captured, eager, atol=2e-3)


def test_warm_up_and_capture_see_inputs_of_the_same_strides():
    """A compiled function compiles again for other strides, which a capture does not allow."""
    strides = []

    def function(values):
        strides.append(values.stride())
        return values * 2
    captured = TapeRecorder(torch.device('cpu')).capture(function)
    for _ in range(WARMUP):
        assert torch.equal(captured(torch.ones(4, 3).T), torch.full((3, 4), 2.))
    captured(torch.ones(3, 4))
    assert len(strides) == WARMUP + 1 and set(strides) == {(4, 1)}
