import json
import os
import zipfile
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest

from data import check
from data.dataset_file import one_hot, write_npz
from feeder.dataset import SkeletonDataset
from tests.conftest import ROOT, refusal, run

LENGTHS = {'train': [5, 12, 7, 1, 8, 9], 'test': [3, 4, 6, 2]}
LABELS = {'train': [0, 1, 2, 0, 1, 0], 'test': [0, 1, 2, 0]}


@pytest.fixture
def members():
    """A file without a fault: 6 + 4 clips of at most 12 frames, two bodies (test row 0 without a second), 3 classes."""
    rng, made = np.random.default_rng(3), {}
    for camera, (split, lengths) in enumerate(LENGTHS.items(), 1):
        x = np.zeros((len(lengths), 12, 150), dtype=np.float32)
        for row, length in enumerate(lengths):
            x[row, :length] = rng.normal(size=(length, 150))
        made |= {f'x_{split}': x, f'y_{split}': one_hot(LABELS[split], 3), f'name_{split}': np.array(
            [f'S001C00{camera}P{row + 1:03}R001A{label + 1:03}' for row, label in enumerate(LABELS[split])])}
    made['x_test'][0, :, 75:] = 0
    return made


@pytest.fixture
def inspect(tmp_path, capsys):
    """Writes members to a file of a name and checks it: exit code, `off` lines, all lines, facts."""
    def inspect(members, stem='SOME'):
        write_npz(tmp_path / f'{stem}.npz', **members)
        code = check.main([str(tmp_path / f'{stem}.npz'), '--json', str(tmp_path / 'facts.json')])
        lines = capsys.readouterr().out.splitlines()
        facts = json.loads((tmp_path / 'facts.json').read_text())[0]
        off = [line.removeprefix('off: ') for line in lines if line.startswith('off: ')]
        assert code == (1 if off else 0) and off == facts['off']
        assert lines[-1] == (f'off: {off[-1]}' if off else 'nothing is off')
        return code, off, lines, facts
    return inspect


def test_a_file_without_a_fault(members, inspect):
    code, off, lines, facts = inspect(members)
    assert (code, off) == (0, []) and facts['notes'] == []
    train, test = facts['train'], facts['test']
    assert (train['clips'], test['clips'], train['frames'], train['numbers'], train['classes']) == (6, 4, 12, 150, 3)
    assert train['bodies_joints'] == [2, 25] and train['clips_per_class'] == [3, 2, 1]
    assert train['length'] == [1, 7.5, 12] and test['length'] == [2, 3.5, 6]
    assert sum(train['lengths'].values()) == 6 and train['lengths']['1-2'] == 1 and train['lengths']['7-8'] == 2
    assert test['second_body'] == {'empty': 1, 'copy': 0, 'own': 3}
    assert test['range'] == [float(members['x_test'].min()), float(members['x_test'].max())]
    table = {line[:28].strip(): line[28:].split() for line in lines}
    assert table['clips'] == ['6', '4'] and table['clips: least, median, most'] == ['1', '2', '3', '1', '1', '2']
    assert table['5-6'] == ['1', '########', '1', '########'] and table['second body: empty'] == ['0', '1']
    assert table['gaps'] == ['0', 'frames,', '0', 'clips'] * 2


