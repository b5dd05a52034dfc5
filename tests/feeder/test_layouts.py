"""Joint layouts: their trees, how one is chosen, and how an encoder goes from one to another."""

import argparse
import logging

import numpy as np
import pytest
import torch

from feeder import layouts
from feeder.augment import ClipMaker
from model_mamp import MAMP
from model_transformer import ActionTransformer
from tests.conftest import refusal, train
from tests.feeder.conftest import write_splits
from util.checkpoint import LAST, Checkpoint
from util.weights import load_encoder

V2, V1, COCO = map(layouts.read_layout, ('kinect-v2', 'kinect-v1', 'coco-17'))
STICK = 'joints:\n  pelvis:\n  chest: pelvis\n  head: 1\n  left_hand: chest\n  RHand: chest\n'


@pytest.fixture
def stick(tmp_path):
    (tmp_path / 'stick.yaml').write_text(STICK)
    return tmp_path / 'stick.yaml'


def test_layouts_by_name_and_by_number_of_joints():
    assert COCO.parents == (0, 0, 0, 1, 2, 0, 0, 5, 6, 7, 8, 5, 6, 11, 12, 13, 14)
    assert [layouts.find_layout(None, n) for n in (25, 20, 17, 5)] == [V2, V1, COCO, None]
    assert layouts.find_layout('coco-17', None) == COCO == layouts.find_layout('coco-17', 17)
    refusal(lambda: layouts.find_layout('coco-17', 25), '--layout coco-17 has 17 joints', '--num_joints is 25')
    refusal(lambda: layouts.read_layout('coco'), '--layout coco', 'kinect-v2', 'coco-17', 'YAML')
    refusal(lambda: layouts.read_layout('nowhere.yaml'), 'nowhere.yaml', 'No such file', '--layout')
    refusal(lambda: layouts.default_layout(5), '5 joints', '--layout')


def test_layouts_from_files(stick, tmp_path):
    joints = ('pelvis', 'chest', 'head', 'left_hand', 'RHand')
    assert layouts.read_layout(stick) == layouts.Layout('stick', joints, (0, 0, 1, 1, 1))
    (tmp_path / 'a.yml').write_text('name: two\njoints: {b: a, a: a}\n')       # a parent may come later
    assert layouts.read_layout(str(tmp_path / 'a.yml')) == layouts.Layout('two', ('b', 'a'), (1, 1))
    clips = torch.randn(2, 3, 16, 5, 1)
    bones = ClipMaker(16, 'bone', 0, layout=layouts.read_layout(stick)).derive_stream(clips)
    assert torch.equal(bones, clips - clips[:, :, :, [0, 0, 1, 1, 1]])


@pytest.mark.parametrize('text, part', [
    ('joints:\n  a:\n  b: a\n  c:\n', 'without a parent: a, c'),
    ('joints:\n  a: b\n  b: a\n', 'parent: none'), ('joints:\n  r:\n  a: b\n  b: a\n', 'do not form a tree'),
    ('joints:\n  a:\n  b: 2\n', 'the parent of b is 2'), ('joints:\n  a:\n  7: a\n', 'the name 7'),
    ('joints: [a, b]\n', 'joints must be a mapping'), ('joint: {a: }\n', "unknown key 'joint'"),
    ('joints: !!python/object/apply:os.system [id]\n', 'not valid YAML')])
def test_files_that_are_not_layouts(tmp_path, text, part):
    (tmp_path / 'bad.yaml').write_text(text)
    refusal(lambda: layouts.read_layout(tmp_path / 'bad.yaml'), tmp_path / 'bad.yaml', part)


