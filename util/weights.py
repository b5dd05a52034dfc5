"""Weights of checkpoints: rebuild a model, load an encoder, adapt embeddings, convert checkpoints of the authors' code.
"""

import argparse
import inspect
import logging
import os
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from feeder.layouts import checkpoint_layout, find_layout, match_joints
from model_mamp import MAMP
from model_transformer import ActionTransformer, SkeletonEncoder
from util.checkpoint import STAGE_TITLES, Checkpoint
from util.config import read_settings
from util.errors import UserError, one_line
from util.files import check_outputs
from util.log import code_version

log = logging.getLogger(__name__)

CONSTRUCTORS = {'pretrain': MAMP, 'linprobe': ActionTransformer, 'finetune': ActionTransformer,
                'encoder': SkeletonEncoder}


def create_model(constructor: type, settings: dict, remedy: str = 'correct them', **more) -> nn.Module:
    """Build a model from the settings that `constructor` takes as arguments.

    Raises UserError, with `remedy` at the end, for invalid sizes, or if the model is larger than this machine's memory.
    """
    names = inspect.signature(constructor).parameters
    arguments = {name: settings[name] for name in names if name in settings} | more
    try:
        with torch.device('meta'):
            model = constructor(**arguments)
    except (ValueError, TypeError, RuntimeError, ArithmeticError) as error:
        raise UserError(f'invalid model settings: {one_line(error)}; {remedy}') from error
    size = sum(parameter.nbytes for parameter in model.parameters())
    memory = os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES')
    if size > memory:
        raise UserError(f'invalid model settings: the weights take {size / 1e9:,.0f} GB, but this machine has '
                        f'{memory / 1e9:,.0f} GB of memory; {remedy}')
    return constructor(**arguments)


# ---- a model from a checkpoint ---------------------------------------------------------------------------------------


def rebuild_model(path: str | Path, part: str | None = None) -> tuple[SkeletonEncoder, Checkpoint]:
    """Rebuild the model of a checkpoint: sizes come from weight shapes, the rest from the saved settings.

    Returns the model in eval mode on the CPU, and the checkpoint, whose `args` then hold all sizes. With `part`
    'encoder', the head or decoder is omitted. Raises UserError if the checkpoint has no settings, or weights of another
    model.
    """
    checkpoint = Checkpoint.read(path)
    settings = checkpoint.args
    if 'num_heads' not in settings:
        raise UserError(f'{path}: has no settings, so it was not written by main_pretrain.py, main_linprobe.py or '
                        "main_finetune.py; convert a checkpoint of the authors' code with tools/export.py --authors")
    if settings.get('stream') not in ('joint', 'bone', 'velocity'):
        raise UserError(f'{path}: unknown stream in its settings; use another checkpoint')
    sizes = weight_sizes(checkpoint, path)
    checkpoint.args = settings | sizes | {'mlp_ratio': settings.get('mlp_ratio', sizes['mlp_ratio'])}  # exact ratio
    stage = part or checkpoint.stage
    return _build(stage, checkpoint.args, encoder_weights(checkpoint.model) if part else checkpoint.model, path), \
        checkpoint


def _build(stage: str, settings: dict, weights: dict, path: str | Path) -> SkeletonEncoder:
    more = {'protocol': stage} if stage in ('linprobe', 'finetune') else {}
    try:
        model = create_model(CONSTRUCTORS[stage], settings, remedy='use another checkpoint', **more)
    except UserError as error:
        raise UserError(f'{path}: {error}') from error
    load_weights(model, weights, path)
    return model.eval()


def weight_sizes(checkpoint: Checkpoint, path: str | Path) -> dict[str, int | float]:
    """Return the sizes that follow from the shapes of the weights: all except `num_heads`, and the classes of a head.

    Raises UserError if a weight that is needed for this is missing or has an unexpected shape.
    """
    weights = checkpoint.model

    def shape(name: str, axes: int) -> tuple[int, ...]:
        if name not in weights or weights[name].ndim != axes or 0 in weights[name].shape:
            actual = tuple(weights[name].shape) if name in weights else 'missing'
            raise UserError(f'{path}: not a checkpoint of this model ({name} is {actual}); use another file')
        return tuple(weights[name].shape)

    def depth(blocks: str) -> int:
        return len({name.split('.')[1] for name in weights if name.startswith(f'{blocks}.')})

    width, _, u, _ = shape('joints_embed.proj.weight', 4)
    sizes = {'num_frames': shape('temp_embed', 4)[1] * u, 'num_joints': shape('pos_embed', 4)[2], 't_patch_size': u,
             'dim_feat': width, 'depth': depth('blocks'), 'mlp_ratio': shape('blocks.0.mlp.fc1.weight', 2)[0] / width}
    match checkpoint.stage:
        case 'pretrain':
            sizes |= {'decoder_dim_feat': shape('mask_token', 3)[2], 'decoder_depth': depth('decoder_blocks')}
        case 'finetune':
            linear = 'head.linear.fc.1.weight'
            sizes['num_classes'] = shape(linear if linear in weights else 'head.fc2.weight', 2)[0]
        case 'linprobe':
            sizes['num_classes'] = shape('head.fc.1.weight', 2)[0]
    return sizes


