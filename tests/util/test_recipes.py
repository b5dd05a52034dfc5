"""Every recipe with every benchmark, against the numbers the method was run with, written out once more here."""


import pytest

from tests.conftest import ROOT
from util.config import parse_args, resolve_batch
from util.options import STAGES

CONFIG = ROOT / 'config'
# benchmark: data file, classes, joints
BENCHMARKS = {
    'ntu60_xsub': ('data/ntu/NTU60_XSub.npz', 60, 25), 'ntu60_xview': ('data/ntu/NTU60_XView.npz', 60, 25),
    'ntu120_xsub': ('data/ntu120/NTU120_XSub.npz', 120, 25), 'ntu120_xset': ('data/ntu120/NTU120_XSet.npz', 120, 25),
    'ntu120_oneshot': ('data/ntu120/NTU120_OneShot.npz', 120, 25),
    'pku1_xsub': ('data/pku_v1/PKUv1_XSub.npz', 51, 25), 'pku1_xview': ('data/pku_v1/PKUv1_XView.npz', 51, 25),
    'pku2_xsub': ('data/pku_v2/PKUv2_XSub.npz', 51, 25), 'pku2_xview': ('data/pku_v2/PKUv2_XView.npz', 51, 25),
    'nwucla_xview': ('data/nwucla/NWUCLA_XView.npz', 10, 20), 'nwucla_xsub': ('data/nwucla/NWUCLA_XSub.npz', 10, 20),
    'synth_xsub': ('data/synthetic/SYNTH_XSub.npz', 12, 25),
}
PUBLISHED = [name for name in BENCHMARKS if name.startswith(('ntu', 'pku'))]
# The recipes that were run, as the paper's authors' scripts leave them: the values after all overriding.
MODEL = {'num_frames': 120, 'num_joints': 25, 't_patch_size': 4, 'dim_feat': 256, 'depth': 8, 'num_heads': 8,
         'mlp_ratio': 4, 'seed': 0, 'stream': 'joint', 'p_interval': [0.5, 1], 'max_angle': 0.3, 'max_turn': None,
         'clip_grad': None,
         'save_epochs': 20, 'blr': None, 'accum_iter': 1}
PRETRAIN = {'decoder_dim_feat': 256, 'mask_ratio': 0.9, 'motion_stride': 1, 'target': 'motion', 'norm_skes_loss': True,
            'weight_decay': 0.05, 'effective_batch_size': 128, 'lr': 1e-3, 'min_lr': 5e-4, 'epochs': 400,
            'warmup_epochs': 20}
LINPROBE = {'weight_decay': 0, 'min_lr': 0, 'epochs': 100, 'warmup_epochs': 0, 'smoothing': 0}
FINETUNE = {'weight_decay': 0.05, 'effective_batch_size': 48, 'lr': 3e-4, 'min_lr': 1e-5, 'epochs': 100,
            'warmup_epochs': 5, 'layer_decay': 0.8, 'drop_path_rate': 0.3, 'head_dropout': 0.3, 'smoothing': 0.1}
RETRIEVAL = {'k': 1, 'metric': 'cosine', 'protocol': 'knn', 'novel_every': 6, 'batch_size': 128, 'finetune': None,
             'features': None}
# data set:      decoder blocks, tau; probe: effective batch, processes, clips a process, lr
BY_DATA_SET = {
    'ntu60':  (3, 0.80, 256, 2, 128, 0.1),
    'ntu120': (5, 0.75, 256, 2, 128, 0.1),
    'pku1':   (5, 0.80, 128, 2, 64, 0.1),
    'pku2':   (5, 0.80, 32, 2, 16, 0.01),
}


def settings_of(stage, benchmark, *options, world=1):
    """The final settings of a run of the recipe, as the command in the file's header would start it."""
    files = [str(CONFIG / f'{name}.yaml') for name in (stage, benchmark)]
    encoder = {'linprobe': ['--finetune', 'checkpoint.pth'], 'retrieval': ['--random_encoder']}.get(stage, [])
    args = parse_args(stage, ['--config', *files, *encoder, *options])
    if stage != 'retrieval':
        resolve_batch(args, world)
    return args


def check(args, expected):
    values = vars(args)
    assert {key: values[key] for key in expected} == expected


@pytest.mark.parametrize('benchmark', BENCHMARKS)
@pytest.mark.parametrize('stage', STAGES)
def test_every_recipe_runs_every_benchmark(stage, benchmark):
    data_path, classes, joints = BENCHMARKS[benchmark]
    args = settings_of(stage, benchmark)
    for world in (1, 2, 4) if stage != 'retrieval' else ():
        args = settings_of(stage, benchmark, world=world)
        assert args.batch_size * args.accum_iter * world == args.effective_batch_size
    check(args, {'data_path': data_path, 'num_joints': joints, 'benchmark': benchmark,
                 'output_dir': f'runs/{benchmark}/{stage}'})
    assert getattr(args, 'num_classes', classes) == classes
    assert (stage in ('linprobe', 'finetune')) == hasattr(args, 'num_classes')


@pytest.mark.parametrize('benchmark', PUBLISHED)
def test_pretraining_recipe(benchmark):
    decoder_depth, tau, *_ = BY_DATA_SET[benchmark.split('_')[0]]
    args = settings_of('pretrain', benchmark, world=4)
    check(args, MODEL | PRETRAIN | {'decoder_depth': decoder_depth, 'motion_aware_tau': tau, 'batch_size': 32})


@pytest.mark.parametrize('benchmark', PUBLISHED)
def test_linear_probe_recipe(benchmark):
    *_, effective, world, batch_size, lr = BY_DATA_SET[benchmark.split('_')[0]]
    args = settings_of('linprobe', benchmark, world=world)
    check(args, MODEL | LINPROBE | {'effective_batch_size': effective, 'batch_size': batch_size, 'lr': lr})


@pytest.mark.parametrize('benchmark', PUBLISHED)
def test_finetuning_recipe(benchmark):
    check(settings_of('finetune', benchmark, world=2), MODEL | FINETUNE | {'batch_size': 24})
    scratch = settings_of('finetune', benchmark, '--layer_decay', '1', world=2)
    check(scratch, MODEL | FINETUNE | {'batch_size': 24, 'layer_decay': 1, 'finetune': None})


@pytest.mark.parametrize('benchmark', BENCHMARKS)
def test_retrieval_recipe(benchmark):
    args = settings_of('retrieval', benchmark)
    check(args, RETRIEVAL | {'num_joints': BENCHMARKS[benchmark][2]})
    if benchmark in PUBLISHED:
        check(args, {key: value for key, value in MODEL.items() if hasattr(args, key)})


def test_the_masked_autoencoder_baseline_is_two_options():
    args = settings_of('pretrain', 'ntu60_xsub', '--target', 'joint', '--motion_aware_tau', '0')
    check(args, MODEL | PRETRAIN | {'decoder_depth': 3, 'motion_aware_tau': 0, 'target': 'joint'})


def test_every_file_is_looked_at_here():
    others = {'demo', 'published'}     # published figures: tests/tools/test_report.py
    assert {path.stem for path in CONFIG.glob('*')} == {*STAGES, *BENCHMARKS, *others}
    for path in CONFIG.glob('*'):
        assert all(len(line) <= 120 for line in path.read_text().splitlines()), path
