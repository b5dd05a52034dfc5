"""Made-up skeleton clips in the shape of NTU RGB+D (25 Kinect-v2 joints, up to two people): SYNTH_XSub.npz.

    python data/synthesize.py --out data/synthetic

Each clip is an articulated body driven by forward kinematics. An action is a set of joints that swing about the same
rest pose, so that the motion tells actions apart (limb, tempo, phase, direction) and the mean pose says little.
Performers differ in proportions, speed, vigour and handedness; clips in length, camera, posture and sensor noise.
The same seed gives the same numbers. Names are NTU's, and so is the split by performer.

T frames, M people; arrays are metres in camera space: x to the camera's left, y up, z away from it.
"""

import argparse
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

if not __package__:  # run by path: the repository's root is not on the search path yet
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from data.common import one_hot, pad, split_members, write_npz
from util.errors import UserError, run_main

JOINTS, PEOPLE, FPS = 25, 2, 30
PERFORMERS = 40
TRAIN_PERFORMERS = {1, 2, 4, 5, 8, 9, 13, 14, 15, 16, 17, 18, 19, 25, 27, 28, 31, 34, 35, 38}  # as NTU-60 XSub
TREE = {  # joint: parent (both 1-based, parents first, root 21) and offset at rest, facing the camera, arms hanging
    2: (21, (0, -.25, 0)), 1: (2, (0, -.28, 0)), 3: (21, (0, .08, 0)), 4: (3, (0, .14, -.02)),
    5: (21, (-.17, -.03, 0)), 6: (5, (-.03, -.28, 0)), 7: (6, (0, -.25, -.02)), 8: (7, (0, -.07, 0)),
    23: (8, (.03, -.02, -.03)), 22: (23, (-.03, -.07, .02)),
    9: (21, (.17, -.03, 0)), 10: (9, (.03, -.28, 0)), 11: (10, (0, -.25, -.02)), 12: (11, (0, -.07, 0)),
    25: (12, (-.03, -.02, -.03)), 24: (25, (.03, -.07, .02)),
    13: (1, (-.08, -.04, 0)), 14: (13, (0, -.42, 0)), 15: (14, (0, -.40, .02)), 16: (15, (0, -.06, -.12)),
    17: (1, (.08, -.04, 0)), 18: (17, (0, -.42, 0)), 19: (18, (0, -.40, .02)), 20: (19, (0, -.06, -.12)),
}
ARM_JOINTS, LEG_JOINTS = [*range(5, 13), *range(22, 26)], [*range(13, 21)]
MIRRORED = [1, 2, 3, 4, 9, 10, 11, 12, 5, 6, 7, 8, 17, 18, 19, 20, 13, 14, 15, 16, 21, 24, 25, 22, 23]
CAMERA_YAW = (0, np.pi / 4, -np.pi / 4)  # cameras 1, 2, 3

X, Z = (1, 0, 0), (0, 0, 1)  # axes: forward from hanging; sideways
LEFT_ARM, RIGHT_ARM, LEFT_HIP, RIGHT_HIP, CHEST = 5, 9, 13, 17, 21


class Action(NamedTuple):
    hertz: float
    swings: tuple  # of the first person: (joint, axis, amplitude in radians, phase)
    partner: tuple | None = None  # of the second person; None: there is no second person


def limb(joint: int, axis: tuple, amplitude: float = 1., phase: float = 0.) -> tuple:
    """A shoulder or hip that swings, with the elbow or knee trailing behind."""
    return (joint, axis, amplitude, phase), (joint + 1, axis, .4 * amplitude, phase - .6)


def bow(phase: float = 0.) -> tuple:
    """The trunk swings to and fro over legs that stay upright."""
    return (CHEST, X, .5, phase), (LEFT_HIP, X, -.5, phase), (RIGHT_HIP, X, -.5, phase)


