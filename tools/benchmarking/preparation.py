"""How fast raw NTU RGB+D text becomes an interchange file, and in how much memory, against the usual way.

    python tools/benchmarking/preparation.py --samples 1000 8000        # generated files
    python tools/benchmarking/preparation.py --raw DIR --repeats 5      # your own

The usual way, written out below as `usual_way`, reads a file line by line, splits every joint line and makes two small
arrays of it, stacks the joints of each frame, passes all samples through three pickles and pads all of them in memory
before anything is written. Each way runs in a process of its own, turn by turn; seconds are medians, start of the
process included, and memory is the largest sum over the processes of one run. All ways must write the same arrays.
A generated file takes about a megabyte of $TMPDIR, pickles and output included. Linux only: memory is read from /proc.
"""

import json
import os
import pickle
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

if not __package__:  # run by path: the repository's root is not on the search path yet
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from data.common import one_hot, pad
from data.datasets import DATASETS
from data.ntu_actors import WIDTH, to_rows
from data.ntu_text import Body, Recording, facts_of
from data.pipeline import find_sources
from data.prepare_ntu import order
from util.errors import Parser, UserError, run_main

HERE = Path(__file__).resolve().parents[2] / 'data'
DATASET = DATASETS['synth']
PROTOCOL = DATASET.protocols['xsub']


def usual_way(raw: Path, out: Path) -> None:
    """Three passes over all samples, each through a pickle, and everything padded in memory at the end."""
    paths = [source.path for source in find_sources([raw], '.skeleton')]
    _dump([(path.stem, _read_by_line(path)) for path in paths], out / 'raw.pkl')
    _dump([(name, to_rows(Recording(frames, {body: Body(*found[:2]) for body, found in bodies.items()})))
           for name, (frames, bodies) in _load(out / 'raw.pkl')], out / 'denoised.pkl')
    _dump([(name, np.concatenate([rows, np.zeros((len(rows), 2 * WIDTH - rows.shape[1]), dtype=np.float32)], axis=1))
           for name, rows in _load(out / 'denoised.pkl')], out / 'two_bodies.pkl')
    names, sequences = zip(*_load(out / 'two_bodies.pkl'), strict=True)
    x, y = pad(sequences, 2 * WIDTH), one_hot([facts_of(name).action - 1 for name in names], DATASET.classes)
    train, test = order(names, PROTOCOL)
    np.savez(out / f'{PROTOCOL.file}.npz', x_train=x[train], y_train=y[train], x_test=x[test], y_test=y[test])


def _read_by_line(path: Path) -> tuple[int, dict]:
    """Frames that show a body, and by id (first frame, joints (n, 25, 3), colours (n, 25, 2))."""
    with open(path) as file:
        lines = file.readlines()
    at, frames, bodies = 1, 0, {}
    for _ in range(int(lines[0])):
        count = int(lines[at])
        at += 1
        for _ in range(count):
            joints, colours = np.zeros((1, 25, 3), dtype=np.float32), np.zeros((1, 25, 2), dtype=np.float32)
            for joint, line in enumerate(lines[at + 2:at + 27]):
                fields = line.strip().split()
                joints[0, joint] = np.array(fields[:3], dtype=np.float32)
                colours[0, joint] = np.array(fields[5:7], dtype=np.float32)
            name = lines[at].split()[0]
            if name in bodies:
                start, earlier, earlier_colours = bodies[name]
                bodies[name] = start, np.vstack([earlier, joints]), np.vstack([earlier_colours, colours])
            else:
                bodies[name] = frames, joints, colours
            at += 27
        frames += count > 0
    return frames, bodies


def _dump(content, path: Path) -> None:
    with open(path, 'wb') as file:
        pickle.dump(content, file)


def _load(path: Path):
    with open(path, 'rb') as file:
        return pickle.load(file)


