"""The raw text of NTU RGB+D: what a whole file holds, which line of a damaged one is named, and a fuzz."""

import os
import random
import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from data.ntu_actors import to_rows
from data.ntu_text import Facts, facts_of, parse_skeleton, split_lines
from tests.conftest import ROOT, refusal
from util.errors import UserError

REAL = Path(os.environ.get('MAMP_SHARED', ROOT / '../shared')) / 'data/ntu_raw'
BODY = '0 1 1 0 0 -0.5 0.02764709 0.05745083 2'
LATER = '277.419 191.8218 1036.233 519.1677 -0.2059419 0.05349901 0.9692109 -0.1239193 2'  # than x y z


def skeleton(frames) -> bytes:
    """A raw text of frames, each {id: joints (25, 3) float32}."""
    lines = [f'{len(frames)}']
    for frame in frames:
        lines.append(f'{len(frame)}')
        for body, joints in frame.items():
            lines += [f'{body} {BODY}', f'{len(joints)}']
            lines += [f'{x:.9g} {y:.9g} {z:.9g} {LATER}' for x, y, z in np.asarray(joints, dtype=np.float32).tolist()]
    return '\n'.join([*lines, '']).encode()


def joints_of(number: int) -> np.ndarray:
    return np.random.default_rng(number).normal(size=(25, 3)).astype(np.float32)


# Two frames. Line 1: frames; 2: bodies; 3: body, 4: joints, 5-29; 30: body, 31, 32-56; 57: bodies; 58: body, 59, 60-84.
SMALL = skeleton([{'72057594037931101': joints_of(0), '72057594037931102': joints_of(1)},
                  {'72057594037931101': joints_of(2)}])
JOINT_LINES = [*range(5, 30), *range(32, 57), *range(60, 85)]


def changed(line: int, text: str) -> bytes:
    """SMALL with another line of this number, counted from 1."""
    lines = SMALL.decode().split('\n')
    lines[line - 1] = text
    return '\n'.join(lines).encode()


def line_of(number: int) -> str:
    return SMALL.decode().split('\n')[number - 1]


def same(one, other) -> bool:
    return one.frames == other.frames and list(one.bodies) == list(other.bodies) and all(
        body.start == other.bodies[name].start and body.joints.dtype == other.bodies[name].joints.dtype == np.float32
        and body.joints.tobytes() == other.bodies[name].joints.tobytes() for name, body in one.bodies.items())


# ---- names

def test_facts():
    assert facts_of('S017C003P020R002A054') == Facts(17, 3, 20, 2, 54)
    assert facts_of('S001C001P001R001A001') == (1, 1, 1, 1, 1) and facts_of('S032C003P106R002A120').action == 120


@pytest.mark.parametrize('name', [
    '', 'S001', 'S001C001P001R001A001.skeleton', 's001c001p001r001a001', 'S001C001P001R001A0010',
    ' S001C001P001R001A001', 'S001C001P001R001A001\n', 'S1C1P1R1A1', 'S００１C001P001R001A001', 'x' * 10_000,
    'S000C001P001R001A001', 'S033C001P001R001A001', 'S001C000P001R001A001', 'S001C004P001R001A001',
    'S001C001P000R001A001', 'S001C001P107R001A001', 'S001C001P001R000A001', 'S001C001P001R003A001',
    'S001C001P001R001A000', 'S001C001P001R001A121'])
def test_a_name_that_is_none(name):
    assert len(refusal(lambda: facts_of(name), 'is no sample name of NTU RGB+D')) < 250


# ---- whole files

def test_bodies_in_order_of_appearance_closed_up():
    """Frames without a body are not counted; a body that returns has its frames one after the other."""
    shown = [{}, {'b': 0}, {'b': 1, 'a': 2}, {}, {'a': 3}, {'c': 4, 'b': 5}, {}]
    got = parse_skeleton(skeleton([{name: joints_of(number) for name, number in frame.items()} for frame in shown]))
    assert got.frames == 4 and list(got.bodies) == ['b', 'a', 'c']
    for name, start, numbers in (('b', 0, [0, 1, 5]), ('a', 1, [2, 3]), ('c', 3, [4])):
        assert got.bodies[name].start == start and got.bodies[name].joints.dtype == np.float32
        np.testing.assert_array_equal(got.bodies[name].joints, [joints_of(number) for number in numbers])


def test_numbers_are_read_as_float64_and_rounded_once_more():
    """Half way between two float32 as a decimal, a hair above it: rounding twice gives the lower, even one."""
    written = '1.00000005960464477540 -1e-3 +.5'
    got = parse_skeleton(changed(5, f'{written} {LATER}')).bodies['72057594037931101'].joints[0, 0]
    assert got.tolist() == [np.float32(float(text)) for text in written.split()] and got[0] == 1


