"""Arrays in npz and npy files as memory maps: data is read when it is used, and all processes share one copy."""

import fcntl
import logging
import os
import shutil
import struct
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.lib import format as npy

from util.errors import UserError, one_line
from util.files import atomic_write, check_zip

log = logging.getLogger(__name__)

REMEDY = "create it with the data/prepare_*.py of its dataset, or correct --data_path"


def open_member(path: str | Path, name: str, remedy: str = REMEDY) -> np.ndarray:
    """Return member `name` of an npz file as a read-only memory map.

    A member stored without compression is mapped in place; a compressed one is unpacked once into a cache file. Raises
    UserError for a missing or damaged file or member, an untrusted archive (see `check_zip`), and Python objects.
    """
    path = Path(path)
    with _report_errors(path, f'member {name}', remedy), zipfile.ZipFile(path) as archive:
        check_zip(path, archive)
        if f'{name}.npy' not in archive.namelist():
            members = ', '.join(sorted(Path(member).stem for member in archive.namelist())) or 'nothing'
            raise UserError(f'{path}: has no member {name} (it has {members}); {remedy}')
        member = archive.getinfo(f'{name}.npy')
        with archive.open(member) as source:
            length, shape, fortran_order, dtype = _read_header(source, member.file_size)
        if member.compress_type != zipfile.ZIP_STORED:
            return npy.open_memmap(_unpack(archive, path, member), 'r')
        return np.memmap(path, dtype, 'r', _data_offset(path, member) + length, shape, 'F' if fortran_order else 'C')


def open_npy(path: str | Path, remedy: str) -> np.ndarray:
    """Return the array of an npy file as a read-only memory map; raises as `open_member`."""
    with _report_errors(Path(path), 'the array', remedy):
        return npy.open_memmap(path, 'r')


def has_member(path: str | Path, name: str) -> bool:
    """Return True if an npz file, which must be readable, has this member."""
    with zipfile.ZipFile(path) as archive:
        return f'{name}.npy' in archive.namelist()


@contextmanager
def _report_errors(path: Path, part: str, remedy: str) -> Iterator[None]:
    """Turn any error in reading `part` of a file into a UserError."""
    if not path.is_file():
        raise UserError(f'{path}: no such data file; {remedy}')
    try:
        yield
    except UserError:
        raise
    except OSError as error:
        raise UserError(f'{path}: cannot be read ({error.strerror or error}); correct its permissions or copy it '
                        'again') from error
    except (zipfile.BadZipFile, EOFError, RuntimeError, zlib.error) as error:     # RuntimeError: an encrypted member
        remedy = 'convert it with data/prepare_pyskl.py' if path.suffix in ('.pkl', '.pickle') else \
            'regenerate it or copy it again'
        raise UserError(f'{path}: not a complete npz file ({one_line(error)}); {remedy}') from error
    except Exception as error:      # a damaged header can raise any exception
        raise UserError(f'{path}: {part} is damaged ({one_line(error)}); regenerate the file') from error


def _read_header(file, size: int) -> tuple[int, tuple[int, ...], bool, np.dtype]:
    """Read the header of npy content of `size` bytes; returns its length and the array's shape, Fortran order and type.

    Raises ValueError for Python objects, and if the size of the content does not match the shape.
    """
    read_header = npy.read_array_header_1_0 if npy.read_magic(file) == (1, 0) else npy.read_array_header_2_0
    shape, fortran_order, dtype = read_header(file)
    if dtype.hasobject:
        raise ValueError('it contains Python objects, which are never loaded')
    needed, present = int(np.prod(shape, dtype=object)) * dtype.itemsize, size - file.tell()
    if needed != present or dtype.itemsize == 0 or min(shape, default=0) < 0:
        raise ValueError(f'shape {shape} of {dtype} needs {needed} bytes, but {present} are present')
    return file.tell(), shape, fortran_order, dtype


def _data_offset(path: Path, member: zipfile.ZipInfo) -> int:
    """Return the offset of the member's bytes, which follow its local header.

    The local header has 30 bytes, of which the last four are the lengths of the name and the extra field that follow
    (zip specification, APPNOTE 4.3.7). The extra field may be longer than in the central directory.
    """
    with open(path, 'rb') as file:
        file.seek(member.header_offset + 26)
        return member.header_offset + 30 + sum(struct.unpack('<HH', file.read(4)))


def _unpack(archive: zipfile.ZipFile, path: Path, member: zipfile.ZipInfo) -> Path:
    """Unpack a compressed member beside the npz file, or else into the temporary folder, unless it is already there."""
    name = f'{path.name}.{member.filename[:-4].replace("/", "_")}.{member.CRC:08x}.npy'
    temporary = Path(tempfile.gettempdir()) / f'mamp-cache-{os.getuid()}'
    if temporary.exists() and (temporary.stat().st_uid != os.getuid() or temporary.stat().st_mode & 0o022):
        raise UserError(f'{temporary}: other users can write to this folder, so its files are not trusted; remove it')
    caches = [folder / name for folder in (path.parent, temporary)]

    def complete() -> Path | None:
        return next((cache for cache in caches if cache.is_file() and cache.stat().st_size == member.file_size), None)

    if cache := complete():
        return cache
    cache = caches[0] if os.access(path.parent, os.W_OK) else caches[1]
    cache.parent.mkdir(mode=0o700, exist_ok=True)
    with open(cache.with_suffix('.lock'), 'wb') as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)        # one of several processes unpacks; the others wait and share its file
        try:
            if not complete():
                log.warning('%s: member %s is compressed; unpacking it once to %s', path, member.filename, cache)
                with atomic_write(cache) as partial, archive.open(member) as source, open(partial, 'wb') as sink:
                    shutil.copyfileobj(source, sink, 1 << 24)
        finally:
            Path(lock.name).unlink(missing_ok=True)
    return cache
