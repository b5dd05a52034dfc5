"""The common representation of recordings, and how they are cleaned for training.

2D keypoints have the same shape as 3D joints: x, y upwards, and the score of the detector. A missing joint keeps its
last position, with score 0. The unit is half the diagonal of a body's bounding box, about a metre, so that coordinates
depend neither on the resolution (as in PYSKL) nor on the distance (as in MotionBERT). It is that of the first body in
its first frame with at least half of the joints, not in the whole clip, and therefore known during a recording.

Axis letters: T frames, M bodies, V joints.
"""

from collections import Counter
from pathlib import Path
from typing import NamedTuple

import numpy as np

from data.ntu_actors import motion_energy
from data.ntu_text import FARTHEST
from feeder.layouts import Layout, known_layout, shared_names
from util.errors import UserError, printable

MIN_SIZE, MAX_SIZE = 0.2, 5.     # metres; bodies outside this range are reported
MIN_SCORE = 0.1                  # 2D keypoints with a lower score are missing


class Recording(NamedTuple):
    """One recording in a file."""

    path: Path
    frames: np.ndarray              # (T, M, V, 3) float32, metres or 2D keypoints; zeros where a body is absent
    layout: Layout | None           # None: not known
    label: int | None = None        # numbered from 0, if the file or its name contains it
    member: str | None = None       # its name in a file of many; None: the only recording in the file
    notes: tuple[str, ...] = ()     # assumptions made in reading it, with the options that change them
    planar: bool = False            # 2D keypoints

    @property
    def name(self) -> str:
        return self.path.stem if self.member is None else self.member

    @property
    def title(self) -> str:
        """The file, and the name of the recording in a file of many, on one line."""
        return printable(self.path if self.member is None else f'{self.path}:{self.member}')

    @property
    def short_title(self) -> str:
        """The title without folders."""
        return printable(self.path.name if self.member is None else f'{self.path.name}, {self.member}')

    @property
    def num_joints(self) -> int:
        return self.frames.shape[2]


class Options(NamedTuple):
    """How to read files that do not specify it themselves; see `read_recordings`."""

    layout: Layout | None = None
    scale: float = 1.
    centre: bool = True
    split: str | None = None
    num_joints: int | None = None
    default_layout: Layout | None = None    # of files without joint names, if it has their number of joints
    planar: bool = False            # three numbers per joint are x, y and score
    bodies_first: bool | None = None        # axes of npy arrays: (M, T, V, 3)


def make_recording(path: Path, frames: np.ndarray, options: Options, own: Layout | None = None,
                   label: int | None = None, member: str | None = None, notes: tuple[str, ...] = ()) -> Recording:
    """Make a recording from bodies (T, M, V, 3) of a file that does not specify unit and origin, and perhaps no layout.

    2D keypoints in pixels, y downwards, have 2 numbers, or 3 if `options.planar`. `own` is the layout in the file, if
    there is one. Raises as `clean` and `choose_layout` do.
    """
    planar = options.planar or frames.shape[-1] == 2
    if frames.shape[-1] == 2:
        frames = np.concatenate([frames, frames.any(axis=-1, keepdims=True)], axis=-1)
    default = options.default_layout
    layout = choose_layout(frames, options.layout,
                           own or (default if default and len(default.joints) == frames.shape[2] else None))
    name = f'joints {layout.name if layout else "unknown"} (--layout)'
    if own and not options.layout:
        name = f'joints {layout.name}' if planar else 'joint names in the file'
    unit = 'as x, y and score' if planar else f'in units of {options.scale:g} m (--scale)'
    frames = clean_keypoints(frames, layout) if planar else clean(frames, layout, options.scale, options.centre)
    return Recording(path, frames, layout, label, member, (*notes, f'read with the {name}, {unit}'),
                     planar)


