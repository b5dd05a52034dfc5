"""Settings: every one is a command-line option, may stand in YAML files, and is checked before anything starts.

`--config A.yaml B.yaml`: later files win, the command line wins over all. In a file, keys at the top are common to
all stages that know them; a map `pretrain:`, `linprobe:`, `finetune:` or `retrieval:` holds what one stage does
differently.
"""

import argparse
import difflib
import inspect
from pathlib import Path

from feeder.layouts import default_layout, find_layout
from util.errors import UserError, quote
from util.memory import check_weights
from util.options import STAGES, build_parser
from util.plain_yaml import read_map


def parse_args(stage: str, argv: list[str] | None = None) -> argparse.Namespace:
    """All settings of a stage: defaults, then the files in order, then the command line.

    With --features, benchmark, stream, seed and output_dir are None where they are not given.
    Raises UserError for an unknown key or option, a wrong type or value, a missing setting.
    """
    args = read_settings(stage, argv)
    _check(args, stage)
    return args


def read_settings(stage: str, argv: list[str] | None = None, known: dict | None = None,
                  where: str = '') -> argparse.Namespace:
    """As `parse_args`, but a setting may be missing, and each is checked by itself only.

    `known` settings, from `where`, come over the files and under the command line.
    """
    parser = build_parser(stage)
    settings = {action.dest: action.default for action in _options(parser)}
    unset = object()        # argparse fills in no default where the namespace has a value already
    given = vars(parser.parse_args(argv, argparse.Namespace(**dict.fromkeys(settings, unset) | {'config': []})))
    given = {name: value for name, value in given.items() if value is not unset}
    layers = [layer for path in given.get('config', []) for layer in read_config(path, stage)]
    for layer in layers:
        _overlay(settings, layer)
    options = {action.dest: action for action in _options(parser)}
    _overlay(settings, {name: _typed(options, name, value, where) for name, value in (known or {}).items()})
    _overlay(settings, given)
    if settings.get('features') is not None:        # the file tells what nobody gives
        settings |= dict.fromkeys({'stream', 'seed'} - set(given).union(*layers))
    return argparse.Namespace(**settings)


def _options(parser: argparse.ArgumentParser) -> list[argparse.Action]:
    return [action for action in parser._actions if action.dest != 'help']


def _overlay(settings: dict, layer: dict) -> None:
    """Puts `layer` over `settings`; of lr and blr the one given last counts."""
    if layer.get('lr') is not None and layer.get('blr') is not None:
        raise UserError('lr and blr are both given; give one')
    for one, other in (('lr', 'blr'), ('blr', 'lr')):
        if layer.get(one) is not None:
            settings[other] = None
    settings.update(layer)


def read_config(path: str | Path, stage: str) -> list[dict]:
    """A YAML file's layers for `stage`: its common keys this stage knows, then the stage's own map, values typed.

    Raises UserError for a file that is missing or no YAML map, a key that no stage (in a stage's map: that stage)
    knows, and a value of the wrong type.
    """
    content = read_map(path, 'settings', 'correct --config')
    known = {name: {action.dest: action for action in _options(build_parser(name)) if action.dest != 'config'}
             for name in STAGES}
    everything = {key: action for options in known.values() for key, action in options.items()}
    layers = {'common': {}}
    for key, value in content.items():
        if key in STAGES:
            if not isinstance(value, dict):
                raise UserError(f'{path}: {key}: is not a map of settings')
            layers[key] = {name: _typed(known[key], name, item, f'{path}: {key}') for name, item in value.items()}
        else:
            layers['common'][key] = _typed(everything, key, value, str(path))
    common = {key: value for key, value in layers['common'].items() if key in known[stage]}
    return [common, layers.get(stage, {})]


def _typed(options: dict[str, argparse.Action], key, value, where: str):
    """`value` as the option `key` would have it."""
    if key not in options:
        near = difflib.get_close_matches(str(key), options, n=1)
        raise UserError(f'{where}: unknown setting {quote(key)}' + (f'; did you mean {near[0]!r}?' if near else ''))
    action = options[key]
    if isinstance(action, argparse.BooleanOptionalAction):
        if not isinstance(value, bool):
            raise UserError(f'{where}: {key}: {quote(value)} is not true or false')
        return value
    if value is None and action.default is None:
        return None
    try:
        if action.nargs is None:
            value = action.type(value)
        elif isinstance(value, list) and len(value) == action.nargs:
            value = [action.type(item) for item in value]
        else:
            raise argparse.ArgumentTypeError(f'{quote(value)} is not a list of {action.nargs}')
    except argparse.ArgumentTypeError as error:
        raise UserError(f'{where}: {key}: {error}') from None
    if action.choices is not None and value not in action.choices:
        raise UserError(f'{where}: {key}: {quote(value)} is not one of {", ".join(action.choices)}')
    return value


