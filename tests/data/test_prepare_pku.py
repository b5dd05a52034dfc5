"""The reference is plain Python: a float a token, a list slice a label row."""

import contextlib
import errno
import json
import math
import os
import re
import resource
import signal
import subprocess
import sys
import tarfile
import time
import warnings
import zipfile
from contextlib import contextmanager
from hashlib import sha256
from itertools import chain, pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data import prepare_pku
from data.prepare_pku import Video, parse, parse_label, parse_skeleton
from tests.conftest import ROOT, refusal
from util.errors import UserError, run_main

SHARED = Path(os.environ.get('MAMP_SHARED', ROOT / '../shared'))
GOLDEN = ROOT / 'tests/golden'
REAL = SHARED / 'data/pku_raw/A10N08-L.txt'
needs_golden = pytest.mark.skipif(not (SHARED / 'golden/pku_v1_raw.tar.xz').exists(),
                                  reason='no golden/pku_v*_raw.tar.xz in MAMP_SHARED')
needs_real = pytest.mark.skipif(not REAL.exists(), reason='no data/pku_raw/A10N08-L.txt in MAMP_SHARED')
bounded = settings(derandomize=True, deadline=None, database=None,
                   suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])

MEMBERS = ['x_train', 'y_train', 'x_test', 'y_test', 'name_train', 'name_test']
KINDS = {'XSub': 'subject', 'XView': 'view'}
FILES = ['PKUv1_XSub.npz', 'PKUv1_XView.npz']
LARGEST = 1e6         # metres
NUMBER = re.compile(rb'[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?')


@pytest.fixture(autouse=True)
def no_wait_for_the_disk(monkeypatch):
    monkeypatch.setattr(os, 'fsync', lambda descriptor: None)


def prepare(raw, out, *more, phase=1):
    """Exit code of the command, run in this process."""
    with pytest.raises(SystemExit) as end:
        run_main(lambda: prepare_pku.main(['--phase', str(phase), '--raw', str(raw), '--out', str(out), '--workers',
                                           '1', *map(str, more)]))
    return end.value.code


def contents(path):
    with np.load(path, allow_pickle=False) as npz:
        return {key: npz[key] for key in npz.files}


def folder_of(path):
    return {file.name: file.read_bytes() for file in path.iterdir()} if path.exists() else {}


def same(got, expected):
    """Members equal: names and their order, types, shapes, every bit."""
    assert list(got) == list(expected)
    for key, value in expected.items():
        assert (got[key].dtype, got[key].shape) == (value.dtype, value.shape), key
        assert got[key].tobytes() == value.tobytes(), key


def unpack(path, folder):
    with tarfile.open(path) as tar:
        tar.extractall(folder, filter='data')
    return next(folder.iterdir())


def write_raw(folder, files):
    """`files`: {'label/0002-L.txt': bytes}."""
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(text)
    return folder


def label_rows(path):
    """Line, class, start and end of each row."""
    for number, line in enumerate(path.read_text().splitlines(), 1):
        if line.strip():
            yield number, *(int(field) for field in line.split(',')[:3])


def samples_of(raw, without=()):
    """Video, line, class and frames, all of them, of what the raw folder's label rows cut out and is not zero.

    `without`: videos, or (video, line of the label file), that are left out.
    """
    for stem in sorted({path.stem for path in (raw / 'skeleton').iterdir()} - set(without)):
        frames = [[float(token) for token in line.split()]
                  for line in (raw / f'skeleton/{stem}.txt').read_text().rstrip().splitlines()]
        assert all(len(frame) == 150 for frame in frames)
        for number, action, start, end in label_rows(raw / f'label/{stem}.txt'):
            if (stem, number) not in without and math.fsum(chain(*frames[start:end])) != 0:
                yield stem, number, action, frames[start:end]


def members_of(samples, train):
    """The interchange file of such samples: the videos in `train`, and the rest."""
    members = {}
    samples = list(samples)
    for part in ('train', 'test'):
        chosen = [sample for sample in samples if (sample[0] in train) == (part == 'train')]
        x = np.zeros((len(chosen), 300, 150), dtype=np.float32)
        y = np.zeros((len(chosen), 51))
        for i, (_, _, action, frames) in enumerate(chosen):
            for t, frame in enumerate(frames[:300]):
                x[i, t] = [np.float32(value) for value in frame]
            y[i, action - 1] = 1
        members |= {f'x_{part}': x, f'y_{part}': y}
        members[f'name_{part}'] = np.array([f'{stem}_{number:03}' for stem, number, *_ in chosen], dtype=np.str_)
    return {key: members[key] for key in MEMBERS}


# ---- golden

@needs_golden
@pytest.mark.parametrize('phase', [1, 2])
def test_golden(phase, tmp_path, capsys):
    """Every number of the authors' program, with one process and with two; and the names that they stand for."""
    raw = unpack(SHARED / f'golden/pku_v{phase}_raw.tar.xz', tmp_path / 'raw')
    expected = contents(SHARED / f'golden/pku_v{phase}_expected.npz')
    assert prepare(raw, tmp_path / 'one', phase=phase) == 0
    assert prepare(raw, tmp_path / 'two', '--workers', 2, phase=phase) == 0
    made = folder_of(tmp_path / 'one')
    assert sorted(made) == [f'PKUv{phase}_{file}.npz' for file in KINDS] and folder_of(tmp_path / 'two') == made
    samples = list(samples_of(raw))
    for file, kind in KINDS.items():
        got = contents(tmp_path / f'one/PKUv{phase}_{file}.npz')
        same({key: got[key] for key in MEMBERS[:4]},
             {key: expected[f'PKUv{phase}_{file}/{key}'] for key in MEMBERS[:4]})
        lines = next(raw.glob(f'cross?{kind}*')).read_text().splitlines()
        for part, line in (('train', 1), ('test', 3)):
            assert got[f'name_{part}'].tolist() == [f'{stem}_{number:03}' for stem, number, *_ in samples
                                                    if stem in lines[line].split(', ')]
        with zipfile.ZipFile(tmp_path / f'one/PKUv{phase}_{file}.npz') as archive:
            assert all(member.compress_type == zipfile.ZIP_STORED for member in archive.infolist())
    printed = capsys.readouterr().out
    assert '1 left out: all coordinates are zero' in printed and '12 files' in printed and 'clipped' not in printed


# The golden raw files, cut after so many frames; label rows that start later are left out.
CUTS = {1: {'0003-M': 385, '0007-L': 100}, 2: {'A01N04-M': 75, 'A02N01-L': 31, 'A02N01-R': 45}}
NAMES = {  # line 1 of 0003-M and of A01N04-M is all zero
    'PKUv1_XSub': (['0007-L_001', '0007-L_002'], ['0003-M_002']),
    'PKUv1_XView': (['0003-M_002'], ['0007-L_001', '0007-L_002']),
    'PKUv2_XSub': (['A02N01-L_001', 'A02N01-R_001', 'A02N01-R_002'], ['A01N04-M_002']),
    'PKUv2_XView': (['A01N04-M_002', 'A02N01-R_001', 'A02N01-R_002'], ['A02N01-L_001']),
}