def test_counts_by_hand_on_a_file_with_everything(members, inspect):
    """Second bodies, gaps and empty clips of 8 training clips, counted by a loop over frames."""
    x = np.concatenate([members['x_train'], members['x_train'][:2] + 1])
    x[6:, 9:] = 0
    x[1, 3:5] = 0                       # a gap of two frames
    x[4, 0] = 0                         # and one that begins the clip
    x[2, 2, :2], x[2, 2, 2:] = (1, -1), 0   # a frame that is not zero, but sums to zero
    x[5, 8], x[5, 8, 0], x[5, 8, 1] = 0, 1, -1   # such a frame as the last one
    x[3, :, 75:] = x[3, :, :75]         # copy
    x[6, :, 75:] = 0                    # empty
    x[0, 4] = -abs(x[0, 4])             # a last frame with nothing above zero
    x[7, :, 75:] = x[7, :, :75]
    x[7, 4, 80] += 1                    # a copy but for one number
    members |= {'x_train': x, 'y_train': one_hot([0] * 8, 3), 'name_train': np.array(list('abcdefgh'))}
    code, off, lines, facts = inspect(members)
    valid = [sum(1 for frame in clip if frame.sum() != 0) for clip in x]
    last = [max(t for t in range(12) if x[row, t].any()) + 1 for row in range(8)]
    train = facts['train']
    assert code == 0 and facts['train']['length'] == [min(valid), np.median(valid), max(valid)]
    assert train['gap_frames'] == sum(last) - sum(valid) == 5 and train['clips_with_gaps'] == 4
    assert train['second_body'] == {'empty': 1, 'copy': 1, 'own': 6}
    assert train['absent_classes'] == [1, 2]
    assert ['without', 'a', 'clip', '2:', '1-2', '0'] in [line.split() for line in lines]
    assert any(line.split() == ['gaps', '5', 'frames,', '4', 'clips', '0', 'frames,', '0', 'clips'] for line in lines)


@pytest.mark.parametrize('width, num_joints', [(150, 25), (60, 20), (135, 15)])
def test_a_frame_counts_as_it_does_in_training(width, num_joints, inspect, tmp_path):
    """Frames of opposite numbers in any order: rounding decides whether they sum to zero."""
    rng = np.random.default_rng(8)
    x = rng.normal(size=(30, 40, width)).astype(np.float32)
    x[:, :, width // 2:width // 2 * 2] = -x[:, :, :width // 2]
    x[:, :, -1] *= width % 2 == 0
    x = rng.permuted(x, axis=2)
    members = {'x_train': x, 'y_train': one_hot([0] * 30, 2), 'x_test': x[:1] + 1, 'y_test': one_hot([0], 2)}
    write_npz(tmp_path / 'a.npz', **members)
    splits, _ = check.read(tmp_path / 'a.npz', check.open_members(tmp_path / 'a.npz')[0], check.tqdm(disable=True))
    expected = SkeletonDataset(tmp_path / 'a.npz', 'train', num_joints)[[(row, 0) for row in range(30)]].num_valid
    assert splits['train'].clips.valid.tolist() == expected.tolist()
    assert expected.min() > 0 and expected.sum() < 30 * 40, 'some frames cancel, others do not'


def test_sha256_is_that_of_the_arrays_bytes(members, tmp_path, capsys):
    members |= {'extra': np.arange(7), 'when': np.array('2020-02-02', 'datetime64[D]'), 'none': np.zeros((0, 3))}
    members['x_test'] = np.asfortranarray(members['x_test'])
    expected = [f'sha256 of {member}: {sha256(array.tobytes()).hexdigest()}' for member, array in members.items()]
    for save, name in ((np.savez, 'stored'), (np.savez_compressed, 'compressed')):
        save(tmp_path / f'{name}.npz', **members)
        assert check.main([str(tmp_path / f'{name}.npz')]) == 0
        lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith('sha256 of ')]
        assert sorted(line.split(' (')[0] for line in lines) == sorted(expected)
        assert lines[0].endswith(' (float32, 6 x 12 x 150)') and lines[1].endswith(' (float64, 6 x 3)')


# ---- what is off

def planted(name):
    def plant(function):
        FAULTS[name] = function
        return function
    return plant


FAULTS = {}
FIRST, SECOND, LAST = 'S001C001P001R001A001', 'S001C001P002R001A002', 'S001C001P006R001A001'


@planted('empty clips')
def _(m):
    m['x_train'][[0, 5]] = 0
    m['x_test'][1] = 0
    return [f'x_train: empty clips: 2 ({FIRST}, {LAST})', 'x_test: empty clips: 1 (S001C002P002R001A002)']


@planted('a clip whose only frame cancels')
def _(m):
    m['x_train'][0] = 0
    m['x_train'][0, 0, :2] = 1, -1
    return [f'x_train: empty clips: 1 ({FIRST})']


