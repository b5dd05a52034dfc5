"""The interchange file: one .npz a protocol, written straight to the disk.

Members x_train (N, T, M·V·3) float32, y_train (N, classes) float64 one-hot, x_test, y_test, and the sample names
name_train, name_test (N,) as text. Rows are frames, zero rows after the last one.
"""

import io
import os
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
from numpy.lib import format as npy

from util.files import atomic_write

BLOCK = 4096  # bytes; the unit in which file systems leave holes


def one_hot(labels: Sequence[int], classes: int) -> np.ndarray:
    """Labels 0 .. classes - 1 as rows (N, classes) float64 with a single 1."""
    labels = np.asarray(labels, dtype=np.int64)
    assert ((labels >= 0) & (labels < classes)).all(), f'a label lies outside 0..{classes - 1}'
    rows = np.zeros((len(labels), classes))
    rows[np.arange(len(labels)), labels] = 1
    return rows


def pad(sequences: Sequence[np.ndarray], width: int) -> np.ndarray:
    """Sequences (T_i, ...) of `width` numbers a frame as one (N, max T_i, width) float32; zeros after each end."""
    padded = np.zeros((len(sequences), max(map(len, sequences), default=0), width), dtype=np.float32)
    for row, sequence in zip(padded, sequences, strict=True):
        row[:len(sequence)] = sequence.reshape(len(sequence), width)
    return padded


def split_members(x: np.ndarray, y: np.ndarray, names: Sequence[str], train: Sequence[bool]) -> dict:
    """The members of one interchange file: the samples where `train` (N,) holds, and the rest, in the order given.

    `x` (N, T, width), `y` (N, classes), `names` (N,).
    """
    train, names = np.asarray(train, dtype=bool), np.asarray(names, dtype=np.str_)
    return {'x_train': x[train], 'y_train': y[train], 'x_test': x[~train], 'y_test': y[~train],
            'name_train': names[train], 'name_test': names[~train]}


def write_npz(path: str | os.PathLike, /, **members: np.ndarray) -> None:
    """Writes `members` as `npz_writer` does."""
    with npz_writer(path) as add:
        for name, array in members.items():
            add(name, array.shape, array.dtype, [array])


@contextmanager
def npz_writer(path: str | os.PathLike) -> Iterator[Callable]:
    """Yields `add(name, shape, dtype, chunks)`, which writes one member from its chunks, arrays in C order.

    Members are uncompressed, so that they can be memory-mapped where they lie, never pickled, and may pass 4 GiB; no
    more than a chunk is in memory. Zeros are left out as holes where the file system can: a file of 10 GB that is
    mostly padding takes the room of what it holds. The same members make the same file, byte by byte.

    The file appears under its name only when it is whole and on the disk; a failure leaves nothing behind, and a
    file that had the name before stays as it was. Makes the folder when it is missing.

    Raises:
        UserError: the folder or the file cannot be written, a full disk included.
    """
    with atomic_write(path) as partial, _SparseFile(io.FileIO(partial, 'w'), 1 << 20) as file, \
            zipfile.ZipFile(file, 'w') as archive:
        def add(name: str, shape: tuple, dtype: np.dtype | type, chunks: Iterable[np.ndarray]) -> None:
            dtype, size = np.dtype(dtype), 0
            assert not dtype.hasobject, f'{name}: objects would be pickled'
            with archive.open(zipfile.ZipInfo(f'{name}.npy'), 'w', force_zip64=True) as member:
                npy.write_array_header_1_0(member, {'descr': npy.dtype_to_descr(dtype), 'fortran_order': False,
                                                    'shape': tuple(shape)})
                for chunk in chunks:
                    assert chunk.dtype == dtype, f'{name}: a chunk of {chunk.dtype}'
                    size += chunk.nbytes
                    member.write(_bytes(chunk))
            expected = int(np.prod(shape, dtype=object)) * dtype.itemsize
            assert size == expected, f'{name}: {size} bytes for the {expected} of shape {shape}'

        yield add


def _bytes(array: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8)


class _SparseFile(io.BufferedWriter):
    """Leaves a hole instead of writing a large piece that is all zeros."""

    def write(self, piece) -> int:
        size = memoryview(piece).nbytes
        if size < BLOCK or np.frombuffer(piece, dtype=np.uint8).any():
            return super().write(piece)
        self.seek(size, io.SEEK_CUR)  # what follows, the zip's directory at the end, sets the file's size
        return size