def test_ids_are_text():
    """These two are one number in float64, and also differ from 7.2…e16 written otherwise."""
    assert float('72057594037931101') == float('72057594037931102')
    got = parse_skeleton(SMALL)
    assert list(got.bodies) == ['72057594037931101', '72057594037931102'] and got.frames == 2
    assert [len(body.joints) for body in got.bodies.values()] == [2, 1]
    assert list(parse_skeleton(changed(58, f'072057594037931101 {BODY}')).bodies)[2:] == ['072057594037931101']


@pytest.mark.parametrize('rewrite', [
    lambda text: text.replace('\n', '\r\n'), lambda text: text.replace(' ', '\t'), lambda text: text.replace(' ', '  '),
    lambda text: text.replace(' ', ' \t '), lambda text: text.replace('\n', ' \n'),
    lambda text: text.replace('\n', '\n '), lambda text: text.replace('\n', '\t\r\n'), lambda text: text.rstrip('\n'),
    lambda text: text + '\n\n \n\t\r\n\n', lambda text: text.replace('\n', '\r\n', 40)],
    ids=['CRLF', 'tabs', 'two spaces', 'space tab space', 'space at ends', 'space at starts', 'tab and CRLF',
         'no last line end', 'blank lines at the end', 'LF and CRLF'])
def test_white_space_means_nothing(rewrite):
    text = rewrite(SMALL.decode()).encode()
    assert text != SMALL and same(parse_skeleton(text), parse_skeleton(SMALL))


@pytest.mark.parametrize('line', [1, 2, 3, 4, 5, 6, 29, 30, 57, 60, 84])
def test_white_space_in_one_line_means_nothing(line):
    text = line_of(line)
    for white in (' ', '  ', '\t', ' \t'):
        for other in (white + text, text + white, text + white + '\r', text.replace(' ', white, 1)):
            assert same(parse_skeleton(changed(line, other)), parse_skeleton(SMALL)), repr(other)


def test_fields_after_x_y_z_may_hold_anything():
    """They are not used."""
    odd = changed(5, line_of(5).replace(LATER, 'nan -inf 0x5 ? "a" \' # , ;'))
    assert same(parse_skeleton(odd), parse_skeleton(SMALL))


# ---- damage, and the line that is named

def test_truncated_after_every_line():
    lines = SMALL.decode().split('\n')
    for count in range(len(lines) - 1):
        text = '\n'.join(lines[:count]).encode()
        message = refusal(lambda text=text: parse_skeleton(text))
        assert message.startswith(f'line {max(1, count)}: '), (count, message)


def test_truncated_at_every_byte():
    """The last line there is named."""
    whole = SMALL.rstrip()
    for cut in range(len(whole)):
        text = whole[:cut]
        last = max(1, len(text.rstrip().split(b'\n')))
        assert refusal(lambda text=text: parse_skeleton(text)).startswith(f'line {last}: ')


@pytest.mark.parametrize('line, text, words', [
    (1, 'two', 'frames'), (1, '-2', 'frames'), (1, '2.0', 'frames'), (1, '', 'frames'), (1, '2 2', 'frames'),
    (1, '1' * 5000, 'frames'), (1, '9' * 10, 'frames'), (1, '+2', 'frames'), (1, '2_0', 'frames'), (1, '0x2', 'frames'),
    (2, 'nan', 'bodies'), (2, '-1', 'bodies'), (57, '', 'bodies'), (57, '1 ' + BODY, 'bodies'), (57, '1e0', 'bodies'),
    (3, '', 'fields'), (3, '72057594037931101', 'fields'), (30, f'7 8 {BODY}', 'fields'), (58, BODY, 'fields'),
    (4, 'x', 'joints'), (31, '24', 'joints'), (4, '26', 'joints'), (4, '0', 'joints'), (59, '-25', 'joints'),
    (59, '25.0', 'joints'), (59, '', 'joints'), (59, '25 25', 'joints'), (4, '9' * 5000, 'joints'),
    (30, f'72057594037931101 {BODY}', 'twice'), (30, f' 72057594037931101\t{BODY}\r', 'twice')])
def test_damaged_counts_and_bodies(line, text, words):
    message = refusal(lambda: parse_skeleton(changed(line, text)), words)
    assert message.startswith(f'line {line}: ') and len(message) < 200, message


NO_NUMBERS = ('x', 'nan', '-inf', 'Infinity', '1e99', '-4e38', '1e999', '0,5', '1.2.3', '--1', '1e', '0x1', '1_0', '1j',
              '"1"', '-', '1' * 300)
