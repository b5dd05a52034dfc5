"""Every recipe with every benchmark, against the numbers the method was run with, written out once more here."""

import re

import pytest
import yaml

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
# top-1 % that the benchmark files' headers must name: probe, fine-tuning, semi-supervised 1 % and 10 %, retrieval;
# of SkeletonMAE: probe, semi-supervised
RESULTS = {
    'ntu60_xsub': '84.9 85.0 93.1 93.0 66.0 88.0 62.0 74.8 54.4 80.6',
    'ntu60_xview': '89.1 89.0 97.5 97.5 68.7 91.5 70.0 77.7 54.6 83.5',
    'ntu120_xsub': '78.6 78.1 90.0 89.8 72.5', 'ntu120_xset': '79.1 79.5 91.3 91.5 73.5', 'ntu120_oneshot': '',
    'pku1_xsub': '92.2', 'pku1_xview': '', 'pku2_xsub': '53.8 36.1', 'pku2_xview': '',
    'nwucla_xview': '71.6 73.3 50.2 49.7 69.8 79.6 69.5 60.1 47.1 88.5 87.4 83.3 63.6 61.6 52.7',
    'nwucla_xsub': '', 'synth_xsub': '66.5 15.4 44.1 40.5 33.6 12.9',
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


@pytest.mark.parametrize('stage', STAGES)
def test_a_recipe_holds_nothing_its_stage_does_not_know(stage):
    """Keys common to all stages are passed over where a stage has no such setting; a recipe is for one stage only."""
    content = yaml.safe_load((CONFIG / f'{stage}.yaml').read_text())
    own = content.pop(stage, {})
    known = vars(settings_of(stage, 'ntu60_xsub'))
    assert {*content, *own} <= {*known} and not {*content} & {*STAGES}, 'a key that does nothing'
    assert not {*content} & {*own}, 'a key that stands twice'


@pytest.mark.parametrize('benchmark', BENCHMARKS)
def test_every_key_of_a_benchmark_is_of_use(benchmark):
    content = yaml.safe_load((CONFIG / f'{benchmark}.yaml').read_text())
    used = {stage: vars(settings_of(stage, benchmark)) for stage in STAGES}
    for key, value in content.items():
        stages = [key] if key in STAGES else [stage for stage in STAGES if key in used[stage]]
        assert stages, f'{key} is for no stage'
        layer = value if key in STAGES else {key: value}
        for stage in stages:
            for name, given in layer.items():
                expected = content.get(stage, {}).get(name, given)
                assert used[stage][name] == expected, (stage, name)
                assert isinstance(used[stage][name], bool) == isinstance(expected, bool), (stage, name)


def test_the_masked_autoencoder_baseline_is_two_options():
    args = settings_of('pretrain', 'ntu60_xsub', '--target', 'joint', '--motion_aware_tau', '0')
    check(args, MODEL | PRETRAIN | {'decoder_depth': 3, 'motion_aware_tau': 0, 'target': 'joint'})


@pytest.mark.parametrize('stage', STAGES)
def test_the_two_nwucla_protocols_differ_in_their_data_and_cameras_only(stage):
    view, subject = (vars(settings_of(stage, f'nwucla_{name}')) for name in ('xview', 'xsub'))
    differing = {key for key in view if view[key] != subject[key]}
    assert differing == {'config', 'data_path', 'benchmark', 'output_dir', 'log_dir', 'max_turn'} & {*view}


@pytest.mark.parametrize('stage', STAGES)
def test_the_demo_goes_over_recipe_and_benchmark(stage):
    files = [str(CONFIG / f'{name}.yaml') for name in (stage, 'synth_xsub', 'demo')]
    encoder = ['--random_encoder'] if stage in ('linprobe', 'retrieval') else []
    args = parse_args(stage, ['--config', *files, *encoder])
    if stage != 'retrieval':
        resolve_batch(args, 1)
    demo = yaml.safe_load((CONFIG / 'demo.yaml').read_text())
    assert stage in demo or stage == 'retrieval'
    check(args, {key: value for key, value in demo.items() if key not in STAGES and key in vars(args)}
          | demo.get(stage, {}))


def test_every_file_is_looked_at_here():
    others = {'demo', 'published'}     # published figures: tests/tools/test_report.py
    assert {path.stem for path in CONFIG.glob('*')} == {*STAGES, *BENCHMARKS, *others}
    for path in CONFIG.glob('*'):
        assert all(len(line) <= 120 for line in path.read_text().splitlines()), path


@pytest.mark.parametrize('stage', STAGES)
def test_recipes_name_their_script(stage):
    header = (CONFIG / f'{stage}.yaml').read_text()
    assert f'#   bash scripts/{stage}.sh BENCHMARK' in header
    for named in re.findall(r'\w+\.sh', header):
        assert (ROOT / 'scripts' / named).exists(), named


@pytest.mark.parametrize('benchmark', PUBLISHED)
def test_benchmark_files_hold_differences_only(benchmark):
    content = yaml.safe_load((CONFIG / f'{benchmark}.yaml').read_text())
    for stage in STAGES:
        recipe = yaml.safe_load((CONFIG / f'{stage}.yaml').read_text())
        recipe |= recipe.pop(stage, {})
        for key, value in content.get(stage, {}).items():
            assert recipe.get(key) != value, f'{stage}: {key} is the same in the recipe'


@pytest.mark.parametrize('benchmark', PUBLISHED)
def test_headers_and_tables_name_the_same_published_figures(benchmark):
    rows = yaml.safe_load((CONFIG / 'published.yaml').read_text())['figures'].get(benchmark, {})
    figures = [f'{figure:.1f}' for sources in rows.values() for figure in sources.values()]
    assert sorted(figures) == sorted(RESULTS[benchmark].split())


@pytest.mark.parametrize('benchmark', BENCHMARKS)
def test_headers_name_command_and_published_results(benchmark):
    text = (CONFIG / f'{benchmark}.yaml').read_text()
    header = text[:text.index('benchmark:')]
    assert all(line.startswith('#') for line in header.splitlines())
    for named in re.findall(r'config/\w+\.yaml|main_\w+\.py|data/\w+\.py|scripts/\w+\.sh', header):
        assert (ROOT / named).exists(), named
    assert set(re.findall(r'config/(\w+)\.yaml', header)) <= {*STAGES, benchmark, 'demo'}
    assert f'bash scripts/reproduce.sh {benchmark}' in header and '\n# Hardware: ' in header
    percentages = re.findall(r'(?<![\d,])\d\d\.\d(?!\d)', header)
    assert sorted(percentages) == sorted(RESULTS[benchmark].split())
