"""Preparation of PKU-MMD against a reference in plain Python: a float per token, a list slice per label line."""

import json
import math
import re
import warnings
from hashlib import sha256
from itertools import chain

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data import prepare_pku
from data.prepare_pku import parse_skeleton
from tests.data.raw_files import (
    GOLDEN,
    MEMBERS,
    SHARED,
    assert_equal,
    assert_refused,
    needs,
    read_folder,
    read_npz,
    replace_line,
    run_command,
    unpack,
    write_files,
)
from util.errors import UserError

KINDS = {'XSub': 'subject', 'XView': 'view'}
bounded = settings(derandomize=True, deadline=None, database=None,
                   suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])


def prepare(raw, out, *more, phase=1):
    return run_command(prepare_pku, '--phase', phase, '--raw', raw, '--out', out, '--workers', 1, *more)


def read_labels(path):
    """Line, class, start and end of each label."""
    for number, line in enumerate(path.read_text().splitlines(), 1):
        if line.strip():
            yield number, *(int(field) for field in line.split(',')[:3])


def read_samples(raw, without=()):
    """Video, line, class and frames of all samples of a raw folder that are not zero, without some videos."""
    for stem in sorted({path.stem for path in (raw / 'skeleton').iterdir()} - set(without)):
        frames = [[float(token) for token in line.split()]
                  for line in (raw / f'skeleton/{stem}.txt').read_text().rstrip().splitlines()]
        assert all(len(frame) == 150 for frame in frames)
        for number, action, start, end in read_labels(raw / f'label/{stem}.txt'):
            if math.fsum(chain(*frames[start:end])) != 0:
                yield stem, number, action, frames[start:end]


def expected_members(samples, train):
    """The members of the dataset file of such samples: the videos in `train`, and the rest."""
    members, samples = {}, list(samples)
    for split in ('train', 'test'):
        selected = [sample for sample in samples if (sample[0] in train) == (split == 'train')]
        x, y = np.zeros((len(selected), 300, 150), dtype=np.float32), np.zeros((len(selected), 51))
        for i, (_, _, action, frames) in enumerate(selected):
            for t, frame in enumerate(frames[:300]):
                x[i, t] = [np.float32(value) for value in frame]
            y[i, action - 1] = 1
        members |= {f'x_{split}': x, f'y_{split}': y}
        members[f'name_{split}'] = np.array([f'{stem}_{number:03}' for stem, number, *_ in selected], dtype=np.str_)
    return {member: members[member] for member in MEMBERS}


# ---- the authors' arrays ---------------------------------------------------------------------------------------------


@pytest.fixture
def golden(tmp_path):
    return lambda phase: next(unpack(SHARED / f'golden/pku_v{phase}_raw.tar.xz', tmp_path / 'golden').iterdir())


@needs('golden/pku_v1_raw.tar.xz')
@pytest.mark.parametrize('phase', [1, 2])
def test_golden(phase, golden, tmp_path, capsys):
    """Every number of the authors' program, with one process and with two, and the names of the samples."""
    raw, expected = golden(phase), read_npz(SHARED / f'golden/pku_v{phase}_expected.npz')
    assert prepare(raw, tmp_path / 'one', phase=phase) == 0
    assert prepare(raw, tmp_path / 'two', '--workers', 2, phase=phase) == 0
    files = read_folder(tmp_path / 'one')
    assert sorted(files) == [f'PKUv{phase}_{file}.npz' for file in KINDS] and read_folder(tmp_path / 'two') == files
    samples = list(read_samples(raw))
    for file, kind in KINDS.items():
        members = read_npz(tmp_path / f'one/PKUv{phase}_{file}.npz')
        assert_equal({member: members[member] for member in MEMBERS[:4]},
                     {member: expected[f'PKUv{phase}_{file}/{member}'] for member in MEMBERS[:4]})
        lines = next(raw.glob(f'cross?{kind}*')).read_text().splitlines()
        for split, line in (('train', 1), ('test', 3)):
            assert members[f'name_{split}'].tolist() == [f'{stem}_{number:03}' for stem, number, *_ in samples
                                                         if stem in lines[line].split(', ')]
    printed = capsys.readouterr().out
    assert '1 omitted: all coordinates are zero' in printed and '12 files' in printed and 'clipped' not in printed


