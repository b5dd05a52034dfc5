"""A model from its checkpoint alone: its sizes are read off the weights, and only what they do not show is told."""

from pathlib import Path

import torch

from model_mamp import MAMP
from model_transformer import ActionTransformer, SkeletonEncoder
from util import checkpoint
from util.args import settings_for
from util.errors import UserError

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
                        'settings in it); one of the authors\' is converted with main_export.py --authors')
    sizes = sizes_of(state['model'], path)
    settings = told | sizes | {'mlp_ratio': told.get('mlp_ratio', sizes['mlp_ratio'])}     # rounded in the weights
    if settings.get('stream') not in ('joint', 'bone', 'velocity'):
        raise UserError(f'{path}: its settings name no stream that is known; take another checkpoint')
    if not isinstance(settings.get('benchmark'), str | None):
        raise UserError(f'{path}: its benchmark is no text; take another checkpoint')
    return settings


def load_whole(path: str | Path, what: str | None = None) -> tuple[SkeletonEncoder, str, dict, dict]:
    """The classifier or encoder of a checkpoint of ours, in eval mode: model, which of both, settings, the checkpoint.

    `what` None: the classifier where there is one. Settings are those it was trained with, sizes those of the weights.
    Raises UserError for a checkpoint without settings, of no stage, or whose weights fit no model.
    """
    state = checkpoint.load(path)
    weights, settings = state['model'], settings_in(state, path)
    stage = STAGES.get(checkpoint.stage_of(weights))
    if stage is None:
        raise UserError(f'{path}: has neither head nor decoder; give a checkpoint of main_pretrain.py, '
                        'main_linprobe.py or main_finetune.py')
    if what is None:
        what = 'encoder' if stage == 'pretrain' else 'classifier'
    if what == 'encoder':
        stage, weights = 'encoder', checkpoint.encoder_of(weights)
    elif stage == 'pretrain':
        raise UserError(f'{path}: is of pre-training and classifies nothing; give --what encoder, or a checkpoint of '
                        'main_linprobe.py or main_finetune.py')
    return make_model(stage, weights, settings, path), what, settings, state
