"""Recordings of any format: as training prepares them, and nothing of a file is run."""

import json
import os
import pickle
import pickletools
import tarfile

import numpy as np
import pytest

from data import prepare_ntu, prepare_nwucla, prepare_pku
from data.bvh import read_bvh
from data.common import one_hot, write_npz
from data.plain_pickle import PickledArray, read_pickle
from data.recordings import FORMATS, read_recording, read_recordings, tidy
from feeder.dataset import SkeletonDataset
from feeder.layouts import LAYOUTS, Layout, make_layout
from tests.conftest import ROOT, refusal
from tests.util.test_hostile import Command, bounded
from util.errors import UserError

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


# --- the data sets: equal to what their preparation writes, bit by bit --------------------------------------------

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


# --- arrays ---------------------------------------------------------------------------------------------------------

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


def test_npy_of_one_body_without_a_spine(tmp_path):
    frames = np.random.default_rng(1).normal(size=(4, 17, 3)).astype(np.float32)
    np.save(tmp_path / 'a.npy', np.asfortranarray(frames))
    got = read_recording(tmp_path / 'a.npy')
    assert got.layout == COCO and got.frames.shape == (4, 1, 17, 3)
    np.testing.assert_allclose(got.frames[:, 0], frames - frames[0, 0].astype(float), atol=1e-6)
    np.save(tmp_path / 'b.npy', frames[:, :9])
    assert read_recording(tmp_path / 'b.npy').layout is None and read_recording(tmp_path / 'b.npy').num_joints == 9
    (tmp_path / 'nine.yaml').write_text('joints: {j0: , ' + ', '.join(f'j{i}: 0' for i in range(1, 9)) + '}')
    assert read_recording(tmp_path / 'b.npy', str(tmp_path / 'nine.yaml')).layout.name == 'nine'
    refusal(lambda: read_recording(tmp_path / 'b.npy', 'coco-17'), tmp_path / 'b.npy', '9 joints', 'coco-17 17')


@pytest.mark.parametrize('array, naming', [
    (np.zeros((3, 25, 3)), 'all coordinates are zero'), (np.ones((3, 25)), '(3, 25)'), (np.ones((3, 25, 2)), 'neither'),
    (np.ones((0, 25, 3)), '(0, 1, 25, 3)'), (np.full((2, 25, 3), np.nan), 'frame 0 (from 0)'),
    (np.stack([np.ones((25, 3)), np.full((25, 3), np.inf)]), 'frame 1'), (np.full((2, 25, 3), 1e7), 'far off'),
    (np.ones((2, 25, 3), complex), 'complex128'), (np.full((2, 25, 3), 'x'), '<U1')], ids=str)
def test_arrays_that_are_no_recording(array, naming, tmp_path):
    np.save(tmp_path / 'a.npy', array)
    refusal(lambda: read_recording(tmp_path / 'a.npy'), tmp_path / 'a.npy', naming)


def test_an_array_of_objects_is_not_loaded(tmp_path):
    np.save(tmp_path / 'a.npy', np.array([Command(tmp_path / 'trace')], dtype=object), allow_pickle=True)
    refusal(lambda: read_recording(tmp_path / 'a.npy'), 'Python objects')
    assert not (tmp_path / 'trace').exists()


@pytest.mark.parametrize('name, text, naming', [
    ('a.skeleton', b'1\n1\n', ['line 2', 'ends inside a frame']), ('a.txt', b'1 2 3\n', ['line 1', '3 fields']),
    ('a.json', b'{', ['damaged JSON']), ('a.npy', b'', ['damaged']), ('a.npz', b'x', ['not a whole npz']),
    ('a.bvh', b'x', ['MOTION']), ('a.pkl', b'x', ['not a whole pickle']), ('a.pkl', b'', ['not a whole pickle']),
    ('a.csv', b'', ['its suffix', '.skeleton'])])
def test_damaged_files(name, text, naming, tmp_path):
    (tmp_path / name).write_bytes(text)
    message = refusal(lambda: read_recording(tmp_path / name), tmp_path / name, *naming)
    assert message.count(str(tmp_path / name)) == 1 and '; ' in message