NO_JOINTS = ['0.1', '0.1 0.2 0.3', f'0.1 0.2 {LATER}', f'0.1 0.2 0.3 {LATER[:-2]}', f'0.1 0.2 0.3 {LATER} 2',
             f'0.1 0.2 0.3 {LATER}\t2', f'0.1 0.2 0.3 \t {LATER[:-2]}', f'0.1 0.2 0.3 {LATER[:-2]} \t',
             f' 0.1 0.2 0.3 {LATER[:-2]}', f'0.1  0.2 0.3 {LATER[:-2]}', f'0.1 0.2 0.3 {LATER} ' * 2,
             f'0.1\r0.2 0.3 {LATER}', *(f'{bad} 0.2 0.3 {LATER}' for bad in NO_NUMBERS),
             *(f'0.1 {bad} 0.3 {LATER}' for bad in NO_NUMBERS), *(f'0.1 0.2 {bad} {LATER}' for bad in NO_NUMBERS)]


@pytest.mark.parametrize('text', NO_JOINTS)
def test_damaged_joint(text):
    """In any line, also in the first and the last, and in files with other white space."""
    for line in (5, 17, 29, 32, 56, 60, 84):
        for end, gap in ((b'\n', b' '), (b'\r\n', b' '), (b'\n', b'  ')):
            damaged = changed(line, text).replace(b' ', gap).replace(b'\n', end)
            message = refusal(lambda damaged=damaged: parse_skeleton(damaged))
            assert message.startswith(f'line {line}: ') and len(message) < 200, message


@pytest.mark.parametrize('line', JOINT_LINES)
def test_empty_joint_line(line):
    for text in ('', ' ', '\t\r'):
        message = refusal(lambda text=text: parse_skeleton(changed(line, text)))
        assert message.startswith(f'line {min(line, 83)}: '), 'empty lines at the end count as not there'


def test_huge_coordinates_are_refused():
    """Those with which the variances or the centring leave float32's range, in any place."""
    for text in ('1e30', '-3e38', '1e19'):
        refusal(lambda text=text: parse_skeleton(changed(40, f'0.1 {text} 0.3 {LATER}')), 'line 40: ', text)


def test_the_first_damaged_joint_is_named():
    lines = SMALL.decode().split('\n')
    for line in (84, 40, 33):
        lines[line - 1] = lines[line - 1].replace('1', 'l')
        refusal(lambda: parse_skeleton('\n'.join(lines).encode()), f'line {line}: ', 'x y z')


def test_every_joint_damaged_alike():
    """So that all lines agree with each other in their number of fields; and blank ones, of which NumPy warns."""
    for row in ('', ' \t', '\r', '0.1 0.2 0.3', f'0.1 0.2 0.3 {LATER} 2', f'0.1 0.2 0.3 {LATER}\t2',
                f'0.1 0.2 0.3 \t {LATER[:-2]}'):
        lines = SMALL.decode().split('\n')
        for line in JOINT_LINES:
            lines[line - 1] = row
        with warnings.catch_warnings():
            warnings.simplefilter('error')
            text = '\n'.join(lines).encode()  # blank lines at the end count as not there
            assert refusal(lambda text=text: parse_skeleton(text)).startswith(('line 5: ', 'line 59: '))


def test_whole_bodies_of_empty_lines():
    """Of all bodies, of which NumPy would warn, and of one: the numbers of the others are not taken for its own."""
    lines = SMALL.decode().split('\n')
    lines[56:] = ['0']
    for bodies, line in (([5, 32], 5), ([5], 5), ([32], 32)):
        text = list(lines)
        for first in bodies:
            text[first - 1:first + 24] = [''] * 25
        with warnings.catch_warnings():
            warnings.simplefilter('error')
            refusal(lambda text=text: parse_skeleton('\n'.join(text).encode()), f'line {line}: 0 fields')


@pytest.mark.parametrize('frames, line', [('1', 57), ('3', 84), ('0', 2), ('999999999', 84)])
def test_frame_count_too_small_or_too_large(frames, line):
    assert refusal(lambda: parse_skeleton(changed(1, frames))).startswith(f'line {line}: ')


def test_body_count_too_small_or_too_large():
    """The first line that does not fit is named: a body where a count should be, and the other way round."""
    assert refusal(lambda: parse_skeleton(changed(2, '1'))).startswith('line 30: ')
    assert refusal(lambda: parse_skeleton(changed(2, '3'))).startswith('line 57: ')
    assert refusal(lambda: parse_skeleton(changed(57, '0'))).startswith('line 58: ')
    assert refusal(lambda: parse_skeleton(changed(57, '2'))).startswith('line 84: ')


