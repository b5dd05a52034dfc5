"""Settings: which layer wins, what is refused, and the recipes against the published values, written out once more."""

import argparse
import itertools
from functools import partial
from pathlib import Path

import pytest

from tests.conftest import ROOT, refusal
from util.config import parse_args, resolve_batch
from util.options import STAGES

TRAINED = ['--data_path', 'd/clips.npz', '--epochs', '100', '--lr', '0.1', '--batch_size', '8']
REQUIRED = {'pretrain': TRAINED, 'finetune': TRAINED, 'linprobe': [*TRAINED, '--random_encoder'],
            'retrieval': ['--data_path', 'd/clips.npz', '--random_encoder', '--batch_size', '8']}


@pytest.fixture
def write(tmp_path):
    """Write texts or settings as YAML files; returns their paths."""
    numbers = itertools.count()

    def write(*contents):
        paths = [str(tmp_path / f'{next(numbers)}.yaml') for _ in contents]
        for path, content in zip(paths, contents, strict=True):
            Path(path).write_text(str(content))     # Python's maps are YAML, too
        return paths
    return write


def parse(stage, *options, files=()):
    return parse_args(stage, [*REQUIRED[stage], *(['--config', *files] if files else []), *map(str, options)])


def test_later_layers_win(write):
    """From the weakest: a file, its map of the stage, a second file, its map, the command line; all combinations."""
    for values in itertools.product(*([None, 101 + layer] for layer in range(5))):
        files = write(*({'num_joints': 7, 'linprobe': {'warmup_epochs': 999},
                         **({'warmup_epochs': shared} if shared else {}),
                         'pretrain': {'warmup_epochs': own} if own else {}}
                        for shared, own in (values[:2], values[2:4])))
        args = parse('pretrain', '--epochs', 500, *(['--warmup_epochs', values[4]] if values[4] else []), files=files)
        assert args.warmup_epochs == max((value for value in values if value), default=0), values


def test_numbers_and_flags_are_read_as_people_write_them(write):
    for text, number in (('1e-3', 1e-3), ('5e-4', 5e-4), ('1', 1.), ('2E+1', 20.)):     # YAML 1.1 reads 1e-3 as text
        args = parse('pretrain', files=write(f'weight_decay: {text}\n'))
        assert args.weight_decay == number and type(args.weight_decay) is float
    off, on = write({'pretrain': {'norm_skes_loss': False}}, {'pretrain': {'norm_skes_loss': True}})
    assert not parse('pretrain', files=[off]).norm_skes_loss and parse('pretrain', files=[off, on]).norm_skes_loss
    assert parse('pretrain', '--norm_skes_loss', files=[off]).norm_skes_loss
    assert not parse('pretrain', '--no-norm_skes_loss', files=[on]).norm_skes_loss


def test_a_setting_of_another_stage_is_accepted_in_its_place_only(write):
    shared, own, misplaced = write({'mask_ratio': 0.5}, {'pretrain': {'mask_ratio': 0.5}},
                                   {'finetune': {'mask_ratio': 0.5}})
    assert parse('pretrain', files=[shared]).mask_ratio == parse('pretrain', files=[own]).mask_ratio == 0.5
    assert not hasattr(parse('finetune', files=[shared]), 'mask_ratio')
    for stage in STAGES:
        refusal(partial(parse, stage, files=[misplaced]), misplaced, 'finetune: unknown setting')


@pytest.mark.parametrize('text, part', [
    ('a: [1\nb: 2', 'not valid YAML'), ('- 1', 'must be a mapping'), ('seed: 1\nseed: 2', 'duplicate key'),
    ('seed: &a 1\nepochs: *a', 'aliases'), ('pretrain: 5', 'must be a mapping of settings'),
    ('wieght_decay: 1', "did you mean 'weight_decay'"), ('epochs: true', 'integer'), ('lr: 1,5', 'number'),
    ('p_interval: [0.5]', 'list of 2'), ('p_interval: [0.5, a]', 'number'), ('data_path: 3', 'string'),
    ('stream: bones', 'joint, bone, velocity'), ('norm_skes_loss: 1', 'true or false')], ids=repr)
def test_a_settings_file_with_an_error_is_refused(write, text, part):
    path, = write(text)
    refusal(lambda: parse('pretrain', files=[path]), path, part)


