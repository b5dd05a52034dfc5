"""The options of every stage, each declared once: type and bounds, default, help, and role.

Roles
    recipe      changes what is computed; runs that differ in it are different experiments
    identity    identifies the experiment in other ways: benchmark, stream, seed, initial checkpoint
    numerics    does not change the computation except for rounding: precision, kernels
    run         where a run reads, writes and computes; may change when it is resumed
"""

import argparse
import math
from dataclasses import dataclass
from functools import cache

from util.errors import Parser, quote

STAGES = ('pretrain', 'linprobe', 'finetune', 'retrieval')
TRAINING = ('pretrain', 'linprobe', 'finetune')
CLASSIFICATION = ('linprobe', 'finetune')


class Number:
    """An option type: an int or float within bounds, from the command line or a YAML value.

    `least` and `most` are inclusive bounds, `above` and `below` exclusive ones.
    """

    def __init__(self, kind: type, least: float | None = None, most: float | None = None,
                 above: float | None = None, below: float | None = None):
        self.kind, self.least, self.most, self.above, self.below = kind, least, most, above, below

    def __call__(self, value):
        try:
            if isinstance(value, bool) or (self.kind is int and isinstance(value, float)):
                raise ValueError
            number = self.kind(value)
            if math.isfinite(number) and self._is_within(float(number)):
                return number
        except (TypeError, ValueError, OverflowError):
            pass
        raise argparse.ArgumentTypeError(f'{quote(value)} is not {self}')

    def _is_within(self, number: float) -> bool:
        return ((self.least is None or number >= self.least) and (self.most is None or number <= self.most)
                and (self.above is None or number > self.above) and (self.below is None or number < self.below))

    def __str__(self) -> str:
        bounds = [f'{sign} {bound:g}' for sign, bound in
                  (('>=', self.least), ('<=', self.most), ('>', self.above), ('<', self.below)) if bound is not None]
        return ' and '.join([{int: 'an integer', float: 'a number'}[self.kind], *bounds])


def text(value) -> str:
    """An option type: any string without a zero byte."""
    if not isinstance(value, str) or '\0' in value:
        raise argparse.ArgumentTypeError(f'{quote(value)} is not a valid string')
    return value


