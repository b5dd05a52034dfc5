"""Synthetic clips of people doing exercises, as a Kinect would track them.

In all exercises the arms swing forwards and outwards and the hips move over the feet, about the same mean pose. They
differ in which joints move together, alternately or in circles, and in tempo and rhythm, so that the mean pose contains
almost no information. Two exercises are done in pairs; in most other clips there is a bystander. Performers differ in
proportions, speed, vigour and handedness, and clips in posture, camera and noise. The sensor makes errors: frames
without bodies, ids that change, partners that are lost for a while, and false bodies.

A clip depends only on its number, its action and the seed.

T frames of a clip, t of which contain a given body; metres: x to the camera's left, y up, z away from the camera.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from data.kinematics import ARM_JOINTS, JOINTS, LEG_JOINTS, mirror, pose, rotate, rotation_matrices
from data.ntu_text import Facts

FPS, SHORTEST, LONGEST = 30, 55, 90     # frames per second, and of a clip
PERFORMERS, CAMERAS, SETUPS, REPLICATIONS = 40, 3, 17, 2    # of NTU RGB+D 60
MAX_CLIPS = PERFORMERS * CAMERAS * SETUPS * REPLICATIONS    # per class
CAMERA_YAW = (0, np.pi / 8, -np.pi / 8)     # cameras 1, 2, 3
BYSTANDERS = .6     # fraction of single-person clips with a bystander
FIRST_ID = 2 ** 56  # ids have 17 digits, beyond the precision of float64


class Move(NamedTuple):
    channel: str
    size: float     # radians
    phase: float = 0.
    harmonic: int = 1


class Action(NamedTuple):
    name: str
    hertz: float
    moves: tuple[Move, ...]
    partner: tuple[Move, ...] | None = None     # moves of the second person
    rhythm: float = 0.      # radians by which the phase leads, then lags; positive: quickly out and slowly back


def _moves(*arguments: tuple) -> tuple[Move, ...]:
    return tuple(Move(*values) for values in arguments)


HALF, QUARTER = np.pi, np.pi / 2
ARMS, WIDE = .7, .5     # how far arms swing forwards and outwards
ACTIONS = (     # in the right-handed version
    Action('sway, arms to the same side', .8, _moves(('sideways', .22), ('raise', ARMS, 0, 2), ('wave', WIDE, -.5))),
    Action('rock forwards, arms in step', .8, _moves(('forwards', .2), ('raise', ARMS), ('spread', WIDE, 0, 2))),
    Action('squat slowly, arms forwards', .7, _moves(('knees', .4), ('raise', ARMS), ('spread', WIDE, QUARTER))),
    Action('bounce fast, arms forwards', 1.5, _moves(('knees', .22), ('raise', ARMS), ('spread', WIDE, -QUARTER))),
    Action('roll forwards', .9,
           _moves(('knees', .35), ('forwards', .17, QUARTER), ('raise', ARMS, QUARTER), ('spread', WIDE))),
    Action('roll backwards', .9,
           _moves(('knees', .35), ('forwards', .17, -QUARTER), ('raise', ARMS, -QUARTER), ('spread', WIDE))),
    Action('twist, arms in turn', .9,
           _moves(('twist', .35), ('turns', ARMS, .3), ('sideways', .14), ('wave', WIDE, QUARTER))),
    Action('go down quickly, up slowly', .8,
           _moves(('knees', .4), ('bow', .17), ('raise', ARMS, HALF), ('spread', WIDE)), rhythm=.65),
    Action('go down slowly, up quickly', .8,
           _moves(('knees', .4), ('bow', .17), ('raise', ARMS, HALF), ('spread', WIDE)), rhythm=-.65),
    Action('flap the arms', 1.2, _moves(('knees', .25), ('spread', 1.2 * WIDE, HALF), ('raise', ARMS, QUARTER))),
    Action('two people saw wood', .9, _moves(('forwards', .2), ('turns', ARMS), ('wave', WIDE, QUARTER)),
           _moves(('forwards', .2, HALF), ('turns', ARMS, HALF), ('wave', WIDE, -QUARTER))),
    Action('two people dance', .9,
           *2 * [_moves(('sideways', .17), ('knees', .28, QUARTER), ('raise', ARMS, QUARTER),
                       ('spread', 1.2 * WIDE))]),
)


class Traits(NamedTuple):
    """The characteristics of a person."""

    scale: np.ndarray       # (25, 1), of the offset of each joint
    speed: float
    vigour: float
    left_handed: bool


class Person(NamedTuple):
    """The movement of one person in a clip; the first person is at the origin and faces the camera."""

    traits: Traits
    vectors: np.ndarray     # (T, 25, 3) joint rotations
    yaw: float
    position: np.ndarray    # (3,)


class Track(NamedTuple):
    """A body as the sensor tracks it."""

    body: int               # id of 17 digits
    frames: np.ndarray      # (t,) ascending
    joints: np.ndarray      # (t, 25, 3) float32


class Clip(NamedTuple):
    name: str               # SsssCcccPpppRrrrAaaa
    frames: int
    people: list[Track]     # one or two, complete
    tracks: list[Track]     # the same with errors of the sensor


# ---- people ----------------------------------------------------------------------------------------------------------


def clip_facts(number: int, action: int) -> Facts:
    """Return the facts of clip `number` (0 to MAX_CLIPS - 1) of an action; cameras and performers alternate."""
    performer = number % PERFORMERS * 19 % PERFORMERS + 1   # in steps that fill both sides of a split early on
    times = number // PERFORMERS
    setup, replication = divmod(times // CAMERAS, REPLICATIONS)
    return Facts(setup + 1, (times + performer) % CAMERAS + 1, performer, replication + 1, action)


def make_traits(person: int, seed: int) -> Traits:
    rng = np.random.default_rng([seed, 0, person])
    scale = np.full((JOINTS, 1), rng.uniform(.88, 1.12))
    for part in (ARM_JOINTS, LEG_JOINTS):
        scale[np.array(part) - 1] *= rng.uniform(.92, 1.08)
    return Traits(scale, rng.uniform(.88, 1.12), rng.uniform(.8, 1.15), rng.random() < .2)


def make_posture(rng: np.random.Generator) -> np.ndarray:
    """Draw the mean pose of a person in a clip, as rotations (25, 3)."""
    vectors = rng.normal(0, .06, (JOINTS, 3))
    for channel, low, high in (('knees', .5, .7), ('stance', .1, .3), ('stride', -.2, .2), ('bow', -.06, .3),
                               ('lean', -.1, .1), ('twist', -.32, .32)):
        rotate(vectors, channel, rng.uniform(low, high))
    for side in ('left', 'right'):
        for part, low, high in (('lift', .1, 1.1), ('spread', .15, .7), ('elbow', .6, 1.4)):
            rotate(vectors, f'{side} {part}', rng.uniform(low, high))
    return vectors


def hold(frames: int, rng: np.random.Generator) -> np.ndarray:
    """Generate a random posture with slight sway, (T, 25, 3)."""
    sway = 2 * np.pi * np.arange(frames)[:, None, None] / FPS * rng.uniform(.2, .5, (JOINTS, 3))
    return make_posture(rng) + rng.normal(0, .015, (JOINTS, 3)) * np.sin(
        sway + rng.uniform(0, 2 * np.pi, (JOINTS, 3)))


def swing(vectors: np.ndarray, moves: Sequence[Move], vigour: float, phase: np.ndarray | float) -> None:
    """Add moves to rotations (T, 25, 3) in place; the phase is one angle, or one per frame (T,)."""
    for channel, size, lead, harmonic in moves:
        rotate(vectors, channel, vigour * size * np.sin(harmonic * phase + lead))


def exercise(moves: Sequence[Move], action: Action, traits: Traits, start: float, frames: int, rng) -> np.ndarray:
    """Return the rotations (T, 25, 3) of a person doing an exercise, starting at phase `start`."""
    vectors = hold(frames, rng)
    phase = start + 2 * np.pi * action.hertz * traits.speed * np.arange(frames) / FPS
    swing(vectors, moves, traits.vigour, phase + action.rhythm * np.sin(phase))
    return vectors


def stand_by(traits: Traits, frames: int, rng: np.random.Generator) -> np.ndarray:
    """Return the rotations (T, 25, 3) of a bystander, who holds a pose of the partner exercises.

    Therefore single poses do not distinguish bystanders from partners.
    """
    vectors = hold(frames, rng)
    pairs = [action.partner for action in ACTIONS if action.partner]
    swing(vectors, pairs[rng.integers(len(pairs))], traits.vigour, rng.uniform(0, 2 * np.pi))
    return vectors


def make_people(number: int, action: int, seed: int) -> tuple[list[Person], np.random.Generator]:
    """Return the one or two people in a clip, and the generator for its remaining random numbers."""
    rng = np.random.default_rng([seed, 1, action, number])
    spec, performer = ACTIONS[action - 1], clip_facts(number, action).performer
    frames, start = int(rng.integers(SHORTEST, LONGEST + 1)), rng.uniform(0, 2 * np.pi)
    traits = make_traits(performer, seed)
    people = [Person(traits, exercise(spec.moves, spec, traits, start, frames, rng), 0., np.zeros(3))]
    if spec.partner or rng.random() < BYSTANDERS:   # partners and bystanders are on the performer's side of a split
        traits = make_traits(performer + PERFORMERS * (1 if spec.partner else 2), seed)
        vectors = exercise(spec.partner, spec, traits, start, frames, rng) if spec.partner \
            else stand_by(traits, frames, rng)
        angle = rng.uniform(-.5, .5) + rng.choice((0, np.pi))
        position = rng.uniform(.8, 1.2) * np.array((np.cos(angle), 0, np.sin(angle)))
        people.append(Person(traits, vectors, rng.uniform(-1, 1), position))
    return people, rng


# ---- the sensor ------------------------------------------------------------------------------------------------------


def place_camera(camera: int, rng: np.random.Generator) -> tuple[float, np.ndarray]:
    """Sample the yaw and the position of the first person in the coordinates of a camera (numbered from 1)."""
    yaw = CAMERA_YAW[camera - 1] + rng.uniform(-.15, .15)
    return yaw, np.array((rng.uniform(-.5, .5), -1, rng.uniform(2.5, 3.5)))


def film(person: Person, camera_yaw: float, camera_position: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return the joints (T, 25, 3) float32 of a person as the simulated sensor measures them."""
    joints = pose(person.vectors, person.traits.scale)
    if person.traits.left_handed:
        joints = mirror(joints)
    own, camera = (rotation_matrices(np.array((0, yaw, 0))) for yaw in (person.yaw, camera_yaw))
    joints = (joints @ own.T + person.position) @ camera.T + camera_position
    return (joints + sensor_noise(joints.shape, rng)).astype(np.float32)


