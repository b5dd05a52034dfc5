"""Faults done to runs on purpose: what is damaged is noticed and passed over, what is told to stop loses nothing."""


import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch

import main_pretrain
from tests.conftest import ROOT, refusal, run
from util.checkpoint import LAST, PREVIOUS, Checkpoint, newest
from util.preempt import MARKER, Interrupted, Preempted
from util.trainer import Trainer


def make_checkpoint(epoch: int, step: int = 0) -> Checkpoint:
    return Checkpoint({'weight': torch.full((4,), float(10 * epoch + step))}, epoch=epoch, step=step)


def spoil(path, how: str) -> None:
    data = bytearray(path.read_bytes())
    if how == 'flipped bit':
        place = data.index(torch.load(path)['model']['weight'].numpy().tobytes())     # of a weight: it would load
        data[place + 1] ^= 1
    elif how == 'truncated':
        del data[len(data) // 2:]
    elif how == 'empty':
        data.clear()
    path.write_bytes(data)


@pytest.mark.parametrize('how', ['flipped bit', 'truncated', 'empty', 'removed'])
@pytest.mark.parametrize('spoiled, expected', [([LAST], (2, 0)), ([LAST, PREVIOUS], (1, 0)), ([PREVIOUS], (2, 7))])
def test_auto_takes_the_newest_that_is_whole_and_names_the_others(how, spoiled, expected, tmp_path, caplog):
    make_checkpoint(1).write(tmp_path / 'checkpoint-1.pth')
    make_checkpoint(2).write(tmp_path / LAST)
    make_checkpoint(2, 7).write(tmp_path / LAST, PREVIOUS)
    for name in spoiled:
        (tmp_path / name).unlink() if how == 'removed' else spoil(tmp_path / name, how)
    state = newest(tmp_path)[1]
    assert (state.epoch, state.step) == expected
    named = [record.message for record in caplog.records if record.levelname == 'WARNING']
    looked_at = [] if how == 'removed' or LAST not in spoiled else spoiled
    assert len(named) == len(looked_at) and all(name in line for name, line in zip(looked_at, named, strict=True))


def test_when_none_is_whole_nothing_starts_anew_by_itself(tmp_path):
    assert newest(tmp_path) is None
    make_checkpoint(0).write(tmp_path / LAST)
    spoil(tmp_path / LAST, 'truncated')
    refusal(lambda: newest(tmp_path), tmp_path, 'all of its checkpoints are damaged', '--output_dir')


def test_a_kill_between_any_two_writes_leaves_a_checkpoint_that_is_whole(tmp_path, monkeypatch):
    """Each `os.replace` of saving is once the last thing that is done."""
    class Killed(BaseException):
        pass

    real, seen = os.replace, []
    for last in range(12):
        folder = tmp_path / str(last)
        make_checkpoint(0).write(folder / LAST)
        make_checkpoint(1).write(folder / LAST, PREVIOUS)
        left = [last]

        def replace(source, target, left=left):
            if not left[0]:
                raise Killed
            left[0] -= 1
            real(source, target)
        monkeypatch.setattr(os, 'replace', replace)
        try:
            make_checkpoint(2).write(folder / LAST, PREVIOUS)
        except Killed:
            ended = False
        else:
            ended = True
        monkeypatch.setattr(os, 'replace', real)
        seen.append(newest(folder)[1].epoch)
        if ended:
            break
    assert ended and set(seen) == {1, 2} and seen == sorted(seen)


@pytest.mark.parametrize('told', [signal.SIGTERM, signal.SIGUSR1], ids=['TERM', 'USR1'])
@pytest.mark.parametrize('after, where', [(3, 'in epoch 0, after step 3'), (5, 'after epoch 0')])
def test_told_to_stop_a_run_saves_leaves_and_goes_on_the_same(told, after, where, tiny_pretrain, tmp_path, monkeypatch):
    whole, stopped = tmp_path / 'whole', tmp_path / 'stopped'
    main_pretrain.main([*tiny_pretrain, '--output_dir', str(whole)])
    save, done = Trainer.save_if_due, []

    def save_and_signal(trainer, *place):
        save(trainer, *place)
        done.append(1)
        if len(done) == after:
            os.kill(os.getpid(), told)
    monkeypatch.setattr(Trainer, 'save_if_due', save_and_signal)
    handlers = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1)]
    with pytest.raises(Preempted) as error:
        main_pretrain.main([*tiny_pretrain, '--output_dir', str(stopped)])
    assert where in str(error.value) and told.name in str(error.value) and error.value.exit_code == 75
    assert (stopped / MARKER).read_text() == where + '\n' and not (stopped / 'result.json').exists()
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1)] == handlers
    main_pretrain.main([*tiny_pretrain, '--output_dir', str(stopped), '--resume', 'auto'])
    assert not (stopped / MARKER).exists()
    expected, got = (Checkpoint.read(folder / LAST).model for folder in (whole, stopped))
    assert all(torch.equal(expected[name], got[name]) for name in expected)