@pytest.mark.parametrize('fmt', FORMATS)
def test_a_file_that_is_not_there(fmt, tmp_path):
    refusal(lambda: read_recording(tmp_path / 'none', fmt=fmt), tmp_path / 'none')


def test_options_that_do_not_fit(tmp_path):
    refusal(lambda: read_recording('a.npy', fmt='mocap'), "'mocap'", 'ntu, pku')
    refusal(lambda: read_recording('a.skeleton', scale=0.01), 'scale of 0.01', 'in metres')
    refusal(lambda: read_recording('a.npy', scale=0), 'scale of 0')
    np.save(tmp_path / 'a.dat', np.ones(3))         # np.save puts .npy behind it
    (tmp_path / 'a.dat.npy').rename(tmp_path / 'a.dat')
    refusal(lambda: read_recording(tmp_path / 'a.dat'), 'suffix')
    refusal(lambda: read_recording(tmp_path / 'a.dat', fmt='npy'), '(3,)')


# --- many clips a file ----------------------------------------------------------------------------------------------

def interchange(path, names=True, **change):
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
    x = interchange(tmp_path / 'f.npz', names)
    found = list(read_recordings(tmp_path / 'f.npz'))
    assert [one.name for one in found] == (['a', 'b', 'c', 'd'] if names else ['train_0', 'train_1', 'train_2',
                                                                              'test_0'])
    assert [one.label for one in found] == [2, 0, 1, 1] and {one.layout for one in found} == {V2}
    # as the feeder counts: so many frames as do not sum to zero, from the first on
    for one, (frames, label) in zip(found, clips_of(tmp_path / 'f.npz').values(), strict=True):
        same(one, (frames, label))
    assert [len(one.frames) for one in found] == [4, 4, 6, 6]
    np.testing.assert_array_equal(found[2].frames[:, 0], x[2, :, :75].reshape(6, 25, 3))
    refusal(lambda: read_recording(tmp_path / 'f.npz'), 'many clips')
    refusal(lambda: list(read_recordings(tmp_path / 'f.npz', 'kinect-v1')), '150 numbers', '20 joints')
    five = make_layout('five', {'a': None, 'b': 0, 'c': 0, 'd': 0, 'e': 0}, '')
    assert next(read_recordings(tmp_path / 'f.npz', five)).frames.shape == (4, 10, 5, 3)


@pytest.mark.parametrize('change, naming', [
    ({'y_test': np.ones((1, 3))}, 'row 0 of y_test'), ({'x_test': np.full((1, 6, 150), np.nan)}, 'clip 0 of x_test'),
    ({'name_test': np.arange(1)}, 'name_test'), ({'x_test': np.ones((1, 6, 7))}, '2 joints'),
    ({'y_test': np.array([['a']])}, 'y_test'),
    ({f'{kind}_{split}': np.zeros((0, *shape)) for split in ('train', 'test') for kind, shape in (
        ('x', (4, 150)), ('y', (3,)))} | {f'name_{split}': np.array([], 'U1') for split in ('train', 'test')},
     'no clip')])
def test_npz_that_is_none_of_ours(change, naming, tmp_path):
    interchange(tmp_path / 'f.npz', **change)
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
    ({'keypoint': np.ones((1, 4, 17, 2), np.float16)}, '2 numbers a joint'), ({'keypoint': [1]}, 'keypoint is no'),
    ({'keypoint': np.ones((4, 17, 3))}, 'keypoint is no'), ({'keypoint': np.ones((1, 0, 17, 3))}, 'keypoint is no'),
    ({'label': -1}, 'label'), ({'label': 1.5}, 'label'), ({'label': True}, 'label'), ({'frame_dir': 3}, 'frame_dir'),
    ({'frame_dir': 'a\nb'}, 'frame_dir'), ({'total_frames': 9}, 'total_frames'), ({'total_frames': [9]}, 'total_fr'),
    ({'keypoint': np.full((1, 6, 25, 3), np.nan)}, 'frame 0')])
