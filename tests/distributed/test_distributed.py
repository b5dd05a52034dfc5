"""Several processes: the same losses and scores as one, runs that continue with more or fewer, failures."""

import json
import time

import numpy as np
import pytest
import torch

import main_finetune
import main_linprobe
import main_pretrain
import tools.retrieval
from data.dataset_file import write_npz
from feeder.subset import draw_labelled
from tests.conftest import NUM_TEST, RUN_STAGE, read_lines, read_place, read_result, torchrun, train, train_until
from util.checkpoint import LAST, Checkpoint
from util.config import parse_args
from util.dist import World

STAGES = {'pretrain': main_pretrain.pretrain, 'linprobe': main_linprobe.linprobe, 'finetune': main_finetune.finetune,
          'retrieval': tools.retrieval.retrieve}
EIGHT = ['--effective_batch_size', '8']     # two clips for each of four processes, as BatchNorm needs


@pytest.fixture(scope='module')
def alone(tiny, tiny_npz, tiny_pretrain, tmp_path_factory):
    """Pre-training, linear probe and fine-tuning in one process, three epochs each; and the data with 3 test clips."""
    root = tmp_path_factory.mktemp('alone')
    train('pretrain', [*tiny_pretrain, *EIGHT, '--epochs', '3'], root / 'pretrain')
    for stage in ('linprobe', 'finetune'):
        train(stage, [*tiny, *EIGHT, '--finetune', str(root / 'pretrain' / LAST), '--epochs', '3'], root / stage)
    with np.load(tiny_npz) as file:
        write_npz(root / 'FEW.npz', **{name: file[name][:3] if name.endswith('_test') else file[name] for name in file})
    return root


def check_losses(folder, expected) -> None:
    losses, alone = ([line['train_loss'] for line in read_lines(path)] for path in (folder, expected))
    assert losses == pytest.approx(alone, rel=1e-6)


# All stages, one after the other, by the same processes.
RUN_JOBS = """
import json, sys
from tests.distributed.test_distributed import STAGES
from util.config import parse_args
from util.dist import init_world
from util.errors import run_main

def main():
    with init_world('cpu', 60) as world:
        for stage, options in json.load(open(sys.argv[1])):
            STAGES[stage](parse_args(stage, options), world)
run_main(main)
"""


def evaluations(tiny, alone, folder) -> list[tuple[str, list[str]]]:
    """Evaluation of the checkpoints in `alone` with 13 test clips and with three: one of four processes has none."""
    jobs, data_only = [], [word for option, value in zip(tiny[::2], tiny[1::2], strict=True)
                           if option not in ('--lr', '--epochs', '--effective_batch_size') for word in (option, value)]
    for name, data in (('many', []), ('few', ['--data_path', str(alone / 'FEW.npz')])):
        jobs += [(stage, [*tiny, *EIGHT, *data, '--eval', '--save_scores', '--save_features', '--resume',
                          str(alone / stage / LAST), '--output_dir', str(folder / f'{name}_{stage}')])
                 for stage in ('linprobe', 'finetune')]
        jobs.append(('retrieval', [*data_only, *data, '--finetune', str(alone / 'pretrain' / LAST), '--output_dir',
                                   str(folder / f'{name}_retrieval')]))
    return jobs


@pytest.fixture(scope='module')
def evaluated(tiny, alone, tmp_path_factory):
    folder = tmp_path_factory.mktemp('evaluated')
    for stage, options in evaluations(tiny, alone, folder):
        STAGES[stage](parse_args(stage, options), World(0, 1, torch.device('cpu')))
    return folder


