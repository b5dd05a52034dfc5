"""Dataset files, CTR-GCN's and its relatives' too: the clips of the splits as stored, without their padding.

Axis letters: N clips, T frames, M bodies, V joints.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from data.formats.recording import Options, Recording
from feeder.layouts import LAYOUTS, Layout
from feeder.npz import has_member, open_member
from util.errors import UserError

REMEDY = 'correct the path'


def read(path: Path, options: Options) -> Iterator[Recording | UserError]:
    for split in [options.split] if options.split else ('train', 'test'):
        x, y = (open_member(path, f'{kind}_{split}', REMEDY) for kind in 'xy')
        if x.ndim != 3 or x.dtype.kind != 'f' or 0 in x.shape[1:] or y.ndim != 2 or len(y) != len(x) \
                or y.dtype.kind not in 'biuf' or not (np.isin(y, (0, 1)).all() and (y.sum(axis=1) == 1).all()):
            raise UserError(f'x_{split} is {x.dtype} {x.shape}, y_{split} {y.dtype} {y.shape}; expected floating-point '
                            'numbers (N, T, M·V·3) and one-hot labels (N, classes); write the file again')
        x, labels = np.asarray(x), y.argmax(axis=1)         # slices of a memmap are slow to make
        layout, num_joints = _find_joints(x.shape[2], options)
        names = [f'{split}_{row}' for row in range(len(x))]
        if has_member(path, f'name_{split}'):
            names = open_member(path, f'name_{split}', REMEDY)
            if names.shape != (len(x),) or names.dtype.kind != 'U':
                raise UserError(f'name_{split} is {names.dtype} {names.shape}, expected {len(x)} names; write the file '
                                'again')
        for row, name in enumerate(names):
            present = np.flatnonzero(x[row].any(axis=1))                    # frames that are not zero
            frames = x[row, :present.max(initial=0) + 1].astype(np.float32)                 # (T, M·V·3)
            if not len(present):
                yield UserError(f'clip {row} of x_{split} has no valid frame: all coordinates are zero')
            elif not np.isfinite(frames).all():
                yield UserError(f'clip {row} of x_{split} has NaN or infinite coordinates; correct or remove it and '
                                'write the file again')
            else:
                yield Recording(path, frames.reshape(len(frames), -1, num_joints, 3), layout, int(labels[row]),
                                str(name))


def _find_joints(width: int, options: Options) -> tuple[Layout | None, int]:
    """The layout of frames of `width` numbers and its number of joints.

    It is the requested one, or else `options.num_joints` if they fit, or else the known one of which `width` numbers
    are one or two bodies. Raises UserError otherwise.
    """
    if options.layout is None and options.num_joints and width % (3 * options.num_joints) == 0:
        return None, options.num_joints
    known = (layout for layout in LAYOUTS if width in (3 * len(layout.joints), 6 * len(layout.joints)))
    layout = options.layout or next(known, None)
    if layout is None:
        raise UserError(f'{width} numbers per frame are not one or two bodies of a known layout; give its own layout')
    if width % (3 * len(layout.joints)):
        raise UserError(f'{width} numbers per frame are not whole bodies of {len(layout.joints)} joints '
                        f'({layout.name}); give its own layout')
    return layout, len(layout.joints)
