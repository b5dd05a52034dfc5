"""Structure of the repository: imports go one way between folders, scripts stop at errors, commands explain themselves."""

import ast
import subprocess
import sys

import pytest

from tests.conftest import ROOT, refusal

# What the modules of a folder may import of this repository.
ALLOWED = {'util': {'util', 'feeder', 'model'}, 'feeder': {'util', 'feeder'}, 'model': {'util', 'model'},
           'data': {'util', 'feeder', 'data'}, 'engine': {'util', 'feeder', 'model', 'engine'},
           'main': {'util', 'feeder', 'model', 'engine', 'main', 'tools'},
           'tools': {'util', 'feeder', 'model', 'engine', 'main', 'data', 'tools'}}


def folder(module: str) -> str:
    return module.split('.')[0].split('_')[0]


def test_imports_go_one_way():
    for path in [*ROOT.glob('*.py'), *(path for name in ('util', 'feeder', 'data', 'tools')
                                       for path in (ROOT / name).rglob('*.py'))]:
        own = folder(path.relative_to(ROOT).parts[0].removesuffix('.py'))
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else \
                [node.module] if isinstance(node, ast.ImportFrom) else []
            for name in names:
                assert folder(name) not in ALLOWED or folder(name) in ALLOWED[own], f'{path} imports {name}'


def test_scripts_stop_at_their_first_error():
    for script in [*sorted((ROOT / 'scripts').glob('*.sh')), ROOT / '.ci' / 'run']:
        assert 'set -euo pipefail' in script.read_text() or script.name in ('env.sh', 'help.sh'), script


def test_every_command_answers_help_and_a_bad_option():
    """In one process that imports PyTorch once."""
    commands = [path.relative_to(ROOT) for pattern in ('main_*.py', 'tools/*.py', 'data/*.py')
                for path in ROOT.glob(pattern) if "if __name__ == '__main__':\n    run_main(main)" in path.read_text()]
    assert len(commands) == 15
    modules = ['.'.join(path.with_suffix('').parts) for path in commands]
    done = subprocess.run([sys.executable, '-c', """
import contextlib, importlib, io, sys
from util.errors import UserError
for name in sys.argv[1:]:
    main, output = importlib.import_module(name).main, io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.suppress(SystemExit):
        main(['--help'])
    assert 'usage' in output.getvalue(), name
    try:
        main(['--no_such_option'])
    except UserError as error:
        assert error.exit_code == 2
    else:
        raise AssertionError(name)
""", *modules], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr


def test_a_user_error_is_one_line_and_exit_code_two(tmp_path):
    done = subprocess.run([sys.executable, str(ROOT / 'main_pretrain.py'), '--data_path', 'nowhere.npz', '--epochs', '1',
                           '--lr', '1e-3', '--batch_size', '2', '--device', 'cpu'], cwd=tmp_path, capture_output=True,
                          text=True, timeout=120, check=False)
    assert done.returncode == 2 and done.stderr.count('\n') == 1 and done.stderr.startswith('error: nowhere.npz')


@pytest.mark.parametrize('options, part', [
    (['--num_joints', '7'], 'num_joints'), (['--device', 'cuda'], 'GPU'), (['--device', 'abacus'], 'abacus'),
    (['--effective_batch_size', '64'], '22 training clips'), (['--precision', 'tf32'], 'tf32'),
    (['--resume', 'nowhere.pth'], 'nowhere.pth'), (['--config', 'nowhere.yaml'], 'nowhere.yaml'),
    (['--mask_ratio', '1.5'], 'mask_ratio'), (['--dim_feat', '200000'], 'GB of weights'),
    (['--attention', 'flash'], 'CUDA GPU'), (['--output_dir', '/proc/x'], 'cannot be written')], ids=' '.join)
def test_bad_input_is_refused_before_training(tiny_pretrain, tmp_path, options, part):
    import main_pretrain
    refusal(lambda: main_pretrain.main([*tiny_pretrain, '--output_dir', str(tmp_path / 'out'), *options]), part)
    assert not (tmp_path / 'out').exists()
