"""Measurements of dataset files, made in blocks: only a few hundred bytes per clip stay in memory.

N clips of a split, B rows of a block, T frames, M bodies, V joints.
"""

import zipfile
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from data.datasets import DATASETS
from feeder.npz import open_member
from util.errors import UserError, printable

SPLITS = ('train', 'test')
MEMBERS = {'x': (3, 'float32', 'numbers (N, T, M·V·3)'),        # dimensions, type, content
           'y': (2, 'float64', 'one-hot rows (N, classes)')}
SECOND_BODY = ('empty', 'copy', 'own', 'none')
BODIES_JOINTS = {dataset.width: (dataset.bodies, dataset.joints) for dataset in DATASETS.values()}
BLOCK_BYTES = 1 << 24


class Clips(NamedTuple):
    """Measurements of N clips, each (N,), or of a single clip."""

    valid: np.ndarray       # valid frames
    end: np.ndarray         # frames before the padding
    low: np.ndarray         # smallest coordinate; NaN if the clip has one
    high: np.ndarray        # largest
    second: np.ndarray      # second body, index into SECOND_BODY
    digest: list[bytes]     # SHA-256 of the frames before the padding


class Split(NamedTuple):
    """The N clips of a split, their labels (-1 if not one-hot) and names."""

    clips: Clips
    labels: np.ndarray
    names: list[str] | None

    def title(self, row: int) -> str:
        return f'row {row}' if self.names is None else printable(self.names[row])

    def titles(self, mask: np.ndarray) -> list[str]:
        return [self.title(row) for row in np.flatnonzero(mask)]


def open_members(path: Path) -> dict[str, np.ndarray]:
    """Map all arrays of a dataset file; raises UserError if it is not a dataset file, or a member is damaged."""
    arrays = {f'{kind}_{split}': open_member(path, f'{kind}_{split}') for split in SPLITS for kind in MEMBERS}
    for member, array in arrays.items():
        ndim, _, expected = MEMBERS[member[0]]
        if array.ndim != ndim or array.dtype.kind not in 'biuf' or array.size == 0:
            raise UserError(f'{path}: {member} is {array.dtype} {array.shape}, expected non-empty {expected}; '
                            'regenerate the file')
    with zipfile.ZipFile(path) as archive:
        members = [name.removesuffix('.npy') for name in archive.namelist() if name.endswith('.npy')]
    return arrays | {member: open_member(path, member) for member in members if member not in arrays}


def measure_clip(x: np.ndarray) -> Clips:
    """Measure one clip (T, M·V·3)."""
    with np.errstate(invalid='ignore', over='ignore'):
        valid = np.count_nonzero(x.sum(axis=1))                                             # as in the feeder
    filled = np.flatnonzero(x.any(axis=1))
    end = filled[-1] + 1 if len(filled) else 0
    frames = x[:end] + 0        # -0. + 0 is 0., so that copies are equal
    second = 'none'
    if BODIES_JOINTS.get(x.shape[1], (1, 0))[0] == 2:
        bodies = np.split(frames, 2, axis=1)                                                # two of (T, V·3)
        second = 'empty' if not bodies[1].any() else 'copy' if np.array_equal(*bodies) else 'own'
    return Clips(valid, end, x.min(), x.max(), SECOND_BODY.index(second), sha256(frames).digest())


def read_labels(y: np.ndarray) -> np.ndarray:
    """Return labels (B,) from rows (B, classes), -1 for rows that are not one-hot."""
    one_hot = np.isin(y, (0, 1)).all(axis=1) & (np.count_nonzero(y, axis=1) == 1)
    return np.where(one_hot, y.argmax(axis=1), -1)


def read_blocks(path: Path, member: str) -> Iterator[np.ndarray]:
    """Yield an array in blocks of rows (B, ...), each from a separate map, so that its pages are freed afterwards."""
    start, length = 0, 1
    while start < length:
        array = np.atleast_1d(open_member(path, member))
        length, rows = len(array), max(1, BLOCK_BYTES // max(array[:1].nbytes, 1))
        block = np.ascontiguousarray(array[start:start + rows])
        del array
        yield block
        start += rows


def read_dataset_file(path: Path, members: list[str], bar: tqdm) -> tuple[dict[str, Split], dict[str, str]]:
    """Read the two splits of a dataset file, and the SHA-256 of each member."""
    readers = {f'{kind}_{split}': reader for split in SPLITS
               for kind, reader in (('x', lambda x: map(measure_clip, x)), ('y', read_labels), ('name', list))}
    rows, sums = {}, {}
    for member in members:
        digest, rows[member] = sha256(), []
        for block in read_blocks(path, member):
            digest.update(block.reshape(-1).view(np.uint8))
            rows[member].extend(readers[member](block) if member in readers else ())
            bar.update(block.nbytes)
        sums[member] = digest.hexdigest()
    splits = {}
    for split in SPLITS:
        *numbers, digests = zip(*rows[f'x_{split}'], strict=True)
        clips, names = Clips(*map(np.array, numbers), list(digests)), rows.get(f'name_{split}', [])
        is_valid = len(names) == len(digests) and isinstance(names[0], str)
        splits[split] = Split(clips, np.array(rows[f'y_{split}']), list(map(str, names)) if is_valid else None)
    return splits, sums
