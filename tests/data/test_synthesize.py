"""Synthetic data: kinematics, exercises and errors of the sensor, and the files written."""

from unittest.mock import Mock

import numpy as np
from scipy.spatial.transform import Rotation

from data import kinematics, ntu_actors, ntu_text, synthesize
from data.datasets import NTU60_SUBJECTS
from data.exercises import MAX_CLIPS, clip_facts, make_clip
from tests.conftest import refusal
from tests.data.raw_files import read_folder, run_command, write_files

# Joint and parent, from 1, in the order of NTU's papers and tools.
BONES = [(1, 2), (2, 21), (3, 21), (4, 3), (5, 21), (6, 5), (7, 6), (8, 7), (9, 21), (10, 9), (11, 10), (12, 11),
         (13, 1), (14, 13), (15, 14), (16, 15), (17, 1), (18, 17), (19, 18), (20, 19), (22, 23), (23, 8), (24, 25),
         (25, 12)]
PAIRS = (11, 12)    # actions of two people


def test_pose_and_mirror():
    """Against 4x4 transforms multiplied from the root to each joint."""
    vectors = np.random.default_rng(0).normal(size=(2, 25, 3))
    scale, parents = np.random.default_rng(1).uniform(.8, 1.2, (25, 1)), dict(BONES)

    def transform(frame, joint):
        matrix = np.eye(4)
        matrix[:3, :3] = Rotation.from_rotvec(vectors[frame, joint - 1]).as_matrix()
        if joint == 21:
            return matrix
        matrix[:3, 3] = scale[joint - 1] * kinematics.TREE[joint][1]
        return transform(frame, parents[joint]) @ matrix

    expected = np.array([[transform(frame, joint)[:3, 3] for joint in range(1, 26)] for frame in (0, 1)])
    expected -= expected[:, [14, 18]].mean(axis=1, keepdims=True) * (1, 0, 1)
    expected[..., 1] -= expected[..., 1].min(axis=1, keepdims=True)
    joints = kinematics.pose(vectors, scale)
    np.testing.assert_allclose(joints, expected, atol=1e-12)
    mirrored = kinematics.mirror(joints)
    for left, right in ((5, 9), (8, 12), (16, 20), (22, 24), (23, 25), (4, 4), (21, 21)):
        np.testing.assert_array_equal(mirrored[:, left - 1], joints[:, right - 1] * (-1, 1, 1))


def test_facts_are_unique_and_balanced():
    fields = np.array([clip_facts(number, 7) for number in range(MAX_CLIPS)])
    assert len(np.unique(fields, axis=0)) == 4080
    assert (fields >= 1).all() and (fields <= (17, 3, 40, 2, 7)).all()
    assert .3 < np.isin(fields[:10, 2], NTU60_SUBJECTS).mean() < .6 and set(fields[:10, 1]) == {1, 2, 3}


def test_preparation_removes_the_errors():
    """In clips without lost frames the people remain, whichever of them becomes actor 1."""
    equal = []
    for clip in (make_clip(number, action, 0) for action in range(1, 13) for number in range(40)):
        visible = sum(len(track.frames) for track in clip.tracks
                      if any(np.array_equal(person.joints[track.frames], track.joints) for person in clip.people))
        if clip.people[0].body not in {track.body for track in clip.tracks} or len(clip.tracks) == len(clip.people) \
                or visible < clip.frames * len(clip.people):
            continue
        rows = ntu_actors.to_rows(ntu_text.parse_skeleton(synthesize.ntu_text(clip.tracks, clip.frames).encode()))
        people = [person.joints for person in clip.people]
        expected = [np.concatenate([joints - order[0][0, 1] for joints in order], axis=1)
                    for order in (people, people[::-1])]
        rows = rows.reshape(len(rows), -1, 3)[:, :25 * len(people)]
        equal.append(any(rows.shape == each.shape and np.allclose(rows, each, atol=1e-5) for each in expected))
    assert len(equal) > 60 and np.mean(equal) > .9      # a person with spread arms may look like furniture


def test_a_clip_does_not_depend_on_the_others(tmp_path):
    files = {}
    for name, more in {'one': ('--workers', 1), 'three': ('--workers', 3), 'few': ('--classes', 4),
                       'many': ('--clips_per_class', 4), 'other': ('--seed', 1)}.items():
        assert run_command(synthesize, '--out', tmp_path / name, '--clips_per_class', 3, *more) == 0
        files[name] = read_folder(tmp_path / name)
    assert files['one'] == files['three'] and len(files['one']) == 36
    assert len(files['few']) == 12 and files['few'].items() <= files['one'].items()
    assert len(files['many']) == 48 and files['many'].items() >= files['one'].items()
    assert files['other'].keys() == files['one'].keys() and not files['other'].items() & files['one'].items()


def test_pku_videos(tmp_path):
    """Each class once with pauses, as long as in the NTU clips, no jumps; splits by performer and camera."""
    assert run_command(synthesize, '--out', tmp_path / 'pku', '--clips_per_class', 4, '--format', 'pku') == 0
    names = sorted(path.stem for path in (tmp_path / 'pku/skeleton').iterdir())
    assert len(names) == 4
    for name in names:
        rows = np.loadtxt(tmp_path / f'pku/skeleton/{name}.txt').reshape(-1, 2, 25, 3)
        labels = np.loadtxt(tmp_path / f'pku/label/{name}.txt', int, delimiter=',')[:, :3].tolist()
        assert sorted(label[0] for label in labels) == list(range(1, 13))
        previous = 0
        for each, start, end in labels:
            assert 15 <= start - previous <= 45 and not rows[previous:start, 1].any()
            assert rows[start:end, 1].any() >= (each in PAIRS)
            assert end - start == len(make_clip(int(name[:4]) - 1, each, 0).people[0].joints)
            previous = end
        assert previous == len(rows) and np.abs(np.diff(rows[:, 0], axis=0)).max() < .25
    for kind, belongs in (('subject', lambda name: clip_facts(int(name[:4]) - 1, 1).performer in NTU60_SUBJECTS),
                          ('view', lambda name: name[-1] in 'MR')):
        lines = (tmp_path / f'pku/cross-{kind}.txt').read_text().splitlines()
        assert lines[1].split(', ') == [name for name in names if belongs(name)]
        assert lines[3].split(', ') == [name for name in names if not belongs(name)]


def test_an_interrupted_run_leaves_no_folder_and_other_files_remain(tmp_path, monkeypatch):
    out = ['--out', str(tmp_path / 'out'), '--clips_per_class', '3']
    with monkeypatch.context() as patch:
        patch.setattr(synthesize, 'write_splits', Mock(side_effect=OSError(28, 'No space left')))
        refusal(lambda: synthesize.main([*out, '--format', 'pku']), tmp_path / 'out', 'No space left')
    assert not list(tmp_path.iterdir())
    write_files(tmp_path, {'.out.partial/a': b'', 'mine/mine.txt': b'mine'})        # the first as after a kill
    assert synthesize.main(out) == 0 and len(read_folder(tmp_path / 'out')) == 36
    refusal(lambda: synthesize.main(['--out', str(tmp_path / 'mine')]), tmp_path / 'mine', 'not empty', '--out')
    assert {path.name for path in tmp_path.iterdir()} == {'out', 'mine'} and len(read_folder(tmp_path / 'mine')) == 1