# ---- weights into a model --------------------------------------------------------------------------------------------


def load_weights(model: nn.Module, weights: dict, path: str | Path) -> None:
    """Load all weights strictly. Raises UserError for missing, unexpected, misshapen or non-finite weights."""
    expected = model.state_dict()
    problems = [f'{name} is missing' for name in expected if name not in weights]
    problems += [f'{name} is not a weight of this model' for name in weights if name not in expected]
    problems += [f'{name} is {weights[name].dtype} {tuple(weights[name].shape)}, the model has {own.dtype} '
                 f'{tuple(own.shape)}' for name, own in expected.items() if name in weights
                 and (weights[name].shape != own.shape or weights[name].dtype != own.dtype)]
    if problems:
        more = f' and {len(problems) - 3} more' if len(problems) > 3 else ''
        raise UserError(f'{path}: does not fit the model: {"; ".join(problems[:3])}{more}; use the settings it was '
                        'trained with (the same config files, --dim_feat, --head, …) and data with as many classes')
    if invalid := [name for name, value in weights.items() if not value.isfinite().all()]:
        raise UserError(f'{path}: {invalid[0]} holds NaN or infinity; use another checkpoint')
    model.load_state_dict(weights)


def load_checkpoint(model: nn.Module, checkpoint: Checkpoint, path: str | Path) -> None:
    """Load the weights of a checkpoint of the same stage, for resuming or evaluating. Raises as `load_weights` does."""
    stage = Checkpoint(model.state_dict()).stage
    if checkpoint.stage != stage:
        raise UserError(f'{path}: is a checkpoint of {STAGE_TITLES[checkpoint.stage]}, but this stage is '
                        f'{STAGE_TITLES[stage]}; use one of this stage, or start from its encoder with --finetune')
    load_weights(model, checkpoint.model, path)


def load_encoder(model: nn.Module, checkpoint: Checkpoint, args: argparse.Namespace) -> None:
    """Load the encoder of the checkpoint `args.finetune`, without its decoder or head; the model's head is unchanged.

    Joint embeddings are matched across layouts by joint name; segment embeddings are resized to the number of segments.
    Raises UserError for any other mismatch.
    """
    path, weights = args.finetune, encoder_weights(checkpoint.model)
    source, own = checkpoint_layout(checkpoint, path), find_layout(args.layout, args.num_joints)
    if source and own and source.joints != own.joints:
        weights = map_joints(weights, model, match_joints(source, own, path))
    head = {name: value for name, value in model.state_dict().items() if name.startswith('head.')}
    load_weights(model, resize_temp_embed(weights, model) | head, path)
    if difference := setting_differences(checkpoint.args, args, ('num_heads',)):
        raise UserError(f'{path}: was pre-trained with {difference}; use the same settings')
    if difference := setting_differences(checkpoint.args, args, ('stream', 'num_frames', 'keypoints')):
        log.warning('%s: pre-trained with %s', path, difference)


def load_pretrained(model: nn.Module, args: argparse.Namespace) -> dict:
    """Load the encoder of --finetune, if it is set; returns `method` and `pretraining` as recorded in the result."""
    if args.finetune is None or getattr(args, 'eval', False):
        return {'method': 'random encoder' if hasattr(args, 'random_encoder') else 'scratch', 'pretraining': None}
    checkpoint = Checkpoint.read(args.finetune)
    load_encoder(model, checkpoint, args)
    method = checkpoint.method or 'authors'
    if checkpoint.stage == 'finetune':      # the encoder was trained with labels
        return {'method': f'{method} + supervised', 'pretraining': checkpoint.pretraining}
    pretraining = {name: checkpoint.args[name] for name in
                   ('target', 'motion_aware_tau', 'motion_stride', 'mask_ratio', 'min_crop', 'seed', 'benchmark')
                   if checkpoint.args.get(name) is not None}
    if wrong := [name for name, value in pretraining.items() if not isinstance(value, str | int | float)]:
        raise UserError(f'{args.finetune}: its setting {wrong[0]} has the wrong type; use another checkpoint')
    return {'method': method, 'pretraining': pretraining | {'path': args.finetune, 'epoch': checkpoint.epoch}}


def encoder_weights(weights: dict) -> dict:
    """Return the weights without those of a decoder or head."""
    return {name: value for name, value in weights.items() if not name.startswith(('decoder_', 'mask_token', 'head.'))}


def map_joints(weights: dict, model: nn.Module, sources: Sequence[int | None]) -> dict:
    """Return joint embeddings (1, 1, V, D) in which joint v takes row sources[v]; None keeps the model's row."""
    mapped = model.pos_embed.detach().clone()
    if weights['pos_embed'].shape[3] != mapped.shape[3]:
        return weights      # of another width, which load_weights refuses
    for joint, source in enumerate(sources):
        if source is not None:
            mapped[:, :, joint] = weights['pos_embed'][:, :, source]
    return weights | {'pos_embed': mapped}


