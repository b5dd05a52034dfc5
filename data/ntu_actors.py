"""From the bodies a Kinect saw to the actors of a sample, as the NTU RGB+D files everybody trains on were made.

Detected bodies are up to six a frame, noise among them; they come, go and return. What is left is one actor or two.
The order of the steps and every threshold matter: the arrays are compared bit by bit.

T frames that show a body, n frames of one body, V = 25 joints.
"""

import numpy as np

from data.ntu_text import JOINTS, Body, Recording
from util.errors import UserError

MIN_FRAMES = 12           # a body seen in fewer frames is noise
MAX_SPREAD = 0.8          # a body in a good frame is at most this wide, as a share of its height
MAX_BAD_FRAMES = 0.69754  # a body with this share of frames that are not good, or more, is noise
ORIGIN = 1                # joint 2, the middle of the spine
WIDTH = JOINTS * 3        # numbers a frame of one actor


def to_rows(recording: Recording) -> np.ndarray:
    """A recording as frames of one or of two actors: (T, 75) or (T, 150) float32, centred.

    The origin is joint 2 of actor 1 in its first frame. A frame that misses one of two actors has zeros there. Two
    actors stay two when the second is empty.

    Raises:
        UserError: all coordinates of actor 1 are zero.
    """
    if len(recording.bodies) == 1:
        body, = recording.bodies.values()
        rows = _place(body, recording.frames)
    else:
        bodies = denoise(recording.bodies)
        rows = _place(bodies[0], recording.frames) if len(bodies) == 1 else cast(bodies, recording.frames)
        rows = rows[rows.sum(axis=1) != 0]
    return _centre(rows)


def motion_of(joints: np.ndarray) -> float:
    """How far joints (n, 25, 3) are spread over space and time: the sum of the variances of x, y and z, in float32."""
    return joints.reshape(-1, 3).var(axis=0).sum()


def denoise(bodies: dict[str, Body]) -> list[Body]:
    """The bodies (two or more) that are no noise, the one that moves most first; at least one."""
    long = {name: body for name, body in bodies.items() if len(body.joints) >= MIN_FRAMES}
    if not long:
        return [max(bodies.values(), key=lambda body: len(body.joints))]
    kept, motions = dict(long), {}
    for name, body in long.items():
        if len(kept) == 1:
            break
        good = _good_frames(body.joints)
        if (~good).sum() / len(good) >= MAX_BAD_FRAMES:
            del kept[name]
            continue
        motions[name] = motion_of(body.joints)
        if not good.all():
            motions[name] = min(motions[name], motion_of(body.joints[good]))
    if len(kept) == 1:
        return list(kept.values())
    return [kept[name] for name in sorted(kept, key=motions.__getitem__, reverse=True)]


def _good_frames(joints: np.ndarray) -> np.ndarray:
    """Which frames of joints (n, 25, 3) have the proportions of somebody upright, (n,) bool."""
    across = np.ascontiguousarray(joints.transpose(2, 1, 0)[:2])  # (2, 25, n), so that n is quick to go along
    width, height = (across.max(axis=1) - across.min(axis=1)).astype(np.float64)  # (n,), taken in float32
    return width <= MAX_SPREAD * height


def cast(bodies: list[Body], frames: int) -> np.ndarray:
    """Gives each body, in order, to the first of two actors that is not busy meanwhile: (T, 150) float32.

    Intervals may touch in one frame; the later body then wins it. A body that finds both actors busy is lost.
    """
    rows = np.zeros((frames, 2, WIDTH), dtype=np.float32)
    busy = [(bodies[0].start, _end(bodies[0])), (0, 0)]
    rows[bodies[0].start:_end(bodies[0]) + 1, 0] = bodies[0].joints.reshape(-1, WIDTH)
    for body in bodies[1:]:
        for actor, (start, end) in enumerate(busy):
            if min(end, _end(body)) - max(start, body.start) <= 0:
                rows[body.start:_end(body) + 1, actor] = body.joints.reshape(-1, WIDTH)
                busy[actor] = min(start, body.start), max(end, _end(body))
                break
    return rows.reshape(frames, 2 * WIDTH)


def _end(body: Body) -> int:
    """The last frame of a body, whose frames count as one run from its first."""
    return body.start + len(body.joints) - 1


def _place(body: Body, frames: int) -> np.ndarray:
    rows = np.zeros((frames, WIDTH), dtype=np.float32)
    rows[body.start:_end(body) + 1] = body.joints.reshape(-1, WIDTH)
    return rows


def _centre(rows: np.ndarray) -> np.ndarray:
    """Moves frames (T, 75) or (T, 150) so that joint 2 of actor 1 begins in the origin; absent actors stay zeros."""
    seen = rows[:, :WIDTH].any(axis=1)
    if not seen.any():
        raise UserError('all coordinates of the first actor are zero')
    origin = rows[seen.argmax(), 3 * ORIGIN:3 * ORIGIN + 3]
    actors = rows.reshape(len(rows), -1, WIDTH)  # (T, 1 or 2, 75)
    centred = actors - np.tile(origin, JOINTS)
    if actors.shape[1] == 2:
        centred[actors.sum(axis=2) == 0] = 0
    return centred.reshape(rows.shape)
