"""The report on dataset files: figures by hand, and every kind of problem."""

import json
from dataclasses import replace
from hashlib import sha256

import numpy as np
import pytest

from data import check, measurements
from data.dataset_file import one_hot, write_npz
from data.datasets import find_protocol
from tests.conftest import refusal, run

LENGTHS = {'train': [5, 12, 7, 1, 8, 9], 'test': [3, 4, 6, 2]}
LABELS = {'train': [0, 1, 2, 0, 1, 0], 'test': [0, 1, 2, 0]}


@pytest.fixture
def members():
    """A file without problems: 6 + 4 clips of at most 12 frames, two bodies (test row 0: one), 3 classes."""
    rng, members = np.random.default_rng(3), {}
    for camera, (split, lengths) in enumerate(LENGTHS.items(), 1):
        x = np.zeros((len(lengths), 12, 150), dtype=np.float32)
        for row, length in enumerate(lengths):
            x[row, :length] = rng.normal(size=(length, 150))
        members |= {f'x_{split}': x, f'y_{split}': one_hot(LABELS[split], 3), f'name_{split}': np.array(
            [f'S001C00{camera}P{row + 1:03}R001A{label + 1:03}' for row, label in enumerate(LABELS[split])])}
    members['x_test'][0, :, 75:] = 0
    return members


@pytest.fixture
def inspect(tmp_path, capsys, monkeypatch):
    """Write members to a file and check it in blocks of 2; returns problems, lines of the report, and facts."""
    monkeypatch.setattr(measurements, 'BLOCK_BYTES', 2 * 12 * 150 * 4)

    def inspect(members, stem='SOME'):
        write_npz(tmp_path / f'{stem}.npz', **members)
        code = check.main([str(tmp_path / f'{stem}.npz'), '--json', str(tmp_path / 'facts.json')])
        lines = capsys.readouterr().out.splitlines()
        facts = json.loads((tmp_path / 'facts.json').read_text())[0]
        problems = [line.removeprefix('problem: ') for line in lines if line.startswith('problem: ')]
        assert code == bool(problems) and problems == facts['problems']
        return problems, lines, facts
    return inspect


def test_a_file_without_problems(members, inspect):
    members |= {'extra': np.arange(7), 'empty': np.zeros((0, 3)), 'x_test': np.asfortranarray(members['x_test'])}
    problems, lines, facts = inspect(members)
    assert problems == facts['notes'] == []
    assert {line.split(' (')[0] for line in lines if line.startswith('sha256 of ')} == {
        f'sha256 of {member}: {sha256(array.tobytes()).hexdigest()}' for member, array in members.items()}
    train, test = facts['train'], facts['test']
    assert (train['clips'], test['clips'], train['frames'], train['numbers'], train['classes']) == (6, 4, 12, 150, 3)
    assert (train['bodies'], train['joints'], train['clips_per_class']) == (2, 25, [3, 2, 1])
    assert train['length'] == [1, 7.5, 12] and train['lengths']['1-2'] == 1 and train['lengths']['7-8'] == 2
    assert test['second_body'] == {'empty': 1, 'copy': 0, 'own': 3}
    assert test['range'] == [float(members['x_test'].min()), float(members['x_test'].max())]
    problems, _, facts = inspect(members | {key: members[key][:, :, :90] for key in ('x_train', 'x_test')})
    assert problems == [] and facts['train']['bodies'] is None, 'an unknown layout'


def test_counts_by_hand(members, inspect):
    """Second bodies, gaps and empty clips of 8 training clips, against a loop over frames."""
    x = np.concatenate([members['x_train'], members['x_train'][:2] + 1])
    x[6:, 9:] = 0
    x[1, 3:5] = x[4, 0] = 0             # gaps
    x[2, 2, :2], x[2, 2, 2:] = (1, -1), 0   # a frame that is not zero, but sums to zero
    x[5, 8], x[5, 8, 0], x[5, 8, 1] = 0, 1, -1   # such a frame as the last one
    x[[3, 7], :, 75:] = x[[3, 7], :, :75]   # copies
    x[7, 4, 80] += 1                    # but for one number
    x[6, :, 75:] = 0                    # empty
    x[0, 4] = -abs(x[0, 4])             # a last frame without positive numbers
    members |= {'x_train': x, 'y_train': one_hot([0] * 8, 3), 'name_train': np.array(list('abcdefgh'))}
    problems, _, facts = inspect(members)
    valid = [sum(1 for frame in clip if frame.sum() != 0) for clip in x]
    last = [max(t for t in range(12) if clip[t].any()) + 1 for clip in x]
    train = facts['train']
    assert problems == [] and train['length'] == [min(valid), np.median(valid), max(valid)]
    assert train['gap_frames'] == sum(last) - sum(valid) == 5 and train['clips_with_gaps'] == 4
    assert train['second_body'] == {'empty': 1, 'copy': 1, 'own': 6} and train['absent_classes'] == [1, 2]


FIRST, SECOND = 'S001C001P001R001A001', 'S001C001P002R001A002'


