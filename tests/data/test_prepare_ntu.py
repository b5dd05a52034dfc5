"""Preparation of NTU RGB+D 60 and 120 as a command: its arrays, their order, and its errors."""

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest

from data import prepare_ntu
from data.datasets import DATASETS
from data.ntu_text import parse_name
from data.prepare_ntu import default_raw, order, read_unusable
from tests.conftest import ROOT, refusal
from tests.data.raw_files import (
    GOLDEN,
    MEMBERS,
    SHARED,
    assert_equal,
    assert_refused,
    needs,
    random_joints,
    read_folder,
    read_npz,
    replace_line,
    run_command,
    skeleton,
    unpack,
    write_files,
    write_zip,
)
from tests.data.test_datasets import TRAIN

FILES = {'ntu60': ['NTU60_XSub.npz', 'NTU60_XView.npz'], 'ntu120': ['NTU120_XSub.npz', 'NTU120_XSet.npz']}
DIGITS = {'XSub': slice(9, 12), 'XView': slice(5, 8), 'XSet': slice(1, 4), 'OneShot': slice(17, 20)}   # that decide
NAMES = ['S001C001P001R001A001', 'S002C002P003R001A002', 'S003C003P002R002A060', 'S017C001P040R001A050',
         'S001C001P001R002A001']


def prepare(raw, out, *more, dataset='ntu60', workers=1):
    return run_command(prepare_ntu, '--dataset', dataset, '--raw', raw, '--out', out, '--workers', workers, *more)


def file_text(number, frames=2):
    return skeleton([{'7': random_joints(100 * number + t)} for t in range(frames)])


def write_raw(folder, texts):
    return write_files(folder, {f'{name}.skeleton': text for name, text in texts.items()})


@pytest.fixture
def raw(tmp_path):
    """Five samples of 2 to 6 frames, of NTU-60."""
    return write_raw(tmp_path / 'raw', {name: file_text(number, number + 2) for number, name in enumerate(NAMES)})


def split_names(file, names):
    """The names of both parts of a protocol, in order, by loops over its training values and all others."""
    values = {name: int(name[DIGITS[file.split('_')[1]]]) for name in names}
    return [[name for value in order for name in sorted(names) if values[name] == value]
            for order in (TRAIN[file], [value for value in range(1, 200) if value not in TRAIN[file]])]


@needs('golden/ntu60_raw.tar.xz')
@pytest.mark.parametrize('dataset', FILES)
def test_golden(dataset, tmp_path, capsys):
    """Every member to the last bit, type and order, with one worker and two, from a folder, zips and a tar."""
    tar = SHARED / f'golden/{dataset}_raw.tar.xz'
    folder = next(unpack(tar, tmp_path / 'raw').iterdir())
    assert prepare(folder, tmp_path / 'one', dataset=dataset) == 0
    printed = capsys.readouterr()
    assert printed.err == '' and '40 samples of' in printed.out and '0 damaged\n' in printed.out
    expected = read_npz(SHARED / f'golden/{dataset}_expected.npz')
    assert sorted(read_folder(tmp_path / 'one')) == sorted(FILES[dataset])
    usable = [name for name in {path.stem for path in folder.iterdir()} - read_unusable()
              if int(name[1:4]) <= DATASETS[dataset].setups]
    for file in FILES[dataset]:
        members = read_npz(tmp_path / 'one' / file)
        names = [members.pop(f'name_{split}').tolist() for split in ('train', 'test')]
        assert_equal(members, {member: expected[f'{file[:-4]}/{member}'] for member in MEMBERS[:4]})
        assert names == split_names(file[:-4], usable)

    for number, (raws, workers) in enumerate(((folder, 2), (write_zip(tmp_path / 'raw.zip', folder), 2), (tar, 1))):
        assert prepare(raws, tmp_path / f'{number}', dataset=dataset, workers=workers) == 0
        assert read_folder(tmp_path / f'{number}') == read_folder(tmp_path / 'one')