@pytest.fixture
def listens():
    """Ctrl-C as in a terminal, whatever started the tests."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def tell(monkeypatch, *signals) -> None:
    """Makes a run tell itself these signals in its third step."""
    save, done = Trainer.save_if_due, []

    def save_and_signal(trainer, *place):
        done.append(save(trainer, *place))
        if len(done) == 3:
            for number in signals:
                os.kill(os.getpid(), number)
    monkeypatch.setattr(Trainer, 'save_if_due', save_and_signal)


def test_after_ctrl_c_a_run_saves_leaves_and_goes_on_the_same(listens, tiny_pretrain, tmp_path, monkeypatch):
    whole, stopped = tmp_path / 'whole', tmp_path / 'stopped'
    main_pretrain.main([*tiny_pretrain, '--output_dir', str(whole)])
    tell(monkeypatch, signal.SIGINT)
    with pytest.raises(Interrupted, match='in epoch 0, after step 3; everything is saved.*--resume auto') as error:
        main_pretrain.main([*tiny_pretrain, '--output_dir', str(stopped)])
    assert error.value.exit_code == 130 and error.value.label == 'interrupted'
    assert not (stopped / MARKER).exists(), 'nobody should queue it again'
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    state = Checkpoint.read(stopped / LAST)
    assert (state.epoch, state.step) == (-1, 3)
    main_pretrain.main([*tiny_pretrain, '--output_dir', str(stopped), '--resume', 'auto'])
    expected, got = (Checkpoint.read(folder / LAST).model for folder in (whole, stopped))
    assert all(torch.equal(expected[name], got[name]) for name in expected)


def test_a_second_ctrl_c_ends_a_run_at_once(listens, tiny_pretrain, tmp_path, monkeypatch):
    tell(monkeypatch, signal.SIGINT, signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        main_pretrain.main([*tiny_pretrain, '--output_dir', str(tmp_path)])
    assert not (tmp_path / LAST).exists() and signal.getsignal(signal.SIGINT) is signal.default_int_handler


def start(*command: str) -> subprocess.Popen:
    env = os.environ | {'OMP_NUM_THREADS': '1', 'CUDA_VISIBLE_DEVICES': '', 'PYTHONPATH': str(ROOT)}
    return subprocess.Popen([sys.executable, *command], cwd=ROOT, env=env, stdout=subprocess.PIPE,
                            stderr=subprocess.STDOUT, text=True, start_new_session=True,
                            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler))


def until(condition, process, seconds: float = 120) -> None:
    for _ in range(int(seconds * 50)):
        if condition():
            return
        assert process.poll() is None, process.communicate()[0]
        time.sleep(.02)
    pytest.fail('it did not come to that')


@pytest.mark.parametrize('told, code, says', [(signal.SIGTERM, 75, 'stopped: on SIGTERM'),
                                              (signal.SIGINT, 130, 'interrupted: ')], ids=['TERM', 'INT'])
def test_a_signal_to_the_whole_group_kills_no_worker_first(told, code, says, tiny_pretrain, tmp_path):
    """As a cluster or a terminal sends it: to the processes that read clips too."""
    process = start('main_pretrain.py', *tiny_pretrain, '--epochs', '100000', '--num_workers', '2', '--save_epochs',
                    '100000', '--output_dir', str(tmp_path))
    try:
        until((tmp_path / LAST).exists, process)
        os.killpg(process.pid, told)
        said, _ = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == code, said
    assert said.strip().splitlines()[-1].startswith(says) and 'Traceback' not in said
    assert (tmp_path / MARKER).exists() == (told == signal.SIGTERM)


@pytest.mark.parametrize('told', [signal.SIGUSR1, signal.SIGINT], ids=['USR1', 'INT'])
def test_all_processes_leave_together(told, tiny_pretrain, tmp_path):
    """One of two is told; torchrun hides the code, the marker of a cluster's signal stays, and one goes on alone."""
    options = [*tiny_pretrain, '--save_epochs', '100000', '--save_steps', '1', '--output_dir', str(tmp_path)]
    process = start('-m', 'torch.distributed.run', '--standalone', '--nproc_per_node', '2',
                    'main_pretrain.py', *options, '--epochs', '100000')
    try:
        until((tmp_path / LAST).exists, process)
        children = subprocess.run(['pgrep', '-P', str(process.pid), '-f', 'main_pretrain'], capture_output=True,
                                  text=True, check=True).stdout.split()
        assert len(children) == 2
        os.kill(int(children[1]), told)
        said, _ = process.communicate(timeout=120)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 1 and (tmp_path / MARKER).exists() == (told == signal.SIGUSR1), said
    assert said.count('stopped: on ' if told == signal.SIGUSR1 else 'interrupted: ') == 2, said
    epochs = newest(tmp_path)[1].epoch + 3
    done = run('main_pretrain.py', *options, '--epochs', str(epochs), '--resume', 'auto')
    assert done.returncode == 0, done.stderr


