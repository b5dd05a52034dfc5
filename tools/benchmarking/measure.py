"""Measurements for the benchmark: floating-point operations, peak of the device, kernels of a step, waiting for data.
"""

import argparse
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from data.dataset_file import npz_writer
from model_mamp import MAMP
from model_transformer import ActionTransformer
from tools.benchmarking.plain import use_plain_attention
from tools.reporting.tables import markdown
from util.weights import create_model

EMPTY_SECOND = .82      # fraction of NTU RGB+D 60's clips without a second body
FRAMES = 300


def write_clips(path: Path, clips: int, num_joints: int, num_classes: int, seed: int = 0) -> None:
    """Write a dataset file of random walks like NTU RGB+D 60: 30 to 300 frames (median 75), mostly with one body."""
    width = 2 * num_joints * 3

    def frames(split: int) -> Iterator[np.ndarray]:
        rng = np.random.default_rng([seed, split])
        for _ in range(clips):
            length = int(np.clip(75 * np.exp(rng.normal(0, .4)), 30, FRAMES))
            bodies = 1 + (rng.random() > EMPTY_SECOND)
            clip = np.zeros((FRAMES, 2, num_joints, 3), dtype=np.float32)
            walk = rng.normal(0, .02, (length, bodies, num_joints, 3)).cumsum(axis=0)
            clip[:length, :bodies] = rng.normal(0, .4, (bodies, num_joints, 3)) + walk
            yield clip

    labels = np.eye(num_classes)[np.random.default_rng(seed).integers(0, num_classes, clips)]
    with npz_writer(path) as add:
        for number, split in enumerate(('train', 'test')):
            add(f'x_{split}', (clips, FRAMES, width), np.float32, frames(number))
            add(f'y_{split}', labels.shape, labels.dtype, [labels])


def clip_flops(stage: str, args: argparse.Namespace, bodies: int = 2) -> float:
    """Return the floating-point operations of the matrix products for one clip in a step, as PyTorch counts them.

    A backward pass counts as two forward passes; the frozen encoder of the probe has none. All bodies count, including
    those that are skipped. The stage 'data' has no operations.
    """
    if stage == 'data':
        return 0.
    pretraining = stage == 'pretrain'
    model = create_model(MAMP, vars(args)) if pretraining else create_model(ActionTransformer, vars(args),
                                                                            protocol='linprobe')
    if stage in ('linprobe', 'evaluate'):
        model.eval()        # without patch dropout
    use_plain_attention(model)      # whose products the counter recognises
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad(), FlopCounterMode(display=False) as counter:
        clip = torch.empty(1, 3, args.num_frames, args.num_joints, bodies)
        if pretraining:
            model(clip, args.mask_ratio, args.motion_stride, args.motion_aware_tau)
        else:
            model.features(clip)
    return counter.get_total_flops() * (1. if stage in ('linprobe', 'evaluate') else 3.)


def synchronize(device: torch.device) -> None:
    torch.get_device_module(device).synchronize(device)


def matmul_peak(device: torch.device, precision: str, repeats: int = 7) -> float:
    """Return the FLOP/s of a large matrix product, the best of several, in bf16 or in fp32 with PyTorch's settings."""
    size, products = (8192, 10) if device.type == 'cuda' else (1536, 1)
    dtype, best = torch.bfloat16 if precision == 'bf16' else torch.float32, float('inf')
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    for _ in range(repeats):
        began = time.perf_counter()
        for _ in range(products):
            a @ b
        synchronize(device)
        best = min(best, (time.perf_counter() - began) / products)
    return 2 * size ** 3 / best


class TimedLoader:
    """Forwards the batches of a loader and measures the waiting time after the first `warmup` batches.

    `start`: time.perf_counter() after the warm-up, once the device has finished its work; `waited`: seconds since then;
    `limit`: number of batches to stop after, None for all.
    """

    def __init__(self, loader, warmup: int, device: torch.device):
        self.loader, self.warmup, self.device, self.limit = loader, warmup, device, None

    def __iter__(self) -> Iterator:
        batches, number = iter(self.loader), 0
        while True:
            if number == self.warmup:
                synchronize(self.device)
                self.start, self.waited = time.perf_counter(), 0.
            began = time.perf_counter()
            batch = next(batches, None)
            if batch is None or number == self.limit:
                return
            if number >= self.warmup:
                self.waited += time.perf_counter() - began
            number += 1
            yield batch


def table(rows: list[dict], formats: dict[str, str]) -> str:
    """Return a Markdown table of the columns in `formats`, each in its format; a missing value is a dash."""
    return markdown([name.replace('_', ' ') for name in formats],
                    [[None if row.get(name) is None else format(row[name], formats[name]) for name in formats]
                     for row in rows])
