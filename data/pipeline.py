"""Raw files to interchange files, whatever their number: parsed once, by several processes, never all in memory.

`convert` parses and yields in order; `Spool` keeps the samples on the disk until their number and the longest of them
are known; `write_protocol` then writes a protocol's file from it.
"""

import argparse
import lzma
import multiprocessing
import os
import resource
import signal
import sys
import tempfile
import threading
import time
import zipfile
import zlib
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from data.common import npz_writer, one_hot
from util.errors import UserError
from util.files import atomic_write, check_zip

ROWS = 1024        # labels that become one-hot at a time
LARGEST = 1 << 26  # bytes of a raw file; real ones have ten million at most
LISTED = 20       # damaged files that are shown; the list on the disk has all


class Sample(NamedTuple):
    name: str
    label: int          # 0-based
    rows: np.ndarray    # (T, width) float32


class Source(NamedTuple):
    """A raw file: on its own, or a member of a zip."""

    path: Path
    member: str | None = None

    @property
    def stem(self) -> str:
        return Path(self.member or self.path).stem

    def __str__(self) -> str:
        return f'{self.path}:{self.member}' if self.member else str(self.path)

    def read(self) -> bytes:
        """The file's bytes; raises UserError when it cannot be read, or is too large to be a raw file."""
        try:
            archive = self.member and _archive(self.path, os.getpid())
            size = archive.getinfo(self.member).file_size if archive else self.path.stat().st_size
            if size > LARGEST:
                raise UserError(f'{size / 1e6:,.0f} MB are too many for a raw file')
            if archive:
                return archive.read(self.member)
            with open(self.path, 'rb') as file:
                if self.path.is_file():
                    return file.read()
                text = file.read(LARGEST + 1)       # of a device or a pipe, whose size nobody tells
            if len(text) > LARGEST:
                raise UserError('is a device without an end, not a raw file')
            return text
        except UserError:
            raise
        except OSError as error:
            raise UserError(f'cannot be read ({error.strerror or error})') from error
        except (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, RuntimeError, ValueError) as error:
            raise UserError(f'a broken member of the zip ({error})') from error


@cache
def _archive(path: Path, pid: int) -> zipfile.ZipFile:
    """The zip, opened once by each process: a file position that two share would be lost."""
    return zipfile.ZipFile(path)


def find_sources(raw: Sequence[Path], suffix: str) -> list[Source]:
    """The files with this suffix in folders and zips, at any depth, sorted by name; hidden ones are passed over.

    Raises:
        UserError: a folder or zip cannot be read or has no such file, or a name is there twice.
    """
    found = []
    for path in {path.resolve(): path for path in raw}.values():  # each once
        sources = _in_folder(path, suffix) if path.is_dir() else _in_zip(path, suffix)
        if not sources:
            raise UserError(f'{path}: no {suffix} file in it; give --raw the folder or the zip that has them')
        found += sources
    found.sort(key=lambda source: source.stem)
    for one, other in zip(found, found[1:], strict=False):
        if one.stem == other.stem:
            raise UserError(f'{one.stem} is there twice, {one} and {other}; keep one of them')
    return found


def _in_folder(folder: Path, suffix: str) -> list[Source]:
    def refuse(error: OSError):
        raise UserError(f'{error.filename}: cannot be read ({error.strerror}); correct its permissions') from error

    return [Source(Path(root) / file) for root, _, files in os.walk(folder, onerror=refuse, followlinks=True)
            for file in files if file.lower().endswith(suffix) and not file.startswith('.')]


def _in_zip(path: Path, suffix: str) -> list[Source]:
    if not path.exists():
        raise UserError(f'{path}: does not exist; give --raw the folder or the zip of the raw files')
    try:
        with zipfile.ZipFile(path) as archive:
            check_zip(path, archive)
            names = archive.namelist()
    except UserError:
        raise
    except (zipfile.BadZipFile, OSError, NotImplementedError, ValueError) as error:
        raise UserError(f'{path}: neither a folder nor a whole zip ({error}); give the folder that holds the files, or '
                        'download the zip again') from error
    return [Source(path, name) for name in names
            if name.lower().endswith(suffix) and not Path(name).name.startswith('.')]


