"""The preparation of NTU RGB+D 60 and 120 as a command: its numbers, its order, and every way it can end."""

import contextlib
import errno
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import tarfile
import time
import zipfile
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest

from data import pipeline, prepare_ntu
from data.datasets import DATASETS
from data.ntu_text import facts_of
from data.prepare_ntu import default_raw, order, unusable_samples
from feeder.npz import open_member
from tests.conftest import ROOT, refusal
from tests.data.test_ntu_actors import recording, reference
from tests.data.test_ntu_text import joints_of, skeleton
from util.errors import run_main

SHARED = Path(os.environ.get('MAMP_SHARED', ROOT / '../shared'))
GOLDEN = ROOT / 'tests/golden'
REAL = SHARED / 'data/ntu_raw'
needs_real = pytest.mark.skipif(not REAL.exists(), reason='no data/ntu_raw in MAMP_SHARED')
needs_golden = pytest.mark.skipif(not (SHARED / 'golden/ntu60_raw.tar.xz').exists(),
                                  reason='no golden/ntu*_raw.tar.xz in MAMP_SHARED')
on_linux = pytest.mark.skipif(not Path('/proc/self/stat').exists(), reason='finds the worker processes in /proc')

MEMBERS = ['x_train', 'y_train', 'x_test', 'y_test', 'name_train', 'name_test']
FILES = {'ntu60': ['NTU60_XSub.npz', 'NTU60_XView.npz'], 'ntu120': ['NTU120_XSub.npz', 'NTU120_XSet.npz']}
TRAIN = {  # as the release's papers have it
    'NTU60_XSub': [1, 2, 4, 5, 8, 9, 13, 14, 15, 16, 17, 18, 19, 25, 27, 28, 31, 34, 35, 38],
    'NTU60_XView': [2, 3],
    'NTU120_XSub': [1, 2, 4, 5, 8, 9, 13, 14, 15, 16, 17, 18, 19, 25, 27, 28, 31, 34, 35, 38, 45, 46, 47, 49, 50, 52,
                    53, 54, 55, 56, 57, 58, 59, 70, 74, 78, 80, 81, 82, 83, 84, 85, 86, 89, 91, 92, 93, 94, 95, 97, 98,
                    100, 103],
    'NTU120_XSet': [2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30, 32],
    'NTU120_OneShot': sorted(set(range(1, 121)) - {1, 7, 13, 19, 25, 31, 37, 43, 49, 55, 61, 67, 73, 79, 85, 91, 97,
                                                   103, 109, 115})}
DIGITS = {  # of a name, which decide
    'XSub': slice(9, 12), 'XView': slice(5, 8), 'XSet': slice(1, 4), 'OneShot': slice(17, 20)}


def prepare(raw, out, *more, dataset='ntu60', workers=1):
    """Exit code of the command, run in this process."""
    raws = raw if isinstance(raw, list) else [raw]
    argv = ['--dataset', dataset, '--raw', *raws, '--out', out, '--workers', workers]
    with pytest.raises(SystemExit) as end:
        run_main(lambda: prepare_ntu.main([*map(str, argv), *map(str, more)]))
    return end.value.code


def contents(path):
    with np.load(path, allow_pickle=False) as npz:
        return {key: npz[key] for key in npz.files}


def folder_of(path):
    return {file.name: file.read_bytes() for file in path.iterdir()} if path.is_dir() else {}


def write_raw(folder, texts):
    """`texts`: {'S001C001P001R001A001': bytes}."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        (folder / f'{name}.skeleton').write_bytes(text)
    return folder


def write_zip(path, folder, prefix='nturgb+d_skeletons/', compression=zipfile.ZIP_DEFLATED, keep=lambda name: True):
    """A zip as the release's are: members in a folder, in no order, and what macOS puts in."""
    with zipfile.ZipFile(path, 'w', compression) as archive:
        archive.writestr(prefix, b'')
        for file in sorted(folder.iterdir(), key=lambda file: sha256(file.name.encode()).digest()):
            if keep(file.name):
                archive.write(file, prefix + file.name)
                archive.writestr(f'__MACOSX/{prefix}._{file.name}', b'\x00\x05\x16\x07')
        archive.writestr(f'{prefix}README.txt', b'hello')
    return path


def unpack(path, folder):
    with tarfile.open(path) as tar:
        tar.extractall(folder, filter='data')
    return folder


def split_of(file, names):
    """The names of a protocol's two halves, in order, by loops over its train ids and all others."""
    ids = {name: int(name[DIGITS[file.split('_')[1]]]) for name in names}
    train = [name for value in TRAIN[file] for name in sorted(names) if ids[name] == value]
    test = [name for value in range(1, 200) if value not in TRAIN[file] for name in sorted(names) if ids[name] == value]
    return train, test


def text_of(number, frames=2):
    return skeleton([{'7': joints_of(100 * number + t)} for t in range(frames)])


NAMES = ['S001C001P001R001A001', 'S002C002P003R001A002', 'S003C003P002R002A060', 'S017C001P040R001A050',
         'S001C001P001R002A001']


@pytest.fixture
def raw(tmp_path):
    """Five samples of 2 to 6 frames, of NTU-60."""
    return write_raw(tmp_path / 'raw', {name: text_of(number, number + 2) for number, name in enumerate(NAMES)})