def resize_temp_embed(weights: dict, model: nn.Module) -> dict:
    """Resize the segment embedding (1, P, 1, D) to the model's number of segments, bicubically along P."""
    embedding, segments = weights.get('temp_embed'), model.temp_embed.shape[1]
    if embedding is None or embedding.ndim != 4 or embedding.shape[1] == segments or not embedding.is_floating_point():
        return weights      # fits, or load_weights refuses it
    log.info('temp_embed: resized from %d to %d segments', embedding.shape[1], segments)
    image = embedding.permute(0, 3, 1, 2)                                               # (1, D, P, 1)
    image = F.interpolate(image, (segments, 1), mode='bicubic', align_corners=False)
    return weights | {'temp_embed': image.permute(0, 2, 3, 1)}


def setting_differences(settings: dict, args: argparse.Namespace, names: Sequence[str]) -> str:
    """Return the settings stored in a checkpoint that differ from this run's, as text; '' if they are the same."""
    settings = {'keypoints': '3d'} | settings       # older checkpoints do not record it
    return ', '.join(f'{name} {settings[name]} (now {getattr(args, name)})' for name in names
                     if settings.get(name) is not None and settings[name] != getattr(args, name))


# ---- the authors' checkpoints ----------------------------------------------------------------------------------------

# Settings in the authors' args that specify how the weights were trained, with the same names as here.
AUTHORS_RECIPE = ('mask_ratio', 'motion_aware_tau', 'motion_stride', 'norm_skes_loss', 'epochs', 'warmup_epochs', 'lr',
                  'blr', 'min_lr', 'weight_decay', 'layer_decay', 'smoothing', 'clip_grad', 'seed', 'drop_path_rate',
                  'head_dropout')


def convert_authors(path: str, out: Path, argv: list[str]) -> str:
    """Convert a checkpoint of the authors' code to one of this project; returns a description of it.

    Training reads their files without conversion (--finetune). The converted file also holds the settings that
    prediction, figures, export and tables need: those of the config files and options in `argv`, overridden by the args
    in the checkpoint and the sizes of its weights. The optimiser state is omitted. Raises UserError, with nothing
    written, for any other file and for settings that contradict the weights.
    """
    check_outputs([('--out', out)], [path])
    checkpoint = Checkpoint.read(path)
    if not checkpoint.is_authors:
        raise UserError(f"{path}: already a checkpoint of this project; use it directly")
    stage = checkpoint.stage
    if stage == 'encoder':
        raise UserError(f'{path}: has neither a decoder nor a head; specify a checkpoint of pre-training, linear probe '
                        'or fine-tuning')
    settings = _authors_settings(stage, checkpoint, path, argv)
    model = _build(stage, vars(settings), checkpoint.model, path)
    Checkpoint(model.state_dict(), vars(settings), checkpoint.epoch, method='authors',
               code_version=code_version()).write(out)
    classes = f', {settings.num_classes} classes' if stage != 'pretrain' else ''
    return (f'{path}: {STAGE_TITLES[stage]}, epoch {checkpoint.epoch}{classes}; width {settings.dim_feat}, '
            f'{settings.depth} blocks of {settings.num_heads} heads, {settings.num_frames} frames in segments of '
            f'{settings.t_patch_size}, {settings.num_joints} joints; benchmark {settings.benchmark or "not given"}\n'
            f'{out}: the same weights and settings as a checkpoint of main_{stage}.py')


def _authors_settings(stage: str, checkpoint: Checkpoint, path: str, argv: list[str]) -> argparse.Namespace:
    model_args = checkpoint.args.get('model_args')
    saved = checkpoint.args | (model_args if isinstance(model_args, dict) else {})
    saved = {name: value for name, value in saved.items() if value is not None}
    if 'lr' in saved:
        saved.pop('blr', None)          # their lr was derived from it
    default, requested = vars(read_settings(stage, [])), vars(read_settings(stage, argv))
    recipe = {name: saved[name] for name in AUTHORS_RECIPE if name in saved and name in default}
    settings = read_settings(stage, argv, recipe, f'{path}: its args')
    sizes = weight_sizes(checkpoint, path) | {name: saved[name] for name in ('num_heads',) if name in saved}
    for name, size in sizes.items():
        if name in saved and saved[name] != size:
            raise UserError(f'{path}: {name} is {size:g} in its weights, {saved[name]!r:.40} in its args; use another '
                            'checkpoint')
        if requested[name] not in (default[name], size):
            raise UserError(f'{path}: was trained with {name} {size}, not {requested[name]} as specified; use the '
                            'settings of its benchmark')
        setattr(settings, name, size)
    if settings.benchmark is None and settings.data_path:
        settings.benchmark = Path(settings.data_path).stem
    return settings