@contextmanager
def open_pool(workers: int) -> Iterator[ProcessPoolExecutor | None]:
    """Processes that parse, already running; None for one worker, which is this process itself.

    Raises:
        UserError: one of them was killed.
    """
    if workers == 1:
        yield None
        return
    # A forked worker starts at once. Elsewhere than on Linux libraries may have threads, and forking is not safe.
    context = multiprocessing.get_context('fork' if sys.platform == 'linux' else 'spawn')
    others = set(multiprocessing.active_children())
    pool = ProcessPoolExecutor(workers, context, _begin_worker)
    try:
        pool.submit(os.getpid).result()  # forks, while there is no other thread
        yield pool
    except BrokenProcessPool as error:
        raise UserError('a worker process was killed, perhaps for want of memory; give fewer --workers') from error
    except BaseException:       # Ctrl-C above all: a worker may be waiting for a file that never comes
        for worker in set(multiprocessing.active_children()) - others:
            worker.terminate()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def _begin_worker() -> None:
    """Ctrl-C is the parent's to handle; a worker whose parent was killed ends too."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()


def convert(pool: ProcessPoolExecutor | None, sources: Sequence, parse: Callable, chunk: int,
            ahead: int) -> Iterator[tuple]:
    """Yields for each source, in order: the source, what `parse(source)` returned or the UserError it raised, and the
    process that did it with its peak memory so far.

    `chunk` sources are parsed between two answers of a process; `ahead` chunks at most are under way or waiting.
    """
    pending = deque()
    for at in range(0, len(sources), chunk):
        part = sources[at:at + chunk]
        result = pool.submit(_parse_all, parse, part).result if pool else partial(_parse_all, parse, part)
        pending.append((part, result))
        if len(pending) >= ahead:
            yield from _answers(*pending.popleft())
    while pending:
        yield from _answers(*pending.popleft())


def _answers(sources: Sequence, result: Callable) -> Iterator[tuple]:
    results, process = result()
    for source, parsed in zip(sources, results, strict=True):
        yield source, parsed, process


def _parse_all(parse: Callable, sources: Sequence) -> tuple[list, tuple[int, int]]:
    return [_attempt(parse, source) for source in sources], (os.getpid(), peak_memory())


def _attempt(parse: Callable, source):
    try:
        return parse(source)
    except UserError as error:
        return UserError(str(error))  # others do not all survive pickling


def peak_memory() -> int:
    """The most memory this process has held so far, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == 'darwin' else 1024)


class Spool:
    """Samples on the disk, in a file without a name: it is gone with the process, however that ends.

    `names`, `labels`, `lengths` and `widths` (N,) are lists; indexing gives a sample's rows (T, width) float32.
    """

    def __init__(self, folder: Path):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - lives as long as the spool
        except OSError as error:
            raise UserError(f'{folder}: cannot be written ({error.strerror}); give another --out') from error
        self.folder, self._end = folder, 0
        self.names, self.labels, self.lengths, self.widths, self._starts = [], [], [], [], []

    def append(self, sample: Sample) -> None:
        try:
            self._file.seek(self._end)
            self._file.write(np.ascontiguousarray(sample.rows, dtype=np.float32).data)
        except OSError as error:
            raise UserError(f'{self.folder}: cannot be written ({error.strerror}); free space: the samples are kept '
                            'there until all are known') from error
        self.names.append(sample.name)
        self.labels.append(sample.label)
        self.lengths.append(len(sample.rows))
        self.widths.append(sample.rows.shape[1])
        self._starts.append(self._end)
        self._end += sample.rows.nbytes

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> np.ndarray:
        length, width = self.lengths[index], self.widths[index]
        self._file.seek(self._starts[index])
        rows = np.frombuffer(self._file.read(4 * length * width), dtype=np.float32)
        return rows.reshape(length, width)


class Parsed(NamedTuple):
    """What one raw file gives."""

    samples: list[Sample]
    size: int           # bytes of text
    counts: Counter     # of whatever the summary should mention
    damaged: Sequence[str] = ()  # samples of the file that are


@dataclass
class Tally:
    """What one preparation counts for its summary."""

    files: int = 0
    text: int = 0       # bytes
    counts: Counter = field(default_factory=Counter)
    damaged: list[str] = field(default_factory=list)
    began: float = field(default_factory=time.perf_counter)
    peaks: dict[int, int] = field(default_factory=dict)  # bytes, by process

    def print(self, spool: Spool) -> None:
        """Samples, frames, what was left out, and what it cost."""
        seconds = time.perf_counter() - self.began
        self.peaks[os.getpid()] = peak_memory()
        print(f'{len(spool):,} samples of {len(set(spool.labels))} classes, {sum(spool.lengths):,} frames '
              f'({min(spool.lengths)} to {max(spool.lengths)} a sample)')
        for what, count in sorted(self.counts.items()):
            print(f'{count:,} {what}')
        print(f'{len(self.damaged):,} damaged{" and left out" * bool(self.damaged)}')
        print(f'{self.files:,} files, {self.text / 1e6:,.1f} MB of text in {seconds:.1f} s, '
              f'{self.text / 1e6 / seconds:.1f} MB/s; peak memory {sum(self.peaks.values()) / 1e6:,.0f} MB in '
              f'{len(self.peaks)} processes')


