"""Application of a trained model to recordings, also in notebooks.

>>> from tools.recognition import Recogniser
>>> recogniser = Recogniser(checkpoint, device='cpu')
>>> rng = np.random.default_rng(0)
>>> clip = rng.normal(size=(40, recogniser.num_joints, 3))      # 40 frames of one body, in metres
>>> recogniser.probabilities(clip).shape == (len(recogniser.class_names),)
True
>>> pair = rng.normal(size=(90, 2, recogniser.num_joints, 3))   # 90 frames of two bodies
>>> recogniser.features([clip, pair]).shape == (2, recogniser.width)
True

Axis letters: N clips, T frames, M bodies, V joints, C classes, D feature width.
"""

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np

from data.datasets import find_dataset
from data.formats.recording import Options, make_recording, select_bodies
from engine_finetune import predict
from feeder.augment import ClipMaker
from feeder.classes import find_class_names
from feeder.dataset import pack_clips
from feeder.layouts import Layout, checkpoint_layout
from util.checkpoint import STAGE_TITLES, Checkpoint
from util.dist import World, select_device
from util.errors import UserError
from util.precision import Precision
from util.weights import rebuild_model


class InputSpec(NamedTuple):
    """The input that a trained model expects, and the names of its classes."""

    layout: Layout | None           # None: not known
    bodies: int                     # of a clip
    repeats_body: bool              # a single body is repeated, as in NTU RGB+D 120, instead of padded with zeros
    centre: bool                    # bodies are moved to the origin
    scale: float                    # metres per unit of files without a unit
    class_names: list[str] | None   # label 0 first; None for a model without classes


def input_spec(checkpoint: Checkpoint, path: str | Path) -> InputSpec:
    """Return the input format recorded in a checkpoint, completed from the dataset of its benchmark.

    Raises UserError if the class names do not fit the head, or an entry is invalid.
    """
    benchmark, preparation = checkpoint.args.get('benchmark'), checkpoint.preparation or {}
    classes = checkpoint.args.get('num_classes') if checkpoint.stage in ('linprobe', 'finetune') else None
    names = checkpoint.class_names
    if names is not None and len(names) != classes:
        raise UserError(f'{path}: the checkpoint has {len(names)} class names for {classes} classes; use another one')
    centre, scale = preparation.get('centre', True), preparation.get('scale', 1.)
    if not isinstance(centre, bool) or not isinstance(scale, int | float) or not scale > 0:
        raise UserError(f'{path}: the preparation settings in the checkpoint are invalid; use another one')
    is_custom = names is not None or checkpoint.preparation is not None
    names = names or find_class_names(benchmark, classes)
    # A custom dataset, or one with another number of classes, may have the name of a known one.
    dataset = None if is_custom or (classes and not names) else find_dataset(benchmark)
    # Dataset files of 25 joints have two bodies in all known sets.
    bodies = checkpoint.bodies or (dataset.bodies if dataset else 2 if checkpoint.num_joints == 25 else 1)
    return InputSpec(checkpoint_layout(checkpoint, path), bodies, bool(dataset) and dataset.second_body == 'copy',
                     preparation.get('centre', dataset.centred if dataset else True), scale,
                     (names or [f'class {label}' for label in range(classes)]) if classes else None)