# The golden raw files are cut after so many frames in the excerpt; labels that start later are left out.
CUTS = {1: {'0003-M': 385, '0007-L': 100}, 2: {'A01N04-M': 75, 'A02N01-L': 31, 'A02N01-R': 45}}
NAMES = {   # line 1 of 0003-M and of A01N04-M is all zero
    'PKUv1_XSub': (['0007-L_001', '0007-L_002'], ['0003-M_002']),
    'PKUv1_XView': (['0003-M_002'], ['0007-L_001', '0007-L_002']),
    'PKUv2_XSub': (['A02N01-L_001', 'A02N01-R_001', 'A02N01-R_002'], ['A01N04-M_002']),
    'PKUv2_XView': (['A01N04-M_002', 'A02N01-R_001', 'A02N01-R_002'], ['A02N01-L_001']),
}


@pytest.fixture(scope='module')
def excerpt(tmp_path_factory):
    return unpack(GOLDEN / 'pku_excerpt_raw.tar.xz', tmp_path_factory.mktemp('excerpt'))


@pytest.mark.parametrize('phase, parts', [
    (1, ['3 samples of 3 classes, 376 frames (17 to 300 per sample)', '2 clipped', '1 cut at 300 frames', '1 omitted',
         '2 files']),
    (2, ['4 samples of 4 classes, 76 frames (13 to 25 per sample)', '2 clipped', '1 omitted', '3 files'])])
def test_golden_excerpt(phase, parts, excerpt, tmp_path, capsys):
    """The authors' arrays in a clone without MAMP_SHARED, as SHA-256 of their bytes."""
    assert prepare(excerpt / f'pku_v{phase}', tmp_path, phase=phase) == 0
    printed = capsys.readouterr()
    assert printed.err == '' and all(part in printed.out for part in [*parts, '0 damaged\n']), printed
    sums = json.loads((GOLDEN / 'pku_excerpt_sha256.json').read_text())
    for file in KINDS:
        name = f'PKUv{phase}_{file}'
        members = read_npz(tmp_path / f'{name}.npz')
        assert list(members) == MEMBERS
        for split, names in zip(('train', 'test'), NAMES[name], strict=True):
            x, y = members[f'x_{split}'], members[f'y_{split}']
            assert members[f'name_{split}'].tolist() == names
            assert (x.shape, x.dtype, y.shape, y.dtype) == ((len(names), 300, 150), np.float32, (len(names), 51),
                                                            np.float64)
        assert {member: sha256(members[member].tobytes()).hexdigest() for member in MEMBERS[:4]} == sums[name]


@needs('golden/pku_v1_raw.tar.xz')
@pytest.mark.parametrize('phase', [1, 2])
def test_golden_excerpt_is_cut_from_the_golden_files(phase, excerpt, golden):
    raw, part, cuts = golden(phase), excerpt / f'pku_v{phase}', CUTS[phase]
    assert {path.stem for path in (part / 'skeleton').iterdir()} == set(cuts)
    for stem, cut in cuts.items():
        lines = (raw / f'skeleton/{stem}.txt').read_bytes().splitlines()
        assert (part / f'skeleton/{stem}.txt').read_bytes().splitlines() == lines[:cut]
        lines = (raw / f'label/{stem}.txt').read_bytes().splitlines()
        assert (part / f'label/{stem}.txt').read_bytes().splitlines() == [
            line for line in lines if int(line.split(b',')[1]) < cut]
    starts = {(stem, number): start for stem in {sample[0] for sample in read_samples(raw)}
              for number, _, start, _ in read_labels(raw / f'label/{stem}.txt')}
    samples = [(stem, starts[stem, number]) for stem, number, *_ in read_samples(raw)]
    expected = read_npz(SHARED / f'golden/pku_v{phase}_expected.npz')
    sums = json.loads((GOLDEN / 'pku_excerpt_sha256.json').read_text())
    for file, kind in KINDS.items():
        whole_split, split = (next(folder.glob(f'cross?{kind}*')).read_text().splitlines() for folder in (raw, part))
        for name, line in (('train', 1), ('test', 3)):
            videos = whole_split[line].split(', ')
            assert split[line].split(', ') == [stem for stem in videos if stem in cuts]
            rows = [row for row in samples if row[0] in videos]
            kept = [i for i, (stem, start) in enumerate(rows) if start < cuts.get(stem, 0)]
            x, y = (expected[f'PKUv{phase}_{file}/{axis}_{name}'][kept] for axis in 'xy')
            for clip, i in zip(x, kept, strict=True):
                clip[cuts[rows[i][0]] - rows[i][1]:] = 0
            assert sha256(x.tobytes()).hexdigest() == sums[f'PKUv{phase}_{file}'][f'x_{name}']
            assert sha256(y.tobytes()).hexdigest() == sums[f'PKUv{phase}_{file}'][f'y_{name}']