def _check(args: argparse.Namespace, stage: str) -> None:
    """What options must be to each other."""
    if getattr(args, 'features', None) is None and args.data_path is None:
        raise UserError(f'--data_path is not given; --config config/{stage}.yaml with a benchmark file holds it')
    _check_model(args)
    if stage == 'retrieval':
        given = [args.finetune is not None, args.random_encoder, args.features is not None]
        if sum(given) != 1:
            raise UserError('give one of --finetune PATH, --random_encoder and --features NPZ')
        args.batch_size = args.batch_size or 128
    else:
        _check_training(args, stage)
    if getattr(args, 'features', None) is not None:
        return
    if args.benchmark is None:
        args.benchmark = Path(args.data_path).stem
    args.output_dir = args.output_dir or str(Path('runs') / args.benchmark / stage)
    if stage != 'retrieval':
        args.log_dir = args.log_dir or args.output_dir


def _check_model(args: argparse.Namespace) -> None:
    if args.num_joints is None and args.layout is None:
        args.num_joints = 25
    layout = find_layout(args.layout, args.num_joints)
    args.num_joints = len(layout.joints) if layout else args.num_joints
    if args.stream == 'bone' and layout is None:
        default_layout(args.num_joints)
    if args.num_frames % args.t_patch_size:
        raise UserError(f'--num_frames {args.num_frames} is not a multiple of --t_patch_size {args.t_patch_size}')
    for width in ('dim_feat', 'decoder_dim_feat'):
        if getattr(args, width, 0) % args.num_heads:
            raise UserError(f'--{width} {getattr(args, width)} is not a multiple of --num_heads {args.num_heads}')
    check_weights(args)


def _check_training(args: argparse.Namespace, stage: str) -> None:
    only_eval = getattr(args, 'eval', False)
    if args.epochs is None and not only_eval:
        raise UserError(f'--epochs is not given; --config config/{stage}.yaml with a benchmark file holds it')
    if args.lr is None and args.blr is None and not only_eval:
        raise UserError(f'neither --lr nor --blr is given; --config config/{stage}.yaml holds it')
    if not only_eval and args.warmup_epochs >= args.epochs:
        raise UserError(f'--warmup_epochs {args.warmup_epochs:g} leaves nothing of --epochs {args.epochs}')
    if args.p_interval[0] > args.p_interval[1]:
        raise UserError(f'--p_interval {args.p_interval[0]} {args.p_interval[1]}: the first exceeds the second')
    if stage == 'pretrain':
        if args.motion_stride >= args.num_frames:
            raise UserError(f'--motion_stride {args.motion_stride} is not below --num_frames {args.num_frames}')
        tokens = args.num_frames // args.t_patch_size * args.num_joints
        if not 0 < int(tokens * (1 - args.mask_ratio)) < tokens:
            raise UserError(f'--mask_ratio {args.mask_ratio} keeps none or all of {tokens} tokens')
    if only_eval and args.resume is None:
        raise UserError('--eval needs --resume PATH (or auto): the checkpoint to evaluate')
    if stage == 'linprobe' and not only_eval and (args.finetune is None) != args.random_encoder:
        raise UserError('a probe needs either --finetune PATH, a pre-trained checkpoint, or --random_encoder')
    if getattr(args, 'novel_every', 0) == 1:
        raise UserError('--novel_every 1 leaves no class; give 0 or 2 and more')


def resolve_batch(args: argparse.Namespace, world_size: int) -> None:
    """Fills in batch_size, accum_iter, effective_batch_size and lr; UserError when they do not fit together."""
    if args.effective_batch_size is None:
        if args.batch_size is None:
            raise UserError('neither --effective_batch_size nor --batch_size is given')
        args.accum_iter = args.accum_iter or 1
        args.effective_batch_size = args.batch_size * args.accum_iter * world_size
    wanted = f'--effective_batch_size {args.effective_batch_size}'
    if args.batch_size is None:
        parts = (args.accum_iter or 1) * world_size
        args.accum_iter = args.accum_iter or 1
        args.batch_size, rest = divmod(args.effective_batch_size, parts)
        if rest:
            raise UserError(f'{wanted} does not divide by {parts} (accumulation × processes)')
    elif args.accum_iter is None:
        parts = args.batch_size * world_size
        args.accum_iter, rest = divmod(args.effective_batch_size, parts)
        if rest or not args.accum_iter:
            raise UserError(f'{wanted} does not divide by {parts} (--batch_size {args.batch_size} × {world_size} '
                            'processes)')
    if args.batch_size * args.accum_iter * world_size != args.effective_batch_size:
        raise UserError(f'{wanted} is not --batch_size {args.batch_size} × --accum_iter {args.accum_iter} × '
                        f'{world_size} processes')
    if args.lr is None and args.blr is not None:
        args.lr = args.blr * args.effective_batch_size / 256
    if args.lr is not None and args.min_lr > args.lr:       # --eval needs none
        raise UserError(f'--min_lr {args.min_lr:g} exceeds the learning rate {args.lr:g}')


def settings_for(constructor, settings: argparse.Namespace | dict) -> dict:
    """Those of the settings that `constructor` takes by name."""
    settings = settings if isinstance(settings, dict) else vars(settings)
    return {name: settings[name] for name in inspect.signature(constructor).parameters if name in settings}
