"""NTU RGB+D text: facts in the name of a sample, and bodies in its `.skeleton` file.

A file holds a frame count; for each frame a body count; for each body a line of 10 fields, the first of which is its
id, then the joint count and a line of 12 fields per joint: x y z in metres, depth x y, colour x y, orientation w x y z,
tracking state. Lines end with LF or CRLF.

n frames of one body, K: sum of the body counts of all frames, V = 25 joints.
"""

import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from util.errors import UserError

JOINTS, BODY_FIELDS, JOINT_FIELDS = 25, 10, 12
# A type for whole joint lines, so that a line with other than 12 fields is an error.
JOINT_LINE = np.dtype([('xyz', np.float64, 3), ('others', 'S1', JOINT_FIELDS - 3)])
FARTHEST = 1e6  # metres; squares and their sums stay within float32
PLAIN = bytes(range(32, 127)) + b'\t\r\n'
NAME = re.compile(r'S([0-9]{3})C([0-9]{3})P([0-9]{3})R([0-9]{3})A([0-9]{3})')
LAST_NAME = 'S032C003P106R002A120'


class Facts(NamedTuple):
    """The facts in the name of a sample, all numbered from 1."""

    setup: int
    camera: int
    performer: int
    replication: int
    action: int


class Body(NamedTuple):
    """A body that the sensor tracked under one id."""

    start: int              # its first frame, counted without frames that have no body
    joints: np.ndarray      # (n, 25, 3) float32, metres; n frames, without gaps


class Recording(NamedTuple):
    """The content of a `.skeleton` file."""

    frames: int                 # that have a body
    bodies: dict[str, Body]     # by id, in order of first appearance


def parse_name(name: str) -> Facts:
    """Parse a name SsssCcccPpppRrrrAaaa; raises UserError if it is not a sample name of NTU RGB+D 120."""
    match = NAME.fullmatch(name)
    facts = Facts(*map(int, match.groups())) if match else None
    last = map(int, NAME.fullmatch(LAST_NAME).groups())
    if facts is None or not all(1 <= fact <= largest for fact, largest in zip(facts, last, strict=True)):
        raise UserError(f'{name!r:.60} is not a sample name of NTU RGB+D (SsssCcccPpppRrrrAaaa, up to {LAST_NAME})')
    return facts


def split_lines(text: bytes) -> list[str]:
    """Split plain text into lines, without empty lines at the end; raises UserError for other characters."""
    if text.translate(None, PLAIN):
        number, line = next((number, line) for number, line in enumerate(text.split(b'\n'), 1)
                            if line.translate(None, PLAIN))
        raise UserError(f'line {number}: {line!r:.60} has characters other than printable ASCII')
    lines = [line.rstrip('\r') for line in text.decode('ascii').split('\n')]
    while len(lines) > 1 and not lines[-1].strip():
        lines.pop()
    return lines


def parse_skeleton(text: bytes) -> Recording:
    """Parse a `.skeleton` file; frames without a body are not counted, and gaps in the frames of a body are closed.

    Raises:
        UserError: with the line number: a count or coordinate is not a number, a field or line is missing or in excess,
            a count of joints is not 25, a body is in a frame twice, or no frame has a body.
    """
    lines = split_lines(text)
    ids, frame_of_body, first_lines, frames = _find_bodies(lines)
    if not ids:
        raise UserError('no frame has a body')
    try:
        joints = _parse_joints([line for first in first_lines for line in lines[first:first + JOINTS]])
    except ValueError:
        raise _locate_damage(lines, first_lines) from None
    joints = joints.reshape(-1, JOINTS, 3)                                                  # (K·25, 3) -> (K, 25, 3)
    appearances: dict[str, list[int]] = {}
    for k, body in enumerate(ids):      # ids as text: float64 cannot represent numbers of 17 digits
        appearances.setdefault(body, []).append(k)
    return Recording(frames, {body: Body(frame_of_body[ks[0]], joints[ks]) for body, ks in appearances.items()})


def _find_bodies(lines: Sequence[str]) -> tuple[list[str], list[int], list[int], int]:
    """Return ids, frames and first joint lines of the K bodies in all frames, and the number of non-empty frames."""
    ids, frame_of_body, first_lines = [], [], []
    index, frames = 1, 0
    for _ in range(_parse_count(lines, 0, 'frames')):
        bodies, seen = _parse_count(lines, index, 'bodies'), set()
        index += 1
        for _ in range(bodies):
            if index + 2 + JOINTS > len(lines):
                raise UserError(f'line {len(lines)}: the file ends within a frame')
            fields = lines[index].split()
            if len(fields) != BODY_FIELDS:
                raise UserError(f'line {index + 1}: {len(fields)} fields, expected {BODY_FIELDS} of a body')
            if lines[index + 1].strip() != str(JOINTS):
                raise UserError(f'line {index + 2}: {lines[index + 1]!r:.40} joints, expected {JOINTS}')
            if fields[0] in seen:
                raise UserError(f'line {index + 1}: body {fields[0]!r:.40} is in this frame twice')
            seen.add(fields[0])
            ids.append(fields[0])
            frame_of_body.append(frames)
            first_lines.append(index + 2)
            index += 2 + JOINTS
        frames += bodies > 0
    if index < len(lines):
        raise UserError(f'line {index + 1}: the file goes on after its last frame')
    return ids, frame_of_body, first_lines, frames


def _parse_count(lines: Sequence[str], index: int, noun: str) -> int:
    if index >= len(lines):
        raise UserError(f'line {len(lines)}: the file ends within a frame')
    text = lines[index].strip()
    if not text.isdigit() or len(text) > 9:
        raise UserError(f'line {index + 1}: {text!r:.40} is not a number of {noun}')
    return int(text)


def _parse_joints(rows: Sequence[str]) -> np.ndarray:
    """Parse joint lines into x y z (lines, 3) float32; raises ValueError if any of them is damaged."""
    if not any(map(str.strip, rows)):       # NumPy warns about it
        raise ValueError('empty lines')
    with np.errstate(over='ignore'):
        xyz = np.loadtxt(rows, JOINT_LINE, comments=None, ndmin=1)['xyz'].astype(np.float32)
    if len(xyz) != len(rows) or not (np.abs(xyz) <= FARTHEST).all():
        raise ValueError('an empty line, or a coordinate that is not finite or too large')
    return xyz


def _locate_damage(lines: Sequence[str], first_lines: Sequence[int]) -> UserError:
    """Return the error for the first of these joint lines that cannot be parsed."""
    for index in (first + joint for first in first_lines for joint in range(JOINTS)):
        try:
            _parse_joints([lines[index]])
        except ValueError:
            return UserError(f'line {index + 1}: {lines[index].strip()!r:.60} is not a joint: x y z in metres and '
                             f'{JOINT_FIELDS - 3} more fields')
    raise AssertionError('each joint line can be parsed by itself')
