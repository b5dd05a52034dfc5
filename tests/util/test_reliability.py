"""Runs that are killed or stopped, and checkpoints that are damaged: nothing is lost, and runs continue bit for bit."""

import os
import random
import signal
import threading
import time
from unittest import mock

import pytest
import torch

import feeder.loader
import main_finetune
from feeder.dataset import SkeletonDataset
from tests.conftest import RUN_STAGE, Stopped, check_same_run, on_step, read_place, read_result, train
from util.checkpoint import LAST, PREVIOUS, Checkpoint, newest
from util.preempt import MARKER, Interrupted, Preempted, catch_stop_signals
from util.trainer import NonFiniteLoss

STAGES, SIGNALS = ('pretrain', 'linprobe', 'finetune'), (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


def test_a_kill_between_any_two_renames_leaves_an_intact_checkpoint(tmp_path):
    def write(epoch):
        Checkpoint({'weight': torch.ones(4)}, epoch=epoch).write(tmp_path / LAST, PREVIOUS)

    for renames in (0, 1):      # of two
        write(0)
        write(1)
        effects = [mock.DEFAULT] * renames + [Stopped]
        with mock.patch('os.replace', wraps=os.replace, side_effect=effects), pytest.raises(Stopped):
            write(2)
        assert newest(tmp_path)[1].epoch == 1


def test_a_kill_between_the_checkpoints_of_an_epoch_loses_none(tiny, tmp_path, monkeypatch):
    """The best, the kept and the last one."""
    written = []

    def stop_or_write(checkpoint, path, previous=None, write=Checkpoint.write):
        if not left:
            raise Stopped
        left.pop()
        written.append(path.name)
        write(checkpoint, path, previous)
    monkeypatch.setattr(Checkpoint, 'write', stop_or_write)
    left = [None] * 10
    train('finetune', tiny, tmp_path / 'whole')
    for writes in range(len(written)):
        folder, left = tmp_path / str(writes), [None] * writes
        with pytest.raises(Stopped):
            train('finetune', tiny, folder)
        left = [None] * 10
        train('finetune', tiny, folder, '--resume', 'auto')
        check_same_run(folder, tmp_path / 'whole')


@pytest.mark.parametrize('stage', ['pretrain', 'finetune'])
def test_a_non_finite_loss_stops_the_run_and_spoils_no_checkpoint(stage, stage_options, tmp_path):
    """The first step, whose rate is zero, is saved; the second has rate 1e30."""
    options = [*stage_options[stage], '--epochs', '4', '--warmup_epochs', '1', '--lr', '1e30', '--save_steps', '1']
    with pytest.raises(NonFiniteLoss, match='not finite in epoch 0'):
        train(stage, options, tmp_path)
    saved = [Checkpoint.read(path) for path in tmp_path.glob('*.pth')]
    assert saved and all(value.isfinite().all() for checkpoint in saved for value in checkpoint.model.values())


@pytest.fixture(scope='module')
def whole(tiny_pretrain, tmp_path_factory):
    """A pre-training without interruption: two epochs of five steps."""
    folder = tmp_path_factory.mktemp('whole')
    train('pretrain', tiny_pretrain, folder)
    return folder


@pytest.fixture
def ctrl_c():
    """Ctrl-C as in a terminal, however the tests were started."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize('number, error, code, step, place', [
    (signal.SIGTERM, Preempted, 75, 3, 'in epoch 0, after step 3'), (signal.SIGUSR1, Preempted, 75, 5, 'after epoch 0'),
    (signal.SIGINT, Interrupted, 130, 3, 'in epoch 0, after step 3')], ids=['SIGTERM', 'SIGUSR1', 'Ctrl-C'])
def test_a_signal_stops_a_run_which_continues_bit_for_bit(number, error, code, step, place, ctrl_c, whole,
                                                          tiny_pretrain, tmp_path):
    handlers = [*map(signal.getsignal, SIGNALS)]
    with pytest.MonkeyPatch.context() as patch, pytest.raises(error, match=f'{place}.*--resume auto') as stopped:
        on_step(step, lambda _: os.kill(os.getpid(), number), patch=patch.setattr)
        train('pretrain', tiny_pretrain, tmp_path)
    assert stopped.value.exit_code == code and not (tmp_path / 'result.json').exists()
    assert (tmp_path / MARKER).exists() == (error is Preempted)     # a scheduler starts the run again
    assert [*map(signal.getsignal, SIGNALS)] == handlers
    assert read_place(tmp_path) == ((0, 3) if step == 3 else (1, 0))
    with open(tmp_path / 'log.jsonl', 'a') as log:
        log.write('{"epoch": 1, "train_lo')     # a torn line
    train('pretrain', tiny_pretrain, tmp_path, '--resume', 'auto')
    assert not (tmp_path / MARKER).exists()
    check_same_run(tmp_path, whole)


@pytest.mark.parametrize('number, error', [(signal.SIGTERM, Preempted), (signal.SIGINT, Interrupted)])
def test_a_signal_stops_a_run_that_waits_for_data(number, error, ctrl_c, whole, tiny_pretrain, tmp_path, monkeypatch):
    """A reader that blocks, as on a network disk; the last whole step is saved."""
    waits, released, read = threading.Event(), threading.Event(), SkeletonDataset.__getitem__

    def read_or_block(dataset, pairs):
        if len(read_rows) == 3:     # the first two have been used, the third one waits for this one
            waits.wait()
            time.sleep(0.3)
            os.kill(os.getpid(), number)
            released.wait(timeout=20)
        read_rows.append(pairs)
        return read(dataset, pairs)
    read_rows = []
    with monkeypatch.context() as patch, pytest.raises(error, match='waiting for data.*--resume auto'):
        patch.setattr(SkeletonDataset, '__getitem__', read_or_block)
        patch.setattr(feeder.loader, 'GRACE', 0.2)
        on_step(2, lambda _: waits.set(), patch=patch.setattr)
        train('pretrain', tiny_pretrain, tmp_path, '--num_workers', '1')
    released.set()
    assert read_place(tmp_path) == (0, 2) and (tmp_path / MARKER).exists() == (error is Preempted)
    train('pretrain', tiny_pretrain, tmp_path, '--resume', 'auto')
    check_same_run(tmp_path, whole)


@pytest.mark.parametrize('first, error', [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, Preempted)])
def test_a_second_ctrl_c_ends_a_run_at_once(first, error, ctrl_c, tiny_pretrain, tmp_path, monkeypatch):
    """A Ctrl-C after the signal of a cluster is the first; an ignored one stays ignored."""
    def send(_):
        os.kill(os.getpid(), first)
        os.kill(os.getpid(), signal.SIGINT)
    on_step(3, send, patch=monkeypatch.setattr)
    with pytest.raises(error):
        train('pretrain', tiny_pretrain, tmp_path)
    assert (tmp_path / LAST).exists() == (tmp_path / MARKER).exists() == (error is Preempted)
    signal.signal(signal.SIGINT, signal.SIG_IGN)        # as in background jobs of a shell
    with catch_stop_signals() as request:
        os.kill(os.getpid(), signal.SIGINT)
        assert request.signal is None


# The last process gets a signal after a step, which is saved unless the signal is SIGKILL.
SIGNAL_AT_STEP = """
import os, signal, sys
from tests.conftest import on_step
step, number = int(sys.argv.pop(1)), int(sys.argv.pop(1))
on_step(step, lambda trainer: trainer.world.rank + 1 == trainer.world.size and os.kill(os.getpid(), number),
        save=number != signal.SIGKILL)
""" + RUN_STAGE


@pytest.mark.parametrize('number, code, text', [(signal.SIGTERM, 75, 'stopped: on '),
                                                (signal.SIGINT, 130, 'interrupted: in epoch 0')])
def test_a_signal_to_one_process_ends_all_with_its_exit_code(number, code, text, fork, tiny_pretrain, tmp_path):
    done = fork(SIGNAL_AT_STEP, 3, int(number), 'pretrain', *tiny_pretrain, '--output_dir', tmp_path, processes=2)
    assert done.codes == [code, code], done.text
    assert done.text.count(text) == 2 and 'Traceback' not in done.text
    train('pretrain', tiny_pretrain, tmp_path, '--resume', 'auto')


@pytest.mark.parametrize('stage', STAGES)
def test_a_run_killed_within_an_epoch_continues_bit_for_bit(stage, fork, stage_options, tmp_path):
    """With accumulation, a reading thread and, in fine-tuning, stochastic depth and dropout."""
    whole, killed = tmp_path / 'whole', tmp_path / 'killed'
    options = [stage, *stage_options[stage], '--epochs', '3', '--num_workers', '1', '--accum_iter', '2', '--save_steps',
               '1', '--log_steps', '2', '--output_dir']
    assert fork(RUN_STAGE, *options, whole).codes == [0]
    assert fork(SIGNAL_AT_STEP, 9, int(signal.SIGKILL), *options, killed).codes == [-signal.SIGKILL]
    assert read_place(killed) == (1, 3)
    assert fork(RUN_STAGE, *options, killed, '--resume', 'auto').codes == [0]
    check_same_run(killed, whole)


KILL_AFTER_SECONDS = """
import os, signal, sys, threading
from tests.conftest import on_step
killer = threading.Timer(float(sys.argv.pop(1)), os.kill, (os.getpid(), signal.SIGKILL))
on_step(1, lambda _: killer.start())
""" + RUN_STAGE


@pytest.mark.slow
@pytest.mark.parametrize('stage', STAGES)
def test_a_run_killed_at_random_moments_ends_bit_for_bit_the_same(stage, fork, stage_options, tmp_path):
    """Each process is killed at a random moment of its share of the training, on average in the middle of it."""
    whole, killed, kills = tmp_path / 'whole', tmp_path / 'killed', 20
    options = [stage, *stage_options[stage], '--epochs', str(4 * kills), '--num_workers', '1', '--accum_iter', '2',
               '--save_steps', '2', '--output_dir']
    assert fork(RUN_STAGE, *options, whole).codes == [0]
    seconds, draw, places = read_result(whole)['wall_seconds'], random.Random(kills), [(0, 0)]
    for _ in range(kills):
        done = fork(KILL_AFTER_SECONDS, draw.uniform(0, seconds / (kills + 1)), *options, killed, '--resume', 'auto')
        assert done.codes == [-signal.SIGKILL], done.text
        places.append(read_place(killed))
    assert fork(RUN_STAGE, *options, killed, '--resume', 'auto').codes == [0]
    assert places == sorted(places) and any(step for _, step in places) and len(set(places)) > kills / 2
    check_same_run(killed, whole)


def test_a_run_that_ends_before_its_predictions_is_not_finished(tiny, tmp_path):
    """Scripts skip folders with a result.json: it is written last, and resuming writes what is missing."""
    options = [*tiny, '--label_fraction', '0.5', '--save_scores']
    with mock.patch.object(main_finetune, 'predict', side_effect=Stopped), pytest.raises(Stopped):
        train('finetune', options, tmp_path)
    assert read_place(tmp_path) == (2, 0)
    assert not (tmp_path / 'result.json').exists() and not (tmp_path / 'scores.npz').exists()
    train('finetune', options, tmp_path, '--resume', 'auto')
    assert (tmp_path / 'result.json').exists() and (tmp_path / 'scores.npz').exists()
