"""Several processes: the same losses and counts as one, a run that goes on with more or fewer, and how one that fails
takes the others along."""


import itertools
import json
import socket
import time

import numpy as np
import pytest
import torch

import main_finetune
import main_linprobe
import main_pretrain
import tools.retrieval
from data.common import write_npz
from feeder.subset import draw_labelled
from tests.conftest import NUM_TEST, read_lines, read_result, run, torchrun
from util.checkpoint import Checkpoint, newest
from util.config import parse_args
from util.dist import World
from util.trainer import Trainer

ALONE = World(0, 1, torch.device('cpu'))
STAGES = {'pretrain': main_pretrain.pretrain, 'linprobe': main_linprobe.linprobe, 'finetune': main_finetune.finetune,
          'retrieval': tools.retrieval.retrieve}


def steps_of(options: list[str]) -> list[str]:
    """The tiny options with which four processes have two clips each, as BatchNorm needs."""
    return [*options, '--effective_batch_size', '8']


@pytest.fixture(scope='module')
def few_npz(tiny_npz, tmp_path_factory):
    """The tiny set with three test clips: of four processes one has none."""
    with np.load(tiny_npz) as held:
        arrays = {name: held[name][:3] if name.endswith('_test') else held[name] for name in held}
    path = tmp_path_factory.mktemp('few') / 'FEW.npz'
    write_npz(path, **arrays)
    return path


@pytest.fixture(scope='module')
def alone(tiny, tiny_pretrain, tmp_path_factory):
    """A pre-training, a probe and a fine-tuning on one process, three epochs each."""
    root = tmp_path_factory.mktemp('alone')
    main_pretrain.main([*steps_of(tiny_pretrain), '--epochs', '3', '--output_dir', str(root / 'pretrain')])
    start = ['--finetune', str(root / 'pretrain' / 'checkpoint-last.pth'), '--epochs', '3']
    main_linprobe.main([*steps_of(tiny), *start, '--output_dir', str(root / 'linprobe')])
    main_finetune.main([*steps_of(tiny), *start, '--output_dir', str(root / 'finetune')])
    return root


def place(folder):
    state = newest(folder)[1]
    return state.epoch, state.step


def same_losses(folder, expected) -> None:
    ours, alone = ([line['train_loss'] for line in read_lines(path)] for path in (folder, expected))
    assert ours == pytest.approx(alone, rel=1e-6)


