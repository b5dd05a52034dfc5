"""Skeleton clips from the interchange file (x_train (N, T, M·V·3), y_train one-hot, …), raw and batched.

Nothing is cropped or resized here: a batch carries the clips as they were recorded, and feeder/augment.py turns
it into network input on the batch's device.

Axis letters: N clips of the file, T frames of each with its padding, B clips of a batch, F valid frames of all of
these, one clip after the other, M bodies, V joints, C = 3 coordinates in metres.
"""

import zlib
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch.utils.data import Dataset, Sampler

from feeder.npz import has_member, open_member
from util.errors import UserError


class Batch(NamedTuple):
    frames: torch.Tensor        # (F, M, V, C) float32, no padding; other clips' frames may lie among them
    first: torch.Tensor         # (B,) where each clip's frames begin
    num_valid: torch.Tensor     # (B,) valid frames, at least 1
    label: torch.Tensor         # (B,) class index
    index: torch.Tensor         # (B,) row in the file
    position: torch.Tensor      # (B,) place in the effective batch

    @property
    def distinct(self):
        return None

    def to(self, device: torch.device) -> 'Batch':
        return Batch(*(field.to(device, non_blocking=True) for field in self))


def pack_clips(clips: Sequence[np.ndarray]) -> Batch:
    """Clips (T, M, V, C) float32 of any lengths as one batch, their rows in it as rows of a file; labels are 0."""
    num_valid = np.array([len(clip) for clip in clips], dtype=np.int64)
    first, num_valid = torch.from_numpy(num_valid.cumsum() - num_valid), torch.from_numpy(num_valid)
    nothing = torch.zeros_like(first)
    return Batch(torch.from_numpy(np.concatenate(clips, dtype=np.float32)), first, num_valid, nothing,
                 torch.arange(len(clips)), nothing)


class SkeletonDataset(Dataset):
    """One split ('train' or 'test') of an npz file, memory-mapped; `rows` are those of its clips that take part.

    Indexed with a list of (row, position) pairs it returns their `Batch`. A clip with NaN makes it return, not raise,
    a UserError: what a worker process raises reaches the main one as a page of traceback.
    """

    def __init__(self, path: str | Path, split: str, num_joints: int):
        self.path, self.split, self.num_joints = Path(path), split, num_joints
        self.x = open_member(path, f'x_{split}')
        y = open_member(path, f'y_{split}')
        if self.x.ndim != 3 or self.x.dtype.kind != 'f':
            raise UserError(f'{path}: x_{split} is {self.x.dtype} {self.x.shape}; expected are floating-point numbers '
                            '(N, T, M·V·3)')
        if self.x.shape[2] == 0 or self.x.shape[2] % (3 * num_joints):
            raise UserError(f'{path}: {self.x.shape[2]} numbers a frame are not whole bodies of {num_joints} joints; '
                            'correct --num_joints or --data_path')
        if y.ndim != 2 or len(y) != len(self.x) or y.dtype.kind not in 'biuf':
            raise UserError(f'{path}: y_{split} is {y.dtype} {y.shape}, not one-hot labels for the {len(self.x)} clips '
                            f'of x_{split}; write the file again')
        if len(y) and not (np.isin(y, (0, 1)).all() and (y.sum(1) == 1).all()):
            raise UserError(f'{path}: y_{split} is not one-hot; write the file again')
        if self.x.shape[1] == 0 or len(self.x) == 0:
            raise UserError(f'{path}: split {split} is empty; write the file again')
        self.num_classes = y.shape[1]
        self.num_bodies = self.x.shape[2] // (3 * num_joints)
        self.label = torch.from_numpy(np.asarray(y).argmax(1))
        self.rows = np.arange(len(self.x))
        self.num_valid = np.zeros(len(self.x), dtype=np.int64)      # (N,) 0: not counted yet by this process

    def __reduce__(self):
        # A worker that is spawned, not forked, maps the file itself; pickling the map would copy all of it.
        return SkeletonDataset, (self.path, self.split, self.num_joints)

    def __len__(self) -> int:
        return len(self.x)

    @property
    def names(self) -> np.ndarray:
        """The samples' names (N,), or split and row where the file has none."""
        if has_member(self.path, f'name_{self.split}'):
            names = np.asarray(open_member(self.path, f'name_{self.split}'))
            if names.shape == (len(self),) and names.dtype.kind == 'U':
                return names
            raise UserError(f'{self.path}: name_{self.split} is {names.dtype} {names.shape}, not a name for each of '
                            f'the {len(self)} clips; write the file again')
        return np.array([f'{self.split}_{row}' for row in range(len(self))])

    @property
    def digest(self) -> str:
        """Tells another file's split from this one by the number of its clips, their labels and their names."""
        crc = zlib.crc32(self.label.numpy().tobytes())
        with suppress(UserError):       # names that are none: what needs them says so
            crc = zlib.crc32('\n'.join(self.names).encode(errors='surrogatepass'), crc)
        return f'{len(self)} clips, {crc:08x}'

    def __getitem__(self, places: list[tuple[int, int]]) -> Batch | UserError:
        # Contiguous, as anything else goes to a GPU by way of a temporary.
        index, position = np.asarray(places, dtype=np.int64).reshape(-1, 2).T.copy()
        try:
            num_valid = self.count_valid(index)
        except UserError as error:
            return error.with_traceback(None)
        first = num_valid.cumsum() - num_valid
        return Batch(self.pack(index), torch.from_numpy(first), torch.from_numpy(num_valid), self.label[index],
                     torch.from_numpy(index), torch.from_numpy(position))

    def count_valid(self, index: np.ndarray) -> np.ndarray:
        """How many frames of these clips do not sum to zero, (B,) rows -> (B,); an all-zero clip is one zero frame.

        A clip's padding is read once. Raises UserError for a clip with NaN or infinite coordinates.
        """
        x = np.asarray(self.x)                                      # rows of a memmap are slow to make
        for i in index[self.num_valid[index] == 0]:
            with np.errstate(invalid='ignore', over='ignore'):      # reported below, as an error
                sums = x[i].sum(axis=1)                             # (T,)
            if not np.isfinite(sums).all():
                raise UserError(f'{self.path}: clip {i} of x_{self.split} holds NaN or infinite coordinates; '
                                'mend or remove it and write the file again')
            self.num_valid[i] = max(np.count_nonzero(sums), 1)
        return self.num_valid[index]

    def check_clips(self, rank: int = 0, world_size: int = 1) -> None:
        """Raises `count_valid`'s UserError, if there is cause, now and not in the middle of an epoch.

        Each process looks at its share of the clips that take part; what it counts it need not count again.
        """
        self.count_valid(self.rows[rank::world_size])

    def pack(self, index: np.ndarray) -> torch.Tensor:
        """The valid frames of these clips one after the other, (B,) rows -> (F, M, V, C); raises as `count_valid`."""
        x = np.asarray(self.x)
        rows = [x[i, :n] for i, n in zip(index, self.count_valid(index), strict=True)]
        return torch.from_numpy(np.concatenate(rows, dtype=np.float32)).view(-1, self.num_bodies, self.num_joints, 3)


