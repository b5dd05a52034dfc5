"""Preparation of Northwestern-UCLA: the real release against plain Python, and small sets of clips."""

import io
import json
import tarfile
import zipfile

import numpy as np
import pytest

from data import check, prepare_nwucla
from data.prepare_nwucla import parse_clip
from tests.conftest import refusal
from tests.data.raw_files import MEMBERS, SHARED, assert_refused, needs, read_folder, read_npz, run_command, write_files

TAR = SHARED / 'data/nw_ucla.tar.xz'


def prepare(raw, out, *more):
    return run_command(prepare_nwucla, '--raw', raw, '--out', out, '--workers', 1, *more)


@pytest.fixture
def clips():
    """Twelve clips: 2 actions x 2 subjects x 3 views, lengths 1 to 12, as {name: JSON object}."""
    rng, clips = np.random.default_rng(0), {}
    for action in (1, 2):
        for subject in (1, 2):
            for view in (1, 2, 3):
                name = f'a{action:02}_s{subject:02}_e00_v{view:02}'
                frames = rng.normal(size=(len(clips) + 1, 20, 3)).round(6).tolist()
                clips[name] = {'file_name': name, 'skeletons': frames, 'label': action}
    return clips


def as_files(clips):
    return {f'{name}.json': json.dumps(clip).encode() for name, clip in clips.items()}


