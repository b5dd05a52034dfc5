"""Recordings of any kind a practitioner has, one shape for all of them.

| format | suffix | what it is | prepared here as for training |
|---|---|---|---|
| ntu | .skeleton | NTU RGB+D's text | actors chosen and centred, as prepare_ntu.py does |
| pku | .txt | PKU-MMD's text, a whole video | centred unless `centre` is False, as in prepare_pku.py; not cut |
| nwucla | .json | Northwestern-UCLA's `all_sqe` | centred, as prepare_nwucla.py does |
| npy | .npy | an array (T, V, 3) or (T, M, V, 3) | `tidy` |
| bvh | .bvh | motion capture | forward kinematics (data/bvh.py), `tidy` |
| npz | .npz | many clips: the interchange file, CTR-GCN's and its relatives' included | as they stand there |
| pyskl | .pkl | many clips: PYSKL's annotations with 3D keypoints (M, T, V, 3) | `tidy` |

CTR-GCN's npz differs from ours in one thing: it has no sample names; its clips are called train_0, train_1, ….

T frames, M bodies, V joints.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from data.bvh import read_bvh
from data.ntu_actors import to_rows
from data.ntu_text import FARTHEST, facts_of
from data.ntu_text import parse_skeleton as parse_ntu
from data.pipeline import Source
from data.plain_pickle import PickledArray, read_pickle
from data.prepare_nwucla import parse_clip
from data.prepare_pku import parse_skeleton as parse_pku
from feeder.layouts import LAYOUTS, Layout, default_layout, known_layout, read_layout, shared_names
from feeder.npz import has_member, open_member, open_npy
from util.errors import UserError

LARGEST = 1 << 30   # bytes of one clip's array; five minutes of two bodies take five million
METRES = ('ntu', 'pku', 'nwucla', 'npz')    # formats that are, by what they are
REMEDY = 'correct the path'
SMALLEST, TALLEST = 0.2, 5.     # metres, of a body that needs no remark


class How(NamedTuple):
    """What the user says of files that do not say it themselves; see `read_recordings`."""

    scale: float
    centre: bool

    def tidy(self, frames: np.ndarray, layout: Layout | None) -> np.ndarray:
        return tidy(frames, layout, self.scale, self.centre)


class Recording(NamedTuple):
    name: str
    frames: np.ndarray          # (T, M, V, 3) float32, metres; a body that is not in a frame has zeros there
    layout: Layout | None       # None: of no layout that is known by so many joints
    label: int | None           # 0-based, where the file or its name says

    @property
    def num_joints(self) -> int:
        return self.frames.shape[2]


def read_recording(path: str | Path, layout: Layout | str | None = None, fmt: str | None = None, scale: float = 1.,
                   centre: bool = True) -> Recording:
    """The one recording of a file; arguments as `read_recordings`, UserError also when it holds several."""
    found = read_recordings(path, layout, fmt, scale, centre)
    recording = next(found)
    if next(found, None) is not None:
        raise UserError(f'{path}: holds many clips, where one is asked for; give a file of one clip')
    return recording


def read_recordings(path: str | Path, layout: Layout | str | None = None, fmt: str | None = None, scale: float = 1.,
                    centre: bool = True) -> Iterator[Recording]:
    """Yields the recordings of a file, one at least, in its order.

    Args:
        path: the file; nothing in it is run.
        layout: what the joints are, or its name or YAML file. None: what the format or the number of joints says.
        fmt: one of FORMATS. None: told by the suffix.
        scale: metres in a unit of the file, for formats that have no unit of their own (npy, bvh, pyskl).
        centre: for the same formats and pku, whether bodies are moved to the origin, as `centred` does.

    Raises:
        UserError: the file cannot be read, is damaged or of another format, or has other joints than the layout.
    """
    path = Path(path)
    fmt = format_of(path) if fmt is None else fmt
    if fmt not in FORMATS:
        raise UserError(f'format {fmt!r:.40}: give one of {", ".join(FORMATS)}')
    if not scale > 0 or (scale != 1 and fmt in METRES):
        raise UserError(f'{path}: a scale of {scale:g} for a file of {fmt}; give one above 0, and for npy, bvh and '
                        'pyskl only: the others are in metres')
    layout = read_layout(layout) if isinstance(layout, str | Path) else layout
    try:
        recording = None
        for recording in FORMATS[fmt][1](path, layout, How(scale, centre)):
            yield recording
        if recording is None:
            raise UserError('no clip in it')
    except UserError as error:
        told = str(error).removeprefix(f'{path}: ').removeprefix(f'{path.name}: ')
        remedy = '' if '; ' in told else '; mend the file or take it out'
        raise UserError(f'{path}: {told}{remedy}') from error


def format_of(path: Path) -> str:
    """The format that a file's suffix tells; UserError for an unknown one."""
    for fmt, (suffixes, _) in FORMATS.items():
        if path.suffix.lower() in suffixes:
            return fmt
    known = ', '.join(suffix for suffixes, _ in FORMATS.values() for suffix in suffixes)
    raise UserError(f'{path}: its suffix tells no format ({known} do); rename the file, or say which one it is')


