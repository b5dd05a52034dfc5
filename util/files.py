"""Files: atomic writes, JSON and YAML of plain values, and checks of paths and archives."""

import errno
import json
import math
import os
import stat
import zipfile
from collections.abc import Iterable
from contextlib import contextmanager, suppress
from pathlib import Path
from types import UnionType
from typing import get_args, get_origin

import yaml

from util.errors import UserError, one_line, quote

MAX_NUMBER = 1e30      # larger ones are a sign of damage
MAX_ZIP_BYTES, MAX_ZIP_RATIO = 1 << 30, 200     # archives that exceed both when unpacked are refused


@contextmanager
def atomic_write(path: str | Path):
    """Yield a temporary path beside `path`; at the end of the block it is synced to disk and renamed to `path`.

    If the block raises, `path` stays unchanged. Raises UserError if the file cannot be written.
    """
    path = Path(path)
    if path.exists() and not path.is_file() and not path.is_dir():      # renaming would replace a device
        raise UserError(f'{path}: not a regular file; choose another name')
    partial = path.with_name(f'.{path.name}.partial')       # fixed: the next write replaces it after a kill
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.touch()
        yield partial
        with open(partial, 'rb+') as file:
            os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError as error:
        if not _is_write_error(error, partial):     # an error in reading another file inside the block
            raise
        raise UserError(f'{path}: cannot be written ({error.strerror or error}); free up disk space or correct the '
                        'permissions; an earlier file of this name is unchanged') from error
    finally:
        with suppress(OSError):
            partial.unlink()


def _is_write_error(error: OSError, partial: Path) -> bool:
    """Return True if `error` concerns the file being written; errors of write() have no file name."""
    if error.filename is None:
        return error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO)
    names = {os.fsdecode(name) for name in (error.filename, error.filename2) if name is not None}
    return bool(names & {str(partial), str(partial.parent)})


