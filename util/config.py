"""Settings of a stage from defaults, YAML files and the command line, checked before anything starts.

`--config A.yaml B.yaml`: later files override earlier ones, and the command line overrides all. Top-level keys of a
file apply to every stage that has the option; a map `pretrain:`, `linprobe:`, `finetune:` or `retrieval:` applies only
to that stage.
"""

import argparse
import difflib
from pathlib import Path

from feeder.layouts import default_layout, find_layout
from util.errors import UserError, quote
from util.files import read_yaml
from util.options import STAGES, Option, build_parser, defaults_of, options_of_stage


def parse_args(stage: str, argv: list[str] | None = None) -> argparse.Namespace:
    """Return all settings of a stage, checked against each other.

    With --features, settings that the features file records (benchmark, stream, seed) are None unless they are set.
    Raises UserError for an unknown key or option, a wrong type or value, or a missing setting.
    """
    args = read_settings(stage, argv)
    _check(args, stage)
    return args


def read_settings(stage: str, argv: list[str] | None = None, overrides: dict | None = None,
                  source: str = '') -> argparse.Namespace:
    """Return settings as `parse_args` does, but they may be missing and are not checked against each other.

    `overrides`, read from `source`, override the files; the command line overrides both.
    """
    settings, not_given = defaults_of(stage), object()      # argparse fills in defaults only for missing attributes
    namespace = argparse.Namespace(**dict.fromkeys(settings, not_given) | {'config': []})
    command_line = vars(build_parser(stage).parse_args(argv, namespace))
    command_line = {name: value for name, value in command_line.items() if value is not not_given}
    layers = [layer for path in command_line['config'] for layer in read_config(path, stage)]
    options = options_of_stage(stage)
    layers.append({name: _convert(options, name, value, source) for name, value in (overrides or {}).items()})
    layers.append(command_line)
    for layer in layers:
        if layer.get('lr') is not None and layer.get('blr') is not None:
            raise UserError('both lr and blr are set; set only one of them')
        for name, alternative in (('lr', 'blr'), ('blr', 'lr')):
            if layer.get(name) is not None:     # the last one counts
                settings[alternative] = None
        settings.update(layer)
    if settings.get('features') is not None:
        settings |= dict.fromkeys({'stream', 'seed'} - set().union(*layers))
    return argparse.Namespace(**settings)


def read_config(path: str | Path, stage: str) -> list[dict]:
    """Read the settings for `stage` from a YAML file: those for all stages, then those in the stage's own map.

    Raises UserError for a missing file, invalid YAML, a key that is not an option, or a value of the wrong type.
    """
    shared, own = {}, {}
    for key, value in read_yaml(path, 'settings', 'correct --config').items():
        if key in STAGES:
            if not isinstance(value, dict):
                raise UserError(f'{path}: {key}: must be a mapping of settings')
            values = {name: _convert(options_of_stage(key), name, item, f'{path}: {key}')
                      for name, item in value.items()}
            own = values if key == stage else own
        else:
            stages = [name for name in (stage, *STAGES) if key in options_of_stage(name)]
            known = options_of_stage(stages[0]) if stages else \
                {name: option for stage_name in STAGES for name, option in options_of_stage(stage_name).items()}
            value = _convert(known, key, value, str(path))
            if stages[0] == stage:
                shared[key] = value
    return [shared, own]


def _convert(options: dict[str, Option], key, value, source: str):
    """Check a YAML value and convert it to the type of option `key`."""
    if key not in options:
        near = difflib.get_close_matches(str(key), options, n=1)
        raise UserError(f'{source}: unknown setting {quote(key)}' + (f'; did you mean {near[0]!r}?' if near else ''))
    option = options[key]
    if option.type is bool:
        if not isinstance(value, bool):
            raise UserError(f'{source}: {key}: {quote(value)} is not true or false')
        return value
    if value is None and option.default is None:
        return None
    try:
        if option.nargs is None:
            value = option.type(value)
        elif isinstance(value, list) and len(value) == option.nargs:
            value = [option.type(item) for item in value]
        else:
            raise argparse.ArgumentTypeError(f'{quote(value)} is not a list of {option.nargs} values')
    except argparse.ArgumentTypeError as error:
        raise UserError(f'{source}: {key}: {error}') from None
    if option.choices is not None and value not in option.choices:
        raise UserError(f'{source}: {key}: {quote(value)} is not one of {", ".join(option.choices)}')
    return value


