"""Files that are either the old one or the whole new one, whatever happens in between."""

import json
import os
import stat
import zipfile
from contextlib import contextmanager, suppress
from pathlib import Path

from util.errors import UserError

BOMB_BYTES, BOMB_RATIO = 1 << 30, 200   # zips that unpack to more, in bytes and in multiples of what they take


@contextmanager
def replacing(path: str | Path):
    """Yields a temporary path beside `path`; when the body ends well, it is synced and takes `path`'s name.

    When the body fails the temporary file is removed and `path` is what it was. An OSError (disk full, no permission)
    becomes a UserError naming the file.
    """
    path = Path(path)
    partial = path.with_name(f'.{path.name}.{os.getpid()}.tmp')
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield partial
        with open(partial, 'rb+') as file:
            os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError as error:
        raise UserError(f'{path}: cannot be written ({error.strerror or error}); free space or correct the '
                        'permissions; what was there before is untouched') from error
    finally:
        with suppress(OSError):
            partial.unlink()


def write_json(path: str | Path, content) -> None:
    """`content` as indented JSON, atomically."""
    with replacing(path) as partial:
        partial.write_text(json.dumps(content, indent=2, allow_nan=False) + '\n')


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


def check_members(path: str | Path, archive: zipfile.ZipFile) -> None:
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