# ---- random folders against the reference ----------------------------------------------------------------------------

STEMS = ['0002-L', '0002-M', '0007-R', 'A01N02-M', 'A01N02', 'b_1_001', '0002']
SPELLINGS = ['{:.6f}', '{!r}', '{:.3e}', '{:+.2f}', '{:.0f}.', '{:.17g}']


def frame_text(rng, kind):
    """A line of 150 numbers, in the spellings that numbers have."""
    if kind == 'zero':
        return b' '.join(rng.choice([b'0', b'0.000000', b'-0.0', b'0e5'], 150))
    if kind == 'cancelling':    # sums to zero in any order
        return b' '.join([b'0.5', b'-0.5', b'2', b'-2', b'0'] * 30)
    if kind == 'tiny':          # zero in float32, not in float64
        return b' '.join([b'1e-60'] * 150)
    values = rng.normal(size=150) * 3
    tokens = [SPELLINGS[way].format(float(value)) for way, value in zip(rng.integers(0, 6, 150), values, strict=True)]
    tokens[75:] = ['0.000000'] * 75 if kind == 'one body' else tokens[75:]
    tokens[3:140] = ['1'] * 137 if kind == 'short' else tokens[3:140]
    return ' '.join(tokens).encode()


def video_text(rng, kinds, frames):
    return b'\n'.join(frame_text(rng, kinds[t * len(kinds) // frames]) for t in range(frames))


@st.composite
def plans(draw):
    """Videos {name: (frames, their kinds, labels)}; training videos per protocol; line end; seed."""
    videos = {}
    for stem in draw(st.lists(st.sampled_from(STEMS), min_size=1, max_size=4, unique=True)):
        if draw(st.integers(0, 3)):
            frames = draw(st.integers(1, 9))
            special = draw(st.sampled_from(['cancelling', 'tiny']))  # together their sum depends on the order
            kinds = draw(st.lists(st.sampled_from(['two bodies', 'one body', 'zero', special]), min_size=1, max_size=4))
        else:
            frames = draw(st.sampled_from([301, 330]))
            kinds = draw(st.sampled_from([['short'], ['zero', 'short'], ['cancelling'], ['zero', 'tiny']]))
        labels = []
        for _ in range(draw(st.integers(1, 4))):
            start = draw(st.integers(0, min(frames - 1, 40)))
            end = draw(st.integers(max(start + 1, frames - 12), frames + 9))
            labels.append((draw(st.integers(1, 51)), start, end, draw(st.sampled_from([',', ', ', '\t,']))))
        videos[stem] = frames, kinds, labels
    train = {file: draw(st.lists(st.sampled_from(list(videos)), min_size=1, unique=True)) for file in KINDS}
    return videos, train, draw(st.sampled_from(['\n', '\r\n'])), draw(st.integers(0, 2**32))


def write_plan(plan, folder):
    videos, train, end, seed = plan
    rng = np.random.default_rng(seed)
    files = {f'cross_{kind}.txt': f'train\n{", ".join(train[file])}\ntest\n\n' for file, kind in KINDS.items()}
    for stem, (frames, kinds, labels) in videos.items():
        files[f'skeleton/{stem}.txt'] = video_text(rng, kinds, frames).decode() + end * int(rng.integers(3))
        files[f'label/{stem}.txt'] = '\n'.join(comma.join(map(str, [action, start, stop, 1]))
                                               for action, start, stop, comma in labels) + end * int(rng.integers(3))
    return write_files(folder, {name: text.replace('\r\n', '\n').replace('\n', end).encode()
                                for name, text in files.items()})


@settings(bounded, max_examples=30)
@given(plan=plans(), phase=st.sampled_from([1, 2]))
def test_random_folders_equal_the_reference(plan, phase, tmp_path_factory, capsys):
    raw, train = write_plan(plan, tmp_path_factory.mktemp('raw')), plan[1]
    samples = list(read_samples(raw))
    capsys.readouterr()
    code, printed = prepare(raw, raw / 'out', phase=phase), capsys.readouterr()
    if not samples:
        assert code == 2 and 'no usable sample' in printed.err and not read_folder(raw / 'out')
        return
    assert code == 0 and printed.err == '' and len(read_folder(raw / 'out')) == 2
    for file in KINDS:
        members = read_npz(raw / f'out/PKUv{phase}_{file}.npz')
        assert_equal(members, expected_members(samples, train[file]))
    ends = {path.stem: len(path.read_text().rstrip().splitlines()) for path in (raw / 'skeleton').iterdir()}
    labels = [(stem, end) for stem in ends for _, _, _, end in read_labels(raw / f'label/{stem}.txt')]
    counts = {'clipped': sum(end > ends[stem] for stem, end in labels), 'omitted: all': len(labels) - len(samples),
              'cut at 300': sum(len(frames) > 300 for *_, frames in samples)}
    for event, count in counts.items():
        assert re.findall(rf'^(\d+) {event}', printed.out, re.MULTILINE) == [str(count)] * (count > 0), event


# ---- a small folder --------------------------------------------------------------------------------------------------

SMALL = ['0002-L', '0002-M', '0003-L', '0003-M']
SPLIT = b'Training videos:\n%s\nValidataion videos:\n%s\n'


@pytest.fixture
def raw(tmp_path):
    """Four videos of 6 to 9 frames with two labels each."""
    rng, files = np.random.default_rng(3), {}
    for number, stem in enumerate(SMALL):
        files[f'skeleton/{stem}.txt'] = video_text(rng, ['two bodies'], 6 + number) + b'\n'
        files[f'label/{stem}.txt'] = b'%d,0,4,1\n%d,3,6,2\n' % (number + 1, 51 - number)
    files |= {'cross-subject.txt': SPLIT % (b'0002-L, 0002-M', b'0003-L, 0003-M'),
              'cross-view.txt': SPLIT % (b'0002-M, 0003-M', b'0002-L, 0003-L')}
    return write_files(tmp_path / 'raw', files)


def refused(capsys, raw, out, *parts, more=(), damaged=0):
    write_files(out, {'PKUv1_XSub.npz': b'old'})
    lines = assert_refused(capsys, out, prepare_pku, '--phase', 1, '--raw', raw, '--out', out, '--workers', 1, *more,
                           parts=parts, damaged=damaged)
    return [line.removeprefix('damaged: ') for line in lines[:-1]]


def assert_skipped(capsys, raw, out, damaged, samples):
    """Check that --skip_damaged writes these samples, and the list of damage."""
    assert prepare(raw, out, '--skip_damaged') == 0
    printed = capsys.readouterr()
    assert printed.err.splitlines() == [f'damaged: {line}' for line in damaged]
    assert (out / 'PKUv1_damaged.txt').read_text() == ''.join(f'{line}\n' for line in damaged)
    for file, train in (('XSub', ['0002-L', '0002-M']), ('XView', ['0002-M', '0003-M'])):
        assert_equal(read_npz(out / f'PKUv1_{file}.npz'), expected_members(samples, train))


def test_other_files_are_ignored_and_protocols_selected(raw, tmp_path, capsys):
    expected = expected_members(read_samples(raw), ['0002-L', '0002-M'])
    write_files(raw, {'skeleton/._0002-L.txt': b'\x00\x05', 'skeleton/notes.md': b'x', 'label/.DS_Store': b'\x00',
                      'README.txt': b'', 'cross-subject.pdf': b'', '._cross-view.txt': b'\x00'})
    assert prepare(raw, tmp_path / 'both') == 0
    both = read_folder(tmp_path / 'both')
    assert sorted(both) == ['PKUv1_XSub.npz', 'PKUv1_XView.npz']
    assert_equal(read_npz(tmp_path / 'both/PKUv1_XSub.npz'), expected)
    (raw / 'cross-subject.txt').unlink()
    assert prepare(raw, tmp_path / 'view', '--protocol', 'xview') == 0
    assert read_folder(tmp_path / 'view') == {'PKUv1_XView.npz': both['PKUv1_XView.npz']}
    refused(capsys, raw, tmp_path / 'out', '--protocol xset', 'xsub, xview', more=['--protocol', 'xset'])


def test_default_folders(raw, tmp_path, monkeypatch, phase=2):
    monkeypatch.setattr(prepare_pku, 'HERE', tmp_path / 'data')
    (tmp_path / 'data/pku_raw').mkdir(parents=True)
    raw.rename(tmp_path / f'data/pku_raw/v{phase}')
    assert prepare_pku.main(['--phase', str(phase)]) == 0
    assert sorted(read_folder(tmp_path / f'data/pku_v{phase}')) == [f'PKUv{phase}_{file}.npz' for file in KINDS]


def test_zeros_are_tested_before_the_cut(raw, tmp_path, capsys):
    """Of 303 frames the first 300 are zero."""
    zero, one = b' '.join([b'0'] * 150) + b'\n', b' '.join([b'1.5'] * 150) + b'\n'
    write_files(raw, {'skeleton/0002-L.txt': zero * 300 + one * 3,
                      'label/0002-L.txt': b'1,0,300,1\n2,0,301,1\n3,3,303,1\n4,2,303,1\n5,2,400,1\n6,302,303,1\n'})
    assert prepare(raw, tmp_path / 'out') == 0
    printed = capsys.readouterr().out
    assert '\n1 omitted' in printed and '\n3 cut at 300' in printed and '\n1 clipped' in printed, printed
    members = read_npz(tmp_path / 'out/PKUv1_XSub.npz')
    assert_equal(members, expected_members(read_samples(raw), ['0002-L', '0002-M']))
    assert members['x_train'][:5].sum(axis=(1, 2)).tolist() == [0, 675, 450, 450, 225]


# ---- split files -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('name, text', [
    ('cross-subject.txt', SPLIT % (b'0002-L, 0003-M', b'0002-M, 0003-L')),
    ('cross_subject_v2.txt', SPLIT % (b'0002-L, 0003-M,,\t ,', b'')),
    ('CROSS-SUBJECT.TXT', b'\xef\xbb\xbf' + SPLIT % (b' \t0003-M,\t0002-L', b'')),
    ('Cross_Subject-v1.txt', (SPLIT % (b'0002-L ,0003-M, ', b'0002-M')).replace(b'\n', b'\r\n')),
    ('cross_subject.txt', b'Trainingsvideos f\xfcr\n0002-L, 0003-M')])
def test_spellings_of_split_files(name, text, raw, tmp_path):
    (raw / 'cross-subject.txt').unlink()
    (raw / name).write_bytes(text)
    assert prepare(raw, tmp_path / 'out', '--protocol', 'xsub') == 0
    members = read_npz(tmp_path / 'out/PKUv1_XSub.npz')
    assert members['name_train'].tolist() == ['0002-L_001', '0002-L_002', '0003-M_001', '0003-M_002']
    assert members['name_test'].tolist() == ['0002-M_001', '0002-M_002', '0003-L_001', '0003-L_002']


def test_split_files_that_cannot_be_used(raw, tmp_path, capsys):
    path, out = raw / 'cross-subject.txt', tmp_path / 'out'
    write_files(raw, {'cross_subject_v2.txt': b''})
    refused(capsys, raw, out, 'cross-subject.txt', 'cross_subject_v2.txt', 'keep one')
    (raw / 'cross_subject_v2.txt').unlink()
    for text in (b'', b'title', b'title\n , ,\t,\n0002-L'):
        path.write_bytes(text)
        refused(capsys, raw, out, path, 'line 2')
    path.write_bytes(SPLIT % (b'0098-R, 0002-L, 0002-l', b'0099-L'))
    assert refused(capsys, raw, out, '--skip_damaged', damaged=2) == [
        f'{path}: line 2: there is no video {name}' for name in ('0002-l', '0098-R')]
    path.unlink()
    refused(capsys, raw, out, 'cross-subject.txt', 'has none')


# ---- damaged files ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('change, line, part', [
    (lambda text: replace_line(text, 3, text.split(b'\n')[2] + b' 1'), 3, '151 fields'),
    (lambda text: re.sub(rb' \S+\n', b'\n', text), 1, '149 fields'),
    (lambda text: replace_line(text, 2, b'abc ' * 150), 2, 'abc'),
    (lambda text: replace_line(text, 4, b'1_0 ' * 150), 4, '1_0'),
    (lambda text: replace_line(text, 6, b'-inf ' * 150), 6, 'not finite'),
    (lambda text: replace_line(text, 5, b'-1000000.1 ' * 150), 5, 'too large'),
    (lambda text: text.replace(b'\n', b'\n \t\r\n', 1), 2, '0 fields'), (lambda text: text[:-200], 8, 'fields'),
    (lambda text: text.replace(b'\n', b'\r'), 1, 'fields'), (lambda text: text + bytes(512), 9, 'not plain text'),
    (lambda text: b'\r\n \n', 1, '0 fields')])
