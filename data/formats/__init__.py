"""Readers that convert recordings in common file formats to one representation.

| format | suffix | content | prepared as for training |
|---|---|---|---|
| ntu | .skeleton | NTU RGB+D text | actors selected and centred, as in prepare_ntu.py |
| pku | .txt | PKU-MMD text, a whole video | centred unless `centre` is False |
| nwucla | .json | Northwestern-UCLA `all_sqe` | centred, as in prepare_nwucla.py |
| nwucla | .json | 2D keypoints of OpenPose, AlphaPose, COCO | by `recording.clean_keypoints` |
| openpose | (folder) | OpenPose's `*_keypoints.json`, one per frame | by `recording.clean_keypoints` |
| npy | .npy | array (T, V, 3) or (T, M, V, 3) | by `recording.clean` |
| bvh | .bvh | motion capture | forward kinematics, then `recording.clean` |
| npz | .npz | dataset file of this project, CTR-GCN or its derivatives | as stored |
| pyskl | .pkl | PYSKL annotations with 3D keypoints (M, T, V, 3) | by `recording.clean` |

A reader is a function (path, options) that yields recordings. If only some clips of a file are damaged, it yields an
error in place of each of them. To add a format, write a module with a reader and register it in FORMATS.

Axis letters: T frames, M bodies, V joints.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from data.formats import bvh, keypoints, npy, npz, ntu, nwucla, pku, pyskl
from data.formats.recording import Options, Recording
from feeder.layouts import Layout, read_layout
from util.errors import UserError


class Format(NamedTuple):
    suffixes: tuple[str, ...]
    read: Callable[[Path, Options], Iterator[Recording | UserError]]


FORMATS = {
    'ntu': Format(('.skeleton',), ntu.read),
    'pku': Format(('.txt',), pku.read),
    'nwucla': Format(('.json',), nwucla.read),
    'openpose': Format((), keypoints.read_folder),
    'npy': Format(('.npy',), npy.read),
    'bvh': Format(('.bvh',), bvh.read),
    'npz': Format(('.npz',), npz.read),
    'pyskl': Format(('.pkl', '.pickle'), pyskl.read),
}


def suffixes(name: str | None = None) -> tuple[str, ...]:
    """Return the file suffixes of one format, or of all."""
    return tuple(suffix for key, entry in FORMATS.items() if name in (None, key) for suffix in entry.suffixes)


def format_from_suffix(path: Path) -> str:
    """Return the name of a file's format from its suffix; raises UserError for an unknown suffix."""
    if keypoints.is_keypoint_folder(path):
        return 'openpose'
    for name, entry in FORMATS.items():
        if path.suffix.lower() in entry.suffixes:
            return name
    raise UserError(f'{path}: unknown file suffix (known: {", ".join(suffixes())}); convert the file, for example to '
                    'an .npy array (frames, bodies, joints, 3), or set its format')


def read_recordings(path: str | Path, layout: Layout | str | None = None, name: str | None = None, scale: float = 1.,
                    centre: bool = True, split: str | None = None, num_joints: int | None = None,
                    default_layout: Layout | None = None, planar: bool = False,
                    bodies_first: bool | None = None) -> Iterator[Recording | UserError]:
    """Yield the recordings in a file; a damaged one in a file of many is replaced by a UserError.

    Args:
        path: the file; nothing in it is executed.
        layout: joint layout, its name or YAML file; by default from the format or the number of joints.
        name: a key of FORMATS; by default from the suffix.
        scale: metres per unit of npy, bvh and pyskl files; the other formats are in metres.
        centre: move bodies to the origin; ntu and nwucla files are always centred, npz files are used as stored.
        split: 'train' or 'test' in npz files; by default both.
        num_joints: joints per body in npz files, if the layout is not known.
        default_layout: layout of npy and pyskl files with as many joints, if `layout` is None.
        planar: three numbers per joint in npy files are x, y in pixels and a score, not x, y, z.
        bodies_first: npy files have the axes (M, T, V, 3) or not; by default, what their shape suggests.

    Raises:
        UserError: the file cannot be read, is damaged or has another format, or its joints do not fit the layout.
    """
    path = Path(path)
    name = format_from_suffix(path) if name is None else name
    if name not in FORMATS:
        raise UserError(f'unknown format {name!r:.40}; choose one of {", ".join(FORMATS)}')
    layout = read_layout(layout) if isinstance(layout, str | Path) else layout
    try:
        recording = None
        options = Options(layout, scale, centre, split, num_joints, default_layout, planar, bodies_first)
        for recording in FORMATS[name].read(path, options):
            yield _locate(recording, path) if isinstance(recording, UserError) else recording
        if recording is None:
            raise UserError('has no clips')
    except UserError as error:
        raise _locate(error, path) from error


def _locate(error: UserError, path: Path) -> UserError:
    message = str(error).removeprefix(f'{path}: ').removeprefix(f'{path.name}: ')
    remedy = '' if '; ' in message else '; correct the file or omit it'
    return UserError(f'{path}: {message}{remedy}')


def read_recording(path: str | Path, layout: Layout | str | None = None, name: str | None = None, scale: float = 1.,
                   centre: bool = True, planar: bool = False, bodies_first: bool | None = None) -> Recording:
    """Read a file with one recording; arguments and errors as for `read_recordings`."""
    recordings = read_recordings(path, layout, name, scale, centre, planar=planar, bodies_first=bodies_first)
    recording = next(recordings)
    if isinstance(recording, UserError):
        raise recording
    if next(recordings, None) is not None:
        raise UserError(f'{path}: contains several clips; use a file with one clip (for PYSKL, data/prepare_pyskl.py)')
    return recording
