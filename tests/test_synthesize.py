import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

from data import synthesize
from util.errors import run_main

ROOT = Path(__file__).resolve().parents[1]
# joint and parent, 1-based, in the order NTU's papers and tools give them
BONES = [(1, 2), (2, 21), (3, 21), (4, 3), (5, 21), (6, 5), (7, 6), (8, 7), (9, 21), (10, 9), (11, 10), (12, 11),
         (13, 1), (14, 13), (15, 14), (16, 15), (17, 1), (18, 17), (19, 18), (20, 19), (22, 23), (23, 8), (24, 25),
         (25, 12)]


def command(out, *more):
    """Exit code of the command, run in this process."""
    with pytest.raises(SystemExit) as end:
        run_main(lambda: synthesize.main(['--out', str(out), *map(str, more)]))
    return end.value.code


@pytest.fixture(scope='module')
def clips():
    return list(synthesize.make_clips(classes=12, clips_per_class=40, seed=0))


@pytest.fixture(scope='module')
def members(tmp_path_factory):
    out = tmp_path_factory.mktemp('synthetic')
    assert command(out, '--clips_per_class', 40) == 0
    path = out / 'SYNTH_XSub.npz'
    with zipfile.ZipFile(path) as archive:
        assert all(member.compress_type == zipfile.ZIP_STORED for member in archive.infolist())
    with np.load(path, allow_pickle=False) as npz:
        return dict(npz)


def test_members_names_and_split(members):
    assert list(members) == ['x_train', 'y_train', 'x_test', 'y_test', 'name_train', 'name_test']
    for part, count, performers in (('train', 200, {1, 2, 38}), ('test', 200, {3, 6, 40})):
        x, y, names = members[f'x_{part}'], members[f'y_{part}'], members[f'name_{part}']
        assert (x.shape, x.dtype, y.shape, y.dtype) == ((count, 120, 150), np.float32, (count, 10), np.float64)
        assert names.tolist() == sorted(names) and all(len(name) == 20 for name in names)
        assert [int(name[17:]) - 1 for name in names] == y.argmax(axis=1).tolist() and (y.sum(axis=1) == 1).all()
        assert performers <= {int(name[9:12]) for name in names}
    assert not ({name[8:12] for name in members['name_train']} & {name[8:12] for name in members['name_test']})
    assert {name[4:8] for name in members['name_train']} == {'C001', 'C002', 'C003'}


def test_rows_are_the_clips_centred_and_padded(members, clips):
    rows = dict(zip([*members['name_train'], *members['name_test']], [*members['x_train'], *members['x_test']],
                    strict=True))
    assert sorted(rows) == sorted(clip.name for clip in clips if clip.action <= 10)
    for clip in clips[:400:13]:
        people, frames = clip.joints.shape[:2]
        row = rows[clip.name].reshape(120, 2, 25, 3)
        for person in range(people):
            for frame in (0, frames - 1):
                np.testing.assert_array_equal(row[frame, person], clip.joints[person, frame] - clip.joints[0, 0, 1])
        assert not row[frames:].any() and not row[:, people:].any() and row[:frames].any(axis=(1, 2, 3)).all()


def test_shapes_lengths_and_people(clips):
    lengths = [clip.joints.shape[1] for clip in clips]
    assert min(lengths) >= 30 and max(lengths) <= 120 and min(lengths) < 35 and max(lengths) > 115
    assert {clip.action: len(clip.joints) for clip in clips} == {action: 2 if action in (9, 10) else 1
                                                                 for action in range(1, 13)}
    assert all(clip.joints.dtype == np.float32 and np.isfinite(clip.joints).all() for clip in clips)


def test_bones_are_rigid_and_joints_move(clips):
    """Bones keep their length but for the sensor's noise, about 8 mm."""
    for clip in clips[::7]:
        bones = np.stack([clip.joints[:, :, joint - 1] - clip.joints[:, :, parent - 1] for joint, parent in BONES])
        lengths = np.linalg.norm(bones, axis=-1)  # (24, M, T)
        assert lengths.std(axis=-1).max() < .012 and lengths.min() > .01 and lengths.max() < .6
        assert np.ptp(clip.joints[0], axis=0).max() > .15


def test_rotations_are_rotations():
    vectors = np.random.default_rng(0).normal(size=(50, 3))
    matrices = synthesize.rotations(vectors)
    np.testing.assert_allclose(matrices @ matrices.swapaxes(1, 2), np.broadcast_to(np.eye(3), (50, 3, 3)), atol=1e-12)
    np.testing.assert_allclose((matrices @ vectors[..., None])[..., 0], vectors, atol=1e-12)  # the axis stays
    np.testing.assert_allclose(synthesize.rotations(np.array([0, 0, np.pi / 2])) @ (1, 0, 0), (0, 1, 0), atol=1e-12)
    np.testing.assert_array_equal(synthesize.rotations(np.zeros(3)), np.eye(3))


