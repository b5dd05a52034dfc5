"""Recordings of all formats are read as preparation writes them; damaged files are refused in one line."""

import json
import pickle
from itertools import product

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from data import prepare_nwucla, prepare_pku
from data.dataset_file import one_hot, write_npz
from data.formats import read_recording, read_recordings
from data.formats.bvh import read_bvh
from data.formats.pyskl import read_pickle
from data.formats.recording import valid_frames
from feeder.layouts import Layout, make_layout, read_layout
from tests.conftest import refusal
from tests.data.raw_files import read_npz, unpack, write_files
from util.errors import UserError

V2, V1 = map(read_layout, ('kinect-v2', 'kinect-v1'))


def read_clips(path):
    """{name: (padded frames (T, width), label)} of a dataset file."""
    members = read_npz(path)
    return {name: (x, y.argmax()) for split in ('train', 'test') for name, x, y in zip(
        *(members[f'{kind}_{split}'] for kind in ('name', 'x', 'y')), strict=True)}


def assert_same(recording, x, label):
    rows = recording.frames.reshape(len(recording.frames), -1)
    assert rows.dtype == np.float32 and recording.label in (label, None)
    np.testing.assert_array_equal(rows, x[:len(rows), :rows.shape[1]])
    assert not x[len(rows):].any() and not x[:, rows.shape[1]:].any()


def test_pku_as_prepared(tmp_path):
    raw = unpack('pku_excerpt_raw.tar.xz', tmp_path) / 'pku_v1'
    prepare_pku.main(['--phase', '1', '--raw', str(raw), '--out', str(tmp_path), '--workers', '1'])
    clips = read_clips(tmp_path / 'PKUv1_XSub.npz')
    assert len(clips) > 1
    for name, clip in clips.items():
        stem, number = name.rsplit('_', 1)
        recording = read_recording(raw / f'skeleton/{stem}.txt', centre=False)
        start, end = map(int, (raw / f'label/{stem}.txt').read_text().split()[int(number) - 1].split(',')[1:3])
        assert_same(recording._replace(frames=recording.frames[start:min(end, start + 300)]), *clip)


def test_nwucla_as_prepared(tmp_path):
    """A zero first frame is dropped before centring."""
    frames = np.random.default_rng(0).normal(size=(6, 20, 3))
    frames[[0, 2]] = frames[3, 7] = 0
    for name in ('a02_s01_e00_v01', 'a02_s01_e00_v03'):
        content = {'file_name': name, 'skeletons': frames.tolist(), 'label': 2}
        write_files(tmp_path, {f'all_sqe/{name}.json': json.dumps(content).encode()})
    prepare_nwucla.main(['--raw', str(tmp_path), '--out', str(tmp_path), '--protocol', 'xview'])
    recording = read_recording(tmp_path / f'all_sqe/{name}.json')
    assert recording.layout == V1 and recording.label == 1
    kept = frames[[1, 3, 4, 5], None]
    np.testing.assert_array_equal(recording.frames, np.float32(kept - kept[0, 0, 1]))
    assert_same(recording, *read_clips(tmp_path / 'NWUCLA_XView.npz')[name])


def test_npy(tmp_path):
    frames = np.random.default_rng(1).normal(3, 1, (7, 2, 25, 3))
    frames[:2, 0] = frames[5:, 1] = 0   # body 0 comes in frame 2, body 1 leaves in frame 5
    frames[3] = 0                       # without a body
    np.save(tmp_path / 'a.npy', frames * 100)
    recording = read_recording(tmp_path / 'a.npy', scale=0.01)
    kept = frames[[0, 1, 2, 4, 5, 6]]
    expected = (kept - frames[2, 0, 1]) * kept.any(axis=(2, 3), keepdims=True)   # the spine, first frame of body 0
    assert (recording.name, recording.layout, recording.label, recording.frames.dtype) == ('a', V2, None, np.float32)
    np.testing.assert_allclose(recording.frames, expected, rtol=0, atol=2e-7)
    np.testing.assert_allclose(read_recording(tmp_path / 'a.npy', centre=False).frames, 100 * kept, rtol=1e-7)
    swapped = frames.swapaxes(0, 1)
    for saved, bodies_first, note in ((frames, None, '--bodies_first selects'), (frames, False, ''),
                                      (swapped, None, '--no-bodies_first'), (swapped, True, '')):
        np.save(tmp_path / 'a.npy', saved)
        again = read_recording(tmp_path / 'a.npy', bodies_first=bodies_first)
        np.testing.assert_allclose(again.frames, expected, rtol=0, atol=2e-7)
        assert note in str(again.notes) and bool(again.notes[1:]) == bool(note)