def generate(samples: int, raw: Path) -> None:
    """Recordings of data/synthesize.py, `samples` or up to eleven more, so that every action has as many."""
    each = -(-samples // DATASET.classes)
    run([sys.executable, str(HERE / 'synthesize.py'), '--out', str(raw), '--clips_per_class', str(each)])


def run(command: list[str]) -> tuple[float, float]:
    """Seconds of a command, and the largest sum of its processes' resident memory in MB, looked at every 10 ms."""
    start, peak = time.perf_counter(), 0
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    while process.poll() is None:
        peak = max(peak, _memory(process.pid))
        time.sleep(.01)
    if process.returncode:
        raise UserError(f'{" ".join(command)} ended with {process.returncode}; see its message above')
    return time.perf_counter() - start, peak / 1e6


def _memory(pid: int) -> int:
    """Resident bytes of a process and all below it; 0 for one that has ended meanwhile."""
    try:
        resident = int(Path(f'/proc/{pid}/statm').read_text().split()[1]) * os.sysconf('SC_PAGE_SIZE')
        children = Path(f'/proc/{pid}/task/{pid}/children').read_text().split()
    except (OSError, IndexError):
        return 0
    return resident + sum(_memory(int(child)) for child in children)


def compare(raw: Path, repeats: int, workers: list[int], scratch: Path) -> list[dict]:
    """A row per way: its name, files, MB of text, seconds (median), MB/s, ratio to the usual way, peak memory in MB.

    Raises:
        UserError: a way fails, or does not write what the usual one does.
    """
    if not raw.is_dir() or not Path('/proc/self/statm').exists():
        raise UserError(f'{raw}: give a folder of .skeleton files, on Linux: memory is read from /proc')
    sources = find_sources([raw], '.skeleton')
    megabytes = sum(source.path.stat().st_size for source in sources) / 1e6
    prepare = [sys.executable, str(HERE / 'prepare_ntu.py'), '--dataset', 'synth', '--protocol', 'xsub',
               '--raw', str(raw), '--workers']
    ways = {'usual way': [sys.executable, __file__, '--usual_way', '--raw', str(raw)],
            **{f'{count} worker{"s" * (count > 1)}': [*prepare, str(count)] for count in workers}}
    runs = {way: [] for way in ways}
    for _ in range(repeats):
        for way, command in ways.items():
            out = scratch / way.replace(' ', '_')
            shutil.rmtree(out, ignore_errors=True)  # to replace a file would cost time, too
            out.mkdir()
            runs[way].append(run([*command, '--out', str(out)]))
    _compare_files([scratch / way.replace(' ', '_') / f'{PROTOCOL.file}.npz' for way in ways])
    usual = statistics.median(seconds for seconds, _ in runs['usual way'])
    rows = []
    for way, results in runs.items():
        seconds = statistics.median(seconds for seconds, _ in results)
        rows.append({'files': len(sources), 'text MB': round(megabytes, 1), 'way': way, 'seconds': round(seconds, 2),
                     'MB/s': round(megabytes / seconds, 1), 'times as fast': round(usual / seconds, 2),
                     'peak memory MB': round(max(peak for _, peak in results))})
    return rows


def _compare_files(paths: list[Path]) -> None:
    for path in paths[1:]:
        with np.load(paths[0]) as usual, np.load(path) as ours:
            for name in usual.files:
                if usual[name].dtype != ours[name].dtype or not np.array_equal(usual[name], ours[name]):
                    raise UserError(f'{path}: {name} is not what the usual way writes')


def main(argv: list[str] | None = None) -> int:
    parser = Parser(description='preparation of NTU RGB+D text: speed and memory')
    parser.add_argument('--samples', type=int, nargs='+', default=[1000], help='numbers of generated files')
    parser.add_argument('--raw', type=Path, help='a folder of .skeleton files to use instead (actions up to 12)')
    parser.add_argument('--repeats', type=int, default=3, help='turns; the table has medians')
    parser.add_argument('--workers', type=int, nargs='+', default=[1, 2])
    parser.add_argument('--json', type=Path, help='the table as JSON too')
    parser.add_argument('--usual_way', action='store_true', help='only the usual way, once, from --raw to --out')
    parser.add_argument('--out', type=Path, help='with --usual_way')
    args = parser.parse_args(argv)
    if args.usual_way:
        usual_way(args.raw, args.out)
        return 0
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        scratch = Path(scratch)
        for samples in [None] if args.raw else args.samples:
            raw = args.raw or scratch / f'raw_{samples}'
            if samples:
                generate(samples, raw)
            rows += compare(raw, args.repeats, args.workers, scratch)
            if samples:
                shutil.rmtree(raw)
    print('| ' + ' | '.join(rows[0]) + ' |\n|' + '---|' * len(rows[0]))
    for row in rows:
        print('| ' + ' | '.join(map(str, row.values())) + ' |')
    if args.json:
        args.json.write_text(json.dumps(rows, indent=2) + '\n')
    return 0


if __name__ == '__main__':
    run_main(main)
