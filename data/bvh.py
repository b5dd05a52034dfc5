"""BVH, the motion files of most motion capture programs: a tree of joints with offsets, then a row of angles a frame.

A joint stands where its parent does, moved by its own offset in the parent's frame of axes. Its channels turn its own
frame: rotations, in degrees, are multiplied in the order in which the file lists them (Zrotation Xrotation Yrotation is
R = Rz·Rx·Ry on column vectors). The root's position channels are added to its offset; another joint's stand in the
place of its offset. Joints are those that the file names: the end sites, which have no names, are left out. Lengths
are in the unit of the file, of which it says nothing.

T frames, V joints.
"""

import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from data.ntu_text import split_lines
from feeder.layouts import MOST_JOINTS, Layout, make_layout
from util.errors import UserError, printable

CHANNEL = re.compile(r'([xyz])(position|rotation)', re.IGNORECASE)
END = -1        # on the way from the root: an end site


class Joint(NamedTuple):
    name: str
    parent: int                             # 0-based; the root is its own
    offset: list[float]
    channels: list[tuple[int, bool]]        # axis, and whether it is turned (or moved)


def read_bvh(text: bytes, name: str) -> tuple[np.ndarray, Layout]:
    """Joints (T, V, 3) float64 in the file's unit, and the layout `name` of the file's joints.

    Raises UserError naming the line that is wrong.
    """
    lines = split_lines(text)
    at = next((number for number, line in enumerate(lines) if line.split() == ['MOTION']), None)
    if at is None:
        raise UserError(f'line {len(lines)}: the file ends before MOTION')
    joints = _hierarchy([(word, number) for number, line in enumerate(lines[:at], 1) for word in line.split()], at)
    motion = _motion(lines, at + 1, sum(len(joint.channels) for joint in joints))
    layout = make_layout(printable(name), {joint.name: joint.parent for joint in joints}, 'its hierarchy')
    return forward(joints, motion), layout


def _hierarchy(words: list[tuple[str, int]], last: int) -> list[Joint]:
    """The joints, parents first, from the words of the file's first part, each with its line."""
    words.append(('', last))
    joints, way, at = [], [], 1       # way: from the root to where we are
    if words[0][0] != 'HIERARCHY':
        raise UserError(f'line {words[0][1]}: it does not begin with HIERARCHY')
    while at < len(words) - 1:
        word, line = words[at]
        inside = bool(way) and way[-1] != END
        if (word == 'ROOT' and not joints) or (word == 'JOINT' and inside):
            name, at = _name(words, at)
            if name in {joint.name for joint in joints} or len(joints) == MOST_JOINTS:
                raise UserError(f'line {line}: {name!r:.40} is there twice, or one of more than {MOST_JOINTS} joints')
            joints.append(Joint(name, way[-1] if way else 0, [], []))
            way.append(len(joints) - 1)
        elif word == 'End' and inside and [one for one, _ in words[at + 1:at + 3]] == ['Site', '{']:
            way.append(END)
            at += 3
        elif word == 'OFFSET' and way:
            numbers = _numbers([one for one, _ in words[at + 1:at + 4]], line, 3)
            if inside:
                joints[way[-1]].offset[:] = numbers
            at += 4
        elif word == 'CHANNELS' and inside:
            joints[way[-1]].channels[:], at = _channels(words, at)
        elif word == '}' and way:
            if inside and not joints[way[-1]].offset:
                raise UserError(f'line {line}: {joints[way[-1]].name!r:.40} ends without an OFFSET')
            way.pop()
            at += 1
        else:
            raise UserError(f'line {line}: {word!r:.40} is out of place')
    if way or not joints:
        raise UserError(f'line {last}: the hierarchy is not whole; a }} or the ROOT is missing')
    return joints


def _name(words: Sequence[tuple[str, int]], at: int) -> tuple[str, int]:
    """The name between ROOT or JOINT and the brace, and where what follows begins."""
    end = at + 1
    while words[end][0] not in ('{', '') and words[end][1] == words[at][1]:
        end += 1
    if end == at + 1 or words[end][0] != '{':
        raise UserError(f'line {words[at][1]}: {words[at][0]} is followed by no name and {{')
    return ' '.join(word for word, _ in words[at + 1:end]), end + 1


