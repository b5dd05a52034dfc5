"""The preparation's benchmark: both ways write the same, and it notices when they do not."""

import json
import shutil

import numpy as np
import pytest

from data import synthesize
from tests.conftest import refusal
from tools.benchmarking import preparation as benchmark


@pytest.fixture(scope='module')
def raw(tmp_path_factory):
    folder = tmp_path_factory.mktemp('benchmark') / 'raw'
    assert synthesize.main(['--out', str(folder), '--clips_per_class', '3', '--workers', '1']) == 0
    return folder


def test_table(raw, tmp_path, capsys):
    path = tmp_path / 'table.json'
    assert benchmark.main(['--raw', str(raw), '--repeats', '1', '--workers', '1', '2', '--json', str(path)]) == 0
    rows = json.loads(path.read_text())
    assert [row['way'] for row in rows] == ['usual way', '1 worker', '2 workers'] and rows[0]['times as fast'] == 1
    assert all(row['files'] == 36 and row['seconds'] > 0 and row['peak memory MB'] > 10 for row in rows)
    table = capsys.readouterr().out.splitlines()[-5:]
    assert table[0].startswith('| files | text MB | way |') and '| 2 workers |' in table[-1]


def test_the_usual_way_is_another_program_with_the_same_result(raw, tmp_path, capsys):
    """A file changed after one way read it is found; so is a way that fails."""
    benchmark.usual_way(raw, tmp_path)
    path = tmp_path / 'SYNTH_XSub.npz'
    shutil.copy(path, tmp_path / 'same.npz')
    benchmark._compare_files([path, tmp_path / 'same.npz'])
    with np.load(path) as npz:
        members = dict(npz)
    members['x_test'][3, 5, 7] += 1e-6
    np.savez(tmp_path / 'other.npz', **members)
    refusal(lambda: benchmark._compare_files([path, tmp_path / 'other.npz']), 'other.npz', 'x_test')
    (tmp_path / 'raw').mkdir()
    (tmp_path / 'raw' / 'S001C001P001R001A001.skeleton').write_text('1\n')
    refusal(lambda: benchmark.compare(tmp_path / 'raw', 1, [1], tmp_path), 'ended with')
    refusal(lambda: benchmark.compare(path, 1, [1], tmp_path), 'SYNTH_XSub.npz', 'folder')
