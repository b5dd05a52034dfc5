"""The floors: a file imports only from lower ones; and every command ends as it should."""


import pytest

from tests.conftest import ROOT, run


def test_scripts_stop_at_their_first_error():
    for script in [*sorted((ROOT / 'scripts').glob('*.sh')), ROOT / '.ci' / 'run']:
        assert script.read_text().startswith('#'), script
        assert 'set -euo pipefail' in script.read_text() or script.name in ('env.sh', 'help.sh'), script


@pytest.mark.parametrize('command', ['main_pretrain.py', 'main_linprobe.py', 'main_finetune.py', 'tools/retrieval.py',
                                     'tools/predict.py', 'tools/report.py', 'tools/visualize.py', 'tools/export.py',
                                     'data/prepare_ntu.py',
                                     'data/prepare_pku.py', 'data/check.py',
                                     'data/prepare_nwucla.py', 'data/prepare_custom.py', 'data/synthesize.py',
                                     'tools/benchmark.py'])
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