def test_pose_follows_the_tree():
    """Against 4x4 transforms multiplied from the root to each joint."""
    vectors = np.random.default_rng(0).normal(size=(2, 25, 3))
    scale = np.random.default_rng(1).uniform(.8, 1.2, (25, 1))
    parents = dict(BONES)

    def transform(frame, joint):
        matrix = np.eye(4)
        matrix[:3, :3] = synthesize.rotations(vectors[frame, joint - 1])
        if joint == 21:
            return matrix
        matrix[:3, 3] = scale[joint - 1] * synthesize.TREE[joint][1]
        return transform(frame, parents[joint]) @ matrix

    expected = np.array([[transform(frame, joint)[:3, 3] for joint in range(1, 26)] for frame in (0, 1)])
    expected -= expected[:, :1] * (1, 0, 1)
    expected[..., 1] -= expected[..., 1].min(axis=1, keepdims=True)
    np.testing.assert_allclose(synthesize.pose(vectors, scale), expected, atol=1e-12)


def swing_of(clip, joint, parent):
    """(T, 3): a limb's direction about its mean."""
    limb = clip.joints[0, :, joint - 1] - clip.joints[0, :, parent - 1]
    return limb - limb.mean(axis=0)


def test_tempo_phase_and_limb_tell_actions_apart(clips):
    def of(action):
        return [clip for clip in clips if clip.action == action and clip.joints.shape[1] >= 80]

    def arms(clip):  # motion (left, right), larger first: performers are left- or right-handed
        sizes = [np.linalg.norm(swing_of(clip, *bone), axis=1).mean() for bone in ((6, 5), (10, 9))]
        return sorted(sizes, reverse=True)

    def hertz(clip):
        bone = max(((6, 5), (10, 9)), key=lambda bone: np.linalg.norm(swing_of(clip, *bone)))
        spectrum = np.abs(np.fft.rfft(swing_of(clip, *bone), n=1024, axis=0)).sum(axis=1)
        return spectrum.argmax() * 30 / 1024

    def in_step(clip):
        left, right = swing_of(clip, 6, 5), swing_of(clip, 10, 9)
        return (left * right).sum() / np.linalg.norm(left) / np.linalg.norm(right)

    def turn(clip):  # the way in which the arm circles about the vertical, as a right-handed person would
        left_handed = synthesize.traits_of(clip.performer, 0).left_handed
        swing = swing_of(clip, 6, 5) if left_handed else swing_of(clip, 10, 9)
        return np.cross(swing[:-1], np.diff(swing, axis=0))[:, 1].sum() * (-1 if left_handed else 1)

    assert all(hertz(slow) < 1.1 for slow in of(1)) and all(hertz(fast) > 1.2 for fast in of(2))
    assert all(arms(clip)[0] > 3 * arms(clip)[1] for clip in of(1) + of(2))
    assert len({np.sign(turn(clip)) for clip in of(4)}) == 1 and len({np.sign(turn(clip)) for clip in of(5)}) == 1
    assert np.sign(turn(of(4)[0])) != np.sign(turn(of(5)[0]))
    assert all(in_step(clip) > .7 for clip in of(6)) and all(in_step(clip) < -.5 for clip in of(7))
    assert all(arms(clip)[0] < .1 for clip in of(8)) and all(np.ptp(swing_of(clip, 18, 17)) > .3 for clip in of(8))


def test_performers_differ_and_are_themselves_in_every_clip(clips):
    height = {}
    for clip in clips:
        thigh = np.linalg.norm(clip.joints[0, :, 17] - clip.joints[0, :, 16], axis=-1).mean()
        height.setdefault(clip.performer, []).append(thigh)
    assert len(height) == 40 and all(np.ptp(thighs) < .01 for thighs in height.values())
    assert np.ptp([np.mean(thighs) for thighs in height.values()]) > .05
    handed = [synthesize.traits_of(person, 0).left_handed for person in range(1, 41)]
    assert 3 <= sum(handed) <= 20


def test_same_seed_same_file_other_seed_other_numbers(tmp_path):
    made = {}
    for name, more in {'a': (), 'b': (), 'c': ('--seed', 1), 'd': ('--classes', 4)}.items():
        assert command(tmp_path / name, '--clips_per_class', 4, *more) == 0
        made[name] = tmp_path / name / 'SYNTH_XSub.npz'
    assert made['a'].read_bytes() == made['b'].read_bytes()
    a, c, d = (np.load(made[name]) for name in 'acd')
    first = [a['x_train'][0], c['x_train'][0]]
    assert not np.array_equal(first[0][:30], first[1][:30])
    where = a['name_train'].tolist().index(d['name_train'][0])
    np.testing.assert_array_equal(d['x_train'][0][:30], a['x_train'][where][:30])


@pytest.mark.parametrize('option, value', [
    ('--seed', -1), ('--classes', 1), ('--classes', 13), ('--clips_per_class', 2)])
def test_bad_options(tmp_path, capsys, option, value):
    assert command(tmp_path / 'out', option, value) == 2
    error = capsys.readouterr().err
    assert error.startswith('error: ') and error.count('\n') == 1 and option in error
    assert not (tmp_path / 'out').exists()


@pytest.mark.parametrize('start, where', [
    ([str(ROOT / 'data/synthesize.py')], Path('/')), (['-m', 'data.synthesize'], ROOT)])
def test_runs_by_path_and_as_a_module(tmp_path, start, where):
    run = subprocess.run([sys.executable, *start, '--out', tmp_path, '--clips_per_class', '3'],
                         cwd=where, capture_output=True, text=True)
    assert run.returncode == 0 and run.stderr == '' and '20 train, 10 test, 10 classes' in run.stdout, run