# PyTorch is imported once; for each line of stdin, [seconds, options], a process is split off that runs a stage and is
# killed so many seconds after its first step begins. Before, it notes what it was doing, or how long its training took.
LIVES = """
import json, os, pathlib, signal, sys, threading, time
import main_finetune
from util import trainer
from util.checkpoint import Checkpoint
from util.trainer import Trainer
main, note, doing, began = __import__(sys.argv[1]).main, pathlib.Path(sys.argv[2]), ['starting'], []

def die():
    time.sleep(after)
    if doing[0] != 'finished':
        note.write_text(doing[0])
        os.kill(os.getpid(), signal.SIGKILL)

def during(what, call):
    def noted(*given, **named):
        before, doing[0] = doing[0], what
        try:
            return call(*given, **named)
        finally:
            doing[0] = before
    return noted

def steps(trainer, epoch, real=Trainer.steps):
    for step in real(trainer, epoch):
        if not began:
            began.append(time.perf_counter())
            threading.Thread(target=die, daemon=True).start()
        doing[0] = 'a step'
        yield step
        doing[0] = 'between steps'

def finish(run, real=trainer.finish_run):
    result = real(run)
    doing[0] = 'finished'
    if began:
        note.write_text(str(time.perf_counter() - began[0]))
    return result

Trainer.steps = steps
Trainer.save = during('saving', Trainer.save)
main_finetune.evaluate = during('evaluation', main_finetune.evaluate)
import main_pretrain
main_pretrain.finish_run = main_finetune.finish_run = finish
for line in sys.stdin:
    after, options = json.loads(line)
    child = os.fork()
    if not child:
        sys.exit(main(options))
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@contextlib.contextmanager
def lives_of(stage: str, note):
    """Yields live(seconds, options): what a process of that stage ends with, killed so long after its first step."""
    process = subprocess.Popen(
        [sys.executable, '-c', LIVES, f'main_{stage}', str(note)], cwd=ROOT, stdin=subprocess.PIPE, text=True,
        bufsize=1, stdout=subprocess.PIPE, env=os.environ | {'OMP_NUM_THREADS': '1', 'CUDA_VISIBLE_DEVICES': ''})

    def live(after: float, options: list[str]) -> int:
        process.stdin.write(json.dumps([after, options]) + '\n')
        return int(process.stdout.readline())
    with process:
        try:
            yield live
        finally:
            process.kill()


@pytest.mark.parametrize('stage, kills', [
    ('pretrain', 1), ('linprobe', 1), ('finetune', 1),
    *(pytest.param(stage, 20, marks=pytest.mark.slow) for stage in ('pretrain', 'linprobe', 'finetune'))])
def test_killed_at_random_moments_it_ends_bit_for_bit_the_same(stage, kills, tiny, tiny_pretrain, tmp_path):
    """Each time inside the training, after a moment drawn over the share of it that a life has, on average half."""
    options = {'pretrain': tiny_pretrain, 'linprobe': [*tiny, '--random_encoder'],
               'finetune': [*tiny, '--drop_path_rate', '0.3']}[stage]
    options = [*options, '--epochs', str(8 if kills == 1 else 4 * kills), '--num_workers', '1', '--accum_iter', '2',
               '--save_steps', '2']
    whole, killed, note = tmp_path / 'whole', tmp_path / 'killed', tmp_path / 'note'
    draw, moments, places = random.Random(kills), [], [(0, 0)]
    again = [*options, '--output_dir', str(killed), '--resume', 'auto']
    with lives_of(stage, note) as live:
        assert live(1e6, [*options, '--output_dir', str(whole)]) == 0
        took = float(note.read_text())
        for _ in range(kills):
            note.unlink()
            died = live(draw.uniform(0, took / (kills + 1)), again) == -signal.SIGKILL
            assert died and note.exists(), f'it ended by itself, or was killed by somebody else, after {moments}'
            moments.append(note.read_text())
            latest = newest(killed)
            places.append((latest[1].epoch + 1, latest[1].step) if latest else (0, 0))
        assert live(1e6, again) == 0
    within = sum(step > 0 for _, step in places)
    told = ', '.join(f'{moments.count(moment)} in {moment}' for moment in sorted(set(moments)))
    print(f'{stage}: {kills} kills in {took:.1f} s of training: {told}; {within} of the checkpoints left are of '
          'mid-epoch')      # pytest -rP shows it
    assert places == sorted(places)
    if kills > 1:
        assert within and len(set(places)) > kills / 2, 'some in mid-epoch, and most made progress'
    expected, got = (Checkpoint.read(folder / LAST) for folder in (whole, killed))
    assert all(torch.equal(expected.model[name], got.model[name]) for name in expected.model)
    assert expected.progress['last_loss'] == got.progress['last_loss']
    shutil.rmtree(killed)
