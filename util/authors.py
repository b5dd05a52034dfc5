"""The authors' checkpoints made into ours: looked through, named for what they are, and with settings of ours.

Their weights have our names already, and training reads them as they are (--finetune; util/checkpoint.py). What a
converted file has besides: the settings that predictions, pictures, exports and tables ask for; and it has been checked
that it is whole. Theirs is {model, optimizer, scaler, epoch, args}, args a Namespace whose `model_args` is a map.
"""

import argparse
from pathlib import Path

from util import checkpoint
from util.config import read_settings
from util.errors import UserError
from util.files import check_outputs
from util.log import code_version
from util.weights import STAGES, make_model, sizes_of

# What of their args says how the weights were made, under names that are ours too; the rest is of their machine.
RECIPE = ('mask_ratio', 'motion_aware_tau', 'motion_stride', 'norm_skes_loss', 'epochs', 'warmup_epochs', 'lr', 'blr',
          'min_lr', 'weight_decay', 'layer_decay', 'smoothing', 'clip_grad', 'seed', 'drop_path_rate', 'head_dropout')


def convert(path: str, out: Path, argv: list[str]) -> str:
    """Writes the authors' checkpoint at `path` as one of ours to `out`; returns what it is, as text.

    Settings are those of the stage's files and options in `argv`, above its files those in the checkpoint's args, and
    the sizes those of the weights. The optimiser's state stays behind: its order of the parameters is theirs. Raises
    UserError, having written nothing, for anything that is no checkpoint of theirs, and where settings contradict it.
    """
    check_outputs([('--out', out)], [path])
    state = checkpoint.load(path)
    if 'version' in state or 'record' in state:
        raise UserError(f'{path}: is a checkpoint of ours already; use it as it is')
    weights = without_prefix(state['model'], path)
    kind = checkpoint.stage_of(weights)
    if kind not in STAGES:
        raise UserError(f'{path}: holds {kind}, neither decoder nor head; a checkpoint of pre-training, probe or '
                        'fine-tuning is needed')
    settings = settings_of(STAGES[kind], weights, state['args'], path, argv)
    model = make_model(STAGES[kind], weights, vars(settings), path)
    checkpoint.save(out, {
        'model': model.state_dict(), 'epoch': state.get('epoch', -1), 'args': vars(settings), 'method': 'authors',
        'pretraining': None, 'version': code_version()})
    classes = f', {settings.num_classes} classes' if STAGES[kind] != 'pretrain' else ''
    return (f'{path}: {kind}, epoch {state.get("epoch", "unknown")}{classes}; width {settings.dim_feat}, '
            f'{settings.depth} blocks of {settings.num_heads} heads, {settings.num_frames} frames in segments of '
            f'{settings.t_patch_size}, {settings.num_joints} joints; benchmark {settings.benchmark or "not given"}\n'
            f'{out}: its weights and settings as a checkpoint of main_{STAGES[kind]}.py')


def without_prefix(weights: dict, path: str) -> dict:
    """The weights under their own names where DistributedDataParallel put 'module.' before all of them."""
    marked = [name for name in weights if name.startswith('module.')]
    if marked and len(marked) < len(weights):
        raise UserError(f"{path}: 'module.' stands before {len(marked)} of its {len(weights)} names; of all "
                        'or none it would be understood; take another one')
    return {name.removeprefix('module.'): value for name, value in weights.items()}


def settings_of(stage: str, weights: dict, told: dict, path: str, argv: list[str]) -> argparse.Namespace:
    """All settings of the stage. UserError where the checkpoint's args or `argv` contradict the weights."""
    sizes = sizes_of(weights, path)
    inside = told.get('model_args')
    told = {name: value for name, value in (told | (inside if isinstance(inside, dict) else {})).items()
            if value is not None}
    default, given = vars(read_settings(stage, [])), vars(read_settings(stage, argv))
    if told.get('lr') is not None:
        told.pop('blr', None)           # of theirs, too, the lr that was used follows from it
    known = {name: told[name] for name in RECIPE if name in told and name in default}
    settings = read_settings(stage, argv, known, f'{path}: its args')
    for name, size in (sizes | {name: told[name] for name in ('num_heads',) if name in told}).items():
        if name in told and told[name] != size:
            raise UserError(f'{path}: its weights have {name} {size:g}, its args say {told[name]!r:.40}; take another '
                            'checkpoint')
        if given[name] not in (default[name], size):
            raise UserError(f'{path}: was trained with {name} {size}, the settings given say {given[name]}; give those '
                            'of its own benchmark')
        setattr(settings, name, size)
    if settings.benchmark is None and settings.data_path:
        settings.benchmark = Path(settings.data_path).stem
    return settings
