import errno
import io
import json
import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest

from data import common, prepare_nwucla
from util.errors import UserError, run_main

ROOT = Path(__file__).resolve().parents[2]
TAR = Path(os.environ.get('MAMP_SHARED', ROOT / '../shared')) / 'data/nw_ucla.tar.xz'
needs_release = pytest.mark.skipif(not TAR.exists(), reason='no data/nw_ucla.tar.xz in MAMP_SHARED')
VICTIM = 'a02_s01_e00_v03'  # the clip that the bad-input tests spoil


def prepare(raw, out, *more):
    """Exit code of the command, run in this process."""
    with pytest.raises(SystemExit) as end:
        run_main(lambda: prepare_nwucla.main(['--raw', str(raw), '--out', str(out), *more]))
    return end.value.code


@pytest.fixture
def clips():
    """Twelve clips: 2 actions x 2 subjects x 3 views, lengths 1 to 12, as {name: JSON object}."""
    rng, made = np.random.default_rng(0), {}
    for action, label in ((1, 1), (2, 2)):
        for subject in (1, 2):
            for view in (1, 2, 3):
                name = f'a{action:02}_s{subject:02}_e00_v{view:02}'
                frames = rng.normal(size=(len(made) + 1, 20, 3)).round(6).tolist()
                made[name] = {'file_name': name, 'skeletons': frames, 'label': label}
    return made


def texts(clips):
    return {f'{name}.json': json.dumps(clip).encode() for name, clip in clips.items()}


def write_folder(folder, files):
    folder.mkdir(parents=True)
    for name, text in files.items():
        (folder / name).write_bytes(text)
    return folder


def write_tar(path, files, prefix='nw_ucla/all_sqe/'):
    """`files`: pairs of name and bytes, so that a name can come twice."""
    with tarfile.open(path, 'w:' + {'.tar': '', '.xz': 'xz', '.gz': 'gz'}[path.suffix]) as tar:
        for name, text in files:
            member = tarfile.TarInfo(prefix + name)
            member.size = len(text)
            tar.addfile(member, io.BytesIO(text))
    return path


def fails(capsys, raw, out, *words):
    """The command ends with 2 and one line that has all `words`, and leaves nothing where it was to write."""
    capsys.readouterr()
    assert prepare(raw, out) == 2
    printed = capsys.readouterr()
    assert printed.out == '' and printed.err.count('\n') == 1 and printed.err.endswith('\n')
    assert printed.err.startswith('error: ') and all(str(word) in printed.err for word in words), printed.err
    assert not out.exists() or not any(out.iterdir())


# ---- the real release

@pytest.fixture(scope='module')
def release(tmp_path_factory):
    """The two files made of the real tar, and the tar's clips as they stand: {name: JSON object}."""
    out = tmp_path_factory.mktemp('nwucla')
    assert prepare(TAR, out) == 0
    with tarfile.open(TAR) as tar:
        raw = [json.load(tar.extractfile(member)) for member in tar if member.isfile()]
    return out, {clip['file_name']: clip for clip in raw}


@needs_release
@pytest.mark.parametrize('file, counts, trains', [
    ('NWUCLA_XView.npz', (1020, 464), lambda name: name[-1] != '3'),
    ('NWUCLA_XSub.npz', (724, 760), lambda name: name[5:7] in ('01', '03', '05', '07', '09'))])
def test_release_counts_order_and_labels(release, file, counts, trains):
    out, raw = release
    with np.load(out / file, allow_pickle=False) as npz:
        got = dict(npz)
    assert list(got) == ['x_train', 'y_train', 'x_test', 'y_test', 'name_train', 'name_test']
    for part, count, names in (('train', counts[0], [name for name in sorted(raw) if trains(name)]),
                               ('test', counts[1], [name for name in sorted(raw) if not trains(name)])):
        assert got[f'name_{part}'].tolist() == names and len(names) == count
        x, y = got[f'x_{part}'], got[f'y_{part}']
        assert (x.shape, x.dtype, y.shape, y.dtype) == ((count, 201, 60), np.float32, (count, 10), np.float64)
        assert np.array_equal(np.unique(y), [0, 1]) and (y.sum(axis=1) == 1).all()
        assert (y.argmax(axis=1) + 1).tolist() == [raw[name]['label'] for name in names]


