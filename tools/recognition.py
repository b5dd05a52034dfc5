"""From a checkpoint and recordings of any kind to class probabilities and features; for notebooks too.

>>> from tools.recognition import Recogniser
>>> recogniser = Recogniser(checkpoint, device='cpu')
>>> rng = np.random.default_rng(0)
>>> clip = rng.normal(size=(40, recogniser.num_joints, 3))      # 40 frames of one body, metres
>>> recogniser.probabilities(clip).shape == (len(recogniser.class_names),)
True
>>> pair = rng.normal(size=(90, 2, recogniser.num_joints, 3))   # 90 frames of two bodies
>>> recogniser.features([clip, pair]).shape == (2, recogniser.width)
True

Axis letters: N clips, T frames, M bodies, V joints, C classes, D width of a feature.
"""

import os
import time
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby, islice
from pathlib import Path
from typing import NamedTuple

import numpy as np

from data.ntu_actors import motion_of
from data.recordings import FORMATS, METRES, REMEDY, centred, format_of, read_recordings, recorded, tidy
from engine_finetune import predict
from feeder.augment import ClipMaker
from feeder.classes import set_of
from feeder.dataset import SkeletonDataset, pack_clips
from feeder.layouts import LAYOUTS, Layout, known_layout, read_layout
from feeder.npz import open_member
from util import checkpoint
from util.dist import World, choose_device
from util.errors import UserError, printable
from util.precision import Precision
from util.weights import facts_of, load_whole

LABELLED = {'ntu': ('ntu60', 'ntu120', 'synth'), 'nwucla': ('nwucla',)}      # formats that tell labels: of which sets


