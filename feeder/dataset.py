"""Skeleton clips from the interchange file (x_train (N, T, M·V·3), y_train one-hot, …), raw and batched.

Nothing is cropped or resized here: a batch carries the clips as they were recorded, and feeder/augment.py turns
it into network input on the batch's device.

Axis letters: B clips, T frames of the longest clip of the batch, M bodies, V joints, C = 3 coordinates in metres.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from feeder.npz import open_member
from util.errors import UserError
from util.rng import derive_seed


class Batch(NamedTuple):
    frames: torch.Tensor        # (B, T, M, V, C) float32, zero after each clip's last valid frame
    num_valid: torch.Tensor     # (B,) valid frames, at least 1
    label: torch.Tensor         # (B,) class index
    index: torch.Tensor         # (B,) row in the file
    position: torch.Tensor      # (B,) place in the effective batch

    def to(self, device: torch.device) -> 'Batch':
        return Batch(*(field.to(device, non_blocking=True) for field in self))


class SkeletonDataset(Dataset):
    """One split ('train' or 'test') of an npz file, memory-mapped.

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
        if y.ndim != 2 or len(y) != len(self.x):
            raise UserError(f'{path}: y_{split} {y.shape} is not one-hot labels for the {len(self.x)} clips of '
                            f'x_{split}; write the file again')
        if len(y) and not (np.isin(y, (0, 1)).all() and (y.sum(1) == 1).all()):
            raise UserError(f'{path}: y_{split} is not one-hot; write the file again')
        if self.x.shape[1] == 0 or len(self.x) == 0:
            raise UserError(f'{path}: split {split} is empty; write the file again')
        self.num_classes = y.shape[1]
        self.num_bodies = self.x.shape[2] // (3 * num_joints)
        self.label = torch.from_numpy(np.asarray(y).argmax(1))

    def __reduce__(self):
        # A worker that is spawned, not forked, maps the file itself; pickling the map would copy all of it.
        return SkeletonDataset, (self.path, self.split, self.num_joints)

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, places: list[tuple[int, int]]) -> Batch | UserError:
        index, position = np.asarray(places, dtype=np.int64).reshape(-1, 2).T
        rows = [self.x[i] for i in index]
        with np.errstate(invalid='ignore', over='ignore'):                  # reported below, as an error
            sums = np.stack([row.sum(axis=1) for row in rows])              # (B, T)
        damaged = index[~np.isfinite(sums).all(axis=1)]
        if len(damaged):
            return UserError(f'{self.path}: clip {damaged[0]} of x_{self.split} holds NaN or infinite coordinates; '
                             'mend or remove it and write the file again')
        num_valid = np.maximum((sums != 0).sum(axis=1), 1)                   # an all-zero clip is one zero frame
        frames = np.zeros((len(rows), num_valid.max(), self.x.shape[2]), dtype=np.float32)
        for clip, row, n in zip(frames, rows, num_valid, strict=True):
            clip[:n] = row[:n]
        frames = torch.from_numpy(frames).view(len(rows), -1, self.num_bodies, self.num_joints, 3)
        return Batch(frames, torch.from_numpy(num_valid), self.label[index], torch.from_numpy(index),
                     torch.from_numpy(position))


class TrainBatches(Sampler):
    """This process's micro-batches of one epoch, from any step on; the last incomplete effective batch is dropped.

    An effective batch is `accum_iter` micro-batches of `batch_size` clips on each of `world_size` processes. Which
    clips it holds, in which order, depends on (seed, epoch) only.
    """

    def __init__(self, num_clips: int, batch_size: int, accum_iter: int, rank: int, world_size: int, seed: int):
        self.num_clips, self.batch_size, self.accum_iter = num_clips, batch_size, accum_iter
        self.rank, self.world_size, self.seed = rank, world_size, seed
        self.effective = batch_size * accum_iter * world_size
        if self.effective > num_clips:
            raise UserError(f'an effective batch of {self.effective} exceeds the {num_clips} training clips; '
                            'lower --effective_batch_size or --batch_size')
        self.epoch = self.first_step = 0

    @property
    def steps_per_epoch(self) -> int:
        return self.num_clips // self.effective

    def start_at(self, epoch: int, first_step: int = 0) -> None:
        self.epoch, self.first_step = epoch, first_step

    def __len__(self) -> int:
        return (self.steps_per_epoch - self.first_step) * self.accum_iter

    def __iter__(self):
        order = np.random.default_rng([self.seed, self.epoch]).permutation(self.num_clips)
        for step in range(self.first_step, self.steps_per_epoch):
            for micro in range(self.accum_iter):
                begin = (micro * self.world_size + self.rank) * self.batch_size
                positions = range(begin, begin + self.batch_size)
                yield [(order[step * self.effective + p], p) for p in positions]


class EvalBatches(Sampler):
    """Every clip once: this process takes each `world_size`-th one; nothing is padded or repeated."""

    def __init__(self, num_clips: int, batch_size: int, rank: int, world_size: int):
        self.rows = range(rank, num_clips, world_size)
        self.batch_size = batch_size

    def __len__(self) -> int:
        return -(-len(self.rows) // self.batch_size)

    def __iter__(self):
        for begin in range(0, len(self.rows), self.batch_size):
            yield [(row, 0) for row in self.rows[begin:begin + self.batch_size]]


def make_loader(dataset: SkeletonDataset, batches: Sampler, num_workers: int, pin_memory: bool) -> DataLoader:
    """A loader whose items are whole batches; its workers live as long as it does."""
    seeds = torch.Generator().manual_seed(derive_seed(0))    # its own, so that the global one stays untouched
    return DataLoader(dataset, sampler=batches, batch_size=None, num_workers=num_workers, pin_memory=pin_memory,
                      persistent_workers=num_workers > 0, generator=seeds)


def read_batches(loader: DataLoader, device: torch.device):
    """The loader's batches on `device`; raises the UserError that a damaged clip made."""
    for batch in loader:
        if isinstance(batch, UserError):
            raise UserError(str(batch))     # one of its own: raised, it would hold the loader through its traceback
        yield batch.to(device)
