"""Skeleton clips of a dataset file (x_train (N, T, M·V·3), y_train one-hot, …), and their order in an epoch.

Clips are neither cropped nor resized here: a batch holds them as recorded, and feeder/augment.py turns it into network
input on the batch's device.

Axis letters: N clips of the file, T frames of each with padding, B clips of a batch, F valid frames of those clips, one
clip after the other, M bodies, V joints, C = 3 coordinates in metres.
"""

import zlib
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from feeder.npz import has_member, open_member
from util.errors import UserError

OWN, COPY, EMPTY = range(3)     # kinds of bodies: different from the first body of the clip, identical to it, all zeros


class Batch(NamedTuple):
    """Clips as recorded, without padding. Bodies are numbered 0 to B·M − 1, clip by clip.

    A model in eval mode encodes the bodies `distinct` and takes rows `inverse` of the result, as identical bodies have
    identical features. Bodies are identical if they are equal in all valid frames, and hence in every view and stream;
    bodies that become equal only by a crop are encoded separately. The sizes of all fields are known without
    synchronizing with the device.
    """

    frames: torch.Tensor        # (F, M, V, C) float32; may hold frames of other clips too
    first: torch.Tensor         # (B,) index of each clip's first frame in `frames`
    num_valid: torch.Tensor     # (B,) number of frames, at least 1
    label: torch.Tensor         # (B,) class index
    index: torch.Tensor         # (B,) row in the file
    position: torch.Tensor      # (B,) position in the effective batch
    distinct: torch.Tensor      # (D,) bodies, without copies of a clip's first body and with at most one empty one
    inverse: torch.Tensor       # (B·M,) index in `distinct` of each body, or of the body identical to it
    nonempty: torch.Tensor      # (E,) bodies that are not all zeros; all bodies if every one is

    def to(self, device: torch.device) -> 'Batch':
        return Batch(*(field.to(device, non_blocking=True) for field in self))

    def pin_memory(self) -> 'Batch':
        """Copy tensors in host memory to page-locked memory, from which copies to a GPU are asynchronous."""
        return Batch(*(field if field.is_cuda else field.pin_memory() for field in self))


def make_batch(frames: torch.Tensor, first: np.ndarray, num_valid: np.ndarray, label: np.ndarray, index: np.ndarray,
               position: np.ndarray, kind: np.ndarray) -> Batch:
    """Return a batch of B clips; `kind` (B, M) is the kind of each body, the other arguments are fields of `Batch`."""
    columns = first, num_valid, label, index, position, *index_bodies(kind)
    return Batch(frames, *(torch.from_numpy(np.ascontiguousarray(column, dtype=np.int64)) for column in columns))


def compare_bodies(clip: np.ndarray) -> np.ndarray:
    """Classify each body of a clip as OWN, COPY or EMPTY, (T, M, …) -> (M,)."""
    clip = clip.reshape(*clip.shape[:2], -1)
    kind = np.where((clip == clip[:, :1]).all(axis=(0, 2)), COPY, OWN)
    kind[0] = OWN
    kind[~clip.any(axis=(0, 2))] = EMPTY
    return kind