def tidy(frames: np.ndarray, layout: Layout | None, scale: float = 1., centre: bool = True) -> np.ndarray:
    """Bodies as recorded, (T, M, V, 3), as they go into training: (T', M, V, 3) float32 in metres.

    Frames without any body are dropped: in the interchange file they would count as the clip's end. The origin is
    then, as for NTU RGB+D and NW-UCLA, the joint 'spine' of the first body in the first frame that shows it; where the
    layout has none, its root, and of joints nobody knows the first. A body that is not in a frame keeps zeros.

    Raises UserError for numbers that are not finite or too large, and when nothing is left.
    """
    frames = np.asarray(frames)
    if frames.ndim != 4 or frames.shape[3] != 3 or 0 in frames.shape or frames.dtype.kind not in 'iuf':
        raise UserError(f'{frames.dtype} {frames.shape} are not numbers (frames, bodies, joints, 3)')
    frames = frames.astype(np.float64) * scale
    with np.errstate(invalid='ignore'):
        odd = ~(np.abs(frames) <= FARTHEST).all(axis=(1, 2, 3))
    if odd.any():
        raise UserError(f'frame {odd.argmax()} (from 0) has a coordinate that is not finite or far off; fill in what '
                        'was not seen, or set the whole body to zero there')
    frames = frames[frames.any(axis=(1, 2, 3))]
    if not len(frames):
        raise UserError('all coordinates are zero')
    return (centred(frames, layout) if centre else frames).astype(np.float32)


def centred(frames: np.ndarray, layout: Layout | None) -> np.ndarray:
    """Bodies (T, M, V, 3), one at least, moved so that the origin is where `tidy` says."""
    there = frames.any(axis=(2, 3))                                                         # (T, M)
    body = there.any(axis=0).argmax()
    joints = frames[there[:, body].argmax(), body]                                          # (V, 3)
    # Not their mean: the coordinates of the first frame would sum to zero, which the feeder takes for padding.
    names = shared_names(layout) if layout else []
    roots = [joint for joint, parent in enumerate(layout.parents if layout else [0]) if joint == parent]
    moved = frames - joints[names.index('spine') if 'spine' in names else roots[0]]
    moved[~there] = 0
    return moved


def extent(frames: np.ndarray) -> float:
    """How far apart the farthest joints of a body are, at most along an axis: metres, the median over frames."""
    there = frames[frames.any(axis=(2, 3))]       # (bodies in all frames, V, 3)
    return float(np.median(np.ptp(there, axis=1).max(axis=1)))


def remark_on_sizes(sizes: dict[str, float]) -> str | None:
    """A line on recordings (by name, `extent` of each) whose bodies are of no human size; None where all are."""
    odd = {name: size for name, size in sizes.items() if not SMALLEST < size < TALLEST}
    if not odd:
        return None
    name, size = next(iter(odd.items()))
    return (f'note: bodies of {len(odd):,} of {len(sizes):,} recordings are of no human size ({name}: {size:.3g} m); '
            'give --scale, the metres in a unit of the files')


