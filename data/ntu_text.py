"""The raw text of NTU RGB+D: what a sample's name says, and what its `.skeleton` file holds.

A file is a frame count; per frame a body count; per body one line of 10 fields, of which the first is its id, then the
joint count and a line of 12 fields per joint: x y z in metres, depth x y, colour x y, orientation w x y z, tracking
state. LF or CRLF ends a line.

K appearances of a body in a frame, V = 25 joints.
"""

import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from util.errors import UserError

JOINTS, BODY_FIELDS, JOINT_FIELDS = 25, 10, 12
JOINT_LINE = np.dtype([('xyz', np.float64, 3), ('others', 'S1', JOINT_FIELDS - 3)])  # so that all fields must be there
FARTHEST = 1e6  # metres; squares and their sums stay far within float32
PLAIN = bytes(range(32, 127)) + b'\t\r\n'
NAME = re.compile(r'S([0-9]{3})C([0-9]{3})P([0-9]{3})R([0-9]{3})A([0-9]{3})')
LARGEST = (32, 3, 106, 2, 120)  # of NTU RGB+D 120: setups, cameras, performers, replications, actions


class Facts(NamedTuple):
    """What a sample's name says, all 1-based."""

    setup: int
    camera: int
    performer: int
    replication: int
    action: int


class Body(NamedTuple):
    start: int  # the first of the frames, counted without the empty ones, that show it
    joints: np.ndarray  # (n, 25, 3) float32 metres; of the frames that show it, one after the other


class Recording(NamedTuple):
    frames: int  # that show a body
    bodies: dict[str, Body]  # by id, in order of first appearance


def facts_of(name: str) -> Facts:
    """What the name SsssCcccPpppRrrrAaaa says; raises UserError for a name that is none of NTU RGB+D 120's."""
    match = NAME.fullmatch(name)
    facts = Facts(*map(int, match.groups())) if match else None
    if facts is None or not all(1 <= fact <= largest for fact, largest in zip(facts, LARGEST, strict=True)):
        raise UserError(f'{name!r:.60} is no sample name of NTU RGB+D (SsssCcccPpppRrrrAaaa, up to '
                        f'S{LARGEST[0]:03}C{LARGEST[1]:03}P{LARGEST[2]:03}R{LARGEST[3]:03}A{LARGEST[4]:03})')
    return facts


def split_lines(text: bytes) -> list[str]:
    """The lines of a raw text, without empty ones at its end; raises UserError naming a line that is not plain text."""
    if text.translate(None, PLAIN):
        number, line = next((number, line) for number, line in enumerate(text.split(b'\n'), 1)
                            if line.translate(None, PLAIN))
        raise UserError(f'line {number}: {line!r:.60} is not plain text')
    lines = text.decode('ascii').split('\n')
    while len(lines) > 1 and not lines[-1].strip():
        lines.pop()
    lines[-1] = lines[-1].rstrip()
    return lines


def parse_skeleton(text: bytes) -> Recording:
    """The bodies of a `.skeleton` file. Frames without a body are not counted.

    Ids are compared as text: they exceed what float64 holds exactly. A body that leaves and returns has its frames
    closed up.

    Raises:
        UserError: a count or a coordinate is not a number, a field or a line is missing, there is a line too many, a
            count of joints is not 25, a body is in a frame twice, or no frame shows a body.
    """
    lines = split_lines(text)
    ids, frame_of, first_lines, frames = _walk(lines)
    if not ids:
        raise UserError('no frame shows a body')
    rows = [line for first in first_lines for line in lines[first:first + JOINTS]]
    blank = np.frombuffer(text, dtype=np.uint8) <= 32
    spaced = not (blank[1:] & blank[:-1]).any() and b'\t' not in text
    try:
        joints = _coordinates(rows, spaced)
    except ValueError:
        raise _blame(lines, first_lines) from None
    appearances: dict[str, list[int]] = {}
    for k, body in enumerate(ids):
        appearances.setdefault(body, []).append(k)
    return Recording(frames, {body: Body(frame_of[ks[0]], joints[ks]) for body, ks in appearances.items()})


def _walk(lines: Sequence[str]) -> tuple[list[str], list[int], list[int], int]:
    """Follows the counts through a file: id, frame and first joint line (an index) of each of the K; the frames."""
    ids, frame_of, first_lines = [], [], []
    at, frames = 1, 0
    for _ in range(_count(lines, 0, 'frames')):
        bodies, seen = _count(lines, at, 'bodies'), set()
        at += 1
        for _ in range(bodies):
            if at + 2 + JOINTS > len(lines):
                raise _end_of(lines)
            fields = lines[at].split()
            if len(fields) != BODY_FIELDS:
                raise UserError(f'line {at + 1}: {len(fields)} fields, where a body has {BODY_FIELDS}')
            if lines[at + 1].strip() != str(JOINTS):
                raise UserError(f'line {at + 2}: {lines[at + 1]!r:.40} joints, where a body has {JOINTS}')
            body = fields[0]
            if body in seen:
                raise UserError(f'line {at + 1}: body {body!r:.40} is twice in this frame')
            seen.add(body)
            ids.append(body)
            frame_of.append(frames)
            first_lines.append(at + 2)
            at += 2 + JOINTS
        frames += bodies > 0
    if at < len(lines):
        raise UserError(f'line {at + 1}: there are lines after the last frame')
    return ids, frame_of, first_lines, frames


def _count(lines: Sequence[str], at: int, what: str) -> int:
    if at >= len(lines):
        raise _end_of(lines)
    text = lines[at].strip()
    if not text.isdigit() or len(text) > 9:
        raise UserError(f'line {at + 1}: {text!r:.40} is no number of {what}')
    return int(text)


def _end_of(lines: Sequence[str]) -> UserError:
    return UserError(f'line {len(lines)}: the file ends inside a frame')


def _coordinates(rows: Sequence[str], spaced: bool) -> np.ndarray:
    """x y z of the joint lines `rows`, (K, 25, 3) float32; ValueError when a line among them is damaged.

    `spaced`: between two fields there is one space, and none elsewhere; lines are quicker to split then.
    """
    if not any(map(str.strip, rows)):  # loadtxt would pass over empty lines, and warn when there is no other
        raise ValueError('empty lines')
    with np.errstate(over='ignore'):
        xyz = np.loadtxt(rows, JOINT_LINE, comments=None, delimiter=' ' if spaced else None, ndmin=1)['xyz']
        xyz = xyz.astype(np.float32)
    if len(xyz) != len(rows) or not (np.abs(xyz) <= FARTHEST).all():
        raise ValueError('an empty line, or a coordinate that is not finite or far off')
    return xyz.reshape(-1, JOINTS, 3)


def _blame(lines: Sequence[str], first_lines: Sequence[int]) -> UserError:
    """The error for the first of the joint lines that `_coordinates` does not take by itself."""
    for at in (first + joint for first in first_lines for joint in range(JOINTS)):
        fields = lines[at].split()
        if len(fields) != JOINT_FIELDS:
            return UserError(f'line {at + 1}: {len(fields)} fields, where a joint has {JOINT_FIELDS}')
        try:
            _coordinates([lines[at]] * JOINTS, spaced=False)
        except ValueError:
            return UserError(f'line {at + 1}: {" ".join(fields[:3])!r:.60} is not x y z in metres')
    raise AssertionError('every joint line is whole by itself')
