"""Dataset files of this project, CTR-GCN and its derivatives: the clips as stored, without padding.

Axis letters: N clips, T frames, M bodies, V joints.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from data.formats.recording import Options, Recording
from feeder.layouts import Layout, known_layouts
from feeder.npz import has_member, open_member
from util.errors import UserError

REMEDY = 'specify a dataset file; save the joints of other files as an .npy array (frames, bodies, joints, 3)'


def read(path: Path, options: Options) -> Iterator[Recording | UserError]:
    for split in [options.split] if options.split else ('train', 'test'):
        x, y = (open_member(path, f'{kind}_{split}', REMEDY) for kind in 'xy')
        if x.ndim != 3 or x.dtype.kind != 'f' or 0 in x.shape[1:] or y.ndim != 2 or len(y) != len(x) \
                or y.dtype.kind not in 'biuf' or not (np.isin(y, (0, 1)).all() and (y.sum(axis=1) == 1).all()):
            raise UserError(f'x_{split} is {x.dtype} {x.shape}, y_{split} {y.dtype} {y.shape}; expected floating-point '
                            'numbers (N, T, M·V·3) and one-hot labels (N, classes); regenerate the file')
        x, labels = np.asarray(x), y.argmax(axis=1)         # slicing a memmap is slow
        planar = has_member(path, 'keypoints')
        layout, num_joints = _find_joints(x.shape[2], options)
        names = [f'{split}_{row}' for row in range(len(x))]
        if has_member(path, f'name_{split}'):
            names = open_member(path, f'name_{split}', REMEDY)
            if names.shape != (len(x),) or names.dtype.kind != 'U':
                raise UserError(f'name_{split} is {names.dtype} {names.shape}, expected {len(x)} names; regenerate the '
                                'file')
        for row, name in enumerate(names):
            present = np.flatnonzero(x[row].any(axis=1))                    # frames that are not zero
            frames = x[row, :present.max(initial=0) + 1].astype(np.float32)                 # (T, M·V·3)
            if not len(present):
                yield UserError(f'clip {row} of x_{split} has no valid frame: all coordinates are zero')
            elif not np.isfinite(frames).all():
                yield UserError(f'clip {row} of x_{split} has NaN or infinite coordinates; correct or remove it, and '
                                'regenerate the file')
            else:
                yield Recording(path, frames.reshape(len(frames), -1, num_joints, 3), layout, int(labels[row]),
                                str(name), planar=planar)


def _find_joints(width: int, options: Options) -> tuple[Layout | None, int]:
    """Return the layout of frames of `width` numbers, and its number of joints.

    This is the requested layout, or else `options.num_joints` if it fits, or else the known layout for which `width`
    numbers are one or two bodies. Raises UserError otherwise.
    """
    if options.layout is None and options.num_joints and width % (3 * options.num_joints) == 0:
        return None, options.num_joints
    known = (layout for layout in known_layouts() if width in (3 * len(layout.joints), 6 * len(layout.joints)))
    layout = options.layout or next(known, None)
    if layout is None:
        raise UserError(f'{width} numbers per frame do not match one or two bodies of any known layout; specify the '
                        'layout of the file')
    if width % (3 * len(layout.joints)):
        raise UserError(f'{width} numbers per frame are not a multiple of 3 × {len(layout.joints)} joints '
                        f'({layout.name}); specify the layout of the file')
    return layout, len(layout.joints)