@needs_release
def test_release_numbers(release):
    """A few clips, number by number, against plain Python; no frame of this release is all zero."""
    out, raw = release
    with np.load(out / 'NWUCLA_XView.npz') as npz:
        rows = dict(zip([*npz['name_train'], *npz['name_test']], [*npz['x_train'], *npz['x_test']], strict=True))
    assert len(rows) == 1484 and [name for name in rows if len(raw[name]['skeletons']) == 1] == [
        'a02_s09_e04_v02', 'a02_s09_e04_v03']
    for name in [*list(rows)[::150], 'a02_s09_e04_v02', 'a02_s09_e04_v03', 'a01_s08_e02_v01', 'a04_s01_e01_v01']:
        frames = raw[name]['skeletons']
        origin = frames[0][1]
        expected = [[joint[k] - origin[k] for joint in frame for k in range(3)] for frame in frames]
        np.testing.assert_array_equal(rows[name][:len(frames)], np.float32(expected))
        assert not rows[name][len(frames):].any() and not rows[name][0, 3:6].any()


@needs_release
def test_release_members_can_be_mapped(release):
    for path in release[0].glob('*.npz'):
        with zipfile.ZipFile(path) as archive:
            assert all(member.compress_type == zipfile.ZIP_STORED for member in archive.infolist())


@needs_release
def test_release_summary_counts_copies(release, tmp_path, capsys):
    _, raw = release
    folder = write_folder(tmp_path / 'all_sqe', texts(raw))
    assert prepare(folder, tmp_path / 'out', '--protocol', 'xview') == 0
    printed = capsys.readouterr().out
    assert '1,484 clips, 10 classes, 58,534 frames (1 to 201 a clip)' in printed
    assert '1,020 train, 464 test (95 of them copies of a training clip, named in ' in printed
    assert {path.name for path in (tmp_path / 'out').iterdir()} == {'NWUCLA_XView.npz', 'NWUCLA_XView_copies.txt'}
    copies = (tmp_path / 'out/NWUCLA_XView_copies.txt').read_text().splitlines()
    assert len(set(copies)) == 95 and {name[:4] for name in copies} == {'a02_', 'a03_'}
    assert all(name.endswith('_v03') for name in copies)
    assert (tmp_path / 'out/NWUCLA_XView.npz').read_bytes() == (release[0] / 'NWUCLA_XView.npz').read_bytes()


@needs_release
def test_validation_split_never_holds_the_test_view(release, tmp_path):
    """Of views 1 and 2, subjects 3, 6 and 9 against the others; nothing of view 3."""
    folder = write_folder(tmp_path / 'all_sqe', texts(release[1]))
    assert prepare(folder, tmp_path / 'out', '--protocol', 'validation') == 0
    assert [path.name for path in (tmp_path / 'out').iterdir()] == ['NWUCLA_Validation.npz']
    with np.load(tmp_path / 'out/NWUCLA_Validation.npz') as npz, np.load(release[0] / 'NWUCLA_XView.npz') as whole:
        train, test = set(npz['name_train']), set(npz['name_test'])
        assert train | test == set(whole['name_train']) and (len(train), len(test)) == (733, 287)
        assert {name[4:7] for name in test} == {'s03', 's06', 's09'} and not {name[4:7] for name in train} & {
            name[4:7] for name in test}
        rows = dict(zip(whole['name_train'], whole['x_train'], strict=True))
        for name, x in zip(npz['name_test'], npz['x_test'], strict=True):
            np.testing.assert_array_equal(x, rows[name][:x.shape[0]])
            assert not rows[name][x.shape[0]:].any()


@needs_release
def test_validation_across_views_has_neither_a_subject_nor_a_view_twice(release, tmp_path):
    folder = write_folder(tmp_path / 'all_sqe', texts(release[1]))
    assert prepare(folder, tmp_path / 'out', '--protocol', 'validation_view') == 0
    with np.load(tmp_path / 'out/NWUCLA_ValidationView.npz') as npz:
        found = {split: {(name[4:7], name[-3:]) for name in npz[f'name_{split}'].tolist()}
                 for split in ('train', 'test')}
        assert found['test'] == {(subject, 'v02') for subject in ('s03', 's06', 's09')}
        assert {view for _, view in found['train']} == {'v01'} and len(found['train']) == 7
        assert (len(npz['x_train']), len(npz['x_test'])) == (375, 146)


# ---- twelve clips of our own

