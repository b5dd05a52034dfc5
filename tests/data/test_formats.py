"""Recordings of any format: as training prepares them, and nothing of a file is run."""

import json
import os
import pickle
import tarfile

import numpy as np
import pytest

from data import prepare_ntu, prepare_nwucla, prepare_pku
from data.common import one_hot, write_npz
from data.formats import read_recording, read_recordings
from data.formats.bvh import read_bvh
from data.formats.pyskl import read_pickle
from feeder.dataset import SkeletonDataset
from feeder.layouts import LAYOUTS, Layout, make_layout
from tests.conftest import ROOT, refusal

GOLDEN = ROOT / 'tests/golden'
V2, V1, COCO = LAYOUTS
SHARED = os.environ.get('MAMP_SHARED', ROOT / '../shared')


def unpacked(name, folder):
    with tarfile.open(GOLDEN / name) as tar:
        tar.extractall(folder, filter='data')
    return folder


def clips_of(path):
    """{name: (frames (T, width) as the feeder takes them, label)} of an interchange file."""
    found = {}
    for split in ('train', 'test'):
        with np.load(path) as npz:
            if not len(npz[f'x_{split}']):
                continue
        data = SkeletonDataset(path, split, 1)
        for row, name in enumerate(data.names.tolist()):
            batch = data[[(row, 0)]]
            found[name] = batch.frames.numpy().reshape(len(batch.frames), -1), int(batch.label[0])
    return found


def same(recording, clip, width=None):
    frames, label = clip
    rows = recording.frames.reshape(len(recording.frames), -1)
    assert rows.dtype == np.float32 and not frames[:, rows.shape[1]:].any()
    np.testing.assert_array_equal(rows, frames[:, :rows.shape[1]])
    assert recording.label in (label, None)


def test_ntu_as_prepared(tmp_path):
    raw = unpacked('ntu_excerpt_raw.tar.xz', tmp_path) / 'ntu60'
    prepare_ntu.main(['--dataset', 'ntu60', '--raw', str(raw), '--out', str(tmp_path), '--protocol', 'xsub',
                      '--workers', '1'])
    clips = clips_of(tmp_path / 'NTU60_XSub.npz')
    paths = sorted(raw.glob('*.skeleton'))
    assert len(paths) == len(clips) == 4
    for path in paths:
        recording = read_recording(path)
        assert (recording.name, recording.layout, recording.num_joints) == (path.stem, V2, 25)
        assert recording.label == int(path.stem[-3:]) - 1
        same(recording, clips[path.stem])
    renamed = paths[0].rename(tmp_path / 'mine.skeleton')
    assert read_recording(renamed).label is None
    np.testing.assert_array_equal(read_recording(renamed).frames.reshape(-1)[:9],
                                  clips[paths[0].stem][0].reshape(-1)[:9])


def test_pku_as_prepared(tmp_path):
    raw = unpacked('pku_excerpt_raw.tar.xz', tmp_path) / 'pku_v1'
    prepare_pku.main(['--phase', '1', '--raw', str(raw), '--out', str(tmp_path), '--protocol', 'xsub', '--workers',
                      '1'])
    clips, compared = clips_of(tmp_path / 'PKUv1_XSub.npz'), 0
    for path in (raw / 'skeleton').glob('*.txt'):
        recording, moved = read_recording(path, centre=False), read_recording(path).frames
        assert recording.frames.shape[1:] == (2, 25, 3) and recording.label is None
        first = recording.frames.any(axis=(2, 3))[:, 0].argmax()
        assert not moved[first, 0, 1].any()
        body = recording.frames[first, 0]
        np.testing.assert_allclose(moved[first, 0], body - body[1], atol=1e-6)
        for number, line in enumerate((raw / f'label/{path.name}').read_text().split(), 1):
            start, end = map(int, line.split(',')[1:3])
            if (clip := clips.get(f'{path.stem}_{number:03}')) is not None and end - start <= 300:
                same(recording._replace(frames=recording.frames[start:end]), clip)
                compared += 1
    assert compared > 1


@pytest.fixture
def nwucla(tmp_path):
    rng, folder = np.random.default_rng(0), tmp_path / 'all_sqe'
    folder.mkdir()
    for view in (1, 3):
        name = f'a02_s01_e00_v0{view}'
        frames = rng.normal(size=(6, 20, 3))
        frames[2] = 0
        (folder / f'{name}.json').write_text(json.dumps({'file_name': name, 'skeletons': frames.tolist(), 'label': 2}))
    return folder


