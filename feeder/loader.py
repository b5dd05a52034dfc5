"""Batches on the device: either read and packed in advance by threads, or taken from a split in the device's memory."""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import suppress
from itertools import islice
from queue import SimpleQueue

import numpy as np
import torch

from feeder.dataset import Batch, EvalBatches, SkeletonDataset, TrainBatches, make_batch
from util.errors import UserError

log = logging.getLogger(__name__)

DEPTH = 4                   # number of batches that are read ahead
BLOCK_BYTES = 1 << 28       # of host memory, while a split is packed
POLL = 1.                   # seconds between checks for a stop request, while no batch arrives
GRACE = 20.                 # seconds to wait for a batch after a stop request, as a step that is completed can be saved
WARN = 60.                  # seconds without a batch until a warning


class StoppedWaiting(Exception):
    """A stop was requested while the next batch was not available."""


class BatchLoader:
    """Iterates over the batches of a sampler, in its order, on `device`.

    `num_threads` threads read and pack batches in advance, which NumPy does without holding the GIL; with 0, the
    calling thread reads a batch when it is needed. `on_device` packs the whole split into the device's memory once,
    after which nothing is read. Raises UserError for a damaged clip, and for a split that does not fit into the memory.

    If reading blocks, for example on a network disk, a warning follows after a minute, and UserError is raised after
    `patience` seconds; StoppedWaiting is raised some time after `stop()` has become True. Threads are daemons, so that
    a blocked one does not keep the process alive.
    """

    stop: Callable[[], bool] = staticmethod(lambda: False)
    patience = 600.

    def __init__(self, dataset: SkeletonDataset, batches: TrainBatches | EvalBatches, device: torch.device,
                 num_threads: int = 1, on_device: bool = False):
        self.dataset = PackedDataset(dataset, device) if on_device else dataset
        self.batches, self.device, self.num_threads = batches, torch.device(device), 0 if on_device else num_threads
        self.streams = torch.get_device_module(self.device)     # torch.cuda; torch.cpu, whose streams do nothing
        self.copies = torch.cuda.Stream(self.device) if self.device.type == 'cuda' else self.streams.Stream()

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Batch]:
        """Copy each batch on a separate stream while the batch before it is in use, without synchronization."""
        host = self._read()

        def fetch() -> Batch | None:
            with self.streams.stream(self.copies):
                batch = next(host, None)
                return None if batch is None else batch.to(self.device)

        ahead = fetch()
        while ahead is not None:
            batch, user = ahead, self.streams.current_stream(self.device)
            user.wait_stream(self.copies)       # before the next batch's copy is queued
            for field in batch:
                if field.is_cuda:
                    field.record_stream(user)   # so that its memory is not reused while it is in use
            ahead = fetch()
            yield batch

    def _read(self) -> Iterator[Batch]:
        """Yield the batches in host memory; if the caller stops early, no thread keeps running."""
        if not self.num_threads:
            yield from map(self._load, self.batches)
            return
        batches, tasks, ahead = iter(self.batches), SimpleQueue(), deque()

        def submit(count: int) -> None:
            for pairs in islice(batches, count):
                ahead.append(Future())
                tasks.put((ahead[-1], pairs))

        def work() -> None:
            while (task := tasks.get()) is not None:
                future, pairs = task
                if future.set_running_or_notify_cancel():
                    try:
                        future.set_result(self._load(pairs))
                    except BaseException as error:      # raised again where the batch is used
                        future.set_exception(error)

        for _ in range(self.num_threads):
            threading.Thread(target=work, name='reader', daemon=True).start()
        try:
            submit(DEPTH + self.num_threads)
            while ahead:
                batch = self._wait(ahead.popleft())
                submit(1)
                yield batch
        finally:
            for future in ahead:
                future.cancel()
            for _ in range(self.num_threads):
                tasks.put(None)

    def _wait(self, future: Future) -> Batch:
        began, warned, stopped = time.monotonic(), False, None
        while not future.done():
            with suppress(TimeoutError):
                return future.result(POLL)
            now = time.monotonic()
            stopped = stopped or (now if self.stop() else None)
            if stopped and now - stopped > GRACE:
                raise StoppedWaiting
            if now - began > self.patience:
                raise UserError(f'no data for {self.patience:.0f} seconds; check the disk of the dataset file, and '
                                'continue with --resume auto')
            if not warned and now - began > WARN:
                log.warning('no data for %.0f seconds; the disk of the dataset file may be blocked', WARN)
                warned = True
        return future.result()

    def _load(self, pairs: np.ndarray) -> Batch:
        batch = self.dataset[pairs]
        return batch.pin_memory() if self.device.type == 'cuda' else batch


class PackedDataset:
    """A split without padding in the memory of `device`; indexed like a SkeletonDataset, it returns the same clips.

    Every batch refers to the frames of the whole split. Raises UserError for a damaged clip, and if the memory is too
    small.
    """

    def __init__(self, dataset: SkeletonDataset, device: torch.device):
        began, name = time.perf_counter(), f'{dataset.path}: x_{dataset.split}'
        rows, self.dataset = np.arange(len(dataset)), dataset
        dataset.scan(rows)
        end = dataset.num_valid.cumsum()
        self.first = end - dataset.num_valid
        self.frames = _allocate((int(end[-1]), dataset.num_bodies, dataset.num_joints, 3), device, name)
        block = max(1, BLOCK_BYTES // (4 * dataset.x[0].size))
        for index in np.split(rows, range(block, len(rows), block)):
            self.frames[self.first[index[0]]:end[index[-1]]] = dataset.pack(index)      # returns once it is copied
        log.info('%s: %d clips in %.2f GB of memory on %s, packed in %.1f s', name, len(dataset),
                 self.frames.nbytes / 1e9, device, time.perf_counter() - began)

    def __getitem__(self, pairs: np.ndarray) -> Batch:
        index, position = np.asarray(pairs, dtype=np.int64).reshape(-1, 2).T
        data = self.dataset
        return make_batch(self.frames, self.first[index], data.num_valid[index], data.label.numpy()[index], index,
                          position, data.kind[index])


def _allocate(shape: tuple[int, ...], device: torch.device, name: str) -> torch.Tensor:
    """Return uninitialised float32 memory on the device; raises UserError if it does not fit."""
    try:
        return torch.empty(shape, device=device)
    except RuntimeError as error:       # torch.OutOfMemoryError on a GPU
        free = f', but {torch.cuda.mem_get_info(device)[0] / 1e9:.2f} GB are free' if device.type == 'cuda' else ''
        raise UserError(f'{name}: needs {4 * np.prod(shape) / 1e9:.2f} GB of memory on {device}{free}; omit '
                        '--data_on_device') from error