def fails(capsys, raw, out, *words, more=(), damaged=0, **options):
    """The command ends with 2 and one line (after one for each damaged file), and out is what it was: old files."""
    for name in FILES['ntu60'] + FILES['ntu120']:
        out.mkdir(parents=True, exist_ok=True)
        (out / name).write_bytes(b'old')
    before = folder_of(out)
    capsys.readouterr()
    assert prepare(raw, out, *more, **options) == 2
    printed = capsys.readouterr()
    lines = printed.err.splitlines()
    assert printed.out == '' and printed.err.endswith('\n')
    assert [line.split(': ')[0] for line in lines] == ['damaged'] * damaged + ['error'], printed.err
    assert all(str(word) in printed.err for word in words), printed.err
    assert folder_of(out) == before
    return lines


# ---- the authors' numbers

@pytest.fixture(scope='module')
def golden(tmp_path_factory):
    """Folders of the raw files of both sets."""
    folder = tmp_path_factory.mktemp('golden')
    for dataset in FILES:
        unpack(SHARED / f'golden/{dataset}_raw.tar.xz', folder)
    return {dataset: next(folder.glob(f'{dataset}*')) for dataset in FILES}


@needs_golden
@pytest.mark.parametrize('dataset', FILES)
def test_golden(golden, dataset, tmp_path, capsys):
    """Every member to the last bit, type and order, with one worker and two, from a folder and from zips."""
    folder = golden[dataset]
    assert prepare(folder, tmp_path / 'one', dataset=dataset) == 0
    printed = capsys.readouterr()
    assert printed.err == '' and '40 samples of' in printed.out and '0 damaged\n' in printed.out
    assert '1 left out: on the list of unusable skeletons\n' in printed.out
    assert ('1 left out: of a setup after 17\n' in printed.out) == (dataset == 'ntu60')
    with np.load(SHARED / f'golden/{dataset}_expected.npz') as npz:
        expected = {key: npz[key] for key in npz.files}
    assert sorted(path.name for path in (tmp_path / 'one').iterdir()) == sorted(FILES[dataset])
    assert {key.split('/')[0] + '.npz' for key in expected} == set(FILES[dataset])
    names = [path.stem for path in folder.iterdir() if path.stem not in unusable_samples()]
    names = [name for name in names if int(name[1:4]) <= DATASETS[dataset].setups]
    for file in FILES[dataset]:
        got = contents(tmp_path / 'one' / file)
        assert list(got) == MEMBERS
        for member in MEMBERS[:4]:
            value = expected[f'{file[:-4]}/{member}']
            assert (got[member].dtype, got[member].shape) == (value.dtype, value.shape), member
            assert got[member].tobytes() == value.tobytes(), member
        assert (got['name_train'].tolist(), got['name_test'].tolist()) == split_of(file[:-4], names)

    early, later = (write_zip(tmp_path / f'{part}.zip', folder, keep=lambda name, part=part: (name < 'S018') == part)
                    for part in (True, False))
    stored = write_zip(tmp_path / 'stored.zip', folder, 'a/b/', zipfile.ZIP_STORED)
    for number, (raws, workers) in enumerate(((folder, 2), ([early, later], 2), (stored, 1), (stored, 3))):
        out = tmp_path / f'{number}'
        assert prepare(raws, out, dataset=dataset, workers=workers) == 0
        assert folder_of(out) == folder_of(tmp_path / 'one')


EXCERPT = GOLDEN / 'ntu_excerpt_raw.tar.xz'


@pytest.mark.parametrize('dataset, says', [('ntu60', ['4 samples of', '99 frames (20 to 30']),
                                           ('ntu120', ['3 samples of', '77 frames (21 to 28'])])
def test_golden_excerpt(dataset, says, tmp_path, capsys):
    """The authors' numbers in a clone without MAMP_SHARED: SHA-256 of every array's bytes."""
    sums = json.loads((GOLDEN / 'ntu_excerpt_sha256.json').read_text())
    folder = unpack(EXCERPT, tmp_path) / dataset
    assert prepare(folder, tmp_path / 'out', dataset=dataset) == 0
    printed = capsys.readouterr().out
    assert all(part in printed for part in says), printed
    for file in FILES[dataset]:
        got = contents(tmp_path / 'out' / file)
        assert list(got) == MEMBERS
        frames = {'ntu60': 30, 'ntu120': 28}[dataset]
        names = split_of(file[:-4], [path.stem for path in folder.iterdir()])
        for part, listed in zip(('train', 'test'), names, strict=True):
            x, y = got[f'x_{part}'], got[f'y_{part}']
            assert got[f'name_{part}'].tolist() == listed and got[f'name_{part}'].dtype.kind == 'U'
            assert (x.shape, x.dtype) == ((len(listed), frames, 150), np.float32)
            assert (y.shape, y.dtype) == ((len(listed), DATASETS[dataset].classes), np.float64)
        assert {key: sha256(got[key].tobytes()).hexdigest() for key in MEMBERS[:4]} == sums[file[:-4]]


