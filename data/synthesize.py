"""Made-up recordings in the raw text of NTU RGB+D or PKU-MMD, for anybody to have.

    python data/synthesize.py --out data/synthetic_raw
    python data/prepare_ntu.py --dataset synth --raw data/synthetic_raw --out data/synthetic

Each clip shows articulated bodies (data/body.py) doing exercises. All exercises swing the arms forwards and outwards
and the hips over the feet about the same middle; they differ in what moves together, in turn or around, and in tempo
and rhythm, so that the mean pose says next to nothing. Two exercises are done in pairs; in most other clips somebody
stands by. Performers differ in proportions, speed, vigour and handedness; clips in posture, camera and noise; and the
sensor has its faults: frames without anybody, ids that change, companions lost for a while, bodies that are none.

A clip is the same whatever else is made with the seed, in whatever format and by however many workers. The folder
appears under its name when it is whole: a run that was stopped leaves none, or one that begins with a dot.

T frames, t of them with a certain body; metres in camera space: x to the camera's left, y up, z away from it.
"""

import argparse
import os
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

if not __package__:  # run by path: the repository's root is not on the search path yet
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from data.body import ARM_JOINTS, JOINTS, LEG_JOINTS, SPINE, TIPS, mirror, pose, quaternions, rotations, turn
from data.datasets import NTU60_SUBJECTS
from data.pipeline import convert, open_pool
from util.errors import Parser, UserError, run_main

FPS, SHORTEST, LONGEST = 30, 55, 90  # frames a second and a clip
PERFORMERS, CAMERAS, SETUPS, REPLICATIONS = 40, 3, 17, 2  # of NTU RGB+D 60
MOST_CLIPS = PERFORMERS * CAMERAS * SETUPS * REPLICATIONS
CAMERA_YAW = (0, np.pi / 8, -np.pi / 8)  # cameras 1, 2, 3
CAMERA_LETTERS = 'LMR'  # as PKU-MMD calls them; L is for testing
BYSTANDERS = .6  # the share of single-person clips with somebody who stands by
FIRST_ID = 2 ** 56  # ids have 17 digits, more than float64 tells apart


class Move(NamedTuple):
    channel: str
    size: float  # radians
    phase: float = 0.
    harmonic: int = 1


class Action(NamedTuple):
    name: str
    hertz: float
    moves: tuple[Move, ...]
    partner: tuple[Move, ...] | None = None  # what the second person does; None: it is nobody's part
    rhythm: float = 0.  # radians by which the phase runs ahead, then behind: above 0, quickly out and slowly back


def together(*moves: tuple) -> tuple[Move, ...]:
    return tuple(Move(*move) for move in moves)


HALF, QUARTER = np.pi, np.pi / 2
ARMS, WIDE = .7, .5  # how far arms swing forwards and outwards
ACTIONS = (  # the right-handed form
    Action('sway, arms to the same side', .8,
           together(('sideways', .22), ('raise', ARMS, 0, 2), ('wave', WIDE, -.5))),
    Action('rock forwards, arms in step', .8,
           together(('forwards', .2), ('raise', ARMS), ('spread', WIDE, 0, 2))),
    Action('squat slowly, arms forwards', .7,
           together(('knees', .4), ('raise', ARMS), ('spread', WIDE, QUARTER))),
    Action('bounce fast, arms forwards', 1.5,
           together(('knees', .22), ('raise', ARMS), ('spread', WIDE, -QUARTER))),
    Action('roll forwards', .9,
           together(('knees', .35), ('forwards', .17, QUARTER), ('raise', ARMS, QUARTER), ('spread', WIDE))),
    Action('roll backwards', .9,
           together(('knees', .35), ('forwards', .17, -QUARTER), ('raise', ARMS, -QUARTER), ('spread', WIDE))),
    Action('twist, arms in turn', .9,
           together(('twist', .35), ('turns', ARMS, .3), ('sideways', .14), ('wave', WIDE, QUARTER))),
    Action('go down quickly, up slowly', .8,
           together(('knees', .4), ('bow', .17), ('raise', ARMS, HALF), ('spread', WIDE)), rhythm=.65),
    Action('go down slowly, up quickly', .8,
           together(('knees', .4), ('bow', .17), ('raise', ARMS, HALF), ('spread', WIDE)), rhythm=-.65),
    Action('flap the arms', 1.2,
           together(('knees', .25), ('spread', 1.2 * WIDE, HALF), ('raise', ARMS, QUARTER))),
    Action('two people saw wood', .9,
           together(('forwards', .2), ('turns', ARMS), ('wave', WIDE, QUARTER)),
           together(('forwards', .2, HALF), ('turns', ARMS, HALF), ('wave', WIDE, -QUARTER))),
    Action('two people dance', .9,
           *2 * [together(('sideways', .17), ('knees', .28, QUARTER), ('raise', ARMS, QUARTER),
                          ('spread', 1.2 * WIDE))]),
)


