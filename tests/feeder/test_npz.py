"""Members of npz files as memory maps; compressed, unusual, damaged and hostile files."""

import os
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.lib import format as npy

from data.dataset_file import write_npz
from feeder.npz import open_member, open_npy
from tests.conftest import refusal
from tests.feeder.conftest import ANY, make_members
from util.errors import UserError


def is_mapped(array):
    return isinstance(array, np.memmap) and not array.flags.writeable and not array.flags.owndata


def write_members(path, members, compression=zipfile.ZIP_STORED, zip64=False, version=None):
    """Write an npz member by member, as other programs may."""
    with zipfile.ZipFile(path, 'w', compression) as archive:
        for name, array in members.items():
            with archive.open(f'{name}.npy', 'w', force_zip64=zip64) as file:
                npy.write_array(file, array, version=version)


def files_beside(path):
    return sorted(file.name for file in path.parent.iterdir() if file != path)


@pytest.mark.parametrize('zip64, version', [(False, (1, 0)), (True, (2, 0)), (True, (3, 0))])
def test_stored_members_are_mapped_in_place(path, zip64, version):
    """In zip64 files, all npy versions and under unusual names, too."""
    members = {'first': np.arange(3), 'n' * 300: np.arange(7.), 'a/ünïcödé': np.arange(2), **make_members(),
               'names': np.array(['S001', 'S002']), 'empty': np.empty((0, 5, 6), np.float32)}
    write_members(path, members, zip64=zip64, version=version)
    for name, expected in members.items():
        array = open_member(path, name)
        assert is_mapped(array) and os.fspath(array.filename) == os.fspath(path) and array.dtype == expected.dtype
        np.testing.assert_array_equal(array, expected, strict=True)
    assert files_beside(path) == []


def test_local_header_longer_than_in_the_directory(tmp_path):
    """As written by zipalign and some zip programs."""
    with zipfile.ZipFile(tmp_path / 'f.npz', 'w') as archive:
        info = zipfile.ZipInfo('x_train.npy')
        info.extra = b'\xfe\xca\x08\x00padding!'
        with archive.open(info, 'w') as file:
            npy.write_array(file, np.arange(60.))
        info.extra = b''
    np.testing.assert_array_equal(open_member(tmp_path / 'f.npz', 'x_train'), np.arange(60.))