def test_names_of_joints_are_compared_without_their_spelling_and_by_aliases():
    for spelling in ('left elbow', 'left_elbow', 'LeftElbow', 'LElbow', 'ELBOW_LEFT', 'elbow-l'):
        assert layouts.plain_name(spelling) == 'left elbow'
    names = {'MidHip': 'mid hip', 'ShoulderCenter': 'shoulder centre', 'HandTipRight': 'right hand tip', 'J12': 'j 12',
             'колено': 'колено'}
    assert {name: layouts.plain_name(name) for name in names} == names
    both = layouts.make_layout('x', {'head': None, 'nose': 'head', 'hips': 'head'}, 'x')
    assert layouts.shared_names(both) == ['head', 'nose', 'spine base'], 'an alias gives way to the joint itself'


SIZE = {'dim_feat': 4, 'depth': 1, 'num_heads': 2}


def make_weights(num_joints):
    """Weights of a pre-trained model whose embedding of joint j holds numbers j."""
    model = MAMP(**SIZE, num_frames=8, num_joints=num_joints, decoder_dim_feat=4, decoder_depth=1)
    model.pos_embed.data[:] = torch.arange(float(num_joints))[:, None]
    return model.state_dict()


def load_from(source, target, caplog, num_frames=8):
    """For each joint of `target` the joint of `source` whose embedding it has taken, or None; and the line logged."""
    caplog.clear()
    model = ActionTransformer(3, 'finetune', **SIZE, num_frames=num_frames, num_joints=len(target.joints))
    initial, weights = model.pos_embed[0, 0].detach().clone(), make_weights(len(source.joints))
    args = argparse.Namespace(finetune='some.pth', layout=target.name, num_joints=None, keypoints='3d')
    with caplog.at_level(logging.INFO):
        load_encoder(model, Checkpoint(weights), args)
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items()
               if not name.startswith('head.') and name not in ('pos_embed', 'temp_embed'))
    rows = zip(model.pos_embed[0, 0].detach(), initial, strict=True)
    return [None if torch.equal(row, before) else int(row[0]) for row, before in rows], caplog.messages[0]


def test_kinect_v1_to_v2_and_to_coco_and_back(caplog):
    taken, line = load_from(V1, V2, caplog, num_frames=16)      # another length comes with it
    own = {V1.joints[i]: joint for joint, i in zip(V2.joints, taken, strict=True) if i is not None}
    assert len(own) == 20 and own.pop('hip centre') == 'spine base' and own.pop('shoulder centre') == 'spine top'
    assert all(joint == name for joint, name in own.items())
    assert line.startswith('some.pth: from the layout kinect-v1 to kinect-v2: 20 of 25 joints matched by name')
    taken, line = load_from(V2, COCO, caplog)
    assert taken == [3] * 5 + [4, 8, 5, 9, 6, 10, 12, 16, 13, 17, 14, 18]       # eyes and ears take the head
    assert line.endswith('17 of 17 joints matched by name; newly initialised: none')
    back, _ = load_from(COCO, V2, caplog)
    assert [back[joint] for joint in taken] == [0] * 5 + list(range(5, 17)) and back.count(None) == 12
    foreign = layouts.make_layout('foreign', {'a': None, 'b': 'a'}, 'x')
    refusal(lambda: layouts.match_joints(V2, foreign, 'some.pth'), 'some.pth', 'spine base', 'of foreign (a, b')


@pytest.mark.parametrize('layout', layouts.known_layouts(), ids=lambda layout: layout.name)
def test_every_layout_is_a_tree(layout):
    assert layouts.make_layout(layout.name, layout.as_map(), 'x') == layout
    for joint, parent in layout.as_map().items():
        assert not {'left', 'right'} <= set(f'{joint} {parent}'.split())


@pytest.mark.parametrize('name, number', {
    'kinect-v2': 25, 'kinect-v1': 20, 'coco-17': 17, 'mediapipe-33': 31, 'openpose-18': 18, 'openpose-25': 21,
    'h36m-17': 17, 'smpl-24': 21, 'azure-kinect-32': 25, 'halpe-26': 17}.items())
