import hashlib
import platform
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from data import body, ntu_actors, ntu_text, synthesize
from util.errors import run_main

ROOT = Path(__file__).resolve().parents[2]
# joint and parent, 1-based, in the order NTU's papers and tools give them
BONES = [(1, 2), (2, 21), (3, 21), (4, 3), (5, 21), (6, 5), (7, 6), (8, 7), (9, 21), (10, 9), (11, 10), (12, 11),
         (13, 1), (14, 13), (15, 14), (16, 15), (17, 1), (18, 17), (19, 18), (20, 19), (22, 23), (23, 8), (24, 25),
         (25, 12)]
TRAIN_PERFORMERS = {1, 2, 4, 5, 8, 9, 13, 14, 15, 16, 17, 18, 19, 25, 27, 28, 31, 34, 35, 38}
PAIRS = (11, 12)  # actions of two people


def command(out, *more):
    """Exit code of the command, run in this process."""
    with pytest.raises(SystemExit) as end:
        run_main(lambda: synthesize.main(['--out', str(out), *map(str, more)]))
    return end.value.code


def action_of(clip):
    return int(clip.name[17:])


def hashes(folder):
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in folder.rglob('*') if path.is_file()}


@pytest.fixture(scope='module')
def clips():
    return list(synthesize.make_clips(classes=12, clips_per_class=60, seed=0))


@pytest.fixture(scope='module')
def ntu(tmp_path_factory):
    out = tmp_path_factory.mktemp('synthetic') / 'ntu'
    assert command(out, '--clips_per_class', 3) == 0
    return out


@pytest.fixture(scope='module')
def pku(tmp_path_factory):
    out = tmp_path_factory.mktemp('synthetic') / 'pku'
    assert command(out, '--clips_per_class', 4, '--format', 'pku') == 0
    return out


def read_ntu(text):
    """Frames as lists of (id, the nine other fields of the body, joints (25, 12)), by the format's description."""
    lines = iter(text.splitlines())
    frames = []
    for _ in range(int(next(lines))):
        frames.append([])
        for _ in range(int(next(lines))):
            name, *others = next(lines).split()
            assert int(next(lines)) == 25
            frames[-1].append((name, others, np.array([next(lines).split() for _ in range(25)], dtype=float)))
    assert list(lines) == []
    return frames


def test_ntu_text_gives_back_the_arrays(ntu):
    clips = {clip.name: clip for clip in synthesize.make_clips(12, 3, 0)}
    assert sorted(clips) == sorted(path.stem for path in ntu.iterdir())
    assert {path.suffix for path in ntu.iterdir()} == {'.skeleton'}
    for name, clip in clips.items():
        frames = read_ntu((ntu / f'{name}.skeleton').read_text())
        assert len(frames) == clip.frames
        assert sum(map(len, frames)) == sum(len(track.frames) for track in clip.tracks)
        for track in clip.tracks:
            for frame, joints, orientations in zip(track.frames, track.joints, track.orientations, strict=True):
                (others, numbers), = [(others, numbers) for body, others, numbers in frames[frame]
                                      if body == str(track.body)]
                np.testing.assert_allclose(numbers[:, :3], joints, rtol=6e-7)
                np.testing.assert_allclose(numbers[:, 7:11], orientations, rtol=6e-7, atol=1e-12)
                assert len(others) == 9 and len(str(track.body)) == 17 and set(numbers[:, 11]) <= {1, 2}


def test_other_fields_are_plausible(ntu):
    """In the images further left is further left and higher is higher; orientations are unit quaternions or none."""
    for path in sorted(ntu.iterdir())[::5]:
        for _, _, numbers in sum(read_ntu(path.read_text()), []):
            x, y, z, *images = numbers[:, :7].T
            for horizontal, vertical, width, height in ((*images[:2], 512, 424), (*images[2:], 1920, 1080)):
                assert np.corrcoef(x / z, horizontal)[0, 1] > .99 and np.corrcoef(y / z, vertical)[0, 1] < -.99
                assert 0 < horizontal.mean() < width and 0 < vertical.mean() < height
            sizes = np.linalg.norm(numbers[:, 7:11], axis=1)
            assert ((np.abs(sizes - 1) < 1e-5) | (sizes == 0)).all()
            assert (sizes[[3, 15, 19, 21, 22, 23, 24]] == 0).all()


