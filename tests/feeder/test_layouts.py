"""Joint layouts: what they are, which one is meant, and how an encoder goes from one to another."""

import logging

import numpy as np
import pytest
import torch

import main_finetune
import main_pretrain
import tools.visualize
from data.common import one_hot, write_npz
from feeder import transforms
from feeder.augment import ClipMaker
from feeder.layouts import (
    LAYOUTS,
    Layout,
    checkpoint_layout,
    default_layout,
    find_layout,
    make_layout,
    match_joints,
    parents_of,
    plain_name,
    read_layout,
    shared_names,
)
from model_mamp import MAMP
from model_transformer import ActionTransformer
from tests.conftest import refusal
from util import checkpoint
from util.config import parse_args

V2, V1, COCO = LAYOUTS
# COCO's keypoints in the order of its annotations, and on which each hangs here, by name.
COCO_TREE = {
    'nose': 'nose', 'left eye': 'nose', 'right eye': 'nose', 'left ear': 'left eye', 'right ear': 'right eye',
    'left shoulder': 'nose', 'right shoulder': 'nose', 'left elbow': 'left shoulder', 'right elbow': 'right shoulder',
    'left wrist': 'left elbow', 'right wrist': 'right elbow', 'left hip': 'left shoulder',
    'right hip': 'right shoulder', 'left knee': 'left hip', 'right knee': 'right hip', 'left ankle': 'left knee',
    'right ankle': 'right knee'}
STICK = 'joints:\n  pelvis:\n  chest: pelvis\n  head: 1\n  left_hand: chest\n  RHand: chest\n'


@pytest.fixture
def stick(tmp_path):
    (tmp_path / 'stick.yaml').write_text(STICK)
    return tmp_path / 'stick.yaml'


# --- what they are --------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('layout', LAYOUTS, ids=lambda layout: layout.name)
def test_every_layout_is_a_tree_of_joints_with_names_of_their_own(layout):
    assert len(layout.joints) == len(layout.parents) == len(set(layout.joints)) == len(set(shared_names(layout)))
    assert [joint for joint, parent in enumerate(layout.parents) if joint == parent] != []
    for joint in range(len(layout.joints)):
        for _ in layout.joints:
            joint = layout.parents[joint]
        assert layout.parents[joint] == joint       # the root, after so many steps
    # what hangs on the left side is called left, up to where it meets the trunk
    for joint, parent in layout.as_map().items():
        for side, other in (('left', 'right'), ('right', 'left')):
            assert not (joint.startswith(side) and parent.startswith(other))
    assert make_layout(layout.name, layout.as_map(), 'x') == layout


def test_coco_is_in_the_order_of_its_annotations():
    assert list(COCO.joints) == list(COCO_TREE) and COCO.as_map() == COCO_TREE and default_layout(17) is COCO


def test_layouts_by_name_and_number():
    assert [read_layout(name) for name in ('kinect-v2', 'kinect-v1', 'coco-17')] == [V2, V1, COCO]
    assert [find_layout(None, n) for n in (25, 20, 17, 5)] == [V2, V1, COCO, None]
    assert find_layout('coco-17', None) == COCO == find_layout('coco-17', 17)
    refusal(lambda: find_layout('coco-17', 25), '--layout coco-17 has 17 joints', '--num_joints says 25')
    refusal(lambda: read_layout('coco'), '--layout coco', 'kinect-v2, kinect-v1, coco-17', 'YAML')
    refusal(lambda: read_layout('nowhere.yaml'), 'nowhere.yaml', 'No such file', '--layout')


def test_a_layout_of_ones_own(stick, tmp_path):
    assert read_layout(stick) == Layout('stick', ('pelvis', 'chest', 'head', 'left_hand', 'RHand'), (0, 0, 1, 1, 1))
    (tmp_path / 'a.yml').write_text('name: two\njoints: {b: a, a: a}\n')       # a parent may come later; a root's is it
    assert read_layout(str(tmp_path / 'a.yml')) == Layout('two', ('b', 'a'), (1, 1))