def sensor_noise(shape: tuple, rng: np.random.Generator) -> np.ndarray:
    """Sample the errors (T, 25, 3) of a depth camera in metres: 3 mm, correlated over a third of a second."""
    kernel = np.hanning(11)
    white = rng.normal(size=(shape[0] + len(kernel) - 1, *shape[1:]))
    smooth = np.lib.stride_tricks.sliding_window_view(white, len(kernel), axis=0) @ kernel
    return .003 / np.linalg.norm(kernel) * smooth


def make_clip(number: int, action: int, seed: int) -> Clip:
    """Return clip `number` (0 to MAX_CLIPS - 1) of an action; actions are numbered from 1."""
    people, rng = make_people(number, action, seed)
    facts, frames = clip_facts(number, action), len(people[0].vectors)
    yaw, position = place_camera(facts.camera, rng)
    first = FIRST_ID + int(rng.integers(1000, 40000))
    tracks = [Track(first + 40 * index, np.arange(frames), film(person, yaw, position, rng))
              for index, person in enumerate(people)]
    return Clip('S{:03}C{:03}P{:03}R{:03}A{:03}'.format(*facts), frames, tracks, add_errors(tracks, frames, rng))


def crop(track: Track, frames: np.ndarray | slice) -> Track:
    """Return the frames of a track that are selected by a mask (t,) or slice."""
    return Track(track.body, track.frames[frames], track.joints[frames])