def _fitting(frames: np.ndarray, layout: Layout | None, own: Layout | None = None) -> Layout | None:
    """The layout of frames (T, M, V, 3): the one given, or the format's own, or the one of so many joints.

    UserError when the one given has another number of them.
    """
    num_joints = frames.shape[2]
    if layout and len(layout.joints) != num_joints:
        raise UserError(f'it has {num_joints} joints, the layout {layout.name} {len(layout.joints)}; give its own '
                        'layout')
    return layout or own or known_layout(num_joints)


# ---- one clip a file -----------------------------------------------------------------------------------------------


def _read_ntu(path: Path, layout: Layout | None, _) -> Iterator[Recording]:
    rows = to_rows(parse_ntu(Source(path).read()))
    frames = rows.reshape(len(rows), -1, 25, 3)
    try:
        label = facts_of(path.stem).action - 1
    except UserError:       # renamed, or somebody's own recording
        label = None
    yield Recording(path.stem, frames, _fitting(frames, layout), label)


def _read_pku(path: Path, layout: Layout | None, how: How) -> Iterator[Recording]:
    frames = parse_pku(Source(path).read()).astype(np.float32).reshape(-1, 2, 25, 3)
    if not frames.any():
        raise UserError('all coordinates are zero')
    layout = _fitting(frames, layout)
    yield Recording(path.stem, centred(frames, layout) if how.centre else frames, layout, None)


def _read_nwucla(path: Path, layout: Layout | None, _) -> Iterator[Recording]:
    frames, label = parse_clip(Source(path).read(), path.stem)
    frames = frames[:, None]
    yield Recording(path.stem, frames, _fitting(frames, layout), label - 1)


def _read_npy(path: Path, layout: Layout | None, how: How) -> Iterator[Recording]:
    frames = open_npy(path, REMEDY)
    if frames.ndim not in (3, 4) or frames.shape[-1] != 3:
        raise UserError(f'{frames.shape} is neither (frames, joints, 3) nor (frames, bodies, joints, 3); write it so')
    if frames.nbytes > LARGEST:
        raise UserError(f'{frames.nbytes / 1e6:,.0f} MB are too many for a clip')
    frames = frames[:, None] if frames.ndim == 3 else frames
    layout = _fitting(frames, layout)
    yield Recording(path.stem, how.tidy(frames, layout), layout, None)


def _read_bvh(path: Path, layout: Layout | None, how: How) -> Iterator[Recording]:
    frames, own = read_bvh(Source(path).read(), path.stem)
    frames = frames[:, None]
    layout = _fitting(frames, layout, own)
    yield Recording(path.stem, how.tidy(frames, layout), layout, None)


# ---- many clips a file ---------------------------------------------------------------------------------------------


def _read_npz(path: Path, layout: Layout | None, _) -> Iterator[Recording]:
    for split in ('train', 'test'):
        x, y = (open_member(path, f'{kind}_{split}', REMEDY) for kind in 'xy')
        if x.ndim != 3 or x.dtype.kind != 'f' or 0 in x.shape[1:] or y.ndim != 2 or len(y) != len(x) \
                or y.dtype.kind not in 'biuf':
            raise UserError(f'x_{split} is {x.dtype} {x.shape}, y_{split} {y.shape}; expected are floating-point '
                            'numbers (N, T, M·V·3) and (N, classes); write the file again')
        own = layout or _layout_by_width(x.shape[2])
        if x.shape[2] % (3 * len(own.joints)):
            raise UserError(f'{x.shape[2]} numbers a frame are not whole bodies of {len(own.joints)} joints '
                            f'({own.name}); give its own layout')
        names = [f'{split}_{row}' for row in range(len(x))]
        if has_member(path, f'name_{split}'):
            names = open_member(path, f'name_{split}', REMEDY)
            if names.shape != (len(x),) or names.dtype.kind != 'U':
                raise UserError(f'name_{split} is {names.dtype} {names.shape}, not a name for each of {len(x)} clips; '
                                'write the file again')
        for row, name in enumerate(names):
            if not np.isin(y[row], (0, 1)).all() or y[row].sum() != 1:
                raise UserError(f'row {row} of y_{split} is not one-hot; write the file again')
            frames = recorded(x[row], f'clip {row} of x_{split}').reshape(-1, x.shape[2] // (3 * len(own.joints)),
                                                                          len(own.joints), 3)
            yield Recording(str(name), frames, own, int(y[row].argmax()))