def write_tar(path, files, prefix='nw_ucla/all_sqe/'):
    with tarfile.open(path, 'w:' + {'.tar': '', '.xz': 'xz', '.gz': 'gz'}[path.suffix]) as tar:
        for name, content in files:
            member = tarfile.TarInfo(prefix + name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


RELEASE = [        # file, counts of clips, and which of them are for training and test
    ('XView', (1020, 464), lambda view, subject: view != 3, lambda view, subject: view == 3),
    ('XSub', (724, 760), lambda view, subject: subject % 2 == 1, lambda view, subject: subject % 2 == 0),
    ('Validation', (733, 287), lambda view, subject: view != 3 and subject % 3 > 0,
     lambda view, subject: view != 3 and subject % 3 == 0),
    ('ValidationView', (375, 146), lambda view, subject: view == 1 and subject % 3 > 0,
     lambda view, subject: view == 2 and subject % 3 == 0)]


@needs('data/nw_ucla.tar.xz')
def test_protocols_of_the_release(tmp_path, capsys):
    """Against the published protocols, number by number; no frame of this release is all zero."""
    assert prepare(TAR, tmp_path, '--protocol', 'xview', 'xsub', 'validation', 'validation_view') == 0
    with tarfile.open(TAR) as tar:
        clips = [json.load(tar.extractfile(member)) for member in tar if member.isfile()]
    raw = {clip['file_name']: clip for clip in clips}
    expected = {name: np.zeros((201, 60), np.float32) for name in raw}
    for name, clip in raw.items():
        frames = np.array(clip['skeletons'])
        expected[name][:len(frames)] = (frames - frames[0, 1]).reshape(-1, 60)
    for file, counts, *parts in RELEASE:
        members = read_npz(tmp_path / f'NWUCLA_{file}.npz')
        assert list(members) == MEMBERS
        for split, count, belongs in zip(('train', 'test'), counts, parts, strict=True):
            names = [name for name in sorted(raw) if belongs(int(name[-1]), int(name[5:7]))]
            assert members[f'name_{split}'].tolist() == names and len(names) == count
            x, y = members[f'x_{split}'], members[f'y_{split}']
            assert (x.dtype, y.dtype, y.shape) == (np.float32, np.float64, (count, 10)) and (y.sum(axis=1) == 1).all()
            np.testing.assert_array_equal(x, [expected[name] for name in names])
            assert (y.argmax(axis=1) + 1).tolist() == [raw[name]['label'] for name in names]
    copies = (tmp_path / 'NWUCLA_XView_copies.txt').read_text().splitlines()
    assert len(set(copies)) == 95 and all(name[:4] in ('a02_', 'a03_') and name[-4:] == '_v03' for name in copies)
    capsys.readouterr()
    assert check.main([str(tmp_path / 'NWUCLA_XView.npz'), str(tmp_path / 'NWUCLA_XSub.npz')]) == 0
    assert capsys.readouterr().out.count('note: the copies are those of the release') == 2


def test_folders_and_archives_give_the_same_files(clips, tmp_path, monkeypatch, capsys):
    """Wherever all_sqe is, whatever the order in the archive, and with other files beside it."""
    files = as_files(clips)
    monkeypatch.chdir(write_files(tmp_path / 'here/data/all_sqe', files | {'._a01.json': b'\x00', 'README.txt': b'a'}))
    (tmp_path / 'here/package.json').write_text('{}')
    with zipfile.ZipFile(tmp_path / 'a.zip', 'w') as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    raws = ['.', tmp_path / 'here', tmp_path / 'a.zip', write_tar(tmp_path / 'a.tar', list(files.items())[::-1]),
            write_tar(tmp_path / 'a.tar.gz', files.items(), './')]
    outputs = []
    for number, raw in enumerate(raws):
        assert prepare(raw, tmp_path / f'out{number}', *(['--workers', '2'] if number == 3 else [])) == 0
        outputs.append(read_folder(tmp_path / f'out{number}'))
    assert set(outputs[0]) == {'NWUCLA_XView.npz', 'NWUCLA_XSub.npz'}
    assert all(output == outputs[0] for output in outputs)
    assert '12 samples of 2 classes, 78 frames (1 to 12 per sample)' in capsys.readouterr().out


@pytest.mark.parametrize('change, part', [
    ({'skeletons': [[[.1, .2, .3]] * 19]}, '(1, 19, 3)'), ({'skeletons': [[[.1, .2]] * 20, [[.1]]]}, 'damaged'),
    ({'skeletons': [[[.1, .2, '0.3']] * 20]}, 'numbers'), ({'skeletons': [[[.1, .2, np.nan]] * 20]}, 'not finite'),
    ({'skeletons': [[[0, 1e300, 0]] * 20]}, 'too large'), ({'label': True}, '1..10'),
    ({'skeletons': [[[0, 0, 0]] * 20] * 3}, 'zero'), ({'file_name': 'a02_s01_e00_v02'}, 'a02_s01_e00_v02')])
def test_damaged_clips(clips, change, part):
    name = 'a02_s01_e00_v03'
    refusal(lambda: parse_clip(json.dumps(clips[name] | change), name), part)


def test_damaged_json(clips, tmp_path, capsys):
    files = as_files(clips) | {'a02_s01_e00_v03.json': b'{', 'a02_s02_e00_v03.json': b'{}', 'notes.json': b'{}',
                               'a02_s01_e00_v04.json': b'{}'}
    raw, out = write_files(tmp_path / 'raw', files), tmp_path / 'out'
    assert_refused(capsys, out, prepare_nwucla, '--raw', raw, '--out', out, damaged=4,
                   parts=['a02_s01_e00_v03.json: damaged', 'of an NW-UCLA clip', 'a02_s01_e00_v04',
                          "'notes' is not a sample name"])
    assert prepare(raw, out, '--skip_damaged') == 0
    assert len(read_npz(out / 'NWUCLA_XView.npz')['x_test']) == 2


def test_archives_that_cannot_be_used(clips, tmp_path, capsys):
    files = as_files(clips)
    paths = [write_tar(tmp_path / f'a{suffix}', files.items()) for suffix in ('.tar', '.tar.xz')]
    for path in paths:
        path.write_bytes(path.read_bytes()[:len(path.read_bytes()) // 2])
    views = {name: content for name, content in files.items() if 'v03' not in name}
    for raw, *parts in (*((path, path, 'nor a complete zip or tar') for path in paths),
                        (write_tar(tmp_path / 'empty.tar', [('a.txt', b'')]), 'empty.tar', 'no .json file'),
                        (write_tar(tmp_path / 'b.tar', [*files.items(), *files.items()]), 'a01_s01', 'twice'),
                        (write_files(tmp_path / 'views', views), 'NWUCLA_XView: no test clip')):
        assert_refused(capsys, tmp_path / 'out', prepare_nwucla, '--raw', raw, '--out', tmp_path / 'out', parts=parts)
