"""Small files with which users failed: each is predicted, or refused in one line, and every assumption is printed."""

import json

import numpy as np
import pytest

import tools.predict
from data.formats import read_recording
from feeder.layouts import match_joints, read_layout
from tests.data.raw_files import SHARED, needs
from tests.tools.test_predict import save_model


@pytest.fixture
def predict(tmp_path, capsys):
    """Predict a file with a model of 25 joints; returns recordings, errors, and the lines on stderr."""
    model = save_model(tmp_path / 'c.pth', 25, 60, 'ntu60_xsub')

    def run(path, code=0):
        assert tools.predict.main(['--checkpoint', str(model), str(path), '--device', 'cpu', '--json', '-']) == code
        printed = capsys.readouterr()
        content = json.loads(printed.out)
        return content['recordings'], [entry['reason'] for entry in content['unreadable']], printed.err
    return run


def case(name):
    return pytest.param(SHARED / 'cases' / name, marks=needs(f'cases/{name}'), id=name)


@pytest.mark.parametrize('path', [case('pyskl_nan_second_of_four.pkl')])
def test_a_damaged_clip_does_not_cost_the_others(predict, path):
    recordings, errors, _ = predict(path, code=2)
    assert [entry['recording'][-20:] for entry in recordings] == [f'S001C001P00{i}R001A001' for i in (1, 3, 4)]
    assert len(errors) == 1 and 'S001C001P002R001A001' in errors[0]


@pytest.mark.parametrize('path', [case('npy_bodies_first_1x60x25x3.npy')])
def test_bodies_before_frames(predict, path):
    recordings, _, notes = predict(path)
    assert recordings[0]['frames'] == 60 and 'read as (bodies, frames, joints, 3)' in notes


@pytest.mark.parametrize('path', [case('three_bodies_third_moves_40x3x25x3.npy')])
def test_the_bodies_that_move_most_are_kept(predict, path, tmp_path):
    recordings, _, notes = predict(path)
    assert 'reduced to the 2 bodies that move most' in notes
    frames = np.load(path)
    np.save(tmp_path / 'third.npy', frames[:, sorted((2, frames[:, :2].std(axis=(0, 2, 3)).argmax()))])
    assert predict(tmp_path / 'third.npy')[0][0]['top'] == recordings[0]['top']


@pytest.mark.parametrize('path', [case('seventeen_joints_of_human36m_50x17x3.npy')])
def test_an_assumed_layout_is_named(predict, path):
    assert '17 joints, but the model expects 25' in predict(path, code=2)[1][0]
    assert 'coco-17 (--layout)' in read_recording(path).notes[0]


@pytest.mark.parametrize('path', [case('usual_names.bvh')])
def test_usual_names_of_bvh_files(path):
    recording = read_recording(path, scale=.01)
    matches = match_joints(read_layout('kinect-v2'), recording.layout, path)
    assert len(matches) - matches.count(None) == 18 and np.isfinite(recording.frames).all()


@pytest.mark.parametrize('name, content, part', [
    ('a.json', b'{"people": [{"pose_keypoints_2d": [1, 2, 3]}]}', 'has 2D keypoints, but the model was trained on 3D'),
    ('a.json', b'{"data": []}', 'looks like a file of Kinetics-Skeleton; save the joints as an .npy array'),
    ('a.npz', {'poses': np.zeros((9, 156))}, 'save the joints of other files as an .npy array')])
def test_files_of_other_programs_are_refused_with_a_remedy(predict, tmp_path, name, content, part):
    path = tmp_path / name
    if isinstance(content, dict):
        np.savez(path, **content)
    else:
        path.write_bytes(content)
    assert part in predict(path, code=2)[1][0]
