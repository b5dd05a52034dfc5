"""Selection of actors against a second program, slow and simple, written after the description of the dataset.

Both must agree to the last bit on bodies that appear, return, overlap, are noise, lie on a threshold or are all zeros.
"""

import numpy as np

from data.ntu_actors import remove_noise, to_rows
from data.ntu_text import Body, parse_skeleton
from tests.conftest import refusal
from tests.data.raw_files import SHARED, needs, skeleton

f32 = np.float32


# ---- the second program ----------------------------------------------------------------------------------------------


def read_frames(text: bytes) -> list[dict]:
    """Frames with a body, each {id: joints}."""
    lines, frames = iter(text.decode().splitlines()), []
    for _ in range(int(next(lines))):
        frame = {}
        for _ in range(int(next(lines))):
            name, count = next(lines).split()[0], int(next(lines))
            frame[name] = [[f32(float(field)) for field in next(lines).split()[:3]] for _ in range(count)]
        if frame:
            frames.append(frame)
    return frames


def spread(poses: list) -> np.float32:
    positions = np.array([joint for pose in poses for joint in pose], dtype=np.float32)
    return np.var(positions, axis=0).sum()


def is_good(pose: list) -> bool:
    xs, ys = [joint[0] for joint in pose], [joint[1] for joint in pose]
    width, height = max(xs) - min(xs), max(ys) - min(ys)
    return float(width) <= 0.8 * float(height)


def reference(text: bytes) -> np.ndarray | None:
    """Steps 1 to 5 of the preparation: rows (T, 75) or (T, 150); None if there is no origin."""
    frames = read_frames(text)
    ids = list(dict.fromkeys(name for frame in frames for name in frame))
    poses = {name: [frame[name] for frame in frames if name in frame] for name in ids}
    start = {name: min(t for t, frame in enumerate(frames) if name in frame) for name in ids}
    end = {name: start[name] + len(poses[name]) - 1 for name in ids}
    several = len(ids) >= 2
    if several:
        ids = without_noise(ids, poses)

    rows = [[np.zeros(75, dtype=np.float32) for _ in range(2 if len(ids) > 1 else 1)] for _ in frames]
    taken, intervals = {ids[0]: 0}, [[start[ids[0]], end[ids[0]]], [0, 0]]
    for name in ids[1:]:
        for actor, interval in enumerate(intervals):
            if min(interval[1], end[name]) - max(interval[0], start[name]) <= 0:
                taken[name] = actor
                interval[:] = min(interval[0], start[name]), max(interval[1], end[name])
                break
    for name, actor in taken.items():
        for t, pose in enumerate(poses[name], start[name]):
            rows[t][actor] = f32(pose).reshape(75)
    if several:
        rows = [row for row in rows if np.concatenate(row).sum() != 0]
    return centred(rows)


def without_noise(ids: list, poses: dict) -> list:
    """The ids that are kept, those that move most first."""
    long = [name for name in ids if len(poses[name]) > 11]
    if not long:
        most = max(len(poses[name]) for name in ids)
        return [name for name in ids if len(poses[name]) == most][:1]
    if len(long) == 1:
        return long
    left, motion = list(long), {}
    for name in long:
        good = [pose for pose in poses[name] if is_good(pose)]
        bad = len(poses[name]) - len(good)
        if bad / len(poses[name]) >= 0.69754:
            left.remove(name)
            if len(left) == 1:
                return left
            continue
        motion[name] = spread(poses[name])
        if bad:
            motion[name] = min(motion[name], spread(good))
    ordered = []
    for name in left:       # largest first; of equals, the earlier one
        place = 0
        while place < len(ordered) and motion[ordered[place]] >= motion[name]:
            place += 1
        ordered.insert(place, name)
    return ordered


def centred(rows: list) -> np.ndarray | None:
    origin = next((row[0][3:6].copy() for row in rows if any(number != 0 for number in row[0])), None)
    if origin is None:
        return None
    result = []
    for row in rows:
        actors = [(actor.reshape(25, 3) - origin).reshape(75) for actor in row]
        for number, before in enumerate(row):
            if len(row) == 2 and before.sum() == 0:
                actors[number] = np.zeros(75, dtype=np.float32)
        result.append(np.concatenate(actors))
    return np.array(result, dtype=np.float32)


def agree(text: bytes, title: str) -> np.ndarray | None:
    """The rows of `to_rows`, equal to those of the second program; None if both refuse."""
    expected = reference(text)
    if expected is None:
        refusal(lambda: to_rows(parse_skeleton(text)), 'zero')
        return None
    rows = to_rows(parse_skeleton(text))
    assert rows.shape == expected.shape and rows.dtype == expected.dtype, title
    assert rows.tobytes() == expected.tobytes(), title
    return rows


# ---- random recordings -----------------------------------------------------------------------------------------------