@planted('NaN')
def _(m):
    m['x_train'][1, 2, 149] = np.nan
    return [f'x_train: clips with NaN or infinity: 1 ({SECOND})']


@planted('infinity of both signs')
def _(m):
    m['x_test'][1, 0, 0], m['x_test'][2, 11, 3] = np.inf, -np.inf
    return ['x_test: clips with NaN or infinity: 2 (S001C002P002R001A002, S001C002P003R001A003)']


@planted('far away')
def _(m):
    m['x_train'][0, 0, 0], m['x_train'][1, 0, 7], m['x_train'][2, 0, 0], m['x_train'][3, 0, 0] = 20.5, -1e30, 20, -20
    return [f'x_train: clips with coordinates beyond 20 m: 2 ({FIRST}, {SECOND})']


@planted('not one-hot')
def _(m):
    m['y_train'][0], m['y_train'][1], m['y_train'][2], m['y_train'][3] = 0, (1, 1, 0), (0, 0, 2), (.5, .5, 0)
    m['y_test'][3] = np.nan, 1, 0
    return ['y_train: rows that are not one-hot: 4 (row 0, row 1, row 2, …)',
            'y_test: rows that are not one-hot: 1 (row 3)']


@planted('labels against names')
def _(m):
    m['y_train'][[0, 1]] = m['y_train'][[1, 0]]
    m['name_test'][2] = 'S001C002P003R001A120'
    return [f'y_train: labels against the name: 2 ({FIRST} has 1, {SECOND} has 0)',
            'y_test: labels against the name: 1 (S001C002P003R001A120 has 2)']


@planted('names twice')
def _(m):
    m['name_train'][5] = FIRST
    m['name_test'][0] = FIRST
    return [f'name_train: names more than once: 1 ({FIRST})', f'name_train and name_test: names in both: 1 ({FIRST})']


@planted('names that are not NTU\'s, one of them not printable')
def _(m):
    m['name_train'] = np.array(['a', 'b', 'b', 'S001A003', 'c\nd', 'c\nd'])
    return ["name_train: names more than once: 2 (b, 'c\\nd')"]


@planted('one member of names')
def _(m):
    del m['name_test']
    return ['name_train and name_test: one of them is missing']


@planted('fewer names')
def _(m):
    m['name_train'] = m['name_train'][:5]
    return ['name_train: <U20 (5,), not text for the 6 clips of x_train']


@planted('names as bytes, and a fault beside it called by row')
def _(m):
    m['name_test'] = m['name_test'].astype('S')
    m['x_test'][3] = 0
    return ['name_test: |S20 (4,), not text for the 4 clips of x_test', 'x_test: empty clips: 1 (row 3)']


@planted('fewer labels')
def _(m):
    m['y_train'] = m['y_train'][1:]
    return ['y_train: 5 rows for the 6 clips of x_train']


@planted('types')
def _(m):
    m['x_train'], m['y_test'] = m['x_train'].astype('f8'), m['y_test'].astype('u1')
    return ['x_train: the numbers are float64, not float32', 'y_test: the numbers are uint8, not float64']


@planted('other frames and classes in test')
def _(m):
    m['x_test'], m['y_test'] = m['x_test'][:, :10], one_hot([0, 1, 2, 0], 4)
    return ['x_train and x_test: frames x numbers a frame differ, 12 x 150 and 10 x 150',
            'y_train and y_test: classes differ, 3 and 4']


@planted('copies')
def _(m):
    x, y = m['x_train'], m['x_test']
    x[3], x[5], y[2] = x[2], x[2], y[1]
    y[3] = x[0]
    return ['x_train: copies of earlier clips: 2 (S001C001P004R001A001 = S001C001P003R001A003, '
            'S001C001P006R001A001 = S001C001P003R001A003)',
            'x_test: copies of earlier clips: 1 (S001C002P003R001A003 = S001C002P002R001A002)',
            f'x_test: copies of training clips: 1 (S001C002P004R001A001 = {FIRST})']