def collect(sources: Sequence, parse: Callable, folder: Path, workers: int, chunk: int, tally: Tally) -> Spool:
    """All samples that `parse` (source to Parsed) makes of the sources, in order, on the disk of `folder`.

    Sources that raise a UserError go to `tally.damaged`.
    """
    with open_pool(workers) as pool:
        spool = Spool(folder)
        with tqdm(total=len(sources), desc='parse', unit=' files', disable=None) as bar:
            for source, parsed, (process, peak) in convert(pool, sources, parse, chunk, 3 * workers if pool else 1):
                tally.peaks[process] = peak
                tally.files += 1
                bar.update()
                if isinstance(parsed, UserError):
                    tally.damaged.append(f'{source}: {parsed}')
                    continue
                tally.text += parsed.size
                tally.counts += parsed.counts
                tally.damaged += parsed.damaged
                for sample in parsed.samples:
                    spool.append(sample)
    return spool


def settle_damaged(damaged: Sequence[str], skip: bool, path: Path,
                   remedy: str = 'get them from the release again') -> None:
    """Stops for damaged files, or, where they are to be skipped, lists them in `path`.

    A list that an earlier run left there goes when there is nothing to list.

    Raises:
        UserError: some are damaged and not to be skipped; or the list cannot be written.
    """
    for line in damaged[:LISTED]:
        print(f'damaged: {line}', file=sys.stderr)
    if len(damaged) > LISTED:
        print(f'… and {len(damaged) - LISTED:,} more', file=sys.stderr)
    if damaged and not skip:
        raise UserError(f'{len(damaged):,} damaged, nothing written: {remedy}, or give '
                        f'--skip_damaged to go on without them and keep the list in {path}')
    if damaged:
        with atomic_write(path) as temporary:
            temporary.write_text(''.join(f'{line}\n' for line in damaged), encoding='utf-8', errors='backslashreplace')
        return
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(f'{path}: cannot be removed ({error.strerror}), and there is nothing to list now') from error


def write_protocol(path: Path, spool: Spool, train: Sequence[int], test: Sequence[int], classes: int, frames: int,
                   width: int, second: str = 'zeros') -> None:
    """Writes one interchange file from the samples with the indices `train` and `test`, in that order.

    Samples are padded with zeros to `frames` rows and `width` numbers; with `second='copy'` those of half the width
    are repeated in the second half instead.

    Raises:
        UserError: the file cannot be written.
    """
    padding = np.zeros((frames, width), dtype=np.float32)

    def rows(indices: Sequence[int]) -> Iterator[np.ndarray]:
        for index in tqdm(indices, desc=path.stem, unit=' samples', disable=None):
            sample = spool[index]
            missing = width - sample.shape[1]
            if missing:
                other = sample if second == 'copy' else np.zeros((len(sample), missing), dtype=np.float32)
                sample = np.concatenate([sample, other], axis=1)
            yield sample
            yield padding[len(sample):]

    with npz_writer(path) as add:
        for part, indices in (('train', train), ('test', test)):
            labels = [spool.labels[index] for index in indices]
            add(f'x_{part}', (len(indices), frames, width), np.float32, rows(indices))
            add(f'y_{part}', (len(indices), classes), np.float64,
                (one_hot(labels[at:at + ROWS], classes) for at in range(0, len(labels), ROWS)))
        for part, indices in (('train', train), ('test', test)):
            names = np.array([spool.names[index] for index in indices], dtype=np.str_)
            add(f'name_{part}', names.shape, names.dtype, [names])
    print(f'{path}: {len(train):,} train, {len(test):,} test')
    if not train or not test:
        print(f'note: {path.stem} has no {"test" if train else "training"} sample')


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options that every preparation of raw text has."""
    processors = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1
    parser.add_argument('--workers', type=_positive, default=min(8, processors), help='processes that parse')
    parser.add_argument('--skip_damaged', action='store_true', help='go on without damaged samples, and list them')


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f'{text!r}: give 1 or more')
    return int(text)


def chosen_protocols(asked: Sequence[str] | None, protocols: Mapping) -> list:
    """The protocols with the names `asked` for, each once, or all; raises UserError for a name that is none."""
    for name in asked or ():
        if name not in protocols:
            raise UserError(f'--protocol {name}: give one or more of {", ".join(protocols)}')
    return [protocols[name] for name in dict.fromkeys(asked or protocols)]