def test_layouts_share_most_joints_with_kinect_v2(name, number):
    matches = layouts.match_joints(V2, layouts.read_layout(name), 'x')
    assert sum(match is not None for match in matches) == number


@pytest.mark.parametrize('names', [
    {'mixamorig:Hips': 'spine base', 'Spine': 'spine', 'Spine1': None, 'Neck': 'neck', 'Head': 'head',
     'mixamorig:LeftUpLeg': 'left hip', 'LeftLeg': 'left knee', 'RightFoot': 'right ankle', 'LeftToeBase': 'left foot',
     'LeftShoulder': None, 'LeftArm': 'left shoulder', 'mixamorig:RightForeArm': 'right elbow',
     'RightHand': 'right wrist', 'LeftHandThumb1': None},
    {'pelvis': 'spine base', 'upperarm_l': 'left shoulder', 'lowerarm_l': 'left elbow', 'hand_l': 'left wrist',
     'thigh_r': 'right hip', 'calf_r': 'right knee', 'foot_r': 'right ankle', 'ball_r': 'right foot'},
], ids=['Mixamo', 'Unreal Engine'])
def test_joints_of_bvh_files_are_named_after_bones(names):
    matches = layouts.match_joints(V2, layouts.make_layout('bvh', dict.fromkeys(names, 0), 'x'), 'x')
    assert [None if match is None else V2.joints[match] for match in matches] == list(names.values())


def test_the_layout_of_a_checkpoint(stick):
    assert layouts.checkpoint_layout(Checkpoint(make_weights(5)), 'x') is None
    own = layouts.read_layout(stick)
    recorded = {'name': own.name, 'joints': own.as_map()}
    assert layouts.checkpoint_layout(Checkpoint(make_weights(5), layout=recorded), 'x') == own
    more = Checkpoint(make_weights(25), layout=recorded)
    refusal(lambda: layouts.checkpoint_layout(more, 'x.pth'), 'x.pth', 'have 25')
    wrong = Checkpoint(make_weights(5), layout={'name': 'x', 'joints': {'a': 'b'}})
    refusal(lambda: layouts.checkpoint_layout(wrong, 'x.pth'), 'x.pth', "is 'b'")


def test_runs_of_two_layouts(tiny, tiny_pretrain, tmp_path, stick, capsys):
    """Pre-train on a layout from a file, continue with the same joints only, fine-tune on another without it."""
    x = np.random.default_rng(0).normal(size=(8, 12, 60)).astype(np.float32).cumsum(1)
    data = [str(write_splits(tmp_path / f'{width}.npz', x[..., :width])) for width in (15, 60)]
    pretrain = [*tiny_pretrain, '--stream', 'bone', '--data_path', data[0], '--layout']
    train('pretrain', [*pretrain, str(stick)], tmp_path / 'pre', '--epochs', '1')
    (tmp_path / 'renamed.yaml').write_text(STICK.replace('head', 'tail'))
    renamed, resumed = [*pretrain, str(tmp_path / 'renamed.yaml')], ['--resume', 'auto']
    refusal(lambda: train('pretrain', renamed, tmp_path / 'pre', *resumed), "'tail' was 'head'")
    train('pretrain', [*pretrain, str(stick)], tmp_path / 'pre', *resumed)
    path = tmp_path / 'pre' / LAST
    assert Checkpoint.read(path).layout == {'name': 'stick', 'joints': layouts.read_layout(stick).as_map()}
    stick.unlink()
    train('finetune', [*tiny, '--stream', 'bone', '--data_path', data[1]], tmp_path / 'fine', '--num_joints', '20',
          '--layout', 'kinect-v1', '--epochs', '1', '--finetune', str(path))
    summary = f'{path}: from the layout stick to kinect-v1: 4 of 20 joints matched by name'       # all but the chest
    assert summary in capsys.readouterr().err
    assert Checkpoint.read(tmp_path / 'fine' / LAST).layout['name'] == 'kinect-v1'
