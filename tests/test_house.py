"""Structure of the repository: imports go one way between folders, scripts stop at errors, commands end in one line."""

import ast

from tests.conftest import ROOT

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
                assert own != 'main' or not name.startswith('tools') or node.col_offset > 0, f'{path} imports {name}'


def test_scripts_stop_at_their_first_error():
    for script in [*sorted((ROOT / 'scripts').glob('*.sh')), ROOT / '.ci' / 'run']:
        assert 'set -euo pipefail' in script.read_text() or script.name in ('env.sh', 'help.sh'), script


HELP_AND_BAD_OPTION = """
import importlib, sys
from util.errors import run_main
for name in sys.argv[1:]:
    main, codes = importlib.import_module(name).main, []
    for option in ('--help', '--no_such_option'):
        try:
            run_main(lambda: main([option]))
        except SystemExit as end:
            codes.append(end.code)
    print(f'{name}: exit codes {codes}', flush=True)
"""


def test_every_command_answers_help_and_a_bad_option(fork):
    commands = [path.relative_to(ROOT) for pattern in ('main_*.py', 'tools/*.py', 'data/*.py')
                for path in ROOT.glob(pattern) if "if __name__ == '__main__':\n    run_main(main)" in path.read_text()]
    modules = ['.'.join(path.with_suffix('').parts) for path in commands]
    done = fork(HELP_AND_BAD_OPTION, *modules)
    assert {'main_pretrain', 'tools.predict', 'data.prepare_ntu', 'data.check', 'data.synthesize'} <= {*modules}
    assert done.codes == [0], done.text
    for name in modules:
        assert f'{name}: exit codes [0, 2]' in done.text, done.text
    errors = [line for line in done.text.splitlines() if line.startswith('error: ')]
    assert len(errors) == len(modules) and 'Traceback' not in done.text