def to_json(content, indent: int | None = None) -> str:
    """Convert maps, lists and plain values to JSON; numbers that are not finite become null."""
    def finite(value):
        if isinstance(value, dict):
            return {key: finite(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [finite(item) for item in value]
        return None if isinstance(value, float) and not math.isfinite(value) else value
    return json.dumps(finite(content), indent=indent, allow_nan=False)


def write_text(path: str | Path, text: str) -> None:
    """Write a UTF-8 text file atomically; raises as `atomic_write` does."""
    with atomic_write(path) as partial:
        partial.write_text(text, encoding='utf-8', errors='backslashreplace')


def write_json(path: str | Path, content) -> None:
    """Write indented JSON atomically; see `to_json`."""
    write_text(path, to_json(content, indent=2) + '\n')


def read_text(path: str | Path, remedy: str) -> str:
    """Read a UTF-8 text file; raises UserError, with `remedy` at the end, if this fails."""
    try:
        return Path(path).read_text(encoding='utf-8')
    except (OSError, ValueError) as error:
        raise UserError(f'{path}: cannot be read ({getattr(error, "strerror", error)}); {remedy}') from error


def read_json(path: str | Path, remedy: str, lines: bool = False):
    """Read a JSON file, or the list of values in a file with one value per line; raises as `read_text` does."""
    text = read_text(path, remedy)
    try:
        return [json.loads(line) for line in text.splitlines()] if lines else json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f'{path}: not valid JSON ({one_line(error)}); {remedy}') from error


class _YamlError(yaml.YAMLError):
    """Valid YAML that is not accepted in settings."""


class _YamlLoader(yaml.SafeLoader):
    """YAML of plain values without duplicate keys or aliases (a few nested aliases can expand to gigabytes)."""

    def compose_node(self, parent, index):
        if self.check_event(yaml.AliasEvent):
            event = self.peek_event()
            raise _YamlError(f'line {event.start_mark.line + 1}: aliases (*{event.anchor}) are not supported; write '
                             'the values out')
        return super().compose_node(parent, index)

    def construct_mapping(self, node, deep=False):
        keys = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in keys:
                raise _YamlError(f'line {key.start_mark.line + 1}: duplicate key {quote(key.value)}; keep one')
            keys.add(key.value if isinstance(key, yaml.ScalarNode) else None)
        return super().construct_mapping(node, deep)


def read_yaml(path: str | Path, content_name: str, remedy: str) -> dict:
    """Read a YAML map of plain values.

    Raises UserError for a missing file, invalid YAML or another type; `content_name` and `remedy` complete its message.
    """
    text = read_text(path, remedy)
    try:
        content = yaml.load(text, _YamlLoader)
    except _YamlError as error:
        raise UserError(f'{path}: {error}') from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UserError(f'{path}: not valid YAML ({one_line(error)}); correct it') from error
    if not isinstance(content, dict):
        raise UserError(f'{path}: must be a mapping of {content_name}; correct it')
    return content


def check_writable(folder: str | Path) -> None:
    """Raise UserError if `folder` cannot be created or is not writable; nothing is created."""
    folder = Path(folder)
    try:
        existing = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
        reason = 'is not a folder' if not existing.is_dir() else 'is not writable'
        if existing.is_dir() and os.access(existing, os.W_OK | os.X_OK):
            return
    except OSError as error:
        existing, reason = folder, error.strerror
    raise UserError(f'{folder}: cannot be written ({existing} {reason}); choose another folder or correct the '
                    'permissions')


def check_outputs(outputs: Iterable[tuple[str, str | Path]], inputs: Iterable[str | Path] = ()) -> None:
    """Raise UserError for an output (option, path) that is a folder, a device, an input or another output."""
    taken = {os.path.realpath(path): f'an input ({path})' for path in inputs}
    for option, path in outputs:
        path = Path(path)
        check_writable(path.parent)
        if path.is_dir() or not path.name:
            raise UserError(f'{option} {path}: is a folder; specify a file name')
        if path.exists() and not path.is_file():
            raise UserError(f'{option} {path}: not a regular file; choose another name')
        if use := taken.get(os.path.realpath(path)):
            raise UserError(f'{option} {path}: is also {use}; choose another file name')
        taken[os.path.realpath(path)] = f'the file of {option}'


def check_zip(path: str | Path, archive: zipfile.ZipFile) -> None:
    """Raise UserError for a zip with absolute or parent paths, links, or far more content than its size."""
    members, size = archive.infolist(), Path(path).stat().st_size
    for member in members:
        name = member.filename.replace('\\', '/')
        if name.startswith('/') or name[1:2] == ':' or '..' in name.split('/'):
            raise UserError(f'{path}: refused, its member {member.filename!r:.80} would be written outside the '
                            'folder; get the file from a source you trust')
        if stat.S_ISLNK(member.external_attr >> 16):
            raise UserError(f'{path}: refused, its member {member.filename!r:.80} is a link; pack the file itself')
    sizes = [(member.file_size, member.compress_size) for member in members]
    for unpacked, packed in (*sizes, (sum(unpacked for unpacked, _ in sizes), size)):
        if unpacked > MAX_ZIP_BYTES and unpacked > MAX_ZIP_RATIO * packed:
            raise UserError(f'{path}: refused, {packed:,} bytes would unpack to {unpacked:,}; get the file from a '
                            'source you trust, or pack it without compression')


def has_type(value, annotation) -> bool:
    """Return True if `value` matches a dataclass annotation, including items of maps and lists; ints are floats."""
    if isinstance(annotation, UnionType):
        return any(has_type(value, option) for option in get_args(annotation))
    origin, items = get_origin(annotation) or annotation, get_args(annotation)
    if origin is float:
        return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < MAX_NUMBER
    if not isinstance(value, origin) or (origin is int and isinstance(value, bool)):
        return False
    if origin is dict and items:
        return all(isinstance(name, items[0]) and isinstance(item, items[1]) for name, item in value.items())
    return origin is not list or not items or all(isinstance(item, items[0]) for item in value)