def test_annotations_that_are_no_skeletons(change, naming, tmp_path):
    (tmp_path / 'a.pkl').write_bytes(pickle.dumps(pyskl(**{'total_frames': 6} | change)))
    if 'total_frames' not in change and isinstance(change.get('keypoint'), np.ndarray):
        change = change | {'total_frames': change['keypoint'].shape[1]}
        (tmp_path / 'a.pkl').write_bytes(pickle.dumps(pyskl(**change)))
    refusal(lambda: list(read_recordings(tmp_path / 'a.pkl')), tmp_path / 'a.pkl', 'annotation 2', naming)


def test_pickles_that_are_no_annotations(tmp_path):
    for content in ([], {}, {'annotations': {}}, {'annotations': []}, 3, None):
        (tmp_path / 'a.pkl').write_bytes(pickle.dumps(content))
        refusal(lambda: list(read_recordings(tmp_path / 'a.pkl')), 'no annotations')
    (tmp_path / 'a.pkl').write_bytes(pickle.dumps({'annotations': [3]}))
    refusal(lambda: list(read_recordings(tmp_path / 'a.pkl')), 'annotation 0', 'no map')
    shared = np.ones((1, 100, 25, 3), np.float16)
    (tmp_path / 'a.pkl').write_bytes(pickle.dumps({'annotations': [
        {'frame_dir': str(i), 'label': 0, 'keypoint': shared} for i in range(50)]}))
    refusal(lambda: list(read_recordings(tmp_path / 'a.pkl')), 'many times over')


# --- pickles --------------------------------------------------------------------------------------------------------

ARRAYS = [np.arange(6.).reshape(2, 3), np.arange(6, dtype='>f4').reshape(3, 2), np.arange(6.).reshape(3, 2).T,
          np.arange(24, dtype=np.float16).reshape(2, 3, 4)[:, ::2], np.array([], np.int32), np.array([True, False]),
          np.array(3, np.uint8)]


@pytest.mark.parametrize('protocol', range(6))
def test_plain_pickles_come_back(protocol, tmp_path):
    plain = {'a': [1, -2, 3.5, None, True, False, 10**30, 'x', 'é€', (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4), (), [], {}],
             'b': {'c': [[]]}, 'd': list(range(3000)), 'e': {str(i): i for i in range(3000)}, 'f': 70000,
             'n': np.float32(0.5), 'x': 'y' * 300}
    (tmp_path / 'a').write_bytes(pickle.dumps(plain, protocol))
    assert read_pickle(tmp_path / 'a') == plain
    if protocol >= 3:
        (tmp_path / 'a').write_bytes(pickle.dumps([b'abc', b'\x00' * 300], protocol))
        assert read_pickle(tmp_path / 'a') == [b'abc', b'\x00' * 300]
    for array in ARRAYS if protocol >= 3 else [array for array in ARRAYS if array.size]:
        (tmp_path / 'a').write_bytes(pickle.dumps({'k': array}, protocol))
        got = read_pickle(tmp_path / 'a')['k']
        assert isinstance(got, PickledArray)
        np.testing.assert_array_equal(got.values, array)
        assert got.values.dtype == array.dtype


