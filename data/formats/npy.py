"""NumPy arrays: one recording (frames, joints, 3) or (frames, bodies, joints, 3); 2 for 2D keypoints without scores.

An array with more bodies than frames is read as (bodies, frames, joints, 3).
"""

from collections.abc import Iterator
from pathlib import Path

from data.formats.recording import Options, Recording, make_recording
from feeder.npz import open_npy
from util.errors import UserError

MAX_BYTES = 1 << 30     # of one recording; five minutes of two bodies take 5 MB
MAX_BODIES = 20


def read(path: Path, options: Options) -> Iterator[Recording]:
    frames = open_npy(path, 'correct the path')
    if frames.ndim not in (3, 4) or frames.shape[-1] not in (2, 3):
        raise UserError(f'has shape {frames.shape}, expected (frames, joints, 3) or (frames, bodies, joints, 3); save '
                        'the array in one of these shapes')
    if frames.nbytes > MAX_BYTES:
        raise UserError(f'is {frames.nbytes / 1e6:,.0f} MB, too large for one recording; split it into several files')
    if frames.ndim == 4 and (frames.shape[0], frames.shape[3]) == (3, 2):
        raise UserError(f'has shape {frames.shape}, probably (coordinates, frames, joints, bodies); save it as '
                        '(frames, bodies, joints, 3)')
    frames, notes = frames[:, None] if frames.ndim == 3 else frames, ()                     # (T, M, V, 3)
    if frames.shape[1] > len(frames) > 0:
        frames = frames.swapaxes(0, 1)
        notes = ('read as (bodies, frames, joints, 3), with more bodies than frames otherwise (save it as (frames, '
                 'bodies, joints, 3))',)
    if frames.shape[1] > MAX_BODIES:
        raise UserError(f'has {frames.shape[1]} bodies in {len(frames)} frames; save the array as (frames, bodies, '
                        f'joints, 3) with up to {MAX_BODIES} bodies')
    yield make_recording(path, frames, options, notes=notes)
