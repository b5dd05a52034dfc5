"""What a model makes of one clip: its mask, predicted motion, attention, classes. Arrays, drawn by util/pictures.py.

Axis letters: N samples, M bodies, T frames, V joints, P segments of u frames, L = P·V tokens, C coordinates.
"""

import argparse
import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from feeder.augment import ClipMaker
from feeder.classes import names_of
from feeder.dataset import SkeletonDataset
from feeder.layouts import Layout, layout_of
from model_mamp import MAMP, motion, motion_intensity, patchify
from model_transformer import ActionTransformer, SkeletonEncoder
from util import checkpoint
from util.args import settings_for
from util.errors import UserError
from util.memory import check_weights

Model = MAMP | ActionTransformer | SkeletonEncoder
NEEDED = {  # of a checkpoint's settings: what they must be, of every model and of some
    SkeletonEncoder: {'data_path': str, 'benchmark': str, 'stream': str, 'num_joints': int, 'num_frames': int,
                      't_patch_size': int, 'dim_feat': int, 'depth': int, 'num_heads': int, 'mlp_ratio': int | float},
    MAMP: {'decoder_dim_feat': int, 'decoder_depth': int, 'mask_ratio': float, 'motion_stride': int,
           'motion_aware_tau': int | float, 'target': str, 'norm_skes_loss': bool},
    ActionTransformer: {'num_classes': int},
}


class Clip(NamedTuple):
    """A clip as a model sees it in evaluation, and what is known of it."""

    joints: torch.Tensor        # (1, C, T, V, M) positions in metres
    seen: torch.Tensor          # the same in the model's stream: joints, bones or velocities
    title: str
    label: int | None           # its class, where it is one of the model's


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
    layout: Layout
    u: int
    pose: np.ndarray            # (T, V, 3) joint positions in metres
    intensity: np.ndarray       # (P, V) metres, as in masking
    attention: Attention
    stream: str
    prediction: Prediction | None       # of a pre-trained model
    classes: np.ndarray | None          # (classes,) probabilities, of a classifier
    class_names: list[str]


def load_model(path: str) -> tuple[Model, dict]:
    """The model of a checkpoint of any stage, in eval mode on the CPU, and the settings it was trained with.

    UserError for a checkpoint whose settings do not say what model it is, or say what its weights are not.
    """
    state = checkpoint.load(path)
    settings, stage = state['args'], checkpoint.stage_of(state['model'])
    kind = {'pre-training': MAMP, 'an encoder alone': SkeletonEncoder}.get(stage, ActionTransformer)
    needed = NEEDED[SkeletonEncoder] | NEEDED[kind]
    if lacking := [name for name, type_ in needed.items() if not isinstance(settings.get(name), type_)]:
        raise UserError(f'{path}: its settings do not tell {", ".join(lacking[:3])}; give a checkpoint that '
                        'main_pretrain.py, main_linprobe.py or main_finetune.py wrote')
    chosen = settings_for(kind, settings)
    if kind is ActionTransformer:
        chosen['protocol'] = 'finetune' if stage == 'fine-tuning' else 'linprobe'
    try:
        check_weights(argparse.Namespace(**settings))
        model = kind(**chosen)
        ClipMaker(settings['num_frames'], settings['stream'], 0)
    except (ValueError, TypeError, RuntimeError, ZeroDivisionError, OverflowError) as error:
        raise UserError(f'{path}: its settings make no model ({" ".join(str(error).split())}); take another '
                        'checkpoint') from error
    checkpoint.load_model(model, state['model'], path)
    return model.eval(), settings


def load_clip(path: str, split: str, row: int, settings: dict) -> Clip:
    """Clip `row` of a split of an npz, as the model with these settings sees it in evaluation.

    Raises UserError for a file that is none, a row it has not, or a clip with NaN.
    """
    dataset = SkeletonDataset(path, split, settings['num_joints'])
    if not 0 <= row < len(dataset):
        raise UserError(f'--clip {row}: {split} of {path} has the clips 0 to {len(dataset) - 1}; give one of them')
    return clip_of(dataset, row, settings)


def clip_of(dataset: SkeletonDataset, row: int, settings: dict) -> Clip:
    """Clip `row` of an open split; its class only where the file has as many classes as the model knows, if it does."""
    batch = dataset[[(row, 0)]]
    if isinstance(batch, UserError):
        raise batch
    joints = ClipMaker(settings['num_frames'], 'joint', 0).eval_view(batch)
    seen = ClipMaker(settings['num_frames'], settings['stream'], 0).derive_stream(joints)
    known = dataset.num_classes == (settings.get('num_classes') or dataset.num_classes)
    label = int(batch.label) if known else None
    name = dataset.names[row]
    where = f'{dataset.path.stem}, {dataset.split} clip {row}'
    named = '' if name == f'{dataset.split}_{row}' else f' ({name})'
    names = names_of(dataset.path.stem, dataset.num_classes)
    action = f': {names[label]}' if names and label is not None else ''
    return Clip(joints, seen, where + named + action, label)


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
                head: int | None = None, query: tuple[int, int] | None = None, compiled: bool = False) -> Inside:
    """What the model makes of one body of the clip. `seed` draws the mask; block None is the last one.

    Takes no random number from PyTorch's generators and leaves the model as it was, so that a run may look too.
    """
    layout, u = layout_of(model.num_joints), model.t_patch_size
    with evaluating(model, compiled):
        bodies = model.fold_bodies(clip.seen)
        classes = model(clip.seen).float().softmax(1)[0].cpu().numpy() if isinstance(model, ActionTransformer) else None
        return Inside(
            clip, body, layout, u, model.fold_bodies(clip.joints)[body].cpu().numpy(),
            motion_intensity(patchify(bodies[[body]], u))[0].view(-1, model.num_joints).cpu().numpy(),
            attention_of(model, bodies[[body]], len(model.blocks) - 1 if block is None else block, head, query),
            settings['stream'], predict(model, settings, bodies, body, seed) if isinstance(model, MAMP) else None,
            classes, _names(settings, classes))


def _names(settings: dict, classes: np.ndarray | None) -> list[str]:
    if classes is None:
        return []
    return names_of(settings['benchmark'], len(classes)) or [f'class {i}' for i in range(len(classes))]


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


def place_of(num_joints: int, joint: str, segment: str, segments: int) -> tuple[int, int]:
    """--query's joint, by name or number, and its segment as numbers; UserError when there is no such."""
    layout = layout_of(num_joints)
    known = {name.replace(' ', '_'): i for i, name in enumerate(layout.joints)} | {
        str(i): i for i in range(len(layout.joints))}
    chosen = known.get(joint.strip().lower().replace(' ', '_'))
    if chosen is None:
        raise UserError(f'--query {joint}: no joint of {layout.name}; give one of {", ".join(layout.joints)}')
    if not segment.isdecimal() or int(segment) >= segments:
        raise UserError(f'--query {segment}: not one of the segments 0 to {segments - 1}')
    return chosen, int(segment)


