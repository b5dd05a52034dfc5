"""Raw files for tests of the preparations, and ways to run these."""

import os
import tarfile
import zipfile
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from tests.conftest import ROOT
from util.errors import run_main

SHARED = Path(os.environ.get('MAMP_SHARED', ROOT / '../shared'))
GOLDEN = ROOT / 'tests/golden'
MEMBERS = ['x_train', 'y_train', 'x_test', 'y_test', 'name_train', 'name_test']
BODY = '0 1 1 0 0 -0.5 0.02764709 0.05745083 2'
OTHER_FIELDS = '277.419 191.8218 1036.233 519.1677 -0.2059419 0.05349901 0.9692109 -0.1239193 2'     # after x y z
FUZZING = settings(derandomize=True, deadline=None, database=None, max_examples=300,
                   suppress_health_check=list(HealthCheck))
PIECES = [b'', b'\n', b'\r', b'\r\n', b' ', b'\t', b'\x00', b'\x0c', b'\xff\xfe', '１'.encode(), b'#', b'"', b',', b'-',
          b'nan', b'-Infinity', b'1e99', b'e37', b'-1.1e6', b'9.9e5', b'1e-999', b'1_0', b'0x1', b'9' * 400, b'abc',
          b'25', b' 0.5', b'0 ' * 150, b'.5', b'+3.', b'7', b'0.1E+1']
# For `damage`: kind of change, place (0 to 1) and piece of text.
CHANGES = st.lists(st.tuples(st.sampled_from(['insert', 'delete', 'cut', 'line', 'token', 'token', 'end']),
                             st.floats(0, 1), st.sampled_from(PIECES)), min_size=1, max_size=3)


def damage(text: bytes, changes: list[tuple[str, float, bytes]]) -> bytes:
    for kind, place, piece in changes:
        at = int(place * len(text))
        line, line_end = text.rfind(b'\n', 0, at) + 1, text.find(b'\n', at) % (len(text) + 1)
        start = max(text.rfind(b' ', 0, at) + 1, line)
        stop = next((i for i in range(at, len(text)) if text[i:i + 1] in b' \n'), len(text))
        text = {'insert': text[:at] + piece + text[at:], 'delete': text[:at] + text[at + 1 + len(piece) * 7:],
                'cut': text[:at], 'line': text[:line_end] + text[line:], 'token': text[:start] + piece + text[stop:],
                'end': text + piece}[kind]
    return text


def needs(path: str):
    """Skip a test where MAMP_SHARED has no such file."""
    return pytest.mark.skipif(not (SHARED / path).exists(), reason=f'no {path} in MAMP_SHARED')


def random_joints(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(25, 3)).astype(np.float32)


def skeleton(frames: list[dict]) -> bytes:
    """A `.skeleton` file of frames {id: joints (25, 3)}."""
    lines = [f'{len(frames)}']
    for frame in frames:
        lines.append(f'{len(frame)}')
        for body, joints in frame.items():
            lines += [f'{body} {BODY}', f'{len(joints)}']
            lines += [f'{x:.9g} {y:.9g} {z:.9g} {OTHER_FIELDS}' for x, y, z in np.float32(joints).tolist()]
    return '\n'.join([*lines, '']).encode()


def replace_line(text: bytes, number: int, line: bytes) -> bytes:
    """`text` with another line of this number, counted from 1."""
    lines = text.split(b'\n')
    lines[number - 1] = line
    return b'\n'.join(lines)


def write_files(folder: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def write_zip(path: Path, folder: Path) -> Path:
    """Pack a folder as releases do: in no order, with what macOS adds."""
    with zipfile.ZipFile(path, 'w', zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(folder.iterdir(), key=lambda file: sha256(file.name.encode()).digest()):
            archive.write(file, f'nturgb+d_skeletons/{file.name}')
            archive.writestr(f'__MACOSX/nturgb+d_skeletons/._{file.name}', b'\x00\x05\x16\x07')
    return path


def unpack(path: Path | str, folder: Path) -> Path:
    """Unpack a tar, by default of tests/golden."""
    with tarfile.open(GOLDEN / path) as archive:
        archive.extractall(folder, filter='data')
    return folder


def read_npz(path: Path) -> dict[str, np.ndarray]:
    with np.load(path, allow_pickle=False) as npz:
        return dict(npz)


def read_folder(path: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in path.iterdir() if file.is_file()} if path.is_dir() else {}


def run_command(module, *argv) -> int:
    """Exit code of a command, run in this process."""
    with pytest.raises(SystemExit) as end:
        run_main(lambda: module.main([str(argument) for argument in argv]))
    return end.value.code


def assert_refused(capsys, out: Path, module, *argv, parts=(), damaged: int = 0) -> list[str]:
    """Check that a command ends with 2 and one line of error after the damaged ones, and changes nothing in `out`."""
    before = read_folder(out)
    capsys.readouterr()
    assert run_command(module, *argv) == 2
    printed = capsys.readouterr()
    lines = printed.err.splitlines()
    assert printed.out == '' and [line.split(': ')[0] for line in lines] == ['damaged'] * damaged + ['error'], printed
    assert all(str(part) in printed.err for part in parts), printed.err
    assert read_folder(out) == before
    return lines


def assert_equal(members: dict, expected: dict) -> None:
    """Check that members are equal: names and their order, types, shapes, every bit."""
    assert list(members) == list(expected)
    for name, array in expected.items():
        assert (members[name].dtype, members[name].shape) == (array.dtype, array.shape), name
        assert members[name].tobytes() == array.tobytes(), name
