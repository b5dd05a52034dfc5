"""What a model makes of one clip: its mask, predicted motion, attention, classes. Arrays, drawn by pictures.py.

Axis letters: N samples, M bodies, T frames, V joints, P segments of u frames, L = P·V tokens, C coordinates.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from feeder.augment import ClipMaker
from feeder.classes import find_class_names, read_class_names
from feeder.dataset import Batch, SkeletonDataset
from feeder.layouts import Layout, plain_name
from model_mamp import MAMP, motion, motion_intensity, patchify
from model_transformer import ActionTransformer, SkeletonEncoder
from util import checkpoint
from util.errors import UserError, printable
from util.weights import STAGES, make_model, settings_in

Model = MAMP | ActionTransformer | SkeletonEncoder
HIDING = {'mask_ratio': float, 'motion_stride': int, 'motion_aware_tau': int | float}  # settings that predicting needs


class Clip(NamedTuple):
    """A clip as a model sees it in evaluation, and what is known of it."""

    joints: torch.Tensor        # (1, C, T, V, M) positions in metres
    seen: torch.Tensor          # the same in the model's stream: joints, bones or velocities
    title: str
    label: int | None           # its class, where it is one of the model's
    layout: Layout | None       # None: known by nobody, and nothing of it can be drawn


@dataclass(frozen=True)
class Attention:
    """Where one encoder block looks."""

    weight: np.ndarray          # (P, V) how much each joint-segment is looked at; 1: as in a look at all alike
    block: int                  # from 0
    head: int | None            # None: the mean of all
    query: tuple[int, int] | None       # the joint and segment that look; None: the mean of all


@dataclass(frozen=True)
class Prediction:
    """What a pre-trained model says of what was hidden from it; T, V, 3 in metres (a frame)."""

    hidden: np.ndarray          # (P, V) bool
    true: np.ndarray            # (T, V, 3)
    pred: np.ndarray            # (T, V, 3), of a normalised target put back to each token's true mean and spread
    asked: np.ndarray           # (n, u·C) the target of the hidden tokens, as the loss sees it
    answered: np.ndarray        # (n, u·C) the prediction of it
    numbers: dict[str, float]
    target: str                 # motion or joint
    normalised: bool


@dataclass(frozen=True)
class Inside:
    """One body of one clip, and what a model makes of it."""

    clip: Clip
    body: int
    u: int
    pose: np.ndarray            # (T, V, 3) joint positions in metres
    intensity: np.ndarray       # (P, V) metres, as in masking
    attention: Attention
    stream: str
    prediction: Prediction | None       # of a pre-trained model
    classes: np.ndarray | None          # (classes,) probabilities, of a classifier
    class_names: list[str]


def load_model(path: str) -> tuple[Model, dict, dict]:
    """The model of a checkpoint of any stage, in eval mode on the CPU, its settings, and the checkpoint.

    UserError for a checkpoint whose settings do not say what model it is.
    """
    state = checkpoint.load(path)
    settings, stage = settings_in(state, path), STAGES.get(checkpoint.stage_of(state['model']), 'encoder')
    if stage == 'pretrain' and (odd := [name for name, kind in HIDING.items()
                                        if not isinstance(settings.get(name), kind)]):
        raise UserError(f'{path}: its settings do not tell {odd[0]}; take another checkpoint')
    return make_model(stage, state['model'], settings, path), settings, state


def load_clip(path: str | Path, split: str, row: int, settings: dict, layout: Layout | None) -> Clip:
    """Clip `row` of a split of an npz, as the model with these settings sees it in evaluation.

    Raises UserError for a file that is none, a row it has not, or a clip with NaN.
    """
    dataset = SkeletonDataset(path, split, settings['num_joints'])
    if not 0 <= row < len(dataset):
        raise UserError(f'--clip {row}: {split} of {path} has the clips 0 to {len(dataset) - 1}; give one of them')
    return clip_of(dataset, row, settings, layout)


def clip_of(dataset: SkeletonDataset, row: int, settings: dict, layout: Layout | None) -> Clip:
    """Clip `row` of an open split; its class only where the file has as many classes as the model knows, if it does."""
    batch = dataset[[(row, 0)]]
    if isinstance(batch, UserError):
        raise batch
    known = dataset.num_classes == (settings.get('num_classes') or dataset.num_classes)
    label = int(batch.label) if known else None
    name = dataset.names[row]
    where = f'{dataset.path.stem}, {dataset.split} clip {row}'
    named = '' if name == f'{dataset.split}_{row}' else f' ({name})'
    names = read_class_names(dataset.path, dataset.num_classes) \
        or find_class_names(dataset.path.stem, dataset.num_classes)
    action = f': {names[label]}' if names and label is not None else ''
    return seen_as(batch, settings, layout, where + named + action, label)


def seen_as(batch: Batch, settings: dict, layout: Layout | None, title: str, label: int | None) -> Clip:
    """The one clip of a batch as the model with these settings sees it in evaluation."""
    joints = ClipMaker(settings['num_frames'], 'joint', 0).eval_view(batch)
    seen = ClipMaker(settings['num_frames'], settings['stream'], 0, layout=layout).derive_stream(joints)
    return Clip(joints, seen, printable(title), label, layout)


@contextlib.contextmanager
def evaluating(model: nn.Module, eager: bool) -> Iterator[None]:
    """Eval mode and no gradients for a while; `eager`: blocks that are compiled run as they are written meanwhile."""
    training = model.training
    with torch.inference_mode(), torch.compiler.set_stance('force_eager') if eager else contextlib.nullcontext():
        model.eval()
        try:
            yield
        finally:
            model.train(training)


def look_inside(model: Model, settings: dict, clip: Clip, body: int = 0, seed: int = 0, block: int | None = None,
                head: int | None = None, query: tuple[int, int] | None = None, compiled: bool = False,
                class_names: list[str] | None = None) -> Inside:
    """What the model makes of one body of the clip. `seed` draws the mask; block None is the last one.

    class_names: of a model of a data set of one's own; None: those of its benchmark.

    Takes no random number from PyTorch's generators and leaves the model as it was, so that a run may look too.
    """
    u = model.t_patch_size
    with evaluating(model, compiled):
        bodies = model.fold_bodies(clip.seen)
        classes = model(clip.seen).float().softmax(1)[0].cpu().numpy() if isinstance(model, ActionTransformer) else None
        return Inside(
            clip, body, u, model.fold_bodies(clip.joints)[body].cpu().numpy(),
            motion_intensity(patchify(bodies[[body]], u))[0].view(-1, model.num_joints).cpu().numpy(),
            attention_of(model, bodies[[body]], len(model.blocks) - 1 if block is None else block, head, query),
            settings['stream'], predict(model, settings, bodies, body, seed) if isinstance(model, MAMP) else None,
            classes, [] if classes is None else class_names or find_class_names(settings['benchmark'], len(classes))
            or [f'class {i}' for i in range(len(classes))])


def attention_of(model: Model, bodies: torch.Tensor, block: int, head: int | None,
                 query: tuple[int, int] | None) -> Attention:
    """Where one body (1, T, V, C) is looked at, in multiples of 1 / L."""
    weights = model.attention(bodies, block)[0]                                         # (H, L, L)
    weights = weights.mean(0) if head is None else weights[head]
    looked_at = weights.mean(0) if query is None else weights[query[1] * model.num_joints + query[0]]
    looked_at = looked_at * len(looked_at)
    return Attention(looked_at.view(-1, model.num_joints).float().cpu().numpy(), block, head, query)


def predict(model: MAMP, settings: dict, bodies: torch.Tensor, body: int, seed: int) -> Prediction:
    """Hides and predicts as in pre-training, all bodies (M, T, V, C) of a clip; what becomes of one of them."""
    generator = torch.Generator().manual_seed(seed)
    uniform = torch.rand(len(bodies), model.num_segments * model.num_joints, generator=generator).to(bodies.device)
    order = model.draw_order(bodies, settings['motion_aware_tau'], uniform)
    latent = model.encode_kept(bodies, order, settings['mask_ratio'])
    pred, mask = model.decode(latent, order)[body].float(), model.mask_of(order, latent.shape[1])[body] == 1
    signal = motion(bodies, settings['motion_stride']) if model.target == 'motion' else bodies
    asked = model.target_of(bodies, settings['motion_stride'])[body]                    # (L, u·C)
    true = patchify(signal[[body]], model.t_patch_size).flatten(1, 2)[0]
    shown = pred
    if model.norm_skes_loss:
        shown = pred * (true.var(dim=-1, keepdim=True) + 1e-6).sqrt() + true.mean(dim=-1, keepdim=True)
    shown = shown.view(model.num_segments, model.num_joints, -1, 3).transpose(1, 2).flatten(0, 1)
    asked, answered = (part[mask].cpu().numpy() for part in (asked, pred))
    return Prediction(mask.view(-1, model.num_joints).cpu().numpy(), signal[body].cpu().numpy(), shown.cpu().numpy(),
                      asked, answered, quality(asked, answered) | {'hidden': float(mask.float().mean())},
                      model.target, model.norm_skes_loss)


def quality(asked: np.ndarray, answered: np.ndarray) -> dict[str, float]:
    """How well `answered` fits `asked`, arrays of one shape: mean squared errors, and r and R² where they are defined.

    'loss' is the prediction's, 'loss_zero' that of saying 0, 'loss_mean' that of saying the mean of what is asked.
    """
    asked, answered = asked.astype(np.float64).ravel(), answered.astype(np.float64).ravel()
    spread, spread_answered = asked.std(), answered.std()
    found = {'loss': float(np.square(answered - asked).mean()), 'loss_zero': float(np.square(asked).mean()),
             'loss_mean': float(spread ** 2)}
    if spread > 0:
        found['r2'] = 1 - found['loss'] / found['loss_mean']
        if spread_answered > 0:
            found['r'] = float(np.corrcoef(asked, answered)[0, 1])
    return found


def place_of(layout: Layout, joint: str, segment: str, segments: int) -> tuple[int, int]:
    """--query's joint, by name or number, and its segment as numbers; UserError when there is no such."""
    known = {plain_name(name): i for i, name in enumerate(layout.joints)} | {
        str(i): i for i in range(len(layout.joints))}
    chosen = known.get(plain_name(joint))
    if chosen is None:
        raise UserError(f'--query {joint}: no joint of {layout.name}; give one of {", ".join(layout.joints)}')
    if not segment.isdecimal() or int(segment) >= segments:
        raise UserError(f'--query {segment}: not one of the segments 0 to {segments - 1}')
    return chosen, int(segment)
