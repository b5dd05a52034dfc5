"""A model from its checkpoint alone: its sizes are read off the weights, and only what they do not show is told."""

from pathlib import Path
from typing import NamedTuple

import torch

from data.prepare_ntu import DATASETS
from feeder.classes import find_class_names, is_preparation, set_of
from feeder.layouts import Layout, checkpoint_layout
from model_mamp import MAMP
from model_transformer import ActionTransformer, SkeletonEncoder
from util import checkpoint
from util.config import settings_for
from util.errors import UserError

BODIES = {'ntu60': 2, 'ntu120': 2, 'pku': 2, 'synth': 2, 'nwucla': 1}      # of a clip of these sets
CLASSIFIERS = ('a linear probe', 'fine-tuning')
STAGES = {'pre-training': 'pretrain', 'a linear probe': 'linprobe', 'fine-tuning': 'finetune'}


def sizes_of(weights: dict, path: str | Path) -> dict[str, int | float]:
    """The settings that the weights' shapes show: all sizes of the model but `num_heads`, and of a head num_classes.

    UserError when a weight that shows one is missing or has another number of axes.
    """
    def shape(name: str, axes: int) -> tuple[int, ...]:
        if name not in weights:
            raise UserError(f'{path}: {name} is missing, so it is no checkpoint of this model; take another one')
        if weights[name].ndim != axes or 0 in weights[name].shape:
            raise UserError(f'{path}: {name} is {tuple(weights[name].shape)}, where {axes} axes are expected; take '
                            'another checkpoint')
        return tuple(weights[name].shape)

    def depth(blocks: str) -> int:
        return len({name.split('.')[1] for name in weights if name.startswith(f'{blocks}.')})

    width, _, frames, _ = shape('joints_embed.proj.weight', 4)
    sizes = {'num_frames': shape('temp_embed', 4)[1] * frames, 'num_joints': shape('pos_embed', 4)[2],
             't_patch_size': frames, 'dim_feat': width, 'depth': depth('blocks'),
             'mlp_ratio': shape('blocks.0.mlp.fc1.weight', 2)[0] / width}
    stage = checkpoint.stage_of(weights)
    if stage == 'pre-training':
        return sizes | {'decoder_dim_feat': shape('mask_token', 3)[2], 'decoder_depth': depth('decoder_blocks')}
    if stage in STAGES:
        head = 'head.fc2.weight' if stage == 'fine-tuning' else 'head.fc.1.weight'
        return sizes | {'num_classes': shape(head, 2)[0]}
    return sizes


def make_model(stage: str, weights: dict, settings: dict, path: str | Path) -> SkeletonEncoder:
    """The model that a stage trains ('pretrain', 'linprobe', 'finetune') or the 'encoder' alone, in eval mode.

    It has the weights, just these, and takes memory only when they fit. UserError, naming the checkpoint, when the
    settings make no model or the weights are not its.
    """
    constructor, more = {'encoder': SkeletonEncoder, 'pretrain': MAMP}.get(stage, ActionTransformer), {}
    if constructor is ActionTransformer:
        more = {'protocol': stage}
    heads = settings.get('num_heads')
    try:
        if type(heads) is not int or heads < 1:
            raise ValueError(f'num_heads is {heads!r:.40}')
        with torch.device('meta'):
            model = constructor(**settings_for(constructor, settings), **more)
    except (ValueError, TypeError, RuntimeError, ZeroDivisionError, OverflowError) as error:
        raise UserError(f'{path}: its settings make no model ({" ".join(str(error).split())}); take another '
                        'checkpoint') from error
    problems = checkpoint.misfits(model, weights) or ', '.join(
        f'{name} is {weights[name].dtype}' for name, own in model.state_dict().items()
        if weights[name].dtype != own.dtype)
    if problems:
        raise UserError(f'{path}: its weights make no whole model: {problems}; take another checkpoint')
    model = model.to_empty(device='cpu')
    checkpoint.load_model(model, weights, path, resize=False)
    return model.eval()