@pytest.mark.parametrize('dataset', FILES)
def test_golden_excerpt(dataset, tmp_path):
    """The authors' arrays in a clone without MAMP_SHARED, as SHA-256 of their bytes."""
    sums = json.loads((GOLDEN / 'ntu_excerpt_sha256.json').read_text())
    folder = unpack('ntu_excerpt_raw.tar.xz', tmp_path) / dataset
    assert prepare(folder, tmp_path / 'out', dataset=dataset) == 0
    for file in FILES[dataset]:
        members = read_npz(tmp_path / 'out' / file)
        names = split_names(file[:-4], [path.stem for path in folder.iterdir()])
        assert list(members) == MEMBERS and [members[name].tolist() for name in MEMBERS[4:]] == names
        assert (members['x_train'].dtype, members['y_train'].dtype) == (np.float32, np.float64)
        assert members['x_train'].shape[2] == 150 and members['y_train'].shape[1] == DATASETS[dataset].classes
        assert {member: sha256(members[member].tobytes()).hexdigest() for member in MEMBERS[:4]} == sums[file[:-4]]


def test_order_of_random_names():
    rng = np.random.default_rng(1)
    names = sorted({'S{:03}C{:03}P{:03}R{:03}A{:03}'.format(*rng.integers(1, (33, 4, 107, 3, 121)))
                    for _ in range(2000)})
    names = rng.permutation(names).tolist()
    for protocol in (*DATASETS['ntu60'].protocols.values(), *DATASETS['ntu120'].protocols.values()):
        assert [[names[i] for i in part] for part in order(names, protocol)] == split_names(protocol.file, names)


def test_unusable_samples_and_later_setups_are_left_out(raw, tmp_path, capsys):
    names = read_unusable()
    assert len(names) == 535 and sum(parse_name(name).setup <= 17 for name in names) == 302
    write_raw(raw, dict.fromkeys([min(names), max(names), 'S018C001P001R001A001', 'S032C003P106R002A120'], b'damaged'))
    assert prepare(raw, tmp_path / 'out') == 0
    printed = capsys.readouterr().out
    assert '2 omitted: of a setup after 17\n2 omitted: on the list of unusable skeletons\n' in printed
    other = write_raw(tmp_path / 'other', {'S018C001P001R001A001': file_text(1)})
    refused(capsys, other, tmp_path / 'out', 'no sample to write')


def test_protocols_are_padded_to_the_longest_sample_of_the_set(raw, tmp_path):
    write_raw(raw, {'S018C001P001R001A001': file_text(1, 50), 'S001C002P005R001A009': file_text(1, 9)})
    assert prepare(raw, tmp_path / 'out', '--protocol', 'xview') == 0
    members = read_npz(tmp_path / 'out/NTU60_XView.npz')
    assert members['x_train'].shape == (3, 9, 150) and members['x_test'].shape == (3, 9, 150)
    assert prepare(raw, tmp_path / 'one_shot', '--protocol', 'oneshot', dataset='ntu120') == 0
    members = read_npz(tmp_path / 'one_shot/NTU120_OneShot.npz')
    assert {name[-3:] for name in members['name_test'].tolist()} == {'001'} and members['y_train'].shape[1] == 120


def test_default_folders(raw, tmp_path, monkeypatch):
    monkeypatch.setattr(prepare_ntu, 'HERE', tmp_path)
    refusal(lambda: prepare_ntu.main(['--dataset', 'ntu60']), tmp_path, 'nturgb+d_skeletons', '--raw')
    folder, zipped = tmp_path / 'nturgbd_raw/nturgb+d_skeletons', 'nturgbd_skeletons_s018_to_s032.zip'
    folder.parent.mkdir()
    raw.rename(folder)
    assert prepare_ntu.main(['--dataset', 'ntu60', '--workers', '1']) == 0
    assert sorted(read_folder(tmp_path / 'ntu')) == FILES['ntu60']
    folder.with_name(zipped).mkdir()
    assert default_raw(DATASETS['ntu120']) == [folder, folder.with_name(zipped)]


def refused(capsys, raw, out, *parts, damaged=0, workers=1):
    write_files(out, dict.fromkeys(FILES['ntu60'], b'old'))
    return assert_refused(capsys, out, prepare_ntu, '--dataset', 'ntu60', '--raw', raw, '--out', out, '--workers',
                          workers, parts=parts, damaged=damaged)


def test_names_that_do_not_belong_to_the_dataset(raw, tmp_path, capsys):
    write_raw(raw, {'S001C001P001R001A001 (1)': file_text(5), 'S001C001P001R001A061': file_text(5)})
    refused(capsys, raw, tmp_path / 'out', "(1)' is not a sample name", 'A061.skeleton: action 61', damaged=2)