# What each process executes: all stages, one after the other, among the same processes.
EVERY_STAGE = """
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


def every_stage(tiny, tiny_pretrain, alone, few_npz, folder) -> list[tuple[str, list[str]]]:
    """Stages and options: training of each, and evaluation of what one process trained, of 13 clips and of three."""
    start = ['--finetune', str(alone / 'pretrain' / 'checkpoint-last.pth')]
    keep = ['--save_scores', '--save_features']
    jobs = [('pretrain', [*steps_of(tiny_pretrain), '--epochs', '3']), ('linprobe', [*steps_of(tiny), *start]),
            ('finetune', [*steps_of(tiny), *start])]
    jobs = [(stage, [*options, '--output_dir', str(folder / stage)]) for stage, options in jobs]
    for name, data in (('many', []), ('few', ['--data_path', str(few_npz)])):
        for stage in ('linprobe', 'finetune'):
            jobs.append((stage, [*steps_of(tiny), *data, '--eval', *keep, '--resume', str(
                alone / stage / 'checkpoint-last.pth'), '--output_dir', str(folder / f'{name}_{stage}')]))
        untrained = [word for option, value in zip(tiny[::2], tiny[1::2], strict=True)
                     if option not in ('--lr', '--epochs', '--effective_batch_size') for word in (option, value)]
        jobs.append(('retrieval', [*untrained, *data, *start, '--output_dir', str(folder / f'{name}_retrieval')]))
    return jobs


@pytest.mark.parametrize('processes', [4, *(pytest.param(n, marks=pytest.mark.slow) for n in (1, 2, 3))])
def test_every_stage_gives_what_one_process_gives(processes, tiny, tiny_pretrain, alone, few_npz, tmp_path):
    expected, folder, script = tmp_path / 'expected', tmp_path / 'several', tmp_path / 'every_stage.py'
    jobs = every_stage(tiny, tiny_pretrain, alone, few_npz, folder)
    if processes == 3:          # of them 8 clips a step cannot be shared
        jobs = [(stage, options) for stage, options in jobs if '--eval' in options or stage == 'retrieval']
        jobs = [(stage, [*options, '--batch_size', '4']) for stage, options in jobs]
        jobs = [(stage, [*options, '--effective_batch_size', '12'] if '--eval' in options else options)
                for stage, options in jobs]
    for stage, options in every_stage(tiny, tiny_pretrain, alone, few_npz, expected)[3:]:
        STAGES[stage](parse_args(stage, options), ALONE)
    script.write_text(EVERY_STAGE)
    (tmp_path / 'jobs.json').write_text(json.dumps(jobs))
    done = torchrun(processes, str(script), str(tmp_path / 'jobs.json'))
    assert done.returncode == 0, done.stderr
    if processes != 3:
        assert read_result(folder / 'pretrain')['processes'] == processes
        same_losses(folder / 'pretrain', alone / 'pretrain')
        for stage in ('linprobe', 'finetune'):
            assert read_result(folder / stage)['last']['samples'] == NUM_TEST
    for name, clips in (('many', NUM_TEST), ('few', 3)):
        for stage in ('linprobe', 'finetune'):
            ours, one = (json.loads((root / f'{name}_{stage}' / 'eval.json').read_text()) for root in (folder,
                                                                                                      expected))
            assert ours['samples'] == one['samples'] == clips
            assert (ours['top1'], ours['top5']) == (one['top1'], one['top5'])
            assert ours['loss'] == pytest.approx(one['loss'], rel=1e-6)
        ours, one = (read_result(path / f'{name}_retrieval')['last'] for path in (folder, expected))
        assert ours == one and ours['samples'] == clips
    files = [path.relative_to(expected) for path in expected.rglob('*.npz')]
    assert len(files) == 2 * (2 + 2 + 1)
    for path in files:
        with np.load(folder / path) as ours, np.load(expected / path) as one:
            assert ours.files == one.files
            for member in one.files:
                if member == 'run':        # where the encoder lay
                    told, expected_of_it = (json.loads(str(held[member])) for held in (ours, one))
                    assert told.keys() == expected_of_it.keys() and told['seed'] == expected_of_it['seed']
                elif one[member].dtype.kind == 'f':
                    np.testing.assert_allclose(ours[member], one[member], rtol=1e-4, atol=1e-6)
                else:
                    assert np.array_equal(ours[member], one[member])


def test_two_processes_fine_tune_with_shared_statistics(tiny, tmp_path):
    """BatchNorm's running statistics are one process's own between steps; what is scored and saved must agree."""
    done = torchrun(2, 'main_finetune.py', *tiny, '--output_dir', str(tmp_path))
    assert done.returncode == 0, done.stderr
    last = read_result(tmp_path)['last']
    main_finetune.main([*tiny, '--eval', '--resume', 'auto', '--output_dir', str(tmp_path)])
    scores = json.loads((tmp_path / 'eval.json').read_text())
    assert (scores['top1'], scores['samples']) == (last['top1'], NUM_TEST)
    assert scores['loss'] == pytest.approx(last['loss'], rel=1e-5)


# What each process executes: it notes which clips it trains on.
NOTING = """
import os, pathlib, sys
import main_finetune
from feeder.dataset import TrainBatches
from util.errors import run_main
rows, batches = set(), TrainBatches.__iter__

def noting(sampler):
    for batch in batches(sampler):
        rows.update(int(row) for row, _ in batch)
        yield batch

def main():
    code = main_finetune.main(sys.argv[2:])
    pathlib.Path(sys.argv[1], os.environ['RANK']).write_text(' '.join(map(str, rows)))
    return code

