"""Every option of every stage: name, type, bounds, default, meaning."""

import argparse
import math

from util.errors import Parser, quote

STAGES = ('pretrain', 'linprobe', 'finetune', 'retrieval')
# Settings that are no part of a recipe, each in one of three sets; runs that differ in these only are one experiment.
# What belongs to none of them changes what is computed.
# Where a run stands, what it leaves, how its work is cut up: a run may go on with other ones.
SURROUNDINGS = frozenset({
    'config', 'data_path', 'layout', 'output_dir', 'log_dir', 'resume', 'device', 'num_workers', 'data_on_device',
    'batch_size', 'accum_iter', 'eval', 'save_epochs', 'save_steps', 'save_minutes', 'log_steps', 'save_scores',
    'save_features', 'patience', 'picture_epochs', 'projector'})
# By which kernels: the same numbers but for their rounding.
ROUNDING = frozenset({'compile', 'attention', 'precision', 'deterministic'})
# Told in another way: in an experiment's name, by the seed, by the facts of the pre-training; of lr and blr it is lr
# that was used.
TOLD_ELSEWHERE = frozenset({
    'benchmark', 'stream', 'label_fraction', 'label_draw', 'novel_every', 'protocol', 'k', 'metric', 'random_encoder',
    'finetune', 'features', 'seed', 'blr'})
NOT_THE_RECIPE = SURROUNDINGS | ROUNDING | TOLD_ELSEWHERE


class Number:
    """An option's type: an int or float within bounds, from a command-line word or a YAML value.

    `above` and `below` exclude their bound, `least` and `most` include it.
    """

    def __init__(self, kind: type, least: float | None = None, most: float | None = None,
                 above: float | None = None, below: float | None = None):
        self.kind = kind
        self.bounds = [(sign, holds, bound) for sign, holds, bound in (
            ('>=', float.__ge__, least), ('<=', float.__le__, most), ('>', float.__gt__, above),
            ('<', float.__lt__, below)) if bound is not None]

    def __call__(self, value):
        wanted = ' and '.join([{int: 'a whole number', float: 'a number'}[self.kind],
                               *(f'{sign} {bound:g}' for sign, _, bound in self.bounds)])
        if isinstance(value, bool) or (self.kind is int and isinstance(value, float)):
            raise argparse.ArgumentTypeError(f'{quote(value)} is not {wanted}')
        try:
            number = self.kind(value)
            fits = math.isfinite(number) and all(holds(float(number), float(bound)) for _, holds, bound in self.bounds)
        except (TypeError, ValueError, OverflowError):
            fits = False
        if not fits:
            raise argparse.ArgumentTypeError(f'{quote(value)} is not {wanted}')
        return number


def text(value) -> str:
    if not isinstance(value, str):
        raise argparse.ArgumentTypeError(f'{quote(value)} is not text')
    if '\0' in value:
        raise argparse.ArgumentTypeError(f'{quote(value)} holds a zero byte')
    return value


COUNT, WHOLE = Number(int, least=1), Number(int, least=0)
SIZE, BLOCKS, PROCESSES = (Number(int, least, most) for least, most in ((1, 10**12), (1, 1000), (0, 1000)))
POSITIVE, NOT_NEGATIVE = Number(float, above=0), Number(float, least=0)
SHARE = Number(float, least=0, below=1)