@planted('a copy in a shorter array, with -0 for 0')
def _(m):
    m['x_train'][0, 0, 10] = 0
    m['x_test'] = m['x_test'][:, :8]
    m['x_test'][1] = m['x_train'][0, :8]
    m['x_test'][1, 0, 10] = m['x_test'][1, 7, 10] = -0.
    return ['x_train and x_test: frames x numbers a frame differ, 12 x 150 and 8 x 150',
            f'x_test: copies of training clips: 1 (S001C002P002R001A002 = {FIRST})']


@planted('no copies: one number differs, or a clip goes on')
def _(m):
    m['x_train'][1] = m['x_train'][0]
    m['x_train'][1, 4, 149] = 9
    m['x_test'][1] = m['x_train'][0]
    m['x_test'][1, 11, 149] = 1e-30
    return []


@planted('an unreadable member beside the others')
def _(m):
    m['notes'] = np.array([{'a': 1}])
    return ['member notes is damaged (it holds Python objects, which are never loaded); write the file again']


@pytest.mark.parametrize('name', FAULTS)
def test_a_fault_is_found_and_nothing_else(members, inspect, monkeypatch, name):
    if name.startswith('an unreadable'):
        monkeypatch.setattr('tests.data.test_check.write_npz', np.savez)
    expected = FAULTS[name](members)
    assert inspect(members)[1] == expected


def test_facts_of_damaged_clips(members, inspect):
    members['x_train'][1, 2, 3], members['x_train'][4] = np.inf, 0
    members['x_test'][:, 0, 0] = np.nan
    _, _, lines, facts = inspect(members)
    train = facts['train']
    assert (train['empty'], train['not_finite'], facts['test']['not_finite']) == (1, 1, 4)
    finite = members['x_train'][[0, 2, 3, 5]]
    assert train['range'] == [float(finite.min()), float(finite.max())]
    assert sum(train['second_body'].values()) == 5 and facts['test']['range'] is None
    assert [line.split()[-1] for line in lines if line.startswith('coordinates')] == ['none']


def test_numbers_a_frame_that_no_layout_has(members, inspect):
    code, _, lines, facts = inspect(members | {key: members[key][:, :, :90] for key in ('x_train', 'x_test')})
    assert code == 0 and facts['train']['bodies_joints'] is None and 'second body: copy' not in ''.join(lines)
    assert lines[-2] == ('note: bodies and joints are unknown for so many numbers a frame; second bodies are not '
                         'looked at')


# ---- the full sets

def test_sizes_of_the_full_sets_add_up():
    total = {stem: sum(sizes[:2]) for stem, sizes in check.FULL.items()}
    assert total['NTU60_XSub'] == total['NTU60_XView'] == 56578
    assert total['NTU120_XSub'] == total['NTU120_XSet'] == 113945
    assert total['NWUCLA_XView'] == total['NWUCLA_XSub'] == 1484


def test_a_part_under_the_name_of_the_full_set_is_off(members, inspect):
    assert inspect(members, 'NTU120_XSet')[1] == [
        '6 training clips; the full NTU120_XSet has 54,468', '4 test clips; the full NTU120_XSet has 59,477',
        '3 classes; the full NTU120_XSet has 120', '12 frames (T); the full NTU120_XSet has 300']
    assert inspect(members | {key: members[key][:, :, :60] for key in ('x_train', 'x_test')}, 'NTU60_XSub')[1] == [
        '6 training clips; the full NTU60_XSub has 40,091', '4 test clips; the full NTU60_XSub has 16,487',
        '3 classes; the full NTU60_XSub has 60', '12 frames (T); the full NTU60_XSub has 300',
        '60 numbers a frame; the full NTU60_XSub has 150']


