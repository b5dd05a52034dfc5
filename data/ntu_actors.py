"""Selection of the actors of an NTU RGB+D sample from the bodies that the Kinect tracked.

The Kinect tracks up to six bodies at a time, some of them spurious; tracks start, stop and resume. The selection keeps
one or two actors. Steps and thresholds are those of the scripts that made the widely used NTU RGB+D files (CTR-GCN and
its derivatives); results are equal bit for bit, so the order of operations matters.

T: number of frames with at least one body; n: number of frames in which a given body is tracked; V = 25 joints.
"""

import numpy as np

from data.ntu_text import JOINTS, Body, Recording
from util.errors import UserError

MIN_FRAMES = 12           # a body in fewer frames is noise
MAX_SPREAD = 0.8          # a body in a good frame is at most this wide, relative to its height
MAX_BAD_FRAMES = 0.69754  # a body with at least this fraction of bad frames is noise
ORIGIN = 1                # joint 2, the middle of the spine
WIDTH = JOINTS * 3        # numbers per frame of one actor


def to_rows(recording: Recording) -> np.ndarray:
    """Convert a recording to rows of one or two actors: (T, 75) or (T, 150) float32, centred.

    The origin is joint 2 of actor 1 in the first frame of this actor. Rows in which an actor is absent are zero; two
    actors remain two even if the second is empty.

    Raises:
        UserError: all coordinates of actor 1 are zero.
    """
    if len(recording.bodies) == 1:
        body, = recording.bodies.values()
        rows = _place(body, recording.frames)
    else:
        bodies = remove_noise(recording.bodies)
        rows = _place(bodies[0], recording.frames) if len(bodies) == 1 else assign_actors(bodies, recording.frames)
        rows = rows[rows.sum(axis=1) != 0]
    return _centre(rows)


def motion_energy(joints: np.ndarray) -> float:
    """Return how much joints (n, 25, 3) move: the sum of the variances of x, y and z, in float32."""
    return joints.reshape(-1, joints.shape[-1]).var(axis=0).sum()


def remove_noise(bodies: dict[str, Body]) -> list[Body]:
    """Return the bodies (of two or more) that are not noise, at least one, in descending order of motion."""
    long = {name: body for name, body in bodies.items() if len(body.joints) >= MIN_FRAMES}
    if not long:
        return [max(bodies.values(), key=lambda body: len(body.joints))]
    kept, energy = dict(long), {}
    for name, body in long.items():
        if len(kept) == 1:
            break
        good = _find_good_frames(body.joints)
        if (~good).sum() / len(good) >= MAX_BAD_FRAMES:
            del kept[name]
            continue
        energy[name] = motion_energy(body.joints)
        if not good.all():
            energy[name] = min(energy[name], motion_energy(body.joints[good]))
    if len(kept) == 1:
        return list(kept.values())
    return [kept[name] for name in sorted(kept, key=energy.__getitem__, reverse=True)]


def _find_good_frames(joints: np.ndarray) -> np.ndarray:
    """Return a mask (n,) of the frames in which joints (n, 25, 3) have the proportions of an upright person."""
    xy = np.ascontiguousarray(joints.transpose(2, 1, 0)[:2])    # (2, 25, n): extents are computed fastest along n
    width, height = (xy.max(axis=1) - xy.min(axis=1)).astype(np.float64)    # (n,), in float32 up to here
    return width <= MAX_SPREAD * height


def assign_actors(bodies: list[Body], frames: int) -> np.ndarray:
    """Assign each body, in order, to the first of two actors that is free at the time: (T, 150) float32.

    Intervals may share one frame, which the later body gets. A body is dropped if both actors are assigned at the time.
    """
    rows = np.zeros((frames, 2, WIDTH), dtype=np.float32)
    taken = [(bodies[0].start, _last_frame(bodies[0])), (0, 0)]
    rows[bodies[0].start:_last_frame(bodies[0]) + 1, 0] = bodies[0].joints.reshape(-1, WIDTH)
    for body in bodies[1:]:
        last = _last_frame(body)
        for actor, (start, end) in enumerate(taken):
            if min(end, last) - max(start, body.start) <= 0:
                rows[body.start:last + 1, actor] = body.joints.reshape(-1, WIDTH)
                taken[actor] = min(start, body.start), max(end, last)
                break
    return rows.reshape(frames, 2 * WIDTH)                                                  # (T, 2, 75) -> (T, 150)


def _last_frame(body: Body) -> int:
    """Return the last frame of a body, whose frames are regarded as consecutive."""
    return body.start + len(body.joints) - 1


def _place(body: Body, frames: int) -> np.ndarray:
    rows = np.zeros((frames, WIDTH), dtype=np.float32)
    rows[body.start:_last_frame(body) + 1] = body.joints.reshape(-1, WIDTH)
    return rows


def _centre(rows: np.ndarray) -> np.ndarray:
    """Move rows (T, 75) or (T, 150) so that joint 2 of actor 1 starts at the origin; absent actors remain zero."""
    present = rows[:, :WIDTH].any(axis=1)
    if not present.any():
        raise UserError('all coordinates of the first actor are zero')
    origin = rows[present.argmax(), 3 * ORIGIN:3 * ORIGIN + 3]
    actors = rows.reshape(len(rows), -1, WIDTH)                                             # (T, 1 or 2, 75)
    centred = actors - np.tile(origin, JOINTS)
    if actors.shape[1] == 2:
        centred[actors.sum(axis=2) == 0] = 0
    return centred.reshape(rows.shape)