ACTIONS = (  # the right-handed form
    Action(.7, limb(RIGHT_ARM, X)),  # swing an arm forward, slowly
    Action(1.6, limb(RIGHT_ARM, X)),  # the same, fast
    Action(.7, limb(RIGHT_ARM, Z)),  # swing an arm sideways
    Action(1., limb(RIGHT_ARM, X, .8) + limb(RIGHT_ARM, Z, .8, np.pi / 2)),  # circle an arm one way
    Action(1., limb(RIGHT_ARM, X, .8) + limb(RIGHT_ARM, Z, .8, -np.pi / 2)),  # the other way
    Action(1., limb(RIGHT_ARM, X) + limb(LEFT_ARM, X)),  # both arms in step
    Action(1., limb(RIGHT_ARM, X) + limb(LEFT_ARM, X, 1., np.pi)),  # both arms in turn
    Action(1., limb(RIGHT_HIP, X, .7) + limb(LEFT_HIP, X, .7, np.pi)),  # march on the spot
    Action(.8, limb(RIGHT_ARM, X), limb(RIGHT_ARM, X, 1., np.pi)),  # two people push in turn
    Action(.8, bow(), bow()),  # two people bow together
    Action(.8, bow()),  # bow alone
    Action(1.6, limb(RIGHT_HIP, X, .7)),  # kick
)


class Traits(NamedTuple):
    scale: np.ndarray  # (25, 1), of each joint's offset
    speed: float
    vigour: float
    left_handed: bool


class Clip(NamedTuple):
    name: str  # SsssCcccPpppRrrrAaaa
    performer: int
    action: int  # 1-based
    joints: np.ndarray  # (M, T, 25, 3) float32


def traits_of(person: int, seed: int) -> Traits:
    rng = np.random.default_rng([seed, 0, person])
    scale = np.full((JOINTS, 1), rng.uniform(.88, 1.12))
    for part in (ARM_JOINTS, LEG_JOINTS):
        scale[np.array(part) - 1] *= rng.uniform(.92, 1.08)
    return Traits(scale, rng.uniform(.85, 1.15), rng.uniform(.75, 1.2), rng.random() < .25)


def rotations(vectors: np.ndarray) -> np.ndarray:
    """Rotation vectors (..., 3) in radians to matrices (..., 3, 3), by Rodrigues' formula."""
    angle = np.linalg.norm(vectors, axis=-1)[..., None, None]
    cross = np.cross(np.eye(3), vectors[..., None, :])
    return np.eye(3) + np.sinc(angle / np.pi) * cross + np.sinc(angle / (2 * np.pi)) ** 2 / 2 * cross @ cross


