"""The interchange file as memory maps, clips of it in batches, and the views that training and evaluation get."""

import itertools
import logging
import os
import pickle
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from numpy.lib import format as npy

from data.common import one_hot, write_npz
from feeder import transforms
from feeder.augment import ClipMaker
from feeder.dataset import Batch, EvalBatches, SkeletonDataset, TrainBatches
from feeder.layouts import parents_of
from feeder.loader import make_loader, read_batches
from feeder.npz import open_member
from tests.conftest import refusal
from util.errors import UserError

V, M, T = 5, 2, 12      # joints, bodies and frames of the files made here
CPU = torch.device('cpu')


def members(clips=7, frames=T, width=M * V * 3, classes=3, seed=0):
    """A whole small file's members; clip i has its own number of valid frames, so that padding differs."""
    rng = np.random.default_rng(seed)
    made = {}
    for split, count in (('train', clips), ('test', 4)):
        x = rng.standard_normal((count, frames, width)).astype(np.float32)
        for i, clip in enumerate(x):
            clip[1 + (5 * i + 3) % frames:] = 0
        made[f'x_{split}'], made[f'y_{split}'] = x, one_hot(np.arange(count) % classes, classes)
    return made


@pytest.fixture
def path(tmp_path):
    path = tmp_path / 'clips.npz'
    write_npz(path, **members())
    return path


def whole(dataset):
    return dataset[[(i, 10 + i) for i in range(len(dataset))]]


def clips_of(batch):
    """Each clip's frames (n, M, V, C)."""
    return [batch.frames[begin:begin + n] for begin, n in zip(batch.first, batch.num_valid, strict=True)]


def files_beside(path):
    return sorted(other.name for other in path.parent.iterdir() if other != path)


# --- members as memory maps -----------------------------------------------------------------------------------------

def mapped(array):
    return isinstance(array, np.memmap) and not array.flags.writeable and not array.flags.owndata


def test_stored_members_are_mapped_in_place(path):
    made = members()
    for name, expected in made.items():
        array = open_member(path, name)
        assert mapped(array) and os.fspath(array.filename) == os.fspath(path)
        assert array.dtype == expected.dtype
        np.testing.assert_array_equal(array, expected)
    assert files_beside(path) == []


def test_a_map_shows_what_is_in_the_file_now(path):
    # a copy would keep the old number
    array = open_member(path, 'x_train')
    offset = array.offset + array[0, 0].nbytes
    with open(path, 'r+b') as file:
        file.seek(offset)
        file.write(np.float32(42).tobytes())
    assert array[0, 1, 0] == 42


@pytest.mark.parametrize('long', ['n' * 300, 'clips/of/the/third/session', 'ünïcödé'])
def test_member_among_others_with_unusual_names(tmp_path, long):
    arrays = {'first': np.arange(3), long: np.arange(7.), 'x_train': np.arange(24, dtype=np.float32).reshape(2, 3, 4),
              'last': np.array(['S001', 'S002'])}
    np.savez(tmp_path / 'many.npz', **arrays)
    for name, expected in arrays.items():
        array = open_member(tmp_path / 'many.npz', name)
        assert mapped(array)
        np.testing.assert_array_equal(array, expected)


def write_members(path, made, *, compression=zipfile.ZIP_STORED, zip64=False, version=None):
    """An npz written member by member, as other programs may."""
    with zipfile.ZipFile(path, 'w', compression) as archive:
        for name, array in made.items():
            with archive.open(f'{name}.npy', 'w', force_zip64=zip64) as file:
                npy.write_array(file, array, version=version)


@pytest.mark.parametrize('version', [None, (1, 0), (2, 0), (3, 0)])
@pytest.mark.parametrize('zip64', [False, True])
def test_zip64_extra_fields_and_npy_versions(tmp_path, zip64, version):
    path = tmp_path / 'written.npz'
    write_members(path, members(), zip64=zip64, version=version)
    if zip64:
        header = path.read_bytes()[:30]
        assert int.from_bytes(header[28:30], 'little') >= 20, 'the local header has no zip64 extra field'
    for name, expected in members().items():
        assert mapped(open_member(path, name))
        np.testing.assert_array_equal(open_member(path, name), expected)


def test_local_and_central_extra_fields_of_different_length(tmp_path):
    # the offset must come from the local header: here only that one is padded, as zipalign and some zip tools do
    path = tmp_path / 'padded.npz'
    expected = np.arange(60, dtype=np.float32).reshape(3, 4, 5)
    with zipfile.ZipFile(path, 'w') as archive:
        info = zipfile.ZipInfo('x_train.npy')
        info.extra = b'\xfe\xca\x08\x00padding!'
        with archive.open(info, 'w') as file:
            npy.write_array(file, expected)
        info.extra = b''
    with zipfile.ZipFile(path) as archive:
        assert archive.infolist()[0].extra == b''
    np.testing.assert_array_equal(open_member(path, 'x_train'), expected)