@needs_golden
def test_golden_excerpt_is_part_of_the_golden_files(golden, tmp_path):
    """The raw files as they are there, and the sums of the rows that are theirs in the expected arrays."""
    assert sum(path.stat().st_size for path in GOLDEN.glob('ntu_*')) <= 250_000
    sums = json.loads((GOLDEN / 'ntu_excerpt_sha256.json').read_text())
    unpack(EXCERPT, tmp_path)
    assert set(sums) == {file[:-4] for files in FILES.values() for file in files}
    for dataset, files in FILES.items():
        mine = folder_of(tmp_path / dataset)
        everything = folder_of(golden[dataset])
        assert all(everything[name] == text for name, text in mine.items()) and len(mine) >= 3
        names = [Path(name).stem for name in everything if Path(name).stem not in unusable_samples()]
        names = [name for name in names if int(name[1:4]) <= DATASETS[dataset].setups]
        with np.load(SHARED / f'golden/{dataset}_expected.npz') as npz:
            for file in files:
                for part, listed in zip(('train', 'test'), split_of(file[:-4], names), strict=True):
                    kept = [f'{name}.skeleton' in mine for name in listed]
                    x, y = (npz[f'{file[:-4]}/{axis}_{part}'][kept] for axis in 'xy')
                    frames = {'ntu60': 30, 'ntu120': 28}[dataset]
                    assert not x[:, frames:].any()
                    assert sha256(x[:, :frames].tobytes()).hexdigest() == sums[file[:-4]][f'x_{part}']
                    assert sha256(y.tobytes()).hexdigest() == sums[file[:-4]][f'y_{part}']


# ---- real files

@needs_real
@pytest.mark.parametrize('dataset', FILES)
def test_real_files(dataset, tmp_path, capsys):
    """The nine of them, against the second program of test_ntu_actors."""
    rows = {path.stem: reference(path.read_bytes()) for path in REAL.iterdir()}
    longest = max(map(len, rows.values()))
    assert len(rows) == 9 and {one.shape[1] for one in rows.values()} == {75, 150}
    assert prepare(REAL, tmp_path, dataset=dataset, workers=2) == 0
    printed = capsys.readouterr()
    frames = [len(one) for one in rows.values()]
    assert f'9 samples of 8 classes, {sum(frames):,} frames ({min(frames)} to {longest} a sample)' in printed.out
    assert f'note: the full set has {DATASETS[dataset].samples:,} samples' in printed.out and printed.err == ''
    for file in FILES[dataset]:
        got = contents(tmp_path / file)
        names = split_of(file[:-4], rows)
        assert [got[f'name_{part}'].tolist() for part in ('train', 'test')] == list(names)
        for part, listed in zip(('train', 'test'), names, strict=True):
            for x, y, name in zip(got[f'x_{part}'], got[f'y_{part}'], listed, strict=True):
                expected = rows[name]
                if expected.shape[1] == 75:
                    other = expected if dataset == 'ntu120' else np.zeros_like(expected)
                    expected = np.concatenate([expected, other], axis=1)
                assert x.shape == (longest, 150) and x[:len(expected)].tobytes() == expected.tobytes()
                assert not x[len(expected):].any()
                assert np.flatnonzero(y).tolist() == [int(name[17:]) - 1] and y.sum() == 1


@needs_real
def test_real_files_split_as_told(tmp_path):
    assert prepare(REAL, tmp_path, dataset='ntu60') == prepare(REAL, tmp_path, dataset='ntu120') == 0
    alone = [f'S001C001P001R001A{action}' for action in ('001', '002', '003', '050')]
    train = {file: open_member(tmp_path / file, 'name_train').tolist() for files in FILES.values() for file in files}
    test = {file: open_member(tmp_path / file, 'name_test').tolist() for files in FILES.values() for file in files}
    subjects = [*alone, 'S001C003P008R002A058', 'S003C001P015R001A034']
    later = ['S017C003P020R002A054', 'S017C003P020R002A055']
    assert train['NTU60_XSub.npz'] == train['NTU120_XSub.npz'] == subjects
    assert test['NTU60_XSub.npz'] == test['NTU120_XSub.npz'] == ['S002C001P003R001A003', *later]
    assert train['NTU60_XView.npz'] == ['S001C003P008R002A058', *later]
    assert test['NTU60_XView.npz'] == [*alone, 'S002C001P003R001A003', 'S003C001P015R001A034']
    assert train['NTU120_XSet.npz'] == ['S002C001P003R001A003']
    assert test['NTU120_XSet.npz'] == [*subjects, *later]


# ---- what belongs to which file, and in which order

@pytest.mark.parametrize('dataset', FILES)
def test_order_of_random_names(dataset):
    rng = np.random.default_rng(1)
    setups, classes = DATASETS[dataset].setups, DATASETS[dataset].classes
    names = sorted({f'S{rng.integers(1, setups + 1):03}C{rng.integers(1, 4):03}P{rng.integers(1, 107):03}'
                    f'R{rng.integers(1, 3):03}A{rng.integers(1, classes + 1):03}' for _ in range(2000)})
    for shuffled in (names, names[::-1], [names[index] for index in rng.permutation(len(names))]):
        for protocol in DATASETS[dataset].protocols.values():
            train, test = order(shuffled, protocol)
            assert ([shuffled[i] for i in train], [shuffled[i] for i in test]) == split_of(protocol.file, names)
            assert sorted([*train, *test]) == list(range(len(names)))


def test_train_ids_in_the_order_given():
    names = [f'S001C{camera:03}P001R001A{action:03}' for action in (1, 2) for camera in (1, 2, 3)]
    train, test = order(names, prepare_ntu.Protocol('X', 'camera', (3, 1)))
    assert [names[i][5:8] + names[i][17:] for i in train] == ['003001', '003002', '001001', '001002']
    assert [names[i][5:8] for i in test] == ['002', '002']