@pytest.mark.parametrize('compression', [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_fortran_order_and_python_objects(path, compression):
    expected = make_members()['x_train']
    write_members(path, {'x': np.asfortranarray(expected), 'objects': np.array([{'a': 1}, None])}, compression)
    array = open_member(path, 'x')
    assert is_mapped(array) and array.flags.f_contiguous
    np.testing.assert_array_equal(array, expected)
    files = files_beside(path)
    refusal(lambda: open_member(path, 'objects'), path, 'objects', 'Python objects')
    assert files_beside(path) == files


def test_npy_files(tmp_path):
    path = tmp_path / 'a.npy'
    np.save(path, np.arange(6.).reshape(2, 3))
    assert is_mapped(open_npy(path, '')) and open_npy(path, '')[1, 2] == 5
    path.write_bytes(path.read_bytes()[:-1])
    refusal(lambda: open_npy(path, ''), path, 'the array is damaged')
    np.save(path, np.array([{}]))
    refusal(lambda: open_npy(path, ''), path, 'the array is damaged')
    refusal(lambda: open_npy(tmp_path / 'd.npy', 'correct it'), tmp_path / 'd.npy', 'no such data file; correct it')


def test_a_compressed_member_is_unpacked_once_and_again_if_it_changed(path, caplog):
    def check(seed, unpacked):
        caplog.clear()
        array = open_member(path, 'x_train')
        np.testing.assert_array_equal(array, make_members(seed=seed)['x_train'])
        assert is_mapped(array) and len(caplog.messages) == unpacked and Path(array.filename).parent == path.parent
        return Path(array.filename)

    np.savez_compressed(path, **make_members())
    cache = check(0, unpacked=1)
    assert files_beside(path) == [cache.name] and check(0, unpacked=0) == cache
    os.truncate(cache, 1000)
    assert check(0, unpacked=1) == cache
    np.savez_compressed(path, **make_members(seed=1))
    assert check(1, unpacked=1) != cache


def test_the_cache_is_in_the_temporary_folder_if_it_must(tmp_path, monkeypatch):
    access, paths = os.access, [tmp_path / 'a/f.npz', tmp_path / 'b/f.npz']     # two files of one name
    monkeypatch.setattr(os, 'access', lambda path, mode: mode != os.W_OK and access(path, mode))    # also for root
    monkeypatch.setattr('tempfile.tempdir', str(tmp_path / 'tmp'))
    (tmp_path / 'tmp').mkdir()
    for seed, path in enumerate(paths):
        path.parent.mkdir()
        np.savez_compressed(path, **make_members(seed=seed))
        array = open_member(path, 'x_train')
        np.testing.assert_array_equal(array, make_members(seed=seed)['x_train'])
        assert tmp_path / 'tmp' in Path(array.filename).parents and files_beside(path) == []
    cache = Path(array.filename).parent
    cache.chmod(0o777)
    refusal(lambda: open_member(paths[0], 'x_train'), cache, 'other users', 'remove it')


def test_processes_that_start_together_share_one_unpacked_file(fork, tmp_path):
    np.savez_compressed(tmp_path / 'f.npz', **make_members(clips=2000))
    code = ('import sys; from feeder.npz import open_member; x = open_member(sys.argv[1], "x_train"); '
            'inodes = [line.split()[4] for line in open("/proc/self/maps") if ".npy" in line]; '
            'sys.stdout.write(f"sum {x.sum()} {inodes}\\n")')       # one write, as processes share the output
    outputs = [line for line in fork(code, tmp_path / 'f.npz', processes=3).text.splitlines() if 'sum' in line]
    assert len(outputs) == 3 and len(set(outputs)) == 1 and '[]' not in outputs[0]
    assert sorted(file.suffix for file in tmp_path.iterdir()) == ['.npy', '.npz']


def test_files_that_are_not_npz(tmp_path):
    path = tmp_path / 'f.npz'
    for content in (b'', b'PK', b'\x93NUMPY' * 100, b'PK\3\4' + b'\0' * 500):
        path.write_bytes(content)
        refusal(lambda: open_member(path, 'x_train'), path, 'not a complete npz')
    refusal(lambda: open_member(tmp_path, 'x_train'), tmp_path, 'no such data file')
    refusal(lambda: open_member(tmp_path / 'none.npz', 'x_train'), 'none.npz: no such data file', 'data/prepare_')
    np.savez(path, x=np.zeros(3), labels=np.zeros(3))
    refusal(lambda: open_member(path, 'x_train'), path, 'no member x_train', 'labels, x')


@pytest.fixture(scope='module')
def intact(tmp_path_factory):
    """Path for damaged files, and the bytes of a stored and of a compressed file."""
    folder = tmp_path_factory.mktemp('damaged')
    write_npz(folder / 'stored.npz', **make_members())
    np.savez_compressed(folder / 'compressed.npz', **make_members())
    return folder / 'f.npz', [(folder / f'{name}.npz').read_bytes() for name in ('stored', 'compressed')]


@settings(ANY, max_examples=100)
@given(begin=st.floats(0, 1, exclude_max=True), lost=st.integers(1, 10_000), compressed=st.booleans())
@example(begin=0., lost=10_000, compressed=False)
@example(begin=1 - 1e-9, lost=1, compressed=True)
def test_lost_bytes_never_give_other_numbers(intact, begin, lost, compressed):
    """In the middle of the file or to its end."""
    path, contents = intact
    at = int(len(contents[compressed]) * begin)
    path.write_bytes(contents[compressed][:at] + contents[compressed][at + lost:])
    try:
        array = open_member(path, 'x_train')
    except UserError as error:
        assert '\n' not in str(error) and str(path) in str(error)
    else:
        assert len(contents[compressed]) > at + lost
        np.testing.assert_array_equal(array, make_members()['x_train'])


def test_damaged_headers_and_damaged_and_unknown_compression(intact):
    path, (stored, content) = intact
    files = files_beside(path)
    for old, new in ((b'\x93NUMPY', b'\x00NUMPY'), (b'(7, 12, 30)', b'(7, 12, 30 '), (b'(7, 12, 30)', b'(9, 12, 30)'),
                     (b'(7, 12, 30)', b'(-7,-12,30)'), (b"'<f4'", b"'|O' ")):
        path.write_bytes(stored.replace(old, new))
        refusal(lambda: open_member(path, 'x_train'), path, 'member x_train is damaged')
    for at in range(100, 2000, 300):        # all within x_train
        path.write_bytes(content[:at] + bytes(byte ^ 0xff for byte in content[at:at + 20]) + content[at + 20:])
        refusal(lambda: open_member(path, 'x_train'), path)
    unknown = bytearray(content)
    for signature, offset in ((b'PK\3\4', 8), (b'PK\1\2', 10)):
        unknown[unknown.index(signature) + offset] = 9      # Deflate64, which some programs use for large files
    path.write_bytes(unknown)
    refusal(lambda: open_member(path, 'x_train'), path, 'not a complete npz')
    assert files_beside(path) == files
