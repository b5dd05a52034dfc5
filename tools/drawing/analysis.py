"""Analysis of a clip with a model: mask, predicted motion, attention, classes. Drawn by pictures.py.

Axis letters: N samples, M bodies, T frames, V joints, P segments of u frames, L = P·V tokens, C coordinates.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from feeder.augment import ClipMaker
from feeder.classes import find_class_names, read_class_names
from feeder.dataset import Batch, SkeletonDataset
from feeder.layouts import Layout, plain_name
from model_mamp import MAMP, motion, motion_intensity, patchify
from model_transformer import ActionTransformer, SkeletonEncoder
from util.errors import UserError, printable

Model = MAMP | ActionTransformer | SkeletonEncoder


class Clip(NamedTuple):
    """A clip as the input of a model in evaluation."""

    joints: torch.Tensor        # (1, C, T, V, M) positions in metres
    stream: torch.Tensor        # the model's input: joints, bones or velocities, same shape
    title: str
    label: int | None           # true class, if the model has it
    layout: Layout | None       # None: not known
    unit: str = 'cm'            # of the coordinates times 100


@dataclass(frozen=True)
class Attention:
    """Attention that one encoder block pays to each joint-segment."""

    weight: np.ndarray          # (P, V) in multiples of uniform attention
    block: int                  # numbered from 0
    head: int | None            # None: mean of all heads
    query: tuple[int, int] | None       # joint and segment of the query; None: mean of all


@dataclass(frozen=True)
class MotionPrediction:
    """Prediction of the masked tokens by a pre-trained model; (T, V, 3) in metres (per frame)."""

    masked: np.ndarray          # (P, V) bool
    true: np.ndarray            # (T, V, 3)
    pred: np.ndarray            # (T, V, 3); a normalised prediction is rescaled to each token's true mean and spread
    target_values: np.ndarray   # (n, u·C) target of the masked tokens, as in the loss
    pred_values: np.ndarray     # (n, u·C) prediction of these values
    metrics: dict[str, float]
    target: str                 # motion or joint
    normalised: bool


@dataclass(frozen=True)
class ClipAnalysis:
    """The analysis of one body of a clip."""

    clip: Clip
    body: int
    u: int
    pose: np.ndarray            # (T, V, 3) joint positions in metres
    intensity: np.ndarray       # (P, V) motion intensity in metres, as in masking
    attention: Attention
    stream: str
    prediction: MotionPrediction | None     # of a pre-trained model
    classes: np.ndarray | None              # (classes,) probabilities of a classifier
    class_names: list[str]


def load_clip(path: str | Path, split: str, row: int, settings: dict, layout: Layout | None) -> Clip:
    """Load clip `row` in a split of a dataset file, as a model with these settings receives it in evaluation.

    Raises UserError for an invalid file, a row outside the split, or a clip with NaN.
    """
    dataset = SkeletonDataset(path, split, settings['num_joints'])
    if not 0 <= row < len(dataset):
        raise UserError(f'--clip {row}: {split} of {path} has clips 0 to {len(dataset) - 1}; choose one of them')
    if dataset.keypoints != settings.get('keypoints', '3d'):
        raise UserError(f'{path}: has {dataset.keypoints.upper()} joints, unlike the training data; use another file')
    return read_clip(dataset, row, settings, layout)


def read_clip(dataset: SkeletonDataset, row: int, settings: dict, layout: Layout | None) -> Clip:
    """Return clip `row` of an open split; its label only if the file has as many classes as the model."""
    batch = dataset[[(row, 0)]]
    has_label = dataset.num_classes == (settings.get('num_classes') or dataset.num_classes)
    label = int(batch.label) if has_label else None
    name = dataset.names[row]
    title = f'{dataset.path.stem}, {dataset.split} clip {row}'
    title += '' if name == f'{dataset.split}_{row}' else f' ({name})'
    names = read_class_names(dataset.path, dataset.num_classes) \
        or find_class_names(dataset.path.stem, dataset.num_classes)
    title += f': {names[label]}' if names and label is not None else ''
    return make_clip(batch, settings, layout, title, label)


def make_clip(batch: Batch, settings: dict, layout: Layout | None, title: str, label: int | None) -> Clip:
    """Return the only clip of a batch, as a model with these settings receives it in evaluation."""
    keypoints = settings.get('keypoints', '3d')
    joints = ClipMaker(settings['num_frames'], 'joint', 0).eval_view(batch)
    stream = ClipMaker(settings['num_frames'], settings['stream'], 0, layout=layout,
                       keypoints=keypoints).derive_stream(joints)
    if keypoints == '2d':       # drawn in the plane z = 0
        joints = F.pad(joints[:, :2], (0, 0, 0, 0, 0, 0, 0, 1))
    return Clip(joints, stream, printable(title), label, layout, '% of body unit' if keypoints == '2d' else 'cm')


@contextlib.contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Use eval mode, without gradients and without compiling new shapes."""
    training = model.training
    with torch.inference_mode(), torch.compiler.set_stance('force_eager'):
        model.eval()
        try:
            yield
        finally:
            model.train(training)