@pytest.mark.parametrize('stage, options, part', [
    ('pretrain', '--stream bones', '--stream'), ('pretrain', '--mask_ration 0.5', 'did you mean --mask_ratio'),
    ('pretrain', '--mask_ratio 1.5', '--mask_ratio'), ('finetune', '--mask_ratio 0.5', '--mask_ratio'),
    ('pretrain', '--p_interval 0.9 0.5', '--p_interval'), ('pretrain', '--num_frames 118', '--num_frames 118'),
    ('finetune', '--num_heads 7', '--num_heads 7'), ('pretrain', '--motion_stride 120', '--motion_stride 120'),
    ('pretrain', '--mask_ratio 0.9999', '--mask_ratio 0.9999'), ('pretrain', '--min_lr nan', '--min_lr'),
    ('pretrain', '--warmup_epochs 100', '--warmup_epochs 100'), ('finetune', '--eval', '--resume'),
    ('linprobe', '--finetune a.pth', '--random_encoder'), ('retrieval', '--features f.npz', '--features'),
    ('pretrain', '--blr 1', 'lr and blr'), ('pretrain', 'stray', 'stray'), ('pretrain', '--config x.yaml', 'x.yaml')])
def test_options_that_are_wrong_or_contradict_each_other_are_refused(stage, options, part):
    refusal(lambda: parse(stage, *options.split()), part)


def test_missing_settings_are_named_where_they_are_needed():
    for stage, name in (('pretrain', 'lr'), ('finetune', 'epochs'), ('retrieval', 'data_path')):
        at = REQUIRED[stage].index(f'--{name}')
        refusal(partial(parse_args, stage, REQUIRED[stage][:at] + REQUIRED[stage][at + 2:]), f'--{name}')
    args = parse_args('finetune', ['--eval', '--resume', 'auto', '--data_path', 'x.npz'])
    assert (args.epochs, args.lr, args.output_dir) == (None, None, 'runs/x/finetune')
    args = parse_args('retrieval', ['--features', 'x/features.npz', '--seed', '0'])
    assert (args.benchmark, args.stream, args.output_dir, args.seed) == (None, None, None, 0)


@pytest.mark.parametrize('layers, lr, blr', [
    ([{'lr': 0.1}, {'blr': 0.2}], None, 0.2), ([{'blr': 0.2}, {'lr': 0.1}], 0.1, None),
    ([{'lr': 0.1, 'pretrain': {'blr': 0.2}}], None, 0.2), ([{'blr': 0.2, 'linprobe': {'lr': 0.5}}], None, 0.2)])
def test_the_later_of_lr_and_blr_counts(write, layers, lr, blr):
    options = ['--data_path', 'd.npz', '--epochs', '2', '--config', *write(*layers)]
    for more, expected in (([], (lr, blr)), (['--blr', '0.9'], (None, 0.9)), (['--lr', '0.9'], (0.9, None))):
        args = parse_args('pretrain', [*options, *more])
        assert (args.lr, args.blr) == expected
    both, = write({'pretrain': {'lr': 0.1, 'blr': 0.2}})
    refusal(lambda: parse_args('pretrain', [*options, both]), 'lr and blr')


def resolve(world, effective, size, accum, lr=None, blr=0.01):
    args = argparse.Namespace(effective_batch_size=effective, batch_size=size, accum_iter=accum, lr=lr, blr=blr,
                              min_lr=0)
    resolve_batch(args, world)
    return args


@pytest.mark.parametrize('world', [1, 2, 3])
def test_batch_size_and_accumulation_follow_from_the_effective_batch(world):
    """By search: a missing setting takes any value that makes the product correct, accumulation only if needed."""
    for effective, size, accum in itertools.product([None, 6, 8, 48, 64], [None, 1, 4, 6, 100], [None, 1, 2, 3]):
        sizes = [size] if size else range(1, 101)
        accums = [accum] if accum else ([1] if size is None or effective is None else range(1, 101))
        fits = [(s, a) for s in sizes for a in accums if effective in (None, s * a * world)]
        if size is None and effective is None or not fits:
            refusal(partial(resolve, world, effective, size, accum), '--effective_batch_size')
        else:
            args = resolve(world, effective, size, accum)
            assert fits == [(args.batch_size, args.accum_iter)]
            assert args.effective_batch_size == args.batch_size * args.accum_iter * world
            assert args.lr == pytest.approx(0.01 * args.effective_batch_size / 256)     # blr is that of 256 clips
    assert resolve(world, 48, None, None, lr=0.3, blr=None).lr == 0.3


NTU, PKU, UCLA = (60, 25), (51, 25), (10, 20)
BENCHMARKS = {      # data file; classes, joints
    'ntu60_xsub': ('ntu/NTU60_XSub', NTU), 'ntu60_xview': ('ntu/NTU60_XView', NTU),
    'ntu120_xsub': ('ntu120/NTU120_XSub', (120, 25)), 'ntu120_xset': ('ntu120/NTU120_XSet', (120, 25)),
    'ntu120_oneshot': ('ntu120/NTU120_OneShot', (120, 25)), 'synth_xsub': ('synthetic/SYNTH_XSub', (12, 25)),
    'pku1_xsub': ('pku_v1/PKUv1_XSub', PKU), 'pku1_xview': ('pku_v1/PKUv1_XView', PKU),
    'pku2_xsub': ('pku_v2/PKUv2_XSub', PKU), 'pku2_xview': ('pku_v2/PKUv2_XView', PKU),
    'nwucla_xview': ('nwucla/NWUCLA_XView', UCLA), 'nwucla_xsub': ('nwucla/NWUCLA_XSub', UCLA),
    'nwucla_xview_2d': ('nwucla/NWUCLA_XView_2D', UCLA),
    'ntu60_xsub_2d': ('ntu_pyskl/NTU60_XSub_2D', (60, 17)), 'hmdb51': ('hmdb51/hmdb51_1_2D', (51, 17)),
    'gym': ('gym/gym_2D', (99, 17))}
