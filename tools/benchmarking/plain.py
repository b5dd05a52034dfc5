"""The authors' way of computing, written out: what the benchmark's ratios are ratios to.

fp32; attention step by step, the whole L × L matrix in memory; every body encoded, empty or not; each clip cropped,
resized and rotated by itself, on the CPU, in the loader's processes; an optimiser that goes from tensor to tensor; and
one wait for the device every step, to read the loss. The numbers are the same: `tests/tools/test_plain.py` holds it to
those
of the authors' program.

Axis letters: T raw frames, W frames after the resize, M bodies, V joints, C = 3 coordinates.
"""

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, Dataset, Sampler

from feeder.augment import ClipMaker
from feeder.dataset import SkeletonDataset
from util.trainer import Trainer


class PlainBatch(NamedTuple):
    clips: torch.Tensor     # (B, C, W, V, M)
    label: torch.Tensor     # (B,)

    def to(self, device: torch.device) -> 'PlainBatch':
        return PlainBatch(self.clips.to(device, non_blocking=True), self.label.to(device, non_blocking=True))


def resize(clip: torch.Tensor, window: int) -> torch.Tensor:
    """(C, T, V, M) -> (C, W, V, M), linear, half-pixel centres."""
    c, t, v, m = clip.shape
    flat = clip.permute(0, 2, 3, 1).reshape(1, c * v * m, t)
    resized = F.interpolate(flat, size=window, mode='linear', align_corners=False)
    return resized.view(c, v, m, window).permute(0, 3, 1, 2)


def rotate(clip: torch.Tensor, angles: np.ndarray) -> torch.Tensor:
    """(C, W, V, M), three angles in rad -> Rz·Ry·Rx applied to every joint."""
    (ax, ay, az), cos, sin = angles, np.cos, np.sin
    rx = np.array([[1, 0, 0], [0, cos(ax), sin(ax)], [0, -sin(ax), cos(ax)]])
    ry = np.array([[cos(ay), 0, -sin(ay)], [0, 1, 0], [sin(ay), 0, cos(ay)]])
    rz = np.array([[cos(az), sin(az), 0], [-sin(az), cos(az), 0], [0, 0, 1]])
    rotation = torch.from_numpy((rz @ ry @ rx).astype(np.float32))
    return (rotation @ clip.flatten(1)).view(clip.shape)


class PlainDataset(Dataset):
    """Single clips as network input: (clip (C, W, V, M) float32, label). `train` says which view of them."""

    def __init__(self, dataset: SkeletonDataset, clips: ClipMaker, train: bool):
        self.dataset, self.clips, self.train = dataset, clips, train

    def __getitem__(self, place: tuple[int, int]) -> tuple[torch.Tensor, int]:
        row = np.array(self.dataset.x[place[0]])
        clip = torch.from_numpy(row).view(len(row), self.dataset.num_bodies, self.dataset.num_joints, 3)
        clip = clip.permute(3, 0, 2, 1)                                                         # (C, T, V, M)
        valid = max(int((row.sum(axis=1) != 0).sum()), 1)
        if self.train:
            share = np.random.uniform(*self.clips.p_interval)                                   # noqa: NPY002 - theirs
            length = min(max(int(np.floor(valid * share)), 64), valid)
            start = np.random.randint(0, valid - length + 1)                                    # noqa: NPY002
            clip = rotate(resize(clip[:, start:start + length], self.clips.num_frames),
                          np.random.uniform(-1, 1, 3) * self.clips.max_angles)                  # noqa: NPY002
        else:
            bias = int((1 - self.clips.eval_crop) * valid / 2)
            clip = resize(clip[:, bias:valid - bias], self.clips.num_frames)
        return self.clips.derive_stream(clip[None])[0], int(self.dataset.label[place[0]])


class PlainClips(ClipMaker):
    """Clips come ready from the loader; the mask is drawn by PyTorch's own generator."""

    def train_view(self, batch: PlainBatch, epoch: int, step: int) -> torch.Tensor:
        return batch.clips

    def eval_view(self, batch: PlainBatch) -> torch.Tensor:
        return batch.clips

    def mask_uniform(self, batch: PlainBatch, epoch: int, step: int, num_tokens: int) -> torch.Tensor:
        return torch.rand(len(batch.clips) * batch.clips.shape[4], num_tokens, device=batch.clips.device)


def collate(samples: list[tuple[torch.Tensor, int]]) -> PlainBatch:
    clips, labels = zip(*samples, strict=True)
    return PlainBatch(torch.stack(clips), torch.tensor(labels))


def plain_loader(dataset: SkeletonDataset, batches: Sampler, clips: ClipMaker, train: bool, num_workers: int,
                 device: torch.device) -> DataLoader:
    """One clip after the other, put together at the end."""
    return DataLoader(PlainDataset(dataset, clips, train), batch_sampler=batches, num_workers=num_workers,
                      pin_memory=device.type == 'cuda', collate_fn=collate, persistent_workers=num_workers > 0)


def set_plain(model: nn.Module) -> None:
    """Attention step by step, and every body encoded, empty or a copy."""
    set_fused_attention(model, False)
    model.equal_bodies_once = False


def set_fused_attention(model: nn.Module, fused: bool) -> None:
    """Attention in one kernel, or its matrix products and softmax one by one."""
    for module in model.modules():
        if hasattr(module, 'fused_attn'):
            module.fused_attn = fused


def make_plain(trainer: Trainer, dataset: SkeletonDataset) -> None:
    """Turns a trainer (fp32) to the authors' way."""
    args, clips = trainer.args, trainer.clips
    trainer.clips = PlainClips(clips.num_frames, clips.stream, clips.seed, clips.p_interval, clips.max_angle,
                               clips.max_turn)
    trainer.loader = plain_loader(dataset, trainer.batches, clips, True, args.num_workers, trainer.world.device)
    set_plain(trainer.raw_model)
    for group in trainer.optimizer.param_groups:
        group['fused'], group['foreach'] = None, False
    backward = trainer.backward

    def backward_and_look(loss: torch.Tensor) -> None:
        backward(loss)
        loss.item()
    trainer.backward = backward_and_look