@pytest.mark.parametrize('processes', [2, 4])
def test_several_processes_compute_what_one_computes(processes, tiny, tiny_pretrain, alone, evaluated, fork, tmp_path):
    start = ['--finetune', str(alone / 'pretrain' / LAST)]
    jobs = [('pretrain', [*tiny_pretrain, '--epochs', '3']), ('linprobe', [*tiny, *start]),
            ('finetune', [*tiny, *start])]
    jobs = [(stage, [*options, *EIGHT, '--output_dir', str(tmp_path / stage)]) for stage, options in jobs]
    jobs += evaluations(tiny, alone, tmp_path)
    (tmp_path / 'jobs.json').write_text(json.dumps(jobs))
    done = fork(RUN_JOBS, tmp_path / 'jobs.json', processes=processes)
    assert done.codes == [0] * processes, done.text

    assert read_result(tmp_path / 'pretrain')['processes'] == processes
    check_losses(tmp_path / 'pretrain', alone / 'pretrain')
    for name, clips in (('many', NUM_TEST), ('few', 3)):
        for stage in ('linprobe', 'finetune'):
            scores, expected = (json.loads((root / f'{name}_{stage}' / 'eval.json').read_text())
                                for root in (tmp_path, evaluated))
            assert scores['samples'] == clips
            assert [scores[key] for key in ('top1', 'top5')] == [expected[key] for key in ('top1', 'top5')]
            assert scores['loss'] == pytest.approx(expected['loss'], rel=1e-6)
        last, expected = (read_result(root / f'{name}_retrieval')['last'] for root in (tmp_path, evaluated))
        assert last == expected and last['samples'] == clips
    files = [path.relative_to(evaluated) for path in evaluated.rglob('*.npz')]
    assert len(files) == 2 * (2 + 2 + 1)
    for path in files:      # predictions and features
        with np.load(tmp_path / path) as file, np.load(evaluated / path) as reference:
            assert file.files == reference.files
            for member in reference.files:
                if reference[member].dtype.kind == 'f':
                    np.testing.assert_allclose(file[member], reference[member], rtol=1e-4, atol=1e-6)
                elif member != 'run':
                    assert np.array_equal(file[member], reference[member])

    # Between steps each process has its own running statistics of BatchNorm; those saved are those that were evaluated.
    last = read_result(tmp_path / 'finetune')['last']
    train('finetune', [*tiny, *EIGHT], tmp_path / 'finetune', '--eval', '--resume', 'auto')
    scores = json.loads((tmp_path / 'finetune' / 'eval.json').read_text())
    assert scores['top1'] == last['top1'] and scores['samples'] == last['samples'] == NUM_TEST
    assert scores['loss'] == pytest.approx(last['loss'], rel=1e-5)


AVERAGE_GRADIENTS = """
import torch
from util.dist import init_world
with init_world('cpu', 60) as world:
    model = torch.nn.Linear(3, 2).requires_grad_(False)
    model.weight.grad = torch.full((2, 3), world.rank + 1.)
    world.average_gradients(model)
    assert (model.weight.grad == 1.5).all() and model.bias.grad is None
"""


def test_gradients_are_averaged_not_summed(fork):
    """AdamW would hide a constant factor."""
    done = fork(AVERAGE_GRADIENTS, processes=2)
    assert done.codes == [0, 0], done.text


WRITE_ROWS = """
import sys
from pathlib import Path
from tests.conftest import on_step
folder = Path(sys.argv.pop(1))
on_step(1, lambda trainer: (folder / f'rows_{trainer.world.rank}').write_text(str(trainer.batches.rows.tolist())))
""" + RUN_STAGE


def test_all_processes_draw_the_same_labelled_clips(tiny, tiny_npz, fork, tmp_path):
    done = fork(WRITE_ROWS, tmp_path, 'finetune', *tiny, '--label_fraction', '0.5', '--seed', '4', '--epochs', '1',
                '--output_dir', tmp_path, processes=2)
    assert done.codes == [0, 0], done.text
    with np.load(tiny_npz) as file:
        drawn = draw_labelled(file['y_train'].argmax(1), 0.5, 4).tolist()
    assert [(tmp_path / f'rows_{rank}').read_text() for rank in (0, 1)] == [str(drawn)] * 2
    assert (tmp_path / 'labelled.txt').read_text().split() == [f'train_{row}' for row in drawn]