def test_folder_and_tars_give_the_same_files(clips, tmp_path, monkeypatch):
    """Wherever all_sqe lies, whatever the order in the archive, and with other files about."""
    files = texts(clips)
    stray = {**files, '._a01_s01_e00_v01.json': b'\x00', 'README.txt': b'hello'}
    monkeypatch.chdir(write_folder(tmp_path / 'here/data/all_sqe', stray))
    (tmp_path / 'here/package.json').write_text('{}')
    (tmp_path / 'linked').mkdir()
    (tmp_path / 'linked/all_sqe').symlink_to(tmp_path / 'here/data/all_sqe')
    raws = ['.', tmp_path / 'here', tmp_path / 'linked',
            write_tar(tmp_path / 'a.tar', list(files.items())[::-1]),
            write_tar(tmp_path / 'a.tar.xz', stray.items()), write_tar(tmp_path / 'a.tar.gz', files.items(), './')]
    made = []
    for number, raw in enumerate(raws):
        assert prepare(raw, tmp_path / f'out{number}') == 0
        made.append({path.name: path.read_bytes() for path in (tmp_path / f'out{number}').iterdir()})
    assert set(made[0]) == {'NWUCLA_XView.npz', 'NWUCLA_XSub.npz'} and all(other == made[0] for other in made)


def test_zero_frames_are_dropped_before_centring(clips):
    frames = np.array(clips['a02_s02_e00_v03']['skeletons'])
    frames[[0, 5]] = 0
    frames[3, 7] = 0
    clips['a02_s02_e00_v03']['skeletons'] = frames.tolist()
    got, label = prepare_nwucla.parse_clip(json.dumps(clips['a02_s02_e00_v03']), 'a02_s02_e00_v03')
    kept = frames[[1, 2, 3, 4, 6, 7, 8, 9, 10, 11]]
    assert label == 2 and got.dtype == np.float32
    np.testing.assert_array_equal(got, np.float32(kept - kept[0, 1]))


@pytest.mark.parametrize('change, words', [
    ({'skeletons': [[[0.1, 0.2, 0.3]] * 19]}, 'shape (1, 19, 3)'),
    ({'skeletons': [[[0.1, 0.2, 0.3]] * 20, [[0.1, 0.2, 0.3]] * 19]}, 'different lengths'),
    ({'skeletons': [[[0.1, 0.2, '0.3']] * 20]}, 'not a number'),
    ({'skeletons': [[[0.1, 0.2, None]] * 20]}, 'not a number'),
    ({'skeletons': [[[0.1, 0.2, float('nan')]] * 20]}, 'NaN'),
    ({'skeletons': [[[0.1, 0.2, 1e300]] * 20]}, 'float32'),
    ({'skeletons': 7}, 'shape ()'),
    ({'skeletons': []}, 'no frame'),
    ({'skeletons': [[[0, 0, 0]] * 20] * 3}, 'zero'),
    ({'label': 0}, '1..10'), ({'label': 11}, '1..10'), ({'label': '2'}, '1..10'), ({'label': True}, '1..10'),
    ({'file_name': 'a02_s01_e00_v02'}, 'a02_s01_e00_v02'),
])
def test_bad_clip(clips, tmp_path, capsys, change, words):
    clips[VICTIM] |= change
    fails(capsys, write_folder(tmp_path / 'all_sqe', texts(clips)), tmp_path / 'out', VICTIM, words)


@pytest.mark.parametrize('text, words', [
    (b'{"file_name": "a02_s01_e00_v03", "skel', 'damaged'), (b'', 'damaged'), (b'\xff\xfe\xfd', 'damaged'),
    (b'[' * 100_000, 'damaged'), (b'[]', 'missing'), (b'{"file_name": "a02_s01_e00_v03"}', 'missing')])
def test_bad_json(clips, tmp_path, capsys, text, words):
    files = texts(clips) | {f'{VICTIM}.json': text}
    fails(capsys, write_tar(tmp_path / 'a.tar', files.items()), tmp_path / 'out', VICTIM, words)


@pytest.mark.parametrize('name', ['notes', 'a02_s01_e00_v04', 'a02_s01_e00', 'a02\n_s01_e00_v03'])
def test_bad_name(clips, tmp_path, capsys, name):
    files = texts(clips) | {f'{name}.json': b'{}'}
    fails(capsys, write_folder(tmp_path / 'all_sqe', files), tmp_path / 'out', repr(f'{name}.json'), 'no sample name')