def test_counts_of_pku_that_are_not_far_off_are_notes(members, inspect, monkeypatch):
    for split, labels in LABELS.items():
        members |= {f'x_{split}': np.pad(members[f'x_{split}'], ((0, 0), (0, 288), (0, 0))),
                    f'y_{split}': one_hot(labels, 51)}
    assert inspect(members, 'PKUv1_XSub')[1] == ['6 training clips; the full PKUv1_XSub has 18,841',
                                                 '4 test clips; the full PKUv1_XSub has 2,704']
    monkeypatch.setattr(check, 'UNCERTAIN', {'PKUv1_XSub': 1, 'PKUv2_XSub': 1})
    code, _, _, facts = inspect(members, 'PKUv1_XSub')
    assert code == 0 and facts['notes'] == [
        '6 training clips; the full PKUv1_XSub has 18,841, as reported by later work',
        '4 test clips; the full PKUv1_XSub has 2,704, as reported by later work']
    members |= {'y_train': one_hot(LABELS['train'], 52), 'y_test': one_hot(LABELS['test'], 52)}
    assert inspect(members, 'PKUv2_XSub')[1] == ['52 classes; the full PKUv2_XSub has 51']
    assert inspect(members, 'PKUv2_XView')[1] == []


@pytest.mark.parametrize('copies, off', [
    (95, []), (94, ['x_test: copies of training clips: 94 (row 0 = row 0, row 1 = row 1, row 2 = row 2, …)'])])
def test_the_copies_that_nwucla_is_released_with(inspect, copies, off):
    rng = np.random.default_rng(4)
    x = {'train': np.zeros((1020, 201, 60), np.float32), 'test': np.zeros((464, 201, 60), np.float32)}
    for clips in x.values():
        clips[:, :5] = rng.normal(size=(len(clips), 5, 60))
    x['test'][:copies] = x['train'][:copies]
    members = {key: value for split, clips in x.items() for key, value in (
        (f'x_{split}', clips), (f'y_{split}', one_hot(np.arange(len(clips)) % 10, 10)))}
    _, found, lines, facts = inspect(members, 'NWUCLA_XView')
    assert found == off and facts['copies'] == {'within_train': 0, 'within_test': 0, 'of_train_in_test': copies}
    assert any(line.startswith('note: the copies are those of the release') for line in lines) == (copies == 95)
    assert f'copies: 0 within train, 0 within test, {copies} of training clips in test' in lines
    assert len(inspect(members, 'OTHER')[1]) == 1


TAR = Path(os.environ.get('MAMP_SHARED', ROOT / '../shared')) / 'data/nw_ucla.tar.xz'


@pytest.mark.skipif(not TAR.exists(), reason='no data/nw_ucla.tar.xz in MAMP_SHARED')
def test_nothing_is_off_with_the_files_of_the_release(tmp_path):
    assert run('data/prepare_nwucla.py', '--raw', str(TAR), '--out', str(tmp_path)).returncode == 0
    done = run('-m', 'data.check', str(tmp_path / 'NWUCLA_XView.npz'), str(tmp_path / 'NWUCLA_XSub.npz'))
    assert (done.returncode, done.stderr) == (0, '') and done.stdout.count('\nnothing is off\n') == 2
    assert done.stdout.count('note: the copies are those of the release') == 2


# ---- blocks and memory

def test_blocks_change_nothing_but_the_memory(members, inspect, monkeypatch):
    members['x_train'][5] = members['x_train'][0]
    members['x_train'][3] = 0
    members['x_test'][3] = members['x_train'][1]
    whole, sizes, look = inspect(members), [], check.look_at_clips
    monkeypatch.setattr(check, 'look_at_clips', lambda x: sizes.append(len(x)) or look(x))
    for block_bytes, expected in ((1, [1] * 10), (4 * 12 * 150 * 4, [4, 2, 4]), (1 << 20, [6, 4])):
        monkeypatch.setattr(check, 'BLOCK_BYTES', block_bytes)
        sizes.clear()
        assert inspect(members) == whole and sizes == expected


def test_memory_does_not_grow_with_the_file(tmp_path):
    """What the process held at most: for 288 MB a few blocks of 16 MiB above that for 1 MB."""
    script = ('import sys; from data import check; check.main(sys.argv[1:]); '
              'print(*(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))')
    peak = {}
    for clips in (5, 1600):
        x = np.zeros((clips, 300, 150), np.float32)
        x[:, :3] = np.arange(1, clips + 1)[:, None, None] / clips
        y = one_hot(np.zeros(clips, int), 60)
        write_npz(tmp_path / 'a.npz', x_train=x, y_train=y, x_test=-x[:2], y_test=y[:2])
        done = run('-c', script, str(tmp_path / 'a.npz'))
        assert done.stdout.splitlines()[-2] == 'nothing is off', done
        peak[clips] = int(done.stdout.splitlines()[-1]) * 1024
    assert peak[1600] - peak[5] < 64 << 20