def test_invalid_files_and_arrays(tmp_path):
    good = np.ones((2, 25, 3))
    for array, part in ((0 * good, 'all coordinates are zero'), (good[..., :1], '(2, 25, 1)'),
                        (good[:0], '(0, 1, 25, 3)'), (np.nan * good, 'frame 0 ('), (good + 1j, 'complex128')):
        np.save(tmp_path / 'a.npy', array)
        refusal(lambda: read_recording(tmp_path / 'a.npy'), tmp_path / 'a.npy', part)
    for name, content, part in (
            ('a.skeleton', b'1\n1\n', 'line 2'), ('a.txt', b'1 2 3\n', 'line 1'), ('a.json', b'{', 'JSON'),
            ('b.npy', b'', 'damaged'), ('a.npz', b'x', 'not a complete npz'), ('a.doc', b'', 'unknown file suffix'),
            ('a.pkl', pickle.dumps(list(range(99)))[:50], 'not a complete pickle')):
        (tmp_path / name).write_bytes(content)
        refusal(lambda name=name: read_recording(tmp_path / name), tmp_path / name, part)
    np.save(tmp_path / 'nine.npy', np.ones((3, 9, 3)) + np.arange(9)[:, None])
    refusal(lambda: read_recording(tmp_path / 'nine.npy', 'coco-17'), '9 joints', 'coco-17 has 17')


def dataset_file(path, names=True, **change):
    rng = np.random.default_rng(2)
    x = rng.normal(size=(3, 6, 150)).astype(np.float32)
    x[0, 4:], x[1, 2], x[1, 5:], x[2, :, 75:] = 0, 0, 0, 0
    members = {'x_train': x, 'y_train': one_hot([2, 0, 1], 3), 'x_test': x[:1] + 1, 'y_test': one_hot([1], 3)}
    if names:
        members |= {'name_train': np.array(['a', 'b', 'c']), 'name_test': np.array(['d'])}
    write_npz(path, **members | change)


def test_npz(tmp_path):
    dataset_file(tmp_path / 'CTR-GCN.npz', names=False)
    assert [recording.name for recording in read_recordings(tmp_path / 'CTR-GCN.npz')] == [
        'train_0', 'train_1', 'train_2', 'test_0']
    dataset_file(tmp_path / 'f.npz')
    recordings = list(read_recordings(tmp_path / 'f.npz'))
    assert [(recording.name, recording.label, len(valid_frames(recording.frames))) for recording in recordings] == [
        ('a', 2, 4), ('b', 0, 4), ('c', 1, 6), ('d', 1, 6)]
    assert {recording.layout for recording in recordings} == {V2}
    content = read_npz(tmp_path / 'f.npz')
    for recording, x in zip(recordings, [*content['x_train'], *content['x_test']], strict=True):
        assert_same(recording, x, recording.label)
    refusal(lambda: read_recording(tmp_path / 'f.npz'), 'several clips')
    refusal(lambda: list(read_recordings(tmp_path / 'f.npz', 'kinect-v1')), '150 numbers', '20 joints')
    five = make_layout('five', {'a': None, 'b': 0, 'c': 0, 'd': 0, 'e': 0}, '')
    assert next(read_recordings(tmp_path / 'f.npz', five)).frames.shape == (4, 10, 5, 3)
    test, = read_recordings(tmp_path / 'f.npz', split='test', num_joints=10)
    assert test.frames.shape == (6, 5, 10, 3) and test.layout is None
    dataset_file(tmp_path / 'f.npz', x_test=np.ones((1, 6, 7)))
    refusal(lambda: list(read_recordings(tmp_path / 'f.npz')), tmp_path / 'f.npz', '7 numbers')