@pytest.mark.parametrize('workers', [1, 2])
def test_damaged_files_are_listed_and_stop_the_run_or_are_skipped(workers, raw, tmp_path, capsys):
    rest, out, path = tmp_path / 'rest', tmp_path / 'out', tmp_path / 'out/ntu60_damaged.txt'
    rest.mkdir()
    for name in NAMES[1:2] + NAMES[3:]:
        shutil.copy(raw / f'{name}.skeleton', rest)
    assert prepare(rest, tmp_path / 'expected') == 0
    write_raw(raw, {NAMES[0]: replace_line(file_text(0), 7, b'1 2 3'), NAMES[2]: file_text(2)[:-300],
                    'S001C001P009R001A001': b'0\n'})
    lines = refused(capsys, raw, out, '3 damaged, nothing written', '--skip_damaged', path, damaged=3, workers=workers)
    for line, part in zip(lines, ("line 7: '1 2 3' is not a joint", 'no frame has a body', 'line 55: '), strict=False):
        assert line.startswith(f'damaged: {raw}/S00') and f'.skeleton: {part}' in line
    assert prepare(raw, out, '--skip_damaged', workers=workers) == 0
    written = read_folder(out)
    assert [f'damaged: {line}' for line in written.pop(path.name).decode().splitlines()] == lines[:3]
    assert written == read_folder(tmp_path / 'expected')
    assert prepare(rest, out) == 0 and not path.exists(), 'an outdated list is removed'


def test_a_full_disk(tmp_path, capsys):
    """While samples are spooled, and at any point of the dataset file; a limit on the size of files stands for it."""
    raw = write_raw(tmp_path / 'raw', {f'S001C001P{number:03}R001A009': file_text(number, 12)
                                       for number in range(1, 9)})
    assert prepare(raw, tmp_path / 'whole') == 0
    size = len(read_folder(tmp_path / 'whole')['NTU60_XSub.npz'])
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    for limit, part in ((100, 'until all are parsed'), (size - 1, 'NTU60_XSub.npz')):
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limits[1]))
        try:
            refused(capsys, raw, tmp_path / 'out', tmp_path / 'out', part, 'cannot be written (File too large)')
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)


# Runs the command with a slow parser; the first argument is a file that is created when parsing has begun.
SLOW = """
import pathlib, sys, time
from data import prepare_ntu
from util.errors import run_main
def parse(source, parse=prepare_ntu.parse):
    pathlib.Path(sys.argv[1]).touch()
    time.sleep(.05)
    return parse(source)
prepare_ntu.parse = parse
run_main(lambda: prepare_ntu.main(sys.argv[2:]))
"""


@pytest.mark.skipif(not Path('/proc/self/stat').exists(), reason='finds the worker processes in /proc')
@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGKILL])
def test_interrupted_and_killed(number, tmp_path):
    """Old files stay, workers end. Ctrl-C reaches all processes of a terminal, SIGKILL the first one only."""
    raw = write_raw(tmp_path / 'raw', {f'S001C001P001R001A{action:03}': file_text(action) for action in range(1, 61)})
    out = write_files(tmp_path / 'out', {'NTU60_XSub.npz': b'old'})
    command = [sys.executable, '-c', SLOW, tmp_path / 'begun', '--dataset', 'ntu60', '--raw', raw, '--out', out,
               '--workers', '2']
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                               start_new_session=True, env=os.environ | {'OMP_NUM_THREADS': '1'},
                               preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler))
    children = Path(f'/proc/{process.pid}/task/{process.pid}/children')
    wait_for(lambda: (tmp_path / 'begun').exists() and len(children.read_text().split()) == 2)
    workers = children.read_text().split()
    (os.killpg if number == signal.SIGINT else os.kill)(process.pid, number)
    printed = process.communicate(timeout=60)
    assert (process.returncode, *printed) == ((130, '', 'interrupted\n') if number == signal.SIGINT else (-9, '', ''))
    wait_for(lambda: not any(is_running(worker) for worker in workers))
    assert read_folder(out) == {'NTU60_XSub.npz': b'old'}


def wait_for(condition):
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(.01)


def is_running(pid):
    try:
        return Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()[0] not in 'ZX'
    except OSError:
        return False