def test_the_unusable_samples():
    names = unusable_samples()
    assert len(names) == 535 and sum(facts_of(name).setup <= 17 for name in names) == 302
    listed = SHARED / 'spec/missing_skeletons.txt'
    if listed.exists():
        lines = [line.split() for line in listed.read_text().splitlines() if line.startswith('S')]
        assert names == {line[0].rstrip(':') + rest for line in lines for rest in line[1:]}


def test_what_is_left_out_is_counted(raw, tmp_path, capsys):
    unusable = sorted(unusable_samples())
    write_raw(raw, dict.fromkeys([unusable[0], unusable[-1], 'S018C001P001R001A001', 'S032C003P106R002A120'], b'what?'))
    assert prepare(raw, tmp_path / 'out') == 0
    printed = capsys.readouterr().out
    assert '5 samples of 4 classes, 20 frames (2 to 6 a sample)\n' in printed and '5 files' in printed
    assert '2 left out: on the list of unusable skeletons\n' in printed
    assert '2 left out: of a setup after 17\n' in printed


def test_both_sets_of_the_same_files(raw, tmp_path):
    """A single actor's second half: zeros or a copy; an empty second actor keeps zeros in both."""
    later = {'S018C001P001R001A061': text_of(9), 'S032C003P106R002A120': text_of(10)}
    poses = [joints_of(number) for number in range(30)]
    upright = [np.concatenate([one, one[:1] + (0, 9, 0)])[1:].astype(np.float32) for one in poses]
    lost = {'S001C002P002R001A030': skeleton([{'a': upright[t]} | ({'b': upright[15 + t] / 4} if t < 12 else {})
                                              for t in range(14)])}
    alone = {'S001C002P002R001A031': skeleton([{'a': upright[t]} | ({'b': upright[15 + t]} if t < 11 else {})
                                               for t in range(14)])}
    after = {'S001C002P002R001A032': skeleton([{'a': upright[t]} if t < 12 else {'b': upright[t] / 4}
                                               for t in range(24)])}
    write_raw(raw, later | lost | alone | after)
    assert prepare(raw, tmp_path, dataset='ntu60') == prepare(raw, tmp_path, dataset='ntu120') == 0
    halves = {}
    for file in ('NTU60_XSub.npz', 'NTU120_XSet.npz'):
        got = contents(tmp_path / file)
        for part in ('train', 'test'):
            for name, x in zip(got[f'name_{part}'].tolist(), got[f'x_{part}'], strict=True):
                halves[file, name] = x[:, :75], x[:, 75:]
    assert {name for file, name in halves if file == 'NTU60_XSub.npz'} == {*NAMES, *lost, *alone, *after}
    assert {name for file, name in halves if file != 'NTU60_XSub.npz'} == {*NAMES, *lost, *alone, *after, *later}
    for (file, name), (one, other) in halves.items():
        if name in lost:
            assert other[:12].any() and not np.array_equal(one, other)
        elif name in after or file == 'NTU60_XSub.npz':
            assert one.any() and not other.any()
        else:
            assert one.any() and np.array_equal(one, other)


def test_the_one_shot_split_is_written_when_asked_for(raw, tmp_path):
    """Auxiliary classes train, novel ones test; the other protocols' files are not touched."""
    write_raw(raw, {'S018C001P001R001A061': text_of(9), 'S032C003P106R002A120': text_of(10)})
    assert prepare(raw, tmp_path, '--protocol', 'oneshot', dataset='ntu120') == 0
    assert [path.name for path in tmp_path.glob('*.npz')] == ['NTU120_OneShot.npz']
    got = contents(tmp_path / 'NTU120_OneShot.npz')
    assert got['name_test'].tolist() == ['S001C001P001R001A001', 'S001C001P001R002A001', 'S018C001P001R001A061']
    assert [name[-3:] for name in got['name_train']] == ['002', '050', '060', '120']
    assert got['y_train'].shape == (4, 120) and got['y_train'].argmax(1).tolist() == [1, 49, 59, 119]


def test_all_files_are_as_long_as_the_longest_sample_of_the_set(raw, tmp_path):
    """The samples left out do not count, the other half of the split does; --protocol writes what is asked for."""
    write_raw(raw, {'S018C001P001R001A001': text_of(1, 50), 'S001C002P005R001A009': text_of(1, 9)})
    assert prepare(raw, tmp_path / 'out', '--protocol', 'xview') == 0
    assert [path.name for path in (tmp_path / 'out').iterdir()] == ['NTU60_XView.npz']
    got = contents(tmp_path / 'out/NTU60_XView.npz')
    assert got['x_train'].shape == (3, 9, 150) and got['x_test'].shape == (3, 9, 150)
    assert prepare(raw, tmp_path / 'twice', '--protocol', 'xview', 'xview', 'xsub') == 0
    assert len(folder_of(tmp_path / 'twice')) == 2
    assert (tmp_path / 'twice/NTU60_XView.npz').read_bytes() == (tmp_path / 'out/NTU60_XView.npz').read_bytes()