@pytest.mark.parametrize('text, naming', [
    ('joints:\n  a:\n  b: a\n  c:\n', ['2 roots (a, c)', 'hangs on nothing']),
    ('joints:\n  a: b\n  b: a\n', ['no root']),
    ('joints:\n  r:\n  a: b\n  b: c\n  c: a\n', ['a on b on c on a', 'circle']),
    ('joints:\n  a:\n  b: x\n', ["b hangs on 'x'", 'from 0 to 1']),
    ('joints:\n  a:\n  b: 2\n', ['b hangs on 2']), ('joints:\n  a:\n  b: -1\n', ['b hangs on -1']),
    ('joints:\n  a:\n  b: true\n', ['b hangs on True']), ('joints:\n  a:\n  b: 0.0\n', ['b hangs on 0.0']),
    ('joints:\n  a:\n  b: [a]\n', ["b hangs on ['a']"]),
    ('joints:\n  a:\n  b: a\n  a: b\n', ["line 4: 'a' stands there twice"]),
    ('joints:\n  a:\n  7: a\n', ['the joint 7 is no text', 'quotes']),
    ('joints:\n  a:\n  on: a\n', ['the joint True is no text']),
    ('joints:\n  a:\n  "b\\nc": a\n', ['is no text']),
    ('joints: [a, b]\n', ['joints is no map']), ('joints: {}\n', ['joints is no map']), ('name: x\n', ['joints']),
    ('name: 3\njoints: {a: }\n', ['name 3 is no text']), ('joint: {a: }\n', ["unknown key 'joint'"]),
    ('- a\n', ['not a map of a layout']), ('joints: &x {a: *x}\n', ['refers to another place']),
    ('joints: !!python/object/apply:os.system [id]\n', ['not YAML']), ('\x00', ['not YAML'])])
def test_a_file_that_is_no_layout(tmp_path, text, naming):
    (tmp_path / 'bad.yaml').write_text(text)
    refusal(lambda: read_layout(tmp_path / 'bad.yaml'), tmp_path / 'bad.yaml', *naming)


# --- the same joint -------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('given, plain', [
    ('left elbow', 'left elbow'), ('left_elbow', 'left elbow'), ('LeftElbow', 'left elbow'), ('LElbow', 'left elbow'),
    ('ELBOW_LEFT', 'left elbow'), ('elbow-l', 'left elbow'), ('RHand', 'right hand'), ('MidHip', 'mid hip'),
    ('ShoulderCenter', 'shoulder centre'), ('HandTipRight', 'right hand tip'), ('J12', 'j 12'), ('колено', 'колено')])
def test_names_are_compared_however_they_are_spelt(given, plain):
    assert plain_name(given) == plain


def test_names_shared_by_the_kinects():
    """By hand, from the makers' descriptions: v2 without a namesake in v1 are the neck, hand tips and thumbs."""
    v1, v2 = shared_names(V1), shared_names(V2)
    assert set(v1) < set(v2)
    assert set(v2) - set(v1) == {'neck', 'left hand tip', 'right hand tip', 'left thumb', 'right thumb'}
    assert (v1[0], v1[1], v1[2]) == ('spine base', 'spine', 'spine top') == (v2[0], v2[1], v2[20])


def test_an_alias_gives_way_to_the_joint_itself():
    both = make_layout('x', {'head': None, 'nose': 'head', 'hips': 'head'}, 'x')
    assert shared_names(both) == ['head', 'nose', 'spine base']


# --- the option -----------------------------------------------------------------------------------------------------

def parsed(*words):
    return parse_args('pretrain', ['--data_path', 'x.npz', '--epochs', '1', '--lr', '1', *words])


def test_the_option_gives_the_number_of_joints(stick):
    assert parsed().num_joints == 25 and parsed('--num_joints', '5').num_joints == 5
    assert parsed('--layout', 'coco-17').num_joints == 17 and parsed('--layout', str(stick)).num_joints == 5
    assert parsed('--layout', str(stick), '--stream', 'bone').num_joints == 5
    refusal(lambda: parsed('--layout', str(stick), '--num_joints', '6'), 'has 5 joints', '--num_joints says 6')
    refusal(lambda: parsed('--num_joints', '5', '--stream', 'bone'), '5 joints', '--layout')


def test_bones_are_those_of_the_layout(stick):
    frames = torch.randn(2, 3, 16, 5, 1)
    expected = frames.clone()
    for joint, parent in enumerate((0, 0, 1, 1, 1)):
        expected[:, :, :, joint] = frames[:, :, :, joint] - frames[:, :, :, parent]
    made = ClipMaker(16, 'bone', 0, layout=read_layout(stick)).derive_stream(frames)
    assert torch.equal(made, expected) and not made[:, :, :, 0].any()
    coco = torch.randn(1, 3, 4, 17, 2)
    assert torch.equal(ClipMaker(4, 'bone', 0).derive_stream(coco), transforms.bone(coco, parents_of(17)))