@pytest.fixture(scope='module')
def excerpt(tmp_path_factory):
    folder = tmp_path_factory.mktemp('excerpt')
    unpack(GOLDEN / 'pku_excerpt_raw.tar.xz', folder)
    return folder


@pytest.mark.parametrize('phase, says', [
    (1, ['3 samples of 3 classes, 376 frames (17 to 300 a sample)', '2 clipped', '1 cut at 300 frames',
         '1 left out: all coordinates are zero', '0 damaged\n', '2 files']),
    (2, ['4 samples of 4 classes, 76 frames (13 to 25 a sample)', '2 clipped', '1 left out', '0 damaged\n',
         '3 files'])])
def test_golden_excerpt(phase, says, excerpt, tmp_path, capsys):
    """The authors' numbers in a clone without MAMP_SHARED: SHA-256 of every array's bytes."""
    assert prepare(excerpt / f'pku_v{phase}', tmp_path, phase=phase) == 0
    printed = capsys.readouterr()
    assert printed.err == '' and all(part in printed.out for part in says), printed
    sums = json.loads((GOLDEN / 'pku_excerpt_sha256.json').read_text())
    for file in KINDS:
        name = f'PKUv{phase}_{file}'
        got = contents(tmp_path / f'{name}.npz')
        assert list(got) == MEMBERS
        for part, names in zip(('train', 'test'), NAMES[name], strict=True):
            assert got[f'name_{part}'].tolist() == names
            x, y = got[f'x_{part}'], got[f'y_{part}']
            assert (x.shape, x.dtype, y.shape, y.dtype) == ((len(names), 300, 150), np.float32, (len(names), 51),
                                                            np.float64)
        assert {key: sha256(got[key].tobytes()).hexdigest() for key in MEMBERS[:4]} == sums[name]


@needs_golden
@pytest.mark.parametrize('phase', [1, 2])
def test_golden_excerpt_is_cut_from_the_golden_files(phase, excerpt, tmp_path):
    raw = unpack(SHARED / f'golden/pku_v{phase}_raw.tar.xz', tmp_path)
    mine, cuts = excerpt / f'pku_v{phase}', CUTS[phase]
    assert sum(path.stat().st_size for path in GOLDEN.glob('pku_*')) <= 150_000
    assert {path.stem for path in (mine / 'skeleton').iterdir()} == set(cuts)
    for stem, cut in cuts.items():
        for kind, keeps in (('skeleton', lambda number, line, cut=cut: number < cut),
                            ('label', lambda number, line, cut=cut: int(line.split(b',')[1]) < cut)):
            lines = (raw / f'{kind}/{stem}.txt').read_bytes().splitlines()
            assert (mine / f'{kind}/{stem}.txt').read_bytes().splitlines() == [
                line for number, line in enumerate(lines) if keeps(number, line)]
    samples = [(stem, number, *next(row[2:] for row in label_rows(raw / f'label/{stem}.txt') if row[0] == number))
               for stem, number, *_ in samples_of(raw)]
    expected = contents(SHARED / f'golden/pku_v{phase}_expected.npz')
    sums = json.loads((GOLDEN / 'pku_excerpt_sha256.json').read_text())
    for file, kind in KINDS.items():
        golden_split, split = (next(folder.glob(f'cross?{kind}*')).read_text().splitlines() for folder in (raw, mine))
        for part, line in (('train', 1), ('test', 3)):
            there = golden_split[line].split(', ')
            assert split[line].split(', ') == [stem for stem in there if stem in cuts]
            rows = [row for row in samples if row[0] in there]
            chosen = [i for i, (stem, _, start, _) in enumerate(rows) if start < cuts.get(stem, 0)]
            x, y = (expected[f'PKUv{phase}_{file}/{axis}_{part}'] for axis in 'xy')
            assert len(x) == len(y) == len(rows)
            x = x[chosen]
            for clip, i in zip(x, chosen, strict=True):
                clip[cuts[rows[i][0]] - rows[i][2]:] = 0
            assert sha256(x.tobytes()).hexdigest() == sums[f'PKUv{phase}_{file}'][f'x_{part}']
            assert sha256(y[chosen].tobytes()).hexdigest() == sums[f'PKUv{phase}_{file}'][f'y_{part}']


# ---- generated folders against the reference

STEMS = ['0002-L', '0002-M', '0007-R', 'A01N02-M', 'A01N02', 'b_1_001', '0002']
WRITTEN = ['{:.6f}', '{!r}', '{:.3e}', '{:+.2f}', '{:.0f}.', '{:.17g}']


def frame_text(rng, kind):
    """A line of 150 numbers, in the spellings that numbers have."""
    if kind == 'zero':
        return b' '.join(rng.choice([b'0', b'0.000000', b'-0.0', b'0e5'], 150))
    if kind == 'cancelling':  # sums to zero in any order of adding
        return b' '.join([b'0.5', b'-0.5', b'2', b'-2', b'0'] * 30)
    if kind == 'tiny':        # zero in float32, not in float64
        return b' '.join([b'1e-60'] * 150)
    values = rng.normal(size=150) * 3
    tokens = [WRITTEN[way].format(float(value)) for way, value in zip(rng.integers(0, 6, 150), values, strict=True)]
    tokens[75:] = ['0.000000'] * 75 if kind == 'one body' else tokens[75:]
    tokens[3:140] = ['1'] * 137 if kind == 'plain' else tokens[3:140]
    return ' '.join(tokens).encode()