def _channels(words: Sequence[tuple[str, int]], at: int) -> tuple[list[tuple[int, bool]], int]:
    """The channels that CHANNELS lists, and where what follows begins."""
    count = int(words[at + 1][0]) if words[at + 1][0] in tuple('0123456') else -1
    found = [CHANNEL.fullmatch(word) for word, _ in words[at + 2:at + 2 + count]] if count >= 0 else [None]
    if len(found) != max(count, 0) or not all(found):
        raise UserError(f'line {words[at][1]}: CHANNELS is followed by no count up to 6 and so many of Xposition, '
                        'Yposition, …, Zrotation')
    return [('xyz'.index(one[1].lower()), one[2].lower() == 'rotation') for one in found], at + 2 + count


def _numbers(words: Sequence[str], line: int, count: int) -> list[float]:
    try:
        numbers = [float(word) for word in words]
    except ValueError:
        numbers = []
    if len(numbers) != count or not np.isfinite(numbers).all():
        raise UserError(f'line {line}: {" ".join(words)!r:.60} is not {count} numbers')
    return numbers


def _motion(lines: Sequence[str], at: int, width: int) -> np.ndarray:
    """The channels (T, width) that stand from line `at` (an index) on, below the two lines that say how many."""
    heads = [line.strip() for line in lines[at:at + 2]]
    frames = re.fullmatch(r'Frames:\s*([0-9]{1,9})', heads[0] if heads else '')
    if frames is None:
        raise UserError(f'line {at + 1}: it is not "Frames:" and their number')
    if len(heads) < 2 or not re.fullmatch(r'Frame Time:\s*\S+', heads[1]):
        raise UserError(f'line {at + 2}: it is not "Frame Time:" and the seconds of a frame')
    rows = [(number, line) for number, line in enumerate(lines[at + 2:], at + 3) if line.strip()]
    if len(rows) != int(frames[1]) or not rows:
        raise UserError(f'line {at + 1}: {frames[1]} frames are told, {len(rows)} are there')
    try:
        motion = np.loadtxt([line for _, line in rows], comments=None, ndmin=2)
        if motion.shape == (len(rows), width) and np.isfinite(motion).all():
            return motion
    except ValueError:
        pass
    for number, line in rows:
        _numbers(line.split(), number, width)
    raise AssertionError('every line is a frame by itself')


def forward(joints: Sequence[Joint], motion: np.ndarray) -> np.ndarray:
    """Channels (T, C) in the order of the joints to the joints' places (T, V, 3)."""
    places, turned, at = [], [], 0
    for index, joint in enumerate(joints):
        moved = any(not turns for _, turns in joint.channels)
        place = np.tile(np.array(joint.offset), (len(motion), 1))                       # (T, 3)
        if index and moved:
            place[:, [axis for axis, turns in joint.channels if not turns]] = 0
        own = np.broadcast_to(np.eye(3), (len(motion), 3, 3))
        for channel, (axis, turns) in enumerate(joint.channels, at):
            if turns:
                own = own @ _rotation(axis, np.radians(motion[:, channel]))
            else:
                place[:, axis] += motion[:, channel]
        at += len(joint.channels)
        if index:
            place = places[joint.parent] + (turned[joint.parent] @ place[..., None])[..., 0]
            own = turned[joint.parent] @ own
        places.append(place)
        turned.append(own)
    return np.stack(places, axis=1)


def _rotation(axis: int, angle: np.ndarray) -> np.ndarray:
    """Turns (T, 3, 3) by angles (T,) in rad about x, y or z, by the right-hand rule, of column vectors."""
    matrix = np.tile(np.eye(3), (len(angle), 1, 1))
    one, other = (axis + 1) % 3, (axis + 2) % 3
    matrix[:, one, one] = matrix[:, other, other] = np.cos(angle)
    matrix[:, other, one] = np.sin(angle)
    matrix[:, one, other] = -np.sin(angle)
    return matrix
