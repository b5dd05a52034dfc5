"""Thousands of tiny steps, with reading threads and TensorBoard, in memory that does not grow."""

import numpy as np
import pytest

from data.dataset_file import one_hot, write_npz
from tests.conftest import NUM_CLASSES, random_walks, run

STEPS, WARM_UP, EVERY = 5000, 1000, 20      # steps of the run, before memory is compared, between two measurements
LIMIT = 1.                                  # MB per 1,000 steps

# Every so many steps the run notes its memory and open files. Memory is anonymous, shared and swapped pages: those of
# the memory-mapped data come and go with the file cache.
MEASURED = """
import os, sys
from pathlib import Path
from util.trainer import Trainer

def kilobytes():
    lines = dict(line.split(':') for line in Path('/proc/self/status').read_text().splitlines())
    return sum(int(lines[name].split()[0]) for name in ('RssAnon', 'RssShmem', 'VmSwap'))

def save_and_measure(trainer, *place, save_if_due=Trainer.save_if_due, steps=[]):
    save_if_due(trainer, *place)
    steps.append(place)
    if len(steps) % {every} == 0:
        print(len(steps), kilobytes(), len(os.listdir('/proc/self/fd')), file=notes, flush=True)

Trainer.save_if_due = save_and_measure
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


def median_slope(step: np.ndarray, value: np.ndarray) -> float:
    """Median of the slopes between any two points (Theil and Sen), which single jumps do not change."""
    first, second = np.triu_indices(len(step), k=1)
    return float(np.median((value[second] - value[first]) / (step[second] - step[first])))


@pytest.mark.slow
@pytest.mark.parametrize('stage', ['pretrain', 'finetune'])
def test_memory_and_open_files_do_not_grow_over_thousands_of_steps(stage, many_clips, stage_options, tmp_path):
    options = [*stage_options[stage], '--data_path', str(many_clips), '--epochs', str(STEPS // 250), '--num_workers',
               '2', '--log_steps', '1', '--save_steps', '100', '--output_dir', str(tmp_path / 'run')]
    code = MEASURED.format(main=f'main_{stage}', every=EVERY)
    done = run('-c', code, str(tmp_path / 'notes'), *options, timeout=3600)
    assert done.returncode == 0, done.stderr
    step, kilobytes, files = np.loadtxt(tmp_path / 'notes', dtype=np.int64).T
    assert step[-1] == STEPS and len(step) == STEPS // EVERY and any((tmp_path / 'run').glob('events.*'))
    later = step > WARM_UP
    slope = median_slope(step[later], kilobytes[later] / 1024) * 1000
    print(f'{stage}: {slope:+.3f} MB per 1,000 steps of {kilobytes[later].mean() / 1024:.0f} MB, '
          f'{files[later].min()} to {files.max()} open files')
    assert slope < LIMIT and median_slope(step[later], files[later]) * 1000 < 1