class Traits(NamedTuple):
    scale: np.ndarray  # (25, 1), of each joint's offset
    speed: float
    vigour: float
    left_handed: bool


class Part(NamedTuple):
    """What one person does in a clip, and where: the first person stands at the origin and faces the camera."""

    traits: Traits
    vectors: np.ndarray  # (T, 25, 3) joint rotations
    yaw: float
    place: np.ndarray  # (3,)


class Track(NamedTuple):
    """A body as the sensor follows it."""

    body: int  # id of 17 digits
    frames: np.ndarray  # (t,) those that show it, ascending
    joints: np.ndarray  # (t, 25, 3) float32
    orientations: np.ndarray  # (t, 25, 4) float32, unit quaternions w x y z; zeros for a joint that has none


class Clip(NamedTuple):
    name: str  # SsssCcccPpppRrrrAaaa
    frames: int
    people: list[Track]  # all of each person there is; never more than two
    tracks: list[Track]  # what the sensor makes of them


class Facts(NamedTuple):
    """Who the clip with some number shows, and how often that was recorded; all 1-based."""

    setup: int
    camera: int
    performer: int
    replication: int


def facts_of(number: int) -> Facts:
    """Of the clip with this number, below MOST_CLIPS, of any class; performers and cameras take turns."""
    performer = number % PERFORMERS * 19 % PERFORMERS + 1  # by steps that leave no side of the split waiting
    times = number // PERFORMERS
    setup, replication = divmod(times // CAMERAS, REPLICATIONS)
    return Facts(setup + 1, (times + performer) % CAMERAS + 1, performer, replication + 1)


def name_of(number: int, action: int) -> str:
    setup, camera, performer, replication = facts_of(number)
    return f'S{setup:03}C{camera:03}P{performer:03}R{replication:03}A{action:03}'


def traits_of(person: int, seed: int) -> Traits:
    rng = np.random.default_rng([seed, 0, person])
    scale = np.full((JOINTS, 1), rng.uniform(.88, 1.12))
    for part in (ARM_JOINTS, LEG_JOINTS):
        scale[np.array(part) - 1] *= rng.uniform(.92, 1.08)
    return Traits(scale, rng.uniform(.88, 1.12), rng.uniform(.8, 1.15), rng.random() < .2)


def posture(rng: np.random.Generator) -> np.ndarray:
    """The rotations (25, 3) about which somebody moves this time."""
    vectors = rng.normal(0, .06, (JOINTS, 3))
    for channel, least, most in (
            ('knees', .5, .7), ('stance', .1, .3), ('stride', -.2, .2), ('bow', -.06, .3), ('lean', -.1, .1),
            ('twist', -.32, .32)):
        turn(vectors, channel, rng.uniform(least, most))
    for side in ('left', 'right'):
        for part, least, most in (('lift', .1, 1.1), ('spread', .15, .7), ('elbow', .6, 1.4)):
            turn(vectors, f'{side} {part}', rng.uniform(least, most))
    return vectors


def swing(vectors: np.ndarray, moves: Sequence[Move], vigour: float, phase: np.ndarray | float) -> None:
    """Adds the moves to (T, 25, 3), in place; the phase is an angle or one a frame (T,)."""
    for channel, size, ahead, harmonic in moves:
        turn(vectors, channel, vigour * size * np.sin(harmonic * phase + ahead))


def hold(frames: int, rng: np.random.Generator) -> np.ndarray:
    """A posture that nobody holds quite still: (T, 25, 3)."""
    sway = 2 * np.pi * np.arange(frames)[:, None, None] / FPS * rng.uniform(.2, .5, (JOINTS, 3))
    return posture(rng) + rng.normal(0, .015, (JOINTS, 3)) * np.sin(sway + rng.uniform(0, 2 * np.pi, (JOINTS, 3)))


def act(moves: Sequence[Move], action: Action, traits: Traits, start: float, frames: int, rng) -> np.ndarray:
    """Somebody's exercise from the phase `start` on: (T, 25, 3)."""
    vectors = hold(frames, rng)
    phase = start + 2 * np.pi * action.hertz * traits.speed * np.arange(frames) / FPS
    swing(vectors, moves, traits.vigour, phase + action.rhythm * np.sin(phase))
    return vectors


def stand_by(traits: Traits, frames: int, rng: np.random.Generator) -> np.ndarray:
    """Somebody who has stopped amid the exercise of a pair, and so has a partner's poses on average: (T, 25, 3)."""
    vectors = hold(frames, rng)
    pairs = [action.partner for action in ACTIONS if action.partner]
    swing(vectors, pairs[rng.integers(len(pairs))], traits.vigour, rng.uniform(0, 2 * np.pi))
    return vectors


def cast(number: int, action: int, seed: int) -> tuple[list[Part], np.random.Generator]:
    """Who does what in a clip, one or two people, and the source of the clip's further randomness."""
    rng = np.random.default_rng([seed, 1, action, number])
    what, performer = ACTIONS[action - 1], facts_of(number).performer
    frames, start = int(rng.integers(SHORTEST, LONGEST + 1)), rng.uniform(0, 2 * np.pi)
    traits = traits_of(performer, seed)
    parts = [Part(traits, act(what.moves, what, traits, start, frames, rng), 0., np.zeros(3))]
    if what.partner or rng.random() < BYSTANDERS:  # partners and bystanders belong to the performer's side of a split
        traits = traits_of(performer + PERFORMERS * (1 if what.partner else 2), seed)
        vectors = act(what.partner, what, traits, start, frames, rng) if what.partner else stand_by(traits, frames, rng)
        angle = rng.uniform(-.5, .5) + rng.choice((0, np.pi))
        place = rng.uniform(.8, 1.2) * np.array((np.cos(angle), 0, np.sin(angle)))
        parts.append(Part(traits, vectors, rng.uniform(-1, 1), place))
    return parts, rng


def film(part: Part, camera_yaw: float, camera_place: np.ndarray, rng) -> tuple[np.ndarray, np.ndarray]:
    """A person as the sensor sees them: joints (T, 25, 3) and orientations (T, 25, 4), float32."""
    joints, turned = pose(part.vectors, part.traits.scale)
    if part.traits.left_handed:
        joints, turned = mirror(joints, turned)
    own, camera = (rotations(np.array((0, yaw, 0))) for yaw in (part.yaw, camera_yaw))
    joints = (joints @ own.T + part.place) @ camera.T + camera_place
    orientations = quaternions(camera @ own @ turned)
    orientations[:, np.array(TIPS) - 1] = 0
    return (joints + sensor_noise(joints.shape, rng)).astype(np.float32), orientations.astype(np.float32)


def sensor_noise(shape: tuple, rng: np.random.Generator) -> np.ndarray:
    """Errors (T, 25, 3) of a depth camera's tracker in metres: 3 mm, wandering over a third of a second."""
    kernel = np.hanning(11)
    white = rng.normal(size=(shape[0] + len(kernel) - 1, *shape[1:]))
    smooth = np.lib.stride_tricks.sliding_window_view(white, len(kernel), axis=0) @ kernel
    return .003 / np.linalg.norm(kernel) * smooth


def view_of(camera: int, rng: np.random.Generator) -> tuple[float, np.ndarray]:
    """Where a camera (1-based) has the first person: yaw and place."""
    yaw = CAMERA_YAW[camera - 1] + rng.uniform(-.15, .15)
    return yaw, np.array((rng.uniform(-.5, .5), -1, rng.uniform(2.5, 3.5)))


def make_clip(number: int, action: int, seed: int) -> Clip:
    """The clip with this number, below MOST_CLIPS, of an action (1-based)."""
    parts, rng = cast(number, action, seed)
    frames = len(parts[0].vectors)
    yaw, place = view_of(facts_of(number).camera, rng)
    first = FIRST_ID + int(rng.integers(1000, 40000))
    people = [Track(first + 40 * index, np.arange(frames), *film(part, yaw, place, rng))
              for index, part in enumerate(parts)]
    return Clip(name_of(number, action), frames, people, with_faults(people, frames, rng))


def make_clips(classes: int, clips_per_class: int, seed: int) -> Iterator[Clip]:
    """All clips, in the order of their classes."""
    for action in range(1, classes + 1):
        for number in range(clips_per_class):
            yield make_clip(number, action, seed)


def part_of(track: Track, where: np.ndarray | slice) -> Track:
    """The frames of a track that the mask (t,) or slice takes."""
    return Track(track.body, *(field[where] for field in track[1:]))


def with_faults(people: list[Track], frames: int, rng: np.random.Generator) -> list[Track]:
    """What a sensor makes of the people: most often them, at times less or more."""
    tracks = list(people)
    if len(tracks) == 2 and rng.random() < .1:  # the second one is lost for a while
        gap = rng.integers(5, 16)
        at = rng.integers(0, frames - gap)
        tracks[1] = part_of(tracks[1], (tracks[1].frames < at) | (tracks[1].frames >= at + gap))
    if rng.random() < .1:  # somebody is taken for another
        which, at = rng.integers(len(tracks)), rng.integers(20, frames - 20)
        before, after = (part_of(tracks[which], where) for where in (tracks[which].frames < at,
                                                                     tracks[which].frames >= at))
        tracks[which:which + 1] = [before, after._replace(body=before.body + 7)]
    if rng.random() < .1:  # a glimpse of somebody
        at = rng.integers(0, frames - 11)
        glimpse = part_of(people[0], slice(at, at + rng.integers(2, 12)))
        tracks.append(glimpse._replace(body=glimpse.body + 11,
                                       joints=glimpse.joints * np.float32(.9) + np.float32((1.3, .2, .9))))
    if rng.random() < .08:  # a table
        tracks.append(table(people[0].body + 13, frames, rng))
    if rng.random() < .15:  # moments without anybody
        lost = rng.integers(5, frames - 5, rng.integers(1, 4))
        tracks = [part_of(track, ~np.isin(track.frames, lost)) for track in tracks]
    return [track for track in tracks if len(track.frames)]  # a glimpse may be lost, all of it


def table(body: int, frames: int, rng: np.random.Generator) -> Track:
    """What the tracker takes for a body: wider than 0.8 of its height, from some frame on."""
    first = rng.integers(0, frames - 20)
    shape = (frames - first, JOINTS, 3)
    joints = rng.uniform((-.8, -.2, -.3), (.8, .2, .3), shape[1:]) + (1.2, -.6, 3.2) + sensor_noise(shape, rng)
    return Track(body, np.arange(first, frames), joints.astype(np.float32), np.zeros((*shape[:2], 4), np.float32))


BODY_TEXT = f'%d 0 1 1 1 1 0 %.7g %.7g 2\n{JOINTS}\n' + ('%.7g ' * 11 + '%d\n') * JOINTS


def ntu_text(tracks: Sequence[Track], frames: int) -> str:
    """The `.skeleton` file of a recording, seven digits a number; in each frame the bodies in the order given.

    With the joints stands where they are in the depth and the colour image, how they are turned, and whether each was
    seen (2) or guessed (1).
    """
    bodies = [''] * frames
    counts = [0] * frames
    for track in tracks:
        for frame, numbers in zip(track.frames.tolist(), _body_numbers(track), strict=True):
            bodies[frame] += BODY_TEXT % (track.body, *numbers)
            counts[frame] += 1
    return f'{frames}\n' + ''.join(f'{count}\n{body}' for count, body in zip(counts, bodies, strict=True))


def _body_numbers(track: Track) -> list:
    """What BODY_TEXT wants to know after the id, frame by frame: lean (2), then 12 numbers a joint."""
    joints = track.joints.astype(np.float64)
    x, y, z = np.moveaxis(joints, -1, 0)
    lean = (joints[:, SPINE - 1] - joints[:, 0])[:, [0, 2]]
    seen = np.where(z > z[:, [SPINE - 1]] + .15, 1, 2)  # the trunk is in front of what is behind it
    images = 368 * x / z + 256, 207 - 368 * y / z, 1059 * (x + .03) / z + 965, 563 - 1059 * y / z  # pixels
    numbers = np.concatenate([joints, np.stack(images, axis=-1), track.orientations, seen[..., None]], axis=-1)
    return np.hstack([lean, numbers.reshape(len(lean), -1)]).tolist()


def make_video(number: int, classes: int, seed: int) -> tuple[np.ndarray, list[tuple[int, int, int]]]:
    """A PKU-MMD video: the clips with this number of all classes, in an order of its own, with pauses in between.

    Returns rows (T, 150) float32, the second body zero when absent, and (class, start, end) of each action.
    """
    rng = np.random.default_rng([seed, 2, number])
    scenes = [(action, cast(number, action, seed)[0]) for action in rng.permutation(classes) + 1]
    yaw, place = view_of(facts_of(number).camera, rng)
    bends, labels, at = [], [], 0
    for (action, parts), before in zip(scenes, [None, *scenes], strict=False):
        pause = int(rng.integers(15, 46))
        bends.append(_between((before or scenes[0])[1][0].vectors[-1 if before else 0], parts[0].vectors[0], pause))
        bends.append(parts[0].vectors)
        labels.append((int(action), at + pause, at + pause + len(parts[0].vectors)))
        at = labels[-1][2]
    rows = np.zeros((at, 2, JOINTS, 3), np.float32)
    rows[:, 0] = film(scenes[0][1][0]._replace(vectors=np.concatenate(bends)), yaw, place, rng)[0]
    for (_, parts), (_, start, end) in zip(scenes, labels, strict=True):
        for part in parts[1:]:
            rows[start:end, 1] = film(part, yaw, place, rng)[0]
    return rows.reshape(at, -1), labels


def _between(before: np.ndarray, after: np.ndarray, frames: int) -> np.ndarray:
    """From one set of rotations (25, 3) smoothly to another: (frames, 25, 3)."""
    share = (1 - np.cos(np.pi * (np.arange(frames) + 1) / (frames + 1)))[:, None, None] / 2
    return before + share * (after - before)


def video_name(number: int) -> str:
    return f'{number + 1:04}-{CAMERA_LETTERS[facts_of(number).camera - 1]}'


def pku_text(rows: np.ndarray) -> str:
    """The skeleton file of a video from its rows (T, 150)."""
    return (('%.6f ' * rows.shape[1])[:-1] + '\n') * len(rows) % tuple(rows.ravel().tolist())


def pku_label_text(labels: Sequence[tuple[int, int, int]]) -> str:
    """The label file of a video from its actions: class (1-based), start, end."""
    return ''.join(f'{action},{start},{end},2\n' for action, start, end in labels)


def pku_split_text(training: Sequence[str], validation: Sequence[str]) -> str:
    """A split file."""
    return f'Training videos:\n{", ".join(training)}\nValidation videos:\n{", ".join(validation)}\n'


def write_clip(folder: Path, seed: int, task: tuple[int, int]) -> int:
    """Writes one NTU file into the folder; how many frames it has. The task is (number, action)."""
    clip = make_clip(*task, seed)
    (folder / f'{clip.name}.skeleton').write_text(ntu_text(clip.tracks, clip.frames))
    return clip.frames


def write_video(folder: Path, seed: int, task: tuple[int, int]) -> int:
    """Writes one PKU video with its labels; how many frames it has. The task is (number, classes)."""
    rows, labels = make_video(*task, seed)
    (folder / 'skeleton' / f'{video_name(task[0])}.txt').write_text(pku_text(rows))
    (folder / 'label' / f'{video_name(task[0])}.txt').write_text(pku_label_text(labels))
    return len(rows)


def write_splits(folder: Path, videos: int) -> None:
    """PKU's two split files; cross-view trains on M and R."""
    numbers = range(videos)
    for kind, train in (('subject', [facts_of(number).performer in NTU60_SUBJECTS for number in numbers]),
                        ('view', [CAMERA_LETTERS[facts_of(number).camera - 1] != 'L' for number in numbers])):
        names = [[video_name(number) for number in numbers if train[number] == side] for side in (True, False)]
        (folder / f'cross-{kind}.txt').write_text(pku_split_text(*names))


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """Yields a hidden folder beside `path`, which takes its name when the body ends well and is removed otherwise.

    Raises:
        UserError: something is there already, or the disk does not take it.
    """
    path = path.resolve()
    if path == Path.cwd():
        raise UserError(f'{path}: is where you stand; give --out a new folder')
    partial_path = path.with_name(f'.{path.name}.partial')      # what a killed run left is removed first
    try:
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise UserError(f'{path}: not empty; give --out a new folder, so that no two sets are mixed')
        shutil.rmtree(partial_path, ignore_errors=True)
        partial_path.mkdir(parents=True)
        yield partial_path
        os.replace(partial_path, path)
    except OSError as error:
        raise UserError(f'{path}: cannot be written ({error.strerror or error}); free space or correct the '
                        'permissions') from error
    finally:
        shutil.rmtree(partial_path, ignore_errors=True)


def write_all(args: argparse.Namespace, folder: Path) -> int:
    """All files of the set; how many frames they have."""
    if args.format == 'ntu':
        write, tasks = write_clip, [(number, action) for number in range(args.clips_per_class)
                                    for action in range(1, args.classes + 1)]
    else:
        write, tasks = write_video, [(number, args.classes) for number in range(args.clips_per_class)]
        for name in ('skeleton', 'label'):
            (folder / name).mkdir()
        write_splits(folder, args.clips_per_class)
    frames = 0
    with open_pool(args.workers) as pool, tqdm(total=len(tasks), desc=args.format, unit=' files', disable=None) as bar:
        for _, written, _ in convert(pool, tasks, partial(write, folder, args.seed), 8, 4 * args.workers):
            if isinstance(written, UserError):
                raise written
            frames += written
            bar.update()
    return frames


def main(argv: list[str] | None = None) -> int:
    processors = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1
    parser = Parser(description='made-up recordings in the raw text of NTU RGB+D or PKU-MMD')
    parser.add_argument('--out', type=Path, required=True, help='folder for the set; a new or an empty one')
    parser.add_argument('--format', choices=('ntu', 'pku'), default='ntu',
                        help='ntu: a file a clip; pku: a video shows one clip of each class')
    parser.add_argument('--seed', type=int, default=0, help='0 or more')
    parser.add_argument('--clips_per_class', type=int, default=100, help=f'3 to {MOST_CLIPS}')
    parser.add_argument('--classes', type=int, default=len(ACTIONS), help=f'2 to {len(ACTIONS)}')
    parser.add_argument('--workers', type=int, default=min(8, processors), help='processes that write')
    args = parser.parse_args(argv)
    if (args.seed < 0 or not 3 <= args.clips_per_class <= MOST_CLIPS or not 2 <= args.classes <= len(ACTIONS)
            or args.workers < 1):
        raise UserError(f'give --seed 0 or more, --clips_per_class 3 (or a split would have an empty side) to '
                        f'{MOST_CLIPS}, --classes 2 to {len(ACTIONS)} and --workers 1 or more')

    start = time.perf_counter()
    with whole_folder(args.out.absolute()) as folder:
        frames = write_all(args, folder)
    files = args.clips_per_class * (args.classes if args.format == 'ntu' else 1)
    print(f'{args.out}: {files:,} {"clips" if args.format == "ntu" else "videos"}, {args.classes} classes, '
          f'{frames:,} frames, {time.perf_counter() - start:.1f} s')
    return 0


if __name__ == '__main__':
    run_main(main)
