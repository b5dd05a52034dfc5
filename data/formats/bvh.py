"""BVH motion capture files: a tree of joints with offsets, then a row of channels per frame.

The position of a joint is its parent's plus its own offset in the parent's axes. Rotation channels, in degrees, are
multiplied in the order in which the file lists them (Zrotation Xrotation Yrotation: R = Rz·Rx·Ry on column vectors).
Position channels of the root are added to its offset, those of other joints replace it. End sites have no names and are
left out. Lengths are in the unit of the file, which it does not specify.

Read here because pybvh 0.9 and bvhio 1.5 reject files that this reads: joints with position channels or none, and joint
names with spaces.

T frames, V joints.
"""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from data.formats.recording import Options, Recording, choose_layout
from data.ntu_text import split_lines
from data.pipeline import Source
from feeder.layouts import MOST_JOINTS, Layout, make_layout
from util.errors import UserError, printable

CHANNEL = re.compile(r'([xyz])(position|rotation)', re.IGNORECASE)
END = -1        # an end site on the path from the root


class Joint(NamedTuple):
    name: str
    parent: int                             # 0-based; the root is its own
    offset: list[float]
    channels: list[tuple[int, bool]]        # axis, and True for a rotation, False for a position


def read(path: Path, layout: Layout | None, options: Options) -> Iterator[Recording]:
    joints, own = read_bvh(Source(path).read(), path.stem)
    frames = joints[:, None]                                                                # (T, 1, V, 3)
    layout = choose_layout(frames, layout, own)
    yield Recording(path.stem, options.clean(frames, layout), layout, None)


def read_bvh(text: bytes, name: str) -> tuple[np.ndarray, Layout]:
    """Read joint positions (T, V, 3) float64 in the file's unit, and the layout `name` of its joints.

    Raises UserError with the number of a wrong line.
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
    """Parse the joints, parents first, from the words of the hierarchy and their line numbers."""
    words.append(('', last))
    joints, path, at = [], [], 1      # path: open joints from the root on
    if words[0][0] != 'HIERARCHY':
        raise UserError(f'line {words[0][1]}: the file does not start with HIERARCHY')
    while at < len(words) - 1:
        word, line = words[at]
        inside = bool(path) and path[-1] != END
        if (word == 'ROOT' and not joints) or (word == 'JOINT' and inside):
            name, at = _name(words, at)
            if name in {joint.name for joint in joints} or len(joints) == MOST_JOINTS:
                raise UserError(f'line {line}: {name!r:.40} is a duplicate, or the file has more than '
                                f'{MOST_JOINTS} joints')
            joints.append(Joint(name, path[-1] if path else 0, [], []))
            path.append(len(joints) - 1)
        elif word == 'End' and inside and [word for word, _ in words[at + 1:at + 3]] == ['Site', '{']:
            path.append(END)
            at += 3
        elif word == 'OFFSET' and path:
            numbers = _numbers([word for word, _ in words[at + 1:at + 4]], line, 3)
            if inside:
                joints[path[-1]].offset[:] = numbers
            at += 4
        elif word == 'CHANNELS' and inside:
            joints[path[-1]].channels[:], at = _channels(words, at)
        elif word == '}' and path:
            if inside and not joints[path[-1]].offset:
                raise UserError(f'line {line}: {joints[path[-1]].name!r:.40} ends without an OFFSET')
            path.pop()
            at += 1
        else:
            raise UserError(f'line {line}: {word!r:.40} is unexpected')
    if path or not joints:
        raise UserError(f'line {last}: the hierarchy is incomplete; a }} or the ROOT is missing')
    return joints


def _name(words: Sequence[tuple[str, int]], at: int) -> tuple[str, int]:
    """Parse the name between ROOT or JOINT and the brace; returns it and the index of the next word."""
    end = at + 1
    while words[end][0] not in ('{', '') and words[end][1] == words[at][1]:
        end += 1
    if end == at + 1 or words[end][0] != '{':
        raise UserError(f'line {words[at][1]}: {words[at][0]} needs a name and {{')
    return ' '.join(word for word, _ in words[at + 1:end]), end + 1


def _channels(words: Sequence[tuple[str, int]], at: int) -> tuple[list[tuple[int, bool]], int]:
    """Parse the channels after CHANNELS; returns them and the index of the next word."""
    count = int(words[at + 1][0]) if words[at + 1][0] in tuple('0123456') else -1
    matches = [CHANNEL.fullmatch(word) for word, _ in words[at + 2:at + 2 + count]] if count >= 0 else [None]
    if len(matches) != max(count, 0) or not all(matches):
        raise UserError(f'line {words[at][1]}: CHANNELS needs a count up to 6 and as many of Xposition, Yposition, '
                        '…, Zrotation')
    return [('xyz'.index(match[1].lower()), match[2].lower() == 'rotation') for match in matches], at + 2 + count


def _numbers(words: Sequence[str], line: int, count: int) -> list[float]:
    try:
        numbers = [float(word) for word in words]
    except ValueError:
        numbers = []
    if len(numbers) != count or not np.isfinite(numbers).all():
        raise UserError(f'line {line}: {" ".join(words)!r:.60} is not {count} numbers')
    return numbers


def _motion(lines: Sequence[str], at: int, width: int) -> np.ndarray:
    """Parse the channels (T, width) after the two lines at index `at`, which give their number and rate."""
    heads = [line.strip() for line in lines[at:at + 2]]
    frames = re.fullmatch(r'Frames:\s*([0-9]{1,9})', heads[0] if heads else '')
    if frames is None:
        raise UserError(f'line {at + 1}: expected "Frames:" and their number')
    if len(heads) < 2 or not re.fullmatch(r'Frame Time:\s*\S+', heads[1]):
        raise UserError(f'line {at + 2}: expected "Frame Time:" and the seconds per frame')
    rows = [(number, line) for number, line in enumerate(lines[at + 2:], at + 3) if line.strip()]
    if len(rows) != int(frames[1]) or not rows:
        raise UserError(f'line {at + 1}: {frames[1]} frames are announced, the file has {len(rows)}')
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
    """Forward kinematics: channels (T, C) in the order of the joints -> positions (T, V, 3)."""
    positions, rotations, at = [], [], 0
    for index, joint in enumerate(joints):
        moves = any(not rotates for _, rotates in joint.channels)
        position = np.tile(np.array(joint.offset), (len(motion), 1))                       # (T, 3)
        if index and moves:
            position[:, [axis for axis, rotates in joint.channels if not rotates]] = 0
        own = np.broadcast_to(np.eye(3), (len(motion), 3, 3))
        for channel, (axis, rotates) in enumerate(joint.channels, at):
            if rotates:
                own = own @ _rotation(axis, np.radians(motion[:, channel]))
            else:
                position[:, axis] += motion[:, channel]
        at += len(joint.channels)
        if index:
            position = positions[joint.parent] + (rotations[joint.parent] @ position[..., None])[..., 0]
            own = rotations[joint.parent] @ own
        positions.append(position)
        rotations.append(own)
    return np.stack(positions, axis=1)


def _rotation(axis: int, angle: np.ndarray) -> np.ndarray:
    """Rotation matrices (T, 3, 3) by angles (T,) in rad about x, y or z (right-hand rule, column vectors)."""
    matrix = np.tile(np.eye(3), (len(angle), 1, 1))
    i, j = (axis + 1) % 3, (axis + 2) % 3
    matrix[:, i, i] = matrix[:, j, j] = np.cos(angle)
    matrix[:, j, i] = np.sin(angle)
    matrix[:, i, j] = -np.sin(angle)
    return matrix
