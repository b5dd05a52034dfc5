"""Files that are either the old one or the whole new one, whatever happens in between."""

import errno
import fcntl
import json
import math
import os
import platform
import re
import shutil
import stat
import time
import zipfile
from collections.abc import Iterable
from contextlib import contextmanager, suppress
from pathlib import Path

from util.errors import UserError

DAY = 24 * 3600         # seconds
PARTIAL = re.compile(r'\..+\.(?P<pid>\d+)@(?P<host>[^/]*)\.mamp-partial', re.DOTALL)
BOMB_BYTES, BOMB_RATIO = 1 << 30, 200   # zips that unpack to more, in bytes and in multiples of what they take


@contextmanager
def atomic_write(path: str | Path):
    """Yields a temporary path beside `path`; when the body ends well, it is synced and takes `path`'s name.

    When the body fails the temporary file is removed and `path` is what it was. An OSError of this file (disk full, no
    permission) becomes a UserError naming it; one of another file, which the body reads, stays what it is.
    """
    path = Path(path)
    if os.path.exists(path) and not os.path.isfile(path) and not os.path.isdir(path):   # a device, which would be gone
        raise UserError(f'{path}: is no file; give the name of one')
    partial, ours = partial_of(path), True
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        remove_leftovers(path.parent)
        partial.touch()
        with locked(partial):
            ours = False
            yield partial
            ours = True
            with open(partial, 'rb+') as file:
                os.fsync(file.fileno())
            os.replace(partial, path)
        _sync_folder(path.parent)
    except OSError as error:
        if not ours and not _write_failed(error, partial):
            raise
        raise UserError(f'{path}: cannot be written ({error.strerror or error}); free space or correct the '
                        'permissions; what was there before is untouched') from error
    finally:
        with suppress(OSError):
            partial.unlink()


def _sync_folder(folder: Path) -> None:
    """Brings the folder's names to the disk, so that a new one outlives a crash of the machine too."""
    with suppress(OSError):         # not every file system syncs folders; a folder may be written and not read
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def partial_of(path: Path) -> Path:
    """Where this process writes what is to become `path`: a hidden name beside it that tells process and machine."""
    return path.with_name(f'.{path.name}.{os.getpid()}@{platform.node()}.mamp-partial')


@contextmanager
def locked(path: Path):
    """Holds the lock of a file or folder, the sign that somebody writes there; nothing where there are no locks."""
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)


def remove_leftovers(folder: Path) -> None:
    """Removes partial files and folders in `folder` whose writers were killed.

    One goes when its lock is free and it was made on this machine by a process that is gone; or, wherever it was made,
    when its lock is free and it has not changed for a day: what runs on other machines nobody can tell, nor does every
    file system tell of their locks. Where one has no locks at all, everything stays.
    """
    found = []
    with suppress(OSError):         # a folder that may be written and not read
        found = [named for name in os.listdir(folder) if (named := PARTIAL.fullmatch(name))]
    for named in found:
        with suppress(OSError):     # locked, gone meanwhile, or not ours to remove
            _remove_if_left(folder / named[0], named['host'] == platform.node() and not _runs(int(named['pid'])))


def _remove_if_left(path: Path, orphaned: bool) -> None:
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if orphaned or time.time() - os.fstat(descriptor).st_ctime > DAY:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    finally:
        os.close(descriptor)


def _runs(pid: int) -> bool:
    """Whether there is such a process on this machine, anybody's."""
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass
    return True


def to_json(content, indent: int | None = None) -> str:
    """`content`, of maps, lists and plain values, as JSON, where numbers that are not finite are null."""
    def finite(value):
        if isinstance(value, dict):
            return {key: finite(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [finite(item) for item in value]
        return None if isinstance(value, float) and not math.isfinite(value) else value
    return json.dumps(finite(content), indent=indent, allow_nan=False)


def write_json(path: str | Path, content) -> None:
    """`content` as indented JSON, atomically; see `to_json`."""
    with atomic_write(path) as partial:
        partial.write_text(to_json(content, indent=2) + '\n')


def _write_failed(error: OSError, partial: Path) -> bool:
    """Whether it was the file being written, and not another that is read meanwhile; a write's error has no name."""
    if error.filename is None:
        return error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
    return str(partial) in (os.fsdecode(error.filename), os.fsdecode(error.filename2 or b''))


def check_writable(folder: str | Path) -> None:
    """UserError when `folder` is something else or could not be made or written; nothing is made."""
    folder = Path(folder)
    try:
        there = next(place for place in (folder, *folder.absolute().parents) if place.exists())
        fault = 'is not a folder' if not there.is_dir() else 'may not be written'
        if there.is_dir() and os.access(there, os.W_OK | os.X_OK):
            return
    except OSError as error:        # a name too long, a folder that may not be looked into
        there, fault = folder, error.strerror
    raise UserError(f'{folder}: cannot be written ({there} {fault}); give another place, or correct the permissions')


def check_outputs(outputs: Iterable[tuple[str, str | Path]], inputs: Iterable[str | Path] = ()) -> None:
    """UserError for a file to write, (option, path), that is a folder, a device, an input or another of them."""
    taken = {os.path.realpath(path): f'{path}, which is read' for path in inputs}
    for option, path in outputs:
        path = Path(path)
        check_writable(path.parent)
        if os.path.isdir(path) or not path.name:
            raise UserError(f'{option} {path}: is a folder; give the name of a file')
        if os.path.exists(path) and not os.path.isfile(path):
            raise UserError(f'{option} {path}: is no file; give the name of one')
        if place := taken.get(os.path.realpath(path)):
            raise UserError(f'{option} {path}: is {place}; give a file of its own')
        taken[os.path.realpath(path)] = f'{option} {path} too'


def check_zip(path: str | Path, archive: zipfile.ZipFile) -> None:
    """UserError for a zip with names that lead out of it, links, or contents far larger than it is itself."""
    members, size = archive.infolist(), Path(path).stat().st_size
    for member in members:
        name = member.filename.replace('\\', '/')
        if name.startswith('/') or name[1:2] == ':' or '..' in name.split('/'):
            raise UserError(f'{path}: refused, its member {member.filename!r:.80} leads out of the archive; get the '
                            'file from a source you trust')
        if stat.S_ISLNK(member.external_attr >> 16):
            raise UserError(f'{path}: refused, its member {member.filename!r:.80} is a link; pack the file itself')
    parts = [(member.file_size, member.compress_size) for member in members]
    for unpacked, packed in (*parts, (sum(one for one, _ in parts), size)):
        if unpacked > BOMB_BYTES and unpacked > BOMB_RATIO * packed:
            raise UserError(f'{path}: refused, {packed:,} bytes of it would unpack to {unpacked:,}; get the file from '
                            'a source you trust, or pack it without compression')