def test_damaged_skeletons(change, line, part, raw, tmp_path, capsys):
    """0003-L has eight frames; the other videos are kept."""
    path = raw / 'skeleton/0003-L.txt'
    samples = list(read_samples(raw, without=['0003-L']))
    path.write_bytes(change(path.read_bytes()))
    damaged = refused(capsys, raw, tmp_path / 'out', '1 damaged', '--skip_damaged', 'PKUv1_damaged.txt', damaged=1)
    assert damaged[0].startswith(f'{path}: line {line}: ') and part in damaged[0], damaged
    assert_skipped(capsys, raw, tmp_path / 'out', damaged, samples)


@pytest.mark.parametrize('lines, damaged', [
    ([b'7,1,3,1', b'0,3,6,1', b'52,3,6,1'], {2: 'class 0', 3: 'class 52'}),
    ([b'class,start,end,confidence', b'7,1,3,1', b'7.0,3,6,1'], {1: 'class,start,end', 3: '7.0'}),
    ([b'7,8,9,1', b'7,7,9,1', b'8,3,3,1', b'7,5,2,1'], {1: 'frames 8 to 9', 3: 'frames 3 to 3', 4: 'frames 5 to 2'}),
    ([b'7,-3,6,1', b'7,1,6,1'], {1: '-3'}), ([b'7,1,6', b'7,1,6,1', b'7,1,6,1,1'], {1: '7,1,6', 3: '7,1,6,1,1'}),
    ([b'\x00\xff\x80,1,2,3', b'7,1,6,1', b'1' * 5000 + b',1,6,1'], {1: 'class,start,end', 3: 'class,start,end'}),
    ([b'', b'7,1,6,1\r', b' \t', b'7,9,10,1\r', b'8,1,6,2'], {4: 'frames 9 to 10'})])
