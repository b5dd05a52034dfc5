"""Members of an .npz as memory maps: nothing is read before it is used, and all processes share one copy."""

import fcntl
import logging
import os
import shutil
import tempfile
import tokenize
import zipfile
import zlib
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.lib import format as npy

from util.errors import UserError
from util.files import atomic_write, check_zip

log = logging.getLogger(__name__)

REMEDY = 'write it with the data/prepare_*.py of its data set, or correct --data_path'
_LOCAL_HEADER = 30      # bytes of a zip local file header before the file name (APPNOTE 4.3.7)


def open_member(path: str | Path, name: str, remedy: str = REMEDY) -> np.ndarray:
    """Member `name` of the npz as a read-only memory map.

    A member stored uncompressed is mapped in place; a compressed one is unpacked once into a cache file.
    Raises UserError naming file and remedy when the file is missing, truncated or has no such member, and for an
    archive that is none to trust (see `check_zip`).
    """
    path = Path(path)
    with _told(path, f'member {name}', remedy), zipfile.ZipFile(path) as archive:
        check_zip(path, archive)
        member = _find(archive, path, name, remedy)
        if member.compress_type == zipfile.ZIP_STORED:
            return _map_npy(path, _payload_offset(path, member), member.file_size)
        return _map_npy(_unpacked(archive, path, member), 0, member.file_size)


def open_npy(path: str | Path, remedy: str) -> np.ndarray:
    """The array of a .npy file as a read-only memory map; raises as `open_member`."""
    path = Path(path)
    with _told(path, 'the array', remedy):
        return _map_npy(path, 0, path.stat().st_size)


@contextmanager
def _told(path: Path, what: str, remedy: str):
    """Makes what reading `what` of a file can end in a UserError."""
    if not path.is_file():
        raise UserError(f'{path}: no such data file; {remedy}')
    try:
        yield
    except (zipfile.BadZipFile, EOFError, RuntimeError, zlib.error) as error:     # RuntimeError: encrypted, unknown zip
        raise UserError(f'{path}: not a whole npz file ({error}); write it again or copy it again') from error
    except UserError:
        raise
    except (ValueError, TypeError, ArithmeticError, SyntaxError, tokenize.TokenError, RecursionError,
            MemoryError) as error:
        # all that a header in pieces, or one made on purpose, can end in
        why = ' '.join(str(error).split())
        raise UserError(f'{path}: {what} is damaged ({why}); write the file again') from error
    except OSError as error:
        raise UserError(f'{path}: cannot be read ({error.strerror or error}); correct its permissions or copy it '
                        'again') from error


def has_member(path: str | Path, name: str) -> bool:
    """Whether an npz that opens has a member of this name."""
    with zipfile.ZipFile(path) as archive:
        return f'{name}.npy' in archive.namelist()


def _find(archive: zipfile.ZipFile, path: Path, name: str, remedy: str) -> zipfile.ZipInfo:
    try:
        return archive.getinfo(f'{name}.npy')
    except KeyError:
        held = ', '.join(sorted(Path(other).stem for other in archive.namelist())) or 'nothing'
        raise UserError(f'{path}: no member {name} (it holds {held}); {remedy}') from None


def _payload_offset(path: Path, member: zipfile.ZipInfo) -> int:
    """Where the member's bytes begin: the local header repeats name and extra field at its own lengths."""
    with open(path, 'rb') as file:
        file.seek(member.header_offset)
        header = file.read(_LOCAL_HEADER)
    if len(header) < _LOCAL_HEADER or header[:4] != b'PK\3\4':
        raise zipfile.BadZipFile(f'no local header for {member.filename}')
    return member.header_offset + _LOCAL_HEADER + int.from_bytes(header[26:28], 'little') \
        + int.from_bytes(header[28:30], 'little')


def _map_npy(path: Path, offset: int, size: int) -> np.ndarray:
    """Maps the .npy of `size` bytes that begins at `offset` of the file."""
    with open(path, 'rb') as file:
        file.seek(offset)
        shape, fortran_order, dtype = _read_header(file, size)
        start = file.tell()
    if offset + size > path.stat().st_size:
        raise ValueError(f'{size} bytes are declared, {path.stat().st_size - offset} are there')
    if 0 in shape:
        return np.empty(shape, dtype)
    return np.memmap(path, dtype, 'r', start, shape, order='F' if fortran_order else 'C')


def _read_header(file, size: int) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Shape, whether in Fortran order, and type of the .npy of `size` bytes that `file` stands at; reads just that.

    Raises ValueError for Python objects and when the bytes are not those of the shape.
    """
    begin, version = file.tell(), npy.read_magic(file)
    read_header = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    shape, fortran_order, dtype = read_header(file)
    if dtype.hasobject:
        raise ValueError('it holds Python objects, which are never loaded')
    expected, there = int(np.prod(shape, dtype=object)) * dtype.itemsize, begin + size - file.tell()
    if expected != there or dtype.itemsize == 0 or min(shape, default=0) < 0:
        raise ValueError(f'shape {shape} of {dtype} needs {expected} bytes, {there} are there')
    return shape, fortran_order, dtype


def _is_whole(cache: Path, member: zipfile.ZipInfo) -> bool:
    return cache.is_file() and cache.stat().st_size == member.file_size


def _unpacked(archive: zipfile.ZipFile, path: Path, member: zipfile.ZipInfo) -> Path:
    """The compressed member as a .npy beside the npz (or in the temporary folder), written once and atomically."""
    cache_name = f'{path.name}.{member.filename[:-4].replace("/", "_")}.{member.CRC:08x}.npy'
    beside, temporary = path.parent, Path(tempfile.gettempdir()) / f'mamp-cache-{os.getuid()}'
    if temporary.exists() and (temporary.stat().st_uid != os.getuid() or temporary.stat().st_mode & 0o022):
        raise UserError(f'{temporary}: others may have put files into it; remove it')
    for folder in (beside, temporary):
        cache = folder / cache_name
        if _is_whole(cache, member):
            return cache
    folder = beside if os.access(beside, os.W_OK) else temporary
    folder.mkdir(mode=0o700, exist_ok=True)
    cache = folder / cache_name
    with archive.open(member) as source:
        _read_header(source, member.file_size)      # what is no array is not unpacked
    if member.file_size > shutil.disk_usage(folder).free:
        raise UserError(f'{path}: member {member.filename} is compressed, and unpacked it takes {member.file_size:,} '
                        f'bytes, more than {folder} has left; free space, or write the file without compression')
    with open(cache.with_suffix('.lock'), 'w') as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)        # of several processes one unpacks, the others wait and share its file
        try:
            if not _is_whole(cache, member):
                log.warning('%s: member %s is compressed; unpacking it once to %s', path, member.filename, cache)
                with atomic_write(cache) as partial, archive.open(member) as source, open(partial, 'wb') as sink:
                    shutil.copyfileobj(source, sink, 1 << 24)
        finally:
            Path(lock.name).unlink(missing_ok=True)
    return cache
