"""Batches read ahead by threads and copied to the device, splits packed in its memory, and resuming in mid-epoch."""

import contextlib
import gc
import os
import shutil
import threading
import time
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest
import torch

from feeder import loader as loader_module
from feeder.dataset import EvalBatches, SkeletonDataset, TrainBatches
from feeder.loader import BatchLoader, PackedDataset
from tests.conftest import refusal
from tests.feeder.conftest import M, V, split_clips, write_splits

CPU = torch.device('cpu')
T, CLIPS = 90, 23
CLIP_BYTES = T * M * V * 3 * 4
EVAL_BATCHES = EvalBatches(range(CLIPS), 4, 0, 1)


def write_clips(path, damage=0.):
    """Clips of 1 to T frames: one all-zero, one with gaps, one without padding; `damage` is added to clip 9."""
    x = np.random.default_rng(3).standard_normal((CLIPS, T, M * V * 3)).astype(np.float32)
    for i, clip in enumerate(x):
        clip[[1 + 11 * i % T, T][i == 7]:] = 0
    x[::3, :, V * 3:] = 0
    x[4], x[9, [0, 3, 4]] = 0, 0
    x[9, 0, 0] += damage
    return write_splits(path, x)


@pytest.fixture(scope='module')
def path(tmp_path_factory):
    return write_clips(tmp_path_factory.mktemp('clips') / 'clips.npz')


@pytest.fixture
def dataset(path):
    return SkeletonDataset(path, 'train', V)