def add_errors(people: list[Track], frames: int, rng: np.random.Generator) -> list[Track]:
    """Return the tracks that the sensor reports, with occasional errors."""
    tracks = list(people)
    if len(tracks) == 2 and rng.random() < .1:      # the second person is lost for a while
        gap = rng.integers(5, 16)
        start = rng.integers(0, frames - gap)
        tracks[1] = crop(tracks[1], (tracks[1].frames < start) | (tracks[1].frames >= start + gap))
    if rng.random() < .1:       # an id changes
        index, change = rng.integers(len(tracks)), rng.integers(20, frames - 20)
        old = tracks[index].frames < change
        before, after = crop(tracks[index], old), crop(tracks[index], ~old)
        tracks[index:index + 1] = [before, after._replace(body=before.body + 7)]
    if rng.random() < .1:       # a short false body
        start = rng.integers(0, frames - 11)
        short = crop(people[0], slice(start, start + rng.integers(2, 12)))
        tracks.append(short._replace(body=short.body + 11,
                                     joints=short.joints * np.float32(.9) + np.float32((1.3, .2, .9))))
    if rng.random() < .08:      # furniture
        tracks.append(make_table(people[0].body + 13, frames, rng))
    if rng.random() < .15:      # frames without bodies
        lost = rng.integers(5, frames - 5, rng.integers(1, 4))
        tracks = [crop(track, ~np.isin(track.frames, lost)) for track in tracks]
    return [track for track in tracks if len(track.frames)]


def make_table(body: int, frames: int, rng: np.random.Generator) -> Track:
    """Return a false body that is wider than 0.8 of its height and appears from some frame on."""
    first = rng.integers(0, frames - 20)
    shape = (frames - first, JOINTS, 3)
    joints = rng.uniform((-.8, -.2, -.3), (.8, .2, .3), shape[1:]) + (1.2, -.6, 3.2) + sensor_noise(shape, rng)
    return Track(body, np.arange(first, frames), joints.astype(np.float32))
