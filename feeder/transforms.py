"""Crop, resize, rotate, bone, velocity: pure tensor operations on whole batches, on the batch's device.

Axis letters: B clips, C coordinates, F recorded frames of all clips, W frames after the resize, V joints, M bodies.
"""

from collections.abc import Sequence

import torch


def center_crop(num_valid: torch.Tensor, p: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Select the central fraction p of each clip: number of frames (B,) -> start (B,), length (B,), all integers."""
    bias = ((1 - p) * num_valid.double() / 2).long()
    return bias, num_valid - 2 * bias


def random_crop(num_valid: torch.Tensor, p_min: float, p_max: float, uniform: torch.Tensor,
                min_frames: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Select a random fraction U[p_min, p_max] of each clip, but at least `min_frames`, or all if it is shorter.

    num_valid (B,) integers, uniform (B, 2) in [0, 1) for fraction and start -> start (B,), length (B,).
    """
    fraction, place = uniform.double().unbind(1)
    fraction = p_min + (p_max - p_min) * fraction
    length = (num_valid * fraction).floor().long().clamp(min=min_frames).minimum(num_valid)
    start = (place * (num_valid - length + 1)).long()
    return start, length


def resize_crops(frames: torch.Tensor, begin: torch.Tensor, length: torch.Tensor, window: int) -> torch.Tensor:
    """Resize each crop to `window` frames by linear interpolation, with half-pixel centres and clamped edges.

    frames (F, M, V, C), begin and length (B,) integers, 0 <= begin and begin + length <= F -> (B, C, window, V, M).
    """
    centre = torch.arange(window, device=frames.device, dtype=torch.float32) + 0.5
    source = (centre * (length.float() / window)[:, None] - 0.5).clamp(min=0)       # (B, W), within the crop
    left = source.floor().long().minimum(length[:, None] - 1)
    right = (left + 1).minimum(length[:, None] - 1)
    weight = (source - left)[:, :, None, None, None]
    before, after = (frames[begin[:, None] + index] for index in (left, right))     # (B, W, M, V, C)
    return (before * (1 - weight) + after * weight).permute(0, 4, 1, 3, 2)


def rotate(clips: torch.Tensor, angles: torch.Tensor) -> torch.Tensor:
    """Rotate each clip by Rz·Ry·Rx: clips (B, C, W, V, M), angles (B, 3) in rad -> like clips.

    Computed elementwise, because a matrix product in TF32 would round the coordinates to 10 bits.
    """
    (cx, cy, cz), (sx, sy, sz) = angles.cos().unbind(1), angles.sin().unbind(1)
    rows = (cz * cy, sz * cx + cz * sy * sx, sz * sx - cz * sy * cx,
            -sz * cy, cz * cx - sz * sy * sx, cz * sx + sz * sy * cx,
            sy, -cy * sx, cy * cx)
    rotation = torch.stack(rows, dim=1).view(-1, 3, 3, 1, 1, 1)
    return sum(rotation[:, :, axis] * clips[:, axis, None] for axis in range(3))


def bone(clips: torch.Tensor, parents: Sequence[int]) -> torch.Tensor:
    """Subtract from each joint its parent: clips (B, C, W, V, M), V indices of parents -> like clips."""
    return clips - torch.stack([clips[:, :, :, parent] for parent in parents], dim=3)


def velocity(clips: torch.Tensor) -> torch.Tensor:
    """Compute x[t + 1] − x[t], 0 in the last frame: clips (B, C, W, V, M) -> like clips."""
    moved = torch.zeros_like(clips)
    moved[:, :, :-1] = clips[:, :, 1:] - clips[:, :, :-1]
    return moved
