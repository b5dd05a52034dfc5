"""Read recordings for a trained model, and predict them whole or through a sliding window.

Axis letters: T frames, M bodies, V joints, C classes, D feature width.
"""

import os
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np

from data.datasets import find_dataset
from data.formats import FORMATS, format_from_suffix, read_recordings, suffixes
from data.formats.arrays import REMEDY
from data.formats.recording import centre_bodies, valid_frames
from feeder.dataset import SkeletonDataset
from feeder.layouts import LAYOUTS, Layout, known_layout, read_layout
from feeder.npz import open_member
from tools.recognition import Recogniser, batched
from util.errors import UserError, printable

LABEL_SETS = {'ntu': ('ntu60', 'ntu120', 'synth'), 'nwucla': ('nwucla',)}   # data sets whose labels these formats hold


class Clip(NamedTuple):
    """A recording of a file, prepared for the model."""

    file: Path
    name: str               # unique in its file
    frames: np.ndarray      # (T, M, V, 3) float32
    label: int | None       # from 0, where the file holds it
    in_collection: bool     # the file may hold more clips

    def __str__(self) -> str:
        return printable(f'{self.file}:{self.name}' if self.in_collection else self.file)


def find_files(paths: Iterable[Path], format_name: str | None) -> list[Path]:
    """Files as given, and in folders, at any depth, those with the suffix of a format; each once.

    Raises UserError for a missing path, a folder without such files, and a file of unknown format.
    """
    endings, files = suffixes(format_name), []
    for path in paths:
        if path.is_dir():
            inside = sorted(Path(root) / file for root, _, names in os.walk(path, followlinks=True)
                            for file in names if file.lower().endswith(endings) and not file.startswith('.'))
            if not inside:
                raise UserError(f'{path}: contains no recording ({", ".join(endings)}); give another folder')
            files += inside
        elif not os.path.exists(path):
            raise UserError(f'{path}: no such file or folder; correct the path')
        else:
            if format_name is None:
                format_from_suffix(path)
            files.append(path)
    return list(dict.fromkeys(files))


def read_clips(files: Iterable[Path], recogniser: Recogniser, layout: str | None = None, format_name: str | None = None,
               scale: float | None = None, split: str = 'test') -> Iterator[Clip | tuple[Path, UserError]]:
    """Yield the recordings of all files that fit the model, and for each failure the file and the error.

    Layout, format and scale are as in `read_recordings`; the default scale is that of the training data. `split`
    selects the clips of npz files.
    """
    requested = read_layout(layout) if layout else None
    for path in files:
        try:
            name = format_name or format_from_suffix(path)
            if name == 'npz':
                yield from _read_dataset_file(path, split, recogniser, requested)
            else:
                yield from _read_file(path, name, recogniser, requested, scale)
        except UserError as error:
            yield path, error


def _read_file(path: Path, name: str, recogniser: Recogniser, layout: Layout | None,
               scale: float | None) -> Iterator[Clip]:
    own = recogniser.layout
    if layout is None and name in ('npy', 'pyskl') and own not in (None, *LAYOUTS):
        layout = own        # these files have no joint names, and the number of joints does not tell a custom layout
    if scale is None:
        scale = 1. if FORMATS[name].metres else recogniser.scale
    dataset = find_dataset(recogniser.benchmark)
    has_labels = name not in LABEL_SETS or (dataset is not None and dataset.key in LABEL_SETS[name])
    for recording in read_recordings(path, layout, name, scale, recogniser.centre):
        _check_joints(path, recording.num_joints, recording.layout, recogniser)
        yield Clip(path, recording.name, recording.frames, recording.label if has_labels else None, FORMATS[name].many)


def _read_dataset_file(path: Path, split: str, recogniser: Recogniser,
                       layout: Layout | None) -> Iterator[Clip | tuple[Path, UserError]]:
    x = open_member(path, f'x_{split}', REMEDY)
    joints = x.shape[2] // 3 if x.ndim == 3 else 0
    if joints % recogniser.num_joints:
        likely = layout or next((known for known in LAYOUTS if joints in (len(known.joints), 2 * len(known.joints))),
                                None)
        _check_joints(path, len(likely.joints) if likely else joints, likely, recogniser)
    if layout:
        _check_joints(path, len(layout.joints), layout, recogniser)
    dataset = SkeletonDataset(path, split, recogniser.num_joints)
    has_labels = recogniser.class_names is None or len(recogniser.class_names) == dataset.num_classes
    for row, (name, label) in enumerate(zip(dataset.names.tolist(), dataset.label.tolist(), strict=True)):
        try:
            frames = dataset[[(row, 0)]].frames.numpy()
        except UserError as error:
            yield path, error
            continue
        yield Clip(path, name, frames, label if has_labels else None, True)


