"""How batches reach the device: copied ahead of time, or made there of a split that its memory holds whole.

Axis letters: N clips of the split, B clips of a batch, F valid frames of all N clips, one clip after the other,
M bodies, V joints, C = 3 coordinates in metres.
"""

import functools
import logging
import signal
import time
from collections.abc import Iterator

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from feeder.dataset import Batch, SkeletonDataset
from util.errors import UserError
from util.rng import derive_seed

log = logging.getLogger(__name__)

GRACE = 20                  # seconds between SIGTERM and a worker's end
BLOCK_BYTES = 1 << 28       # of host memory, while a split is packed


class PackedDataset(Dataset):
    """A split trimmed and packed in the memory of `device`. Indexed as the one it was made of, it gives equal clips.

    The frames of each of its batches are those of the whole split, (F, M, V, C). Raises UserError for a damaged clip,
    and when the split does not fit in.
    """

    def __init__(self, dataset: SkeletonDataset, device: torch.device):
        began, name = time.perf_counter(), f'{dataset.path}: x_{dataset.split}'
        block = max(1, BLOCK_BYTES // (4 * dataset.x[0].size))
        blocks = np.split(np.arange(len(dataset)), range(block, len(dataset), block))
        num_valid = np.concatenate([dataset.count_valid(index) for index in blocks])
        end = num_valid.cumsum()
        self.frames = _room_for((int(end[-1]), dataset.num_bodies, dataset.num_joints, 3), device, name)
        # These copies are waited for, so that any stream may read from here on.
        for index in blocks:
            self.frames[end[index[0]] - num_valid[index[0]]:end[index[-1]]] = dataset.pack(index)
        tables = torch.from_numpy(end - num_valid), torch.from_numpy(num_valid), dataset.label
        self.first, self.num_valid, self.label = (table.to(device) for table in tables)
        log.info('%s: %d clips in %.2f GB of memory on %s, packed in %.1f s', name, len(dataset),
                 self.frames.nbytes / 1e9, device, time.perf_counter() - began)

    def __len__(self) -> int:
        return len(self.first)

    def __getitem__(self, places: list[tuple[int, int]]) -> Batch:
        places = torch.from_numpy(np.asarray(places, dtype=np.int64).reshape(-1, 2))
        if self.frames.is_cuda:
            places = places.pin_memory()
        index, position = places.to(self.frames.device, non_blocking=True).unbind(1)
        return Batch(self.frames, self.first[index], self.num_valid[index], self.label[index], index, position)


def _room_for(shape: tuple[int, ...], device: torch.device, name: str) -> torch.Tensor:
    """Uninitialised float32 memory on the device, or a UserError that says how much of it is wanted."""
    try:
        return torch.empty(shape, device=device)
    except RuntimeError as error:       # torch.OutOfMemoryError on a GPU
        free = f', {torch.cuda.mem_get_info(device)[0] / 1e9:.2f} GB are free' if device.type == 'cuda' else ''
        raise UserError(f'{name}: needs {4 * np.prod(shape) / 1e9:.2f} GB of memory on {device}{free}; leave out '
                        '--data_on_device') from error


def make_loader(dataset: SkeletonDataset, batches: Sampler, num_workers: int, device: torch.device,
                on_device: bool = False) -> DataLoader:
    """A loader whose items are whole batches for `device`; its workers live as long as it does.

    `on_device`: it packs the split into the device's memory first, and needs no workers. Raises as PackedDataset then.
    """
    if on_device:
        dataset, num_workers = PackedDataset(dataset, device), 0
    seeds = torch.Generator().manual_seed(derive_seed(0))    # its own, so that the global one stays untouched
    return DataLoader(dataset, sampler=batches, batch_size=None, num_workers=num_workers, generator=seeds,
                      pin_memory=device.type == 'cuda' and not on_device, persistent_workers=num_workers > 0,
                      worker_init_fn=_begin_worker)


def _begin_worker(_: int) -> None:
    """Signals that tell a run to stop go to its workers too: they serve on for as long as the last step may take."""
    signal.signal(signal.SIGTERM, lambda *_: signal.alarm(GRACE))
    for number in (signal.SIGUSR1, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)


@functools.cache
def _copy_stream(device: torch.device):
    """The stream of this device that batches are copied on; one only, as its memory serves no other stream again."""
    return torch.cuda.Stream(device) if device.type == 'cuda' else torch.cpu.Stream()


def read_batches(loader: DataLoader, device: torch.device) -> Iterator[Batch]:
    """The loader's batches on `device`; raises the UserError that a damaged clip made, after the batches before it.

    While a batch is in use the next one is fetched and copied, on a stream of its own; nothing waits for the device.
    """
    streams = torch.get_device_module(device)       # torch.cuda, or torch.cpu, whose streams do nothing
    copies, source = _copy_stream(torch.device(device)), iter(loader)

    def fetch() -> Batch | UserError | None:
        with streams.stream(copies):
            batch = next(source, None)
            return batch if batch is None or isinstance(batch, UserError) else batch.to(device)

    ahead = fetch()
    while ahead is not None:
        batch = ahead
        if isinstance(batch, UserError):
            raise UserError(str(batch))     # one of its own: raised, it would hold the loader through its traceback
        user = streams.current_stream(device)
        user.wait_stream(copies)            # for this batch: the next one's copies are not yet under way
        for field in batch:
            if field.is_cuda:
                field.record_stream(user)   # its memory is given to no other batch before the user is done with it
        ahead = fetch()
        yield batch