def index_bodies(kind: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return `distinct`, `inverse` and `nonempty` (see `Batch`) of a batch whose bodies are of these kinds (B, M)."""
    body, empty = np.arange(kind.size).reshape(kind.shape), kind == EMPTY
    equal = np.where(kind == COPY, body[:, :1], body)
    equal[empty] = body[empty].min(initial=kind.size)       # all empty bodies are represented by the first one
    distinct, inverse = np.unique(equal.ravel(), return_inverse=True)
    return distinct, inverse, body[empty if empty.all() else ~empty]


def pack_clips(clips: Sequence[np.ndarray]) -> Batch:
    """Return clips (T, M, V, C) float32 of any lengths as one batch, numbered from 0, with label 0."""
    num_valid = np.array([len(clip) for clip in clips])
    zeros = np.zeros(len(clips))
    return make_batch(torch.from_numpy(np.concatenate(clips, dtype=np.float32)), num_valid.cumsum() - num_valid,
                      num_valid, zeros, np.arange(len(clips)), zeros, np.array([compare_bodies(c) for c in clips]))


class SkeletonDataset:
    """One split ('train' or 'test') of a dataset file, memory-mapped; `rows` are the clips that are used.

    Indexing with B pairs (row, position) returns their `Batch`, from any thread. Raises UserError if members, shapes or
    labels of the file are not those of a dataset file, and if a batch has a clip with NaN or infinity.
    """

    def __init__(self, path: str | Path, split: str, num_joints: int):
        self.path, self.split, self.num_joints = Path(path), split, num_joints
        self.x = open_member(path, f'x_{split}')
        y = open_member(path, f'y_{split}')
        if self.x.ndim != 3 or self.x.dtype.kind != 'f':
            raise UserError(f'{path}: x_{split} is {self.x.dtype} {self.x.shape}, but must be floating-point '
                            'numbers (N, T, M·V·3); regenerate the file')
        if self.x.shape[2] == 0 or self.x.shape[2] % (3 * num_joints):
            raise UserError(f'{path}: x_{split} has {self.x.shape[2]} numbers per frame, which is not a multiple of '
                            f'3 × {num_joints} joints; correct --num_joints or --data_path')
        if y.ndim != 2 or len(y) != len(self.x) or y.dtype.kind not in 'biuf' \
                or not (np.isin(y, (0, 1)).all() and (y.sum(axis=1) == 1).all()):
            raise UserError(f'{path}: y_{split} is not one-hot for the {len(self.x)} clips of x_{split} ({y.dtype} '
                            f'{y.shape}); regenerate the file')
        if 0 in self.x.shape:
            raise UserError(f'{path}: split {split} is empty; regenerate the file')
        self.num_classes = y.shape[1]
        self.keypoints = '2d' if has_member(path, 'keypoints') else '3d'    # x, y, score or x, y, z
        self.num_bodies = self.x.shape[2] // (3 * num_joints)
        self.label = torch.from_numpy(np.asarray(y).argmax(axis=1))
        self.rows = np.arange(len(self.x))
        self.status = self.path.stat()
        self.num_valid = np.zeros(len(self.x), dtype=np.int64)              # (N,) 0: not scanned yet
        self.kind = np.zeros((len(self.x), self.num_bodies), dtype=np.int8)

    def __len__(self) -> int:
        return len(self.x)

    @property
    def names(self) -> np.ndarray:
        """The names of the samples (N,), or split and row if the file has no names."""
        if has_member(self.path, f'name_{self.split}'):
            names = np.asarray(open_member(self.path, f'name_{self.split}'))
            if names.shape == (len(self),) and names.dtype.kind == 'U':
                return names
            raise UserError(f'{self.path}: name_{self.split} is {names.dtype} {names.shape}, but must have a name for '
                            f'each of the {len(self)} clips; regenerate the file')
        return np.array([f'{self.split}_{row}' for row in range(len(self))])

    @property
    def digest(self) -> str:
        """The number of clips and a checksum of labels and names, to notice that a split has changed."""
        crc = zlib.crc32(self.label.numpy().tobytes())
        with suppress(UserError):       # invalid names are reported by commands that need them
            crc = zlib.crc32('\n'.join(self.names).encode(errors='surrogatepass'), crc)
        return f'{len(self)} clips, {crc:08x}'

    def __getitem__(self, pairs: Sequence[tuple[int, int]]) -> Batch:
        index, position = np.asarray(pairs, dtype=np.int64).reshape(-1, 2).T
        frames = self.pack(index)
        num_valid = self.num_valid[index]
        return make_batch(frames, num_valid.cumsum() - num_valid, num_valid, self.label.numpy()[index], index, position,
                          self.kind[index])

    def pack(self, index: np.ndarray) -> torch.Tensor:
        """Return the valid frames of clips (B,), one clip after the other, (F, M, V, C); raises as `scan`."""
        self.check_unchanged()
        self.scan(index)
        x = np.asarray(self.x)
        clips = [x[i, :n] for i, n in zip(index, self.num_valid[index], strict=True)]
        return torch.from_numpy(np.concatenate(clips, dtype=np.float32)).view(-1, self.num_bodies, self.num_joints, 3)

    def scan(self, index: np.ndarray) -> None:
        """Count the valid frames of clips (B,), and compare the clips' bodies.

        A frame is valid if its coordinates do not sum to zero; a clip without valid frames counts as one frame of
        zeros. The padding of a clip is read only once, here. Raises UserError for NaN or infinite coordinates.
        """
        x = np.asarray(self.x)                                      # slicing a memmap is slow
        for i in index[self.num_valid[index] == 0]:
            with np.errstate(invalid='ignore', over='ignore'):      # reported below
                sums = x[i].sum(axis=1)                             # (T,)
            if not np.isfinite(sums).all():
                raise UserError(f'{self.path}: clip {i} of x_{self.split} has NaN or infinite coordinates; correct or '
                                'remove it and regenerate the file')
            num_valid = max(np.count_nonzero(sums), 1)
            self.kind[i] = compare_bodies(x[i, :num_valid].reshape(num_valid, self.num_bodies, -1))
            self.num_valid[i] = num_valid       # set last: it marks the clip as scanned for other threads

    def check_unchanged(self) -> None:
        """Raise UserError if the file was truncated, as reading beyond its end would end the process with SIGBUS."""
        with suppress(FileNotFoundError):       # a removed file stays readable
            now = self.path.stat()
            if now.st_ino == self.status.st_ino and now.st_size < self.status.st_size:
                raise UserError(f'{self.path}: was truncated while in use; restore it and continue with --resume auto')

    def check_clips(self, rank: int = 0, world_size: int = 1) -> None:
        """Scan this process's part of the clips in use, so that a damaged one is reported before training begins."""
        self.scan(self.rows[rank::world_size])


class TrainBatches:
    """Micro-batches (batch_size, 2) of rows and positions, for one process and one epoch.

    An effective batch consists of `accum_iter` micro-batches of `batch_size` clips in each of `world_size` processes.
    Its clips and their order depend only on (seed, epoch). The last effective batch is dropped if it is incomplete.
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
        """Set the epoch, and the step within it, at which the next iteration starts."""
        self.epoch, self.first_step = epoch, first_step

    def __len__(self) -> int:
        return (self.steps_per_epoch - self.first_step) * self.accum_iter

    def __iter__(self) -> Iterator[np.ndarray]:
        order = self.rows[np.random.default_rng([self.seed, self.epoch]).permutation(len(self.rows))]
        for step in range(self.first_step, self.steps_per_epoch):
            for micro in range(self.accum_iter):
                begin = (micro * self.world_size + self.rank) * self.batch_size
                position = np.arange(begin, begin + self.batch_size)
                yield np.stack([order[step * self.effective + position], position], axis=1)


class EvalBatches:
    """Batches (B, 2) of rows and position 0, for one process: every `world_size`-th clip, each exactly once."""

    def __init__(self, rows: Sequence[int], batch_size: int, rank: int, world_size: int):
        self.rows, self.batch_size = np.asarray(rows, dtype=np.int64)[rank::world_size], batch_size

    def __len__(self) -> int:
        return -(-len(self.rows) // self.batch_size)

    def __iter__(self) -> Iterator[np.ndarray]:
        for begin in range(0, len(self.rows), self.batch_size):
            rows = self.rows[begin:begin + self.batch_size]
            yield np.stack([rows, np.zeros_like(rows)], axis=1)
