"""The floors: a file imports only from lower ones; and every command ends as it should."""

import ast
from pathlib import Path

import pytest

from tests.conftest import ROOT, run

FLOORS = {  # lower floors first; the two models stand on one floor, one above the other
    'util.errors': -2, 'util.files': -1, 'util.rng': -1, 'util.plain_yaml': -1, 'util.repeat': -1, 'util.memory': -1,
    'util.dist': 0, 'util.log': 0, 'util.checkpoint': 0, 'util.optim': 0, 'util.metrics': 0, 'util.compute': 0,
    'data.common': 0,
    'util.attention': 0.5, 'util.options': 0.5, 'util.preempt': 0.5, 'util.card': 1,
    'data.ntu_text': 0.5, 'data.body': 0.5, 'data.pipeline': 0.5, 'data.ntu_actors': 0.6, 'data.prepare_ntu': 0.8,
    'data.prepare_nwucla': 0.8, 'data.prepare_pku': 0.8, 'data.plain_pickle': 0.5, 'data.bvh': 0.6,
    'data': 1, 'data.recordings': 1.2, 'data.prepare_custom': 1.4,
    'model_transformer': 1, 'model_mamp': 1.5,
    'feeder.npz': 0.5, 'feeder.layouts': 0.5, 'feeder.subset': 0.5, 'feeder.classes': 0.5, 'feeder.transforms': 0.5,
    'feeder.dataset': 1, 'feeder.loader': 1.5, 'feeder.augment': 1.5,
    'util.saved': 1, 'util.results': 2, 'util.report': 2.5, 'util.scores': 2.6, 'util.figures': 2.7,
    'util.flops': 2, 'util.bench': 2.6, 'util.loop': 2, 'util.args': 2, 'util.rebuild': 2.5, 'util.authors': 2.6,
    'util.export': 2.6, 'util.plain': 2.5, 'util.inside': 2.6, 'util.pictures': 2.7, 'util.animation': 2.75,
    'util.page': 2.8, 'engine_': 3, 'engine_predict': 3.5, 'main_': 4,
    'main_benchmark': 5,
}


def floor_of(module: str) -> float | None:
    """The floor of a module of ours, None for anybody else's."""
    fits = [name for name in FLOORS if module == name or module.startswith(name + '.' * (not name.endswith('_')))]
    return FLOORS[max(fits, key=len)] if fits else None


def imports_of(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {f'{node.module}.{alias.name}' for alias in node.names}
    return names


SOURCES = [path for folder in ('.', 'feeder', 'util', 'data') for path in sorted((ROOT / folder).glob('*.py'))
           if path.name != '__init__.py']


@pytest.mark.parametrize('path', SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_file_imports_only_from_lower_floors(path):
    module = '.'.join(path.relative_to(ROOT).with_suffix('').parts)
    floor = floor_of(module)
    assert floor is not None, f'{module} has no floor'
    for name in imports_of(path):
        below = floor_of(name)
        assert below is None or below < floor, f'{module} imports {name}, which is not below it'


def test_scripts_stop_at_their_first_error():
    for script in [*sorted((ROOT / 'scripts').glob('*.sh')), ROOT / '.ci' / 'run']:
        assert script.read_text().startswith('#'), script
        assert 'set -euo pipefail' in script.read_text() or script.name in ('env.sh', 'help.sh'), script


@pytest.mark.parametrize('command', ['main_pretrain.py', 'main_linprobe.py', 'main_finetune.py', 'main_retrieval.py',
                                     'main_predict.py', 'main_report.py', 'main_visualize.py', 'main_export.py',
                                     'data/prepare_ntu.py',
                                     'data/prepare_pku.py', 'data/check.py',
                                     'data/prepare_nwucla.py', 'data/prepare_custom.py', 'data/synthesize.py',
                                     'data/benchmark.py'])
def test_commands_explain_themselves_and_end_with_two_on_a_bad_option(command):
    explained = run(command, '--help')
    assert explained.returncode == 0 and 'usage' in explained.stdout
    refused = run(command, '--no_such_option')
    assert refused.returncode == 2 and 'Traceback' not in refused.stderr


@pytest.mark.parametrize('options, says', [
    (['--data_path', 'nowhere.npz'], 'nowhere.npz'),
    (['--num_joints', '7'], 'num_joints'),
    (['--device', 'cuda'], 'GPU'),
    (['--device', 'abacus'], 'abacus'),
    (['--effective_batch_size', '64'], '22 training clips'),
    (['--precision', 'tf32'], 'tf32'),
    (['--resume', 'nowhere.pth'], 'nowhere.pth'),
    (['--config', 'nowhere.yaml'], 'nowhere.yaml'),
    (['--mask_ratio', '1.5'], 'mask_ratio'),
], ids=lambda value: ' '.join(value) if isinstance(value, list) else '')
def test_a_users_error_is_one_line_and_exit_code_two(tiny_pretrain, tmp_path, options, says):
    done = run('main_pretrain.py', *tiny_pretrain, '--output_dir', str(tmp_path / 'out'), *options)
    assert done.returncode == 2
    assert done.stderr.count('\n') == 1 and done.stderr.startswith('error: ') and says in done.stderr
    assert not (tmp_path / 'out').exists(), 'nothing is left behind'
