"""NumPy arrays: one recording (frames, joints, 3) or (frames, bodies, joints, 3); 2 for 2D keypoints without scores.

`bodies_first` selects (bodies, frames, joints, 3); by default, this is the order if the other one had more bodies than
frames.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

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
    frames, notes = _order_axes(frames, options.bodies_first)
    if frames.shape[1] > MAX_BODIES:
        raise UserError(f'has {frames.shape[1]} bodies in {len(frames)} frames; save the array as (frames, bodies, '
                        f'joints, 3) with up to {MAX_BODIES} bodies')
    yield make_recording(path, frames, options, notes=notes)


def _order_axes(frames: np.ndarray, bodies_first: bool | None) -> tuple[np.ndarray, tuple[str, ...]]:
    """Return bodies (T, M, V, C), and a note on the order of axes if it is assumed and another one is possible."""
    if frames.ndim == 3:
        return frames[:, None], ()
    if bodies_first is not None:
        return frames.swapaxes(0, 1) if bodies_first else frames, ()
    if frames.shape[1] > len(frames) > 0:
        return frames.swapaxes(0, 1), ('read as (bodies, frames, joints, 3), with more bodies than frames otherwise; '
                                       '--no-bodies_first selects the other order',)
    return frames, ('read as (frames, bodies, joints, 3); --bodies_first selects the other order',) \
        if 1 < len(frames) <= MAX_BODIES and frames.shape[1] > 1 else ()
