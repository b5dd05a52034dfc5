"""2D keypoints of pose estimators as JSON: OpenPose's folder with a file per frame, and lists as AlphaPose and COCO.

A person is followed from frame to frame by the id in the file, or else by position. Axis letters: T frames, M persons,
V joints.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from scipy.optimize import linear_sum_assignment

from data.formats.recording import Options, Recording, make_recording
from data.sources import Source
from feeder.layouts import read_layout
from util.errors import UserError, one_line

PATTERN = '*_keypoints.json'        # names of OpenPose's files
MAX_PERSONS = 20                    # in a recording; more are ignored
BODY = {136: 26, 133: 17}           # joints of the body, which come first, in Halpe's and COCO's whole-body keypoints
OPENPOSE = {18: 'openpose-18', 25: 'openpose-25'}       # layouts by number of joints
COCO = {17: 'coco-17', 26: 'halpe-26'}
NEW = 1e6                           # pixels; the cost of a new person, instead of the distance to a known one

Person = tuple[object, np.ndarray]      # id or None, joints (V, 3)


def is_keypoint_folder(path: Path) -> bool:
    """Return True for a folder of OpenPose's files, which are the frames of one recording."""
    return path.is_dir() and any(path.glob(PATTERN))


def read_folder(path: Path, options: Options) -> Iterator[Recording]:
    """Read the frames of a folder, in the order of the numbers in their names."""
    files = sorted(path.glob(PATTERN), key=lambda file: _numbers(file.name))
    videos = sorted({re.sub(r'_?\d+_keypoints.json$', '', file.name) for file in files})
    if len(videos) > 1:
        raise UserError(f'has frames of {len(videos)} videos ({videos[0]}, {videos[1]}, …); put each in its own folder')
    frames = []
    for file in files:
        try:
            content = json.loads(Source(file).read())
        except (ValueError, RecursionError) as error:
            raise UserError(f'{file.name}: damaged JSON ({one_line(error)})') from error
        frames.append(read_people(content))
    yield _make(path, frames, OPENPOSE, options)


def read(path: Path, content, options: Options) -> Iterator[Recording]:
    """Read the content of a file: one frame of OpenPose, or a list of the persons in all images."""
    if isinstance(content, dict):
        yield _make(path, [read_people(content)], OPENPOSE, options, ('read as a single frame',))
        return
    images: dict[str, list[Person]] = {}
    for entry in content:
        if not isinstance(entry, dict) or not {'image_id', 'keypoints'} <= entry.keys():
            raise UserError('every entry of the list must have image_id and keypoints')
        number = entry.get('idx', entry.get('track_id'))
        while isinstance(number, list):         # AlphaPose
            number = number[0] if number else None
        images.setdefault(str(entry['image_id']), []).append((number, _joints(entry['keypoints'])))
    frames, notes = [images[name] for name in sorted(images, key=_numbers)], ()
    ids = [[number for number, _ in frame] for frame in frames]
    if any(len(set(map(str, frame))) < len(frame) for frame in ids):        # without tracking, every id may be 0
        frames = [[(None, joints) for _, joints in frame] for frame in frames]
        notes = ('read without ids of persons, which are missing or not unique',)
    yield _make(path, frames, COCO, options, notes)


def read_people(content) -> list[Person]:
    """Return the persons in a frame of OpenPose."""
    people = content.get('people') if isinstance(content, dict) else None
    if not isinstance(people, list) or not all(isinstance(person, dict) for person in people):
        raise UserError('must be a dict with a list of people, as OpenPose writes it')
    return [(None, _joints(person.get('pose_keypoints_2d'))) for person in people]


def _numbers(name: str) -> list[int]:
    return [int(number) for number in re.findall(r'\d+', name)]


def _joints(numbers) -> np.ndarray:
    try:
        return np.array(numbers, dtype=np.float64).reshape(-1, 3)
    except (ValueError, TypeError, OverflowError) as error:
        raise UserError('keypoints must be a list of x, y and score for each joint') from error


def _make(path: Path, people: list[list[Person]], layouts: dict[int, str], options: Options,
          notes: tuple[str, ...] = ()) -> Recording:
    joints = {len(person) for frame in people for _, person in frame}
    if len(joints) != 1:
        raise UserError(f'has persons with {" and ".join(map(str, sorted(joints)))} joints' if joints else
                        'has no person in any frame')
    number = joints.pop()
    frames, ignored = assign_persons(people, number)
    body = BODY.get(number, number)
    if body < number:
        notes += (f'reduced to the body, {body} of {number} keypoints',)
    if ignored:
        notes += (f'reduced to the first {MAX_PERSONS} persons',)
    own = None if options.layout or body not in layouts else read_layout(layouts[body])
    return make_recording(path, frames[:, :, :body], options._replace(planar=True), own, notes=notes)


def assign_persons(people: list[list[Person]], num_joints: int) -> tuple[np.ndarray, bool]:
    """Assign the persons in each frame to bodies (T, M, V, 3); also returns True if there were more than MAX_PERSONS.

    Persons without a visible joint are ignored.
    """
    frames, ignored = np.zeros((len(people), MAX_PERSONS, num_joints, 3)), False
    last, ids = np.full((MAX_PERSONS, 2), np.nan), {}       # position of each body, body of each id
    for t, persons in enumerate(people):
        persons = [(number, joints) for number, joints in persons if (joints[:, 2] > 0).any()]
        centres = [joints[joints[:, 2] > 0, :2].mean(axis=0) for _, joints in persons]
        costs = np.nan_to_num([np.linalg.norm(last - centre, axis=1) for centre in centres], nan=NEW)
        nearest = dict(zip(*linear_sum_assignment(costs), strict=True)) if persons else {}
        for i, (number, joints) in enumerate(persons):
            body = nearest.get(i) if number is None else ids.setdefault(str(number), len(ids))
            if body is None or body >= MAX_PERSONS:
                ignored = True
            else:
                frames[t, body], last[body] = joints, centres[i]
    bodies = np.flatnonzero(frames.any(axis=(0, 2, 3)))
    return frames[:, :bodies.max(initial=0) + 1], ignored