def test_nwucla_as_prepared(nwucla, tmp_path):
    prepare_nwucla.main(['--raw', str(nwucla), '--out', str(tmp_path), '--protocol', 'xview'])
    clips = clips_of(tmp_path / 'NWUCLA_XView.npz')
    for path in nwucla.iterdir():
        recording = read_recording(path)
        assert recording.layout == V1 and recording.label == 1 and recording.frames.shape == (5, 1, 20, 3)
        same(recording, clips[path.stem])


@pytest.mark.parametrize('name', ['ntu_raw/S001C001P001R001A001.skeleton', 'pku_raw/A10N08-L.txt'])
def test_real_files(name):
    path = os.path.join(SHARED, 'data', name)
    if not os.path.exists(path):
        pytest.skip(f'no data/{name} in MAMP_SHARED')
    recording = read_recording(path)
    assert recording.layout == V2 and len(recording.frames) > 50
    head, foot = (recording.frames[:, 0, joint] for joint in (3, 15))
    height = np.linalg.norm(head - foot, axis=1)[recording.frames[:, 0].any(axis=(1, 2))]
    assert 1 < np.median(height) < 2.2          # metres


def test_npy(tmp_path):
    frames = np.random.default_rng(1).normal(3, 1, (7, 2, 25, 3))
    frames[:2, 0] = 0                   # body 0 comes in frame 2, body 1 leaves in frame 5
    frames[5:, 1] = 0
    frames[3] = 0                       # nobody
    np.save(tmp_path / 'a.npy', frames * 100)
    got = read_recording(tmp_path / 'a.npy', scale=0.01)
    expected = np.zeros((6, 2, 25, 3))
    for row, t in enumerate((0, 1, 2, 4, 5, 6)):
        for body in range(2):
            if frames[t, body].any():
                expected[row, body] = frames[t, body] - frames[2, 0, 1]         # the spine, first frame of body 0
    assert (got.name, got.layout, got.label, got.frames.dtype) == ('a', V2, None, np.float32)
    np.testing.assert_allclose(got.frames, expected, rtol=0, atol=2e-7)
    np.testing.assert_allclose(read_recording(tmp_path / 'a.npy', centre=False).frames,
                               100 * frames[[0, 1, 2, 4, 5, 6]], rtol=1e-7)


@pytest.mark.parametrize('array, naming', [
    (np.zeros((3, 25, 3)), 'all coordinates are zero'), (np.ones((3, 25)), '(3, 25)'), (np.ones((3, 25, 2)), 'expected (frames'),
    (np.ones((0, 25, 3)), '(0, 1, 25, 3)'), (np.full((2, 25, 3), np.nan), 'frame 0 (from 0)'),
    (np.stack([np.ones((25, 3)), np.full((25, 3), np.inf)]), 'frame 1'), (np.full((2, 25, 3), 1e7), 'too large'),
    (np.ones((2, 25, 3), complex), 'complex128'), (np.full((2, 25, 3), 'x'), '<U1')], ids=str)
def test_arrays_that_are_no_recording(array, naming, tmp_path):
    np.save(tmp_path / 'a.npy', array)
    refusal(lambda: read_recording(tmp_path / 'a.npy'), tmp_path / 'a.npy', naming)


@pytest.mark.parametrize('name, text, naming', [
    ('a.skeleton', b'1\n1\n', ['line 2', 'ends inside a frame']), ('a.txt', b'1 2 3\n', ['line 1', '3 fields']),
    ('a.json', b'{', ['damaged JSON']), ('a.npy', b'', ['damaged']), ('a.npz', b'x', ['not a whole npz']),
    ('a.bvh', b'x', ['MOTION']), ('a.pkl', b'x', ['not a complete pickle']), ('a.pkl', b'', ['not a complete pickle']),
    ('a.csv', b'', ['unknown file suffix', '.skeleton'])])
def test_damaged_files(name, text, naming, tmp_path):
    (tmp_path / name).write_bytes(text)
    message = refusal(lambda: read_recording(tmp_path / name), tmp_path / name, *naming)
    assert message.count(str(tmp_path / name)) == 1 and '; ' in message


def test_options_that_do_not_fit(tmp_path):
    refusal(lambda: read_recording('a.npy', name='mocap'), "'mocap'", 'ntu, pku')
    refusal(lambda: read_recording('a.skeleton', scale=0.01), 'scale 0.01', 'in metres')
    refusal(lambda: read_recording('a.npy', scale=0), 'scale 0')
    np.save(tmp_path / 'a.dat', np.ones(3))         # np.save puts .npy behind it
    (tmp_path / 'a.dat.npy').rename(tmp_path / 'a.dat')
    refusal(lambda: read_recording(tmp_path / 'a.dat'), 'suffix')
    refusal(lambda: read_recording(tmp_path / 'a.dat', name='npy'), '(3,)')