def test_hard_recordings_come_through_as_they_are(tmp_path):
    """Samples of one actor and of two, 5 to 45 frames, in files of both sets; three workers keep the order."""
    texts, number = {}, 0
    while len(texts) < 30:
        number += 1
        name = f'S{number % 17 + 1:03}C{number % 3 + 1:03}P{number % 40 + 1:03}R001A{number % 60 + 1:03}'
        if reference(text := recording(number)) is not None and name not in unusable_samples():
            texts[name] = text
    raw = write_raw(tmp_path / 'raw', texts)
    assert prepare(raw, tmp_path / 'out', workers=3) == 0
    for file in FILES['ntu60']:
        got = contents(tmp_path / 'out' / file)
        names = split_of(file[:-4], texts)
        for part, listed in zip(('train', 'test'), names, strict=True):
            assert got[f'name_{part}'].tolist() == listed
            for x, name in zip(got[f'x_{part}'], listed, strict=True):
                expected = reference(texts[name])
                assert np.array_equal(x[:len(expected), :expected.shape[1]], expected)
                assert not x[len(expected):].any() and not x[:, expected.shape[1]:].any()


def test_the_default_places(raw, tmp_path, monkeypatch):
    monkeypatch.setattr(prepare_ntu, 'RAW', tmp_path / 'nturgbd_raw')
    with monkeypatch.context() as here:
        shutil.copy(ROOT / 'data/ntu_unusable.txt', tmp_path)
        here.setattr(prepare_ntu, 'HERE', tmp_path)
        command = ['--dataset', 'ntu60', '--workers', '1']
        for dataset in FILES:
            refusal(lambda dataset=dataset: prepare_ntu.main(['--dataset', dataset]), tmp_path / 'nturgbd_raw',
                    'nturgb+d_skeletons', '--raw')
        (tmp_path / 'nturgbd_raw').mkdir()
        raw.rename(tmp_path / 'nturgbd_raw/nturgb+d_skeletons')
        assert prepare_ntu.main(command) == 0
        refusal(lambda: prepare_ntu.main(['--dataset', 'ntu120']), 'nturgb+d_skeletons120', 'nturgb+d_skeletons_120')
        assert sorted(folder_of(tmp_path / 'ntu')) == FILES['ntu60'] and not (tmp_path / 'ntu120').exists()
        for other in ('nturgbd_skeletons_s018_to_s032.zip', 'nturgb+d_skeletons_120', 'nturgb+d_skeletons120'):
            folder = write_raw(tmp_path / other, {'S018C001P001R001A061': text_of(1)})
            if other.endswith('.zip'):
                folder = write_zip(tmp_path / 'zip', folder)
            folder.rename(tmp_path / 'nturgbd_raw' / other)
            found = default_raw(DATASETS['ntu120'])
            assert [path.name for path in found] == ['nturgb+d_skeletons', other]
            assert prepare_ntu.main(['--dataset', 'ntu120', '--workers', '1']) == 0
            assert open_member(tmp_path / 'ntu120/NTU120_XSub.npz', 'x_train').shape == (4, 6, 150)
    refusal(lambda: prepare_ntu.main(['--dataset', 'synth']), '--raw', 'synthesize.py')


def test_runs_by_path_and_as_a_module(raw, tmp_path):
    commands = {'a': ([str(ROOT / 'data/prepare_ntu.py')], tmp_path), 'b': (['-m', 'data.prepare_ntu'], ROOT)}
    for out, (command, cwd) in commands.items():
        run = subprocess.run([sys.executable, *command, '--dataset', 'ntu60', '--raw', raw, '--out', tmp_path / out],
                             cwd=cwd, capture_output=True, text=True, check=False)
        assert run.returncode == 0 and run.stderr == '' and '5 samples of 4 classes' in run.stdout, run
    assert folder_of(tmp_path / 'a') == folder_of(tmp_path / 'b') and len(folder_of(tmp_path / 'a')) == 2


# ---- what a user can get wrong