# ---- the command

def test_several_files_and_json(members, tmp_path, capsys):
    write_npz(tmp_path / 'good.npz', **members)
    members['x_train'][0] = 0
    write_npz(tmp_path / 'bad.npz', **members)
    good, bad, facts = tmp_path / 'good.npz', tmp_path / 'bad.npz', tmp_path / 'facts.json'
    for files, code in (((good, good), 0), ((bad, good), 1), ((good, bad), 1)):
        assert check.main([*map(str, files), '--json', str(facts)]) == code
        content = json.loads(facts.read_text())
        assert [entry['file'] for entry in content] == list(map(str, files))
        assert [bool(entry['off']) for entry in content] == [file == bad for file in files]
        assert capsys.readouterr().out.count('nothing is off') == files.count(good)
    assert facts.stat().st_size < 10_000
    before = good.read_bytes()
    refusal(lambda: check.main(['--json', str(good), str(bad)]), good, '.json')
    assert good.read_bytes() == before, 'a data file is never written over'


def test_exit_codes_by_path(members, tmp_path):
    write_npz(tmp_path / 'good.npz', **members)
    done = run(str(ROOT / 'data/check.py'), str(tmp_path / 'good.npz'), env={'PYTHONPATH': ''})
    assert (done.returncode, done.stderr) == (0, '') and done.stdout.endswith('\nnothing is off\n')
    (tmp_path / 'text.npz').write_text('no archive')
    done = run('data/check.py', str(tmp_path / 'good.npz'), str(tmp_path / 'text.npz'))
    assert done.returncode == 2 and done.stdout == '', 'all files are opened before the first is read'
    assert done.stderr.startswith(f'error: {tmp_path}/text.npz: not a whole npz file') and done.stderr.count('\n') == 1


@pytest.mark.parametrize('change, says', [
    ({'x_test': None}, 'no member x_test'), ({'y_train': None}, 'no member y_train'),
    ({'x_train': np.zeros((6, 12, 150), int)}, "x_train is int64 (6, 12, 150); expected are numbers (N, T, M·V·3)"),
    ({'x_train': np.zeros((6, 150), np.float32)}, 'x_train is float32 (6, 150)'),
    ({'x_test': np.zeros((0, 12, 150), np.float32)}, 'x_test is float32 (0, 12, 150)'),
    ({'x_test': np.zeros((4, 12, 0), np.float32)}, 'x_test is float32 (4, 12, 0)'),
    ({'y_test': np.arange(4)}, 'y_test is int64 (4,); expected are numbers one-hot (N, classes)'),
    ({'y_test': np.array([['a']] * 4)}, 'y_test is <U1 (4, 1)'),
    ({'y_test': np.array([[{}]] * 4)}, 'member y_test is damaged'),
], ids=str)
def test_files_that_are_none(members, tmp_path, change, says):
    path = tmp_path / 'a.npz'
    np.savez(path, **{key: array for key, array in (members | change).items() if array is not None})
    refusal(lambda: check.main([str(path)]), path, says)


def test_broken_files(members, tmp_path):
    path = tmp_path / 'a.npz'
    refusal(lambda: check.main([str(path)]), path, 'no such data file')
    refusal(lambda: check.main([str(tmp_path)]), tmp_path, 'no such data file')
    write_npz(path, **members)
    whole = path.read_bytes()
    path.write_bytes(whole[:len(whole) // 2])
    refusal(lambda: check.main([str(path)]), path, 'not a whole npz file')
    with zipfile.ZipFile(path, 'w') as archive:
        for member in members:
            archive.writestr(f'{member}.npy', b'\x93NUMPY')
    refusal(lambda: check.main([str(path)]), path, 'damaged')