def test_bad_raw(clips, tmp_path, capsys):
    out, files = tmp_path / 'out', texts(clips)
    fails(capsys, tmp_path / 'absent', out, tmp_path / 'absent', 'does not exist')
    (tmp_path / 'text.tar').write_text('not an archive\n' * 1000)
    fails(capsys, tmp_path / 'text.tar', out, 'text.tar', 'tar archive')
    fails(capsys, write_folder(tmp_path / 'empty', {'a.txt': b''}), out, 'empty', 'no clip')
    fails(capsys, write_tar(tmp_path / 'empty.tar', [('a.txt', b'')]), out, 'empty.tar', 'no clip')
    fails(capsys, write_tar(tmp_path / 'twice.tar', [*files.items(), *files.items()]), out, 'a01_s01', 'twice')
    folder = write_folder(tmp_path / 'both/x/all_sqe', files).parents[1]
    write_folder(folder / 'y/all_sqe', files)
    fails(capsys, folder, out, 'a01_s01_e00_v01.json', 'twice')
    views = {name: text for name, text in files.items() if 'v03' not in name}
    fails(capsys, write_folder(tmp_path / 'views', views), out, 'NWUCLA_XView', 'testing')
    with tarfile.open(tmp_path / 'link.tar', 'w') as tar:
        member = tarfile.TarInfo('all_sqe/a01_s01_e00_v01.json')
        member.type, member.linkname = tarfile.SYMTYPE, '/etc/passwd'
        tar.addfile(member)
    fails(capsys, tmp_path / 'link.tar', out, 'link.tar', 'links')


@pytest.mark.parametrize('suffix', ['.tar', '.tar.xz', '.tar.gz'])
def test_truncated_tar(clips, tmp_path, capsys, suffix):
    """Cut within a member and, where tarfile itself sees nothing wrong, exactly between two members."""
    whole = write_tar(tmp_path / f'a{suffix}', texts(clips).items())
    cuts = {len(whole.read_bytes()) // 2}
    if suffix == '.tar':
        with tarfile.open(whole) as tar:
            cuts |= {tar.getmembers()[7].offset, tar.getmembers()[7].offset + 100}
    for cut in cuts:
        path = tmp_path / f'cut{cut}{suffix}'
        path.write_bytes(whole.read_bytes()[:cut])
        fails(capsys, path, tmp_path / 'out', path, 'tar archive')


def test_output_that_cannot_be_written(clips, tmp_path, capsys, monkeypatch):
    """A full disk leaves no file behind, and the one that was there before as it was."""
    raw = write_folder(tmp_path / 'all_sqe', texts(clips))
    (tmp_path / 'file').write_text('in the way')
    assert prepare(raw, tmp_path / 'file') == 2
    assert str(tmp_path / 'file') in capsys.readouterr().err

    def full(descriptor):
        raise OSError(errno.ENOSPC, 'No space left on device')

    monkeypatch.setattr(os, 'fsync', full)
    fails(capsys, raw, tmp_path / 'out', 'NWUCLA_XView.npz', 'No space left')
    (tmp_path / 'old.npz').write_bytes(b'old')
    with pytest.raises(UserError, match='No space left'):
        common.write_npz(tmp_path / 'old.npz', x=np.zeros(3))
    assert (tmp_path / 'old.npz').read_bytes() == b'old'
    with pytest.raises(AssertionError, match='pickled'):
        common.write_npz(tmp_path / 'objects.npz', x=np.array([{}]))
    assert {path.name for path in tmp_path.iterdir()} == {'all_sqe', 'file', 'out', 'old.npz'}


def test_runs_by_path_and_as_a_module(clips, tmp_path):
    raw = write_folder(tmp_path / 'all_sqe', texts(clips))
    commands = {'a': ([str(ROOT / 'data/prepare_nwucla.py')], tmp_path), 'b': (['-m', 'data.prepare_nwucla'], ROOT)}
    for out, (command, cwd) in commands.items():
        run = subprocess.run([sys.executable, *command, '--raw', raw, '--out', tmp_path / out],
                             cwd=cwd, capture_output=True, text=True)
        assert run.returncode == 0 and run.stderr == '' and '12 clips, 2 classes, 78 frames' in run.stdout, run
        assert len(list((tmp_path / out).iterdir())) == 2


def test_one_hot_and_pad():
    np.testing.assert_array_equal(common.one_hot([2, 0], 3), [[0, 0, 1], [1, 0, 0]])
    padded = common.pad([np.ones((1, 2, 3)), np.full((3, 6), 2.)], 6)
    assert padded.shape == (2, 3, 6) and padded.dtype == np.float32
    assert padded[0].sum() == 6 and not padded[0, 1:].any() and (padded[1] == 2).all()