def _layout_by_width(width: int) -> Layout:
    """The known layout of which so many numbers are one body or two; no two layouts share such a number."""
    for layout in LAYOUTS:
        if width in (3 * len(layout.joints), 6 * len(layout.joints)):
            return layout
    return default_layout(width // 3)


def recorded(rows: np.ndarray, what: str) -> np.ndarray:
    """The rows (T', width) float32 that the feeder takes of a clip (T, width): as many as do not sum to zero."""
    with np.errstate(invalid='ignore', over='ignore'):
        sums = rows.sum(axis=1)
    if not np.isfinite(sums).all():
        raise UserError(f'{what} holds NaN or infinite coordinates; mend or remove it and write the file again')
    return np.array(rows[:max(np.count_nonzero(sums), 1)], dtype=np.float32)


def _read_pyskl(path: Path, layout: Layout | None, how: How) -> Iterator[Recording]:
    content = read_pickle(path)
    annotations = content.get('annotations') if isinstance(content, dict) else None
    if not isinstance(annotations, list) or not annotations:
        raise UserError("no annotations of PYSKL: it is no map with a list 'annotations'; give another file")
    total, size = 0, path.stat().st_size
    for number, annotation in enumerate(annotations):
        try:
            name, keypoint, label = _annotation(annotation)
            total += keypoint.nbytes
            if total > size:
                raise UserError('refused, the file shows the same arrays many times over')
            frames = keypoint.swapaxes(0, 1)
            own = _fitting(frames, layout)
            yield Recording(name, how.tidy(frames, own), own, label)
        except UserError as error:
            raise UserError(f'annotation {number} (from 0): {error}') from error


def _annotation(annotation) -> tuple[str, np.ndarray, int]:
    """Name, keypoints (M, T, V, 3) and label of one of PYSKL's annotations; UserError for anything else."""
    if not isinstance(annotation, dict):
        raise UserError('it is no map')
    name, label, keypoint = (annotation.get(key) for key in ('frame_dir', 'label', 'keypoint'))
    if not isinstance(name, str) or not name.isprintable():
        raise UserError('frame_dir is no name')
    if not isinstance(label, int) or isinstance(label, bool) or not 0 <= label < 1 << 31:
        raise UserError('label is no whole number from 0')
    values = keypoint.values if isinstance(keypoint, PickledArray) else None
    if values is None or values.ndim != 4 or values.dtype.kind != 'f' or 0 in values.shape:
        raise UserError('keypoint is no array of floating-point numbers (bodies, frames, joints, 3)')
    if values.shape[3] != 3:
        raise UserError(f'keypoint has {values.shape[3]} numbers a joint, where 3 are needed (x, y, z); give '
                        'annotations of 3D skeletons')
    if annotation.get('total_frames', values.shape[1]) != values.shape[1]:
        raise UserError(f'keypoint has {values.shape[1]} frames, total_frames says otherwise')
    return name, values, label


FORMATS = {  # suffixes, and what reads a file: (path, layout, tidy with its options) to recordings
    'ntu': (('.skeleton',), _read_ntu), 'pku': (('.txt',), _read_pku), 'nwucla': (('.json',), _read_nwucla),
    'npy': (('.npy',), _read_npy), 'bvh': (('.bvh',), _read_bvh), 'npz': (('.npz',), _read_npz),
    'pyskl': (('.pkl', '.pickle'), _read_pyskl),
}
