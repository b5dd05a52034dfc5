"""NumPy files: .npy with one clip, .npz dataset files with many.

Axis letters: N clips, T frames, M bodies, V joints.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from data.formats.recording import Options, Recording, choose_layout, valid_frames
from feeder.layouts import LAYOUTS, Layout, default_layout
from feeder.npz import has_member, open_member, open_npy
from util.errors import UserError

MAX_BYTES = 1 << 30     # of one clip; five minutes of two bodies take 5 MB
REMEDY = 'correct the path'


def read_npy(path: Path, layout: Layout | None, options: Options) -> Iterator[Recording]:
    frames = open_npy(path, REMEDY)
    if frames.ndim not in (3, 4) or frames.shape[-1] != 3:
        raise UserError(f'has shape {frames.shape}, expected (frames, joints, 3) or (frames, bodies, joints, 3); write '
                        'the array again')
    if frames.nbytes > MAX_BYTES:
        raise UserError(f'{frames.nbytes / 1e6:,.0f} MB are too large for one clip; cut it')
    frames = frames[:, None] if frames.ndim == 3 else frames
    layout = choose_layout(frames, layout)
    yield Recording(path.stem, options.clean(frames, layout), layout, None)


def read_npz(path: Path, layout: Layout | None, _: Options) -> Iterator[Recording]:
    for split in ('train', 'test'):
        x, y = (open_member(path, f'{kind}_{split}', REMEDY) for kind in 'xy')
        if x.ndim != 3 or x.dtype.kind != 'f' or 0 in x.shape[1:] or y.ndim != 2 or len(y) != len(x) \
                or y.dtype.kind not in 'biuf' or not (np.isin(y, (0, 1)).all() and (y.sum(axis=1) == 1).all()):
            raise UserError(f'x_{split} is {x.dtype} {x.shape}, y_{split} {y.dtype} {y.shape}; expected floating-point '
                            'numbers (N, T, M·V·3) and one-hot labels (N, classes); write the file again')
        own = layout or layout_of_width(x.shape[2])
        if x.shape[2] % (3 * len(own.joints)):
            raise UserError(f'{x.shape[2]} numbers per frame are not whole bodies of {len(own.joints)} joints '
                            f'({own.name}); give its own layout')
        names = [f'{split}_{row}' for row in range(len(x))]
        if has_member(path, f'name_{split}'):
            names = open_member(path, f'name_{split}', REMEDY)
            if names.shape != (len(x),) or names.dtype.kind != 'U':
                raise UserError(f'name_{split} is {names.dtype} {names.shape}, expected {len(x)} names; write the file '
                                'again')
        for row, name in enumerate(names):
            frames = valid_frames(x[row], f'clip {row} of x_{split}')                       # (T, M·V·3)
            yield Recording(str(name), frames.reshape(len(frames), -1, len(own.joints), 3), own, int(y[row].argmax()))


def layout_of_width(width: int) -> Layout:
    """The known layout of which `width` numbers are one or two bodies; no two layouts share such a width."""
    for layout in LAYOUTS:
        if width in (3 * len(layout.joints), 6 * len(layout.joints)):
            return layout
    return default_layout(width // 3)