def test_numpys_older_spelling_and_python_2(tmp_path):
    array = np.arange(6, dtype=np.float16).reshape(2, 3)
    for protocol in range(5):
        text = pickle.dumps(array, protocol)
        assert b'numpy._core' in text
        old = text.replace(b'cnumpy._core', b'cnumpy.core').replace(b'\x8c\x16numpy._core', b'\x8c\x15numpy.core')
        if protocol == 4:       # the frame's length stands before it
            old = old[:3] + (len(old) - 11).to_bytes(8, 'little') + old[11:]
        assert b'_core' not in old
        np.testing.assert_array_equal(pickle.loads(old), array)
        (tmp_path / 'a').write_bytes(old)
        np.testing.assert_array_equal(read_pickle(tmp_path / 'a').values, array)
    # what Python 2.7 and NumPy 1 wrote: texts of eight bits
    raw = array.tobytes()
    python2 = (b"\x80\x02cnumpy.core.multiarray\n_reconstruct\nq\x00cnumpy\nndarray\nq\x01K\x00\x85U\x01b\x87Rq\x02"
               b"(K\x01K\x02K\x03\x86cnumpy\ndtype\nq\x03U\x02f2K\x00K\x01\x87R(K\x03U\x01<NNNJ\xff\xff\xff\xff"
               b"J\xff\xff\xff\xffK\x00tb\x89U" + bytes([len(raw)]) + raw + b"tb.")
    np.testing.assert_array_equal(pickle.loads(python2, encoding='latin1'), array)
    (tmp_path / 'a').write_bytes(python2)
    np.testing.assert_array_equal(read_pickle(tmp_path / 'a').values, array)


class Calls:
    """Unpickled without care, it calls a function."""

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
        'open': Calls(open, str(trace), 'w'), 'a class': Calls(Layout, 'a', (), ()),
        'a huge array': Calls(np.ndarray, (1 << 40,)),
        'a set': {1, 2}, 'an object': object(), 'a record': np.zeros(2, [('a', 'f4')]),
        'texts': np.array(['a', 'b']), 'dates': np.array(['2020-01-01'], 'M8[D]'), 'complex': np.ones(2, complex)}


@pytest.mark.parametrize('protocol', [0, 2, 4, 5])
@pytest.mark.parametrize('kind', exploits('x'))
def test_no_pickle_is_run(kind, protocol, tmp_path):
    trace = tmp_path / 'trace'
    text = pickle.dumps(exploits(trace)[kind], protocol)
    (tmp_path / 'a.pkl').write_bytes(text)
    with bounded(seconds=600):
        refusal(lambda: list(read_recordings(tmp_path / 'a.pkl')), tmp_path / 'a.pkl', 'refused')
    assert not trace.exists()
    if kind in ('os.system', 'eval', 'exec', 'in an array', 'in annotations', 'open', 'np.memmap'):
        pickle.loads(text)                          # that it would have run, read without care
        assert trace.exists()


def op(name):
    return next(one.code for one in pickletools.opcodes if one.name == name).encode('latin-1')


RECONSTRUCT = b'cnumpy.core.multiarray\n_reconstruct\n'
EMPTY = RECONSTRUCT + b'cnumpy\nndarray\nK\x00\x85C\x01b\x87R'      # an array that has no content yet
DTYPE = b'cnumpy\ndtype\n\x8c\x02f8\x89\x88\x87R'


def state(shape, dtype=DTYPE, raw=b'C\x08' + bytes(8)):
    return b'(K\x01' + shape + dtype + b'\x89' + raw + b't'