# After step `argv[1]` the last process fails.
FAIL = """
import os, pathlib, signal, sys, time
from tests.conftest import on_step
step, how, clock = int(sys.argv.pop(1)), sys.argv.pop(1), pathlib.Path(sys.argv.pop(1))

def fail(trainer):
    if trainer.world.rank + 1 == trainer.world.size:
        clock.write_text(str(time.time()))
        if how == 'non-finite':
            trainer.loss_sum += float('nan')
        elif how == 'killed':
            os.kill(os.getpid(), signal.SIGKILL)
        else:
            raise IndexError('a bug')

on_step(step, fail, save=False)
""" + RUN_STAGE


@pytest.mark.parametrize('stage', ['pretrain', 'linprobe', 'finetune'])
@pytest.mark.parametrize('how, codes, text', [
    ('killed', [1, -9], 'error: lost the connection'), ('exception', [1, 1], 'IndexError: a bug'),
    ('non-finite', [1, 1], 'process 0: error: the loss is not finite')])
def test_a_process_that_fails_ends_all_and_one_process_continues(how, codes, text, stage, fork, stage_options,
                                                                  tmp_path):
    folder, clock = tmp_path / 'run', tmp_path / 'clock'
    options = [*stage_options[stage], '--epochs', '3', '--save_steps', '1', '--num_workers', '1']
    done = fork(FAIL, 7, how, clock, stage, *options, '--output_dir', folder, processes=2)
    assert done.codes == codes and text in done.text, done.text
    assert time.time() - float(clock.read_text()) < 30 and read_place(folder) == (1, 1)
    for path in folder.glob('*.pth'):
        assert all(value.isfinite().all() for value in Checkpoint.read(path).model.values())
    train(stage, options, folder, '--resume', 'auto')
    assert [line['epoch'] for line in read_lines(folder)] == [0, 1, 2]
    if stage == 'pretrain':
        train(stage, options, tmp_path / 'whole')
        check_losses(folder, tmp_path / 'whole')
    else:
        assert read_result(folder)['last']['samples'] == NUM_TEST


def test_under_torchrun_the_cause_is_in_its_summary(tiny_pretrain, tmp_path):
    script = tmp_path / 'fail.py'
    script.write_text(FAIL)
    done = torchrun(2, str(script), '7', 'exception', str(tmp_path / 'clock'), 'pretrain', *tiny_pretrain,
                    '--output_dir', str(tmp_path / 'run'))
    assert done.returncode == 1 and 'IndexError: a bug' in done.stderr and 'Root Cause' in done.stderr, done.stderr


def test_a_pretraining_continues_with_fewer_and_with_more_processes(tiny_pretrain, alone, fork, tmp_path):
    """Two processes, killed in the first epoch; one, stopped in the second; four to the end."""
    folder = tmp_path / 'run'
    options = [*tiny_pretrain, *EIGHT, '--epochs', '3', '--save_steps', '1']        # two steps an epoch
    done = fork(FAIL, 2, 'killed', tmp_path / 'clock', 'pretrain', *options, '--output_dir', folder, processes=2)
    assert done.codes == [1, -9], done.text
    train_until(3, 'pretrain', options, folder, '--resume', 'auto')
    assert read_place(folder) == (1, 1)
    done = fork(RUN_STAGE, 'pretrain', *options, '--resume', 'auto', '--output_dir', folder, processes=4)
    assert done.codes == [0] * 4 and read_result(folder)['processes'] == 4, done.text
    check_losses(folder, alone / 'pretrain')


def test_processes_that_do_not_find_each_other_report_it(fork, tiny_pretrain, tmp_path):
    code = f"import os\nos.environ['WORLD_SIZE'] = '2'\n{RUN_STAGE}"
    done = fork(code, 'pretrain', *tiny_pretrain, '--patience', '1', '--output_dir', tmp_path / 'run')
    assert done.codes == [2] and 'process 0: error: cannot join 2 processes at 127.0.0.1:' in done.text
    assert '1/2 clients joined' in done.text and not (tmp_path / 'run').exists(), done.text
