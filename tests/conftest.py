"""A tiny data set and settings with which every stage runs in a second."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from data.common import one_hot, write_npz
from util.checkpoint import LAST, Checkpoint
from util.errors import UserError

ROOT = Path(__file__).resolve().parents[1]
NUM_TRAIN, NUM_TEST, NUM_JOINTS, NUM_BODIES, NUM_CLASSES = 22, 13, 5, 2, 3


def random_walks(num_clips: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Clips (N, 20, M·V·3) of different lengths whose drift tells the class, and labels; every third has one body."""
    label = np.arange(num_clips) % NUM_CLASSES
    steps = rng.normal(0.05 * (label[:, None, None, None] - 1), 0.1, (num_clips, 20, NUM_BODIES, NUM_JOINTS * 3))
    clips = steps.cumsum(axis=1)
    clips[::3, :, 1] = 0
    for clip in clips:
        clip[rng.integers(8, 21):] = 0
    return clips.reshape(num_clips, 20, -1).astype(np.float32), label


@pytest.fixture(scope='session')
def tiny_npz(tmp_path_factory) -> Path:
    rng = np.random.default_rng(5)
    (x_train, train), (x_test, test) = random_walks(NUM_TRAIN, rng), random_walks(NUM_TEST, rng)
    path = tmp_path_factory.mktemp('data') / 'TINY.npz'
    write_npz(path, x_train=x_train, y_train=one_hot(train, NUM_CLASSES), x_test=x_test,
              y_test=one_hot(test, NUM_CLASSES))
    return path


@pytest.fixture(scope='session')
def tiny(tiny_npz) -> list[str]:
    """Options with which any stage trains a tiny model on the tiny set: 5 steps of 4 clips an epoch."""
    return ['--data_path', str(tiny_npz), '--num_joints', str(NUM_JOINTS), '--num_frames', '16', '--t_patch_size', '4',
            '--dim_feat', '16', '--depth', '2', '--num_heads', '2', '--effective_batch_size', '4', '--num_workers', '0',
            '--lr', '1e-3', '--epochs', '2', '--device', 'cpu']


@pytest.fixture(scope='session')
def tiny_pretrain(tiny) -> list[str]:
    return [*tiny, '--decoder_dim_feat', '16', '--decoder_depth', '1', '--mask_ratio', '0.5']


def run(*command: str, env: dict | None = None, timeout: float = 300) -> subprocess.CompletedProcess:
    """A command of the repository in a process of its own, one thread, without a GPU."""
    env = os.environ | {'OMP_NUM_THREADS': '1', 'CUDA_VISIBLE_DEVICES': '', 'PYTHONPATH': str(ROOT)} | (env or {})
    return subprocess.run([sys.executable, *command], cwd=ROOT, env=env, capture_output=True, text=True,
                          timeout=timeout, check=False)


def torchrun(processes: int, *command: str, env: dict | None = None,
             timeout: float = 300) -> subprocess.CompletedProcess:
    """The same as so many processes."""
    return run('-m', 'torch.distributed.run', '--standalone', '--nproc_per_node', str(processes), *command, env=env,
               timeout=timeout)


def read_lines(folder: Path) -> list[dict]:
    """Lines of a run's log.jsonl."""
    return [json.loads(line) for line in (folder / 'log.jsonl').read_text().splitlines()]


def read_result(folder: Path) -> dict:
    return json.loads((folder / 'result.json').read_text())


def read_weights(folder: Path) -> dict[str, torch.Tensor]:
    return Checkpoint.read(folder / LAST).model


def refusal(call, *parts):
    """Check that `call` raises a UserError of one line that contains all of `parts`; returns the line."""
    with pytest.raises(UserError) as error:
        call()
    message = str(error.value)
    assert '\n' not in message and message.strip(), message
    for part in parts:
        assert str(part) in message, message
    return message