def pyskl_content():
    rng = np.random.default_rng(3)
    return {'split': {}, 'annotations': [
        {'frame_dir': f'clip{i}', 'label': i, 'keypoint': rng.normal(size=(1 + i % 2, 4 + i, 25, 3)).astype(np.float16)}
        for i in (0, np.int64(1), 2)]}


@pytest.mark.parametrize('protocol', [0, 2, 5])
def test_pyskl(protocol, tmp_path):
    content = pyskl_content()
    numpy2 = pickle.dumps(content, protocol)
    numpy1 = numpy2.replace(b'cnumpy._core', b'cnumpy.core')
    for written in (numpy2, numpy1, pickle.dumps(content['annotations'], protocol)):
        (tmp_path / 'a.pkl').write_bytes(written)
        for recording, annotation in zip(read_recordings(tmp_path / 'a.pkl'), content['annotations'], strict=True):
            assert (recording.name, recording.label) == (annotation['frame_dir'], annotation['label'])
            keypoint = annotation['keypoint'].astype(np.float64).transpose(1, 0, 2, 3)
            np.testing.assert_allclose(recording.frames, keypoint - keypoint[0, 0, 1], atol=1e-6)
            assert recording.frames.dtype == np.float32 and recording.layout == V2


def test_arrays_in_pickles(tmp_path):
    """Orders, byte orders and types of NumPy."""
    arrays = [np.arange(6, dtype='>f4').reshape(3, 2), np.arange(6.).reshape(3, 2).T, np.array([], np.int32),
              np.arange(24, dtype=np.float16).reshape(2, 3, 4)[:, ::2], np.array([True, False]), np.array(3, np.uint8)]
    for array, protocol in product(arrays, (0, 2, 4, 5)):
        if array.size or protocol > 2:
            (tmp_path / 'a').write_bytes(pickle.dumps(array, protocol))
            values = read_pickle(tmp_path / 'a')
            np.testing.assert_array_equal(values, array)
            assert values.dtype.newbyteorder('=') == array.dtype.newbyteorder('=')


def test_the_other_clips_of_a_file_with_a_damaged_one_are_read(tmp_path):
    for change, part in (({'keypoint': np.ones((1, 4, 17, 4), np.float16)}, '4 numbers per joint'),
                         ({'label': 1.5}, 'label'), ({'frame_dir': 'a\nb'}, 'frame_dir')):
        content = pyskl_content()
        content['annotations'][1] |= change
        (tmp_path / 'a.pkl').write_bytes(pickle.dumps(content))
        first, error, last = read_recordings(tmp_path / 'a.pkl')
        assert isinstance(error, UserError) and part in str(error) and 'annotation 1' in str(error)
        assert (first.name, last.name) == ('clip0', 'clip2')


ARM = """HIERARCHY
ROOT Hips
{
  OFFSET 1 2 3
  CHANNELS 6 Xposition Yposition Zposition Zrotation Xrotation Yrotation
  JOINT Left Arm
  {
    OFFSET 10 0 0
    CHANNELS 3 Zrotation Yrotation Xrotation
    JOINT Hand
    {
      OFFSET 5 0 0
      CHANNELS 6 Xposition Yposition Zposition Yrotation Xrotation Zrotation
      End Site
      {
        OFFSET 1 1 1
      }
    }
  }
  JOINT Leg
  {
    OFFSET 0 -4 0
    CHANNELS 0
  }
}
MOTION
Frames: 3
Frame Time: 0.0333333
0 0 0 0 0 0  0 0 0  5 0 0 0 0 0
100 0 0 90 0 0  0 90 0  6 0 0 0 0 0
0 0 0 0 90 0  90 0 0  5 0 0 77 0 0
"""
# By hand; position channels replace the offset. Frame 1: the root moves to 100, 0, 0 and turns x to y (and y to −x);
# the arm turns its own x to −z, 6 from the hand. Frame 2: the root turns y to z; the arm, its x to y, hence to z.
POSITIONS = [[[0, 0, 0], [10, 0, 0], [15, 0, 0], [0, -4, 0]],
             [[100, 0, 0], [100, 10, 0], [100, 10, -6], [104, 0, 0]],
             [[0, 0, 0], [10, 0, 0], [10, 0, 5], [0, 0, -4]]]


