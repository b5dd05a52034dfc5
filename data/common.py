"""What the preparation scripts share: the interchange file and the arrays that go into it.

One file a protocol, with the members x_train (N, T, M·V·3) float32, y_train (N, classes) float64 one-hot, x_test,
y_test, and the sample names name_train, name_test (N,) as text. Rows are frames, zero rows after the last one.
"""

import os
from collections.abc import Sequence

import numpy as np

from util.files import replacing


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
    """Writes `members` uncompressed, so that they can be memory-mapped where they lie, and never pickled.

    The file appears under its name only when it is whole and on the disk; a failure leaves nothing behind, and a
    file that had the name before stays as it was. Makes the folder when it is missing.

    Raises:
        UserError: the folder or the file cannot be written, a full disk included.
    """
    with replacing(path) as partial, open(partial, 'wb') as file:
        np.savez(file, allow_pickle=False, **members)