TrainBatches.__iter__ = noting
run_main(main)
"""


def test_all_processes_have_the_same_labels(tiny, tiny_npz, tmp_path):
    script, run_folder = tmp_path / 'noting.py', tmp_path / 'run'
    script.write_text(NOTING)
    done = torchrun(2, str(script), str(tmp_path), *tiny, '--label_fraction', '0.5', '--seed', '4', '--epochs', '12',
                    '--output_dir', str(run_folder))
    assert done.returncode == 0, done.stderr
    with np.load(tiny_npz) as held:
        drawn = draw_labelled(held['y_train'].argmax(1), 0.5, 4)
    assert (run_folder / 'labelled.txt').read_text().split() == [f'train_{row}' for row in drawn]
    rows = [set(map(int, (tmp_path / rank).read_text().split())) for rank in '01']
    assert all(len(some) > 8 for some in rows), 'of 11, in 12 epochs of 4 a process'
    assert rows[0] | rows[1] == set(drawn)


# What each process executes: in its third step of three (of two) the second process does something bad.
FAULTY = """
import os, signal, sys, time
from util.errors import run_main
from util.trainer import Trainer
how, stage, last, file = sys.argv[1:5]
save_if_due, updates = Trainer.save_if_due, []

def strikes(trainer):
    if trainer.world.rank != 1 or len(updates) != int(last):
        return False
    with open(file, 'w') as clock:
        clock.write(str(time.time()))
    return True

def faulty(trainer, *place):
    if how == 'not finite' and strikes(trainer):
        trainer.loss_sum += float('nan')
    save_if_due(trainer, *place)
    if how != 'not finite' and strikes(trainer):
        if how == 'killed':
            os.kill(os.getpid(), signal.SIGKILL)
        raise IndexError(' '.join(['the', 'broken', 'wheel']))
    updates.append(1)