def dataset_file(path, names=True, **change):
    rng = np.random.default_rng(2)
    x = rng.normal(size=(3, 6, 150)).astype(np.float32)
    x[0, 4:], x[1, 2], x[1, 5:], x[2, :, 75:] = 0, 0, 0, 0
    members = {'x_train': x, 'y_train': one_hot([2, 0, 1], 3), 'x_test': x[:1] + 1, 'y_test': one_hot([1], 3)}
    if names:
        members |= {'name_train': np.array(['a', 'b', 'c']), 'name_test': np.array(['d'])}
    write_npz(path, **members | change)
    return x


@pytest.mark.parametrize('names', [True, False], ids=['ours', "CTR-GCN's"])
def test_npz(names, tmp_path):
    x = dataset_file(tmp_path / 'f.npz', names)
    found = list(read_recordings(tmp_path / 'f.npz'))
    assert [one.name for one in found] == (['a', 'b', 'c', 'd'] if names else ['train_0', 'train_1', 'train_2',
                                                                              'test_0'])
    assert [one.label for one in found] == [2, 0, 1, 1] and {one.layout for one in found} == {V2}
    # as the feeder counts: so many frames as do not sum to zero, from the first on
    for one, (frames, label) in zip(found, clips_of(tmp_path / 'f.npz').values(), strict=True):
        same(one, (frames, label))
    assert [len(one.frames) for one in found] == [4, 4, 6, 6]
    np.testing.assert_array_equal(found[2].frames[:, 0], x[2, :, :75].reshape(6, 25, 3))
    refusal(lambda: read_recording(tmp_path / 'f.npz'), 'several clips')
    refusal(lambda: list(read_recordings(tmp_path / 'f.npz', 'kinect-v1')), '150 numbers', '20 joints')
    five = make_layout('five', {'a': None, 'b': 0, 'c': 0, 'd': 0, 'e': 0}, '')
    assert next(read_recordings(tmp_path / 'f.npz', five)).frames.shape == (4, 10, 5, 3)


@pytest.mark.parametrize('change, naming', [
    ({'y_test': np.ones((1, 3))}, 'one-hot'), ({'x_test': np.full((1, 6, 150), np.nan)}, 'clip 0 of x_test'),
    ({'name_test': np.arange(1)}, 'name_test'), ({'x_test': np.ones((1, 6, 7))}, '2 joints'),
    ({'y_test': np.array([['a']])}, 'y_test'),
    ({f'{kind}_{split}': np.zeros((0, *shape)) for split in ('train', 'test') for kind, shape in (
        ('x', (4, 150)), ('y', (3,)))} | {f'name_{split}': np.array([], 'U1') for split in ('train', 'test')},
     'no clip')])
def test_npz_that_is_none_of_ours(change, naming, tmp_path):
    dataset_file(tmp_path / 'f.npz', **change)
    refusal(lambda: list(read_recordings(tmp_path / 'f.npz')), tmp_path / 'f.npz', naming)


def pyskl(count=3, **change):
    rng = np.random.default_rng(3)
    annotations = [{'frame_dir': f'clip{i}', 'label': [5, np.int64(0), 2][i], 'total_frames': 4 + i,
                    'keypoint': rng.normal(size=(1 + i % 2, 4 + i, 25, 3)).astype(np.float16)} for i in range(count)]
    annotations[-1] |= change
    return {'split': {'xsub_train': ['clip0'], 'xsub_val': ['clip1', 'clip2']}, 'annotations': annotations}


@pytest.mark.parametrize('protocol', range(6))
def test_pyskl(protocol, tmp_path):
    content = pyskl()
    (tmp_path / 'a.pkl').write_bytes(pickle.dumps(content, protocol))
    found = list(read_recordings(tmp_path / 'a.pkl'))
    assert [(one.name, one.label) for one in found] == [('clip0', 5), ('clip1', 0), ('clip2', 2)]
    assert {one.layout for one in found} == {V2}
    for one, annotation in zip(found, content['annotations'], strict=True):
        keypoint = annotation['keypoint'].astype(np.float64).transpose(1, 0, 2, 3)
        np.testing.assert_allclose(one.frames, keypoint - keypoint[0, 0, 1], atol=1e-6)
        assert one.frames.dtype == np.float32