# The recipes as they were run: the values that the authors' scripts leave after all overriding.
MODEL = {'num_frames': 120, 'num_joints': 25, 't_patch_size': 4, 'dim_feat': 256, 'depth': 8, 'num_heads': 8,
         'mlp_ratio': 4, 'seed': 0, 'stream': 'joint'}
TRAINING = {'p_interval': [0.5, 1], 'max_angle': 0.3, 'max_turn': None, 'clip_grad': None, 'save_epochs': 20,
            'blr': None, 'accum_iter': 1}
PRETRAIN = {'decoder_dim_feat': 256, 'mask_ratio': 0.9, 'motion_stride': 1, 'target': 'motion', 'norm_skes_loss': True,
            'weight_decay': 0.05, 'effective_batch_size': 128, 'lr': 1e-3, 'min_lr': 5e-4, 'epochs': 400,
            'warmup_epochs': 20, 'batch_size': 32}
LINPROBE = {'weight_decay': 0, 'min_lr': 0, 'epochs': 100, 'warmup_epochs': 0, 'smoothing': 0}
FINETUNE = {'weight_decay': 0.05, 'effective_batch_size': 48, 'lr': 3e-4, 'min_lr': 1e-5, 'epochs': 100,
            'warmup_epochs': 5, 'layer_decay': 0.8, 'drop_path_rate': 0.3, 'head_dropout': 0.3, 'smoothing': 0.1,
            'batch_size': 24}
RETRIEVAL = {'k': 1, 'metric': 'cosine', 'protocol': 'knn', 'novel_every': 6, 'batch_size': 128}
# data set: decoder blocks, tau; probe: effective batch, clips of each of two processes, lr
BY_DATASET = {'ntu60': (3, 0.80, 256, 128, 0.1), 'ntu120': (5, 0.75, 256, 128, 0.1), 'pku1': (5, 0.80, 128, 64, 0.1),
              'pku2': (5, 0.80, 32, 16, 0.01)}


def check_recipe(expected, stage, benchmark, *options, world=1):
    """Compare the final settings of a run of a recipe."""
    encoder = {'linprobe': ['--finetune', 'checkpoint.pth'], 'retrieval': ['--random_encoder']}.get(stage, [])
    files = [str(ROOT / 'config' / f'{name}.yaml') for name in (stage, benchmark)]
    args = parse_args(stage, ['--config', *files, *encoder, *options])
    if stage != 'retrieval':
        resolve_batch(args, world)
    assert {name: getattr(args, name, None) for name in expected} == expected


@pytest.mark.parametrize('benchmark', BENCHMARKS)
def test_every_recipe_runs_on_every_benchmark(benchmark):
    path, (classes, joints) = BENCHMARKS[benchmark]
    for stage, world in itertools.product(STAGES, (1, 2, 4)):
        expected = {'data_path': f'data/{path}.npz', 'num_joints': joints, 'benchmark': benchmark,
                    'output_dir': f'runs/{benchmark}/{stage}',
                    'num_classes': classes if stage in ('linprobe', 'finetune') else None}
        check_recipe(expected, stage, benchmark, world=world)


@pytest.mark.parametrize('benchmark', [name for name in BENCHMARKS
                                       if name.startswith(('ntu', 'pku')) and BENCHMARKS[name][1][1] == 25])
def test_recipes_have_the_published_values(benchmark):
    decoder_depth, tau, effective, batch_size, lr = BY_DATASET[benchmark.split('_')[0]]
    pretrain = MODEL | TRAINING | PRETRAIN | {'decoder_depth': decoder_depth, 'motion_aware_tau': tau}
    check_recipe(pretrain, 'pretrain', benchmark, world=4)
    check_recipe(MODEL | TRAINING | LINPROBE | {'effective_batch_size': effective, 'batch_size': batch_size, 'lr': lr},
                 'linprobe', benchmark, world=2)
    check_recipe(MODEL | TRAINING | FINETUNE | {'finetune': None}, 'finetune', benchmark, world=2)
    check_recipe(MODEL | RETRIEVAL, 'retrieval', benchmark)
    check_recipe(pretrain | {'target': 'joint', 'motion_aware_tau': 0}, 'pretrain', benchmark, '--target', 'joint',
                 '--motion_aware_tau', '0', world=4)