def test_names_are_legal_unique_and_spread():
    names = [synthesize.name_of(number, 7) for number in range(synthesize.MOST_CLIPS)]
    assert len(set(names)) == 4080
    fields = np.array([[int(name[at:at + 3]) for at in (1, 5, 9, 13, 17)] for name in names])
    assert (fields >= 1).all() and (fields <= (17, 3, 40, 2, 60)).all() and (fields[:, 4] == 7).all()
    assert all(re.fullmatch(r'S\d{3}C\d{3}P\d{3}R\d{3}A\d{3}', name) for name in names)
    for count in (3, 10, 60, 100, 720, 4080):
        _, cameras, performers = fields[:count, :3].T
        train = np.isin(performers, list(TRAIN_PERFORMERS)).mean()
        assert .3 < train < .6 and (count < 60 or .48 <= train <= .53)
        assert np.ptp(np.bincount(cameras, minlength=4)[1:]) <= 1 + count // 100
        assert np.ptp(np.bincount(performers, minlength=41)[1:]) <= 1


def test_lengths_people_and_values(clips):
    lengths = [clip.frames for clip in clips]
    assert min(lengths) >= 55 and max(lengths) <= 90 and min(lengths) < 58 and max(lengths) > 87
    for clip in clips:
        assert len(clip.people) == 2 if action_of(clip) in PAIRS else len(clip.people) in (1, 2)
        for track in (*clip.people, *clip.tracks):
            assert track.joints.shape == (len(track.frames), 25, 3) and track.joints.dtype == np.float32
            assert len(track.frames) and (np.diff(track.frames) > 0).all() and track.frames[-1] < clip.frames
            assert np.isfinite(track.joints).all() and (track.joints[..., 2] > .5).all()
        assert len({track.body for track in clip.tracks}) == len(clip.tracks)


def test_bystanders_and_every_fault_of_the_sensor_are_there(clips):
    counts = dict.fromkeys(('bystander', 'nobody', 'short', 'table', 'new id', 'lost'), 0)
    for clip in clips:
        own = {person.body for person in clip.people}
        shown = {track.body: track for track in clip.tracks}
        counts['bystander'] += len(clip.people) == 2 and action_of(clip) not in PAIRS
        empty = set(range(clip.frames)) - {frame for track in clip.tracks for frame in track.frames.tolist()}
        counts['nobody'] += bool(empty)
        assert len(empty) <= 3
        if len(own) == 2 and 5 <= clip.frames - len(shown[max(own)].frames) - len(empty) <= 15:
            counts['lost'] += len(shown) == 2
        for track in clip.tracks:
            if track.body in own:
                continue
            extent = np.ptp(track.joints, axis=1)
            same = [person for person in clip.people if np.array_equal(person.joints[track.frames], track.joints)]
            assert len(track.frames) <= 11 or same or (extent[:, 0] > .8 * extent[:, 1]).mean() > .9
            counts['new id' if same else 'short' if len(track.frames) <= 11 else 'table'] += 1
    singles = sum(action_of(clip) not in PAIRS for clip in clips)
    assert .5 < counts.pop('bystander') / singles < .7
    assert all(.02 * len(clips) < count < .2 * len(clips) for count in counts.values()), counts


def test_bystanders_stand_as_partners_do(clips):
    """As near, as much beside, turned as freely; what tells them apart is that they keep still."""
    def read_metadata(wanted):
        rows = []
        for clip in clips:
            if len(clip.people) == 2 and (action_of(clip) in PAIRS) == wanted:
                first, second = (person.joints[0].astype(float) for person in clip.people)
                across = second[8] - second[4]
                rows.append((np.hypot(*(second[0] - first[0])[[0, 2]]), abs(second[0] - first[0])[0],
                             np.arctan2(across[2], across[0]), clip.people[1].joints.std(axis=0).max()))
        return np.array(rows)

    partners, bystanders = read_metadata(True), read_metadata(False)
    np.testing.assert_allclose(partners[:, :3].mean(axis=0), bystanders[:, :3].mean(axis=0), atol=.1)
    np.testing.assert_allclose(partners[:, :3].std(axis=0), bystanders[:, :3].std(axis=0), rtol=.25)
    assert partners[:, 3].min() > 2 * np.median(bystanders[:, 3])