COUNT, WHOLE, SIZE = Number(int, least=1), Number(int, least=0), Number(int, least=1, most=10**12)
BLOCKS, THREADS = Number(int, least=1, most=1000), Number(int, least=0, most=64)
POSITIVE, NOT_NEGATIVE = Number(float, above=0), Number(float, least=0)
FRACTION = Number(float, least=0, below=1)


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Appends the default to the help of an option, unless it is None or already in the help."""

    def _get_help_string(self, action: argparse.Action) -> str:
        return action.help if action.default is None or '(default' in action.help else super()._get_help_string(action)


@dataclass(frozen=True)
class Option:
    """One option; `type` bool makes a --name / --no-name pair."""

    group: str
    name: str
    type: type | Number
    default: object
    help: str
    role: str = 'recipe'
    stages: tuple[str, ...] = STAGES
    choices: tuple[str, ...] | None = None
    metavar: str | tuple[str, ...] | None = None
    nargs: int | None = None

    def add_to(self, group) -> None:
        settings = {'default': self.default, 'help': self.help}
        if self.type is bool:
            group.add_argument(f'--{self.name}', action=argparse.BooleanOptionalAction, **settings)
        else:
            group.add_argument(f'--{self.name}', type=self.type, choices=self.choices, metavar=self.metavar,
                               nargs=self.nargs, **settings)


OPTIONS = (
    Option('data', 'data_path', text, None, 'dataset file (npz) with x_train, y_train, x_test, y_test', 'run'),
    Option('data', 'benchmark', text, None, 'name in the results (default: name of the dataset file)', 'identity'),
    Option('data', 'stream', text, 'joint', 'input of the model: coordinates, bones or velocities', 'identity',
           choices=('joint', 'bone', 'velocity')),
    Option('data', 'num_workers', THREADS, 1, 'threads that read clips ahead (0: read in the main thread)', 'run'),
    Option('data', 'data_on_device', bool, False, 'keep the whole split in device memory, without padding', 'run'),
    Option('data', 'novel_every', WHOLE, 0, 'omit every n-th class, starting with the first (one-shot: 6); 0: none',
           'identity', CLASSIFICATION),

    Option('model', 'num_frames', SIZE, 120, 'frames per clip after resizing'),
    Option('model', 'num_joints', SIZE, None, 'joints per body (default: those of --layout, otherwise 25)'),
    Option('model', 'layout', text, None, 'a name in feeder/layouts.yaml, such as coco-17, or a YAML file (default: by '
           '--num_joints)', 'run', metavar='NAME|YAML'),
    Option('model', 't_patch_size', SIZE, 4, 'frames per segment'),
    Option('model', 'dim_feat', SIZE, 256, 'encoder width'),
    Option('model', 'depth', BLOCKS, 8, 'encoder blocks'),
    Option('model', 'num_heads', SIZE, 8, 'attention heads'),
    Option('model', 'mlp_ratio', Number(float, above=0, most=1000), 4., 'hidden width of the MLP, in multiples of its '
           'input'),

    Option('compute', 'device', text, 'auto', 'auto, cpu, cuda or cuda:N', 'run'),
    Option('compute', 'batch_size', COUNT, None, 'clips per micro-batch and process (default: derived from the '
           'effective batch size)', 'run'),
    Option('compute', 'compile', text, 'auto', 'compile the model with torch.compile, which delays the start; auto: on '
           'a CUDA GPU', 'numerics', choices=('auto', 'on', 'off')),
    Option('compute', 'attention', text, 'auto', 'attention kernel on a CUDA GPU; auto: Triton where it can run',
           'numerics', choices=('auto', 'triton', 'flash', 'cudnn', 'efficient', 'math')),
    Option('compute', 'precision', text, None, 'precision of matrix products (default: bf16 on GPUs that support it, '
           'else fp32)', 'numerics', choices=('fp32', 'tf32', 'bf16')),
    Option('compute', 'deterministic', bool, False, 'bit-identical results of all runs on the same type of GPU, with '
           'slower kernels (always so on a CPU)', 'numerics'),
    Option('compute', 'seed', Number(int, least=0, most=2**62), 0, 'seed for weights, data order, augmentation, masks, '
           'dropout and labelled subsets', 'identity'),
    Option('compute', 'patience', Number(float, above=0, most=1e6), 600., 'seconds that processes wait for each other '
           'before they give up', 'run'),

    Option('pre-training', 'decoder_dim_feat', SIZE, 256, 'decoder width', stages=('pretrain',)),
    Option('pre-training', 'decoder_depth', BLOCKS, 5, 'decoder blocks', stages=('pretrain',)),
    Option('pre-training', 'mask_ratio', Number(float, above=0, below=1), 0.9, 'fraction of tokens that are masked',
           stages=('pretrain',)),
    Option('pre-training', 'motion_aware_tau', NOT_NEGATIVE, 0.8, 'temperature of motion-aware masking; 0: random '
           'masking', stages=('pretrain',)),
    Option('pre-training', 'motion_stride', COUNT, 1, 'frames between the two ends of a motion', stages=('pretrain',)),
    Option('pre-training', 'skip_empty_bodies', bool, False, "exclude all-zero bodies from the batch and the loss (the "
           "authors' code trains on them)", stages=('pretrain',)),
    Option('pre-training', 'target', text, 'motion', 'target of the decoder', stages=('pretrain',),
           choices=('motion', 'joint')),
    Option('pre-training', 'norm_skes_loss', bool, True, 'normalise the target of each token to zero mean and unit '
           'variance', stages=('pretrain',)),

    Option('classification', 'finetune', text, None, 'checkpoint whose encoder to start from', 'identity',
           ('linprobe', 'finetune', 'retrieval'), metavar='PATH'),
    Option('classification', 'random_encoder', bool, False, 'use an untrained encoder', 'identity',
           ('linprobe', 'retrieval')),
    Option('classification', 'num_classes', Number(int, least=2), None, 'number of classes (default: from the dataset '
           'file)', stages=CLASSIFICATION),
    Option('classification', 'eval', bool, False, 'only evaluate the checkpoint given with --resume', 'run',
           CLASSIFICATION),
    Option('classification', 'sync_batchnorm', bool, False, "synchronise the statistics of the head's BatchNorm over "
           "all processes (GPUs only)", stages=CLASSIFICATION),
    Option('classification', 'smoothing', FRACTION, 0., 'label smoothing', stages=CLASSIFICATION),
    Option('classification', 'label_fraction', Number(float, above=0, most=1), 1., 'fraction of the training clips to '
           'use, drawn with --seed (semi-supervised)', 'identity', CLASSIFICATION),
    Option('classification', 'label_draw', text, 'random', 'how to draw these clips: at random, or equally from each '
           'class', 'identity', CLASSIFICATION, ('random', 'balanced')),
    Option('classification', 'layer_decay', Number(float, above=0, most=1), 1., 'factor by which the learning rate '
           'decreases from each layer to the layer below', stages=('finetune',)),
    Option('classification', 'drop_path_rate', FRACTION, 0., 'stochastic depth rate of the last block',
           stages=('finetune',)),
    Option('classification', 'patch_drop_rate', FRACTION, 0., 'fraction of the segments of each joint that training '
           'omits (PatchDropout), which also saves time', stages=('finetune',)),
    Option('classification', 'head', text, 'mlp', 'mlp: two layers on features of every joint; linear: one layer on '
           'features averaged over joints, for few clips', stages=('finetune',), choices=('mlp', 'linear')),
    Option('classification', 'head_dropout', FRACTION, 0.3, 'dropout before the head', stages=('finetune',)),

    Option('retrieval', 'features', text, None, 'features.npz of an earlier run, instead of an encoder', 'identity',
           ('retrieval',), metavar='NPZ'),
    Option('retrieval', 'protocol', text, 'knn', 'knn: label of the nearest training clips; oneshot: label of the '
           'nearest exemplar of the novel classes', 'identity', ('retrieval',), ('knn', 'oneshot')),
    Option('retrieval', 'k', COUNT, 1, 'neighbours that vote (knn)', 'identity', ('retrieval',)),
    Option('retrieval', 'metric', text, 'cosine', 'distance measure between features', 'identity', ('retrieval',),
           ('cosine', 'euclidean', 'manhattan')),
    Option('retrieval', 'novel_every', WHOLE, 6, 'every n-th class, starting with the first, is novel (oneshot)',
           'identity', ('retrieval',)),

    Option('training', 'p_interval', Number(float, above=0, most=1), [0.5, 1.], 'range of the training crop, as a '
           'fraction of the clip', stages=TRAINING, metavar=('MIN', 'MAX'), nargs=2),
    Option('training', 'min_crop', COUNT, 64, 'minimum length of a training crop in frames; shorter clips are '
           'used whole', stages=TRAINING, metavar='FRAMES'),
    Option('training', 'max_angle', NOT_NEGATIVE, 0.3, 'largest training rotation about each axis, in rad',
           stages=TRAINING),
    Option('training', 'max_turn', NOT_NEGATIVE, None, 'largest rotation about the vertical axis (y), in rad (default: '
           '--max_angle)', stages=TRAINING, metavar='RAD'),
    Option('training', 'epochs', COUNT, None, 'passes over the training split', stages=TRAINING),
    Option('training', 'warmup_epochs', NOT_NEGATIVE, 0., 'epochs of linear warm-up', stages=TRAINING),
    Option('training', 'effective_batch_size', COUNT, None, 'clips of an optimiser step: batch size × accumulation × '
           'processes', stages=TRAINING),
    Option('training', 'accum_iter', COUNT, None, 'micro-batches of a step (default: from the effective batch size)',
           'run', TRAINING),
    Option('training', 'lr', POSITIVE, None, 'absolute peak learning rate', stages=TRAINING),
    Option('training', 'blr', POSITIVE, None, 'base learning rate: lr = blr × effective batch size / 256', 'identity',
           TRAINING),
    Option('training', 'min_lr', NOT_NEGATIVE, 0., 'final learning rate', stages=TRAINING),
    Option('training', 'weight_decay', NOT_NEGATIVE, 0., 'weight decay of parameters with more than one dimension',
           stages=TRAINING),
    Option('training', 'clip_grad', POSITIVE, None, 'largest gradient norm (default: no clipping)', stages=TRAINING),

    Option('output', 'output_dir', text, None, 'checkpoints, log.jsonl, result.json (default: runs/BENCHMARK/STAGE)',
           'run'),
    Option('output', 'log_dir', text, None, 'TensorBoard events (default: the output folder)', 'run', TRAINING),
    Option('output', 'resume', text, None, 'continue from a checkpoint; auto: from the latest of the output folder',
           'run', TRAINING, metavar='PATH|auto'),
    Option('output', 'save_epochs', COUNT, 20, 'number of epochs between checkpoints that are kept', 'run', TRAINING),
    Option('output', 'save_steps', WHOLE, 0, 'number of steps between checkpoints in mid-epoch (0: only by '
           '--save_minutes)', 'run', TRAINING),
    Option('output', 'save_minutes', NOT_NEGATIVE, 10., 'minutes between checkpoints in mid-epoch (0: none)', 'run',
           TRAINING),
    Option('output', 'eval_epochs', COUNT, 1, 'evaluate after every N epochs, and after the last', 'run',
           CLASSIFICATION, metavar='N'),
    Option('output', 'log_steps', COUNT, 20, 'number of steps between logged values of loss, gradient norm and '
           'throughput', 'run', TRAINING),
    Option('output', 'picture_epochs', WHOLE, 0, 'number of epochs between pictures of a clip in TensorBoard (0: none)',
           'run', TRAINING),
    Option('output', 'save_scores', bool, False, 'write the class probabilities of the test clips to scores.npz', 'run',
           CLASSIFICATION),
    Option('output', 'save_features', bool, False, 'write the mean features of the test clips to features.npz', 'run',
           CLASSIFICATION),
    Option('output', 'projector', WHOLE, 0, "write features of at most N test clips for TensorBoard's projector", 'run',
           ('linprobe', 'finetune', 'retrieval'), metavar='N'),
)


@cache
def options_of_stage(stage: str) -> dict[str, Option]:
    """Return the options of a stage, keyed by name."""
    return {option.name: option for option in OPTIONS if stage in option.stages}


def build_parser(stage: str) -> argparse.ArgumentParser:
    """Build the command-line parser of a stage."""
    program = f'tools/{stage}.py' if stage == 'retrieval' else f'main_{stage}.py'
    parser = Parser(prog=program, formatter_class=HelpFormatter)
    parser.add_argument('--config', nargs='+', action='extend', type=text, default=[], metavar='YAML',
                        help='settings files; later files override earlier ones, and the command line overrides all')
    groups = {}
    for option in options_of_stage(stage).values():
        if option.group not in groups:
            groups[option.group] = parser.add_argument_group(option.group)
        option.add_to(groups[option.group])
    return parser


def defaults_of(stage: str) -> dict:
    """Return the defaults of a stage's options by name; None stands for values that are derived when a run starts."""
    return {'config': []} | {name: option.default for name, option in options_of_stage(stage).items()}


@cache
def _roles() -> dict[str, set[str]]:
    roles = {'config': {'run'}}
    for option in OPTIONS:
        roles.setdefault(option.name, set()).add(option.role)
    return roles


def has_role(name: str, *roles: str) -> bool:
    """Return True if the option has any of these roles."""
    return bool(_roles().get(name, {'recipe'}) & set(roles))


def is_recipe(name: str) -> bool:
    """Return True for a setting that changes what is computed, and for unknown settings."""
    return has_role(name, 'recipe')