def test_damaged_labels(lines, damaged, raw, tmp_path, capsys):
    """Only the damaged lines are left out; the others keep their names."""
    path = raw / 'label/0003-L.txt'
    path.write_bytes(b'\n'.join(lines))
    listed = refused(capsys, raw, tmp_path / 'out', f'{len(damaged)} damaged', damaged=len(damaged))
    for line, (number, part) in zip(listed, damaged.items(), strict=True):
        assert line.startswith(f'{path}: line {number}: ') and part in line and len(line) < len(str(path)) + 150
    path.write_bytes(b'\n'.join(b'' if number in damaged else line for number, line in enumerate(lines, 1)))
    samples = list(read_samples(raw))
    path.write_bytes(b'\n'.join(lines))
    assert_skipped(capsys, raw, tmp_path / 'out', listed, samples)


def test_missing_and_empty_files(raw, tmp_path, capsys):
    out = tmp_path / 'out'
    samples = list(read_samples(raw, without=['0003-L']))
    write_files(raw, {'label/0003-L.txt': b' \t\n'})
    listed = refused(capsys, raw, out, damaged=1)
    assert listed == [f'{raw}/skeleton/0003-L.txt: {raw}/label/0003-L.txt is empty']
    assert_skipped(capsys, raw, out, listed, samples)
    (raw / 'label/0003-L.txt').unlink()
    write_files(raw, {'label/0001-R.txt': b'1,0,1,1'})
    listed = refused(capsys, raw, out, damaged=2)
    assert listed == [f'{raw}/skeleton/0003-L.txt: there is no label/0003-L.txt',
                      f'{raw}/label/0001-R.txt: there is no skeleton/0001-R.txt']
    refused(capsys, raw / 'absent', out, raw / 'absent/skeleton', 'does not exist', '--raw')
    for path in (raw / 'label').iterdir():
        path.unlink()
    refused(capsys, raw, out, raw / 'label', 'no .txt file')


