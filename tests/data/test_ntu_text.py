"""Parsing of NTU RGB+D text: whole files, and which line of a damaged one is named."""

import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.ntu_actors import to_rows
from data.ntu_text import Facts, parse_name, parse_skeleton
from tests.conftest import refusal
from tests.data.raw_files import BODY, CHANGES, FUZZING, OTHER_FIELDS, damage, random_joints, replace_line, skeleton
from util.errors import UserError

# Two frames. Line 1: frames; 2: bodies; 3: body, 4: joints, 5-29; 30: body, 31, 32-56; 57: bodies; 58: body, 59, 60-84.
SMALL = skeleton([{'72057594037931101': random_joints(0), '72057594037931102': random_joints(1)},
                  {'72057594037931101': random_joints(2)}])


def changed(line: int, text: str) -> bytes:
    return replace_line(SMALL, line, text.encode())


def assert_same(text: bytes) -> None:
    one, other = parse_skeleton(text), parse_skeleton(SMALL)
    assert one.frames == other.frames and list(one.bodies) == list(other.bodies)
    for name, body in one.bodies.items():
        assert body.start == other.bodies[name].start and body.joints.tobytes() == other.bodies[name].joints.tobytes()


def test_names():
    assert parse_name('S017C003P020R002A054') == Facts(17, 3, 20, 2, 54)
    assert parse_name('S032C003P106R002A120').action == 120
    for name in ('S001', 'S001C001P001R001A001\n', 'S00１C001P001R001A001', 'S000C001P001R001A001',
                 'S033C001P001R001A001', 'S001C001P001R001A121'):
        refusal(lambda name=name: parse_name(name), 'not a sample name of NTU RGB+D')


def test_numbers_are_read_as_float64_and_rounded_once():
    """The first is just above half-way between two float32: rounding twice gives the lower, even one."""
    numbers = '1.00000005960464477540 -1e-3 +.5'
    joint = parse_skeleton(changed(5, f'{numbers} {OTHER_FIELDS}')).bodies['72057594037931101'].joints[0, 0]
    assert joint.tolist() == [np.float32(float(text)) for text in numbers.split()] and joint[0] == 1


def test_white_space_and_unused_fields():
    for old, new in (('\n', '\r\n'), (' ', '\t'), (' ', '  '), ('\n', '\n ')):
        assert_same(SMALL.decode().replace(old, new, 40).encode())
    assert_same(SMALL.rstrip())
    assert_same(SMALL + b'\n\n \n\t\r\n\n')
    assert_same(SMALL.replace(OTHER_FIELDS.encode(), b'nan -inf 0x5 ? "a" \' # , ;'))


def test_truncated_at_every_byte():
    """The last line is named."""
    whole = SMALL.rstrip()
    for cut in range(0, len(whole), 3):
        last = max(1, len(whole[:cut].rstrip().split(b'\n')))
        assert refusal(lambda cut=cut: parse_skeleton(whole[:cut])).startswith(f'line {last}: ')


DAMAGED_JOINTS = ['', f'0.1 0.2 {OTHER_FIELDS}', f'0.1\r0.2 0.3 {OTHER_FIELDS}',
                  *(f'0.1 {number} 0.3 {OTHER_FIELDS}' for number in ('x', 'nan', '1e30', '0x1', '1_0', '1' * 300))]


@pytest.mark.filterwarnings('error')
def test_damaged_joints():
    """In one line, and in all, where they agree with each other; NumPy would warn of empty ones."""
    for text in DAMAGED_JOINTS:
        for line in (5, 60):
            message = refusal(lambda line=line, text=text: parse_skeleton(changed(line, text)))
            assert message.startswith(f'line {line}: ') and len(message) < 200, message
        lines = SMALL.decode().split('\n')
        for line in [*range(5, 30), *range(32, 57), *range(60, 85)]:
            lines[line - 1] = text
        refusal(lambda lines=lines: parse_skeleton('\n'.join(lines).encode()), 'line 5')


@pytest.mark.parametrize('text, line, part', [
    (changed(1, 'two'), 1, 'frames'), (changed(1, '-2'), 1, 'frames'), (changed(1, '9' * 5000), 1, 'frames'),
    (changed(57, f'1 {BODY}'), 57, 'bodies'), (changed(58, '72057594037931101'), 58, 'fields'),
    (changed(31, '24'), 31, 'joints'), (changed(30, f' 72057594037931101\t{BODY}\r'), 30, 'twice'),
    (changed(1, '1'), 57, ''), (changed(1, '9' * 9), 84, ''), (changed(2, '3'), 57, ''), (changed(57, '0'), 58, ''),
    (b'', 1, ''), (SMALL + b'1\n', 85, ''), (b'\xef\xbb\xbf' + SMALL, 1, 'printable ASCII'),
    (changed(40, '\x0c'), 40, ''), (b'999999999\n' + b'0\n' * 50_000, 50_001, '')], ids=range(16))
def test_damaged_counts_and_bodies(text, line, part):
    message = refusal(lambda: parse_skeleton(text), part)
    assert message.startswith(f'line {line}: ') and len(message) < 200, message


@FUZZING
@given(st.integers(0, 2), CHANGES)
def test_random_damage_gives_rows_or_a_user_error(which, changes):
    two_bodies = skeleton([{'a': random_joints(t), 'b': random_joints(50 + t)} for t in range(15)])
    text = damage((SMALL, SMALL.replace(b'\n', b'\r\n'), two_bodies)[which], changes)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        try:
            rows = to_rows(parse_skeleton(text))
        except UserError as error:
            assert '\n' not in str(error) and 0 < len(str(error)) < 200
            return
    assert rows.dtype == np.float32 and rows.shape[1] in (75, 150) and len(rows) and np.isfinite(rows).all()