class Recogniser:
    """A trained model that takes recordings as they come; the clips go through the code that evaluates.

    class_names: C names, label 0 first ('class 0', … where nobody knows them); None for a model without classes.
    num_joints (V), layout (what they are, None where not known), num_bodies (M of the clips it was trained on),
    num_frames (to which a clip is resized), width (D), stream, benchmark, device; centre and scale (metres in a unit of
    files that have none of their own), as the training data were prepared.
    """

    def __init__(self, path: str | Path, device: str = 'auto', precision: str | None = None,
                 centre: bool | None = None):
        """
        Args:
            path: a checkpoint of main_finetune.py or main_linprobe.py, or, for features only, of main_pretrain.py.
            device: auto (a GPU if there is one), cpu, cuda or cuda:N.
            precision: of matrix products, fp32, tf32 or bf16; None: bf16 on GPUs that have it, fp32 elsewhere.
            centre: whether bodies are moved to the origin. None: as the training data were; of the sets, PKU-MMD's
                alone are not.

        Raises:
            UserError: the file is no whole checkpoint of these, or the device is not there.
        """
        self.path, self.device = Path(path), choose_device(device)
        model, _, settings, state = load_whole(path)
        self.model, self.stage = model.to(self.device), checkpoint.stage_of(state['model'])
        self.num_joints, self.width, self.num_frames = (settings[name] for name in
                                                        ('num_joints', 'dim_feat', 'num_frames'))
        self.stream = settings['stream']
        self.benchmark, self.method = settings.get('benchmark') or '', state.get('method')
        facts = facts_of(state, settings, path)
        self.class_names, self.layout, self.scale = facts.class_names, facts.layout, facts.scale
        self.num_bodies, self.repeats_body = facts.bodies, facts.repeats_body
        self.centre = facts.centre if centre is None else centre
        self._precision = Precision(precision, self.device)
        self._clips_of = ClipMaker(self.num_frames, self.stream, seed=0, layout=self.layout)

    def probabilities(self, frames: np.ndarray | Sequence[np.ndarray], batch_size: int = 64) -> np.ndarray:
        """Class probabilities (C,) float32 of a recording, or (N, C) of a list of them, of different lengths or not.

        frames: (T, V, 3) or (T, M, V, 3), metres; bodies that are not in a frame are zero there. Prepared as for
        training: frames without any body are dropped, the bodies are moved to the origin unless `centre` is False,
        and there will be `num_bodies` of them (see `fit_bodies`). To prepare them twice changes nothing.

        Raises UserError for a model without classes, and for arrays of another shape, with NaN or all zero.
        """
        self.check_classes()
        return self._of(frames, 'scores', batch_size)

    def features(self, frames: np.ndarray | Sequence[np.ndarray], batch_size: int = 64) -> np.ndarray:
        """Mean features (D,) float32 of a recording, or (N, D) of a list of them; arguments as `probabilities`."""
        return self._of(frames, 'features', batch_size)

    def check_classes(self) -> None:
        """UserError for a model without classes."""
        if self.class_names is None:
            raise UserError(f'{self.path}: of {self.stage}, it knows no classes, only features (--features); give a '
                            'checkpoint of main_finetune.py or main_linprobe.py')

    def _of(self, frames: np.ndarray | Sequence[np.ndarray], what: str, batch_size: int) -> np.ndarray:
        single = not isinstance(frames, list | tuple)
        clips = [self.prepare(one, f'recording {i} (from 0)') for i, one in enumerate([frames] if single else frames)]
        if not clips:
            raise UserError('no recording in the list; give one at least')
        found = np.concatenate([self.predict(part)[what] for part in _batched(clips, batch_size)])
        return found[0] if single else found

    def prepare(self, frames: np.ndarray, what: str = 'the recording') -> np.ndarray:
        """A clip (T', M, V, 3) float32 for `predict`, of a recording as `probabilities` takes it; raises as it."""
        frames = np.asarray(frames)
        if frames.ndim not in (3, 4) or frames.shape[-2:] != (self.num_joints, 3):
            raise UserError(f'{what} is {frames.shape}; expected are (T, {self.num_joints}, 3) or (T, M, '
                            f'{self.num_joints}, 3): frames, bodies, joints, x y z in metres')
        try:
            return tidy(frames[:, None] if frames.ndim == 3 else frames, self.layout, centre=self.centre)
        except UserError as error:
            raise UserError(f'{what}: {error}') from error

    def predict(self, clips: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
        """'features' (N, D) and, of a classifier, 'scores' (N, C) of N prepared clips (T, M, V, 3), in one batch."""
        batch = pack_clips([self.fit_bodies(clip) for clip in clips])
        return predict(self.model, [batch], self._clips_of, self._precision, World(0, 1, self.device), len(clips))

    def fit_bodies(self, frames: np.ndarray) -> np.ndarray:
        """(T', M, V, 3) with as many bodies as training clips have, of whose features the mean is taken.

        Bodies that lack are zero; for a model of NTU RGB+D 120 the only body is repeated, as that set does. Of too
        many those that move most stay, as in NTU RGB+D's preparation, and the clip is theirs: frames without them go,
        and the origin is that of the first of them, if there is one at all.
        """
        lacking = self.num_bodies - frames.shape[1]
        if lacking < 0:
            there = frames.any(axis=(2, 3))                                                 # (T, M)
            motion = [motion_of(frames[seen, body]) if (seen := there[:, body]).any() else -1
                      for body in range(frames.shape[1])]
            frames = frames[:, np.sort(np.argsort(motion)[-self.num_bodies:])]
            frames = frames[frames.any(axis=(1, 2, 3))] if frames.any() else frames[:1]
            return centred(frames, self.layout) if self.centre and frames.any() else frames
        if self.repeats_body and frames.shape[1] == 1:
            return frames.repeat(self.num_bodies, axis=1)
        return np.pad(frames, ((0, 0), (0, lacking), (0, 0), (0, 0))) if lacking else frames


def _batched(items: Iterable, size: int) -> Iterator[list]:
    source = iter(items)
    while part := list(islice(source, size)):
        yield part


# ---- recordings in files ---------------------------------------------------------------------------------------------


class Recording(NamedTuple):
    """One recording of a file; `frames` as data/recordings.py prepares it, which drops frames of NTU without a body."""

    file: Path
    name: str               # unique in its file
    frames: np.ndarray      # (T, M, V, 3) float32
    label: int | None       # 0-based, where the file says it
    several: bool           # whether its file may hold more

    def __str__(self) -> str:
        return printable(f'{self.file}:{self.name}' if self.several else self.file)


class Window(NamedTuple):
    """A piece of a recording: frames [start, end) are looked at, of which [begin, stop) lie nearest to its middle."""

    start: int
    end: int
    begin: int
    stop: int


class Segment(NamedTuple):
    """Neighbouring windows of one label."""

    start: int
    end: int                # the first frame after it
    label: int
    probability: float      # of the label, mean over the windows


class Prediction(NamedTuple):
    recording: str          # as it is shown
    name: str
    num_frames: int
    label: int | None
    windows: list[Window]           # of the rows below; one over everything where no window is asked for
    features: np.ndarray            # (windows, D)
    scores: np.ndarray | None       # (windows, C)


def suffixes_of(fmt: str | None) -> tuple[str, ...]:
    """Of one format's files, or of all formats'."""
    return tuple(suffix for name, (told, _) in FORMATS.items() for suffix in told if fmt in (None, name))


def find_files(given: Iterable[Path], fmt: str | None) -> list[Path]:
    """The files given, each once, and those in the folders given, at any depth, sorted, with the suffix of a format.

    Raises UserError for what is not there, a folder without any, and a file whose format nobody knows.
    """
    suffixes = suffixes_of(fmt)

    def refuse(error: OSError):
        raise UserError(f'{error.filename}: cannot be read ({error.strerror}); correct its permissions') from error

    found = []
    for path in given:
        if path.is_dir():
            inside = sorted(Path(root) / file for root, _, files in os.walk(path, onerror=refuse, followlinks=True)
                            for file in files if file.lower().endswith(suffixes) and not file.startswith('.'))
            if not inside:
                raise UserError(f'{path}: no recording in it ({", ".join(suffixes)}); give another folder')
            found += inside
        elif not os.path.exists(path):
            raise UserError(f'{path}: no such file or folder; correct the path')
        else:
            if fmt is None:
                format_of(path)
            found.append(path)
    return list(dict.fromkeys(found))


def read_files(files: Iterable[Path], recogniser: Recogniser, layout: str | None = None, fmt: str | None = None,
               scale: float | None = None, split: str = 'test') -> Iterator[Recording | tuple[Path, UserError]]:
    """The recordings of all files that the recogniser can take; of what cannot be read, the file and why.

    layout, fmt and scale as in `read_recordings`, scale None: that of the training data; split: of npz files.
    """
    given = read_layout(layout) if layout else None
    for path in files:
        try:
            if (fmt or format_of(path)) == 'npz':
                yield from _clips_of(path, split, recogniser, given)
            else:
                yield from _recordings_of(path, fmt or format_of(path), recogniser, given, scale)
        except UserError as error:
            yield path, error


def _recordings_of(path: Path, fmt: str, recogniser: Recogniser, layout: Layout | None,
                   scale: float | None) -> Iterator[Recording]:
    own, several = recogniser.layout, fmt == 'pyskl'
    if layout is None and fmt in ('npy', 'pyskl') and own not in (None, *LAYOUTS):
        layout = own        # these have no names of joints: those of the model, where the number alone does not tell
    if scale is None:
        scale = 1. if fmt in METRES else recogniser.scale
    # A label counts the classes of its own set.
    labelled = set_of(recogniser.benchmark, None) in LABELLED.get(fmt, ()) if fmt in LABELLED else True
    for found in read_recordings(path, layout, fmt, scale, recogniser.centre):
        _check_joints(path, found.num_joints, found.layout, recogniser)
        yield Recording(path, found.name, found.frames, found.label if labelled else None, several)


def _clips_of(path: Path, split: str, recogniser: Recogniser,
              layout: Layout | None) -> Iterator[Recording | tuple[Path, UserError]]:
    x = open_member(path, f'x_{split}', REMEDY)
    joints = x.shape[2] // 3 if x.ndim == 3 else 0
    if joints % recogniser.num_joints:
        told = layout or next((one for one in LAYOUTS if joints in (len(one.joints), 2 * len(one.joints))), None)
        _check_joints(path, len(told.joints) if told else joints, told, recogniser)
    if layout:
        _check_joints(path, len(layout.joints), layout, recogniser)
    dataset = SkeletonDataset(path, split, recogniser.num_joints)
    labelled = recogniser.class_names is None or len(recogniser.class_names) == dataset.num_classes
    for row, (name, label) in enumerate(zip(dataset.names.tolist(), dataset.label.tolist(), strict=True)):
        batch = dataset[[(row, 0)]]
        yield (path, batch) if isinstance(batch, UserError) else Recording(path, name, batch.frames.numpy(),
                                                                           label if labelled else None, True)


def _check_joints(path: Path, count: int, layout: Layout | None, recogniser: Recogniser) -> None:
    own, layout = recogniser.layout, layout or known_layout(count)

    def told(number: int, one: Layout | None) -> str:
        return f'{number} joints' + (f' ({one.name})' if one else '')

    if count != recogniser.num_joints or (own and layout and own.joints != layout.joints):
        raise UserError(f'{path}: bodies of {told(count, layout)}, the model is of {told(recogniser.num_joints, own)}; '
                        'give a checkpoint of such joints, or recordings of the model\'s')


# ---- windows ---------------------------------------------------------------------------------------------------------


def cut(num_frames: int, window: int | None, hop: int | None) -> list[Window]:
    """Windows of `window` frames every `hop` (None: half of it), the last one at the very end; all lie inside.

    None: one over everything, as for recordings that are shorter. Each frame belongs to the window whose middle is
    nearest to its own.
    """
    if window is None or window >= num_frames:
        return [Window(0, num_frames, 0, num_frames)]
    last = num_frames - window
    starts = [*range(0, last, hop or max(window // 2, 1)), last]
    # The border of two windows lies half-way between their middles; frame f reaches from f to f + 1.
    borders = [0, *(-((1 - one - other - window) // 2) for one, other in zip(starts, starts[1:], strict=False)),
               num_frames]
    return [Window(start, start + window, begin, stop)
            for start, begin, stop in zip(starts, borders, borders[1:], strict=False)]


def timeline(windows: Sequence[Window], scores: np.ndarray) -> list[Segment]:
    """Neighbouring windows of one label (the likeliest, of scores (windows, C)) as one; a gap parts them."""
    def key(row: int) -> tuple[int, int]:
        return int(scores[row].argmax()), gaps[row]

    gaps = np.cumsum([0, *(one.stop != other.begin for one, other in zip(windows, windows[1:], strict=False))])
    segments = []
    for (label, _), rows in groupby(range(len(windows)), key):
        rows = list(rows)
        segments.append(Segment(windows[rows[0]].begin, windows[rows[-1]].stop, label,
                                float(scores[rows, label].mean())))
    return segments


class Clock:
    """Seconds spent on reading and on computing, and what came of it."""

    def __init__(self):
        self.reading = self.computing = 0.
        self.clips = 0


def predict_all(recogniser: Recogniser, recordings: Iterator[Recording], batch_size: int, window: int | None = None,
                hop: int | None = None, clock: Clock | None = None) -> Iterator[Prediction]:
    """A prediction for each recording, in order; `batch_size` clips or windows are computed at a time.

    Windows without any body are left out.
    """
    clock = clock or Clock()

    def pieces() -> Iterator[tuple[int, Recording, Window, np.ndarray]]:
        for number, recording in enumerate(recordings):
            for place in cut(len(recording.frames), window, hop):
                frames = _piece(recording, place, recogniser, window is not None)
                if frames is not None:
                    yield number, recording, place, frames

    def computed():
        source = _batched(pieces(), batch_size)
        while True:
            began = time.perf_counter()
            part = next(source, None)
            read = time.perf_counter()
            clock.reading += read - began
            if part is None:
                return
            found = recogniser.predict([piece[3] for piece in part])
            clock.computing += time.perf_counter() - read
            clock.clips += len(part)
            for row, piece in enumerate(part):
                yield piece[:3], {name: values[row] for name, values in found.items()}

    for _, rows in groupby(computed(), lambda item: item[0][0]):
        places, found = zip(*rows, strict=True)
        recording = places[0][1]
        yield Prediction(str(recording), recording.name, len(recording.frames), recording.label,
                         [place for _, _, place in places], np.stack([one['features'] for one in found]),
                         np.stack([one['scores'] for one in found]) if 'scores' in found[0] else None)


def _piece(recording: Recording, place: Window, recogniser: Recogniser, windows: bool) -> np.ndarray | None:
    """The window's clip (T', M, V, 3) as the feeder would take it; None when nobody is in it.

    A window begins where a recording of its own would: bodies are moved to the origin anew.
    """
    frames = recording.frames[place.start:place.end]
    if windows:
        if not frames.any():
            return None
        if recogniser.centre:
            frames = centred(frames, recogniser.layout)
    if recording.several and not windows:
        return frames       # counted already, and to count twice may leave out the end
    return recorded(frames.reshape(len(frames), -1), str(recording)).reshape(-1, *frames.shape[1:])