@pytest.mark.parametrize('change, naming', [
    ({'keypoint': np.ones((1, 4, 17, 2), np.float16)}, '2 numbers per joint'), ({'keypoint': [1]}, 'keypoint is not'),
    ({'keypoint': np.ones((4, 17, 3))}, 'keypoint is not'), ({'keypoint': np.ones((1, 0, 17, 3))}, 'keypoint is not'),
    ({'label': -1}, 'label'), ({'label': 1.5}, 'label'), ({'label': True}, 'label'), ({'frame_dir': 3}, 'frame_dir'),
    ({'frame_dir': 'a\nb'}, 'frame_dir'), ({'total_frames': 9}, 'total_frames'), ({'total_frames': [9]}, 'total_fr'),
    ({'keypoint': np.full((1, 6, 25, 3), np.nan)}, 'frame 0')])
def test_annotations_that_are_no_skeletons(change, naming, tmp_path):
    (tmp_path / 'a.pkl').write_bytes(pickle.dumps(pyskl(**{'total_frames': 6} | change)))
    if 'total_frames' not in change and isinstance(change.get('keypoint'), np.ndarray):
        change = change | {'total_frames': change['keypoint'].shape[1]}
        (tmp_path / 'a.pkl').write_bytes(pickle.dumps(pyskl(**change)))
    refusal(lambda: list(read_recordings(tmp_path / 'a.pkl')), tmp_path / 'a.pkl', 'annotation 2', naming)


class Command:
    """An object whose pickle creates a file when it is loaded without care."""

    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        return os.system, (f'touch {self.trace}',)


class Calls:
    """An object whose pickle calls a function when it is loaded without care."""

    def __init__(self, function, *args, state=None):
        self.made = (function, args) if state is None else (function, args, state)

    def __reduce__(self):
        return self.made


def exploits(trace):
    touch = f'touch {trace}'
    code = f'__import__("os").system({touch!r})'
    return {
        'os.system': Command(trace), 'eval': Calls(eval, code), 'exec': Calls(exec, code),
        'getattr': Calls(getattr, 'x', 'upper'), 'in an array': np.array([Command(trace)], dtype=object),
        'in a key': {Command(trace): 1}, 'in annotations': {'annotations': [{'keypoint': Command(trace)}]},
        'np.load': Calls(np.load, str(trace)), 'np.save': Calls(np.save, str(trace), np.ones(1)),
        'np.fromfile': Calls(np.fromfile, '/etc/passwd'),
        'np.memmap': Calls(np.memmap, str(trace), 'u1', 'w+', 0, (9,)),
        'open': Calls(open, str(trace), 'w'), 'a class': Calls(Layout, 'a', (), ())}


@pytest.mark.parametrize('protocol', [0, 5])
@pytest.mark.parametrize('kind', exploits('x'))
def test_hostile_pickles_are_refused_and_not_executed(kind, protocol, tmp_path):
    trace = tmp_path / 'trace'
    text = pickle.dumps(exploits(trace)[kind], protocol)
    (tmp_path / 'a.pkl').write_bytes(text)
    refusal(lambda: list(read_recordings(tmp_path / 'a.pkl')), tmp_path / 'a.pkl', 'refused')
    assert not trace.exists()
    if kind in ('os.system', 'eval', 'exec', 'in an array', 'in annotations', 'open', 'np.memmap'):
        pickle.loads(text)                          # that it would have run, read without care
        assert trace.exists()


def test_a_pickle_that_is_cut(tmp_path):
    text = pickle.dumps(pyskl(1), 4)
    for length in range(len(text) - 1, 0, -37):
        (tmp_path / 'a.pkl').write_bytes(text[:length])
        refusal(lambda: read_pickle(tmp_path / 'a.pkl'), 'not a complete pickle')


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
# By hand. Frame 0: nothing turns. Frame 1: the root moves to 101, 2, 3 and turns x to y (and y to −x); the arm turns
# its own x to −z, and the hand stands 6 from it. Frame 2: the root turns y to z; the arm, its x to y, hence to z.
PLACES = [[[1, 2, 3], [11, 2, 3], [16, 2, 3], [1, -2, 3]],
          [[101, 2, 3], [101, 12, 3], [101, 12, -3], [105, 2, 3]],
          [[1, 2, 3], [11, 2, 3], [11, 2, 8], [1, 2, -1]]]


