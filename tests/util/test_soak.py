"""Thousands of tiny steps, with workers and TensorBoard, in memory that does not grow."""

import numpy as np
import pytest

from data.common import one_hot, write_npz
from tests.conftest import NUM_CLASSES, random_walks, run

STEPS, WARM, EVERY = 5000, 1000, 20         # of the whole run, before memory is judged, between two looks at it
LIMIT = 1.                                  # MB per 1,000 steps

# What the run executes: after every so many steps it notes its own and its workers' memory and open files. Memory is
# what no file could give back: anonymous, shared, swapped. Pages that a worker shares with its parent count in both, so
# that it is nothing new when one of them writes there and gets its copy, as happens a little all the time. Pages of the
# memory-mapped data come and go with the file cache, and are not counted.
WATCHED = """
import os, sys
from pathlib import Path
from util.trainer import Trainer

def family(process):
    yield process
    for child in Path(f'/proc/{{process}}/task/{{process}}/children').read_text().split():
        yield from family(int(child))

def kilobytes(process):
    lines = dict(line.split(':') for line in Path(f'/proc/{{process}}/status').read_text().splitlines())
    return sum(int(lines[name].split()[0]) for name in ('RssAnon', 'RssShmem', 'VmSwap'))

def update_and_look(trainer, update=Trainer.update, done=[0]):
    update(trainer)
    done[0] += 1
    if done[0] % {every} == 0:
        processes = list(family(os.getpid()))
        print(done[0], len(processes), sum(map(kilobytes, processes)),
              sum(len(os.listdir(f'/proc/{{one}}/fd')) for one in processes), file=notes, flush=True)

Trainer.update = update_and_look
with open(sys.argv[1], 'w') as notes:
    import {main}
    {main}.main(sys.argv[2:])
"""


@pytest.fixture(scope='module')
def many_clips(tmp_path_factory):
    """1,000 clips to train on, 250 steps an epoch."""
    rng = np.random.default_rng(8)
    (x, label), (x_test, label_test) = random_walks(1000, rng), random_walks(60, rng)
    path = tmp_path_factory.mktemp('soak') / 'SOAK.npz'
    write_npz(path, x_train=x, y_train=one_hot(label, NUM_CLASSES), x_test=x_test,
              y_test=one_hot(label_test, NUM_CLASSES))
    return path


def slope_of(step: np.ndarray, value: np.ndarray) -> float:
    """Median of the slopes between any two points (Theil and Sen): a third of them may lie anywhere."""
    one, other = np.triu_indices(len(step), k=1)
    return float(np.median((value[other] - value[one]) / (step[other] - step[one])))


def test_the_slope_is_one_that_a_few_jumps_do_not_bend():
    step = np.arange(0., 4000, 20)
    noise = np.random.default_rng(0).normal(0, 3, len(step))
    noise[::7] += 500
    assert slope_of(step, 0.002 * step + noise) == pytest.approx(0.002, abs=2e-4)


@pytest.mark.slow
@pytest.mark.parametrize('stage', ['pretrain', 'finetune'])
def test_memory_stays_over_thousands_of_steps(stage, many_clips, tiny, tiny_pretrain, tmp_path):
    options = [*(tiny_pretrain if stage == 'pretrain' else tiny), '--data_path', str(many_clips), '--epochs',
               str(STEPS // 250), '--num_workers', '2', '--log_steps', '1', '--save_steps', '100', '--output_dir',
               str(tmp_path / 'run')]
    done = run('-c', WATCHED.format(main=f'main_{stage}', every=EVERY), str(tmp_path / 'notes'), *options, timeout=3600)
    assert done.returncode == 0, done.stderr
    step, processes, kilobytes, files = np.loadtxt(tmp_path / 'notes', dtype=np.int64).T
    assert step[-1] == STEPS and len(step) == STEPS // EVERY and any((tmp_path / 'run').glob('events.*'))
    warm = step > WARM
    assert processes[warm].min() >= 3, 'the workers are counted'
    slope = slope_of(step[warm], kilobytes[warm] / 1024) * 1000
    print(f'{stage}: {slope:+.3f} MB per 1,000 steps of {kilobytes[warm].mean() / 1024:.0f} MB, '
          f'{processes.max()} processes, {files[warm].min()} to {files.max()} open files')
    assert slope < LIMIT
    # How many there are at a moment differs, between epochs and while a checkpoint is written.
    assert slope_of(step[warm], files[warm]) * 1000 < 1, 'no file stays open'