def _check_joints(path: Path, count: int, layout: Layout | None, recogniser: Recogniser) -> None:
    """Raise UserError if a recording has other joints than the model."""
    own, layout = recogniser.layout, layout or known_layout(count)

    def describe(number: int, names: Layout | None) -> str:
        return f'{number} joints' + (f' ({names.name})' if names else '')

    if count != recogniser.num_joints or (own and layout and own.joints != layout.joints):
        raise UserError(f'{path}: bodies have {describe(count, layout)}, the model expects '
                        f'{describe(recogniser.num_joints, own)}; give a checkpoint or recordings with the same joints')


# ---- sliding windows -------------------------------------------------------------------------------------------------


class Window(NamedTuple):
    """Frames [start, end) of a recording, of which [begin, stop) are closer to its centre than to another window's."""

    start: int
    end: int
    begin: int
    stop: int


class Segment(NamedTuple):
    """Neighbouring windows with the same label."""

    start: int
    end: int                # exclusive
    label: int
    probability: float      # of the label, mean over the windows


class Prediction(NamedTuple):
    """Model outputs for a recording; a single window covers all of it unless windows are requested."""

    recording: str
    name: str
    num_frames: int
    label: int | None
    windows: list[Window]
    features: np.ndarray            # (windows, D)
    scores: np.ndarray | None       # (windows, C)


@dataclass
class Timing:
    """Seconds spent on reading and on computing, and the number of clips."""

    reading: float = 0.
    computing: float = 0.
    clips: int = 0


def sliding_windows(num_frames: int, window: int | None, hop: int | None) -> list[Window]:
    """Windows of `window` frames every `hop` (default: half a window), the last one at the end of the recording.

    Shorter recordings, and all with `window` None, have one window. Each frame belongs to the window with the nearest
    centre.
    """
    if window is None or window >= num_frames:
        return [Window(0, num_frames, 0, num_frames)]
    last = num_frames - window
    starts = [*range(0, last, hop or max(window // 2, 1)), last]
    # The border of two windows is half-way between their centres; frame f covers [f, f + 1).
    borders = [0, *((a + b + window) // 2 for a, b in pairwise(starts)), num_frames]
    return [Window(start, start + window, begin, stop)
            for start, (begin, stop) in zip(starts, pairwise(borders), strict=True)]


def timeline(windows: Sequence[Window], scores: np.ndarray) -> list[Segment]:
    """Merge neighbouring windows with the same most likely label; `scores` are (windows, C)."""
    gaps = np.cumsum([0, *(a.stop != b.begin for a, b in pairwise(windows))])
    labels = scores.argmax(axis=1)
    segments = []
    for (label, _), rows in groupby(range(len(windows)), lambda row: (int(labels[row]), gaps[row])):
        rows = list(rows)
        segments.append(Segment(windows[rows[0]].begin, windows[rows[-1]].stop, label,
                                float(scores[rows, label].mean())))
    return segments


def predict_clips(recogniser: Recogniser, clips: Iterator[Clip], batch_size: int, window: int | None = None,
                  hop: int | None = None, timing: Timing | None = None) -> Iterator[Prediction]:
    """Yield a prediction for each clip, in order; windows without any body are left out."""
    timing = timing or Timing()

    def pieces() -> Iterator[tuple[int, Clip, Window, np.ndarray]]:
        for number, clip in enumerate(clips):
            for place in sliding_windows(len(clip.frames), window, hop):
                frames = _cut(clip, place, recogniser, window is not None)
                if frames is not None:
                    yield number, clip, place, frames

    def outputs():
        source = batched(pieces(), batch_size)
        while True:
            start = time.perf_counter()
            batch = next(source, None)
            read = time.perf_counter()
            timing.reading += read - start
            if batch is None:
                return
            values = recogniser.predict([piece[3] for piece in batch])
            timing.computing += time.perf_counter() - read
            timing.clips += len(batch)
            for row, piece in enumerate(batch):
                yield piece[:3], {name: array[row] for name, array in values.items()}

    for _, rows in groupby(outputs(), lambda item: item[0][0]):
        places, values = zip(*rows, strict=True)
        clip = places[0][1]
        yield Prediction(str(clip), clip.name, len(clip.frames), clip.label, [place for _, _, place in places],
                         np.stack([value['features'] for value in values]),
                         np.stack([value['scores'] for value in values]) if 'scores' in values[0] else None)


def _cut(clip: Clip, place: Window, recogniser: Recogniser, windows: bool) -> np.ndarray | None:
    """Valid frames (T', M, V, 3) of a window, centred again; None without any body."""
    frames = clip.frames[place.start:place.end]
    if windows:
        if not frames.any():
            return None
        if recogniser.centre:
            frames = centre_bodies(frames, recogniser.layout)
    if clip.in_collection and not windows:
        return frames       # its frames are already counted; counting again could cut off the end
    return valid_frames(frames.reshape(len(frames), -1), str(clip)).reshape(-1, *frames.shape[1:])
