"""Thousands of tiny steps, with reading threads and TensorBoard, in memory that does not grow."""

import numpy as np
import pytest
from scipy.stats import theilslopes

from data.dataset_file import one_hot, write_npz
from tests.conftest import NUM_CLASSES, random_walks, run

STEPS, WARM_UP, EVERY = 5000, 1000, 20      # steps of the run, before memory is compared, between two measurements

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


@pytest.mark.slow
@pytest.mark.parametrize('stage', ['pretrain', 'finetune'])
def test_memory_and_open_files_do_not_grow_over_thousands_of_steps(stage, stage_options, tmp_path):
    """With 1,000 clips to train on, 250 steps an epoch."""
    x, label = random_walks(1000, np.random.default_rng(8))
    y = one_hot(label, NUM_CLASSES)
    write_npz(tmp_path / 'SOAK.npz', x_train=x, y_train=y, x_test=x[:60], y_test=y[:60])
    options = [*stage_options[stage], '--data_path', str(tmp_path / 'SOAK.npz'), '--epochs', str(STEPS // 250),
               '--num_workers', '2', '--log_steps', '1', '--save_steps', '100', '--output_dir', str(tmp_path / 'run')]
    code = MEASURED.format(main=f'main_{stage}', every=EVERY)
    done = run('-c', code, str(tmp_path / 'notes'), *options, timeout=3600)
    assert done.returncode == 0, done.stderr
    step, kilobytes, files = np.loadtxt(tmp_path / 'notes', dtype=np.int64).T
    assert step[-1] == STEPS and len(step) == STEPS // EVERY
    later = step > WARM_UP      # single jumps do not change the median of the slopes between any two points
    for value in (kilobytes / 1024, files):     # less than 1 MB and one file per 1,000 steps
        assert theilslopes(value[later], step[later]).slope < 0.001