def test_a_line_lost_or_doubled():
    """Somewhere at or after the damage; exactly there for a joint that is lost before another body."""
    lines = SMALL.decode().split('\n')[:-1]
    for at in range(len(lines)):
        for damaged in (lines[:at] + lines[at + 1:], lines[:at] + lines[at:at + 1] + lines[at:]):
            message = refusal(lambda damaged=damaged: parse_skeleton('\n'.join(damaged).encode()))
            number = int(message.removeprefix('line ').partition(':')[0])
            assert at <= number <= len(damaged), message


@pytest.mark.parametrize('text, words', [
    (b'', 'line 1: '), (b'\n', 'line 1: '), (b' \r\n\t', 'line 1: '), (b'0', 'no frame'), (b'0\n', 'no frame'),
    (b'2\n0\n0\n', 'no frame'), (b'3\r\n0\r\n0\r\n0\r\n', 'no frame'), (b'2\n0\n', 'line 2: '), (b'0\n0\n', 'line 2: '),
    (b'\x00', 'line 1: '), (b'\x89PNG\r\n\x1a\n\x00\x00', 'line 1: '), (b'PK\x03\x04\x14\x00', 'line 1: '),
    (b'\xef\xbb\xbf' + SMALL, 'line 1: '), (SMALL.decode().encode('utf-16'), 'line 1: '),
    (SMALL + b'1\n', 'line 85: '), (SMALL + b'\n\n0', 'line 85: '), (SMALL * 2, 'line 85: '),
    (SMALL.replace(b'\n', b'\r'), 'line 1: ')])
def test_files_of_another_kind(text, words):
    assert len(refusal(lambda: parse_skeleton(text), words)) < 200


@pytest.mark.parametrize('odd', [b'\x00', b'\x0b', b'\x0c', b'\x1a', b'\x1c', b'\x7f', b'\x85', b'\xa0', b'\xff'])
def test_bytes_that_are_no_plain_text(odd):
    """Some of them are white space to Python, also at the end, where white space is taken off."""
    lines = SMALL.split(b'\n')
    for line in (1, 2, 3, 40, 84):
        text = b'\n'.join([*lines[:line - 1], lines[line - 1] + odd, *lines[line:]])
        assert refusal(lambda text=text: parse_skeleton(text), 'plain text').startswith(f'line {line}: ')
    assert refusal(lambda: parse_skeleton(SMALL + b'\n' + odd + b'\n'), 'plain text').startswith('line 86: ')


def test_split_lines():
    assert split_lines(b'1\r\n\n 2\t\n\r\n\n') == ['1\r', '', ' 2'] and split_lines(b'') == ['']


def test_time_and_memory_are_bounded_by_the_text():
    """Counts that promise much cost nothing; one frame with very many bodies is followed in a single pass."""
    refusal(lambda: parse_skeleton(b'999999999\n' + b'0\n' * 50_000), 'line 50001: ')
    refusal(lambda: parse_skeleton(b'1\n999999999\n'), 'line 2: ')
    crowd = {f'{number}': joints_of(0) for number in range(2000)}
    got = parse_skeleton(skeleton([crowd]))
    assert got.frames == 1 and len(got.bodies) == 2000 and to_rows(got).shape == (1, 75)


# ---- fuzz

def recording(seed: int) -> bytes:
    """A few bodies that come and go for 3 to 20 frames, one of them now and then in pieces."""
    rng = np.random.default_rng([7, seed])
    count, frames = rng.integers(1, 4), rng.integers(3, 21)
    here = rng.random((frames, count)) < rng.choice([.7, .9, 1.])
    here[0, 0] = True
    return skeleton([{f'7205759403793{110 + body}': rng.normal(size=(25, 3)).round(int(rng.integers(1, 8)))
                      for body in range(count) if present[body]} for present in here])


TEXTS = [recording(seed) for seed in range(12)] + [SMALL, SMALL.replace(b'\n', b'\r\n')]
REAL_TEXTS = [path.read_bytes() for path in sorted(REAL.glob('*.skeleton'))[:3]]


def cut_of(text: bytes, frames: int) -> bytes:
    """The first frames of a real file of one person or two, as a whole file."""
    lines, at = text.split(b'\n'), 1
    for _ in range(frames):
        at += 1 + 27 * int(lines[at])
    return b'\n'.join([b'%d' % frames, *lines[1:at], b''])