def analyse_clip(model: Model, settings: dict, clip: Clip, body: int = 0, seed: int = 0, block: int | None = None,
                 head: int | None = None, query: tuple[int, int] | None = None,
                 class_names: list[str] | None = None) -> ClipAnalysis:
    """Analyse one body of a clip; `seed` determines the mask, and `block` None is the last encoder block.

    The model and PyTorch's random generators are unchanged afterwards, so that this can be called during training.
    """
    with evaluation_mode(model):
        bodies = model.fold_bodies(clip.stream)                                             # (M, T, V, C)
        classes, prediction = None, None
        if isinstance(model, ActionTransformer):
            classes, class_names = classify(model, settings, clip, class_names)
        if isinstance(model, MAMP):
            prediction = predict_motion(model, settings, bodies, seed)[body]
        return ClipAnalysis(
            clip, body, model.t_patch_size, model.fold_bodies(clip.joints)[body].cpu().numpy(),
            intensities(model, settings, bodies)[body],
            block_attention(model, bodies[[body]], len(model.blocks) - 1 if block is None else block, head, query),
            settings['stream'], prediction, classes, class_names or [])


def classify(model: ActionTransformer, settings: dict, clip: Clip,
             class_names: list[str] | None) -> tuple[np.ndarray, list[str]]:
    """Return the class probabilities (classes,) of a clip, and the names of the classes."""
    classes = model(clip.stream).float().softmax(1)[0].cpu().numpy()
    return classes, class_names or find_class_names(settings['benchmark'], len(classes)) \
        or [f'class {i}' for i in range(len(classes))]


def intensities(model: Model, settings: dict, bodies: torch.Tensor) -> np.ndarray:
    """Return the motion intensity (M, P, V) in metres of bodies (M, T, V, C), as in masking."""
    coordinates = bodies[..., :2] if settings.get('keypoints') == '2d' else bodies
    intensity = motion_intensity(patchify(coordinates, model.t_patch_size))
    return intensity.view(len(bodies), -1, model.num_joints).cpu().numpy()


def block_attention(model: Model, bodies: torch.Tensor, block: int, head: int | None,
                    query: tuple[int, int] | None) -> Attention:
    """Return the attention to each token of one body (1, T, V, C), in multiples of 1 / L."""
    weights = model.attention(bodies, block)[0]                                             # (H, L, L)
    weights = weights.mean(0) if head is None else weights[head]
    received = weights.mean(0) if query is None else weights[query[1] * model.num_joints + query[0]]
    received = received * len(received)
    return Attention(received.view(-1, model.num_joints).float().cpu().numpy(), block, head, query)


