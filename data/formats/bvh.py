"""BVH motion capture files: a tree of joints with offsets, followed by a row of channels per frame.

The position of a joint is the position of its parent plus its own offset in the axes of the parent. Rotation channels,
in degrees, are multiplied in the order in which the file lists them (Zrotation Xrotation Yrotation: R = Rz·Rx·Ry on
column vectors). Position channels replace the offset, as in Blender and bvhio. End sites have no names and are omitted.
Lengths are in the unit of the file, which it does not specify.

Files are parsed here because pybvh 0.9 and bvhio 1.5 reject files that are in use: pybvh rejects joints without exactly
three rotations and names with spaces, bvhio 'Frames : 30'; bvhio also computes in single precision.

T frames, V joints.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from data.formats.recording import Options, Recording, make_recording
from data.sources import Source
from feeder.layouts import Layout, make_layout
from util.errors import UserError, one_line, printable

NUMBER = r'[-+]?(\d+\.?\d*|\.\d+)(e[-+]?\d+)?'
STATEMENT = re.compile(rf'''\s*(
    (?P<keyword>ROOT|JOINT)[ \t]+(?P<name>[^{{\n]*[^{{\s])\s*\{{ |
    (?P<end>End)\s+Site\s*\{{ |
    OFFSET(?P<offset>(\s+{NUMBER}){{3}})(?!\S) |
    CHANNELS\s+(?P<count>\d{{1,3}})(?P<channels>(\s+[xyz](position|rotation))*)(?!\S) |
    (?P<close>\}})
)''', re.IGNORECASE | re.VERBOSE)
MOTION = re.compile(r'^\s*MOTION\s+Frames\s*:\s*(\d{1,9})\s+Frame\s+Time\s*:.*$', re.IGNORECASE | re.MULTILINE)


@dataclass
class Joint:
    name: str
    parent: int                             # numbered from 0; the root is its own parent
    offset: list[float] | None = None
    channels: list[tuple[int, bool]] = field(default_factory=list)     # axis; True: a rotation, False: a position


def read(path: Path, options: Options) -> Iterator[Recording]:
    joints, own = read_bvh(Source(path).read(), path.stem)
    yield make_recording(path, joints[:, None], options._replace(planar=False), own)            # (T, 1, V, 3)


def read_bvh(content: bytes, name: str) -> tuple[np.ndarray, Layout]:
    """Return joint positions (T, V, 3) float64 in the unit of the file, and the joint layout, called `name`.

    Raises UserError if the file is invalid.
    """
    text = content.decode('utf-8-sig', 'replace')
    motion = MOTION.search(text)
    if motion is None:
        raise UserError('has no MOTION section that begins with "Frames:" and "Frame Time:"')
    joints = parse_hierarchy(text[:motion.start()])
    rows = [row for row in text[motion.end():].splitlines() if row.strip()]
    if not rows or len(rows) != int(motion[1]):
        raise UserError(f'declares {int(motion[1]):,} frames, but contains {len(rows):,}')
    channels = parse_frames(rows, sum(len(joint.channels) for joint in joints))
    layout = make_layout(printable(name), {joint.name: joint.parent for joint in joints}, 'its hierarchy')
    return compute_positions(joints, channels), layout


def parse_hierarchy(text: str) -> list[Joint]:
    """Parse the joints, parents first."""
    start = re.match(r'\s*HIERARCHY\b', text, re.IGNORECASE)
    if start is None:
        raise UserError('does not begin with HIERARCHY')
    joints, path, position = [], [], start.end()        # path: open joints from the root on, None for an end site
    while match := STATEMENT.match(text, position):
        inside, is_root = bool(path) and path[-1] is not None, str(match['keyword']).upper() == 'ROOT'
        if match['keyword'] and (not joints if is_root else inside):
            joints.append(Joint(match['name'], path[-1] if path else 0))
            path.append(len(joints) - 1)
        elif match['end'] and inside:
            path.append(None)
        elif match['close'] and path:
            path.pop()
        elif match['offset'] and path:
            if inside:
                joints[path[-1]].offset = [float(word) for word in match['offset'].split()]
        elif match['count'] and inside and int(match['count']) == len(channels := match['channels'].lower().split()):
            joints[path[-1]].channels = [('xyz'.index(word[0]), word.endswith('rotation')) for word in channels]
        else:
            break
        position = match.end()
    if rest := text[position:].split(maxsplit=1):
        line = 1 + text.count('\n', 0, text.index(rest[0], position))
        raise UserError(f'line {line}: {rest[0]!r:.40} is unexpected here, or followed by incomplete data')
    names = [joint.name for joint in joints]
    if path or not joints or len(set(names)) < len(names) or any(joint.offset is None for joint in joints):
        raise UserError('the hierarchy is incomplete: a }, an OFFSET or a unique name is missing')
    return joints


def parse_frames(rows: list[str], width: int) -> np.ndarray:
    """Parse rows of `width` numbers: (T, width)."""
    try:
        channels = np.loadtxt(rows, comments=None, ndmin=2)
    except ValueError as error:
        raise UserError(f'the frames do not have {width} numbers each ({one_line(error)})') from error
    if channels.shape != (len(rows), width):
        raise UserError(f'the frames have {channels.shape[1]} numbers each, but there are {width} channels')
    return channels


def compute_positions(joints: list[Joint], channels: np.ndarray) -> np.ndarray:
    """Compute forward kinematics: channels (T, C) in the order of the joints -> positions (T, V, 3)."""
    positions, rotations, columns = [], [], iter(channels.T)
    for index, joint in enumerate(joints):
        position = np.tile(np.array(joint.offset), (len(channels), 1))                      # (T, 3)
        rotation = np.broadcast_to(np.eye(3), (len(channels), 3, 3))
        for (axis, is_rotation), column in zip(joint.channels, columns, strict=False):
            if is_rotation:
                rotation = rotation @ _rotation(axis, np.radians(column))
            else:
                position[:, axis] = column
        if index:
            position = positions[joint.parent] + (rotations[joint.parent] @ position[..., None])[..., 0]
            rotation = rotations[joint.parent] @ rotation
        positions.append(position)
        rotations.append(rotation)
    return np.stack(positions, axis=1)


def _rotation(axis: int, angle: np.ndarray) -> np.ndarray:
    """Return rotation matrices (T, 3, 3) by angles (T,) in rad about x, y or z (right-hand rule, column vectors)."""
    matrix = np.tile(np.eye(3), (len(angle), 1, 1))
    i, j = (axis + 1) % 3, (axis + 2) % 3
    matrix[:, i, i] = matrix[:, j, j] = np.cos(angle)
    matrix[:, j, i] = np.sin(angle)
    matrix[:, i, j] = -np.sin(angle)
    return matrix