ODD = [b' ', b'\n', b'\r', b'\r\n', b'\t', b'-', b'.', b'e', b'e9', b'e20', b'e37', b'e-45', b'0', b'9', b'25', b'x',
       b'1 2', b'\xff', b'nan', b'inf', b'\x00', b'\x0c', b'"', b'#', b',']
COUNTS = [b'', b'0', b'1', b'2', b'3', b'24', b'25', b'-1', b'99999', b'1 0 1 1 0 0 0 0 0 2']
NUMBERS = [b'0', b'-0', b'1e38', b'-3e38', b'3.5e38', b'1e19', b'-1e19', b'1e-40', b'5e5', b'-999999', b'1' * 300, b'.',
           b'nan']
KINDS = ['flip', 'replace', 'insert', 'delete', 'truncate', 'line', 'swap', 'lines', 'number', 'number']


def mutate(text: bytes, kind: str, seed: int) -> bytes:
    rng = random.Random(seed)
    at, odd = rng.randrange(len(text) + 1), rng.choice([*ODD, bytes([rng.randrange(256)])])
    if kind == 'flip':
        return text[:at] + bytes([text[min(at, len(text) - 1)] ^ (1 << rng.randrange(8))]) + text[at + 1:]
    if kind == 'replace':
        return text[:at] + odd + text[at + len(odd):]
    if kind == 'insert':
        return text[:at] + odd + text[at:]
    if kind == 'delete':
        return text[:at] + text[at + rng.choice([1, 1, 2, 30, 400]):]
    if kind == 'truncate':
        return text[:at]
    lines = text.split(b'\n')
    one, other = rng.randrange(len(lines)), rng.randrange(len(lines))
    if kind == 'line':      # one that decides what the following ones are, more often than not
        counts = [number for number, line in enumerate(lines) if len(line.split()) < 12]
        one = rng.choice(counts or [0])
        lines[one] = rng.choice([*COUNTS, odd, lines[other]])
    elif kind == 'swap':
        lines[one], lines[other] = lines[other], lines[one]
    elif kind == 'lines':
        one, other = sorted((one, other))
        lines[one:one] = lines[one:min(other, one + 60)]
    elif kind == 'number':
        fields = lines[one].split(b' ')
        fields[rng.randrange(min(3, len(fields)))] = rng.choice([*NUMBERS, odd])
        lines[one] = b' '.join(fields)
    return b'\n'.join(lines)


MUTATIONS = st.lists(st.tuples(st.sampled_from(KINDS), st.integers(0, 2 ** 32)), min_size=1, max_size=4)
FUZZ = settings(derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck))


def check_fuzzed(text: bytes) -> bool:
    """Whether the text gives rows, which then are sound; any end but rows or a UserError is a failure."""
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        try:
            got = parse_skeleton(text)
            rows = to_rows(got)
        except UserError as error:
            assert '\n' not in str(error) and 0 < len(str(error)) < 200
            return False
    assert rows.dtype == np.float32 and rows.ndim == 2 and rows.shape[1] in (75, 150) and len(rows)
    assert np.isfinite(rows).all()
    assert len(rows) <= got.frames and rows.nbytes <= len(text), 'a frame has a line of 12 fields for each of 25 joints'
    return True


@settings(FUZZ, max_examples=1000)
@example(len(TEXTS) - 2, [('truncate', 0)])
@given(st.integers(0, len(TEXTS) - 1), MUTATIONS)
def test_fuzz_generated(which, mutations):
    text = TEXTS[which]
    for kind, seed in mutations:
        text = mutate(text or b'1', kind, seed)
    check_fuzzed(text)


@pytest.mark.skipif(not REAL_TEXTS, reason='no data/ntu_raw in MAMP_SHARED')
@settings(FUZZ, max_examples=200)
@given(st.integers(0, 2), st.integers(1, 40), MUTATIONS)
def test_fuzz_real(which, frames, mutations):
    text = cut_of(REAL_TEXTS[which % len(REAL_TEXTS)], frames)
    for kind, seed in mutations:
        text = mutate(text or b'1', kind, seed)
    check_fuzzed(text)


@settings(FUZZ, max_examples=100)
@given(st.binary(max_size=60), st.lists(st.sampled_from([*COUNTS, b'1 2 3 4 5 6 7 8 9 10 11 12', b'x']), max_size=60))
def test_fuzz_made_of_pieces(some, lines):
    check_fuzzed(some)
    check_fuzzed(b'\n'.join(lines))


def test_the_fuzz_reaches_both_ends():
    """Mutations that only ever ended in an error would leave `to_rows` without a test."""
    ends = [check_fuzzed(mutate(TEXTS[seed % 12], kind, seed)) for seed in range(60) for kind in KINDS]
    assert 30 < sum(ends) < len(ends) - 30
