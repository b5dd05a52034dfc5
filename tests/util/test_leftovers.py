"""Partial files of writers that were killed go with the next write in their folder, those of the living never."""

import errno
import fcntl
import os
import platform
import subprocess
import time
from contextlib import contextmanager

import pytest

from data.synthesize import whole_folder
from tests.conftest import ROOT, run
from tests.util.test_reliability import start, until
from util import checkpoint, files
from util.checkpoint import LAST, PREVIOUS

# Each ends in a kill -9 of itself, when what it wrote is about to get its name.
DIE = 'import os, signal, sys; os.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL); folder = sys.argv[1]; '
WRITERS = {
    'JSON': 'from util.files import write_json; write_json(folder + "/result.json", {})',
    'a checkpoint': 'from util.checkpoint import save; save(folder + "/c.pth", {"model": {}})',
    'one that is kept': 'from util.checkpoint import keep; open(folder + "/a.pth", "w").close(); '
                        'import util.checkpoint as c; c._note = lambda *_: None; keep(folder + "/a.pth", "b.pth")',
    'npz': 'import numpy as np; from data.common import write_npz; write_npz(folder + "/f.npz", a=np.ones(3))',
    'a folder': 'from data.synthesize import main; main(["--out", folder + "/set", "--clips_per_class", "3", '
                '"--classes", "2", "--workers", "1"])',
    'an unpacked member': 'import numpy as np; from feeder.npz import open_member; '
                          'np.savez_compressed(folder + "/f.npz", a=np.ones(3)); open_member(folder + "/f.npz", "a")',
}


def partials(folder) -> list:
    return sorted(path for path in folder.iterdir() if path.name.endswith('.mamp-partial'))


@pytest.mark.parametrize('writer', WRITERS)
def test_what_a_killed_writer_left_goes_with_the_next_write(writer, tmp_path):
    assert run('-c', DIE + WRITERS[writer], str(tmp_path)).returncode == -9
    assert partials(tmp_path)
    files.write_json(tmp_path / 'other.json', {})
    assert partials(tmp_path) == []


def test_a_run_killed_in_the_middle_of_a_checkpoint_tidies_up_when_it_goes_on(tiny_pretrain, tmp_path):
    options = [*tiny_pretrain, '--output_dir', str(tmp_path), '--resume', 'auto']
    half = ('import os, signal, sys, torch, main_pretrain\n'
            'def half(content, path, real=torch.save):\n'
            '    real(content, path)\n'
            '    os.truncate(path, os.path.getsize(path) // 2)\n'
            '    if content["epoch"] == 1:\n'
            '        os.kill(os.getpid(), signal.SIGKILL)\n'
            '    real(content, path)\n'
            'torch.save = half\n'
            'main_pretrain.main(sys.argv[1:])')
    assert run('-c', half, *options).returncode == -9
    (left,) = partials(tmp_path)
    assert left.stat().st_size > 0
    assert run('main_pretrain.py', *options).returncode == 0
    assert partials(tmp_path) == [] and checkpoint.load(tmp_path / LAST)['epoch'] == 1


WRITING = ('import sys, time\nfrom pathlib import Path\nfrom util.files import replacing\n'
           'with atomic_write(sys.argv[1]) as partial:\n'
           '    partial.write_text("new")\n'
           '    while not Path(sys.argv[2]).exists():\n'
           '        time.sleep(.02)\n')


def test_what_a_living_process_writes_stays(tmp_path):
    folder, go = tmp_path / 'folder', tmp_path / 'go'
    process = start('-c', WRITING, str(folder / 'a'), str(go))
    try:
        until(lambda: folder.exists() and any(path.read_text() for path in partials(folder)), process)
        files.write_json(folder / 'other.json', {})
        assert len(partials(folder)) == 1
        go.touch()
        assert process.wait(timeout=60) == 0
    finally:
        process.kill()
    assert (folder / 'a').read_text() == 'new' and partials(folder) == []


@pytest.mark.parametrize('writer', [files.atomic_write, whole_folder])
def test_a_writer_holds_the_lock(writer, tmp_path):
    with writer(tmp_path / 'a') as partial:
        descriptor = os.open(partial, os.O_RDONLY)
        with pytest.raises(BlockingIOError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.close(descriptor)


def gone() -> int:
    """Number of a process that has ended."""
    process = subprocess.Popen(['true'], cwd=ROOT)
    process.wait()
    return process.pid


def left_by(folder, pid: int, host: str):
    path = folder / f'.a.pth.{pid}@{host}.mamp-partial'
    path.write_text('half')
    return path


@contextmanager
def held(path):
    with open(path, 'rb+') as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def test_who_is_taken_for_gone(tmp_path):
    """A process of this machine that is none any more; not one of another, nor one that merely is not seen here."""
    here = platform.node()
    dead, alive = left_by(tmp_path, gone(), here), left_by(tmp_path, 1, here)
    other = left_by(tmp_path, gone(), f'not-{here}')
    unseen = left_by(tmp_path, gone(), here)        # of a container say, that has its own numbers
    with held(unseen):
        files.remove_leftovers(tmp_path)
        assert partials(tmp_path) == sorted([other, alive, unseen]) and not dead.exists()
    files.remove_leftovers(tmp_path)
    assert partials(tmp_path) == sorted([other, alive])


def test_after_a_day_whoever_made_it_is_taken_for_gone_unless_it_holds_the_lock(tmp_path, monkeypatch):
    other, writing = left_by(tmp_path, 1, 'elsewhere'), left_by(tmp_path, 2, 'elsewhere')
    now = time.time()
    with held(writing):
        for hours, expected in ((23, [other, writing]), (25, [writing])):
            monkeypatch.setattr(time, 'time', lambda hours=hours: now + 3600 * hours)
            files.remove_leftovers(tmp_path)
            assert partials(tmp_path) == sorted(expected)


def test_names_that_are_not_ours_stay(tmp_path, monkeypatch):
    monkeypatch.setattr(files, 'DAY', -1.)
    names = ['.a.pth.123.tmp', 'a.pth.1@b.mamp-partial', '.1@b.mamp-partial', '.a.x@b.mamp-partial', '.a.1@b.mamp-part']
    for name in names:
        (tmp_path / name).write_text('mine')
    files.write_json(tmp_path / 'other.json', {})
    assert sorted(os.listdir(tmp_path)) == sorted([*names, 'other.json'])


def test_without_locks_files_are_written_and_nothing_is_removed(tmp_path, monkeypatch):
    dead = left_by(tmp_path, gone(), platform.node())

    def no_locks(*_):
        raise OSError(errno.ENOLCK, 'No locks available')
    monkeypatch.setattr(fcntl, 'flock', no_locks)
    files.write_json(tmp_path / 'other.json', {})
    assert (tmp_path / 'other.json').exists() and dead.exists()


def test_a_link_left_between_two_checkpoints_takes_neither_with_it(tmp_path):
    checkpoint.save(tmp_path / LAST, {'model': {}, 'epoch': 0})
    os.link(tmp_path / LAST, tmp_path / f'.{PREVIOUS}.{gone()}@{platform.node()}.mamp-partial')
    before = (tmp_path / LAST).read_bytes()
    files.remove_leftovers(tmp_path)
    assert (tmp_path / LAST).read_bytes() == before and partials(tmp_path) == []