HOSTILE = {  # instructions that no pickler writes, and what is said of them
    'a shape beyond its bytes': (EMPTY + state(b'J\xff\xff\xff\x7fJ\xff\xff\xff\x7f\x86') + b'b', 'an array of shape'),
    'a huge first shape': (RECONSTRUCT + b'cnumpy\nndarray\nJ\xff\xff\xff\x7f\x85C\x01b\x87R', 'unusual'),
    'another class for the array': (RECONSTRUCT + b'cnumpy\ndtype\nK\x00\x85C\x01b\x87R', 'unusual'),
    'a name in place of an array': (RECONSTRUCT + b'\x8c\x07ndarrayK\x00\x85C\x01b\x87R', 'unusual'),
    'no shape': (EMPTY + state(b'N') + b'b', 'plain numbers'),
    'a negative shape': (EMPTY + state(b'J\xff\xff\xff\xffJ\xff\xff\xff\xff\x86') + b'b', 'plain numbers'),
    'a number in the place of a dtype': (EMPTY + state(b'K\x01\x85', b'K\x08') + b'b', 'plain numbers'),
    'objects': (b'cnumpy\ndtype\n\x8c\x02O8\x89\x88\x87R', "'O8'"),
    'a dtype with fields': (DTYPE + b'(K\x03\x8c\x01<N\x8c\x01aNtb', 'plain numbers'),
    'the state of a name': (RECONSTRUCT + b'}\x8c\x0c__defaults__)sb', 'state of a Name'),
    'the state of a map': (b'}}b', 'state of a dict'), 'a call of a text': (b'\x8c\x01a)R', 'no name'),
    'a call of an array': (EMPTY + b')R', 'no name'), 'a call of ndarray': (b'cnumpy\nndarray\n)R', 'ndarray'),
    'another encoding': (b'c_codecs\nencode\n\x8c\x01a\x8c\x05rot13\x86R', 'latin1'),
    'a longer name': (b'cnumpy\ncore.multiarray.scalar\n.', 'asks for'),
    'a name of two parts': (op('UNICODE') + b'numpy\n' + op('UNICODE') + b'lib.npyio.load\n\x93', 'lib.npyio.load'),
    'an instance': (b'(cos\nsystem\nX\x01\x00\x00\x00ao', 'os.system'), 'INST': (b'(S"ls"\nios\nsystem\n', 'INST'),
    'an extension': (b'\x82\x01', 'EXT1'), 'a persistent id': (b'Pabc\n', 'PERSID'), 'NEWOBJ': (b')\x81', 'NEWOBJ'),
    'DUP': (b'K\x012', 'DUP'), 'a buffer': (b'\x97', 'NEXT_BUFFER'), 'a key that is a tuple': (b'})K\x01s', 'keys'),
    'a key that is a name': (b'}' + RECONSTRUCT + b'K\x01s', 'keys'),
    'bytes that are not there': (b'\x8e\xff\xff\xff\xff\xff\xff\xff\x0f', 'not a whole pickle'),
    'bytes of a negative number': (op('BINSTRING') + b'\xff\xff\xff\xff', 'not a whole pickle'),
    'a bytearray that is not there': (b'\x96\xff\xff\xff\xff\xff\xff\x00\x00', 'not a whole pickle'),
    'a memo far away': (b']r\xff\xff\xff\x7fj\x00\x00\x00\x01', 'not a whole pickle'),
    'no such memo': (b'h\x07', 'not a whole pickle'), 'an empty stack': (b'R', 'not a whole pickle'),
    'a mark for a value': (b'(.', 'not a whole pickle'), 'no mark': (b']t', 'not a whole pickle'),
    'two values': (b'K\x01K\x02.', 'not a whole pickle'), 'nothing': (b'.', 'not a whole pickle'),
    'no end': (b'K\x01', 'not a whole pickle'), 'a value too many': (b'}(\x8c\x01au.', 'not a whole pickle'),
    'an append to a map': (b'}K\x01a.', 'not a whole pickle'),
    'a mark in the memo': (b'(\x94.', 'not a whole pickle'),
}


@pytest.mark.parametrize('kind', HOSTILE)
def test_hostile_instructions(kind, tmp_path):
    text, naming = HOSTILE[kind]
    (tmp_path / 'a.pkl').write_bytes(b'\x80\x04' + text + b'.')
    if kind in ('no end', 'bytes of a negative number'):
        (tmp_path / 'a.pkl').write_bytes(b'\x80\x04' + text)
    with bounded(seconds=600):
        refusal(lambda: read_pickle(tmp_path / 'a.pkl'), tmp_path / 'a.pkl', naming)


def test_an_array_without_content_is_none(tmp_path):
    (tmp_path / 'a.pkl').write_bytes(b'\x80\x04' + EMPTY + b'.')
    assert read_pickle(tmp_path / 'a.pkl').values is None


