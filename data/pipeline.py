"""Preparation of raw files: each is parsed once, by several processes, and samples are kept on disk.

`collect` parses the files in order into a `Spool`, so that the number of samples and the longest length are known
before `write_protocol` writes a dataset file from it.
"""

import argparse
import multiprocessing
import os
import shlex
import signal
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from data.dataset_file import npz_writer, one_hot
from data.datasets import DataSet, Protocol
from data.spool import Sample, Spool
from util.errors import UserError
from util.files import write_text
from util.options import COUNT

ROWS = 1024         # labels that are converted to one-hot at a time
LISTED = 20         # number of damaged files that are printed; the list on disk is complete
SMALL_CLIPS = 3000  # training clips from which the recipes of the paper are recommended
FEW_CLIPS = 500     # training clips from which the two-layer head is recommended
# Epochs for fewer clips, in the order of the stages: at least, and clips to process.
SMALL_EPOCHS = {'pretrain': (100, 48_000), 'linprobe': (30, 10_000), 'finetune': (30, 16_000)}


class Parsed(NamedTuple):
    """The parsed content of a raw file."""

    samples: list[Sample]
    size: int                           # bytes
    counts: Counter                     # events for the summary
    damaged: Sequence[str] = ()         # errors of single samples in it


# ---- parsing ---------------------------------------------------------------------------------------------------------


def parse_all(parse: Callable, sources: Sequence, workers: int, chunk: int) -> Iterator[tuple]:
    """Yield, for each source in order, the source and the result of `parse(source)` or the UserError that it raised.

    Runs in `workers` processes, which parse `chunk` sources at a time and are at most three chunks ahead each; one
    worker runs in this process itself. Raises UserError if a worker was killed.
    """
    parts = [sources[start:start + chunk] for start in range(0, len(sources), chunk)]
    if workers == 1:
        for part in parts:
            yield from zip(part, _parse_part(parse, part), strict=True)
        return
    # A forked worker starts at once, but forking is safe only on Linux.
    context = multiprocessing.get_context('fork' if sys.platform == 'linux' else 'spawn')
    pool, pending = ProcessPoolExecutor(workers, context, _start_worker), deque()

    def next_results() -> Iterator[tuple]:
        part, future = pending.popleft()
        return zip(part, future.result(), strict=True)

    try:
        for part in parts:
            pending.append((part, pool.submit(_parse_part, parse, part)))
            if len(pending) == 3 * workers:
                yield from next_results()
        while pending:
            yield from next_results()
    except BrokenProcessPool as error:
        raise UserError('a worker process was killed, perhaps for lack of memory; reduce --workers') from error
    finally:
        pool.shutdown(cancel_futures=True)