def train_batches(accum=1, rank=0, world=1):
    return TrainBatches(range(CLIPS), 4 // accum, accum, rank, world, seed=1)


def check_equal(batch, expected):
    """Compare all fields and the frames of every clip; `first` may differ."""
    for name in ('num_valid', 'label', 'index', 'position', 'distinct', 'inverse', 'nonempty'):
        assert torch.equal(getattr(batch, name), getattr(expected, name)), name
    assert all(torch.equal(*clips) for clips in zip(split_clips(batch), split_clips(expected), strict=True))


def wait_until(condition):
    until = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < until
        time.sleep(.01)


def no_reader():
    return not any(thread.name.startswith('reader') for thread in threading.enumerate())


@pytest.mark.parametrize('threads, on_device', [(0, False), (3, False), (1, True)])
@pytest.mark.parametrize('batches', [train_batches(2, 1, 2), EVAL_BATCHES], ids=['training', 'evaluation'])
def test_every_batch_arrives_once_and_in_order(dataset, batches, threads, on_device):
    loader = BatchLoader(dataset, batches, CPU, threads, on_device)
    for epoch, first_step in ((0, 0), (1, 0), (1, 1)):
        if batches is not EVAL_BATCHES:
            batches.start_at(epoch, first_step)
        planned, read = list(batches), list(loader)
        assert len(read) == len(planned) == len(loader) > 0
        for batch, places in zip(read, planned, strict=True):
            check_equal(batch, dataset[places])
    wait_until(no_reader)


def test_threads_read_while_a_batch_is_in_use_but_not_far_ahead(dataset, monkeypatch):
    started, read = [], SkeletonDataset.__getitem__
    monkeypatch.setattr(SkeletonDataset, '__getitem__', lambda self, places: started.append(len(places))
                        or read(self, places))
    ahead = loader_module.DEPTH + 2     # at most: `DEPTH`, one in the thread, one that is being copied
    for used, _ in enumerate(BatchLoader(dataset, EvalBatches(range(CLIPS), 1, 0, 1), CPU, 1), 1):
        if used == 10:
            wait_until(lambda: len(started) >= 10 + ahead - 1)      # read without being asked
        assert used <= len(started) <= used + ahead


@pytest.mark.parametrize('threads', [0, 2])
def test_a_damaged_clip_ends_the_reading_after_the_batches_before_it(tmp_path, threads):
    damaged = SkeletonDataset(write_clips(tmp_path / 'f.npz', damage=np.nan), 'train', V)
    loader, read = BatchLoader(damaged, EVAL_BATCHES, CPU, threads), []
    for _ in range(2):
        refusal(lambda: read.extend(batch.index[0].item() for batch in loader), tmp_path, 'clip 9 of x_train')
    assert read == [0, 0]       # the batch of clips 4 to 7 was waiting to be used
    wait_until(no_reader)
    refusal(lambda: BatchLoader(damaged, EVAL_BATCHES, CPU, on_device=True), 'clip 9 of x_train')


def test_threads_end_when_the_reader_stops_early(dataset):
    loader = BatchLoader(dataset, EvalBatches(np.resize(np.arange(CLIPS), 400), 1, 0, 1), CPU, 2)
    batches = iter(loader)
    next(batches), next(batches)
    assert not no_reader()
    del batches
    gc.collect()
    wait_until(no_reader)
    assert sum(len(batch.index) for batch in loader) == 400


def test_a_batch_is_in_use_while_the_next_is_copied_on_another_stream(monkeypatch, dataset):
    """The user waits for what was copied before, not for what is copied next."""
    events, read = [], SkeletonDataset.__getitem__
    stream = SimpleNamespace(wait_stream=lambda stream: events.append('wait'))
    streams = SimpleNamespace(Stream=lambda: stream, current_stream=lambda _: stream,
                              stream=lambda _: contextlib.nullcontext(events.append('copy')))
    monkeypatch.setattr(SkeletonDataset, '__getitem__', lambda self, places: events.append(f'read {places[0][0]}')
                        or read(self, places))
    monkeypatch.setattr(torch, 'get_device_module', lambda device: streams)
    for batch in BatchLoader(dataset, EvalBatches(range(6), 4, 0, 1), CPU, 0):
        events.append(f'use {batch.index[0]}')
    assert events == ['copy', 'read 0', 'wait', 'copy', 'read 4', 'use 0', 'wait', 'copy', 'use 4']


@pytest.mark.parametrize('block', [1, 3 * CLIP_BYTES + 5, 1 << 28], ids=['less than a clip', 'three clips', 'all'])
def test_a_packed_split_gives_the_batches_of_the_file(monkeypatch, dataset, block):
    blocks, pack = [], SkeletonDataset.pack
    monkeypatch.setattr(SkeletonDataset, 'pack', lambda self, index: blocks.append(len(index)) or pack(self, index))
    monkeypatch.setattr(loader_module, 'BLOCK_BYTES', block)
    packed = PackedDataset(dataset, CPU)
    assert max(blocks) == min(max(block // CLIP_BYTES, 1), CLIPS) and sum(blocks) == CLIPS
    assert packed.frames.shape == (dataset.num_valid.sum(), M, V, 3) and packed.frames.is_contiguous()
    for places in [*train_batches(), *EVAL_BATCHES, [(22, 3), (0, 1), (22, 0), (4, 2)]]:
        batch = packed[places]
        assert batch.frames is packed.frames        # nothing is copied
        check_equal(batch, dataset[places])


def test_splits_that_do_not_fit_the_memory_cannot_be_packed(monkeypatch, dataset):
    monkeypatch.setattr(torch, 'empty', mock.Mock(side_effect=torch.OutOfMemoryError('CUDA out of memory.\nAdvice.')))
    refusal(lambda: BatchLoader(dataset, EVAL_BATCHES, CPU, on_device=True), dataset.path, 'x_train', 'cpu',
            '--data_on_device')


def test_a_file_that_was_truncated_is_not_read(tmp_path):
    """Reading beyond the end of a truncated map would end the process with SIGBUS."""
    path = write_clips(tmp_path / 'a.npz')
    replaced = SkeletonDataset(path, 'train', V)
    shutil.copy(path, tmp_path / 'b.npz')
    os.replace(tmp_path / 'b.npz', path)
    replaced[[(0, 0)]]
    overwritten = SkeletonDataset(path, 'train', V)
    os.truncate(path, 100)
    refusal(lambda: overwritten[[(0, 0)]], path, 'truncated while in use')


def test_a_reader_that_blocks_is_reported(path, monkeypatch, caplog):
    released = threading.Event()
    monkeypatch.setattr(SkeletonDataset, '__getitem__', lambda *_: released.wait())
    monkeypatch.setattr(loader_module, 'WARN', 0.)
    monkeypatch.setattr(loader_module, 'POLL', 0.01)
    loader = BatchLoader(SkeletonDataset(path, 'train', V), EVAL_BATCHES, CPU)
    loader.patience = 0.1
    refusal(lambda: next(iter(loader)), 'no data for', '--resume auto')
    assert 'may be blocked' in caplog.text
    released.set()