def predict_motion(model: MAMP, settings: dict, bodies: torch.Tensor, seed: int) -> list[MotionPrediction]:
    """Mask and predict all bodies (M, T, V, C) of a clip as in pre-training; returns the result for each of them.

    `settings` holds mask_ratio, motion_aware_tau and motion_stride.
    """
    generator = torch.Generator().manual_seed(seed)
    uniform = torch.rand(len(bodies), model.num_segments * model.num_joints, generator=generator).to(bodies.device)
    ids_keep, ids_restore, mask = model.draw_mask(bodies, settings['mask_ratio'], settings['motion_aware_tau'], uniform)
    pred = model.forward_decoder(model.forward_encoder(bodies, ids_keep), ids_restore).float()      # (M, L, u·C)
    target = model.prediction_target(bodies, settings['motion_stride'])                     # (M, L, u·C)
    bodies = bodies[..., :model.target_dim]
    signal = motion(bodies, settings['motion_stride']) if model.target == 'motion' else bodies
    true = patchify(signal, model.t_patch_size).flatten(1, 2)                               # (M, L, u·C)
    rescaled = pred
    if model.norm_skes_loss:
        rescaled = pred * (true.var(dim=-1, keepdim=True) + 1e-6).sqrt() + true.mean(dim=-1, keepdim=True)
    rescaled = rescaled.view(len(bodies), model.num_segments, model.num_joints, model.t_patch_size, -1)
    rescaled = rescaled.transpose(2, 3).flatten(1, 2)                                       # (M, T, V, 2 or 3)
    signal, rescaled = (F.pad(values, (0, 3 - model.target_dim)) for values in (signal, rescaled))
    return [_body_prediction(model, *values) for values in zip(mask == 1, target, pred, signal, rescaled, strict=True)]


def _body_prediction(model: MAMP, masked: torch.Tensor, target: torch.Tensor, pred: torch.Tensor, true: torch.Tensor,
                     rescaled: torch.Tensor) -> MotionPrediction:
    """Return the result for one body: mask (L,), target and prediction (L, u·C), motion (T, V, 3)."""
    target_values, pred_values = target[masked].cpu().numpy(), pred[masked].cpu().numpy()
    metrics = prediction_metrics(target_values, pred_values) | {'masked': float(masked.float().mean())}
    return MotionPrediction(masked.view(-1, model.num_joints).cpu().numpy(), true.cpu().numpy(),
                            rescaled.cpu().numpy(), target_values, pred_values, metrics, model.target,
                            model.norm_skes_loss)


def prediction_metrics(target: np.ndarray, pred: np.ndarray) -> dict[str, float]:
    """Compute mean squared errors, and R² and correlation r if they are defined, of arrays of one shape.

    'loss' is the error of the prediction, 'loss_zero' of predicting 0, 'loss_mean' of predicting the mean of the
    target.
    """
    target, pred = target.astype(np.float64).ravel(), pred.astype(np.float64).ravel()
    metrics = {'loss': float(np.square(pred - target).mean()), 'loss_zero': float(np.square(target).mean()),
               'loss_mean': float(target.var())}
    if target.std() > 0:
        metrics['r2'] = 1 - metrics['loss'] / metrics['loss_mean']
        if pred.std() > 0:
            metrics['r'] = float(np.corrcoef(target, pred)[0, 1])
    return metrics


def parse_query(layout: Layout, joint: str, segment: str, segments: int) -> tuple[int, int]:
    """Convert joint (name or number) and segment of --query to numbers; raises UserError for unknown ones."""
    numbers = {plain_name(name): i for i, name in enumerate(layout.joints)} | {
        str(i): i for i in range(len(layout.joints))}
    number = numbers.get(plain_name(joint))
    if number is None:
        raise UserError(f'--query {joint}: unknown joint of {layout.name}; choose one of {", ".join(layout.joints)}')
    if not segment.isdecimal() or int(segment) >= segments:
        raise UserError(f'--query {segment}: unknown segment; choose a number from 0 to {segments - 1}')
    return number, int(segment)