def test_bad_raw(raw, tmp_path, capsys):
    out = tmp_path / 'out'
    fails(capsys, tmp_path / 'absent', out, tmp_path / 'absent', 'does not exist', '--raw')
    fails(capsys, [raw, tmp_path / 'absent.zip'], out, 'absent.zip', 'does not exist')
    (tmp_path / 'empty/deeper').mkdir(parents=True)
    (tmp_path / 'empty/deeper/._S001C001P001R001A001.skeleton').write_bytes(b'\0')
    (tmp_path / 'empty/notes.txt').write_bytes(b'hello')
    fails(capsys, tmp_path / 'empty', out, tmp_path / 'empty', 'no .skeleton file')
    write_zip(tmp_path / 'empty.zip', raw, keep=lambda name: False)
    fails(capsys, tmp_path / 'empty.zip', out, 'empty.zip', 'no .skeleton file')
    (tmp_path / 'text.zip').write_text('not an archive\n' * 1000)
    fails(capsys, tmp_path / 'text.zip', out, 'text.zip', 'neither a folder nor a whole zip')
    fails(capsys, raw / f'{NAMES[0]}.skeleton', out, NAMES[0], 'neither a folder nor a whole zip')
    whole = write_zip(tmp_path / 'whole.zip', raw).read_bytes()
    for cut in (0, 1, len(whole) // 2, len(whole) - 1):
        (tmp_path / f'cut{cut}.zip').write_bytes(whole[:cut])
        fails(capsys, tmp_path / f'cut{cut}.zip', out, f'cut{cut}.zip', 'download the zip again')


def test_the_same_sample_twice(raw, tmp_path, capsys):
    other = write_raw(tmp_path / 'other', {NAMES[1]: text_of(8)})
    for raws in ([raw, other], [other, write_zip(tmp_path / 'a.zip', raw)], [tmp_path]):
        fails(capsys, raws, tmp_path / 'out', 'is there twice', 'keep one', more=['--skip_damaged'])
    with pytest.warns(UserWarning, match='Duplicate'), zipfile.ZipFile(tmp_path / 'twice.zip', 'w') as archive:
        for _ in range(2):
            archive.writestr(f'{NAMES[0]}.skeleton', text_of(0))
    fails(capsys, tmp_path / 'twice.zip', tmp_path / 'out', NAMES[0], 'is there twice')


def test_a_name_that_is_none(raw, tmp_path, capsys):
    for name, words in (('S001C001P001', 'no sample name'), ('S001C001P001R001A001 (1)', 'no sample name'),
                        ('S001C001P009R001A001.copy', 'no sample name'),
                        ('S033C001P001R001A001', 'no sample name'), ('S001C001P001R001A061', 'action 61')):
        write_raw(raw, {name: text_of(5)})
        lines = fails(capsys, raw, tmp_path / 'out', words, f'{name}.skeleton', '--skip_damaged', damaged=1)
        assert lines[0].startswith(f'damaged: {raw}/{name}.skeleton: ')
        (raw / f'{name}.skeleton').unlink()


def test_files_of_another_set_only(tmp_path, capsys):
    raw = write_raw(tmp_path / 'raw', {'S018C001P001R001A001': text_of(1)})
    fails(capsys, raw, tmp_path / 'out', 'no sample to write')
    write_raw(tmp_path / 'bad', {NAMES[0]: b''})
    fails(capsys, tmp_path / 'bad', tmp_path / 'out', '1 damaged, nothing written', damaged=1)
    assert prepare(tmp_path / 'bad', tmp_path / 'new', '--skip_damaged') == 2
    assert 'no sample to write' in capsys.readouterr().err and not list((tmp_path / 'new').glob('*.npz'))


def test_bad_options(raw, tmp_path, capsys):
    out = tmp_path / 'out'
    fails(capsys, raw, out, '--protocol xset', 'xsub', 'xview', more=['--protocol', 'xsub', 'xset'])
    fails(capsys, raw, out, '--protocol XSub', 'xsub', 'xset', more=['--protocol', 'XSub'], dataset='ntu120')
    before = folder_of(out)
    for options in (['--workers', '0'], ['--workers', '-1'], ['--workers', 'x'], ['--dataset', 'ntu'], ['--protocol'],
                    ['--no_such_option']):
        assert prepare(raw, out, *options) == 2
        assert '--help lists the options' in capsys.readouterr().err and folder_of(out) == before


@pytest.mark.parametrize('place', ['file', 'file/below', 'x' * 300])
def test_a_folder_that_cannot_be_written(place, raw, tmp_path, capsys):
    (tmp_path / 'file').write_bytes(b'in the way')
    assert prepare(raw, tmp_path / place) == 2
    printed = capsys.readouterr()
    assert printed.out == '' and printed.err.count('\n') == 1 and printed.err.startswith('error: ')
    assert f'{tmp_path / place}: cannot be written' in printed.err
    assert (tmp_path / 'file').read_bytes() == b'in the way'


@pytest.mark.skipif(os.geteuid() == 0, reason='nothing is forbidden to root')
def test_a_folder_without_permission(raw, tmp_path, capsys):
    (tmp_path / 'out').mkdir(mode=0o555)
    assert prepare(raw, tmp_path / 'out') == 2
    assert 'cannot be written (Permission denied)' in capsys.readouterr().err
    raw.chmod(0)
    assert prepare(raw, tmp_path / 'other') == 2
    assert f'{raw}: cannot be read (Permission denied)' in capsys.readouterr().err
    raw.chmod(0o755)


# ---- damaged files

def spoil(text, line, value):
    lines = text.split(b'\n')
    lines[line - 1] = value
    return b'\n'.join(lines)


@pytest.mark.parametrize('workers', [1, 2])
def test_damaged_files_are_listed_and_stop_the_run(workers, raw, tmp_path, capsys):
    write_raw(raw, {NAMES[0]: spoil(text_of(0), 7, b'1 2 3'), NAMES[2]: text_of(2)[:-300],
                    'S001C001P009R001A001': b'0\n'})
    lines = fails(capsys, raw, tmp_path / 'out', '3 damaged, nothing written', '--skip_damaged', 'ntu60_damaged.txt',
                  damaged=3, workers=workers)
    assert lines[0] == f'damaged: {raw}/{NAMES[0]}.skeleton: line 7: 3 fields, where a joint has 12'
    assert lines[1] == f'damaged: {raw}/S001C001P009R001A001.skeleton: no frame shows a body'
    assert lines[2].startswith(f'damaged: {raw}/{NAMES[2]}.skeleton: line 55: ')


@pytest.mark.parametrize('workers', [1, 2])
def test_skip_damaged_writes_the_rest_and_keeps_the_list(workers, raw, tmp_path, capsys):
    rest = write_raw(tmp_path / 'rest', {})
    for name in NAMES[:3] + NAMES[4:]:
        shutil.copy(raw / f'{name}.skeleton', rest)
    write_raw(raw, {NAMES[3]: spoil(text_of(3), 1, b'3'), 'nobody': text_of(1)})
    out, listed = tmp_path / 'out', tmp_path / 'out/ntu60_damaged.txt'
    assert prepare(rest, tmp_path / 'expected') == 0
    capsys.readouterr()
    assert prepare(raw, out, '--skip_damaged', workers=workers) == 0
    printed = capsys.readouterr()
    lines = listed.read_text().splitlines()
    assert len(lines) == 2 and all(f'damaged: {line}\n' in printed.err for line in lines)
    assert {line.split(': ')[0] for line in lines} == {f'{raw}/{name}.skeleton' for name in (NAMES[3], 'nobody')}
    assert '2 damaged and left out\n' in printed.out and '4 samples' in printed.out
    listed_bytes = listed.read_bytes()
    assert folder_of(out) == folder_of(tmp_path / 'expected') | {listed.name: listed_bytes}

    assert prepare(raw, out) == 2 and listed.read_bytes() == listed_bytes, 'a run that stops leaves all as it was'
    assert prepare(rest, out, workers=workers) == 0
    assert folder_of(out) == folder_of(tmp_path / 'expected'), 'the list of an earlier run goes'
    assert prepare(rest, out, '--skip_damaged') == 0 and folder_of(out) == folder_of(tmp_path / 'expected')


def test_many_damaged_files(raw, tmp_path, capsys):
    write_raw(raw, {f'S001C001P{number:03}R001A009': b'x\n' for number in range(1, 31)})
    for name in FILES['ntu60']:
        (tmp_path / 'out').mkdir(exist_ok=True)
        (tmp_path / 'out' / name).write_bytes(b'old')
    assert prepare(raw, tmp_path / 'out') == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 22 and lines[20] == '… and 10 more' and lines[21].startswith('error: 30 damaged')
    assert set(folder_of(tmp_path / 'out').values()) == {b'old'}
    assert prepare(raw, tmp_path / 'out', '--skip_damaged') == 0
    lines = (tmp_path / 'out/ntu60_damaged.txt').read_text().splitlines()
    assert lines == [f'{raw}/S001C001P{number:03}R001A009.skeleton: line 1: \'x\' is no number of frames'
                     for number in range(1, 31)]


@pytest.mark.parametrize('compression', [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA],
                         ids=['stored', 'deflated', 'bzip2', 'lzma'])
def test_a_broken_member(compression, raw, tmp_path, capsys):
    """Bytes of its data that changed on the way: the sample is damaged, the others are whole."""
    whole = write_zip(tmp_path / 'whole.zip', raw, compression=compression)
    with zipfile.ZipFile(whole) as archive:
        name = f'nturgb+d_skeletons/{NAMES[1]}.skeleton'
        member = archive.getinfo(name)
    start = member.header_offset + 30 + len(name)
    for number, share in enumerate((.2, .4, .6, .8)):
        path, text = tmp_path / f'{number}.zip', bytearray(whole.read_bytes())
        text[start + int(share * member.compress_size)] ^= 0x55
        path.write_bytes(text)
        lines = fails(capsys, path, tmp_path / 'out', '1 damaged', damaged=1, workers=1 + number % 2)
        assert lines[0].startswith(f'damaged: {path}:{name}: ')
        assert 'broken member' in lines[0] or 'Invalid data stream' in lines[0]
        assert prepare(path, tmp_path / 'skip', '--skip_damaged') == 0
        assert '4 samples' in capsys.readouterr().out


def test_a_zip_with_a_password(raw, tmp_path, capsys):
    path = write_zip(tmp_path / 'a.zip', raw)
    text = bytearray(path.read_bytes())
    for magic, flags in ((b'PK\x03\x04', 6), (b'PK\x01\x02', 8)):
        at = -1
        while (at := text.find(magic, at + 1)) >= 0:
            text[at + flags] |= 1
    path.write_bytes(text)
    fails(capsys, path, tmp_path / 'out', 'password required', damaged=5)


def test_a_file_that_cannot_be_read(raw, tmp_path, capsys):
    (raw / 'S001C001P009R001A001.skeleton').symlink_to(tmp_path / 'nowhere')
    lines = fails(capsys, raw, tmp_path / 'out', damaged=1)
    assert lines[0] == f'damaged: {raw}/S001C001P009R001A001.skeleton: cannot be read (No such file or directory)'


# ---- a full disk

@contextlib.contextmanager
def files_at_most(size):
    """No file can grow past this size, as on a full disk."""
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))