def clean(frames: np.ndarray, layout: Layout | None, scale: float = 1., centre: bool = True) -> np.ndarray:
    """Prepare recorded bodies (T, M, V, 3) for training: (T', M, V, 3) float32 in metres.

    Frames without any body are dropped (in a dataset file they would end the clip), then bodies are centred. Raises
    UserError for numbers that are not finite or too large, and if no frame is left.
    """
    frames = _check_frames(np.asarray(frames)) * scale
    frames = frames[frames.any(axis=(1, 2, 3))]
    if not len(frames):
        raise UserError('has no valid frame: all coordinates are zero')
    return (centre_bodies(frames, layout) if centre else frames).astype(np.float32)


def clean_keypoints(frames: np.ndarray, layout: Layout | None) -> np.ndarray:
    """Prepare 2D keypoints (T, M, V, 3) in pixels, y downwards, for training: (T', M, V, 3); raises as `clean`.

    A joint with a score below MIN_SCORE keeps its last position, as a jump to zero would be its largest motion, and
    gets score 0; it is zero before it first appears.
    """
    frames = _check_frames(np.asarray(frames)) * (1, -1, 1)
    if (frames[..., 2] < 0).any():
        raise UserError('the third number of a joint is negative, so it is not a score; use 2D keypoints')
    frames[frames[..., 2] < MIN_SCORE] = 0
    frames = hold_positions(frames)
    frames = frames[frames.any(axis=(1, 2, 3))]
    if not len(frames):
        raise UserError(f'has no valid frame: all scores are below {MIN_SCORE}')
    return centre_bodies(frames, layout, planar=True).astype(np.float32)


def hold_positions(frames: np.ndarray) -> np.ndarray:
    """Give missing joints of present bodies (T, M, V, 3) their last position, with score 0."""
    visible, present = frames[..., 2] > 0, frames.any(axis=(2, 3))                          # (T, M, V), (T, M)
    last = np.maximum.accumulate(np.where(visible, np.arange(len(frames))[:, None, None], 0), axis=0)
    held = np.take_along_axis(frames, last[..., None], axis=0)
    held[..., 2] = frames[..., 2]
    held[~present] = 0
    return held


def _check_frames(frames: np.ndarray) -> np.ndarray:
    """Convert frames (T, M, V, 3) to float64; raises UserError for another shape or type, or invalid numbers."""
    if frames.ndim != 4 or frames.shape[3] != 3 or 0 in frames.shape or frames.dtype.kind not in 'iuf':
        raise UserError(f'has {frames.dtype} {frames.shape}, expected numbers (frames, bodies, joints, 3)')
    frames = frames.astype(np.float64)
    with np.errstate(invalid='ignore'):
        invalid = ~(np.abs(frames) <= FARTHEST).all(axis=(1, 2, 3))
    if invalid.any():
        raise UserError(f'frame {invalid.argmax()} (numbered from 0) has coordinates that are not finite or too large; '
                        'interpolate them, or set the whole body to zero in that frame')
    return frames


def centre_bodies(frames: np.ndarray, layout: Layout | None, planar: bool = False) -> np.ndarray:
    """Move bodies (T, M, V, 3) so that the first body starts at the origin, as in NTU RGB+D and NW-UCLA.

    The origin is joint 'spine' of the first body in its first frame, or else the root of the layout, or joint 0; of 2D
    keypoints, which are also rescaled, it is the mean of the body's joints if that joint is missing. Absent bodies and
    joints remain zero.
    """
    present = frames.any(axis=(2, 3))                                                       # (T, M)
    body = present.any(axis=0).argmax()
    if planar:      # the first frame with at least half of the joints
        visible = (frames[:, body, :, 2] > 0).sum(axis=1)                                   # (T,)
        joints = frames[(visible >= min(frames.shape[2] / 2, visible.max())).argmax(), body]
    else:
        joints = frames[present[:, body].argmax(), body]                                    # (V, 3)
    # A joint, not the mean of all joints: with the mean, the first frame would sum to zero, which marks padding.
    names = shared_names(layout) if layout else []
    roots = [joint for joint, parent in enumerate(layout.parents if layout else [0]) if joint == parent]
    origin = joints[names.index('spine') if 'spine' in names else roots[0]]
    if planar:
        visible = joints[joints[:, 2] > 0, :2]
        origin = origin[:2] if origin[2] > 0 else visible.mean(axis=0)
        unit = np.linalg.norm(np.ptp(visible, axis=0)) / 2 or 1.
        moved = np.concatenate([(frames[..., :2] - origin) / unit, frames[..., 2:]], axis=-1)
        moved[~frames.any(axis=3)] = 0
        return moved
    moved = frames - origin
    moved[~present] = 0
    return moved