# --- from one layout to another -------------------------------------------------------------------------------------

SIZE = {'dim_feat': 4, 'depth': 1, 'num_heads': 2, 'num_frames': 8}


def read_weights(num_joints, num_frames=8):
    """Of a pre-trained model whose embedding of joint j is the vector (j, 10 j, 100 j, 1)."""
    model = MAMP(**SIZE | {'num_frames': num_frames}, num_joints=num_joints, decoder_dim_feat=4, decoder_depth=1)
    rows = torch.arange(float(num_joints))
    with torch.no_grad():
        model.pos_embed[0, 0] = torch.stack([rows, 10 * rows, 100 * rows, torch.ones(num_joints)], dim=1)
    return model.state_dict()


def loaded(given, own, caplog):
    """Which joint of `given` each of `own` has taken the embedding of, None for its own; and the line logged."""
    caplog.clear()
    model = ActionTransformer(3, 'finetune', **SIZE, num_joints=len(own.joints))
    initial, weights = model.pos_embed[0, 0].detach().clone(), read_weights(len(given.joints))
    with caplog.at_level(logging.INFO):
        mapped = checkpoint.map_joints(weights, model, match_joints(given, own, 'some.pth'))
        checkpoint.load_encoder(model, mapped, 'some.pth')
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items()
               if not name.startswith('head.') and name != 'pos_embed')
    took = {}
    for joint, row, before in zip(own.joints, model.pos_embed[0, 0].detach(), initial, strict=True):
        took[joint] = None if torch.equal(row, before) else int(row[0])
        assert took[joint] is None or row.tolist() == [int(row[0]) * scale for scale in (1, 10, 100)] + [1]
    (line,) = caplog.messages
    return took, line


def test_from_kinect_v2_to_v1(caplog):
    took, line = loaded(V2, V1, caplog)
    # by hand, from the two lists of joints: v1's come in the order of v2's, but for its shoulder centre
    assert [took[joint] for joint in V1.joints] == [0, 1, 20, 3, *range(4, 20)]
    assert line.endswith('from the layout kinect-v2 to kinect-v1: 20 of 20 joints taken by name, as initialised: none')


def test_from_kinect_v1_to_v2(caplog):
    took, line = loaded(V1, V2, caplog)
    new = ['neck', 'left hand tip', 'left thumb', 'right hand tip', 'right thumb']
    assert took == {joint: None if joint in new else 2 if joint == 'spine top' else index
                    for index, joint in enumerate(V2.joints)}
    assert line.endswith(f'20 of 25 joints taken by name, as initialised: {", ".join(new)}')


def test_from_kinect_v2_to_coco_and_back(caplog):
    took, line = loaded(V2, COCO, caplog)
    assert [took[joint] for joint in COCO.joints] == [3, *[None] * 4, 4, 8, 5, 9, 6, 10, 12, 16, 13, 17, 14, 18]
    assert '13 of 17 joints taken by name, as initialised: left eye, right eye, left ear, right ear' in line
    back, line = loaded(COCO, V2, caplog)
    assert {joint: at for joint, at in back.items() if at is not None} == {
        V2.joints[at]: COCO.joints.index(joint) for joint, at in took.items() if at is not None}
    assert '13 of 25' in line


def test_joints_without_any_namesake_are_refused():
    odd = make_layout('odd', {'a': None, 'b': 'a'}, 'x')
    refusal(lambda: match_joints(V2, odd, 'some.pth'), 'some.pth', 'spine base', 'of odd (a, b', '--layout')


def test_another_length_comes_with_other_joints(caplog):
    model = ActionTransformer(3, 'finetune', **SIZE | {'num_frames': 16}, num_joints=20)
    weights = read_weights(25)
    checkpoint.load_encoder(model, checkpoint.map_joints(weights, model, match_joints(V2, V1, 'x')), 'x')
    alone = ActionTransformer(3, 'finetune', **SIZE | {'num_frames': 16}, num_joints=25)
    checkpoint.load_encoder(alone, weights, 'x')
    assert model.num_segments == 4 and torch.equal(model.temp_embed, alone.temp_embed)
    assert not torch.equal(model.temp_embed, weights['temp_embed'])


