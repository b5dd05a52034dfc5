"""A tiny dataset with which every stage trains in a second, and what tests of whole runs share."""

import importlib
import itertools
import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from data.dataset_file import one_hot, write_npz
from util.checkpoint import LAST, Checkpoint, newest
from util.errors import UserError
from util.trainer import Trainer

ROOT = Path(__file__).resolve().parents[1]
NUM_TRAIN, NUM_TEST, NUM_JOINTS, NUM_BODIES, NUM_CLASSES = 22, 13, 5, 2, 3
CPU = {'OMP_NUM_THREADS': '1', 'CUDA_VISIBLE_DEVICES': '', 'PYTHONPATH': str(ROOT)}
torch.set_num_threads(1)        # for tiny models as fast as two, and beside other processes four times faster


def random_walks(num_clips: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Clips (N, 20, M·V·3) of different lengths whose drift shows the class, and labels; every third has one body."""
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
    """Options with which any stage trains a tiny model on the tiny dataset: 5 steps of 4 clips an epoch."""
    return ['--data_path', str(tiny_npz), '--num_joints', str(NUM_JOINTS), '--num_frames', '16', '--t_patch_size', '4',
            '--dim_feat', '16', '--depth', '2', '--num_heads', '2', '--effective_batch_size', '4', '--num_workers', '0',
            '--lr', '1e-3', '--epochs', '2', '--device', 'cpu']


@pytest.fixture(scope='session')
def tiny_pretrain(tiny) -> list[str]:
    return [*tiny, '--decoder_dim_feat', '16', '--decoder_depth', '1', '--mask_ratio', '0.5']


@pytest.fixture(scope='session')
def stage_options(tiny, tiny_pretrain) -> dict[str, list[str]]:
    """Options of each stage, without a pre-trained encoder."""
    return {'pretrain': tiny_pretrain, 'linprobe': [*tiny, '--random_encoder'],
            'finetune': [*tiny, '--drop_path_rate', '0.3', '--patch_drop_rate', '0.5', '--head', 'linear']}


# ---- running ---------------------------------------------------------------------------------------------------------


def train(stage: str, options: list[str], folder: Path | None = None, *more: str) -> None:
    """Run main_<stage>.py in this process."""
    output = [] if folder is None else ['--output_dir', str(folder)]
    assert importlib.import_module(f'main_{stage}').main([*options, *output, *more]) == 0


def run(*command: str, env: dict | None = None, timeout: float = 300) -> subprocess.CompletedProcess:
    """Run a Python command of the repository in a process of its own, with one thread and without a GPU."""
    return subprocess.run([sys.executable, *command], cwd=ROOT, env=os.environ | CPU | (env or {}), capture_output=True,
                          text=True, timeout=timeout, check=False)


def torchrun(processes: int, *command: str, env: dict | None = None,
             timeout: float = 300) -> subprocess.CompletedProcess:
    """Run a command in several processes."""
    return run('-m', 'torch.distributed.run', '--standalone', '--nproc_per_node', str(processes), *command, env=env,
               timeout=timeout)


def free_port() -> int:
    with socket.socket() as server:
        server.bind(('127.0.0.1', 0))
        return server.getsockname()[1]


# PyTorch is imported once; every line of stdin starts processes that execute some code.
FORKS = """
import json, os, signal, sys, traceback
import main_finetune, main_linprobe, main_pretrain, tools.retrieval, tests.conftest, torch.distributed.run

def execute(code, argv, environment, output):
    signal.alarm(300)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ |= environment
    descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, 1), os.dup2(descriptor, 2)
    sys.argv, status = argv, 0
    try:
        exec(code, {'__name__': '__main__'})
    except SystemExit as end:
        status = end.code or 0
    except BaseException:
        traceback.print_exc()
        status = 1
    sys.stdout.flush(), sys.stderr.flush()
    os._exit(status)

for line in sys.stdin:
    code, argv, environments, output = json.loads(line)
    children = []
    for environment in environments:
        children.append(os.fork())
        if not children[-1]:
            execute(code, argv, environment, output)
    print(json.dumps([os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]), flush=True)
