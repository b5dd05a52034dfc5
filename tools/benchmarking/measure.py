"""What the benchmark measures with: made-up clips, a loader that is watched, peaks of memory and of matrix products."""

import itertools
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch

from data.common import npz_writer
from tools.reporting.tables import markdown
from util.attention import KERNELS, time_kernels

EMPTY_SECOND = .82      # of NTU RGB+D 60's clips have no second body: 41 % of all bodies are empty
FRAMES = 300


def write_clips(path: Path, clips: int, num_joints: int, num_classes: int, seed: int = 0) -> None:
    """An interchange file like NTU RGB+D 60's: clips of 30 to 300 frames (median 75), most of them with one body."""
    width = 2 * num_joints * 3

    def frames(part: int) -> Iterator[np.ndarray]:
        rng = np.random.default_rng([seed, part])
        for _ in range(clips):
            length = int(np.clip(75 * np.exp(rng.normal(0, .4)), 30, FRAMES))
            bodies = 1 + (rng.random() > EMPTY_SECOND)
            clip = np.zeros((FRAMES, 2, num_joints, 3), dtype=np.float32)
            walk = rng.normal(0, .02, (length, bodies, num_joints, 3)).cumsum(axis=0)
            clip[:length, :bodies] = rng.normal(0, .4, (bodies, num_joints, 3)) + walk
            yield clip[:length]
            yield clip[length:]

    labels = np.eye(num_classes)[np.random.default_rng(seed).integers(0, num_classes, clips)]
    with npz_writer(path) as add:
        for part, split in enumerate(('train', 'test')):
            add(f'x_{split}', (clips, FRAMES, width), np.float32, frames(part))
            add(f'y_{split}', labels.shape, labels.dtype, [labels])


class Watched:
    """A loader, how long its reader waited for batches (`waited`, in seconds), and how many it may have (`most`)."""

    def __init__(self, loader):
        self.loader, self.waited, self.most = loader, 0., None

    def __iter__(self) -> Iterator:
        began, batches = time.perf_counter(), itertools.islice(self.loader, self.most)
        for batch in batches:
            self.waited += time.perf_counter() - began
            yield batch
            began = time.perf_counter()


@contextmanager
def peak_memory(device: torch.device) -> Iterator[SimpleNamespace]:
    """`bytes`: the most device memory that tensors took inside the context; None on a CPU, which does not count it."""
    peak = SimpleNamespace(bytes=None)
    if device.type == 'cuda':
        torch.cuda.reset_peak_memory_stats(device)
    yield peak
    if device.type == 'cuda':
        peak.bytes = torch.cuda.max_memory_allocated(device)


def matmul_peak(device: torch.device, precision: str, repeats: int = 7) -> float:
    """FLOP/s of a large matrix product, the best of several: what the device can do at most.

    In `precision` bf16, or otherwise in fp32 as PyTorch is set to compute it (util.precision.Precision sets tf32).
    """
    size = 8192 if device.type == 'cuda' else 1536
    a, b = (torch.randn(size, size, device=device, dtype=torch.bfloat16 if precision == 'bf16' else torch.float32)
            for _ in range(2))
    best = float('inf')
    for _ in range(repeats):
        began = time.perf_counter()
        for _ in range(10 if device.type == 'cuda' else 1):
            a @ b
        if device.type == 'cuda':
            torch.cuda.synchronize(device)
        best = min(best, (time.perf_counter() - began) / (10 if device.type == 'cuda' else 1))
    return 2 * size ** 3 / best


def attention_rows(device: torch.device, shape: tuple[int, int, int, int]) -> list[dict]:
    """What each attention kernel takes at `shape` (B, H, L, E), for `table`; those that do not run here have dashes."""
    names = [*KERNELS, 'blocked'] if device.type == 'cpu' else list(KERNELS)
    seconds = {column: time_kernels(names, device, dtype, shape)
               for column, dtype in (('fp32_ms', torch.float32), ('bf16_ms', torch.bfloat16))}
    return [{'kernel': name, **{column: 1000 * took[name] if math.isfinite(took[name]) else None
                                for column, took in seconds.items()}} for name in names]


def table(rows: Sequence[dict], formats: dict[str, str]) -> str:
    """Markdown; `formats`: column to format, in order; a missing value is a dash."""
    return markdown([name.replace('_', ' ') for name in formats],
                    [[None if row.get(name) is None else format(row[name], formats[name]) for name in formats]
                     for row in rows])
