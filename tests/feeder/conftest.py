"""Small dataset files."""

import numpy as np
import pytest
from hypothesis import HealthCheck, settings

from data.dataset_file import one_hot, write_npz

ANY = settings(derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck))
V, M, T = 5, 2, 12      # joints, bodies and frames of these files


def make_members(clips=7, frames=T, width=M * V * 3, classes=3, seed=0) -> dict[str, np.ndarray]:
    """All members of a file; clip i has 1 + (5 i + 3) mod `frames` valid frames."""
    rng = np.random.default_rng(seed)
    members = {}
    for split, count in (('train', clips), ('test', 4)):
        x = rng.standard_normal((count, frames, width)).astype(np.float32)
        for i, clip in enumerate(x):
            clip[1 + (5 * i + 3) % frames:] = 0
        members[f'x_{split}'], members[f'y_{split}'] = x, one_hot(np.arange(count) % classes, classes)
    return members


def write_splits(path, x, classes=3):
    """Write a file with the clips `x` in both splits."""
    y = one_hot(np.arange(len(x)) % classes, classes)
    write_npz(path, x_train=x, y_train=y, x_test=x, y_test=y)
    return path


@pytest.fixture
def path(tmp_path):
    write_npz(tmp_path / 'clips.npz', **make_members())
    return tmp_path / 'clips.npz'


def split_clips(batch):
    """The frames (n, M, V, C) of each clip of a batch."""
    return [batch.frames[begin:begin + n] for begin, n in zip(batch.first, batch.num_valid, strict=True)]