class TrainBatches(Sampler):
    """This process's micro-batches of one epoch, from any step on; the last incomplete effective batch is dropped.

    An effective batch is `accum_iter` micro-batches of `batch_size` clips on each of `world_size` processes. Which
    clips it holds, in which order, depends on (seed, epoch) only. `rows` are the clips' rows in the file.
    """

    def __init__(self, rows: Sequence[int], batch_size: int, accum_iter: int, rank: int, world_size: int, seed: int):
        self.rows, self.batch_size, self.accum_iter = np.asarray(rows), batch_size, accum_iter
        self.rank, self.world_size, self.seed = rank, world_size, seed
        self.effective = batch_size * accum_iter * world_size
        if self.effective > len(self.rows):
            raise UserError(f'an effective batch of {self.effective} exceeds the {len(self.rows)} training clips; '
                            'lower --effective_batch_size or --batch_size')
        self.epoch = self.first_step = 0

    @property
    def steps_per_epoch(self) -> int:
        return len(self.rows) // self.effective

    def start_at(self, epoch: int, first_step: int = 0) -> None:
        self.epoch, self.first_step = epoch, first_step

    def __len__(self) -> int:
        return (self.steps_per_epoch - self.first_step) * self.accum_iter

    def __iter__(self):
        order = self.rows[np.random.default_rng([self.seed, self.epoch]).permutation(len(self.rows))]
        for step in range(self.first_step, self.steps_per_epoch):
            for micro in range(self.accum_iter):
                begin = (micro * self.world_size + self.rank) * self.batch_size
                positions = range(begin, begin + self.batch_size)
                yield [(order[step * self.effective + p], p) for p in positions]


class EvalBatches(Sampler):
    """Every clip once: this process takes each `world_size`-th one; nothing is padded or repeated.

    `rows` are the clips' rows in the file.
    """

    def __init__(self, rows: Sequence[int], batch_size: int, rank: int, world_size: int):
        self.rows = rows[rank::world_size]
        self.batch_size = batch_size

    def __len__(self) -> int:
        return -(-len(self.rows) // self.batch_size)

    def __iter__(self):
        for begin in range(0, len(self.rows), self.batch_size):
            yield [(row, 0) for row in self.rows[begin:begin + self.batch_size]]