def test_bvh_by_hand(tmp_path):
    places, layout = read_bvh(ARM.encode(), 'arm')
    np.testing.assert_allclose(places, PLACES, atol=1e-12)
    assert layout == Layout('arm', ('Hips', 'Left Arm', 'Hand', 'Leg'), (0, 0, 1, 0))
    (tmp_path / 'arm.bvh').write_bytes(ARM.replace('\n', '\r\n').replace('  ', '\t').encode())
    recording = read_recording(tmp_path / 'arm.bvh', scale=0.01)
    assert recording.layout == layout and recording.label is None and recording.name == 'arm'
    expected = np.array(PLACES, float)[:, None] / 100
    np.testing.assert_allclose(recording.frames, expected - expected[0, 0, 0], atol=1e-6)
    names = Layout('mine', ('a', 'b', 'c', 'd'), (0, 0, 1, 0))
    assert read_recording(tmp_path / 'arm.bvh', names).layout == names


def quaternion(axis, angle):
    q = np.zeros(4)
    q[0], q[1 + 'XYZ'.index(axis)] = np.cos(angle / 2), np.sin(angle / 2)
    return q


def times(a, b):
    w, v, x, u = a[0], a[1:], b[0], b[1:]
    return np.array([w * x - v @ u, *(w * u + x * v + np.cross(v, u))])


def rotated(q, v):
    return times(times(q, np.array([0, *v])), q * [1, -1, -1, -1])[1:]


@pytest.mark.parametrize('seed', range(4))
def test_bvh_against_quaternions(seed):
    """A random tree, every order of rotations, against a recursion over joints with quaternions, frame by frame."""
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
    for t, row in enumerate(motion):
        at, turned = {}, {}
        for number, joint in enumerate(order):
            angles = np.radians(row[3 + 3 * number:6 + 3 * number])
            q = np.array([1., 0, 0, 0])
            for axis, angle in zip(orders[joint], angles, strict=True):
                q = times(q, quaternion(axis, angle))
            if joint == 0:
                at[0], turned[0] = offsets[0] + row[:3], q
            else:
                parent = tree[joint]
                at[joint] = at[parent] + rotated(turned[parent], offsets[joint])
                turned[joint] = times(turned[parent], q)
            np.testing.assert_allclose(places[t, number], at[joint], atol=1e-9)


@pytest.mark.parametrize('old, new, naming', [
    ('HIERARCHY', 'HIRARCHY', ['line 1', 'HIERARCHY']), ('MOTION', 'MOVES', ['MOTION']),
    ('Frames: 3', 'Frames: 4', ['line 27', '4 frames are announced, the file has 3']),
    ('Frames: 3', 'Frames:', ['line 27', 'Frames:']), ('Frame Time: 0.0333333', '0 0', ['line 28', 'Frame Time:']),
    ('0 0 0 0 90 0 ', '0 0 0 0 90 ', ['line 31', '15 numbers']), ('77', 'x', ['line 31']), ('77', 'nan', ['line 31']),
    ('OFFSET 0 -4 0', 'OFFSET 0 -4', ['line 22', '3 numbers']), ('OFFSET 0 -4 0', '', ['line 24', 'without an OFFSET']),
    ('OFFSET 0 -4 0', 'OFFSET 0 inf 0', ['line 22']), ('CHANNELS 0', 'CHANNELS 7', ['line 23', 'CHANNELS']),
    ('CHANNELS 0', 'CHANNELS 2 Xrotation', ['line 23']), ('CHANNELS 0', 'CHANNELS', ['line 23']),
    ('CHANNELS 0', 'CHANNELS 1 Wrotation', ['line 23']), ('Leg', 'Hand', ["line 20: 'Hand'", 'duplicate']),
    ('JOINT Leg', 'JOINT', ['line 20', 'needs a name']), ('JOINT Leg\n  {', 'JOINT Leg\n', ['line 20', '{']),
    ('JOINT Leg', 'ROOT Leg', ["line 20: 'ROOT'", 'unexpected']), ('End Site', 'End Sit', ["'End'", 'unexpected']),
    ('}\nMOTION', 'MOTION', ['incomplete']), ('}\nMOTION', '}\n}\nMOTION', ["'}'", 'unexpected']),
    ('Leg', 'L\u00e9g', ['line 20', 'not plain text'])])
def test_bvh_that_is_damaged(old, new, naming, tmp_path):
    text = ARM.replace(old, new, 1)
    assert text != ARM
    (tmp_path / 'a.bvh').write_text(text)
    refusal(lambda: read_recording(tmp_path / 'a.bvh'), tmp_path / 'a.bvh', *naming)