def _check(args: argparse.Namespace, stage: str) -> None:
    """Check settings against each other, and derive the settings that follow from others."""
    features_only = getattr(args, 'features', None) is not None
    if not features_only and args.data_path is None:
        raise UserError(f'--data_path is missing; specify it, or a benchmark file after --config config/{stage}.yaml')
    _check_model(args)
    if stage == 'retrieval':
        if sum([args.finetune is not None, args.random_encoder, features_only]) != 1:
            raise UserError('specify exactly one of --finetune PATH, --random_encoder and --features NPZ')
        args.batch_size = args.batch_size or 128
    else:
        _check_training(args, stage)
    if not features_only:
        args.benchmark = args.benchmark or Path(args.data_path).stem
        args.output_dir = args.output_dir or str(Path('runs') / args.benchmark / stage)
    if stage != 'retrieval':
        args.log_dir = args.log_dir or args.output_dir


def _check_model(args: argparse.Namespace) -> None:
    if args.num_joints is None and args.layout is None:
        args.num_joints = 25
    layout = find_layout(args.layout, args.num_joints)
    args.num_joints = len(layout.joints) if layout else args.num_joints
    if args.stream == 'bone' and layout is None:
        default_layout(args.num_joints)     # raises: bones need the parents
    if args.num_frames % args.t_patch_size:
        raise UserError(f'--num_frames {args.num_frames} is not a multiple of --t_patch_size {args.t_patch_size}')
    for width in ('dim_feat', 'decoder_dim_feat'):
        if getattr(args, width, 0) % args.num_heads:
            raise UserError(f'--{width} {getattr(args, width)} is not a multiple of --num_heads {args.num_heads}')


def _check_training(args: argparse.Namespace, stage: str) -> None:
    if args.p_interval[0] > args.p_interval[1]:
        raise UserError(f'--p_interval {args.p_interval[0]} {args.p_interval[1]}: the minimum exceeds the maximum')
    if getattr(args, 'novel_every', 0) == 1:
        raise UserError('--novel_every 1 leaves no class; use 0, or 2 or more')
    if stage == 'pretrain':
        if args.motion_stride >= args.num_frames:
            raise UserError(f'--motion_stride {args.motion_stride} must be less than --num_frames {args.num_frames}')
        tokens = args.num_frames // args.t_patch_size * args.num_joints
        if not 0 < int(tokens * (1 - args.mask_ratio)) < tokens:
            raise UserError(f'--mask_ratio {args.mask_ratio} masks none or all of {tokens} tokens')
    if getattr(args, 'eval', False):
        if args.resume is None:
            raise UserError('--eval needs --resume PATH (or auto): the checkpoint to evaluate')
        return
    if args.epochs is None:
        raise UserError(f'--epochs is missing; specify it, or --config config/{stage}.yaml with a benchmark file')
    if args.lr is None and args.blr is None:
        raise UserError(f'neither --lr nor --blr is set; set one of them, or use --config config/{stage}.yaml')
    if args.warmup_epochs >= args.epochs:
        raise UserError(f'--warmup_epochs {args.warmup_epochs:g} must be less than --epochs {args.epochs}')
    if stage == 'linprobe' and (args.finetune is None) != args.random_encoder:
        raise UserError('a probe needs either --finetune CHECKPOINT or --random_encoder, not both')


def resolve_batch(args: argparse.Namespace, world_size: int) -> None:
    """Derive batch_size, accum_iter, effective_batch_size and lr; raises UserError if they do not fit together."""
    if args.effective_batch_size is None:
        if args.batch_size is None:
            raise UserError('neither --effective_batch_size nor --batch_size is set; set one of them')
        args.effective_batch_size = args.batch_size * (args.accum_iter or 1) * world_size
    if args.batch_size is None:
        args.accum_iter = args.accum_iter or 1
        args.batch_size = max(1, args.effective_batch_size // (args.accum_iter * world_size))
    elif args.accum_iter is None:
        args.accum_iter = max(1, args.effective_batch_size // (args.batch_size * world_size))
    if args.batch_size * args.accum_iter * world_size != args.effective_batch_size:
        raise UserError(f'--effective_batch_size {args.effective_batch_size} must equal --batch_size {args.batch_size} '
                        f'× --accum_iter {args.accum_iter} × {world_size} processes')
    if args.lr is None and args.blr is not None:
        args.lr = args.blr * args.effective_batch_size / 256
    if args.lr is not None and args.min_lr > args.lr:
        raise UserError(f'--min_lr {args.min_lr:g} exceeds the learning rate {args.lr:g}')