def invalid_numbers(m):
    m['x_train'][[0, 5]] = 0
    m['x_train'][1, 2, 149], m['x_train'][2, 0, 7], m['x_train'][3, 0, 0] = np.nan, -1e30, 20
    m['x_test'][1, 0, 0], m['x_test'][2, 11, 3] = np.inf, -np.inf
    return [f'x_train: empty clips: 2 ({FIRST}, S001C001P006R001A001)',
            f'x_train: clips with NaN or infinity: 1 ({SECOND})',
            'x_train: clips with coordinates beyond 20 m: 1 (S001C001P003R001A003)',
            'x_test: clips with NaN or infinity: 2 (S001C002P002R001A002, S001C002P003R001A003)']


def not_one_hot(m):
    m['y_train'][:4] = (0, 0, 0), (1, 1, 0), (0, 0, 2), (.5, .5, 0)
    del m['name_train'], m['name_test']
    return ['y_train: rows that are not one-hot: 4 (row 0, row 1, row 2, …)']


def labels_and_names(m):
    m['y_train'][[0, 1]] = m['y_train'][[1, 0]]
    m['name_train'][3] = m['name_train'][4] = 'c\nd'
    m['name_train'][5] = m['name_test'][0] = FIRST
    return [f'y_train: labels that contradict the name: 2 ({FIRST} has 1, {SECOND} has 0)',
            f'name_train: names more than once: 2 ({FIRST}, c\\nd)',
            f'name_train and name_test: names in both: 1 ({FIRST})']


def shapes_and_types(m):
    m['y_train'], m['x_test'] = m['y_train'][:5].astype('f4'), m['x_test'][:, :10].astype('f8')
    del m['name_test']
    return ['x_train and x_test: types float32 and float64, not float32',
            'x_train and x_test: shapes differ, (6, 12, 150) and (4, 10, 150)',
            'y_train and y_test: types float32 and float64, not float64',
            'y_train: 5 rows for the 6 clips of x_train', 'name_test: not 4 names']


def copies(m):
    x, y = m['x_train'], m['x_test']
    x[3], x[5], y[2] = x[2], x[2], y[1]
    x[0, 0, 10] = 0
    x[1] = y[0] = y[3] = x[0]
    y[3, 0, 10] = -0.
    x[1, 4, 149], y[0, 11, 149] = 9, 1e-30      # no copies: one number differs, the clip is longer
    return ['x_train: copies of earlier clips: 2 (S001C001P004R001A001 = S001C001P003R001A003, '
            'S001C001P006R001A001 = S001C001P003R001A003)',
            'x_test: copies of earlier clips: 1 (S001C002P003R001A003 = S001C002P002R001A002)',
            f'x_test: copies of training clips: 1 (S001C002P004R001A001 = {FIRST})']


@pytest.mark.parametrize('plant', [invalid_numbers, not_one_hot, labels_and_names, shapes_and_types, copies])
def test_problems_are_found_and_nothing_else(members, inspect, plant):
    expected = plant(members)
    assert inspect(members)[0] == expected


def test_a_part_under_the_name_of_the_full_dataset(members, inspect, monkeypatch):
    counts = ['6 training clips; the full NTU120_XSet has 54,468', '4 test clips; the full NTU120_XSet has 59,477']
    sizes = ['3 classes; the full NTU120_XSet has 120', '12 frames (T); the full NTU120_XSet has 300']
    assert inspect(members, 'NTU120_XSet')[0] == counts + sizes
    dataset, protocol = find_protocol('NTU120_XSet')
    monkeypatch.setattr(check, 'find_protocol', lambda file: (dataset, replace(protocol, tolerance=1)))
    problems, _, facts = inspect(members, 'NTU120_XSet')
    assert problems == sizes and facts['notes'] == [f'{line}, as reported by later work' for line in counts]


def test_memory_does_not_grow_with_the_file(tmp_path):
    """A few blocks of 16 MiB for 288 MB."""
    x = np.zeros((1600, 300, 150), np.float32)
    x[:, :3] = np.arange(1, 1601)[:, None, None] / 1600
    y = one_hot(np.zeros(1600, int), 60)
    write_npz(tmp_path / 'a.npz', x_train=x, y_train=y, x_test=-x[:2], y_test=y[:2])
    code = ('import sys; from data import check\n'
            'def peak(): return int(open("/proc/self/status").read().split("VmHWM:")[1].split()[0])\n'
            'before = peak(); check.main(sys.argv[1:]); print(peak() - before)')
    done = run('-c', code, str(tmp_path / 'a.npz'))
    assert int(done.stdout.split()[-1]) < 64 << 10, done      # KiB


def test_several_files_and_exit_codes(members, tmp_path):
    good, bad, facts = tmp_path / 'good.npz', tmp_path / 'bad.npz', tmp_path / 'facts.json'
    write_npz(good, **members)
    write_npz(bad, **members | {'x_train': 0 * members['x_train']})
    assert check.main([str(bad), str(good), '--json', str(facts)]) == 1
    assert [bool(report['problems']) for report in json.loads(facts.read_text())] == [True, False]
    before = good.read_bytes()
    refusal(lambda: check.main(['--json', str(good), str(bad)]), good, '.json')
    assert good.read_bytes() == before
    for name, array, part in (('x_test', np.zeros((0, 12, 150), 'f'), 'x_test is float32 (0, 12, 150)'),
                              ('y_test', np.arange(4), 'y_test is int64 (4,), expected non-empty one-hot rows')):
        write_npz(bad, **members | {name: array})
        refusal(lambda: check.main([str(bad)]), bad, part)