def build_parser(stage: str) -> argparse.ArgumentParser:
    """The options of one stage, with their types and defaults."""
    parser = Parser(prog=f'main_{stage}.py', formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument('--config', nargs='+', action='extend', type=text, default=[], metavar='YAML',
                        help='settings files; later ones win, the command line wins over all')
    _add_data(parser)
    _add_model(parser)
    _add_computing(parser)
    _add_processes(parser)
    _add_run(parser)
    if stage != 'retrieval':
        _add_training(parser)
        _add_saving(parser)
    if stage == 'pretrain':
        _add_pretraining(parser)
    if stage in ('linprobe', 'finetune'):
        _add_classification(parser)
    if stage == 'finetune':
        _add_finetuning(parser)
    if stage in ('linprobe', 'retrieval'):
        _add_encoder(parser)
    if stage == 'retrieval':
        _add_retrieval(parser)
    return parser


def defaults_of(stage: str) -> dict:
    """{option: default} of one stage; an option that is worked out when a run starts has None."""
    return {action.dest: action.default for action in build_parser(stage)._actions if action.dest != 'help'}


def _add_data(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group('data').add_argument
    add('--data_path', type=text, help='npz with x_train, y_train, x_test, y_test')
    add('--benchmark', type=text, help='name in result.json (default: the name of the data file)')
    add('--stream', type=text, choices=('joint', 'bone', 'velocity'), default='joint', help='what the model sees')
    add('--num_workers', type=PROCESSES, default=2, help='processes that read clips (0: the main one does)')
    add('--data_on_device', action=argparse.BooleanOptionalAction, default=False,
        help='keep the whole split, without its padding, in the memory of the device; --num_workers is of no use then')


def _add_model(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group('model').add_argument
    add('--num_frames', type=SIZE, default=120, help='frames after the resize')
    add('--num_joints', type=SIZE, help='joints of one body (default: those of --layout, 25 without)')
    add('--layout', type=text, metavar='NAME|YAML', help='what the joints are: kinect-v2, kinect-v1, coco-17 or a YAML '
        'file of your own (default: told by --num_joints)')
    add('--t_patch_size', type=SIZE, default=4, help='frames a segment')
    add('--dim_feat', type=SIZE, default=256, help='width')
    add('--depth', type=BLOCKS, default=8, help='encoder blocks')
    add('--num_heads', type=SIZE, default=8, help='attention heads')
    add('--mlp_ratio', type=Number(float, above=0, most=1000), default=4., help='hidden width of the MLP, in widths')


def _add_computing(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group('computing').add_argument
    add('--device', type=text, default='auto', help='auto, cpu, cuda or cuda:N')
    add('--batch_size', type=COUNT, help='clips a process at once (default: what the effective batch leaves)')
    add('--compile', type=text, choices=('auto', 'on', 'off'), default='auto',
        help='torch.compile the transformer blocks: minutes at the start; auto: on a CUDA GPU')
    add('--attention', type=text, choices=('auto', 'flash', 'cudnn', 'efficient', 'math'), default='auto',
        help='kernel of a CUDA GPU; auto: the fastest, timed at the start (the same on every process); with '
        '--deterministic flash for bf16, else efficient')
    add('--precision', type=text, choices=('fp32', 'tf32', 'bf16'),
        help='of matrix products (default: bf16 on GPUs that have it, fp32 elsewhere)')
    add('--deterministic', action=argparse.BooleanOptionalAction, default=False,
        help='the same numbers, bit for bit, from every run on the same GPUs, by slower kernels (on a CPU they are the '
        'same without)')
    add('--seed', type=Number(int, least=0, most=2**62), default=0,
        help='of weights, data order, crops, masks, dropout, labels drawn')


def _add_training(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group('training').add_argument
    add('--p_interval', type=Number(float, above=0, most=1), nargs=2, default=[0.5, 1.], metavar=('MIN', 'MAX'),
        help='training crop, as a share of the clip')
    add('--max_angle', type=NOT_NEGATIVE, default=0.3, help='training rotation about each axis, rad')
    add('--max_turn', type=NOT_NEGATIVE, metavar='RAD',
        help='about the upright axis (y) in its place: for test cameras that stand elsewhere')
    add('--epochs', type=COUNT, help='passes over the training split')
    add('--warmup_epochs', type=NOT_NEGATIVE, default=0., help='of linear warm-up')
    add('--effective_batch_size', type=COUNT, help='clips an optimiser step: batch × accumulation × processes')
    add('--accum_iter', type=COUNT, help='micro-batches a step (default: what the effective batch leaves)')
    add('--lr', type=POSITIVE, help='absolute peak learning rate')
    add('--blr', type=POSITIVE, help='base learning rate: lr = blr × effective batch / 256')
    add('--min_lr', type=NOT_NEGATIVE, default=0., help='learning rate at the end')
    add('--weight_decay', type=NOT_NEGATIVE, default=0., help='of parameters with more than one axis')
    add('--clip_grad', type=POSITIVE, help='largest gradient norm (default: no clipping)')


def _add_processes(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group('processes').add_argument
    add('--patience', type=Number(float, above=0, most=1e6), default=600.,
        help='seconds that processes wait for each other, to meet at the start and in every exchange; after that the '
        'run ends')


def _add_run(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group('run').add_argument
    add('--output_dir', type=text, help='checkpoints, log.jsonl, result.json (default: runs/BENCHMARK/STAGE)')


def _add_saving(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group('logs and checkpoints').add_argument
    add('--log_dir', type=text, help='TensorBoard events (default: the output folder)')
    add('--resume', type=text, metavar='PATH|auto', help='go on from a checkpoint; auto: from this output folder')
    add('--save_epochs', type=COUNT, default=20, help='epochs between the checkpoints that are kept')
    add('--save_steps', type=WHOLE, default=0, help='steps between writes of checkpoint-last.pth inside an epoch '
        '(0: by --save_minutes only)')
    add('--save_minutes', type=NOT_NEGATIVE, default=10., help='minutes after which checkpoint-last.pth is written '
        'inside an epoch (0: at its end only)')
    add('--log_steps', type=COUNT, default=20, help='steps between readings of loss, gradient norm and throughput')
    add('--picture_epochs', type=WHOLE, default=0, help='epochs between pictures of a clip in TensorBoard, as those of '
        'tools/visualize.py (0: none): the first training clip in pre-training, the first test clip elsewhere')


def _add_pretraining(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group('pre-training').add_argument
    add('--decoder_dim_feat', type=SIZE, default=256, help='decoder width')
    add('--decoder_depth', type=BLOCKS, default=5, help='decoder blocks')
    add('--mask_ratio', type=Number(float, above=0, below=1), default=0.9, help='share of the tokens hidden')
    add('--motion_aware_tau', type=NOT_NEGATIVE, default=0.8, help='temperature of the mask; 0: plain random')
    add('--motion_stride', type=COUNT, default=1, help='frames between the two ends of a motion')
    add('--skip_empty_bodies', action=argparse.BooleanOptionalAction, default=False,
        help='leave all-zero bodies out of the batch and its loss; the authors train on them too')
    add('--target', type=text, choices=('motion', 'joint'), default='motion', help='what is predicted')
    add('--norm_skes_loss', action=argparse.BooleanOptionalAction, default=True,
        help="normalise each token's target over its own values")


def _add_classification(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group('classification').add_argument
    add('--num_classes', type=Number(int, least=2), help='must be what the data file holds (default: just that)')
    add('--finetune', type=text, metavar='PATH', help='pre-trained checkpoint to start from')
    add('--eval', action=argparse.BooleanOptionalAction, default=False,
        help='only evaluate the checkpoint given with --resume')
    add('--sync_batchnorm', action=argparse.BooleanOptionalAction, default=False,
        help="statistics of the head's BatchNorm over the micro-batches of all processes, GPUs only (default: each "
        'has its own, as the authors did); of one process nothing changes')
    add('--smoothing', type=SHARE, default=0., help='label smoothing')
    add('--label_fraction', type=Number(float, above=0, most=1), default=1.,
        help='share of the training clips whose labels are used, drawn by --seed (semi-supervised)')
    add('--label_draw', type=text, choices=('random', 'balanced'), default='random',
        help='of that share: any clips, as published, or as many of each class')
    add('--novel_every', type=WHOLE, default=0, help='leave every so many-th class, from the first on, out of both '
        'splits: what remains are the auxiliary classes of one-shot recognition (6 there; 0: none)')
    add('--save_scores', action=argparse.BooleanOptionalAction, default=False,
        help='at the end, write the probabilities of the test clips to scores.npz')
    add('--save_features', action=argparse.BooleanOptionalAction, default=False,
        help='at the end, write the mean features of the test clips to features.npz')
    _add_projector(parser)


def _add_encoder(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('--random_encoder', action=argparse.BooleanOptionalAction, default=False,
                        help='take an encoder that was never trained')


def _add_retrieval(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group('retrieval').add_argument
    add('--finetune', type=text, metavar='PATH', help='checkpoint of any stage, of which the encoder is taken')
    add('--features', type=text, metavar='NPZ', help='features.npz of an earlier run, in place of an encoder')
    add('--protocol', type=text, choices=('knn', 'oneshot'), default='knn',
        help='knn: label of the nearest training clips; oneshot: of the nearest exemplar of the novel classes')
    add('--k', type=COUNT, default=1, help='neighbours that vote (knn)')
    add('--metric', type=text, choices=('cosine', 'euclidean', 'manhattan'), default='cosine',
        help='distance between features')
    add('--novel_every', type=WHOLE, default=6, help='every so many-th class, from the first on, is novel (oneshot)')
    _add_projector(parser)


def _add_projector(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('--projector', type=WHOLE, default=0, metavar='N',
                        help="at the end, give TensorBoard's projector the features of up to so many test clips")


def _add_finetuning(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group('fine-tuning').add_argument
    add('--layer_decay', type=Number(float, above=0, most=1), default=1., help='factor of lr from a layer to the next')
    add('--drop_path_rate', type=SHARE, default=0., help='stochastic depth of the last block')
    add('--head_dropout', type=SHARE, default=0.3, help='dropout before the head')