def test_bvh_by_hand(tmp_path):
    """Also with the spellings and line ends of other programs."""
    places, layout = read_bvh(ARM.encode(), 'arm')
    np.testing.assert_allclose(places, POSITIONS, atol=1e-12)
    assert layout == Layout('arm', ('Hips', 'Left Arm', 'Hand', 'Leg'), (0, 0, 1, 0))
    text = ARM.replace('End Site', 'End site').replace('Frames: 3', 'frames : 3').replace('Arm\n  {', 'Arm {')
    (tmp_path / 'arm.bvh').write_bytes(text.replace('\n', '\r\n').replace('  ', '\t').encode())
    recording = read_recording(tmp_path / 'arm.bvh', scale=0.01)
    assert recording.layout == layout and recording.label is None and recording.name == 'arm'
    expected = np.array(POSITIONS, float)[:, None] / 100
    np.testing.assert_allclose(recording.frames, expected - expected[0, 0, 0], atol=1e-6)
    names = Layout('mine', ('a', 'b', 'c', 'd'), (0, 0, 1, 0))
    assert read_recording(tmp_path / 'arm.bvh', names).layout == names


@pytest.mark.parametrize('seed', range(4))
def test_bvh_against_scipy(seed):
    """A random tree, every order of rotations, against a recursion over joints, frame by frame."""
    rng = np.random.default_rng(seed)
    tree = [None, *(int(rng.integers(0, i)) for i in range(1, 12))]
    offsets = rng.normal(size=(12, 3)).round(4)
    orders = [''.join(rng.permutation(list('XYZ'))) for _ in tree]
    text, order = ['HIERARCHY'], []

    def write(joint):
        order.append(joint)
        moved = '6 Xposition Yposition Zposition' if joint == 0 else '3'
        text.extend([f'{"ROOT" if joint == 0 else "JOINT"} j{joint}', '{', 'OFFSET {} {} {}'.format(*offsets[joint]),
                     f'CHANNELS {moved} ' + ' '.join(f'{axis}rotation' for axis in orders[joint])])
        for child in (i for i, parent in enumerate(tree) if parent == joint):
            write(child)
        text.append('}')

    write(0)
    motion = rng.uniform(-180, 180, (5, 39)).round(3)
    text += ['MOTION', 'Frames: 5', 'Frame Time: 0.01', *(' '.join(map(str, row)) for row in motion.tolist())]
    places, layout = read_bvh('\n'.join(text).encode(), 'x')
    assert layout.joints == tuple(f'j{joint}' for joint in order)
    assert layout.as_map() == {f'j{joint}': f'j{parent or 0}' for joint, parent in enumerate(tree)}
    for row, expected in zip(motion, places, strict=True):
        at, turned = {}, {}
        for number, joint in enumerate(order):
            turn = Rotation.from_euler(orders[joint], row[3 + 3 * number:6 + 3 * number], degrees=True)
            parent = tree[joint]
            at[joint] = row[:3] if parent is None else at[parent] + turned[parent].apply(offsets[joint])
            turned[joint] = turn if parent is None else turned[parent] * turn
            np.testing.assert_allclose(expected[number], at[joint], atol=1e-9)


@pytest.mark.parametrize('old, new, part', [
    ('HIERARCHY', 'HIRARCHY', 'HIERARCHY'), ('Frame Time', 'Time', 'Frame Time'), ('Frames: 3', 'Frames: 4', '4 fra'),
    ('0 0 0 0 90 0 ', '0 0 0 0 90 ', 'not have 15 numbers each'), ('100 0 0 90', 'nan 0 0 90', 'frame 1 ('),
    ('OFFSET 0 -4 0', 'OFFSET 0 -4', 'line 22'), ('CHANNELS 0', 'CHANNELS 2 Xrotation', "line 23: 'CHANNELS'"),
    ('Leg', 'Hand', 'unique name'), ('JOINT Leg', 'ROOT Leg', "line 20: 'ROOT'"), ('}\nMOTION', 'MOTION', 'a }')])
def test_damaged_bvh(old, new, part, tmp_path):
    text = ARM.replace(old, new, 1)
    assert text != ARM
    (tmp_path / 'a.bvh').write_text(text)
    refusal(lambda: read_recording(tmp_path / 'a.bvh'), tmp_path / 'a.bvh', part)