def test_nesting_and_endless_lists(tmp_path, monkeypatch):
    """What would take a stack, or for ever, to look through: nobody does."""
    deep = b'\x80\x04]' + b'\x85' * 50_000 + b'.'
    laughs = b'\x80\x04)' + b''.join(b'\x94h' + bytes([i]) + b'\x86' for i in range(60)) + b'.'
    for text in (deep, laughs):
        (tmp_path / 'a.pkl').write_bytes(text)
        with bounded(seconds=600):
            refusal(lambda: list(read_recordings(tmp_path / 'a.pkl')), 'no annotations')
    monkeypatch.setattr('data.plain_pickle.MOST_STEPS', 1000)
    (tmp_path / 'a.pkl').write_bytes(b'\x80\x04' + b'}' * 2000 + b'.')
    refusal(lambda: read_pickle(tmp_path / 'a.pkl'), 'more than 1,000 steps')


def test_a_pickle_that_is_cut(tmp_path):
    text = pickle.dumps(pyskl(1), 4)
    for length in range(len(text) - 1, 0, -37):
        (tmp_path / 'a.pkl').write_bytes(text[:length])
        refusal(lambda: read_pickle(tmp_path / 'a.pkl'), 'not a whole pickle')


# --- BVH ------------------------------------------------------------------------------------------------------------

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
    ('Frames: 3', 'Frames: 4', ['line 27', '4 frames are told, 3 are there']),
    ('Frames: 3', 'Frames:', ['line 27', 'Frames:']), ('Frame Time: 0.0333333', '0 0', ['line 28', 'Frame Time:']),
    ('0 0 0 0 90 0 ', '0 0 0 0 90 ', ['line 31', '15 numbers']), ('77', 'x', ['line 31']), ('77', 'nan', ['line 31']),
    ('OFFSET 0 -4 0', 'OFFSET 0 -4', ['line 22', '3 numbers']), ('OFFSET 0 -4 0', '', ['line 24', 'without an OFFSET']),
    ('OFFSET 0 -4 0', 'OFFSET 0 inf 0', ['line 22']), ('CHANNELS 0', 'CHANNELS 7', ['line 23', 'CHANNELS']),
    ('CHANNELS 0', 'CHANNELS 2 Xrotation', ['line 23']), ('CHANNELS 0', 'CHANNELS', ['line 23']),
    ('CHANNELS 0', 'CHANNELS 1 Wrotation', ['line 23']), ('Leg', 'Hand', ["line 20: 'Hand'", 'twice']),
    ('JOINT Leg', 'JOINT', ['line 20', 'no name']), ('JOINT Leg\n  {', 'JOINT Leg\n', ['line 20', '{']),
    ('JOINT Leg', 'ROOT Leg', ["line 20: 'ROOT'", 'out of place']), ('End Site', 'End Sit', ["'End'", 'out of place']),
    ('}\nMOTION', 'MOTION', ['not whole']), ('}\nMOTION', '}\n}\nMOTION', ["'}'", 'out of place']),
    ('Leg', 'L\u00e9g', ['line 20', 'not plain text'])])
def test_bvh_that_is_damaged(old, new, naming, tmp_path):
    text = ARM.replace(old, new, 1)
    assert text != ARM
    (tmp_path / 'a.bvh').write_text(text)
    refusal(lambda: read_recording(tmp_path / 'a.bvh'), tmp_path / 'a.bvh', *naming)


def test_bvh_with_too_many_joints(tmp_path):
    text = 'HIERARCHY ROOT r\n{ OFFSET 0 0 0 CHANNELS 0\n' + '\n'.join(
        f'JOINT j{i}\n{{ OFFSET 0 0 0 CHANNELS 0\n' for i in range(1500)) + '} ' * 1501 + '\nMOTION\nFrames: 1\n'
    (tmp_path / 'a.bvh').write_text(text)
    with bounded(seconds=600):
        refusal(lambda: read_recording(tmp_path / 'a.bvh'), '1000 joints')


def test_tidy_leaves_what_it_is_given(tmp_path):
    frames = np.random.default_rng(0).normal(size=(3, 1, 25, 3))
    frames[1] = 0
    before = frames.copy()
    tidy(frames, V2)
    np.testing.assert_array_equal(frames, before)
    with pytest.raises(UserError, match='zero'):
        tidy(np.zeros((2, 1, 25, 3)), V2)