def test_preparation_takes_the_faults_away(clips):
    """The people are what remains, whichever of them becomes actor 1, of clips in which nobody is ever out of sight."""
    strays = whole = 0
    for clip in clips:
        if clip.people[0].body not in {track.body for track in clip.tracks} or len(clip.tracks) == len(clip.people):
            continue
        shown = sum(len(track.frames) for track in clip.tracks
                    if any(np.array_equal(person.joints[track.frames], track.joints) for person in clip.people))
        if shown < clip.frames * len(clip.people):
            continue
        rows = ntu_actors.to_rows(ntu_text.parse_skeleton(synthesize.ntu_text(clip.tracks, clip.frames).encode()))
        strays += 1
        people = [person.joints for person in clip.people]
        orders = (people, people[::-1])
        wanted = [np.concatenate([joints - order[0][0, 1] for joints in order], axis=1) for order in orders]
        rows = rows.reshape(len(rows), -1, 3)[:, :25 * len(people)]
        whole += any(rows.shape == each.shape and np.allclose(rows, each, atol=1e-5) for each in wanted)
    assert strays > 100 and whole > .9 * strays  # now and then somebody stretches so wide as to be taken for a table


def test_bones_are_rigid_and_joints_move(clips):
    """Bones keep their length but for the sensor's noise; people stay near, upright and within a room."""
    for clip in clips[::5]:
        for person in clip.people:
            bones = np.stack([person.joints[:, joint - 1] - person.joints[:, parent - 1] for joint, parent in BONES])
            lengths = np.linalg.norm(bones, axis=-1)  # (24, T)
            assert lengths.std(axis=-1).max() < .01 and lengths.min() > .01 and lengths.max() < .6
            assert (person.joints[:, 3, 1] - person.joints[:, [14, 18], 1].T > .4).all()  # head over ankles
            shoulder, elbow, wrist = (person.joints[:, joint - 1] for joint in (9, 10, 11))
            upper, fore = elbow - shoulder, wrist - elbow
            cosines = (upper * fore).sum(axis=1) / np.linalg.norm(upper, axis=1) / np.linalg.norm(fore, axis=1)
            assert cosines.min() > -.95  # an elbow does not close altogether
        assert np.ptp(clip.people[0].joints, axis=0).max() > .15


def test_rotations_are_rotations():
    vectors = np.random.default_rng(0).normal(size=(50, 3))
    matrices = body.rotations(vectors)
    np.testing.assert_allclose(matrices @ matrices.swapaxes(1, 2), np.broadcast_to(np.eye(3), (50, 3, 3)), atol=1e-12)
    np.testing.assert_allclose((matrices @ vectors[..., None])[..., 0], vectors, atol=1e-12)  # the axis stays
    np.testing.assert_allclose(body.rotations(np.array([0, 0, np.pi / 2])) @ (1, 0, 0), (0, 1, 0), atol=1e-12)
    np.testing.assert_array_equal(body.rotations(np.zeros(3)), np.eye(3))


def test_quaternions_turn_as_their_matrices():
    matrices = body.rotations(np.random.default_rng(0).normal(size=(50, 3)))
    points = np.random.default_rng(1).normal(size=(50, 3))
    w, axis = (part for part in np.split(body.quaternions(matrices), [1], axis=1))
    twice = 2 * np.cross(axis, points)
    np.testing.assert_allclose(points + w * twice + np.cross(axis, twice), (matrices @ points[..., None])[..., 0],
                               atol=1e-12)
    np.testing.assert_array_equal(body.quaternions(np.eye(3)), (1, 0, 0, 0))