def test_a_full_disk(tmp_path, capsys):
    """Wherever it fills up: in the samples that are kept until all are known, or within the file that is written."""
    raw = write_raw(tmp_path / 'raw', {f'S001C001P{number:03}R001A009': text_of(number, 12) for number in range(1, 9)})
    out = tmp_path / 'out'
    assert prepare(raw, out, '--protocol', 'xsub') == 0
    whole = folder_of(out)
    spooled, size = 8 * 12 * 300, len(whole['NTU60_XSub.npz'])
    assert spooled < 30_000 < 50_000 < size
    capsys.readouterr()
    said = set()
    (out / 'NTU60_XSub.npz').write_bytes(b'old')
    for limit in [*range(0, size, 1500), *range(size - 200, size)]:
        with files_at_most(limit):
            assert prepare(raw, out, '--protocol', 'xsub') == 2, limit
        printed = capsys.readouterr()
        assert printed.out == '' and printed.err.count('\n') == 1, printed
        assert printed.err.startswith(f'error: {out}') and 'cannot be written (File too large)' in printed.err
        assert folder_of(out) == {'NTU60_XSub.npz': b'old'}, limit
        said.add(printed.err)
    assert len(said) == 2 and any('the samples are kept there' in one for one in said)
    with files_at_most(size):
        assert prepare(raw, out, '--protocol', 'xsub') == 0
    assert folder_of(out) == whole


