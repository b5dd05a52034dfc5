"""Preparation of PKU-MMD against a reference in plain Python: a float per token, a list slice per label line."""

import json
import math
import re
import warnings
from hashlib import sha256
from itertools import chain

import numpy as np
import pytest
from hypothesis import given

from data import prepare_pku
from data.prepare_pku import parse_skeleton
from tests.data.raw_files import (
    CHANGES,
    FUZZING,
    GOLDEN,
    MEMBERS,
    SHARED,
    assert_equal,
    assert_refused,
    damage,
    needs,
    read_folder,
    read_npz,
    run_command,
    unpack,
    write_files,
)
from util.errors import UserError

KINDS = {'XSub': 'subject', 'XView': 'view'}


def prepare(raw, out, *more, phase=1):
    return run_command(prepare_pku, '--phase', phase, '--raw', raw, '--out', out, '--workers', 1, *more)


def read_samples(raw, without=()):
    """Video, line, class and frames of all samples of a raw folder that are not zero, without some videos."""
    for stem in sorted({path.stem for path in (raw / 'skeleton').iterdir()} - set(without)):
        frames = [[float(token) for token in line.split()]
                  for line in (raw / f'skeleton/{stem}.txt').read_text().rstrip().splitlines()]
        for number, line in enumerate((raw / f'label/{stem}.txt').read_text().splitlines(), 1):
            if line.strip():
                action, start, end = map(int, line.split(',')[:3])
                if math.fsum(chain(*frames[start:end])) != 0:
                    yield stem, number, action, frames[start:end]


def expected_members(samples, train):
    """The members of the dataset file of such samples: the videos in `train`, and the rest."""
    members, samples = {}, list(samples)
    for split in ('train', 'test'):
        selected = [sample for sample in samples if (sample[0] in train) == (split == 'train')]
        x, y = np.zeros((len(selected), 300, 150), dtype=np.float32), np.zeros((len(selected), 51))
        for i, (_, _, action, frames) in enumerate(selected):
            x[i, :len(frames)] = np.float32(frames[:300])
            y[i, action - 1] = 1
        members |= {f'x_{split}': x, f'y_{split}': y}
        members[f'name_{split}'] = np.array([f'{stem}_{number:03}' for stem, number, *_ in selected], dtype=np.str_)
    return {member: members[member] for member in MEMBERS}


def check_by_reference(raw, out, name, samples=None):
    """Compare a dataset file with the samples of a raw folder, or with others; returns its members."""
    members = read_npz(out / f'{name}.npz')
    lines = next(raw.glob(f'cross?{KINDS[name[6:]]}*')).read_text().splitlines()
    assert_equal(members, expected_members(samples or read_samples(raw), lines[1].split(', ')))
    return members


@needs('golden/pku_v1_raw.tar.xz')
@pytest.mark.parametrize('phase', [1, 2])
def test_golden(phase, tmp_path):
    """Every number of the authors' program, with one process and with two, and the names of the samples."""
    raw = next(unpack(SHARED / f'golden/pku_v{phase}_raw.tar.xz', tmp_path / 'raw').iterdir())
    assert prepare(raw, tmp_path / 'one', phase=phase) == 0
    assert prepare(raw, tmp_path / 'two', '--workers', 2, phase=phase) == 0
    files = read_folder(tmp_path / 'one')
    assert sorted(files) == [f'PKUv{phase}_{file}.npz' for file in KINDS] and read_folder(tmp_path / 'two') == files
    arrays = read_npz(SHARED / f'golden/pku_v{phase}_expected.npz')
    for file in KINDS:
        members = check_by_reference(raw, tmp_path / 'one', f'PKUv{phase}_{file}')
        assert_equal({member: members[member] for member in MEMBERS[:4]},
                     {member: arrays[f'PKUv{phase}_{file}/{member}'] for member in MEMBERS[:4]})


@pytest.mark.parametrize('phase', [1, 2])
def test_golden_excerpt(phase, tmp_path):
    """The authors' arrays in a clone without MAMP_SHARED, as SHA-256 of their bytes."""
    raw = unpack('pku_excerpt_raw.tar.xz', tmp_path) / f'pku_v{phase}'
    assert prepare(raw, tmp_path, phase=phase) == 0
    sums = json.loads((GOLDEN / 'pku_excerpt_sha256.json').read_text())
    for file in KINDS:
        name = f'PKUv{phase}_{file}'
        members = check_by_reference(raw, tmp_path, name)
        assert {member: sha256(members[member].tobytes()).hexdigest() for member in MEMBERS[:4]} == sums[name]


LINES = {'zero': '0 -0.0 ' * 75, 'cancelling': '0.5 -0.5 2 -2 0 ' * 30, 'tiny': '1e-60 ' * 150}   # tiny: 0 in float32


