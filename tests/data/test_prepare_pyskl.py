"""Preparation of PYSKL pickles: the same arrays as from raw text, splits of every spelling, damaged annotations."""

import pickle

import numpy as np
import pytest

from data import prepare_pyskl
from data.prepare_pyskl import pair_splits
from tests.conftest import refusal
from util.errors import UserError


@pytest.fixture
def annotations():
    rng = np.random.default_rng(0)
    shapes = ((1, 9, 25, 3), (2, 7, 25, 3), (3, 8, 25, 3), (1, 5, 25, 3))
    return [{'frame_dir': f'S001C001P00{i}R001A00{i}', 'label': i - 1, 'total_frames': shape[1],
             'keypoint': rng.normal(size=shape).astype(np.float16)} for i, shape in enumerate(shapes, 1)]


def prepare(folder, content, *options, name='ntu60_3danno.pkl'):
    folder.mkdir(exist_ok=True)
    (folder / name).write_bytes(pickle.dumps(content))
    assert prepare_pyskl.main([str(folder / name), '--out', str(folder), *options]) == 0
    return {path.stem: dict(np.load(path)) for path in folder.glob('*.npz')}


def test_arrays_equal_a_conversion_written_out(annotations, tmp_path, capsys):
    """Without empty frames, centred at joint 2 of the first body, two bodies that move most, zeros behind the clip."""
    annotations[0]['keypoint'][:, 4] = 0
    annotations[2]['keypoint'][1] = annotations[2]['keypoint'][1, :1]       # does not move
    names = [entry['frame_dir'] for entry in annotations]
    files = prepare(tmp_path, {'split': {'xsub_train': [names[2], names[0]], 'xsub_val': names[1:2]},
                               'annotations': annotations})
    assert list(files) == ['NTU60_XSub']
    file = files['NTU60_XSub']
    assert file['name_train'].tolist() == [names[2], names[0]] and file['name_test'].tolist() == [names[1]]
    assert file['y_train'].argmax(1).tolist() == [2, 0] and file['y_test'].shape == (1, 60)
    joints = [annotations[0]['keypoint'][:, [0, 1, 2, 3, 5, 6, 7, 8]], annotations[1]['keypoint'],
              annotations[2]['keypoint'][[0, 2]]]
    for row, clip in zip((file['x_train'][1], file['x_test'][0], file['x_train'][0]), joints, strict=True):
        expected = np.zeros((8, 2, 25, 3), np.float32)
        expected[:clip.shape[1], :len(clip)] = (clip - clip[:1, :1, 1:2].astype(np.float64)).swapaxes(0, 1)
        np.testing.assert_array_equal(row, expected.reshape(8, 150))
    assert '1 reduced to the 2 bodies that move most' in capsys.readouterr().out


def test_second_bodies_are_copies_for_ntu120(annotations, tmp_path):
    names = [entry['frame_dir'] for entry in annotations]
    files = prepare(tmp_path, {'split': {'xset_train': names[:1], 'xset_val': names[1:2]}, 'annotations': annotations},
                    name='ntu120_3danno.pkl')
    x = files['NTU120_XSet']['x_train'][0, :9].reshape(9, 2, 75)
    np.testing.assert_array_equal(x[:, 0], x[:, 1])


def test_spellings_of_splits():
    assert pair_splits(['train1', 'test1', 'train2', 'test2']) == {'1': ('train1', 'test1'), '2': ('train2', 'test2')}
    assert pair_splits(['train', 'val', 'test', 'all']) == {'': ('train', 'test')}
    assert pair_splits(['xview_train', 'xview_val', 'xsub_train']) == {'xview': ('xview_train', 'xview_val')}
    refusal(lambda: pair_splits(['train']), 'splits: train')


def test_two_files_without_splits(annotations, tmp_path):
    for name, part in (('own_train.pkl', annotations[:2]), ('own_val.pkl', annotations[2:])):
        (tmp_path / name).write_bytes(pickle.dumps(part))
    files = [str(tmp_path / name) for name in ('own_train.pkl', 'own_val.pkl')]
    prepare_pyskl.main([*files, '--out', str(tmp_path), '--bodies', '1'])
    with np.load(tmp_path / 'own.npz') as file:
        assert file['x_train'].shape == (2, 9, 75) and file['name_test'].tolist() == [
            entry['frame_dir'] for entry in annotations[2:]]
    refusal(lambda: prepare_pyskl.main(files[:1]), 'own_train.pkl', 'a training and a test file')


@pytest.mark.parametrize('change, part', [
    ({'keypoint': np.full((1, 4, 25, 3), np.nan)}, 'not finite'), ({'keypoint': np.ones((1, 4, 25, 2))}, '2D joints'),
    ({'keypoint': np.ones((1, 4, 17, 3))}, '17 joints'), ({'keypoint': None}, 'keypoint')])
def test_damaged_and_absent_annotations_are_named_and_can_be_omitted(annotations, tmp_path, capsys, change, part):
    """Integers are not damaged."""
    names = [entry['frame_dir'] for entry in annotations]
    annotations[1]['keypoint'] = np.arange(2 * 7 * 75).reshape(2, 7, 25, 3)
    annotations[3] |= change
    content = {'split': {'train': names[::2], 'val': [*names[1::2], 'absent']}, 'annotations': annotations}
    with pytest.raises(UserError, match='--skip_damaged'):
        prepare(tmp_path, content)
    error = capsys.readouterr().err
    assert f'annotation 3 ({names[3]}): ' in error and part in error and not list(tmp_path.glob('*.npz'))
    assert "there is no annotation 'absent'" in error
    files = prepare(tmp_path, content, '--skip_damaged', name='own.pkl')
    assert files['own']['name_test'].tolist() == [names[1]] and files['own']['x_test'].max() > 1000