def test_pose_follows_the_tree():
    """Against 4x4 transforms multiplied from the root to each joint."""
    vectors = np.random.default_rng(0).normal(size=(2, 25, 3))
    scale = np.random.default_rng(1).uniform(.8, 1.2, (25, 1))
    parents = dict(BONES)

    def transform(frame, joint):
        matrix = np.eye(4)
        matrix[:3, :3] = body.rotations(vectors[frame, joint - 1])
        if joint == 21:
            return matrix
        matrix[:3, 3] = scale[joint - 1] * body.TREE[joint][1]
        return transform(frame, parents[joint]) @ matrix

    matrices = np.array([[transform(frame, joint) for joint in range(1, 26)] for frame in (0, 1)])
    expected = matrices[..., :3, 3].copy()
    expected -= expected[:, [14, 18]].mean(axis=1, keepdims=True) * (1, 0, 1)
    expected[..., 1] -= expected[..., 1].min(axis=1, keepdims=True)
    joints, turned = body.pose(vectors, scale)
    np.testing.assert_allclose(joints, expected, atol=1e-12)
    np.testing.assert_allclose(turned, matrices[..., :3, :3], atol=1e-12)


def test_the_left_handed_are_mirror_images():
    joints, turned = body.pose(np.random.default_rng(0).normal(0, .3, (2, 25, 3)), np.ones((25, 1)))
    mirrored, rotated = body.mirror(joints, turned)
    for left, right in ((5, 9), (8, 12), (16, 20), (22, 24), (23, 25), (4, 4), (21, 21)):
        np.testing.assert_array_equal(mirrored[:, left - 1], joints[:, right - 1] * (-1, 1, 1))
        np.testing.assert_array_equal(mirrored[:, right - 1], joints[:, left - 1] * (-1, 1, 1))
    np.testing.assert_allclose(np.linalg.det(rotated), 1)


def motions(number, action):
    """The first person's hips and wrists about their mean (T, 3) and how far the arms swing, right-handed, no noise."""
    part = synthesize.cast(number, action, 0)[0][0]
    joints, _ = body.pose(part.vectors, part.traits.scale)
    hips = joints[:, 0] - joints[:, 0].mean(axis=0)
    arms = [part.vectors[:, joint - 1] - part.vectors[:, joint - 1].mean(axis=0) for joint in (5, 9)]
    return hips, arms, part.traits


@pytest.mark.parametrize('number', range(6))
def test_what_tells_the_actions_apart(number):
    hips, arms, traits = zip(*(motions(number, action) for action in range(1, 13)), strict=True)

    def hertz(signal, speed):
        return np.abs(np.fft.rfft(signal - signal.mean(), n=2048)).argmax() * 30 / 2048 / speed

    def around(action):  # of the hips in the plane of up and forwards, seen from the person's left
        up, ahead = hips[action - 1][:, 1], -hips[action - 1][:, 2]
        return np.sum(up[:-1] * np.diff(ahead) - ahead[:-1] * np.diff(up))

    def in_step(action):
        left, right = (arm[:, 0] for arm in arms[action - 1])
        return np.corrcoef(left, right)[0, 1]

    spans = np.array([np.ptp(hip, axis=0) for hip in hips])  # (12, 3)
    assert spans[0].argmax() == 0 and spans[1].argmax() == 2 and (spans[[2, 3, 7, 8, 9]].argmax(axis=1) == 1).all()
    assert hertz(hips[2][:, 1], traits[2].speed) < 1 < 1.2 < hertz(hips[3][:, 1], traits[3].speed)
    assert around(5) > 0 > around(6)
    assert in_step(2) > .8 and in_step(3) > .8 and in_step(7) < -.8 and in_step(11) < -.8
    for action, sign in ((8, 1), (9, -1)):  # how long the way down takes, against the way up
        steps = np.diff(hips[action - 1][:, 1])
        assert sign * (np.abs(steps[steps < 0]).mean() - np.abs(steps[steps > 0]).mean()) > 0


def test_the_mean_pose_says_next_to_nothing(clips):
    """Logistic regression on mean poses is right in no more than twice as many cases as chance."""
    features, labels, train = [], [], []
    for clip in clips:
        people = np.zeros((2, 25, 3))
        people[:len(clip.people)] = [(person.joints - clip.people[0].joints[0, 1]).mean(axis=0)
                                     for person in clip.people]
        features.append(people.ravel())
        labels.append(action_of(clip))
        train.append(int(clip.name[9:12]) in TRAIN_PERFORMERS)
    features, labels, train = np.array(features), np.array(labels), np.array(train)
    for strength in (.001, .01, .1, 1):
        model = make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=300))
        model.fit(features[train], labels[train])
        assert model.score(features[~train], labels[~train]) <= 2 / 12, strength


