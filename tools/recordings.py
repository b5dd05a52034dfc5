"""Read recordings for a trained model, and predict them whole or through a sliding window.

Axis letters: T frames, M bodies, V joints, C classes, D feature width.
"""

import os
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby, pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np

from data.datasets import find_dataset
from data.formats import format_from_suffix, read_recordings, suffixes
from data.formats.keypoints import is_keypoint_folder
from data.formats.npz import REMEDY
from data.formats.recording import Recording, bodies_note, centre_bodies, valid_frames
from feeder.layouts import Layout, read_layout
from feeder.npz import open_member
from tools.recognition import Recogniser, batched
from util.errors import UserError

LABEL_SETS = {'ntu': ('ntu60', 'ntu120', 'synth'), 'nwucla': ('nwucla',)}   # datasets whose labels are in these formats


def find_files(paths: Iterable[Path], format_name: str | None) -> list[Path]:
    """Return the files in `paths`; folders are searched at any depth for files with the suffix of a format.

    A file that occurs several times is returned once. Raises UserError for a missing path, a folder without such files,
    and a file of unknown format.
    """
    endings, files = suffixes(format_name), []
    for path in paths:
        if path.is_dir() and not is_keypoint_folder(path):
            inside = []
            for folder, subfolders, names in os.walk(path, followlinks=True):
                inside += [Path(folder) / name for name in subfolders if is_keypoint_folder(Path(folder) / name)]
                subfolders[:] = [name for name in subfolders if not is_keypoint_folder(Path(folder) / name)]
                inside += [Path(folder) / name for name in names
                           if name.lower().endswith(endings) and not name.startswith('.')]
            inside.sort()
            if not inside:
                raise UserError(f'{path}: contains no recording ({", ".join(endings)}); choose another folder')
            files += inside
        elif not os.path.exists(path):
            raise UserError(f'{path}: no such file or folder; correct the path')
        else:
            if format_name is None:
                format_from_suffix(path)
            files.append(path)
    return list(dict.fromkeys(files))


def read_clips(files: Iterable[Path], recogniser: Recogniser, layout: str | None = None, format_name: str | None = None,
               scale: float | None = None, split: str = 'test', bodies_first: bool | None = None
               ) -> Iterator[Recording | tuple[Path, UserError]]:
    """Yield the recordings of all files that fit the model, and for each failure the file and the error.

    Other arguments are as in `read_recordings`; the default scale is that of the training data.
    """
    requested = read_layout(layout) if layout else None
    for path in files:
        try:
            name = format_name or format_from_suffix(path)
            for recording in _read_file(path, name, recogniser, requested, scale, split, bodies_first):
                yield (path, recording) if isinstance(recording, UserError) else recording
        except UserError as error:
            yield path, error


def _read_file(path: Path, name: str, recogniser: Recogniser, layout: Layout | None, scale: float | None, split: str,
               bodies_first: bool | None) -> Iterator[Recording | UserError]:
    scale = recogniser.scale if scale is None else scale
    has_labels = _has_same_labels(path, name, recogniser, split)
    for recording in read_recordings(path, layout, name, scale, recogniser.centre, split, recogniser.num_joints,
                                     recogniser.layout, recogniser.planar, bodies_first):
        if isinstance(recording, Recording):
            _check_joints(recording, recogniser)
            notes = recording.notes + bodies_note(recording.frames, recogniser.num_bodies)
            recording = recording._replace(label=recording.label if has_labels else None, notes=notes)
        yield recording


def _has_same_labels(path: Path, name: str, recogniser: Recogniser, split: str) -> bool:
    """Return True if the labels of a file refer to the classes of the model."""
    if name == 'npz' and recogniser.class_names is not None:
        return open_member(path, f'y_{split}', REMEDY).shape[-1:] == (len(recogniser.class_names),)
    dataset = find_dataset(recogniser.benchmark)
    return name not in LABEL_SETS or (dataset is not None and dataset.key in LABEL_SETS[name])