"""


@pytest.fixture(scope='session')
def fork(tmp_path_factory):
    """Run Python code as one or several processes; returns their exit `codes` and what they wrote, `text`."""
    folder, calls = tmp_path_factory.mktemp('fork'), itertools.count()

    def call(code: str, *argv, processes: int = 1) -> SimpleNamespace:
        output, port = folder / str(next(calls)), str(free_port())
        environments = [{'RANK': str(rank), 'LOCAL_RANK': str(rank), 'WORLD_SIZE': str(processes),
                         'MASTER_ADDR': '127.0.0.1', 'MASTER_PORT': port} for rank in range(processes)]
        server.stdin.write(json.dumps([code, ['fork', *map(str, argv)], environments, str(output)]) + '\n')
        return SimpleNamespace(codes=json.loads(server.stdout.readline()), text=output.read_text())

    with subprocess.Popen([sys.executable, '-c', FORKS], cwd=ROOT, env=os.environ | CPU, stdin=subprocess.PIPE,
                          stdout=subprocess.PIPE, text=True, bufsize=1) as server:
        yield call
        server.kill()


# Code for `fork` that runs a stage as its command does, after whatever is put before it.
RUN_STAGE = """
import importlib, sys
from util.errors import run_main
run_main(lambda: importlib.import_module(f'main_{sys.argv[1]}').main(sys.argv[2:]))
"""


def on_step(number: int, action: Callable, save: bool = True, patch: Callable = setattr) -> None:
    """From now on call `action(trainer)` after optimiser step `number` (counted over epochs from 1) and its saving.

    With `save` False the checkpoint of that step is not written. `patch` may be that of a MonkeyPatch.
    """
    save_if_due, steps = Trainer.save_if_due, itertools.count(1)

    def save_and_act(trainer, epoch, step):
        acts = next(steps) == number
        if save or not acts:
            save_if_due(trainer, epoch, step)
        if acts:
            action(trainer)
    patch(Trainer, 'save_if_due', save_and_act)


class Stopped(Exception):
    """Ends a run where a test wants it to."""


def train_until(step: int, stage: str, options: list[str], folder: Path, *more: str) -> None:
    """Run a stage in this process that ends with an exception after a step, before that step is saved."""
    def stop(trainer):
        raise Stopped
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Stopped):
        on_step(step, stop, save=False, patch=patch.setattr)
        train(stage, options, folder, *more)


# ---- reading what a run wrote ----------------------------------------------------------------------------------------


def read_lines(folder: Path) -> list[dict]:
    """Lines of a run's log.jsonl."""
    return [json.loads(line) for line in (folder / 'log.jsonl').read_text().splitlines()]


def read_result(folder: Path) -> dict:
    return json.loads((folder / 'result.json').read_text())


def read_weights(folder: Path) -> dict[str, torch.Tensor]:
    return Checkpoint.read(folder / LAST).model


def read_place(folder: Path) -> tuple[int, int]:
    """Epoch and step at which a run continues."""
    _, checkpoint = newest(folder) or (None, Checkpoint({}))
    return checkpoint.epoch + 1, checkpoint.step


def check_same_run(folder: Path, expected: Path) -> None:
    """Check that weights, optimizer state, scores, log and names of checkpoints of two runs are equal bit for bit."""
    checkpoint, reference = (Checkpoint.read(path / LAST) for path in (folder, expected))
    assert len(checkpoint.optimizer['state']) > 0
    for values, references in ((checkpoint.model, reference.model),
                               (checkpoint.optimizer['state'], reference.optimizer['state'])):
        torch.testing.assert_close(values, references, rtol=0, atol=0)
    assert all(checkpoint.progress[name] == reference.progress[name] for name in ('last', 'best', 'last_loss', 'clips'))
    lines, references = ([{name: value for name, value in line.items() if name not in ('seconds', 'clips_per_s')}
                          for line in read_lines(path)] for path in (folder, expected))
    assert lines == references and lines
    assert {path.name for path in folder.glob('*.pth')} == {path.name for path in expected.glob('*.pth')}


def refusal(call: Callable, *parts) -> str:
    """Check that `call` raises a UserError of one line that contains all of `parts`; returns the line."""
    with pytest.raises(UserError) as error:
        call()
    message = str(error.value)
    assert '\n' not in message and message.strip(), message
    for part in parts:
        assert str(part) in message, message
    return message