def test_no_sample_at_all(raw, tmp_path, capsys):
    write_files(raw, {f'skeleton/{stem}.txt': b'\n'.join([b' '.join([b'0'] * 150)] * 9) for stem in SMALL})
    refused(capsys, raw, tmp_path / 'out', raw, 'no usable sample')


# ---- random damage ---------------------------------------------------------------------------------------------------

NUMBER = re.compile(rb'[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?')
PIECES = [b'', b'\n', b'\r', b'\r\n', b' ', b'\t', b'\x00', b'\x0c', b'\xff\xfe', '１'.encode(), b'#', b'"', b',', b'.',
          b'-', b'nan', b'-Infinity', b'1e99', b'-1.1e6', b'9.9e5', b'1e-999', b'1_0', b'0x1', b'9' * 400, b'abc',
          b'-1', b'1e5', b' 0.5', b'0 ' * 150, b'.5', b'+3.', b'7', b'0.1E+1']


def damage(text, changes):
    """`changes`: kind, place (0 to 1) and piece of text."""
    for kind, place, piece in changes:
        at = int(place * len(text))
        start = max(text.rfind(b' ', 0, at), text.rfind(b'\n', 0, at)) + 1
        stop = next((i for i in range(at, len(text)) if text[i:i + 1] in b' \n'), len(text))
        text = {'insert': text[:at] + piece + text[at:], 'delete': text[:at] + text[at + 1 + len(piece) * 7:],
                'cut': text[:at], 'token': text[:start] + piece + text[stop:], 'end': text + piece}[kind]
    return text