def test_performers_differ_and_are_themselves_in_every_clip(clips):
    thighs = {}
    for clip in clips:
        bone = clip.people[0].joints[:, 17] - clip.people[0].joints[:, 16]
        thighs.setdefault(clip.name[8:12], []).append(np.linalg.norm(bone, axis=-1).mean())
    assert len(thighs) == 40 and all(np.ptp(lengths) < .01 for lengths in thighs.values())
    assert np.ptp([np.mean(lengths) for lengths in thighs.values()]) > .05
    assert 3 <= sum(synthesize.traits_of(person, 0).left_handed for person in range(1, 41)) <= 16


def test_a_clip_is_the_same_whatever_else_is_made(tmp_path, ntu):
    made = {'all': hashes(ntu)}
    for name, more in {'alone': ('--workers', 1), 'three': ('--workers', 3), 'few': ('--classes', 4),
                       'many': ('--clips_per_class', 4), 'other': ('--seed', 1)}.items():
        assert command(tmp_path / name, '--clips_per_class', 3, *more) == 0
        made[name] = hashes(tmp_path / name)
    assert made['all'] == made['alone'] == made['three']
    assert len(made['few']) == 12 and made['few'].items() <= made['all'].items()
    assert len(made['many']) == 48 and made['many'].items() >= made['all'].items()
    assert made['other'].keys() == made['all'].keys() and not made['other'].items() & made['all'].items()


def read_pku(folder, name):
    """Rows (T, 2, 25, 3) and labels (class, start, end) of a video, by the format's description."""
    lines = (folder / 'skeleton' / f'{name}.txt').read_text().splitlines()
    assert all(re.fullmatch(r'-?\d+\.\d{6}', number) for number in lines[0].split())
    labels = [line.split(',') for line in (folder / 'label' / f'{name}.txt').read_text().splitlines()]
    assert all(len(label) == 4 for label in labels)
    rows = np.array([line.split(' ') for line in lines], dtype=float)
    assert rows.shape[1] == 150
    return rows.reshape(-1, 2, 25, 3), [tuple(map(int, label[:3])) for label in labels]


def test_pku_videos_show_each_class_once_with_pauses(pku):
    names = sorted(path.stem for path in (pku / 'skeleton').iterdir())
    assert names == sorted(path.stem for path in (pku / 'label').iterdir()) and len(names) == 4
    assert all(re.fullmatch(r'\d{4}-[LMR]', name) for name in names) and len({name[-1] for name in names}) == 3
    orders = set()
    for name in names:
        rows, labels = read_pku(pku, name)
        orders.add(tuple(label[0] for label in labels))
        assert sorted(label[0] for label in labels) == list(range(1, 13))
        ends = 0
        for action, start, end in labels:
            assert 15 <= start - ends <= 45 and 55 <= end - start <= 90
            assert not rows[ends:start, 1].any() and rows[start:end, 1].any() >= (action in PAIRS)
            ends = end
        assert ends == len(rows) and rows[:, 0].any(axis=(1, 2)).all()
        lengths = np.stack([np.linalg.norm(rows[:, 0, a - 1] - rows[:, 0, b - 1], axis=1) for a, b in BONES])
        assert lengths.std(axis=1).max() < .01 and np.abs(np.diff(rows[:, 0], axis=0)).max() < .25  # nobody jumps
        made, told = synthesize.make_video(int(name[:4]) - 1, 12, 0)
        assert told == labels
        np.testing.assert_allclose(rows.reshape(len(rows), -1), made, atol=6e-7)
    assert len(orders) > 1


def test_pku_actions_are_those_of_the_ntu_clips(pku):
    """Distances between a person's joints are the same, but for the noise."""
    rows, labels = read_pku(pku, synthesize.video_name(2))
    for action, start, end in labels:
        joints = synthesize.make_clip(2, action, 0).people[0].joints
        ours, theirs = (np.linalg.norm(each[:, [7, 3, 0]] - each[:, [11, 15, 4]], axis=-1)
                        for each in (joints, rows[start:end, 0]))
        np.testing.assert_allclose(ours, theirs, atol=.04)


