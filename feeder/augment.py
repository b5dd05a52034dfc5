"""Conversion of a batch of recorded clips to network input, for training (augmented) and for evaluation.

Axis letters: B clips, C coordinates, W frames after the resize, V joints, M bodies, L tokens of a body.
"""

import argparse
from dataclasses import dataclass

import torch

from feeder import transforms
from feeder.dataset import Batch
from feeder.layouts import Layout, default_layout, find_layout
from util.rng import derive_seed, uniform

CROP, ROTATION, MASK = range(3)     # uses of random numbers; each has its own seed


@dataclass(frozen=True)
class ClipMaker:
    """Crops, resizes and rotates clips and derives their stream, on the batch's device."""

    num_frames: int                         # W
    stream: str                             # joint, bone or velocity
    seed: int
    p_interval: tuple[float, float] = (0.5, 1.)     # length of a training crop, as a fraction of the clip
    max_angle: float = 0.3                  # rad, of the training rotation about each axis
    max_turn: float | None = None           # rad, about the second axis (vertical in Kinect data); None: max_angle
    min_crop: int = 64                      # frames that a training crop has at least
    eval_crop: float = 0.95                 # length of the evaluation crop, as a fraction of the clip
    layout: Layout | None = None            # None: chosen by the number of joints in the clips
    keypoints: str = '3d'                   # 2d: the third coordinate is a score, which is not rotated

    @classmethod
    def from_args(cls, args: argparse.Namespace) -> 'ClipMaker':
        """Create the clip maker of a run; stages without training have no augmentation settings."""
        augmentation = {name: getattr(args, name) for name in ('p_interval', 'min_crop', 'max_angle', 'max_turn')
                        if hasattr(args, name)}
        return cls(args.num_frames, args.stream, args.seed, **augmentation,
                   layout=find_layout(args.layout, args.num_joints), keypoints=getattr(args, 'keypoints', '3d'))

    @property
    def max_angles(self) -> tuple[float, float, float]:
        """Largest angles (rad) of the training rotation about x, y and z; 2D keypoints are rotated in the image."""
        if self.keypoints == '2d':
            return 0., 0., self.max_angle
        return self.max_angle, self.max_angle if self.max_turn is None else self.max_turn, self.max_angle

    def train_view(self, batch: Batch, epoch: int, step: int) -> torch.Tensor:
        """Return (B, C, W, V, M), randomly cropped and rotated; the draw depends on seed, epoch, step and position."""
        draw = self.uniform(batch, epoch, step, CROP, 2)
        start, length = transforms.random_crop(batch.num_valid, *self.p_interval, draw, self.min_crop)
        clips = transforms.resize_crops(batch.frames, batch.first + start, length, self.num_frames)
        draw = self.uniform(batch, epoch, step, ROTATION, 3) * 2 - 1
        angles = torch.stack([scale * largest for scale, largest in zip(draw.unbind(1), self.max_angles, strict=True)],
                             dim=1)
        return self.derive_stream(transforms.rotate(clips, angles))

    def eval_view(self, batch: Batch) -> torch.Tensor:
        """Return the central part of each clip, 95 % by default, as (B, C, W, V, M)."""
        start, length = transforms.center_crop(batch.num_valid, self.eval_crop)
        return self.derive_stream(transforms.resize_crops(batch.frames, batch.first + start, length, self.num_frames))

    def derive_stream(self, clips: torch.Tensor) -> torch.Tensor:
        """Derive the stream from joint clips (B, C, W, V, M); raises UserError for bones of an unknown layout."""
        if self.stream == 'joint':
            return clips
        if self.stream == 'bone':
            stream = transforms.bone(clips, (self.layout or default_layout(clips.shape[3])).parents)
        else:
            stream = transforms.velocity(clips)
        return torch.cat([stream[:, :2], clips[:, 2:]], dim=1) if self.keypoints == '2d' else stream

    def mask_uniform(self, batch: Batch, epoch: int, step: int, num_tokens: int) -> torch.Tensor:
        """Return the random numbers (B·M, L) from which the mask is drawn, in the order of the model's bodies."""
        num_bodies = batch.frames.shape[1]
        return self.uniform(batch, epoch, step, MASK, num_bodies * num_tokens).view(-1, num_tokens)

    def uniform(self, batch: Batch, epoch: int, step: int, use: int, size: int) -> torch.Tensor:
        """Return random numbers (B, size) in [0, 1), determined by seed, epoch, step, use and batch.position."""
        return uniform(derive_seed(self.seed, epoch, step, use), batch.position, size)