@pytest.mark.parametrize('compression', [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_fortran_order_member(tmp_path, compression):
    path = tmp_path / 'fortran.npz'
    expected = members()['x_train']
    write_members(path, {'x_train': np.asfortranarray(expected)}, compression=compression)
    array = open_member(path, 'x_train')
    assert mapped(array) and array.flags.f_contiguous and array.shape == expected.shape
    np.testing.assert_array_equal(array, expected)


def test_fortran_order_file_gives_the_same_batches(path, tmp_path):
    other = tmp_path / 'fortran.npz'
    write_members(other, {name: np.asfortranarray(array) for name, array in members().items()})
    for one, two in zip(*(whole(SkeletonDataset(p, 'train', V)) for p in (path, other)), strict=True):
        assert torch.equal(one, two)


@pytest.mark.parametrize('compressed', [False, True])
def test_python_objects_are_refused(tmp_path, compressed):
    path = tmp_path / 'f.npz'
    (np.savez_compressed if compressed else np.savez)(path, x_train=np.array([{'a': 1}, None], dtype=object))
    refusal(lambda: open_member(path, 'x_train'), path, 'x_train', 'Python objects')


def test_member_without_elements(tmp_path):
    np.savez(tmp_path / 'empty.npz', x_train=np.empty((0, 5, 6), np.float32))
    array = open_member(tmp_path / 'empty.npz', 'x_train')
    assert array.shape == (0, 5, 6) and array.dtype == np.float32


def notices(caplog):
    return [record.getMessage() for record in caplog.records if record.name == 'feeder.npz']


def test_compressed_member_is_unpacked_once(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    path = tmp_path / 'small.npz'
    made = members()
    np.savez_compressed(path, **made)
    array = open_member(path, 'x_train')
    np.testing.assert_array_equal(array, made['x_train'])
    (cache,) = files_beside(path)
    assert mapped(array) and os.path.basename(array.filename) == cache
    (notice,) = notices(caplog)
    assert str(path) in notice and 'x_train' in notice and cache in notice and '\n' not in notice

    written = (path.parent / cache).stat()
    np.testing.assert_array_equal(open_member(path, 'x_train'), made['x_train'])
    assert files_beside(path) == [cache] and len(notices(caplog)) == 1
    again = (path.parent / cache).stat()
    assert (again.st_mtime_ns, again.st_ino) == (written.st_mtime_ns, written.st_ino)

    np.testing.assert_array_equal(open_member(path, 'y_train'), made['y_train'])    # a cache file a member
    assert len(files_beside(path)) == 2 and len(notices(caplog)) == 2


def test_cache_follows_the_content(tmp_path, caplog):
    path = tmp_path / 'small.npz'
    for seed in (0, 1, 0):
        made = members(seed=seed)
        np.savez_compressed(path, **made)
        np.testing.assert_array_equal(open_member(path, 'x_train'), made['x_train'])
    assert len(notices(caplog)) in (2, 3)      # the first content's cache file may or may not have been kept


def test_cut_cache_file_is_written_again(tmp_path):
    path = tmp_path / 'small.npz'
    made = members()
    np.savez_compressed(path, **made)
    cache = open_member(path, 'x_train').filename
    os.truncate(cache, 1000)
    np.testing.assert_array_equal(open_member(path, 'x_train'), made['x_train'])


def test_failed_unpacking_leaves_nothing_behind(tmp_path):
    path = tmp_path / 'small.npz'
    np.savez_compressed(path, x_train=np.zeros((50, 50)))
    content = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        crc = archive.infolist()[0].CRC.to_bytes(4, 'little')
    at = content.rindex(crc)                            # the checksum in the directory, which is the one that counts
    content[at] ^= 0xff
    path.write_bytes(content)
    refusal(lambda: open_member(path, 'x_train'), path)
    assert files_beside(path) == []


def test_cache_goes_to_the_temporary_folder_when_it_must(tmp_path, monkeypatch):
    # two files of one name in folders that may not be written, and one temporary folder for the caches of both
    access = os.access      # root may write everywhere, whatever the mode
    monkeypatch.setattr(os, 'access', lambda path, mode: mode != os.W_OK and access(path, mode))
    elsewhere = tmp_path / 'tmp'
    elsewhere.mkdir()
    monkeypatch.setattr('tempfile.tempdir', str(elsewhere))
    for seed, folder in enumerate((tmp_path / 'a', tmp_path / 'b')):
        folder.mkdir()
        np.savez_compressed(folder / 'f.npz', **members(seed=seed))
        folder.chmod(0o555)
    try:
        for seed, folder in enumerate((tmp_path / 'a', tmp_path / 'b')):
            array = open_member(folder / 'f.npz', 'x_train')
            np.testing.assert_array_equal(array, members(seed=seed)['x_train'])
            assert elsewhere in Path(array.filename).parents and files_beside(folder / 'f.npz') == []
        cache = Path(array.filename).parent
        cache.chmod(0o777)      # anybody's files might lie in it
        refusal(lambda: open_member(tmp_path / 'a/f.npz', 'x_train'), cache, 'others', 'remove it')
    finally:
        for folder in (tmp_path / 'a', tmp_path / 'b'):
            folder.chmod(0o755)


# --- a split --------------------------------------------------------------------------------------------------------

def test_split_counts_shapes_and_labels(path):
    for split, count in (('train', 7), ('test', 4)):
        dataset = SkeletonDataset(path, split, V)
        assert (len(dataset), dataset.num_bodies, dataset.num_classes) == (count, M, 3)
        assert isinstance(dataset.x, np.memmap) and os.fspath(dataset.x.filename) == os.fspath(path)
        batch = whole(dataset)
        assert batch.label.tolist() == [i % 3 for i in range(count)]
        assert batch.index.tolist() == list(range(count)) and batch.position.tolist() == [10 + i for i in range(count)]
        assert batch.num_valid.tolist() == [1 + (5 * i + 3) % T for i in range(count)]
        assert batch.frames.shape == (batch.num_valid.sum(), M, V, 3) and batch.frames.dtype == torch.float32
        assert batch.first.tolist() == [0, *batch.num_valid.cumsum(0)[:-1]] and batch.first.dtype == torch.int64
        assert all(field.is_contiguous() for field in batch)        # others are copied to a GPU by way of a temporary


def test_rows_are_body_major_then_joint_then_coordinate(path):
    raw = members()['x_train']
    for row, clip in zip(raw, clips_of(whole(SkeletonDataset(path, 'train', V))), strict=True):
        assert not row[len(clip):].any()
        for body, joint, axis in itertools.product(range(M), range(V), range(3)):
            column = row[:len(clip), (body * V + joint) * 3 + axis]
            np.testing.assert_array_equal(clip[:, body, joint, axis], column)


@pytest.mark.parametrize('num_joints,bodies', [(25, 1), (25, 2), (20, 1), (17, 3), (5, 10), (50, 1)])
def test_number_of_bodies_follows_from_the_width(tmp_path, num_joints, bodies):
    write_npz(tmp_path / 'f.npz', **members(width=num_joints * bodies * 3))
    dataset = SkeletonDataset(tmp_path / 'f.npz', 'test', num_joints)
    assert dataset.num_bodies == bodies
    assert whole(dataset).frames.shape[1:] == (bodies, num_joints, 3)


def test_zero_rows_inside_a_clip_are_counted_out_but_stay(tmp_path):
    made = members()
    made['x_train'][:] = 0
    made['x_train'][0, [0, 1, 4, 5, 7]] = 1.       # 5 valid frames; rows 2, 3 and 6 are gaps
    made['x_train'][1, :9] = 2.
    made['x_train'][1, 3, :2] = (1, -27 * 2 - 3)   # this row's coordinates sum to zero: 28 · 2 + 1 − 57
    write_npz(tmp_path / 'f.npz', **made)
    batch = SkeletonDataset(tmp_path / 'f.npz', 'train', V)[[(0, 0), (1, 1)]]
    assert batch.num_valid.tolist() == [5, 8]
    gappy, summing_to_zero = clips_of(batch)
    assert gappy[:, 0, 0, 0].tolist() == [1, 1, 0, 0, 1]                        # the first 5 raw rows
    assert summing_to_zero[:, 1, 0, 0].tolist() == [2] * 8


def test_all_zero_clip_is_one_zero_frame(tmp_path):
    made = members()
    made['x_train'][2] = 0
    write_npz(tmp_path / 'f.npz', **made)
    dataset = SkeletonDataset(tmp_path / 'f.npz', 'train', V)
    alone = dataset[[(2, 0)]]
    assert alone.num_valid.tolist() == [1] and alone.frames.shape == (1, M, V, 3) and (alone.frames == 0).all()
    batch, maker = dataset[[(2, 0), (3, 1)]], ClipMaker(16, 'joint', seed=0)
    assert batch.num_valid[0] == 1
    for view in (maker.train_view(batch, 0, 0), maker.eval_view(batch)):
        assert (view[0] == 0).all() and view[1].isfinite().all()


def test_clips_in_any_order_and_more_than_once(path):
    dataset = SkeletonDataset(path, 'train', V)
    everything, batch = whole(dataset), dataset[[(5, 3), (0, 9), (5, 1)]]
    assert batch.index.tolist() == [5, 0, 5] and batch.position.tolist() == [3, 9, 1]
    assert len(batch.frames) == batch.num_valid.sum()
    for row, clip, n in zip(batch.index, clips_of(batch), batch.num_valid, strict=True):
        assert n == everything.num_valid[row]
        assert torch.equal(clip, clips_of(everything)[row])


@pytest.mark.parametrize('dtype', [np.float64, np.float16, '>f4'])
def test_other_floating_point_types_become_float32(tmp_path, dtype):
    made = members()
    made['x_train'] = made['x_train'].astype(dtype)
    write_npz(tmp_path / 'f.npz', **made)
    batch = whole(SkeletonDataset(tmp_path / 'f.npz', 'train', V))
    assert batch.frames.dtype == torch.float32
    for clip, row in zip(clips_of(batch), made['x_train'], strict=True):
        np.testing.assert_array_equal(clip.flatten(1), row[:len(clip)].astype(np.float32))


@pytest.mark.parametrize('dtype', [np.float64, np.float32, np.int64, np.uint8, bool])
def test_labels_of_any_number_type(tmp_path, dtype):
    made = members()
    made['y_train'] = made['y_train'].astype(dtype)
    write_npz(tmp_path / 'f.npz', **made)
    assert SkeletonDataset(tmp_path / 'f.npz', 'train', V).label.tolist() == [i % 3 for i in range(7)]


def test_sample_names_beside_the_members_do_no_harm(tmp_path):
    write_npz(tmp_path / 'f.npz', name_train=np.array(['a'] * 7), **members(), name_test=np.array(['b'] * 4))
    np.testing.assert_array_equal(SkeletonDataset(tmp_path / 'f.npz', 'test', V).x, members()['x_test'])


def test_a_spawned_worker_gets_the_map_not_a_copy(path):
    dataset = SkeletonDataset(path, 'train', V)
    pickled = pickle.dumps(dataset)
    assert len(pickled) < 500 < dataset.x.nbytes
    for one, two in zip(whole(dataset), whole(pickle.loads(pickled)), strict=True):
        assert torch.equal(one, two)


# --- bad files ------------------------------------------------------------------------------------------------------

def opened(path, split='train', num_joints=V):
    return lambda: SkeletonDataset(path, split, num_joints)


def test_missing_file_and_folder(tmp_path):
    refusal(opened(tmp_path / 'none.npz'), tmp_path / 'none.npz', 'no such data file', 'data/prepare_')
    refusal(opened(tmp_path), tmp_path)


@pytest.mark.parametrize('content', [b'', b'P', b'PK', b'hello world' * 100, b'\0' * 5000, b'PK\3\4' + b'\0' * 500])
def test_not_a_zip(tmp_path, content):
    (tmp_path / 'f.npz').write_bytes(content)
    refusal(opened(tmp_path / 'f.npz'), tmp_path / 'f.npz', 'not a whole npz')


def test_npy_under_the_name_of_an_npz(tmp_path):
    with open(tmp_path / 'f.npz', 'wb') as file:
        np.save(file, members()['x_train'])
    refusal(opened(tmp_path / 'f.npz'), tmp_path / 'f.npz', 'not a whole npz')


@pytest.fixture(scope='module')
def whole_files(tmp_path_factory):
    """A stored and a compressed file's bytes, and a place for pieces of them."""
    folder = tmp_path_factory.mktemp('cut')
    write_npz(folder / 'stored.npz', **members())
    np.savez_compressed(folder / 'compressed.npz', **members())
    return folder, [(folder / f'{name}.npz').read_bytes() for name in ('stored', 'compressed')]


@settings(max_examples=80, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(share=st.floats(0, 1, exclude_max=True), compressed=st.booleans())
@example(share=0., compressed=False)
@example(share=0.9999, compressed=False)
@example(share=0.9999, compressed=True)
def test_truncated_anywhere(whole_files, share, compressed):
    folder, contents = whole_files
    content = contents[compressed]
    path = folder / 'f.npz'
    path.write_bytes(content[:int(len(content) * share)])
    refusal(opened(path), path, 'not a whole npz')


@pytest.mark.parametrize('lost', [1, 2, 21, 22, 23, 46, 100])
def test_truncated_in_the_directory(whole_files, lost):
    folder, contents = whole_files
    for content in contents:
        (folder / 'f.npz').write_bytes(content[:-lost])
        refusal(opened(folder / 'f.npz'), folder / 'f.npz')


@settings(max_examples=80, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(begin=st.floats(0, 1, exclude_max=True), lost=st.integers(1, 3000))
def test_a_hole_in_the_file(whole_files, begin, lost):
    # bytes lost in the middle, the directory still there: a clear line, or the right clips if no byte of them is gone
    folder, contents = whole_files
    at = int(len(contents[0]) * begin)
    path = folder / 'f.npz'
    path.write_bytes(contents[0][:at] + contents[0][at + lost:])
    try:
        array = open_member(path, 'x_train')
    except UserError as error:
        assert '\n' not in str(error) and str(path) in str(error)
    else:
        np.testing.assert_array_equal(array, members()['x_train'])


def test_damaged_npy_header(path):
    content = bytearray(path.read_bytes())
    content[content.index(b'\x93NUMPY')] = 0
    path.write_bytes(content)
    refusal(opened(path), path, 'x_train')


def test_npy_header_that_does_not_parse(path):
    path.write_bytes(path.read_bytes().replace(b'(7, 12, 30)', b'(7, 12, 30 '))
    refusal(opened(path), path, 'x_train')


def test_compressed_member_with_damaged_bytes(tmp_path):
    path = tmp_path / 'small.npz'
    np.savez_compressed(path, **members())
    content = path.read_bytes()
    for at in range(100, 2000, 100):        # all of them in x_train's compressed bytes
        path.write_bytes(content[:at] + bytes(byte ^ 0xff for byte in content[at:at + 20]) + content[at + 20:])
        refusal(lambda: open_member(path, 'x_train'), path)
        assert files_beside(path) == []


def test_compression_nobody_here_knows(tmp_path):
    path = tmp_path / 'small.npz'
    np.savez_compressed(path, x_train=members()['x_train'])
    content = bytearray(path.read_bytes())
    for signature, offset in ((b'PK\3\4', 8), (b'PK\1\2', 10)):
        content[content.index(signature) + offset] = 9      # Deflate64, which some zip programs choose for big files
    path.write_bytes(content)
    refusal(lambda: open_member(path, 'x_train'), path)


def test_header_that_promises_more_than_there_is(path):
    content = path.read_bytes()
    assert content.count(b'(7, 12, 30)') == 1
    path.write_bytes(content.replace(b'(7, 12, 30)', b'(9, 12, 30)'))
    refusal(opened(path), path, 'x_train', '(9, 12, 30)')


def test_wrong_member(tmp_path):
    np.savez(tmp_path / 'f.npz', x=np.zeros(3), labels=np.zeros(3))
    refusal(opened(tmp_path / 'f.npz'), tmp_path / 'f.npz', 'x_train', 'labels, x')
    made = members()
    made.pop('y_test')
    write_npz(tmp_path / 'f.npz', **made)
    refusal(opened(tmp_path / 'f.npz', 'test'), tmp_path / 'f.npz', 'y_test')
    opened(tmp_path / 'f.npz', 'train')()


X, Y = members()['x_train'], members()['y_train']
TWO_ONES, NO_ONE, HALF, NOT_A_NUMBER = (Y.copy() for _ in range(4))
TWO_ONES[3], NO_ONE[3], HALF[3], NOT_A_NUMBER[3] = (1, 1, 0), 0, (0.5, 0.5, 0), np.nan
BAD = {
    'two axes': ({'x_train': X[0]}, ['x_train', '(12, 30)']),
    'four axes': ({'x_train': X[..., None]}, ['x_train', '(7, 12, 30, 1)']),
    'whole numbers': ({'x_train': X.astype(np.int64)}, ['x_train', 'int64']),
    'complex numbers': ({'x_train': X.astype(np.complex64)}, ['x_train', 'complex64']),
    'not whole bodies': ({'x_train': X[..., :28]}, ['28', f'{V} joints', '--num_joints']),
    'less than a body': ({'x_train': X[..., :6]}, ['6', f'{V} joints']),
    'no coordinates': ({'x_train': X[..., :0]}, []),
    'no frames': ({'x_train': X[:, :0]}, ['train']),
    'no clips': ({'x_train': X[:0], 'y_train': Y[:0]}, ['train', 'empty']),
    'a label less': ({'y_train': Y[:6]}, ['y_train', '(6, 3)', '7']),
    'a label more': ({'y_train': np.concatenate((Y, Y[:1]))}, ['y_train', '(8, 3)', '7']),
    'class numbers': ({'y_train': Y.argmax(1)}, ['y_train', '(7,)']),
    'two ones': ({'y_train': TWO_ONES}, ['y_train', 'one-hot']),
    'no one': ({'y_train': NO_ONE}, ['y_train', 'one-hot']),
    'smoothed': ({'y_train': HALF}, ['y_train', 'one-hot']),
    'no number': ({'y_train': NOT_A_NUMBER}, ['y_train', 'one-hot']),
    'minus one': ({'y_train': -Y}, ['y_train', 'one-hot']),
    'no classes': ({'y_train': Y[:, :0]}, ['y_train']),
    'text for labels': ({'y_train': np.array([['a', 'b', 'c']] * 7)}, ['y_train']),
}


@pytest.mark.parametrize('changed,naming', BAD.values(), ids=BAD)
def test_members_that_do_not_fit(tmp_path, changed, naming):
    path = tmp_path / 'f.npz'
    write_npz(path, **members() | changed)
    refusal(opened(path), path, *naming)


def damaged_file(folder, value, row=4):
    made = members(clips=20)
    made['x_train'][row, 0, 7] = value
    write_npz(folder / 'f.npz', **made)
    return SkeletonDataset(folder / 'f.npz', 'train', V)


@pytest.mark.parametrize('value', [np.nan, np.inf, -np.inf])
def test_damaged_clip_is_named(tmp_path, value):
    dataset = damaged_file(tmp_path, value)
    answer = dataset[[(3, 0), (4, 1), (5, 2)]]
    assert isinstance(answer, UserError) and '\n' not in str(answer)
    assert 'clip 4 of x_train' in str(answer) and str(tmp_path / 'f.npz') in str(answer)
    assert isinstance(dataset[[(3, 0), (5, 2)]], Batch)         # the rest of the file is fine


@pytest.mark.parametrize('value', [np.nan, np.inf])
@pytest.mark.parametrize('workers', [0, 2])
def test_damaged_clip_ends_the_reading_in_one_line(tmp_path, value, workers, capfd):
    dataset = damaged_file(tmp_path, value)
    batches = EvalBatches(range(20), 2, rank=0, world_size=1)
    loader = make_loader(dataset, batches, workers, CPU)
    seen, message = [], None
    try:
        for batch in read_batches(loader, torch.device('cpu')):
            seen.append(batch)
    except UserError as error:
        message = str(error)
        # The traceback holds the loader; without this the workers would stay until the garbage collector finds them,
        # and it then waits for them in vain.
        error.__traceback__ = None
    assert message is not None and '\n' not in message
    assert str(tmp_path / 'f.npz') in message and 'clip 4 of x_train' in message and 'NaN' in message
    assert len(seen) == 2         # what comes before it was delivered
    assert capfd.readouterr().err == ''                         # and no worker wrote a page of its own


# --- training batches -----------------------------------------------------------------------------------------------

def an_epoch(num_clips, batch_size, accum, world, seed=0, epoch=0, first_step=0):
    """One list a step of (row, position), the micro-batches of all processes put together."""
    parts = []
    for rank in range(world):
        batches = TrainBatches(range(num_clips), batch_size, accum, rank, world, seed)
        batches.start_at(epoch, first_step)
        listed = list(batches)
        assert len(listed) == len(batches) and all(len(one) == batch_size for one in listed)
        parts.append(listed)
    steps = len(parts[0]) // accum
    return [[pair for rank in range(world) for micro in range(accum) for pair in parts[rank][step * accum + micro]]
            for step in range(steps)]


@pytest.mark.parametrize('num_clips,effective', [(100, 8), (103, 8), (8, 8), (15, 8), (7, 1), (1020, 64)])
def test_an_epoch_covers_clips_at_most_once_and_drops_the_last(num_clips, effective):
    steps = an_epoch(num_clips, effective, 1, 1)
    rows = [row for step in steps for row, _ in step]
    assert len(steps) == num_clips // effective and len(rows) == len(steps) * effective
    assert len(set(rows)) == len(rows) and set(rows) <= set(range(num_clips))
    assert all([position for _, position in step] == list(range(effective)) for step in steps)


@pytest.mark.parametrize('world,accum', list(itertools.product([1, 2, 4], [1, 2])))
@pytest.mark.parametrize('epoch', [0, 3])
def test_ranks_and_accumulation_share_one_effective_batch(world, accum, epoch):
    expected = an_epoch(101, 16, 1, 1, seed=5, epoch=epoch)
    steps = an_epoch(101, 16 // (world * accum), accum, world, seed=5, epoch=epoch)
    assert len(steps) == len(expected) == 6
    for ours, single in zip(steps, expected, strict=True):
        assert len(ours) == 16
        assert sorted(ours, key=lambda pair: pair[1]) == single         # clip for clip, position for position


@pytest.mark.parametrize('world,accum', [(1, 1), (2, 2)])
@pytest.mark.parametrize('first_step', [0, 1, 4, 6])
def test_resuming_gives_the_tail(world, accum, first_step):
    arguments = {'batch_size': 16 // (world * accum), 'accum': accum, 'world': world, 'epoch': 2}
    assert an_epoch(101, **arguments)[first_step:] == an_epoch(101, **arguments, first_step=first_step)


def test_order_depends_on_seed_and_epoch_only():
    orders = {(seed, epoch): tuple(row for step in an_epoch(64, 8, 1, 1, seed, epoch) for row, _ in step)
              for seed in (0, 1) for epoch in (0, 1, 2)}
    assert len(set(orders.values())) == len(orders)
    assert all(list(order) != sorted(order) for order in orders.values())
    torch.manual_seed(3)
    np.random.seed(3)      # noqa: NPY002 -- the global state is what must not matter
    assert tuple(row for step in an_epoch(64, 8, 1, 1, 1, 2) for row, _ in step) == orders[1, 2]
    batches = TrainBatches(range(64), 8, 1, 0, 1, 0)
    batches.start_at(1)
    assert list(batches) == list(batches)               # a second reading of an epoch is the same


def test_effective_batch_larger_than_the_split():
    refusal(lambda: TrainBatches(range(63), 8, 2, 0, 4, 0), 64, 63, '--effective_batch_size')
    assert TrainBatches(range(64), 8, 2, 0, 4, 0).steps_per_epoch == 1


def test_batches_reach_the_device_as_planned(path):
    dataset = SkeletonDataset(path, 'train', V)
    batches = TrainBatches(range(7), 2, 1, 0, 1, seed=0)
    for epoch in (0, 1):
        batches.start_at(epoch)
        loader = make_loader(dataset, batches, 0, CPU)
        read = [list(zip(b.index.tolist(), b.position.tolist(), strict=True)) for b in read_batches(loader, 'cpu')]
        assert read == [[(int(row), position) for row, position in batch] for batch in batches]


def test_loader_leaves_the_global_generator_alone(path):
    dataset = SkeletonDataset(path, 'train', V)
    torch.manual_seed(0)
    before = torch.get_rng_state()
    for _ in make_loader(dataset, EvalBatches(range(7), 2, 0, 1), 0, CPU):
        pass
    assert torch.equal(torch.get_rng_state(), before)


# --- evaluation batches ---------------------------------------------------------------------------------------------

@pytest.mark.parametrize('num_clips,batch_size,world',
                         list(itertools.product([1, 2, 3, 7, 10, 101], [1, 4, 200], [1, 2, 3, 4])))
def test_evaluation_sees_every_clip_exactly_once(num_clips, batch_size, world):
    rows, shares = [], []
    for rank in range(world):
        batches = EvalBatches(range(num_clips), batch_size, rank, world)
        listed = list(batches)
        assert len(listed) == len(batches) and all(0 < len(one) <= batch_size for one in listed)
        shares.append([row for one in listed for row, _ in one])
        rows += shares[-1]
    assert sorted(rows) == list(range(num_clips))
    sizes = [len(share) for share in shares]
    assert max(sizes) - min(sizes) <= 1 and min(sizes) >= (0 if world > num_clips else 1)


# --- views ----------------------------------------------------------------------------------------------------------

LONG = 150      # frames: longer than 64, so that crops are really random


@pytest.fixture(scope='module')
def long_clips(tmp_path_factory):
    """16 clips of 70 to 145 frames."""
    rng = np.random.default_rng(1)
    x = rng.standard_normal((16, LONG, M * V * 3)).astype(np.float32).cumsum(axis=1, dtype=np.float32)
    for i, clip in enumerate(x):
        clip[70 + 5 * i:] = 0
    y = one_hot(np.arange(16) % 4, 4)
    path = tmp_path_factory.mktemp('long') / 'long.npz'
    write_npz(path, x_train=x, y_train=y, x_test=x, y_test=y)
    return SkeletonDataset(path, 'train', V)


MAKER = ClipMaker(24, 'joint', seed=3)


def random_parts(maker, batch, epoch, step):
    return maker.train_view(batch, epoch, step), maker.mask_uniform(batch, epoch, step, 30).view(-1, M, 30)


@pytest.mark.parametrize('batch_size,accum,world,workers',
                         [(8, 1, 1, 0), (4, 2, 1, 0), (4, 1, 2, 0), (2, 2, 2, 0), (8, 1, 1, 2), (4, 2, 1, 2)])
def test_clips_depend_on_their_position_not_on_the_split_of_the_batch(long_clips, batch_size, accum, world, workers):
    epoch, found = 4, {}
    for rank in range(world):
        batches = TrainBatches(range(16), batch_size, accum, rank, world, seed=3)
        batches.start_at(epoch)
        loader = make_loader(long_clips, batches, workers, CPU)
        for i, batch in enumerate(read_batches(loader, torch.device('cpu'))):
            clips, masks = random_parts(MAKER, batch, epoch, i // accum)
            for j, position in enumerate(batch.position.tolist()):
                found[i // accum, position] = (batch.index[j].item(), clips[j], masks[j])

    whole_batches = TrainBatches(range(16), 8, 1, 0, 1, seed=3)
    whole_batches.start_at(epoch)
    for step, places in enumerate(whole_batches):
        batch = long_clips[places]
        clips, masks = random_parts(MAKER, batch, epoch, step)
        for j in range(8):
            index, clip, mask = found.pop((step, j))
            assert index == batch.index[j] and torch.equal(clip, clips[j]) and torch.equal(mask, masks[j])
    assert not found


def test_a_longer_neighbour_changes_nothing(long_clips):
    alone, beside = long_clips[[(0, 5)]], long_clips[[(15, 0), (0, 5)]]
    assert alone.num_valid[0] < beside.num_valid[0] == beside.first[1]
    for stream in ('joint', 'velocity'):
        maker = ClipMaker(24, stream, seed=3)
        assert torch.equal(maker.train_view(alone, 1, 2)[0], maker.train_view(beside, 1, 2)[1])
        assert torch.equal(maker.eval_view(alone)[0], maker.eval_view(beside)[1])


@pytest.mark.parametrize('other', [{'epoch': 1}, {'step': 1}, {'seed': 4}, {'position': 6}],
                         ids=lambda change: next(iter(change)))
def test_everything_else_changes_the_draw(long_clips, other):
    def made(epoch=0, step=0, seed=3, position=5):
        return random_parts(ClipMaker(24, 'joint', seed), long_clips[[(7, position)]], epoch, step)

    assert all(torch.equal(a, b) for a, b in zip(made(), made(), strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(made(), made(**other), strict=True))


def test_train_view_ignores_and_leaves_the_global_generator(long_clips):
    batch = long_clips[[(7, 5), (8, 6)]]
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = MAKER.train_view(batch, 0, 0)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    assert torch.equal(MAKER.train_view(batch, 0, 0), first)


@pytest.mark.parametrize('max_turn', [None, 0., 1.4])
def test_train_view_is_crop_resize_and_rotation_from_its_own_draws(long_clips, max_turn):
    batch = long_clips[[(i, i) for i in range(16)]]
    p_interval, max_angle = (0.6, 0.8), 0.2
    maker = ClipMaker(24, 'joint', 3, p_interval, max_angle, max_turn)
    kept, resize_crops, turns = {}, transforms.resize_crops, []
    most = max_angle if max_turn is None else max_turn

    def spy(frames, begin, length, window):
        kept.update(begin=begin, length=length)
        return resize_crops(frames, begin, length, window)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr('feeder.augment.transforms.resize_crops', spy)
        view = maker.train_view(batch, 0, 0)
    resized = resize_crops(batch.frames, kept['begin'], kept['length'], 24)
    assert (kept['begin'] >= batch.first).all()
    assert (kept['begin'] + kept['length'] <= batch.first + batch.num_valid).all()
    share = kept['length'] / batch.num_valid
    assert (kept['length'] >= 64).all() and (share[kept['length'] > 64] <= 0.8).all()
    # every clip was turned as one piece: lengths and the angles between joints are those of the resized crop
    torch.testing.assert_close(view.norm(dim=1), resized.norm(dim=1))
    for before, after in zip(resized.flatten(2).double(), view.flatten(2).double(), strict=True):
        turn = torch.linalg.lstsq(before.T, after.T).solution.T
        torch.testing.assert_close(turn @ turn.T, torch.eye(3, dtype=torch.float64), atol=1e-4, rtol=0)
        # R = Rz·Ry·Rx with these signs: the angles read off the matrix lie within their bounds
        ay = torch.asin(turn[2, 0])
        ax, az = torch.atan2(-turn[2, 1], turn[2, 2]), torch.atan2(-turn[1, 0], turn[0, 0])
        assert max(abs(ax), abs(az)) <= max_angle + 1e-4 and abs(ay) <= most + 1e-4
        turns.append(abs(ay))
    assert max(turns) >= most / 2       # of 16 draws


def draws(maker, batch, purpose_calls):
    """What `maker.uniform` returned while `purpose_calls` ran, by order of call."""
    returned, original = [], ClipMaker.uniform
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ClipMaker, 'uniform', lambda *a: returned.append(original(*a)) or returned[-1])
        purpose_calls(maker, batch)
    return returned


def test_crop_rotation_and_mask_are_independent_streams(long_clips):
    positions = range(2000)
    batch = Batch(torch.zeros(2000, M, V, 3), torch.arange(2000), torch.ones(2000, dtype=torch.long),
                  *(torch.tensor(positions),) * 3)
    crop, angles = draws(MAKER, batch, lambda maker, b: maker.train_view(b, 0, 0))
    (mask,) = draws(MAKER, batch, lambda maker, b: maker.mask_uniform(b, 0, 0, 2))
    assert crop.shape == (2000, 2) and angles.shape == (2000, 3) and mask.shape == (2000, 2 * M)
    numbers = torch.cat((crop, angles, mask), dim=1)
    assert ((numbers >= 0) & (numbers < 1)).all()
    assert len(numbers.unique()) > 0.998 * numbers.numel()          # 24-bit numbers: no column repeats another
    off = torch.corrcoef(numbers.T) - torch.eye(numbers.shape[1])
    assert off.abs().max() < 0.1                                    # 4.5 standard deviations
    assert (numbers.mean(dim=0) - 0.5).abs().max() < 0.03 and (numbers.std(dim=0) - 12**-0.5).abs().max() < 0.02


def test_training_crops_and_angles_cover_their_ranges(long_clips):
    num = 3000
    first, num_valid = torch.full((num,), 1000), torch.full((num,), 300)
    batch = Batch(torch.zeros(1300, M, V, 3), first, num_valid, *(torch.arange(num),) * 3)
    crops, angles = [], []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr('feeder.augment.transforms.resize_crops', lambda frames, *crop: crops.append(crop) or frames)
        patch.setattr('feeder.augment.transforms.rotate', lambda clips, drawn: angles.append(drawn) or clips)
        ClipMaker(24, 'joint', seed=0).train_view(batch, 0, 0)
    ((start, length, window),), (angles,) = crops, angles
    assert window == 24 and length.min() >= 150 and length.max() < 300 and length.max() - length.min() > 145
    start = start - 1000                # where each clip begins
    assert start.min() == 0 and ((start + length) <= 300).all() and ((start + length) == 300).any()
    assert angles.shape == (num, 3) and -0.3 <= angles.min() < -0.29 and 0.29 < angles.max() <= 0.3
    assert angles.mean(dim=0).abs().max() < 0.02


def test_mask_numbers_are_sample_major(long_clips):
    batch = long_clips[[(0, 4), (1, 9), (2, 1)]]
    numbers = MAKER.mask_uniform(batch, 2, 3, 60)
    assert numbers.shape == (3 * M, 60) and len(numbers.unique()) > 355
    for i, position in enumerate((4, 9, 1)):                        # rows i·M … are the bodies of clip i
        alone = MAKER.mask_uniform(long_clips[[(5, position)]], 2, 3, 60)
        assert torch.equal(numbers[i * M:(i + 1) * M], alone)


@pytest.mark.parametrize('stream', ['joint', 'bone', 'velocity'])
def test_eval_view_is_the_middle_95_percent_and_has_no_randomness(stream, tmp_path):
    rng = np.random.default_rng(2)
    x = rng.standard_normal((4, LONG, 75)).astype(np.float32)
    write_npz(tmp_path / 'f.npz', x_train=x, y_train=one_hot([0] * 4, 2), x_test=x, y_test=one_hot([1] * 4, 2))
    dataset = SkeletonDataset(tmp_path / 'f.npz', 'test', 25)
    view = ClipMaker(24, stream, seed=0).eval_view(dataset[[(i, 0) for i in range(4)]])
    other = ClipMaker(24, stream, 99, (0.1, 0.2), 3.).eval_view(dataset[[(i, 7 - i) for i in range(4)]])
    assert torch.equal(view, other) and view.shape == (4, 3, 24, 25, 1)
    crop = torch.from_numpy(x[:, 3:147]).reshape(-1, 1, 25, 3)      # int(0.05 · 150 / 2) = 3 frames off each end
    clips = transforms.resize_crops(crop, torch.arange(4) * 144, torch.full((4,), 144), 24)
    expected = {'joint': clips, 'bone': transforms.bone(clips, parents_of(25)),
                'velocity': transforms.velocity(clips)}[stream]
    torch.testing.assert_close(view, expected, atol=1e-4, rtol=0)


def test_streams_of_the_training_view(tmp_path):
    write_npz(tmp_path / 'f.npz', **members(frames=80, width=60))
    dataset = SkeletonDataset(tmp_path / 'f.npz', 'train', 20)
    batch = whole(dataset)
    joint, bone, velocity = (ClipMaker(16, stream, seed=0).train_view(batch, 1, 2)
                             for stream in ('joint', 'bone', 'velocity'))
    # one crop and one rotation for all of them: the streams of a clip can be ensembled
    assert torch.equal(bone, joint - joint[:, :, :, parents_of(20)])
    assert torch.equal(velocity[:, :, :-1], joint[:, :, 1:] - joint[:, :, :-1]) and (velocity[:, :, -1] == 0).all()
    assert not torch.equal(joint, bone)


def test_bones_of_an_unknown_layout_are_the_users_error(long_clips):
    batch = long_clips[[(0, 0)]]
    refusal(lambda: ClipMaker(24, 'bone', seed=0).eval_view(batch), f'{V} joints')
    ClipMaker(24, 'velocity', seed=0).eval_view(batch)


def test_batch_moves_as_one():
    batch = Batch(*(torch.arange(3) for _ in Batch._fields))
    moved = batch.to(torch.device('meta'))
    assert isinstance(moved, Batch) and all(field.device.type == 'meta' for field in moved)


def test_a_spawned_worker_gets_the_name_of_the_file_not_its_content(tiny_npz):
    """Pickling a memory map would copy the whole data set into every worker."""
    dataset = SkeletonDataset(tiny_npz, 'train', 5)
    pickled = pickle.dumps(dataset)
    assert len(pickled) < 1000
    again = pickle.loads(pickled)
    assert isinstance(again.x, np.memmap) and np.array_equal(again.x, dataset.x)


def test_processes_that_start_together_share_one_unpacked_file(tmp_path):
    """Each unpacking for itself would leave all but the last one with a file that has no name any more."""
    path = tmp_path / 'small.npz'
    np.savez_compressed(path, **members(clips=2000))
    code = ('import os, sys; from feeder.npz import open_member; x = open_member(sys.argv[1], "x_train"); '
            'print(x.sum(), [line.split()[4] for line in open("/proc/self/maps") if ".npy" in line])')
    together = [subprocess.Popen([sys.executable, '-c', code, str(path)], stdout=subprocess.PIPE, text=True)
                for _ in range(3)]
    said = {process.communicate()[0] for process in together}
    assert len(said) == 1 and '[]' not in said.pop()
    assert [p.suffix for p in sorted(tmp_path.iterdir())] == ['.npz', '.npy']