def test_what_a_checkpoint_tells_of_its_layout(stick):
    state = {'model': read_weights(25)}
    assert checkpoint_layout(state, 'x') is V2 and checkpoint_layout({'model': read_weights(20)}, 'x') is V1
    assert checkpoint_layout({'model': read_weights(5)}, 'x') is None and checkpoint_layout({'model': {}}, 'x') is None
    own = read_layout(stick)
    said = {'name': own.name, 'joints': own.as_map()}
    assert checkpoint_layout({'model': read_weights(5), 'layout': said}, 'x') == own
    refusal(lambda: checkpoint_layout(state | {'layout': said}, 'some.pth'), 'some.pth', '5 joints', 'embeddings 25')
    refusal(lambda: checkpoint_layout(state | {'layout': {'name': 'x', 'joints': {'a': 'b'}}}, 'some.pth'), 'some.pth')


def test_a_layout_in_a_file_is_a_map(tmp_path):
    for layout in (3, ['a'], {'joints': [1]}, {'joints': {'a': torch.ones(1)}}):
        torch.save({'model': read_weights(5), 'layout': layout}, tmp_path / 'x.pth')
        refusal(lambda: checkpoint.load(tmp_path / 'x.pth'), tmp_path / 'x.pth')


# --- whole runs -----------------------------------------------------------------------------------------------------

TINY = ['--num_frames', '8', '--dim_feat', '16', '--depth', '1', '--num_heads', '2', '--effective_batch_size', '4',
        '--num_workers', '0', '--lr', '1e-3', '--epochs', '1', '--device', 'cpu']


def clips(path, num_joints):
    x = np.random.default_rng(0).normal(size=(8, 12, 3 * num_joints)).astype(np.float32).cumsum(1)
    y = one_hot([0, 1] * 4, 2)
    write_npz(path, x_train=x, y_train=y, x_test=x, y_test=y)
    return str(path)


def test_runs_of_two_layouts(tmp_path, stick, capsys):
    """Pre-trained on a layout of one's own whose file is gone by then, fine-tuned on Kinect v1, drawn."""
    runs = tmp_path / 'runs'
    main_pretrain.main([*TINY, '--data_path', clips(tmp_path / 'a.npz', 5), '--layout', str(stick), '--stream', 'bone',
                        '--decoder_dim_feat', '16', '--decoder_depth', '1', '--mask_ratio', '0.5', '--output_dir',
                        str(runs / 'pre')])
    stick.unlink()
    path = runs / 'pre/checkpoint-last.pth'
    state = checkpoint.load(path)
    assert state['layout'] == {'name': 'stick', 'joints': {'pelvis': 'pelvis', 'chest': 'pelvis', 'head': 'chest',
                                                           'left_hand': 'chest', 'RHand': 'chest'}}
    main_finetune.main([*TINY, '--data_path', clips(tmp_path / 'b.npz', 20), '--layout', 'kinect-v1', '--stream',
                        'bone', '--finetune', str(path), '--output_dir', str(runs / 'fine')])
    (line,) = [line for line in capsys.readouterr().err.splitlines() if 'by name' in line]
    # pelvis, head and the two hands
    assert f'{path}: from the layout stick to kinect-v1: 4 of 20 joints taken by name' in line
    assert checkpoint.load(runs / 'fine/checkpoint-last.pth')['layout']['name'] == 'kinect-v1'
    tools.visualize.main(['--checkpoint', str(path), '--out', str(tmp_path / 'x.png')])
    assert (tmp_path / 'x.png').stat().st_size > 1000
    refusal(lambda: tools.visualize.main(['--checkpoint', str(path), '--layout', 'coco-17', '--out', 'x.png']),
            'has 17 joints', '--num_joints says 5')


def test_a_run_goes_on_with_the_joints_it_began_with(tmp_path, stick):
    options = [*TINY, '--data_path', clips(tmp_path / 'a.npz', 5), '--decoder_dim_feat', '16', '--decoder_depth', '1',
               '--mask_ratio', '0.5', '--output_dir', str(tmp_path / 'run')]
    main_pretrain.main([*options, '--layout', str(stick)])
    (tmp_path / 'other.yaml').write_text(STICK.replace('head', 'tail'))
    more = [*options, '--epochs', '2', '--resume', 'auto', '--layout']
    refusal(lambda: main_pretrain.main([*more, str(tmp_path / 'other.yaml')]), "'head' there is 'tail' here")
    main_pretrain.main([*more, str(stick)])
