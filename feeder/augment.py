"""From a batch of raw clips to network input: the training and the evaluation view of it."""

import argparse
from dataclasses import dataclass

import torch

from feeder import transforms
from feeder.dataset import Batch
from feeder.layouts import Layout, find_layout, parents_of
from util.rng import derive_seed, uniform

CROP, ROTATION, MASK = range(3)     # what random numbers are for: each purpose has a stream of its own


@dataclass(frozen=True)
class ClipMaker:
    """Crops, resizes, rotates and derives the stream, on the batch's device; (B, C, W, V, M) out."""

    num_frames: int
    stream: str                             # joint, bone or velocity
    seed: int
    p_interval: tuple[float, float] = (0.5, 1.)
    max_angle: float = 0.3                  # rad, about each axis
    max_turn: float | None = None           # rad, about the second one (upright in Kinect data); None: max_angle
    eval_crop: float = 0.95
    layout: Layout | None = None            # None: told by the number of joints

    @classmethod
    def from_args(cls, args: argparse.Namespace) -> 'ClipMaker':
        """The clip maker of a run; stages without training have no augmentation settings."""
        augmentation = {name: getattr(args, name) for name in ('p_interval', 'max_angle', 'max_turn')
                        if hasattr(args, name)}
        return cls(args.num_frames, args.stream, args.seed, **augmentation,
                   layout=find_layout(args.layout, args.num_joints))

    @property
    def max_angles(self) -> tuple[float, float, float]:
        """Of the training rotation about x, y and z, rad."""
        return self.max_angle, self.max_angle if self.max_turn is None else self.max_turn, self.max_angle

    def train_view(self, batch: Batch, epoch: int, step: int) -> torch.Tensor:
        """Random crop and rotation, a function of (seed, epoch, step, position in the effective batch)."""
        draw = self.uniform(batch, epoch, step, CROP, 2)
        start, length = transforms.random_crop(batch.num_valid, *self.p_interval, draw)
        clips = transforms.resize_crops(batch.frames, batch.first + start, length, self.num_frames)
        draw = self.uniform(batch, epoch, step, ROTATION, 3) * 2 - 1
        angles = torch.stack([one * most for one, most in zip(draw.unbind(1), self.max_angles, strict=True)], dim=1)
        return self.derive_stream(transforms.rotate(clips, angles))

    def eval_view(self, batch: Batch) -> torch.Tensor:
        """The middle 95 % of each clip."""
        start, length = transforms.center_crop(batch.num_valid, self.eval_crop)
        return self.derive_stream(transforms.resize_crops(batch.frames, batch.first + start, length, self.num_frames))

    def derive_stream(self, clips: torch.Tensor) -> torch.Tensor:
        if self.stream == 'bone':
            return transforms.bone(clips, list(self.layout.parents) if self.layout else parents_of(clips.shape[3]))
        if self.stream == 'velocity':
            return transforms.velocity(clips)
        return clips

    def mask_uniform(self, batch: Batch, epoch: int, step: int, num_tokens: int) -> torch.Tensor:
        """The draw that masks each body's tokens, (B·M, L), sample-major as the model folds bodies."""
        num_bodies = batch.frames.shape[1]
        return self.uniform(batch, epoch, step, MASK, num_bodies * num_tokens).view(-1, num_tokens)

    def uniform(self, batch: Batch, epoch: int, step: int, purpose: int, size: int) -> torch.Tensor:
        return uniform(derive_seed(self.seed, epoch, step, purpose), batch.position, size)