def settings_in(state: dict, path: str | Path) -> dict:
    """The settings that a checkpoint of ours was trained with, all sizes those of its weights.

    UserError for one without settings, and where the stream or the benchmark cannot be.
    """
    told = state['args']
    if 'num_heads' not in told:
        raise UserError(f'{path}: not a checkpoint of main_pretrain.py, main_linprobe.py or main_finetune.py (no '
                        'settings in it); one of the authors\' is converted with tools/export.py --authors')
    sizes = sizes_of(state['model'], path)
    settings = told | sizes | {'mlp_ratio': told.get('mlp_ratio', sizes['mlp_ratio'])}     # rounded in the weights
    if settings.get('stream') not in ('joint', 'bone', 'velocity'):
        raise UserError(f'{path}: its settings name no stream that is known; take another checkpoint')
    if not isinstance(settings.get('benchmark'), str | None):
        raise UserError(f'{path}: its benchmark is no text; take another checkpoint')
    return settings


class Facts(NamedTuple):
    """What a trained model expects of recordings, and what its classes are called."""

    layout: Layout | None           # of the joints; None where nobody knows
    bodies: int                     # of a clip
    repeats_body: bool              # whether the only body is repeated, as in NTU RGB+D 120, or followed by zeros
    centre: bool                    # whether bodies are moved to the origin
    scale: float                    # metres in a unit of the files without one
    class_names: list[str] | None   # label 0 first, 'class 0', … where nobody knows them; None: of a model without


def facts_of(state: dict, settings: dict, path: str | Path) -> Facts:
    """What a checkpoint with these settings tells; what it does not, from the data set that its benchmark is of.

    Raises UserError for class names of another number than classes, and for facts that cannot be.
    """
    classes, benchmark = settings.get('num_classes'), settings.get('benchmark')
    if checkpoint.stage_of(state['model']) not in CLASSIFIERS:
        classes = None
    own, told = state.get('classes'), state.get('prepared')
    if own is not None and len(own) != classes:
        raise UserError(f'{path}: {len(own)} class names for {classes} classes; take another checkpoint')
    if told is not None and not is_preparation(told):
        raise UserError(f'{path}: does not tell how its data were prepared; take another checkpoint')
    names = own or find_class_names(benchmark, classes)
    # A set of one's own tells what it is; a name like 'ntu_gym' or 51 classes say nothing of it.
    known = None if told or own or (classes and not names) else set_of(benchmark, None if benchmark else classes)
    # Authors' clips of 25 joints have two bodies in every set.
    bodies = state.get('bodies') or BODIES.get(known) or (2 if settings['num_joints'] == 25 else 1)
    return Facts(checkpoint_layout(state, path), bodies, known in DATASETS and DATASETS[known].second == 'copy',
                 told['centre'] if told else known != 'pku', told['scale'] if told else 1.,
                 (names or [f'class {label}' for label in range(classes)]) if classes else None)


def load_whole(path: str | Path, what: str | None = None) -> tuple[SkeletonEncoder, str, dict, dict]:
    """The classifier or encoder of a checkpoint of ours, in eval mode: model, which of both, settings, the checkpoint.

    `what` None: the classifier where there is one. Settings are those it was trained with, sizes those of the weights.
    Raises UserError for a checkpoint without settings, of no stage, or whose weights fit no model.
    """
    state = checkpoint.load(path)
    weights, settings = state['model'], settings_in(state, path)
    kind = checkpoint.stage_of(weights)
    stage = STAGES.get(kind, 'encoder')
    if what is None:
        what = 'classifier' if kind in CLASSIFIERS else 'encoder'
    if what == 'encoder':
        stage, weights = 'encoder', checkpoint.encoder_of(weights)
    elif kind not in CLASSIFIERS:
        raise UserError(f'{path}: is of {kind} and classifies nothing; give --what encoder, or a checkpoint of '
                        'main_linprobe.py or main_finetune.py')
    return make_model(stage, weights, settings, path), what, settings, state
