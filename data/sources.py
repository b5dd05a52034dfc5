"""Raw files in folders, zips and tars, read without unpacking archives to disk."""

import lzma
import os
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Sequence
from functools import cache
from pathlib import Path, PurePath
from typing import NamedTuple

from util.errors import UserError, one_line
from util.files import check_zip

MAX_BYTES = 1 << 26         # of a raw file; the largest in known datasets have ten million
MAX_TAR_BYTES = 1 << 30     # of all raw files in a tar, which are kept in memory


class Source(NamedTuple):
    """A raw file: on its own, or a member of an archive."""

    path: Path
    member: str | None = None
    content: bytes | None = None    # members of tars, which are slow to read out of order

    @property
    def file(self) -> PurePath:
        """Path of the file, inside the archive if there is one."""
        return PurePath(self.member or self.path)

    @property
    def stem(self) -> str:
        return self.file.stem

    def __str__(self) -> str:
        return f'{self.path}:{self.member}' if self.member else str(self.path)

    def read(self) -> bytes:
        """Return the content; raises UserError if it cannot be read or is too large for a raw file."""
        if self.content is not None:
            return self.content
        try:
            if self.member:
                archive = _open_zip(self.path, os.getpid())
                _check_size(archive.getinfo(self.member).file_size)
                return archive.read(self.member)
            status = self.path.stat()
            if not stat.S_ISREG(status.st_mode):
                raise UserError('not a regular file')
            _check_size(status.st_size)
            return self.path.read_bytes()
        except UserError:
            raise
        except OSError as error:
            raise UserError(f'cannot be read ({error.strerror or error})') from error
        except (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, RuntimeError, ValueError) as error:
            raise UserError(f'damaged member of the zip ({one_line(error)})') from error


def _check_size(size: int) -> None:
    if size > MAX_BYTES:
        raise UserError(f'{size / 1e6:,.0f} MB, but a raw file may have {MAX_BYTES / 1e6:,.0f} MB at most')


@cache
def _open_zip(path: Path, pid: int) -> zipfile.ZipFile:
    """Open the zip once per process, as processes that share an open file share its position."""
    return zipfile.ZipFile(path)


def find_sources(raw: Sequence[Path], suffix: str) -> list[Source]:
    """Find the files with this suffix in folders, zips and tars at any depth, without hidden ones, sorted by name.

    Raises:
        UserError: a folder or archive cannot be read, is refused or has no such file, or a name occurs twice.
    """
    sources = []
    for path in {path.resolve(): path for path in raw}.values():
        if not path.exists():
            raise UserError(f'{path}: does not exist; set --raw to the folder or archive of the raw files')
        list_files = _list_folder if path.is_dir() else _list_zip if zipfile.is_zipfile(path) else _read_tar
        files = list_files(path, suffix)
        if not files:
            raise UserError(f'{path}: no {suffix} file in it; set --raw to the folder or archive of these files')
        sources += files
    sources.sort(key=lambda source: source.stem)
    for source, following in zip(sources, sources[1:], strict=False):
        if source.stem == following.stem:
            raise UserError(f'{source.stem} occurs twice, as {source} and {following}; keep one of them')
    return sources


def _is_raw(name: str, suffix: str) -> bool:
    return name.lower().endswith(suffix) and not PurePath(name).name.startswith('.')


def _list_folder(folder: Path, suffix: str) -> list[Source]:
    def fail(error: OSError):
        raise UserError(f'{error.filename}: cannot be read ({error.strerror}); correct its permissions') from error

    return [Source(Path(root) / file) for root, _, files in os.walk(folder, onerror=fail, followlinks=True)
            for file in files if _is_raw(file, suffix)]


def _list_zip(path: Path, suffix: str) -> list[Source]:
    try:
        with zipfile.ZipFile(path) as archive:
            check_zip(path, archive)
            return [Source(path, name) for name in archive.namelist() if _is_raw(name, suffix)]
    except UserError:
        raise
    except (zipfile.BadZipFile, OSError, NotImplementedError, ValueError) as error:
        raise UserError(f'{path}: damaged zip ({one_line(error)}); download it again') from error


def _read_tar(path: Path, suffix: str) -> list[Source]:
    sources, size = [], 0
    try:
        with tarfile.open(path) as archive:
            for member in archive:
                _check_member(path, member)
                if member.isreg() and _is_raw(member.name, suffix):
                    sources.append(Source(path, member.name, archive.extractfile(member).read()))
                    size += member.size
                    if size > MAX_TAR_BYTES:
                        raise UserError(f'{path}: has more than {MAX_TAR_BYTES:,} bytes of raw files; unpack it and '
                                        'set --raw to the folder')
    except (tarfile.TarError, lzma.LZMAError, zlib.error, EOFError, OSError, MemoryError) as error:
        raise UserError(f'{path}: neither a folder nor a complete zip or tar; set --raw to the folder of the files, or '
                        'download the archive again') from error
    return sources


def _check_member(path: Path, member: tarfile.TarInfo) -> None:
    name = PurePath(member.name)
    if name.is_absolute() or '..' in name.parts or not (member.isreg() or member.isdir()) or member.size > MAX_BYTES:
        raise UserError(f'{path}: refused, its member {member.name!r:.80} has a path outside the folder, is a link or '
                        'a device, or is too large; get the archive from a source you trust')