def _check_joints(recording: Recording, recogniser: Recogniser) -> None:
    """Raise UserError if the joints of a recording differ from those of the model."""
    layout, expected = recording.layout, recogniser.layout
    if recording.planar != recogniser.planar:
        kinds = ('2D keypoints', '3D joints') if recording.planar else ('3D joints', '2D keypoints')
        raise UserError(f'{recording.path}: has {kinds[0]}, but the model was trained on {kinds[1]}; use another '
                        'checkpoint')
    if recording.num_joints != recogniser.num_joints:
        raise UserError(f'{recording.path}: bodies have {recording.num_joints} joints, but the model expects '
                        f'{recogniser.num_joints}; use a checkpoint and recordings with the same joints, or train on '
                        'these joints (data/prepare_custom.py)')
    if expected and layout and expected.joints != layout.joints:
        raise UserError(f'{recording.path}: has the joints {layout.name}, but the model expects {expected.name}; '
                        'correct --layout, or use a checkpoint and recordings with the same joints')


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

    recording: Recording
    windows: list[Window]
    features: np.ndarray            # (windows, D)
    scores: np.ndarray | None       # (windows, C)


def sliding_windows(num_frames: int, window: int | None, hop: int | None) -> list[Window]:
    """Return windows of `window` frames every `hop` (default: half a window), the last one at the end of the recording.

    A recording that is shorter, or any recording if `window` is None, has a single window. Each frame belongs to the
    window with the nearest centre.
    """
    if window is None or window >= num_frames:
        return [Window(0, num_frames, 0, num_frames)]
    last = num_frames - window
    starts = [*range(0, last, hop or max(window // 2, 1)), last]
    # The border of two windows is half-way between their centres; frame f covers [f, f + 1).
    borders = [0, *((a + b + window) // 2 for a, b in pairwise(starts)), num_frames]
    return [Window(start, start + window, begin, stop)
            for start, (begin, stop) in zip(starts, pairwise(borders), strict=True)]


def top_classes(scores: np.ndarray, count: int) -> list[tuple[int, float]]:
    """Return label and probability of the most likely of scores (C,), best first; ties are sorted by label."""
    best = np.argsort(-scores, kind='stable')[:count].tolist()
    return [(label, round(float(scores[label]), 6)) for label in best]


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


def predict_clips(recogniser: Recogniser, recordings: Iterable[Recording], batch_size: int, window: int | None = None,
                  hop: int | None = None) -> Iterator[Prediction]:
    """Yield a prediction for each recording, in order; windows without any body are omitted."""
    clips = ((number, recording, place, frames) for number, recording in enumerate(recordings)
             for place in sliding_windows(len(recording.frames), window, hop)
             if (frames := _cut(recording, place, recogniser, window is not None)) is not None)

    def outputs() -> Iterator[tuple[int, Recording, Window, dict[str, np.ndarray]]]:
        for batch in batched(clips, batch_size):
            values = recogniser.predict([frames for *_, frames in batch])
            for row, (number, recording, place, _) in enumerate(batch):
                yield number, recording, place, {name: array[row] for name, array in values.items()}

    for _, rows in groupby(outputs(), lambda output: output[0]):
        _, (recording, *_), places, values = zip(*rows, strict=True)
        stacked = {name: np.stack([value[name] for value in values]) for name in values[0]}
        yield Prediction(recording, list(places), stacked['features'], stacked.get('scores'))


def _cut(recording: Recording, place: Window, recogniser: Recogniser, is_window: bool) -> np.ndarray | None:
    """Return the valid frames (T', M, V, 3) of a window, centred again, or None if there is no body."""
    frames = recording.frames[place.start:place.end]
    if is_window and not frames.any():
        return None
    centre = is_window and (recogniser.centre or recogniser.planar)
    return valid_frames(centre_bodies(frames, recogniser.layout, recogniser.planar) if centre else frames)