def select_bodies(frames: np.ndarray, most: int, layout: Layout | None, centre: bool,
                  planar: bool = False) -> np.ndarray:
    """Keep the `most` bodies with the most motion in a clip (T, M, V, 3), as the preparation of NTU RGB+D does.

    Frames in which none of them appears are dropped, and with `centre` the clip is centred again, 2D keypoints always.
    """
    if frames.shape[1] <= most:
        return frames
    present = frames.any(axis=(2, 3))                                                       # (T, M)
    energy = keypoint_energy if planar else motion_energy
    motion = [energy(frames[present[:, body], body]) if present[:, body].any() else -1
              for body in range(frames.shape[1])]
    frames = frames[:, np.sort(np.argsort(motion)[-most:])]
    frames = frames[frames.any(axis=(1, 2, 3))] if frames.any() else frames[:1]
    return centre_bodies(frames, layout, planar) if (centre or planar) and frames.any() else frames


def keypoint_energy(joints: np.ndarray) -> float:
    """Return how much 2D keypoints (n, V, 3) move: the variance of each joint over the frames that show it."""
    values = np.ma.masked_array(joints[..., :2], np.repeat(joints[..., 2:] == 0, 2, axis=2))
    return float(values.var(axis=0).sum())


def bodies_note(frames: np.ndarray, most: int) -> tuple[str, ...]:
    """Return a note if `select_bodies` drops bodies of frames (T, M, V, 3) that are not empty."""
    bodies = int(frames.any(axis=(0, 2, 3)).sum())
    return (f'reduced to the {most} bodies that move most',) if bodies > most else ()


def choose_layout(frames: np.ndarray, layout: Layout | None, own: Layout | None = None) -> Layout | None:
    """Return the layout of frames (T, M, V, 3): the requested one, else the file's own, else by the number of joints.

    Raises UserError if the requested layout has a different number of joints.
    """
    if layout and len(layout.joints) != frames.shape[2]:
        raise UserError(f'has {frames.shape[2]} joints, but the layout {layout.name} has {len(layout.joints)}; specify '
                        'the layout of the file')
    return layout or own or known_layout(frames.shape[2])


def valid_frames(frames: np.ndarray) -> np.ndarray:
    """Return the frames (T', M, V, 3) of a clip (T, M, V, 3) that training would use: as many as do not sum to zero."""
    sums = frames.reshape(len(frames), -1).sum(axis=1)                                      # (T,)
    return frames[:max(np.count_nonzero(sums), 1)]


def body_size(frames: np.ndarray) -> float:
    """Return the largest extent of a body along an axis in metres, the median over the frames of (T, M, V, 3)."""
    bodies = frames[frames.any(axis=(2, 3))]        # (bodies of all frames, V, 3)
    return float(np.median(np.ptp(bodies, axis=1).max(axis=1))) if len(bodies) else 0.


def size_note(sizes: dict[str, float]) -> list[str]:
    """Return a note on recordings (title: body size) whose bodies are not of human size, if there are any."""
    unusual = {name: size for name, size in sizes.items() if not MIN_SIZE < size < MAX_SIZE}
    return [f'note: {len(unusual):,} of {len(sizes):,} recordings have bodies that are not of human size ({name}: '
            f'{size:.3g} m); set --scale to the metres per unit of the files (0.01 for centimetres)'
            for name, size in list(unusual.items())[:1]]


def assumption_notes(counts: Counter[str], total: int) -> list[str]:
    """Return a line for each assumption, which was made for `counts` of `total` recordings."""
    return [f'note: {count:,} of {total:,} recordings were {note}' for note, count in counts.items()]