Trainer.save_if_due = faulty
main = __import__(f'main_{stage}')
run_main(lambda: main.main(sys.argv[5:]))
"""
CAUSE = {'exception': 'IndexError: the broken wheel', 'killed': 'lost the connection',
         'not finite': 'the loss is not finite'}
SOME = [('killed', 'pretrain', 2, 0), ('exception', 'pretrain', 4, 1), ('not finite', 'finetune', 2, 0)]
OTHERS = [case for case in itertools.product(CAUSE, ('pretrain', 'linprobe', 'finetune'), (2, 4), (0, 2))
          if case not in SOME]


@pytest.mark.parametrize('how, stage, processes, workers', [
    *SOME, *(pytest.param(*case, marks=pytest.mark.slow) for case in OTHERS)])
def test_one_that_fails_ends_all_and_is_named_once(how, stage, processes, workers, tiny, tiny_pretrain, alone,
                                                   tmp_path):
    """In the second epoch, whose second step is the last one saved; one process goes on, with the same losses."""
    folder, script, clock = tmp_path / 'run', tmp_path / 'faulty.py', tmp_path / 'clock'
    options = [*steps_of(tiny_pretrain if stage == 'pretrain' else tiny), '--epochs', '3', '--output_dir', str(folder),
               '--effective_batch_size', '4' if processes == 2 else '8', '--save_steps', '1', '--patience', '50']
    if stage == 'linprobe':
        options += ['--random_encoder']
    steps = 5 if processes == 2 else 2
    script.write_text(FAULTY)
    done = torchrun(processes, str(script), how, stage, str(steps + 1), str(clock), *options, '--num_workers',
                    str(workers), timeout=120)
    took = time.time() - float(clock.read_text())
    print(f'all ended {took:.1f} s after the fault')        # pytest -rP shows it
    assert done.returncode == 1 and took < 60
    assert CAUSE[how] in done.stderr, done.stderr
    state = newest(folder)[1]
    assert (state.epoch, state.step) in ((0, 1), (0, 2))
    for path in folder.glob('*.pth'):
        assert all(value.isfinite().all() for value in Checkpoint.read(path).model.values())

    STAGES[stage](parse_args(stage, [*options, '--resume', 'auto']), ALONE)
    assert [line['epoch'] for line in read_lines(folder)] == [0, 1, 2]
    if stage != 'pretrain':
        assert read_result(folder)['last']['samples'] == NUM_TEST
    elif processes == 4:
        same_losses(folder, alone / 'pretrain')
    else:
        main_pretrain.main([*options, '--output_dir', str(tmp_path / 'whole')])
        same_losses(folder, tmp_path / 'whole')


@pytest.mark.slow
def test_a_pretraining_goes_on_with_fewer_processes_and_with_more(tiny_pretrain, alone, tmp_path, monkeypatch):
    """Two, killed in the first epoch; one, killed in the second; four to the end."""
    folder, script = tmp_path / 'run', tmp_path / 'faulty.py'
    options = [*steps_of(tiny_pretrain), '--epochs', '3', '--save_steps', '1', '--output_dir', str(folder)]
    script.write_text(FAULTY)
    assert torchrun(2, str(script), 'killed', 'pretrain', '1', str(tmp_path / 'clock'), *options).returncode == 1
    assert place(folder) == (-1, 1)

    def save_or_die(trainer, *step, save=Trainer.save_if_due, saves=[]):      # noqa: B006
        saves.append(save(trainer, *step))
        if len(saves) == 3:
            raise InterruptedError
    with monkeypatch.context() as patch, pytest.raises(InterruptedError):
        patch.setattr(Trainer, 'save_if_due', save_or_die)
        main_pretrain.main([*options, '--resume', 'auto'])
    assert place(folder) == (0, 1)
    done = torchrun(4, 'main_pretrain.py', *options, '--resume', 'auto')
    assert done.returncode == 0, done.stderr
    assert read_result(folder)['processes'] == 4
    same_losses(folder, alone / 'pretrain')


@pytest.mark.slow
@pytest.mark.parametrize('stage', ['linprobe', 'finetune'])
def test_a_classifier_goes_on_with_more_processes(stage, tiny, alone, tmp_path):
    options = [*steps_of(tiny), '--epochs', '4', '--output_dir', str(tmp_path / 'run')]
    options += ['--finetune', str(alone / 'pretrain' / 'checkpoint-last.pth')]
    (tmp_path / 'run').mkdir()
    for path in (alone / stage).glob('*'):
        if path.is_file() and path.name != 'result.json':
            (tmp_path / 'run' / path.name).write_bytes(path.read_bytes())
    done = torchrun(4, f'main_{stage}.py', *options, '--resume', 'auto')
    assert done.returncode == 0, done.stderr
    assert [line['epoch'] for line in read_lines(tmp_path / 'run')] == [0, 1, 2, 3]
    assert [line['test_samples'] for line in read_lines(tmp_path / 'run')] == 4 * [NUM_TEST]


@pytest.fixture
def taken():
    """A port on which somebody listens who says nothing."""
    with socket.socket() as other:
        other.bind(('127.0.0.1', 0))
        other.listen()
        yield other.getsockname()[1]


def free_port() -> int:
    with socket.socket() as asked:
        asked.bind(('127.0.0.1', 0))
        return asked.getsockname()[1]


@pytest.mark.parametrize('rank, host, port, says', [
    (0, '127.0.0.1', 'free', '1/2 clients joined'),
    pytest.param(0, '127.0.0.1', 'taken', 'EADDRINUSE', marks=pytest.mark.slow),
    pytest.param(1, '127.0.0.1', 'free', 'timed out', marks=pytest.mark.slow),
    pytest.param(1, '127.0.0.1', 'taken', '', marks=pytest.mark.slow),
    pytest.param(0, 'nowhere.invalid', 'free', 'not known', marks=pytest.mark.slow)])
def test_a_meeting_that_cannot_be_says_so(rank, host, port, says, taken, tiny_pretrain, tmp_path):
    port = taken if port == 'taken' else free_port()
    env = {'RANK': str(rank), 'WORLD_SIZE': '2', 'MASTER_ADDR': host, 'MASTER_PORT': str(port)}
    done = run('main_pretrain.py', *tiny_pretrain, '--patience', '1', '--output_dir', str(tmp_path / 'run'), env=env,
               timeout=60)
    assert done.returncode == 2
    assert f'process {rank}: error: cannot join 2 processes' in done.stderr
    assert f'{host}:{port}' in done.stderr and says in done.stderr, done.stderr
    assert not (tmp_path / 'run').exists()
