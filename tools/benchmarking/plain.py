"""The computation of the authors' code, written out: the baseline of the benchmark's ratios.

It uses fp32; attention step by step, with the L × L matrix in memory; every body is encoded, empty or not; each clip is
cropped, resized and rotated separately on the CPU, in worker processes; the optimiser iterates over the tensors; and
each step synchronizes with the device once, to read the loss. tests/tools/test_plain.py compares it with numbers from
the authors' code.

Axis letters: B clips, T raw frames, W frames after the resize, M bodies, V joints, C = 3 coordinates.
"""

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, Dataset

from feeder.augment import ClipMaker
from feeder.dataset import EvalBatches, SkeletonDataset, TrainBatches
from util.trainer import Trainer


class PlainBatch(NamedTuple):
    clips: torch.Tensor         # (B, C, W, V, M)
    label: torch.Tensor         # (B,)
    distinct: torch.Tensor      # (B·M,) bodies to encode: all of them
    inverse: torch.Tensor       # (B·M,)


def resize(clip: torch.Tensor, window: int) -> torch.Tensor:
    """Resize linearly with half-pixel centres, (C, T, V, M) -> (C, W, V, M)."""
    c, t, v, m = clip.shape
    resized = F.interpolate(clip.permute(0, 2, 3, 1).reshape(1, c * v * m, t), size=window, mode='linear')
    return resized.view(c, v, m, window).permute(0, 3, 1, 2)


def rotate(clip: torch.Tensor, angles: np.ndarray) -> torch.Tensor:
    """Apply Rz·Ry·Rx with three angles in rad to every joint of a clip (C, W, V, M)."""
    (ax, ay, az), cos, sin = angles, np.cos, np.sin
    rx = np.array([[1, 0, 0], [0, cos(ax), sin(ax)], [0, -sin(ax), cos(ax)]])
    ry = np.array([[cos(ay), 0, -sin(ay)], [0, 1, 0], [sin(ay), 0, cos(ay)]])
    rz = np.array([[cos(az), sin(az), 0], [-sin(az), cos(az), 0], [0, 0, 1]])
    rotation = torch.from_numpy((rz @ ry @ rx).astype(np.float32))
    return (rotation @ clip.flatten(1)).view(clip.shape)


class PlainDataset(Dataset):
    """Single clips as network input (C, W, V, M) float32 and their labels; clips are augmented if `train`."""

    def __init__(self, dataset: SkeletonDataset, clips: ClipMaker, train: bool):
        self.dataset, self.clips, self.train = dataset, clips, train

    def __getitem__(self, place: tuple[int, int]) -> tuple[torch.Tensor, int]:
        row, maker = np.array(self.dataset.x[place[0]]), self.clips
        clip = torch.from_numpy(row).view(len(row), self.dataset.num_bodies, self.dataset.num_joints, 3)
        clip = clip.permute(3, 0, 2, 1)                                                         # (C, T, V, M)
        num_valid = max(int((row.sum(axis=1) != 0).sum()), 1)
        if self.train:
            fraction = np.random.uniform(*maker.p_interval)                 # noqa: NPY002 - as in the authors' code
            length = min(max(int(np.floor(num_valid * fraction)), maker.min_crop), num_valid)
            start = np.random.randint(0, num_valid - length + 1)            # noqa: NPY002
            angles = np.random.uniform(-1, 1, 3) * maker.max_angles         # noqa: NPY002
            clip = rotate(resize(clip[:, start:start + length], maker.num_frames), angles)
        else:
            bias = int((1 - maker.eval_crop) * num_valid / 2)
            clip = resize(clip[:, bias:num_valid - bias], maker.num_frames)
        return maker.derive_stream(clip[None])[0], int(self.dataset.label[place[0]])


class PlainClips(ClipMaker):
    """Forwards finished clips; PyTorch's generator draws the masks."""

    def train_view(self, batch: PlainBatch, epoch: int, step: int) -> torch.Tensor:
        return batch.clips

    def eval_view(self, batch: PlainBatch) -> torch.Tensor:
        return batch.clips

    def mask_uniform(self, batch: PlainBatch, epoch: int, step: int, num_tokens: int) -> torch.Tensor:
        return torch.rand(len(batch.clips) * batch.clips.shape[4], num_tokens, device=batch.clips.device)


class PlainLoader:
    """Batches on `device` from clips that worker processes make one by one."""

    def __init__(self, dataset: SkeletonDataset, batches: TrainBatches | EvalBatches, clips: ClipMaker, train: bool,
                 num_workers: int, device: torch.device):
        self.device = device
        self.loader = DataLoader(PlainDataset(dataset, clips, train), batch_sampler=batches, num_workers=num_workers,
                                 pin_memory=device.type == 'cuda', persistent_workers=num_workers > 0)

    def __iter__(self):
        for clips, label in self.loader:
            bodies = torch.arange(len(clips) * clips.shape[4])
            yield PlainBatch(*(field.to(self.device) for field in (clips, label, bodies, bodies)))


def use_plain_attention(model: nn.Module) -> None:
    """Compute attention as separate matrix products and a softmax."""
    for module in model.modules():
        if hasattr(module, 'fused_attn'):
            module.fused_attn = False


def make_plain(trainer: Trainer, dataset: SkeletonDataset) -> None:
    """Change a trainer in fp32 to the computation of the authors' code."""
    args, clips = trainer.args, trainer.clips
    trainer.clips = PlainClips(clips.num_frames, clips.stream, clips.seed, clips.p_interval, clips.max_angle,
                               clips.max_turn, clips.min_crop)
    trainer.loader = PlainLoader(dataset, trainer.batches, clips, True, args.num_workers, trainer.world.device)
    use_plain_attention(trainer.model)
    for group in trainer.optimizer.param_groups:
        group['fused'], group['foreach'] = None, False
    trainer.save_if_due = lambda epoch, step: trainer.loss_sum.item()       # synchronizes once per step