def make_video(rng, kinds, frames):
    return [frame_text(rng, kinds[t * len(kinds) // frames]) for t in range(frames)]


@st.composite
def plans(draw):
    """Videos as name: (frames, their kinds, label rows); the training videos of each protocol; line end; seed."""
    videos = {}
    for stem in draw(st.lists(st.sampled_from(STEMS), min_size=1, max_size=4, unique=True)):
        if draw(st.integers(0, 3)):
            frames = draw(st.integers(1, 9))
            odd = draw(st.sampled_from(['cancelling', 'tiny']))  # together their sum depends on the order of adding
            kinds = draw(st.lists(st.sampled_from(['two bodies', 'one body', 'zero', odd]), min_size=1, max_size=4))
        else:
            frames = draw(st.sampled_from([301, 330]))
            kinds = draw(st.sampled_from([['plain'], ['zero', 'plain'], ['cancelling'], ['zero', 'tiny']]))
        rows = []
        for _ in range(draw(st.integers(1, 4))):
            start = draw(st.integers(0, min(frames - 1, 40)))
            end = draw(st.integers(max(start + 1, frames - 12), frames + 9))
            rows.append((draw(st.integers(1, 51)), start, end, draw(st.sampled_from([',', ', ', '\t,']))))
        videos[stem] = frames, kinds, rows
    train = {file: draw(st.lists(st.sampled_from(list(videos)), min_size=1, unique=True)) for file in KINDS}
    return videos, train, draw(st.sampled_from(['\n', '\r\n'])), draw(st.integers(0, 2**32))


def carry_out(plan, folder):
    videos, train, end, seed = plan
    rng = np.random.default_rng(seed)
    files = {f'cross_{kind}.txt': f'train\n{", ".join(train[file])}\ntest\n\n' for file, kind in KINDS.items()}
    for stem, (frames, kinds, rows) in videos.items():
        files[f'skeleton/{stem}.txt'] = b'\n'.join(make_video(rng, kinds, frames)).decode() + end * int(rng.integers(3))
        files[f'label/{stem}.txt'] = '\n'.join(comma.join(map(str, [action, start, stop, 1]))
                                               for action, start, stop, comma in rows) + end * int(rng.integers(3))
    return write_raw(folder, {name: text.replace('\r\n', '\n').replace('\n', end).encode()
                              for name, text in files.items()})


@settings(bounded, max_examples=40)
@given(plan=plans(), phase=st.sampled_from([1, 2]))
def test_any_folder_equals_the_reference(plan, phase, tmp_path_factory, capsys):
    raw, train = carry_out(plan, tmp_path_factory.mktemp('made')), plan[1]
    samples = list(samples_of(raw))
    capsys.readouterr()
    code = prepare(raw, raw / 'out', phase=phase)
    printed = capsys.readouterr()
    if not samples:
        assert code == 2 and 'no sample' in printed.err and not folder_of(raw / 'out')
        return
    assert code == 0 and printed.err == '' and len(folder_of(raw / 'out')) == 2
    for file in KINDS:
        path = raw / f'out/PKUv{phase}_{file}.npz'
        got = contents(path)
        same(got, members_of(samples, train[file]))
        names = [*got['name_train'], *got['name_test']]
        assert len(set(names)) == len(names)
        assert f'{path}: {len(got["x_train"])} train, {len(got["x_test"])} test' in printed.out
    ends = {path.stem: len(path.read_text().rstrip().splitlines()) for path in (raw / 'skeleton').iterdir()}
    rows = [(stem, end) for stem in ends for _, _, _, end in label_rows(raw / f'label/{stem}.txt')]
    lengths = [min(len(frames), 300) for *_, frames in samples]
    counts = {'clipped': sum(end > ends[stem] for stem, end in rows), 'left out: all': len(rows) - len(samples),
              'cut at 300': sum(len(frames) > 300 for *_, frames in samples)}
    assert [line for line in printed.out.splitlines() if not line.startswith('note: ')][2].startswith(
        f'{len(samples)} samples of {len({action for _, _, action, _ in samples})} classes, {sum(lengths):,} frames '
        f'({min(lengths)} to {max(lengths)} a sample)')
    for what, count in counts.items():
        assert re.findall(rf'^(\d+) {what}', printed.out, re.MULTILINE) == [str(count)] * (count > 0), what
    assert f'{len(ends)} files, ' in printed.out and '0 damaged\n' in printed.out


# ---- a small folder of our own

STEMS4 = ['0002-L', '0002-M', '0003-L', '0003-M']
SPLIT = b'Training videos:\n%s\nValidataion videos:\n%s\n'


@pytest.fixture(scope='module')
def files():
    """Four videos of 6 to 9 frames and two label rows each, as {name: bytes}."""
    rng, made = np.random.default_rng(3), {}
    for number, stem in enumerate(STEMS4):
        made[f'skeleton/{stem}.txt'] = b'\n'.join(make_video(rng, ['two bodies'], 6 + number)) + b'\n'
        made[f'label/{stem}.txt'] = b'%d,0,4,1\n%d,3,6,2\n' % (number + 1, 51 - number)
    return made | {'cross-subject.txt': SPLIT % (b'0002-L, 0002-M', b'0003-L, 0003-M'),
                   'cross-view.txt': SPLIT % (b'0002-M, 0003-M', b'0002-L, 0003-L')}


@pytest.fixture
def raw(files, tmp_path):
    return write_raw(tmp_path / 'raw', files)


def refused(capsys, raw, out, *words, more=()):
    """The command ends with 2 and one line `error: ` that has all `words`, and changes nothing in `out`, where an older
    file is; returns the damage listed before it."""
    if not out.exists():
        write_raw(out, {FILES[0]: b'old', 'notes.txt': b'mine'})
    before = folder_of(out)
    capsys.readouterr()
    assert prepare(raw, out, *more) == 2
    printed = capsys.readouterr()
    *listed, error = printed.err.splitlines()
    assert printed.out == '' and error.startswith('error: ') and all(str(word) in error for word in words), printed
    assert all(line.startswith('damaged: ') for line in listed), printed
    assert folder_of(out) == before
    return [line.removeprefix('damaged: ') for line in listed]


def test_names_labels_and_protocols(files, raw, tmp_path):
    """Nothing that lies about in the folder has a part in it."""
    write_raw(raw, {'skeleton/._0002-L.txt': b'\x00\x05', 'skeleton/notes.md': b'x', 'label/.DS_Store': b'\x00',
                    'label/old/0002-L.txt': b'x', 'README.txt': b'', 'cross-subject.pdf': b'',
                    '._cross-view.txt': b'\x00'})
    assert prepare(raw, tmp_path / 'out') == 0
    assert sorted(folder_of(tmp_path / 'out')) == FILES
    got = contents(tmp_path / 'out/PKUv1_XSub.npz')
    assert got['name_train'].tolist() == ['0002-L_001', '0002-L_002', '0002-M_001', '0002-M_002']
    assert got['y_train'].argmax(axis=1).tolist() == [0, 50, 1, 49]
    assert got['y_test'].argmax(axis=1).tolist() == [2, 48, 3, 47]
    assert contents(tmp_path / 'out/PKUv1_XView.npz')['name_train'].tolist() == [
        '0002-M_001', '0002-M_002', '0003-M_001', '0003-M_002']


def test_asked_for_protocols(raw, tmp_path, capsys):
    assert prepare(raw, tmp_path / 'both') == 0
    both = folder_of(tmp_path / 'both')
    for asked, made in ((['xsub'], FILES[:1]), (['xview'], FILES[1:]), (['xview', 'xsub', 'xview'], FILES)):
        assert prepare(raw, tmp_path / '-'.join(asked), '--protocol', *asked) == 0
        assert folder_of(tmp_path / '-'.join(asked)) == {name: both[name] for name in made}
    refused(capsys, raw, tmp_path / 'out', '--protocol', 'xset', 'xsub', 'xview', more=['--protocol', 'xsub', 'xset'])
    for bad in (['--workers', '0'], ['--workers', 'x'], ['--phase', '3']):
        assert prepare(raw, tmp_path / 'out', *bad) == 2
    refusal(lambda: prepare_pku.main(['--raw', str(raw)]), '--phase')


@pytest.mark.parametrize('phase', [1, 2])
def test_folders_when_none_is_given(phase, raw, tmp_path, monkeypatch):
    monkeypatch.setattr(prepare_pku, 'HERE', tmp_path / 'data')
    (tmp_path / 'data/pku_raw').mkdir(parents=True)
    raw.rename(tmp_path / f'data/pku_raw/v{phase}')
    assert prepare_pku.main(['--phase', str(phase)]) == 0
    assert sorted(folder_of(tmp_path / f'data/pku_v{phase}')) == [f'PKUv{phase}_{file}.npz' for file in KINDS]


def test_runs_by_path_and_as_a_module(raw, tmp_path):
    commands = {'a': ([str(ROOT / 'data/prepare_pku.py')], tmp_path), 'b': (['-m', 'data.prepare_pku'], ROOT)}
    for out, (command, cwd) in commands.items():
        done = subprocess.run([sys.executable, *command, '--phase', '1', '--raw', raw, '--out', tmp_path / out],
                              cwd=cwd, capture_output=True, text=True, env=os.environ | {'OMP_NUM_THREADS': '1'})
        assert done.returncode == 0 and done.stderr == '' and '8 samples of 8 classes, 28 frames' in done.stdout, done
    assert len(folder_of(tmp_path / 'a')) == 2 and folder_of(tmp_path / 'a') == folder_of(tmp_path / 'b')


def test_zero_test_comes_before_the_cut(raw, tmp_path, capsys):
    """Of 303 frames the first 300 are zero."""
    zero, one = b' '.join([b'0'] * 150) + b'\n', b' '.join([b'1.5'] * 150) + b'\n'
    write_raw(raw, {'skeleton/0002-L.txt': zero * 300 + one * 3,
                    'label/0002-L.txt': b'1,0,300,1\n2,0,301,1\n3,3,303,1\n4,2,303,1\n5,2,400,1\n6,302,303,1\n'})
    assert prepare(raw, tmp_path / 'out') == 0
    printed = capsys.readouterr().out
    assert '\n1 left out' in printed and '\n3 cut at 300' in printed and '\n1 clipped' in printed, printed
    got = contents(tmp_path / 'out/PKUv1_XSub.npz')
    same(got, members_of(samples_of(raw), ['0002-L', '0002-M']))
    assert got['name_train'][:5].tolist() == [f'0002-L_00{number}' for number in (2, 3, 4, 5, 6)]
    assert got['x_train'][:5].sum(axis=(1, 2)).tolist() == [0, 675, 450, 450, 225]


# ---- split files

def split_again(raw, kind, text, name=None):
    """Replaces the folder's split file of this kind."""
    (raw / f'cross-{kind}.txt').unlink()
    (raw / (name or f'cross-{kind}.txt')).write_bytes(text)


@pytest.mark.parametrize('name', [
    'cross-{}.txt', 'cross_{}.txt', 'cross_{}_v1.txt', 'cross_{}_v2.txt', 'cross-{}_v2.txt', 'cross-{}-v2.txt',
    'cross_{}-v1.txt', 'CROSS-{}.TXT', 'Cross_{}_V2.txt'])
@pytest.mark.parametrize('kind', ['subject', 'View'])
def test_spellings_of_split_files(name, kind, raw, tmp_path):
    lower = kind.lower()
    split_again(raw, lower, SPLIT % (b'0003-L', b'0002-L, 0002-M, 0003-M'), name.format(kind))
    assert prepare(raw, tmp_path / 'out') == 0
    got = {file: contents(tmp_path / 'out' / f'PKUv1_{file}.npz')['name_train'].tolist() for file in KINDS}
    changed = 'XSub' if lower == 'subject' else 'XView'
    assert got.pop(changed) == ['0003-L_001', '0003-L_002']
    assert len(got.popitem()[1]) == 4


@pytest.mark.parametrize('text', [
    SPLIT % (b'0002-L, 0003-M', b'0002-M, 0003-L'),
    SPLIT % (b'0002-L, 0003-M,', b'0002-M, 0003-L,'),
    SPLIT % (b'0002-L, 0003-M, ', b'0002-M, 0003-L, '),
    SPLIT % (b'0002-L, 0003-M,,\t ,', b''),
    SPLIT % (b'0002-L,0003-M', b''), SPLIT % (b'0003-M ,0002-L', b''), SPLIT % (b' \t0002-L,\t0003-M', b''),
    SPLIT % (b'0003-M, 0002-L, 0003-M, 0002-L', b''),
    (SPLIT % (b'0002-L, 0003-M', b'0002-M, 0003-L')).replace(b'\n', b'\r\n'),
    (SPLIT % (b'0002-L, 0003-M, ', b'0002-M, 0003-L')).replace(b'\n', b'\r\n'),
    (SPLIT % (b'0002-L, 0003-M', b'0002-M, 0003-L')).replace(b'\n', b'\r'),
    b'\xef\xbb\xbf' + SPLIT % (b'0002-L, 0003-M', b''), b'\xef\xbb\xbf\r\n0002-L, 0003-M,\r\n',
    b'\n0002-L, 0003-M', b'Trainingsvideos f\xfcr\n0002-L, 0003-M',
    b'title\n0002-L, 0003-M\n0002-M\n0003-L, 0004-L, nonsense'])
def test_writings_of_split_files(text, raw, tmp_path):
    split_again(raw, 'subject', text)
    assert prepare(raw, tmp_path / 'out', '--protocol', 'xsub') == 0
    got = contents(tmp_path / 'out/PKUv1_XSub.npz')
    assert got['name_train'].tolist() == ['0002-L_001', '0002-L_002', '0003-M_001', '0003-M_002']
    assert got['name_test'].tolist() == ['0002-M_001', '0002-M_002', '0003-L_001', '0003-L_002']


@pytest.mark.parametrize('text', [b'', b'title', b'title\n', b'0002-L, 0003-M', b'title\n\n0002-L, 0003-M\n',
                                  b'title\n , ,\t,\n0002-L', b'title\r\n\r\n0002-L\r\n', b'\xef\xbb\xbf'])
def test_split_file_that_names_no_training_video(text, raw, tmp_path, capsys):
    split_again(raw, 'view', text)
    assert refused(capsys, raw, tmp_path / 'out', raw / 'cross-view.txt', 'line 2') == []
    assert refused(capsys, raw, tmp_path / 'out', raw / 'cross-view.txt', 'line 2', more=['--skip_damaged']) == []


def test_split_file_must_be_one(files, raw, tmp_path, capsys):
    text = files['cross-subject.txt']
    for other in ('cross_subject_v2.txt', 'Cross-Subject_v1.txt'):
        write_raw(raw, {other: text})
        refused(capsys, raw, tmp_path / 'out', raw, 'cross-subject.txt', other, 'keep one')
        assert prepare(raw, tmp_path / other, '--protocol', 'xview') == 0
        (raw / other).unlink()
    (raw / 'cross-subject.txt').unlink()
    refused(capsys, raw, tmp_path / 'out', raw, 'cross-subject.txt', 'there is none')
    for other in ('cross-subjects.txt', 'my-cross-subject.txt', 'cross-subject.txt.bak', 'cross-subject_v3.txt',
                  'cross-subject (1).txt', 'subject.txt'):
        write_raw(raw, {other: text})
        refused(capsys, raw, tmp_path / 'out', raw, 'cross-subject.txt', 'there is none')
    (raw / 'cross-subject.txt').mkdir()
    refused(capsys, raw, tmp_path / 'out', raw / 'cross-subject.txt', 'cannot be read')


def test_protocol_needs_only_its_own_split_file(raw, tmp_path, capsys):
    assert prepare(raw, tmp_path / 'both') == 0
    for spoil in (lambda path: path.write_bytes(b'title\n0099-L'), Path.unlink):
        spoil(raw / 'cross-subject.txt')
        assert prepare(raw, tmp_path / 'out', '--protocol', 'xview') == 0
        assert folder_of(tmp_path / 'out') == {FILES[1]: (tmp_path / f'both/{FILES[1]}').read_bytes()}
    refused(capsys, raw, tmp_path / 'out', 'cross-subject.txt')


def test_training_video_that_is_not_there(raw, tmp_path, capsys):
    assert prepare(raw, tmp_path / 'clean') == 0
    split_again(raw, 'subject', SPLIT % (b'0098-R, 0002-L, 0002-M, 0002-l, b, a, 0098-R, 0097-L', b'0099-L'))
    expected = [f'{raw}/cross-subject.txt: line 2: there is no video {name}'
                for name in ('0002-l', '0097-L', '0098-R', 'a', 'b')]
    assert refused(capsys, raw, tmp_path / 'out', '5 damaged', '--skip_damaged') == expected
    assert prepare(raw, tmp_path / 'skip', '--skip_damaged') == 0
    assert folder_of(tmp_path / 'skip') == folder_of(tmp_path / 'clean') | {
        'PKUv1_damaged.txt': ''.join(f'{line}\n' for line in expected).encode()}


# ---- bad input

def on_line(number, change):
    """A change of one line, counted from 1, of a file."""
    def spoil(text):
        lines = text.split(b'\n')
        lines[number - 1] = change(lines[number - 1])
        return b'\n'.join(lines)
    return spoil


def field(at, token):
    return lambda line: b' '.join([token if i == at else old for i, old in enumerate(line.split())])


def always(text):
    return lambda old: text


SKELETON = {
    'a number too few': (on_line(3, lambda line: line.rsplit(b' ', 1)[0]), 3, '149 fields'),
    'a number too many': (on_line(3, lambda line: line + b' 0.5'), 3, '151 fields'),
    'a number too few everywhere': (lambda text: re.sub(rb' \S+\n', b'\n', text), 1, '149 fields'),
    'text': (on_line(2, field(149, b'abc')), 2, "'abc'"),
    'comma': (on_line(2, field(0, b'0,5')), 2, "'0,5'"),
    'comment': (on_line(4, field(80, b'#')), 4, "'#'"),
    'underscore': (on_line(4, field(80, b'1_0')), 4, "'1_0'"),
    'nan': (on_line(1, field(75, b'nan')), 1, 'not finite'),
    'inf': (on_line(6, field(3, b'-inf')), 6, 'not finite'),
    'infinity': (on_line(6, field(3, b'Infinity')), 6, 'not finite'),
    'too large for float32': (on_line(5, field(3, b'1e99')), 5, 'not finite'),
    'just too large': (on_line(5, field(3, b'-1000000.1')), 5, 'not finite'),
    'too large for float64': (on_line(5, field(3, b'1e999')), 5, 'not finite'),
    'blank line': (lambda text: text.replace(b'\n', b'\n\n', 1), 2, '0 fields'),
    'blank first line': (lambda text: b'\n' + text, 1, '0 fields'),
    'line of spaces': (lambda text: text.replace(b'\n', b'\n \t\r\n', 1), 2, '0 fields'),
    'two damaged lines': (lambda text: on_line(5, always(b'?'))(on_line(3, field(0, b'?'))(text)), 3, "'?'"),
    'cut in the last line': (lambda text: text[:-200], 8, 'fields in place of 150'),
    'carriage returns only': (lambda text: text.replace(b'\n', b'\r'), 1, '1200 fields'),
    'binary': (always(np.random.default_rng(0).bytes(5000)), 1, 'not plain text'),
    'zeros at the end': (lambda text: text + bytes(512), 9, 'not plain text'),
    'a letter beyond ASCII': (on_line(4, field(7, '１'.encode())), 4, 'not plain text'),
    'UTF-16': (lambda text: text.decode().encode('utf-16'), 1, 'not plain text'),
    'form feed at the end': (lambda text: text + b'\x0c\n', 9, 'not plain text'),
    'empty': (always(b''), 1, 'empty'),
    'blank': (always(b'\r\n \n'), 1, 'empty'),
}


@pytest.mark.parametrize('case', SKELETON)
def test_damaged_skeleton(case, files, raw, tmp_path, capsys):
    """0003-L has eight frames. Without it the rest is what it was."""
    spoil, number, words = SKELETON[case]
    path = raw / 'skeleton/0003-L.txt'
    reference = list(samples_of(raw, without=['0003-L']))
    path.write_bytes(spoil(files['skeleton/0003-L.txt']))
    listed = refused(capsys, raw, tmp_path / 'out', '1 damaged', '--skip_damaged', tmp_path / 'out/PKUv1_damaged.txt')
    assert len(listed) == 1 and listed[0].startswith(f'{path}: line {number}: ') and words in listed[0], listed
    skipped(capsys, raw, tmp_path / 'out', listed, reference)


def skipped(capsys, raw, out, listed, reference):
    """With --skip_damaged the rest is written over the older file, and the list of damage beside it."""
    assert prepare(raw, out, '--skip_damaged') == 0
    printed = capsys.readouterr()
    assert printed.err.splitlines() == [f'damaged: {line}' for line in listed]
    assert f'{len(listed)} damaged and left out\n' in printed.out
    made = folder_of(out)
    assert sorted(made) == [*FILES, 'PKUv1_damaged.txt', *(['notes.txt'] if 'notes.txt' in made else [])]
    assert made['PKUv1_damaged.txt'].decode() == ''.join(f'{line}\n' for line in listed)
    for file, train in (('XSub', ['0002-L', '0002-M']), ('XView', ['0002-M', '0003-M'])):
        same(contents(out / f'PKUv1_{file}.npz'), members_of(reference, train))


LABEL = {  # lines of the label file of a video with eight frames; the damaged ones, and what is said of them
    'class 0': ([b'7,1,3,1', b'0,3,6,1'], {2: 'class 0'}),
    'class 52': ([b'52,3,6,1', b'7,1,3,1'], {1: 'class 52'}),
    'class in text': ([b'drink,3,6,1'], {1: 'drink'}),
    'class with a point': ([b'7.0,3,6,1'], {1: '7.0'}),
    'class -1': ([b'-1,3,6,1'], {1: '-1'}),
    'class of many digits': ([b'1' * 5000 + b',3,6,1', b'7,1,3,1'], {1: 'class,start,end'}),
    'title': ([b'class,start,end,confidence', b'7,1,3,1'], {1: 'class,start,end'}),
    'start at the end': ([b'7,8,9,1', b'7,7,9,1', b'7,7,8,1'], {1: 'frames 8 to 9'}),
    'start after the end': ([b'7,100,120,1', b'9,0,8,1'], {1: '8 of the video'}),
    'start is end': ([b'7,0,0,1', b'8,3,3,1', b'9,3,4,1'], {1: 'frames 0 to 0', 2: 'frames 3 to 3'}),
    'start past end': ([b'7,5,2,1'], {1: 'frames 5 to 2'}),
    'negative start': ([b'7,-3,6,1', b'7,1,6,1'], {1: '-3'}),
    'negative end': ([b'7,1,-6,1', b'7,1,6,1'], {1: '-6'}),
    'three fields': ([b'7,1,6', b'7,1,6,1'], {1: '7,1,6'}),
    'five fields': ([b'7,1,6,1,1', b'7,1,6,1'], {1: '7,1,6,1,1'}),
    'empty fields': ([b',,,', b'7,,6,1', b'7,1,6,1'], {1: ',,,', 2: '7,,6,1'}),
    'spaces for commas': ([b'7 1 6 1'], {1: '7 1 6 1'}),
    'binary': ([b'\x00\xff\x80,1,2,3', b'7,1,6,1', b'\xb2,1,6,1'], {1: 'class,start,end', 3: 'class,start,end'}),
    'CRLF': ([b'7,1,6,1\r', b'7,9,10,1\r', b'7,,10,1\r', b'8,1,6,1\r'], {2: 'frames 9 to 10', 3: "'7,,10,1'"}),
    'blank lines between': ([b'', b'7,1,6,1', b' \t', b'7,9,10,1', b'8,1,6,2'], {4: 'frames 9 to 10'}),
}


@pytest.mark.parametrize('case', LABEL)
def test_damaged_label_row(case, raw, tmp_path, capsys):
    """Only the row goes, not its video; the others keep their names."""
    lines, damaged = LABEL[case]
    path = raw / 'label/0003-L.txt'
    path.write_bytes(b'\n'.join(lines))
    listed = refused(capsys, raw, tmp_path / 'out', f'{len(damaged)} damaged', '--skip_damaged')
    assert len(listed) == len(damaged)
    for line, (number, words) in zip(listed, damaged.items(), strict=True):
        assert line.startswith(f'{path}: line {number}: ') and words in line and len(line) < len(str(path)) + 150
    keep = [b'' if number in damaged else line for number, line in enumerate(lines, 1)]
    path.write_bytes(b'\n'.join(keep))
    reference = list(samples_of(raw))
    assert len(reference) == 6 + sum(map(bool, map(bytes.strip, keep)))
    path.write_bytes(b'\n'.join(lines))
    skipped(capsys, raw, tmp_path / 'out', listed, reference)


@pytest.mark.parametrize('text', [b'', b'\n', b'\r\n\r\n', b' \t\n'])
def test_empty_label_file(text, raw, tmp_path, capsys):
    reference = list(samples_of(raw, without=['0003-L']))
    write_raw(raw, {'label/0003-L.txt': text})
    listed = refused(capsys, raw, tmp_path / 'out', '1 damaged')
    assert listed == [f'{raw}/skeleton/0003-L.txt: no row in {raw}/label/0003-L.txt']
    skipped(capsys, raw, tmp_path / 'out', listed, reference)


@pytest.mark.parametrize('kind, other', [('skeleton', 'label'), ('label', 'skeleton')])
def test_half_a_video(kind, other, raw, tmp_path, capsys):
    """On line 2 of a split file or not."""
    reference = list(samples_of(raw, without=['0003-L']))
    (raw / other / '0003-L.txt').unlink()
    write_raw(raw, {f'{kind}/0001-R.txt': b'1 2 3'})
    half = [f'{raw}/{kind}/{stem}.txt: there is no {other}/{stem}.txt' for stem in ('0001-R', '0003-L')]
    listed = refused(capsys, raw, tmp_path / 'out', '2 damaged')
    assert listed == half
    skipped(capsys, raw, tmp_path / 'out', listed, reference)
    (raw / other / '0002-L.txt').unlink()
    listed = refused(capsys, raw, tmp_path / 'out', '4 damaged')
    assert listed == [half[0], half[1].replace('0003', '0002'), half[1],
                      f'{raw}/cross-subject.txt: line 2: there is no video 0002-L']


@pytest.mark.parametrize('kind', ['skeleton', 'label'])
def test_file_that_cannot_be_read(kind, raw, tmp_path, capsys):
    reference = list(samples_of(raw, without=['0003-L']))
    (raw / kind / '0003-L.txt').unlink()
    (raw / kind / '0003-L.txt').mkdir()
    listed = refused(capsys, raw, tmp_path / 'out', '1 damaged')
    assert len(listed) == 1 and f'{raw}/{kind}/0003-L.txt cannot be read (Is a directory)' in listed[0]
    skipped(capsys, raw, tmp_path / 'out', listed, reference)


def test_missing_and_empty_folders(files, raw, tmp_path, capsys):
    out = tmp_path / 'out'
    refused(capsys, tmp_path / 'absent', out, tmp_path / 'absent', 'no such folder', '--raw')
    refused(capsys, raw / 'cross-view.txt', out, raw / 'cross-view.txt', 'no such folder')
    refused(capsys, raw / 'skeleton', out, raw / 'skeleton/skeleton', 'no such folder')
    for kind in ('skeleton', 'label'):
        (raw / kind).rename(tmp_path / 'away')
        refused(capsys, raw, out, raw / kind, 'no such folder')
        write_raw(raw, {f'{kind}/.hidden.txt': b'1', f'{kind}/0002-L.skeleton': b'1'})
        refused(capsys, raw, out, raw / kind, 'no .txt file', kind)
        refused(capsys, raw, out, raw / kind, 'no .txt file', kind, more=['--skip_damaged'])
        for path in (raw / kind).iterdir():
            path.unlink()
        refused(capsys, raw, out, raw / kind, 'no .txt file', kind)
        (raw / kind).rmdir()
        (tmp_path / 'away').rename(raw / kind)
    assert prepare(raw, out) == 0


def test_no_sample_at_all(files, raw, tmp_path, capsys):
    """Nothing is written when all is zero, or all is damaged, or no two files belong together."""
    for stem in STEMS4:
        write_raw(raw, {f'skeleton/{stem}.txt': b'\n'.join([b' '.join([b'0'] * 150)] * 9)})
    assert refused(capsys, raw, tmp_path / 'out', raw, 'no sample') == []
    write_raw(raw, {f'label/{stem}.txt': b'52,0,4,1' for stem in STEMS4})
    assert len(refused(capsys, raw, tmp_path / 'out', '4 damaged')) == 4
    assert prepare(raw, tmp_path / 'skip', '--skip_damaged') == 2
    assert 'no sample' in capsys.readouterr().err
    assert list(folder_of(tmp_path / 'skip')) == ['PKUv1_damaged.txt']
    for stem in STEMS4:
        (raw / f'label/{stem}.txt').rename(raw / f'label/x{stem}.txt')
    for workers in (1, 2):
        assert len(refused(capsys, raw, tmp_path / 'out', '12 damaged', more=['--workers', workers])) == 12


def test_much_damage_is_listed_whole_on_the_disk_only(files, raw, tmp_path, capsys):
    """In the order of the videos, with one process and with two; and a clean run removes the list."""
    write_raw(raw, {f'label/{stem}.txt': b'1,0,4,1\n' + b'7,0,0,1\n' * 7 for stem in STEMS4})
    expected = [f'{raw}/label/{stem}.txt: line {number}: frames 0 to 0 are none of the {6 + i} of the video'
                for i, stem in enumerate(STEMS4) for number in range(2, 9)]
    made = []
    for workers in (1, 2):
        assert prepare(raw, tmp_path / 'out', '--workers', workers) == 2
        printed = capsys.readouterr().err.splitlines()
        assert printed[:20] == [f'damaged: {line}' for line in expected[:20]]
        assert printed[20] == '… and 8 more' and printed[21].startswith('error: 28 damaged') and len(printed) == 22
        assert not folder_of(tmp_path / 'out')
    for workers in (1, 2):
        assert prepare(raw, tmp_path / f'out{workers}', '--skip_damaged', '--workers', workers) == 0
        again = capsys.readouterr()
        assert again.err.splitlines() == printed[:21] and ('in 1 processes' in again.out) == (workers == 1)
        made.append(folder_of(tmp_path / f'out{workers}'))
    assert made[0] == made[1]
    assert made[0]['PKUv1_damaged.txt'].decode().splitlines() == expected
    assert prepare(write_raw(raw, files), tmp_path / 'out1') == 0
    assert sorted(folder_of(tmp_path / 'out1')) == FILES


def test_carriage_returns_are_fine(files, raw, tmp_path):
    assert prepare(raw, tmp_path / 'lf') == 0
    write_raw(raw, {name: text.replace(b'\n', b'\r\n') + b'\r\n' for name, text in files.items()})
    assert prepare(raw, tmp_path / 'crlf') == 0
    assert folder_of(tmp_path / 'crlf') == folder_of(tmp_path / 'lf') and len(folder_of(tmp_path / 'lf')) == 2


# ---- output that cannot be written

@contextmanager
def no_file_larger_than(size):
    """As on a disk that is full: writing further into any file is an OSError."""
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, old[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)


def test_output_that_cannot_be_written(raw, tmp_path, capsys):
    (tmp_path / 'file').write_bytes(b'in the way')
    for out in (tmp_path / 'file', tmp_path / 'file/deeper'):
        capsys.readouterr()
        assert prepare(raw, out) == 2
        printed = capsys.readouterr()
        assert printed.out == '' and printed.err.startswith(f'error: {out}: cannot be written')
        assert printed.err.count('\n') == 1
    (tmp_path / f'out/{FILES[0]}').mkdir(parents=True)
    assert prepare(raw, tmp_path / 'out') == 2
    assert f'error: {tmp_path}/out/{FILES[0]}: cannot be written' in capsys.readouterr().err
    assert [path.name for path in (tmp_path / 'out').iterdir()] == FILES[:1]
    assert (tmp_path / 'file').read_bytes() == b'in the way'


@pytest.mark.parametrize('more', [[], ['--workers', '2']], ids=['one', 'two'])
@pytest.mark.parametrize('size', [2_000, 100_000, 400_000], ids=['all samples', 'x_train', 'x_test'])
def test_disk_that_fills_while_writing(size, more, raw, tmp_path, capsys):
    """A sample is 600 bytes a frame, and 180,000 when padded."""
    frames = b'\n'.join([b' '.join([b'0.5'] * 150)] * 10)
    write_raw(raw, {f'skeleton/{stem}.txt': frames for stem in STEMS4})
    write_raw(raw, {f'label/{stem}.txt': b'1,0,10,1' for stem in STEMS4})
    with no_file_larger_than(size):
        refused(capsys, raw, tmp_path / 'out', tmp_path / 'out', 'cannot be written', 'free space',
                FILES[0] if size > 2_000 else 'all are known', more=more)
    assert prepare(raw, tmp_path / 'out') == 0


def test_disk_that_is_full_in_the_end(raw, tmp_path, capsys, monkeypatch):
    """When the file is told to reach the disk; and for the list of damage."""
    def full(descriptor):
        raise OSError(errno.ENOSPC, 'No space left on device')

    with monkeypatch.context() as patch:
        patch.setattr(os, 'fsync', full)
        refused(capsys, raw, tmp_path / 'out', tmp_path / f'out/{FILES[0]}', 'No space left')
        write_raw(raw, {'label/0003-L.txt': b'0,0,1,1'})
        refused(capsys, raw, tmp_path / 'out', 'PKUv1_damaged.txt', 'No space left', more=['--skip_damaged'])
    assert prepare(raw, tmp_path / 'out', '--skip_damaged') == 0


def test_interruption_while_writing(raw, tmp_path, capsys, monkeypatch):
    """The files that were whole stay; of the one that was not, the older one does."""
    write_raw(tmp_path / 'out', {FILES[1]: b'old'})
    synced, fsync = [], os.fsync

    def interrupted(descriptor):
        synced.append(descriptor)
        if len(synced) == 2:
            raise KeyboardInterrupt
        fsync(descriptor)

    monkeypatch.setattr(os, 'fsync', interrupted)
    assert prepare(raw, tmp_path / 'out') == 130
    assert capsys.readouterr().err == 'interrupted\n'
    assert sorted(folder_of(tmp_path / 'out')) == FILES and (tmp_path / 'out' / FILES[1]).read_bytes() == b'old'
    assert list(contents(tmp_path / 'out' / FILES[0])) == MEMBERS


def open_when_read(pipe, process):
    """The pipe's end for writing, once the process has opened the other."""
    for _ in range(6000):
        try:
            return open(os.open(pipe, os.O_WRONLY | os.O_NONBLOCK), 'wb')
        except OSError as error:
            assert error.errno == errno.ENXIO and process.poll() is None, process.communicate()
            time.sleep(0.01)
    return pytest.fail('nobody reads the pipe')


def interrupt(process):
    """Ctrl-C, again and again as people do, until it ends: a signal may come just before a call that then blocks."""
    for _ in range(120):
        os.killpg(process.pid, signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(1)
            return
    pytest.fail('it goes on')


@pytest.mark.parametrize('workers, number', [(1, signal.SIGINT), (2, signal.SIGINT), (2, signal.SIGKILL)],
                         ids=['Ctrl-C', 'Ctrl-C of two', 'kill'])
def test_interruption_while_parsing(workers, number, raw, tmp_path):
    """While it waits for a pipe that takes a video's place; as a terminal does, to the whole group of processes."""
    write_raw(tmp_path / 'out', {FILES[0]: b'old'})
    pipe = raw / 'skeleton/0003-M.txt'
    pipe.unlink()
    os.mkfifo(pipe)
    process = subprocess.Popen(
        [sys.executable, ROOT / 'data/prepare_pku.py', '--phase', '1', '--raw', raw, '--out', tmp_path / 'out',
         '--workers', str(workers)], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=True, env=os.environ | {'OMP_NUM_THREADS': '1'},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler))   # which a shell's & ignores
    try:
        with open_when_read(pipe, process):
            if number == signal.SIGKILL:
                process.kill()
            else:
                interrupt(process)
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert (process.returncode, out, err) == ((-9, '', '') if number == signal.SIGKILL else (130, '', 'interrupted\n'))
    assert folder_of(tmp_path / 'out') == {FILES[0]: b'old'}


# ---- mutated texts: a result or a UserError, nothing else

PIECES = [b'', b'\n', b'\r', b'\r\n', b' ', b'\t', b'\x00', b'\x0b', b'\x0c', b'\x1a', b'\xff\xfe', '１'.encode(),
          b'#', b'"', b',', b'.', b'-', b'nan', b'inf', b'-Infinity', b'1e99', b'-1.1e6', b'9.9e5', b'1e999',
          b'1e-999', b'1_0', b'0x1', b'9' * 400, b'abc', b'52', b'-1', b'00000000000007', b'1e5', b'2**64',
          b'1,0,1,1\n', b' 0.5', b'0 ' * 150, b'.5', b'+3.', b'-0', b'7', b'12', b'0.1E+1', b' 0']


def mutate(text, changes):
    """`changes`: what is done where (0 to 1) and with what piece."""
    for what, where, piece in changes:
        at = int(where * len(text))
        end = min(len(text), at + 1 + len(piece) * 7)
        start = max(text.rfind(b' ', 0, at), text.rfind(b'\n', 0, at), text.rfind(b',', 0, at)) + 1
        stop = next((i for i in range(at, len(text)) if text[i:i + 1] in b' \n,'), len(text))
        text = {'insert': text[:at] + piece + text[at:], 'delete': text[:at] + text[end:], 'cut': text[:at],
                'overwrite': text[:at] + piece + text[at + len(piece):], 'token': text[:start] + piece + text[stop:],
                'end': text + piece, 'repeat': text[:end] + text[at:end] * 3 + text[end:],
                'drop': text[at:]}[what]
    return text


mutations = st.lists(st.tuples(
    st.sampled_from(['insert', 'delete', 'cut', 'overwrite', 'token', 'token', 'token', 'end', 'repeat', 'drop']),
    st.floats(0, 1), st.sampled_from(PIECES) | st.binary(max_size=6)), min_size=1, max_size=3)


def real_slice():
    return b'\n'.join(REAL.read_bytes().split(b'\n')[309:315]) + b'\n'


def made_slice():
    rng = np.random.default_rng(8)
    return b'\r\n'.join(make_video(rng, ['one body', 'two bodies', 'tiny', 'zero', 'cancelling'], 5))


@pytest.fixture(scope='module', params=[made_slice, pytest.param(real_slice, marks=needs_real)])
def skeleton(request):
    return request.param()


def plain_frames(text):
    """The frames of a text, float by float; None when they are none."""
    frames = []
    for line in text.rstrip(b' \t\r\n').split(b'\n'):
        tokens = re.split(rb'[ \t]+', line.removesuffix(b'\r').strip(b' \t'))
        if len(tokens) != 150 or not all(map(NUMBER.fullmatch, tokens)):
            return None
        frames.append([float(token) for token in tokens])
    return frames if all(abs(value) <= LARGEST for value in chain(*frames)) else None


@settings(bounded, max_examples=500)
@given(changes=mutations)
def test_mutated_skeletons(changes, skeleton):
    """What the plain reference reads is read, to the last bit, and all else is refused with its line."""
    for text in (mutate(skeleton, changes), mutate(mutate(skeleton, changes[:1]), changes[1:])):
        expected = plain_frames(text)
        with warnings.catch_warnings():
            warnings.simplefilter('error')
            try:
                frames = parse_skeleton(text)
            except UserError as error:
                assert expected is None, error
                assert re.match(r'line [1-9][0-9]*: ', str(error)) and '\n' not in str(error)
                assert int(str(error).split()[1][:-1]) <= text.count(b'\n') + 1 and len(str(error)) < 400
                continue
        assert expected is not None, text
        assert frames.dtype == np.float64 and frames.shape == (len(expected), 150)
        assert frames.tobytes() == np.array(expected).tobytes()


@settings(bounded, max_examples=500)
@given(changes=mutations, frames=st.integers(0, 400))
def test_mutated_label_rows(changes, frames):
    line = mutate(b'42,16,37,1', changes).replace(b'\n', b'')
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        try:
            label, start, end = parse_label(line, frames)
        except UserError as error:
            assert '\n' not in str(error) and len(str(error)) < 150
            fields = [field.strip(b' \t\r') for field in line.split(b',')]
            assert not (len(fields) == 4 and all(re.fullmatch(rb'[0-9]{1,9}', field) for field in fields[:3])
                        and 1 <= int(fields[0]) <= 51 and int(fields[1]) < min(int(fields[2]), frames))
            return
    assert 0 <= label < 51 and 0 <= start < end and start < frames
    assert [label + 1, start, end] == [int(field) for field in line.split(b',')[:3]] and line.count(b',') == 3


@settings(bounded, max_examples=120)
@given(in_skeleton=mutations, in_label=mutations, which=st.sampled_from([1, 2, 2, 3]))
def test_mutated_videos(in_skeleton, in_label, which, skeleton, tmp_path_factory):
    """Every row of the label file is a sample, or all zero, or damaged."""
    folder = tmp_path_factory.getbasetemp() / 'mutated'
    labels = b'42,0,3,1\n1,2,5,2\r\n51,4,9,1\n7,1,2,1\n'
    write_raw(folder, {'0002-L.txt': mutate(skeleton, in_skeleton) if which & 1 else skeleton,
                       'label.txt': mutate(labels, in_label) if which & 2 else labels})
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        try:
            parsed = parse(Video(folder / '0002-L.txt', folder / 'label.txt'))
        except UserError as error:
            assert '\n' not in str(error) and str(error)
            return
    rows = [line for line in (folder / 'label.txt').read_bytes().split(b'\n') if line.strip()]
    assert len(rows) == len(parsed.samples) + len(parsed.damaged) + sum(
        count for what, count in parsed.counts.items() if what.startswith('left out'))
    assert all(re.fullmatch(re.escape(str(folder)) + r'/label\.txt: line [1-9][0-9]*: .+', line)
               for line in parsed.damaged)
    names = [sample.name for sample in parsed.samples]
    assert all(one < other for one, other in pairwise(names))
    for sample in parsed.samples:
        assert re.fullmatch(r'0002-L_[0-9]{3,}', sample.name) and 0 <= sample.label < 51
        assert sample.rows.dtype == np.float32 and sample.rows.shape[1] == 150 and 1 <= len(sample.rows) <= 300
        assert np.isfinite(sample.rows).all()


# ---- the real sequence

@needs_real
def test_real_sequence(raw, tmp_path, capsys):
    """Body 2 appears at frame 312."""
    (raw / 'skeleton/A10N08-L.txt').symlink_to(REAL.resolve())
    write_raw(raw, {'label/A10N08-L.txt': b'10,0,312,1\n1,312,400,2\n51,20,320,1\n7,1039,1040,1\n3,900,2000,1\n'})
    split_again(raw, 'view', SPLIT % (b'A10N08-L', b''))
    assert prepare(raw, tmp_path / 'out', phase=2) == 0
    assert '1 clipped' in capsys.readouterr().out
    samples = list(samples_of(raw))
    for file, train in (('XSub', ['0002-L', '0002-M']), ('XView', ['A10N08-L'])):
        same(contents(tmp_path / f'out/PKUv2_{file}.npz'), members_of(samples, train))
    got = contents(tmp_path / 'out/PKUv2_XView.npz')
    x = got['x_train']
    assert got['name_train'].tolist() == [f'A10N08-L_00{number}' for number in range(1, 6)]
    assert got['y_train'].argmax(axis=1).tolist() == [9, 0, 50, 6, 2]
    assert not x[0, :, 75:].any() and x[0, :, :75].all() and not x[2, :292, 75:].any()
    assert x[1, :88, 75:].any(axis=1).all() and not x[1, 88:].any()
    assert x[2, 292:, 75:].any(axis=1).all() and not x[3, 1:].any() and not x[4, 140:].any() and x[4, 139].any()