def random_pose(rng: np.random.Generator, width: float, height: float, digits: int = 9) -> np.ndarray:
    """Joints (25, 3) float32 at a random place, with these extents up to rounding."""
    low = rng.uniform(-1, 1, 2).astype(np.float32)
    if rng.random() < .5:
        low = (low * 8).round() / 8     # so that the extents are exact
    joints = rng.uniform(.2, .8, (25, 3)) * (width, height, 1) + (*low, 3)
    joints[[3, 7], :2] = [low, low + np.array([width, height], dtype=np.float32)]
    return joints.round(digits).astype(np.float32)


def threshold_extents(rng: np.random.Generator) -> tuple[float, float]:
    """A width and a height for which the smallest step of float32 decides whether the frame is good."""
    height = f32(rng.choice([1, 1.25, .5, rng.uniform(.3, 2)]))
    width = f32(0.8 * float(height))
    for _ in range(rng.integers(0, 3)):
        width = np.nextafter(width, f32(rng.choice([0, 9])))
    return float(width), float(height)


def random_body(rng: np.random.Generator, frames: int) -> list[np.ndarray]:
    """The poses of one body: upright, lying at times, on the threshold, still, noise, or zeros."""
    kind = rng.choice(['up', 'up', 'mixed', 'edge', 'still', 'noise', 'noise', 'zeros', 'half zeros', 'balanced'])
    if kind == 'zeros':
        return [np.zeros((25, 3), dtype=np.float32)] * frames
    if kind == 'still':
        return [random_pose(rng, .5, 1.5, 3)] * frames
    poses, bad = [], {'mixed': .3, 'noise': .8}.get(kind, 0)
    for _ in range(frames):
        extents = (1.5, .5) if rng.random() < bad else (.5, 1.5)
        extents = threshold_extents(rng) if kind == 'edge' else extents
        poses.append(random_pose(rng, *extents, int(rng.integers(2, 9))))
    for t in rng.choice(frames, rng.integers(1, frames + 1), replace=False):
        if kind == 'half zeros':
            poses[t] = np.zeros((25, 3), dtype=np.float32)
        elif kind == 'balanced':                # sums to zero without being zero
            half = (rng.integers(-64, 64, (12, 3)) / 64).astype(np.float32)
            poses[t] = np.concatenate([half, -half, np.zeros((1, 3), dtype=np.float32)])
    return poses


def random_recording(seed: int) -> bytes:
    """One to six bodies in up to 45 frames."""
    rng = np.random.default_rng([3, seed])
    count, length = int(rng.integers(1, 7)), int(rng.integers(12, 46))
    frames = [{} for _ in range(length + 14)]
    last, previous = 0, None
    for number in range(count):
        duration = int(min(rng.choice([11, 12, 13, rng.integers(1, length + 1), length]), length))
        if number and rng.random() < .5:        # near the end of the previous body: apart, touching, overlapping
            first = int(np.clip(last + rng.integers(-3, 3), 0, length - 1))
        else:
            first = int(rng.integers(0, length - duration + 1)) if rng.random() < .6 else 0
        poses = random_body(rng, min(duration, len(frames) - first))
        if previous is not None and rng.random() < .15:     # exactly as much motion as the previous body
            poses = (previous * len(poses))[:len(poses)] if rng.random() < .5 else previous[:len(poses)]
        previous, at = poses, first
        for pose in poses:
            at += int(rng.integers(1, 4)) if rng.random() < .08 else 0      # absent for a while
            if at >= len(frames):
                break
            frames[at][f'7205759403793110{number}'] = pose
            at += 1
        last = at
    if rng.random() < .3:                       # bodies are ordered by their first appearance, within a frame too
        frames = [dict(reversed(frame.items())) for frame in frames]
    return skeleton(frames)


def test_random_recordings_agree_to_the_last_bit():
    """They take every branch of the program often."""
    singles = doubles = removed = refused = returned = 0
    for seed in range(300):
        text = random_recording(seed)
        rows, recording = agree(text, f'recording {seed}'), parse_skeleton(text)
        if rows is None:
            refused += 1
            continue
        singles += rows.shape[1] == 75 and len(recording.bodies) > 1
        doubles += rows.shape[1] == 150 and len(recording.bodies) > 2
        removed += len(rows) < recording.frames
        returned += any(body.start + len(body.joints) < recording.frames for body in recording.bodies.values())
    assert min(singles, doubles, removed, returned) >= 30 and 1 <= refused <= 75


# ---- rules and real recordings ---------------------------------------------------------------------------------------


def test_exactly_the_threshold_of_bad_frames_is_noise():
    joints = np.zeros((50_000, 25, 3), dtype=np.float32)
    joints[:, 3], joints[:34_877, 4] = (0, 1, 0), (9, 0, 0)
    bodies = {name: Body(0, joints[-15:]) for name in 'ab'}
    assert 34_877 / 50_000 == 0.69754 and len(remove_noise({'c': Body(0, joints)} | bodies)) == 2
    joints[0, 4] = 0
    assert len(remove_noise({'c': Body(0, joints)} | bodies)) == 3


@needs('data/ntu_raw')
def test_real_recordings_agree():
    for path in (SHARED / 'data/ntu_raw').iterdir():
        assert len(agree(path.read_bytes(), path.name)) > 20