class Recogniser:
    """A trained model for recordings, which are prepared as the training clips were.

    Attributes: class_names (C names, None for a model without classes), num_joints (V), layout, num_bodies (M),
    num_frames (per clip after resizing), width (D), stream, benchmark, method, device, centre and scale (see
    InputSpec).
    """

    def __init__(self, path: str | Path, device: str = 'auto', precision: str | None = None,
                 centre: bool | None = None):
        """
        Args:
            path: checkpoint of main_finetune.py or main_linprobe.py, or, for features only, of main_pretrain.py.
            device: auto (a GPU if there is one), cpu, cuda or cuda:N.
            precision: fp32, tf32 or bf16; by default bf16 on GPUs that support it, otherwise fp32.
            centre: move bodies to the origin; by default as for the training data.

        Raises:
            UserError: the checkpoint is invalid, or the device does not exist.
        """
        self.path, self.device = Path(path), select_device(device)
        model, self.checkpoint = rebuild_model(path)
        settings, spec = self.checkpoint.args, input_spec(self.checkpoint, path)
        self.model = model.to(self.device)
        self.num_joints, self.width, self.num_frames = (settings[name] for name in
                                                        ('num_joints', 'dim_feat', 'num_frames'))
        self.stream, self.benchmark = settings['stream'], settings.get('benchmark') or ''
        self.planar = settings.get('keypoints') == '2d'
        self.method = self.checkpoint.method
        self.class_names, self.layout, self.scale = spec.class_names, spec.layout, spec.scale
        self.num_bodies, self.repeats_body = spec.bodies, spec.repeats_body
        self.centre = spec.centre if centre is None else centre
        self._precision = Precision(precision, self.device)
        self._clip_maker = ClipMaker(self.num_frames, self.stream, seed=0, layout=self.layout,
                                     keypoints=settings.get('keypoints', '3d'))

    def probabilities(self, frames: np.ndarray | Sequence[np.ndarray], batch_size: int = 64) -> np.ndarray:
        """Return class probabilities (C,) float32 of a recording, or (N, C) of a list of recordings of any lengths.

        `frames` are (T, V, 3) or (T, M, V, 3) in metres (2D models: pixels), zeros where a body is absent. Frames
        without any body are dropped, bodies are centred (unless `centre` is False), and their number is adapted (see
        `fit_bodies`). Raises UserError for a model without classes, and for arrays that have another shape, contain NaN
        or are all zero.
        """
        self.check_classes()
        return self._outputs(frames, 'scores', batch_size)

    def features(self, frames: np.ndarray | Sequence[np.ndarray], batch_size: int = 64) -> np.ndarray:
        """Return mean features (D,) float32 of a recording, or (N, D) of a list; arguments as for `probabilities`."""
        return self._outputs(frames, 'features', batch_size)

    def check_classes(self) -> None:
        """Raise UserError if the model has no classification head."""
        if self.class_names is None:
            raise UserError(f'{self.path}: a checkpoint of {STAGE_TITLES[self.checkpoint.stage]} has no classes, only '
                            'features (--features); use a checkpoint of main_finetune.py or main_linprobe.py')

    def _outputs(self, frames: np.ndarray | Sequence[np.ndarray], name: str, batch_size: int) -> np.ndarray:
        is_list = isinstance(frames, list | tuple)
        clips = [self.prepare(clip, f'recording {i} (numbered from 0)')
                 for i, clip in enumerate(frames if is_list else [frames])]
        if not clips:
            raise UserError('the list of recordings is empty; pass at least one')
        outputs = np.concatenate([self.predict(batch)[name] for batch in batched(clips, batch_size)])
        return outputs if is_list else outputs[0]

    def prepare(self, frames: np.ndarray, name: str = 'the recording') -> np.ndarray:
        """Prepare a recording, as accepted by `probabilities`, as a clip (T', M, V, 3) float32 for `predict`."""
        frames = np.asarray(frames)
        numbers = 'x y score, x y in pixels' if self.planar else 'x y z in metres'
        if frames.ndim not in (3, 4) or frames.shape[-2] != self.num_joints or frames.shape[-1] not in (
                (2, 3) if self.planar else (3,)):
            raise UserError(f'{name} has shape {frames.shape}, expected (T, {self.num_joints}, 3) or (T, M, '
                            f'{self.num_joints}, 3): frames, bodies, joints, {numbers}')
        try:
            options = Options(self.layout, centre=self.centre, planar=self.planar)
            return make_recording(self.path, frames[:, None] if frames.ndim == 3 else frames, options).frames
        except UserError as error:
            raise UserError(f'{name}: {error}') from error

    def predict(self, clips: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
        """Return 'features' (N, D) and, for a classifier, 'scores' (N, C) of N prepared clips, as one batch."""
        batch = pack_clips([self.fit_bodies(clip) for clip in clips]).to(self.device)
        return predict(self.model, [batch], self._clip_maker, self._precision, World(0, 1, self.device), len(clips))

    def fit_bodies(self, frames: np.ndarray) -> np.ndarray:
        """Pad or reduce a clip (T, M, V, 3) to the number of bodies that the model was trained with.

        Missing bodies are filled with zeros; for models trained on NTU RGB+D 120, a single body is duplicated instead.
        If there are too many bodies, those with the most motion are kept, as in the preparation of NTU RGB+D; frames in
        which none of them appears are dropped, and the clip is centred again.
        """
        frames = select_bodies(frames, self.num_bodies, self.layout, self.centre, self.planar)
        missing = self.num_bodies - frames.shape[1]
        if self.repeats_body and frames.shape[1] == 1:
            return frames.repeat(self.num_bodies, axis=1)
        return np.pad(frames, ((0, 0), (0, missing), (0, 0), (0, 0))) if missing else frames


def batched(items: Iterable, size: int) -> Iterator[list]:
    """Yield lists of up to `size` items."""
    source = iter(items)
    while batch := list(islice(source, size)):
        yield batch