changes = st.lists(st.tuples(st.sampled_from(['insert', 'delete', 'cut', 'token', 'token', 'end']), st.floats(0, 1),
                             st.sampled_from(PIECES)), min_size=1, max_size=3)


def parse_plainly(text):
    """The frames of a text, float by float; None if it is damaged."""
    frames = []
    for line in text.rstrip(b' \t\r\n').split(b'\n'):
        tokens = re.split(rb'[ \t]+', line.removesuffix(b'\r').strip(b' \t'))
        if len(tokens) != 150 or not all(map(NUMBER.fullmatch, tokens)):
            return None
        frames.append([float(token) for token in tokens])
    return frames if all(abs(value) <= 1e6 for value in chain(*frames)) else None


@settings(bounded, max_examples=300)
@given(changes=changes)
def test_random_damage_of_skeletons(changes):
    """What the plain reference reads is read to the last bit, all else is refused with its line."""
    rng = np.random.default_rng(8)
    kinds = ['one body', 'two bodies', 'tiny', 'zero', 'cancelling']
    text = damage(video_text(rng, kinds, 5).replace(b'\n', b'\r\n'), changes)
    expected = parse_plainly(text)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        try:
            frames = parse_skeleton(text)
        except UserError as error:
            assert expected is None, error
            assert re.match(r'line [1-9][0-9]*: ', str(error)) and '\n' not in str(error) and len(str(error)) < 600
            return
    assert expected is not None, text
    assert frames.dtype == np.float64 and frames.tobytes() == np.array(expected).tobytes()


# ---- a real sequence -------------------------------------------------------------------------------------------------


@needs('data/pku_raw/A10N08-L.txt')
def test_real_sequence(raw, tmp_path, capsys):
    """Body 2 appears at frame 312."""
    (raw / 'skeleton/A10N08-L.txt').symlink_to((SHARED / 'data/pku_raw/A10N08-L.txt').resolve())
    write_files(raw, {'label/A10N08-L.txt': b'10,0,312,1\n1,312,400,2\n51,20,320,1\n7,1039,1040,1\n3,900,2000,1\n',
                      'cross-view.txt': SPLIT % (b'A10N08-L', b'')})
    assert prepare(raw, tmp_path / 'out', phase=2) == 0
    assert '1 clipped' in capsys.readouterr().out
    samples = list(read_samples(raw))
    for file, train in (('XSub', ['0002-L', '0002-M']), ('XView', ['A10N08-L'])):
        assert_equal(read_npz(tmp_path / f'out/PKUv2_{file}.npz'), expected_members(samples, train))
    x = read_npz(tmp_path / 'out/PKUv2_XView.npz')['x_train']
    assert not x[0, :, 75:].any() and x[0, :, :75].all() and not x[2, :292, 75:].any()
    assert x[1, :88, 75:].any(axis=1).all() and not x[1, 88:].any() and x[2, 292:, 75:].any(axis=1).all()