def test_pku_splits(pku):
    names = {path.stem for path in (pku / 'skeleton').iterdir()}
    for kind in ('subject', 'view'):
        lines = (pku / f'cross-{kind}.txt').read_text().splitlines()
        train, test = lines[1].split(', '), lines[3].split(', ')
        assert len(lines) == 4 and sorted([*train, *test]) == sorted(names) and train and test
        if kind == 'view':
            assert {name[-1] for name in train} == {'M', 'R'} and {name[-1] for name in test} == {'L'}
        else:
            performers = [{synthesize.facts_of(int(name[:4]) - 1).performer for name in side}
                          for side in (train, test)]
            assert performers[0] <= TRAIN_PERFORMERS and not performers[1] & TRAIN_PERFORMERS


@pytest.mark.parametrize('option, value', [
    ('--seed', -1), ('--classes', 1), ('--classes', 13), ('--clips_per_class', 2), ('--clips_per_class', 4081),
    ('--workers', 0)])
def test_bad_options(tmp_path, capsys, option, value):
    assert command(tmp_path / 'out', option, value) == 2
    error = capsys.readouterr().err
    assert error.startswith('error: ') and error.count('\n') == 1 and option in error
    assert not list(tmp_path.iterdir())


def test_two_sets_are_never_mixed(tmp_path, capsys):
    (tmp_path / 'full').mkdir()
    (tmp_path / 'full' / 'mine.txt').write_text('mine')
    (tmp_path / 'file').write_text('mine')
    for name in ('full', 'file'):
        assert command(tmp_path / name, '--clips_per_class', 3) == 2
        error = capsys.readouterr().err
        assert error.startswith('error: ') and error.count('\n') == 1 and name in error and '--out' in error
    assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob('*')) == ['file', 'full', 'full/mine.txt']
    (tmp_path / 'empty').mkdir()
    assert command(tmp_path / 'empty', '--clips_per_class', 3, '--classes', 2) == 0
    assert len(list((tmp_path / 'empty').iterdir())) == 6


@pytest.mark.parametrize('workers', [1, 2])
def test_a_disk_that_fills_up(tmp_path, capsys, monkeypatch, workers):
    def full(*_):
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(synthesize.Path, 'write_text', full)
    assert command(tmp_path / 'out', '--clips_per_class', 3, '--workers', workers) == 2
    error = capsys.readouterr().err
    assert 'No space left' in error and error.count('\n') == 1 and not list(tmp_path.iterdir())


def test_a_killed_run_leaves_no_folder_of_that_name(tmp_path):
    out = tmp_path / 'out'
    run = subprocess.Popen([sys.executable, ROOT / 'data/synthesize.py', '--out', out, '--clips_per_class', '4080',
                            '--workers', '1'])
    try:
        while not list(tmp_path.glob('.out*/*')) and run.poll() is None:
            time.sleep(.02)
    finally:
        run.kill()
        run.wait()
    left = f'.out.{run.pid}@{platform.node()}.mamp-partial'
    assert not out.exists() and [path.name for path in tmp_path.iterdir()] == [left]


@pytest.mark.parametrize('start, where', [
    ([str(ROOT / 'data/synthesize.py')], Path('/')), (['-m', 'data.synthesize'], ROOT)])
def test_runs_by_path_and_as_a_module(tmp_path, start, where):
    run = subprocess.run([sys.executable, *start, '--out', tmp_path / 'out', '--clips_per_class', '3'],
                         cwd=where, capture_output=True, text=True)
    assert run.returncode == 0 and run.stderr == '' and '36 clips, 12 classes' in run.stdout, run


def test_a_glimpse_can_be_lost_altogether():
    """This clip's falls into the very frames that show nobody."""
    clip = synthesize.make_clip(582, 5, 0)
    assert len(clip.tracks) == 2 and all(len(track.frames) for track in clip.tracks)
    assert synthesize.ntu_text(clip.tracks, clip.frames).startswith(f'{clip.frames}\n')