@pytest.mark.parametrize('workers', [1, 2])
def test_no_space_left(workers, raw, tmp_path, capsys, monkeypatch):
    """As the system says it; the list of damaged files has no place either."""
    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, 'fsync', full)
        fails(capsys, raw, tmp_path / 'out', 'NTU60_XSub.npz', 'No space left on device', 'free space', workers=workers)
        write_raw(raw, {'nobody': b''})
        fails(capsys, raw, tmp_path / 'out', 'ntu60_damaged.txt', 'No space left', more=['--skip_damaged'], damaged=1)
    with monkeypatch.context() as patch:
        patch.setattr(pipeline.tempfile, 'TemporaryFile', full)
        fails(capsys, raw, tmp_path / 'out', tmp_path / 'out', 'No space left', workers=workers)


# ---- interrupted and killed

class Blocked:
    """The command, which reads a raw file that does not end: a named pipe. Processes are those of Linux."""

    def __init__(self, tmp_path, workers):
        self.out = tmp_path / 'out'
        self.out.mkdir()
        (self.out / 'NTU60_XSub.npz').write_bytes(b'old')
        raw = write_raw(tmp_path / 'raw', {f'S001C001P{number:03}R001A009': text_of(number) for number in range(1, 41)})
        pipe = raw / 'S001C001P001R001A001.skeleton'    # the first by its name
        os.mkfifo(pipe)
        command = [sys.executable, ROOT / 'data/prepare_ntu.py', '--dataset', 'ntu60', '--raw', raw, '--out', self.out,
                   '--workers', str(workers)]
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))
        self.writer = None
        self.wait_for(lambda: self.open(pipe))

    def open(self, pipe):
        """Whether somebody reads the pipe."""
        try:
            self.writer = os.open(pipe, os.O_WRONLY | os.O_NONBLOCK)
        except OSError:
            assert self.process.poll() is None, self.process.communicate()
        return self.writer is not None

    def wait_for(self, condition):
        deadline = time.monotonic() + 60
        while not condition():
            assert time.monotonic() < deadline, 'waited in vain'
            time.sleep(.01)

    def end_of_file(self):
        if self.writer is not None:
            os.close(self.writer)
        self.writer = None

    def workers(self):
        """Process ids of those that live and were forked by the command."""
        found = []
        for stat in Path('/proc').glob('[0-9]*/stat'):
            try:
                state, parent = stat.read_text().rpartition(')')[2].split()[:2]
            except OSError:
                continue
            if int(parent) == self.process.pid and state not in 'ZX':
                found.append(int(stat.parent.name))
        return found

    def lives(self, worker):
        try:
            return Path(f'/proc/{worker}/stat').read_text().rpartition(')')[2].split()[0] not in 'ZX'
        except OSError:
            return False

    def ignores_interrupt(self, worker):
        status = Path(f'/proc/{worker}/status').read_text()
        return int(status.split('SigIgn:')[1].split()[0], 16) >> (signal.SIGINT - 1) & 1

    def interrupt(self):
        """Ctrl-C, again and again as people do: a signal may come just before a read that then has no end."""
        for _ in range(60):
            os.killpg(self.process.pid, signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                return self.process.wait(1)
        return pytest.fail('it goes on')

    def ends(self, code, stderr):
        printed, said = self.process.communicate(timeout=60)
        assert (self.process.returncode, printed) == (code, ''), said
        assert (stderr in said and said.count('\n') == 1) if stderr else said == '', said
        assert folder_of(self.out) == {'NTU60_XSub.npz': b'old'}

    def close(self):
        self.end_of_file()
        self.process.kill()
        self.process.communicate(timeout=60)


@pytest.fixture
def blocked(tmp_path):
    made = []

    def make(workers):
        made.append(Blocked(tmp_path, workers))
        return made[0]

    yield make
    for one in made:
        one.close()


@on_linux
@pytest.mark.parametrize('workers', [1, 2])
def test_interrupted(blocked, workers):
    """Ctrl-C, which a terminal sends to all processes at once."""
    command = blocked(workers)
    if workers > 1:
        command.wait_for(lambda: len(command.workers()) == workers)
        children = command.workers()
        command.wait_for(lambda: all(map(command.ignores_interrupt, children)))
    if workers > 1:
        os.killpg(command.process.pid, signal.SIGINT)
        assert set(command.workers()) <= set(children)
        command.end_of_file()   # a worker ends the file it reads
    else:
        command.interrupt()
    command.ends(130, 'interrupted\n')
    if workers > 1:
        assert not any(map(command.lives, children))


@on_linux
def test_a_killed_worker(blocked):
    command = blocked(2)
    command.wait_for(lambda: len(command.workers()) == 2)
    os.kill(command.workers()[0], signal.SIGKILL)
    command.ends(2, 'error: a worker process was killed, perhaps for want of memory; give fewer --workers\n')


@on_linux
def test_killed(blocked):
    """Nobody is left to clean up; the workers end by themselves, also the one that reads a file without an end."""
    command = blocked(2)
    command.wait_for(lambda: len(command.workers()) == 2)
    children = command.workers()
    command.wait_for(lambda: all(map(command.ignores_interrupt, children)))
    command.process.kill()
    command.wait_for(lambda: not any(map(command.lives, children)))
    command.ends(-signal.SIGKILL, '')
