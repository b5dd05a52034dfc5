"""Writing of dataset files: one .npz per protocol.

Members: x_train (N, T, M·V·3) float32, y_train (N, classes) float64 one-hot, x_test, y_test, and the names of the
samples name_train, name_test (N,). Rows of a clip are frames; zero rows follow the last frame.
"""

import io
import os
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
from numpy.lib import format as npy

from util.files import atomic_write

BLOCK = 4096  # bytes; the unit of holes in file systems


def one_hot(labels: Sequence[int], classes: int) -> np.ndarray:
    """Convert labels 0 .. classes - 1 to rows (N, classes) float64 with a single 1."""
    labels = np.asarray(labels, dtype=np.int64)
    assert ((labels >= 0) & (labels < classes)).all(), f'a label lies outside 0..{classes - 1}'
    rows = np.zeros((len(labels), classes))
    rows[np.arange(len(labels)), labels] = 1
    return rows


def write_npz(path: str | os.PathLike, /, **members: np.ndarray) -> None:
    """Write `members` to an npz file, as `npz_writer` does."""
    with npz_writer(path) as add:
        for name, array in members.items():
            add(name, array.shape, array.dtype, [array])


@contextmanager
def npz_writer(path: str | os.PathLike) -> Iterator[Callable]:
    """Yield `add(name, shape, dtype, chunks)`, which writes a member from arrays that together fill it in C order.

    Members are stored uncompressed, so that they can be memory-mapped, and may exceed 4 GiB; only one chunk is in
    memory at a time. Runs of zeros become holes if the file system supports them, so that padding takes no space on
    disk. The same members give the same file. The file is written atomically and its folder is created; raises
    UserError if either cannot be written.
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
                    member.write(np.ascontiguousarray(chunk).reshape(-1).view(np.uint8))
            expected = int(np.prod(shape, dtype=object)) * dtype.itemsize
            assert size == expected, f'{name}: {size} bytes, but shape {shape} needs {expected}'

        yield add


class _SparseFile(io.BufferedWriter):
    """A file that skips large pieces of zeros instead of writing them."""

    def write(self, piece) -> int:
        size = memoryview(piece).nbytes
        if size < BLOCK or np.frombuffer(piece, dtype=np.uint8).any():
            return super().write(piece)
        self.seek(size, io.SEEK_CUR)  # the zip's directory, written last, sets the size of the file
        return size