def pose(vectors: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """Joint rotations (T, 25, 3) to joints (T, 25, 3): the pelvis over the origin, the lowest joint on the floor."""
    local, joints = rotations(vectors), np.zeros(vectors.shape)
    turned = {CHEST: local[:, CHEST - 1]}
    for joint, (parent, offset) in TREE.items():
        joints[:, joint - 1] = joints[:, parent - 1] + turned[parent] @ (scale[joint - 1] * offset)
        turned[joint] = turned[parent] @ local[:, joint - 1]
    return joints - np.stack([joints[:, 0, 0], joints[..., 1].min(axis=1), joints[:, 0, 2]], axis=-1)[:, None]


def move(swings: tuple, hertz: float, frames: int, start: float, traits: Traits, rng) -> np.ndarray:
    """One person's swings, from the phase `start` on, over a posture and a sway of their own: (T, 25, 3)."""
    cycles = 2 * np.pi * np.arange(frames)[:, None, None] / FPS  # (T, 1, 1), of 1 Hz
    sway = np.sin(cycles * rng.uniform(.2, .6, (JOINTS, 3)) + rng.uniform(0, 2 * np.pi, (JOINTS, 3)))
    vectors = rng.normal(0, .06, (JOINTS, 3)) + rng.normal(0, .03, (JOINTS, 3)) * sway
    for joint, axis, amplitude, phase in swings:
        angle = amplitude * traits.vigour * np.sin(hertz * traits.speed * cycles[:, 0] + start + phase)  # (T, 1)
        vectors[:, joint - 1] += angle * axis
    joints = pose(vectors, traits.scale)
    return joints[:, np.array(MIRRORED) - 1] * (-1, 1, 1) if traits.left_handed else joints


def sensor_noise(shape: tuple, rng: np.random.Generator) -> np.ndarray:
    """Errors (M, T, 25, 3) of a depth camera's tracker in metres: 4 mm, wandering over a third of a second."""
    kernel = np.hanning(11)
    white = rng.normal(size=(shape[0], shape[1] + len(kernel) - 1, *shape[2:]))
    smooth = np.lib.stride_tricks.sliding_window_view(white, len(kernel), axis=1) @ kernel
    return .004 / np.linalg.norm(kernel) * smooth


def make_joints(action: Action, performer: int, camera: int, seed: int, rng: np.random.Generator) -> np.ndarray:
    """One recording as the sensor sees it: (M, T, 25, 3) float32, camera space, 30 to 120 frames, 30 a second."""
    frames, start = rng.integers(30, 121), rng.uniform(0, 2 * np.pi)
    casts = [(action.swings, traits_of(performer, seed), 0., 0.)]
    if action.partner is not None:  # the two face each other; a partner belongs to their performer's side of the split
        casts = [(action.swings, casts[0][1], -.5, -np.pi / 2),
                 (action.partner, traits_of(PERFORMERS + performer, seed), .5, np.pi / 2)]
    people = [move(swings, action.hertz, frames, start, traits, rng) @ rotations(np.array([0, yaw, 0])).T + (x, 0, 0)
              for swings, traits, x, yaw in casts]
    yaw = CAMERA_YAW[camera - 1] + rng.uniform(-.3, .3)
    place = (rng.uniform(-.5, .5), -1, rng.uniform(2.5, 3.5))
    scene = np.stack(people) @ rotations(np.array([0, yaw, 0])).T + place
    return (scene + sensor_noise(scene.shape, rng)).astype(np.float32)


def make_clips(classes: int, clips_per_class: int, seed: int) -> Iterator[Clip]:
    """All clips, in the order of their classes. A clip is the same whatever else is made with the seed."""
    for action in range(1, classes + 1):
        for number in range(clips_per_class):
            replication, performer = number // PERFORMERS + 1, number % PERFORMERS + 1
            camera = (replication + performer) % 3 + 1
            rng = np.random.default_rng([seed, action, number])
            joints = make_joints(ACTIONS[action - 1], performer, camera, seed, rng)
            name = f'S001C{camera:03}P{performer:03}R{replication:03}A{action:03}'
            yield Clip(name, performer, action, joints)


def to_rows(joints: np.ndarray) -> np.ndarray:
    """Joints (M, T, 25, 3) as frames (T, 150), centred on joint 2 of the first person's first frame."""
    rows = np.zeros((joints.shape[1], PEOPLE, JOINTS, 3), dtype=np.float32)
    rows[:, :len(joints)] = (joints - joints[0, 0, 1]).transpose(1, 0, 2, 3)
    return rows.reshape(len(rows), -1)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description='made-up clips in the shape of NTU RGB+D: SYNTH_XSub.npz')
    parser.add_argument('--out', type=Path, required=True, help='folder for the file; made when missing')
    parser.add_argument('--seed', type=int, default=0, help='0 or more')
    parser.add_argument('--clips_per_class', type=int, default=100)
    parser.add_argument('--classes', type=int, default=10, help=f'2 to {len(ACTIONS)}; 9 and 10 have two people')
    args = parser.parse_args(argv)
    if args.seed < 0 or not 3 <= args.clips_per_class <= 999 * PERFORMERS or not 2 <= args.classes <= len(ACTIONS):
        raise UserError(f'give --seed 0 or more, --clips_per_class 3 (or none would be for testing) to '
                        f'{999 * PERFORMERS} and --classes 2 to {len(ACTIONS)}')

    start = time.perf_counter()
    clips = sorted(make_clips(args.classes, args.clips_per_class, args.seed), key=lambda clip: clip.name)
    x = pad([to_rows(clip.joints) for clip in clips], PEOPLE * JOINTS * 3)
    y = one_hot([clip.action - 1 for clip in clips], args.classes)
    train = [clip.performer in TRAIN_PERFORMERS for clip in clips]
    path = args.out / 'SYNTH_XSub.npz'
    write_npz(path, **split_members(x, y, [clip.name for clip in clips], train))
    print(f'{path}: {sum(train):,} train, {len(clips) - sum(train):,} test, {args.classes} classes, '
          f'{x.shape[1]} frames at most, {time.perf_counter() - start:.1f} s')
    return 0


if __name__ == '__main__':
    run_main(main)