def video_text(rng, kinds, frames):
    return '\n'.join(LINES.get(kinds[t * len(kinds) // frames]) or ' '.join(map(repr, rng.normal(size=150).tolist()))
                     for t in range(frames)).encode()


def random_folder(rng, folder):
    """One to four videos with one to four labels each, which may start or end beyond the video."""
    stems = rng.permutation(['0002-L', '0002-M', 'A01N02-M', 'A01N02', 'b_1_001', '0002'])[:rng.integers(1, 5)].tolist()
    end, files = [b'\n', b'\r\n'][rng.integers(2)], {}
    for stem in stems:
        frames = int(rng.choice([*range(1, 10), 301, 330]))
        kinds = ['zero', str(rng.choice(['cancelling', 'tiny']))]       # the sum of both would depend on the order
        kinds = rng.choice(kinds + ['two bodies'] * 2 * (frames < 300), rng.integers(1, 4))
        files[f'skeleton/{stem}.txt'] = video_text(rng, kinds, frames)
        starts = rng.integers(0, min(frames, 40), rng.integers(1, 5))
        files[f'label/{stem}.txt'] = '\n'.join(
            f'{rng.integers(1, 52)},{start}, {max(start + 1, frames + rng.integers(-9, 9))}\t,1' for start in starts
        ).encode()
    for kind in KINDS.values():
        files[f'cross_{kind}.txt'] = f'train\n{", ".join(stems[rng.integers(len(stems)):])}\ntest\n\n'.encode()
    return write_files(folder, {name: text.replace(b'\n', end) + end * int(rng.integers(3))
                                for name, text in files.items()})


@pytest.mark.parametrize('seed', range(30))
def test_random_folders_equal_the_reference(seed, tmp_path, capsys):
    raw = random_folder(np.random.default_rng([7, seed]), tmp_path)
    samples = list(read_samples(raw))
    assert prepare(raw, raw / 'out') == (0 if samples else 2)
    assert samples or 'no usable sample' in capsys.readouterr().err and not read_folder(raw / 'out')
    for file in KINDS if samples else ():
        check_by_reference(raw, raw / 'out', f'PKUv1_{file}')


SPLIT = b'Training videos:\n%s\nValidataion videos:\n%s\n'


@pytest.fixture
def raw(tmp_path):
    """Four videos of 6 to 9 frames with two labels each."""
    rng, files = np.random.default_rng(3), {}
    for number, stem in enumerate(('0002-L', '0002-M', '0003-L', '0003-M')):
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
    assert capsys.readouterr().err.splitlines() == [f'damaged: {line}' for line in damaged]
    assert (out / 'PKUv1_damaged.txt').read_text() == ''.join(f'{line}\n' for line in damaged)
    for file in KINDS:
        check_by_reference(raw, out, f'PKUv1_{file}', samples)


def test_other_files_are_ignored_and_protocols_selected(raw, tmp_path, capsys):
    samples = list(read_samples(raw))
    write_files(raw, {'skeleton/._0002-L.txt': b'\x00\x05', 'label/.DS_Store': b'\x00', 'README.txt': b'',
                      '._cross-view.txt': b'\x00'})
    (raw / 'cross-subject.txt').unlink()
    assert prepare(raw, tmp_path / 'view', '--protocol', 'xview') == 0
    assert list(read_folder(tmp_path / 'view')) == ['PKUv1_XView.npz']
    check_by_reference(raw, tmp_path / 'view', 'PKUv1_XView', samples)
    refused(capsys, raw, tmp_path / 'out', '--protocol xset', 'xsub, xview', more=['--protocol', 'xset'])


def test_zeros_are_tested_before_the_cut(raw, tmp_path, capsys):
    """Of 303 frames the first 300 are zero."""
    write_files(raw, {'skeleton/0002-L.txt': (b'0 ' * 150 + b'\n') * 300 + (b'1.5 ' * 150 + b'\n') * 3,
                      'label/0002-L.txt': b'1,0,300,1\n2,0,301,1\n3,3,303,1\n4,2,303,1\n5,2,400,1\n6,302,303,1\n'})
    assert prepare(raw, tmp_path) == 0
    members = check_by_reference(raw, tmp_path, 'PKUv1_XSub')
    printed = capsys.readouterr().out
    assert '\n1 omitted' in printed and '\n3 cut at 300' in printed and '\n1 clipped' in printed, printed
    assert members['x_train'][:5].sum(axis=(1, 2)).tolist() == [0, 675, 450, 450, 225]


@pytest.mark.parametrize('name, text', [
    ('CROSS-SUBJECT.TXT', b'\xef\xbb\xbf' + SPLIT % (b' \t0003-M,\t0002-L', b'')),
    ('cross_subject-v1.txt', b'Trainingsvideos f\xfcr\r\n0002-L ,0003-M, ')])
def test_spellings_of_split_files(name, text, raw, tmp_path):
    (raw / 'cross-subject.txt').unlink()
    (raw / name).write_bytes(text)
    assert prepare(raw, tmp_path / 'out', '--protocol', 'xsub') == 0
    members = read_npz(tmp_path / 'out/PKUv1_XSub.npz')
    assert members['name_train'].tolist() == ['0002-L_001', '0002-L_002', '0003-M_001', '0003-M_002']


def test_split_files_that_cannot_be_used(raw, tmp_path, capsys):
    path, out = raw / 'cross-subject.txt', tmp_path / 'out'
    write_files(raw, {'cross_subject_v2.txt': b''})
    refused(capsys, raw, out, 'cross-subject.txt', 'cross_subject_v2.txt', 'keep one')
    (raw / 'cross_subject_v2.txt').unlink()
    path.write_bytes(b'title\n , ,\t,\n0002-L')
    refused(capsys, raw, out, path, 'line 2')
    path.write_bytes(SPLIT % (b'0098-R, 0002-L', b'0099-L'))
    assert refused(capsys, raw, out, damaged=1) == [f'{path}: line 2: there is no video 0098-R']
    path.unlink()
    refused(capsys, raw, out, 'cross-subject.txt', 'has none')


@pytest.mark.parametrize('change, line, part', [
    (lambda text: text[:-200], 8, 'fields'), (lambda text: b'-inf' + text[text.index(b' '):], 1, 'not finite'),
    (lambda text: b'1_0' + text[1:], 1, '1_0'), (lambda text: text + bytes(512), 9, 'printable ASCII')])
def test_damaged_skeletons(change, line, part, raw, tmp_path, capsys):
    """0003-L has eight frames; the other videos are kept."""
    path = raw / 'skeleton/0003-L.txt'
    samples = list(read_samples(raw, without=['0003-L']))
    path.write_bytes(change(path.read_bytes()))
    damaged = refused(capsys, raw, tmp_path / 'out', '1 damaged', '--skip_damaged', 'PKUv1_damaged.txt', damaged=1)
    assert damaged[0].startswith(f'{path}: line {line}: ') and part in damaged[0], damaged
    assert_skipped(capsys, raw, tmp_path / 'out', damaged, samples)


def test_damaged_labels(raw, tmp_path, capsys):
    """Only the damaged lines are left out; the others keep their names."""
    lines = [b'class,start,end,confidence', b'7,1,3,1', b'', b'52,3,6,1', b'7,1,6,1\r', b'7,9,10,1', b'7,5,2,1',
             b'1' * 5000 + b',1,6,1']
    damaged = {1: 'class,start,end', 4: 'class 52', 6: 'frames 9 to 10', 7: '5 to 2', 8: '111'}
    path = raw / 'label/0003-L.txt'
    path.write_bytes(b'\n'.join(b'' if number in damaged else line for number, line in enumerate(lines, 1)))
    samples = list(read_samples(raw))
    path.write_bytes(b'\n'.join(lines))
    listed = refused(capsys, raw, tmp_path / 'out', '5 damaged', damaged=5)
    for line, (number, part) in zip(listed, damaged.items(), strict=True):
        assert line.startswith(f'{path}: line {number}: ') and part in line and len(line) < len(str(path)) + 150
    assert_skipped(capsys, raw, tmp_path / 'out', listed, samples)


def test_missing_and_empty_files(raw, tmp_path, capsys):
    out = tmp_path / 'out'
    (raw / 'label/0003-L.txt').unlink()
    write_files(raw, {'label/0003-M.txt': b' \t\n', 'label/0001-R.txt': b'1,0,1,1'})
    assert refused(capsys, raw, out, 'label/0003-M.txt is empty', damaged=3)[:2] == [
        f'{raw}/skeleton/0003-L.txt: there is no label/0003-L.txt',
        f'{raw}/label/0001-R.txt: there is no skeleton/0001-R.txt']
    refused(capsys, raw / 'absent', out, raw / 'absent/skeleton', 'does not exist', '--raw')


NUMBER = re.compile(rb'[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?')


def parse_plainly(text):
    """The frames of a text, float by float; None if it is damaged."""
    frames = []
    for line in text.rstrip(b' \t\r\n').split(b'\n'):
        tokens = re.split(rb'[ \t]+', line.rstrip(b'\r').strip(b' \t'))
        if len(tokens) != 150 or not all(map(NUMBER.fullmatch, tokens)):
            return None
        frames.append([float(token) for token in tokens])
    return frames if all(abs(value) <= 1e6 for value in chain(*frames)) else None


@FUZZING
@given(changes=CHANGES)
def test_random_damage_of_skeletons(changes):
    """What the plain reference reads is read to the last bit, all else is refused with its line."""
    rng = np.random.default_rng(8)
    text = damage(video_text(rng, ['two bodies', 'tiny', 'zero', 'cancelling'], 4).replace(b'\n', b'\r\n'), changes)
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