def _start_worker() -> None:
    """Ignore Ctrl-C, which the parent handles, and end when the parent is killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()


def _parse_part(parse: Callable, sources: Sequence) -> list:
    results = []
    for source in sources:
        try:
            results.append(parse(source))
        except UserError as error:
            results.append(UserError(str(error)))   # without its cause, which may not be picklable
    return results


# ---- one preparation -------------------------------------------------------------------------------------------------


@dataclass
class Tally:
    """Counts of one preparation, for its summary."""

    noun: str = 'files'
    files: int = 0
    size: int = 0       # bytes
    counts: Counter = field(default_factory=Counter)
    damaged: list[str] = field(default_factory=list)
    start: float = field(default_factory=time.perf_counter)

    def print(self, spool: Spool) -> None:
        seconds = time.perf_counter() - self.start
        print(f'{len(spool):,} samples of {len(set(spool.labels))} classes, {sum(spool.lengths):,} frames '
              f'({min(spool.lengths)} to {max(spool.lengths)} per sample)')
        for event, count in sorted(self.counts.items()):
            print(f'{count:,} {event}')
        print(f'{len(self.damaged):,} damaged{" and omitted" * bool(self.damaged)}')
        megabytes = self.size / 1e6
        print(f'{self.files:,} {self.noun}, {megabytes:,.1f} MB in {seconds:.1f} s, {megabytes / seconds:.1f} MB/s')


def collect(sources: Sequence, parse: Callable, folder: Path, workers: int, chunk: int, tally: Tally) -> Spool:
    """Parse the sources with `parse` into a spool in `folder`; errors are added to `tally.damaged`."""
    spool = Spool(folder)
    with closing(parse_all(parse, sources, workers, chunk)) as results, \
            tqdm(results, 'parse', len(sources), unit=f' {tally.noun}', disable=None) as bar:
        for source, parsed in bar:
            tally.files += 1
            if isinstance(parsed, UserError):
                tally.damaged.append(f'{source}: {parsed}')
                continue
            tally.size += parsed.size
            tally.counts += parsed.counts
            tally.damaged += parsed.damaged
            for sample in parsed.samples:
                spool.append(sample)
    return spool


def settle_damaged(damaged: Sequence[str], skip: bool, path: Path,
                   remedy: str = 'get them from the release again') -> None:
    """Print damaged samples; if they are skipped, write their list to `path`, and otherwise remove an outdated list.

    Raises:
        UserError: there are damaged samples and `skip` is False, or the list cannot be written.
    """
    for line in damaged[:LISTED]:
        print(f'damaged: {line}', file=sys.stderr)
    if len(damaged) > LISTED:
        print(f'… and {len(damaged) - LISTED:,} more', file=sys.stderr)
    if damaged and not skip:
        raise UserError(f'{len(damaged):,} damaged, nothing written: {remedy}, or use --skip_damaged to omit them and '
                        f'list them in {path}')
    if damaged:
        write_text(path, ''.join(f'{line}\n' for line in damaged))
    else:
        path.unlink(missing_ok=True)


def write_protocol(path: Path, spool: Spool, train: Sequence[int], test: Sequence[int], classes: int, frames: int,
                   width: int, second_body: str = 'zeros', planar: bool = False) -> None:
    """Write a dataset file of the samples with the indices `train` and `test`, in that order.

    Samples are padded with zeros to `frames` rows of `width` numbers; with `second_body` 'copy', samples of half the
    width get a copy of themselves as second half. A file of 2D keypoints (`planar`) is marked by its member keypoints.
    Raises UserError if the file cannot be written.
    """
    padding = np.zeros((frames, width), dtype=np.float32)

    def read_rows(indices: Sequence[int]) -> Iterator[np.ndarray]:
        for index in tqdm(indices, path.stem, unit=' samples', disable=None):
            rows = spool[index]                                                             # (T, width or less)
            if rows.shape[1] < width:
                missing = rows if second_body == 'copy' else padding[:len(rows), rows.shape[1]:]
                rows = np.concatenate([rows, missing], axis=1)
            yield rows
            yield padding[len(rows):]

    with npz_writer(path) as add:
        for part, indices in (('train', train), ('test', test)):
            labels = [spool.labels[index] for index in indices]
            add(f'x_{part}', (len(indices), frames, width), np.float32, read_rows(indices))
            add(f'y_{part}', (len(indices), classes), np.float64,
                (one_hot(labels[start:start + ROWS], classes) for start in range(0, len(labels), ROWS)))
        for part, indices in (('train', train), ('test', test)):
            names = np.array([spool.names[index] for index in indices], dtype=np.str_)
            add(f'name_{part}', names.shape, names.dtype, [names])
        if planar:
            add('keypoints', (), np.dtype('<U2'), [np.array('2d')])
    print(f'{path}: {len(train):,} train, {len(test):,} test')
    if not train or not test:
        print(f'note: {path.stem} has no {"test" if train else "training"} sample')


def print_commands(settings: str, name: str, train_clips: int) -> None:
    """Print the commands that train on a new dataset file; `settings` is its config file, or options.

    For a small training set they have the small model, and epochs for a fixed number of clips.
    """
    runs, is_small = f'runs/{shlex.quote(name)}', train_clips < SMALL_CLIPS
    print(f'next, for {train_clips:,} training clips:')
    for stage in SMALL_EPOCHS:
        least, clips = SMALL_EPOCHS[stage]
        recipe = f'config/{stage}.yaml' + ' config/small.yaml' * is_small
        epochs = f' --epochs {max(least, clips // max(train_clips, 1))}' * is_small
        head = ' --head linear' * (stage == 'finetune' and train_clips < FEW_CLIPS)
        encoder = f' --finetune {runs}/pretrain/checkpoint-last.pth' * (stage != 'pretrain')
        print(f'python main_{stage}.py --config {recipe} {settings}{epochs}{head}{encoder} --output_dir {runs}/{stage}')
    print(f'python tools/predict.py --checkpoint {runs}/finetune/checkpoint-last.pth RECORDINGS\n'
          'Predictions do not need the linear probe. For another encoder, omit the first command and change --finetune.'
          + ('' if is_small else ' On a CPU, insert config/small.yaml after the recipe.'))


# ---- options ---------------------------------------------------------------------------------------------------------


def count_processors() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1


def add_options(parser: argparse.ArgumentParser, workers: bool = True) -> None:
    """Add the options that all preparation scripts share."""
    if workers:
        parser.add_argument('--workers', type=COUNT, default=min(8, count_processors()), help='number of processes')
    parser.add_argument('--skip_damaged', action='store_true', help='omit damaged samples, and list them')


def select_protocols(requested: Sequence[str] | None, dataset: DataSet) -> list[Protocol]:
    """Return the requested protocols without repetitions, or the default ones; raises UserError for unknown names."""
    for name in requested or ():
        if name not in dataset.protocols:
            raise UserError(f'--protocol {name}: choose one or more of {", ".join(dataset.protocols)}')
    names = requested or [name for name, protocol in dataset.protocols.items() if protocol.default]
    return [dataset.protocols[name] for name in dict.fromkeys(names)]
