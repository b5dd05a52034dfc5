"""Samples on disk, between parsing and writing."""

import tempfile
from pathlib import Path
from typing import NamedTuple

import numpy as np

from util.errors import UserError


class Sample(NamedTuple):
    name: str
    label: int              # from 0
    rows: np.ndarray        # (T, width) float32


class Spool:
    """Samples in an unnamed temporary file, which disappears with the process.

    `names`, `labels`, `lengths` and `widths` (N,) are lists; indexing returns the rows (T, width) float32 of a sample.
    """

    def __init__(self, folder: Path):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - open as long as the spool exists
        except OSError as error:
            raise UserError(f'{folder}: cannot be written ({error.strerror}); choose another --out') from error
        self.folder, self._end = folder, 0
        self.names, self.labels, self.lengths, self.widths, self._starts = [], [], [], [], []

    def append(self, sample: Sample) -> None:
        try:
            self._file.seek(self._end)
            self._file.write(np.ascontiguousarray(sample.rows, dtype=np.float32).data)
        except OSError as error:
            raise UserError(f'{self.folder}: cannot be written ({error.strerror}); free up disk space, as samples are '
                            'kept there until all are parsed') from error
        self.names.append(sample.name)
        self.labels.append(sample.label)
        self.lengths.append(len(sample.rows))
        self.widths.append(sample.rows.shape[1])
        self._starts.append(self._end)
        self._end += sample.rows.nbytes

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> np.ndarray:
        length, width = self.lengths[index], self.widths[index]
        self._file.seek(self._starts[index])
        return np.frombuffer(self._file.read(4 * length * width), dtype=np.float32).reshape(length, width)
