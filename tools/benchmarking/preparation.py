"""Speed of preparing NTU RGB+D text, compared with the usual way that gives the same files.

`prepare_as_usual`, written out below, reads a file line by line, splits every joint line into two small arrays, passes
all samples through three pickles, and pads all of them in memory before anything is written.
"""

import pickle
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from data.dataset_file import one_hot
from data.datasets import DATASETS
from data.ntu_actors import WIDTH, to_rows
from data.ntu_text import Body, Recording, parse_name
from data.prepare_ntu import order
from data.sources import find_sources
from util.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
DATASET = DATASETS['synth']
PROTOCOL = DATASET.protocols['xsub']
FORMATS = {'files': 'd', 'text_mb': '.1f', 'way': '', 'seconds': '.2f', 'mb_per_s': '.1f', 'ratio': '.2f'}


def prepare_as_usual(raw: Path, out: Path) -> None:
    """Prepare the .skeleton files of `raw` in three passes over all samples."""
    paths = [source.path for source in find_sources([raw], '.skeleton')]
    _dump([(path.stem, _read_by_line(path)) for path in paths], out / 'raw.pkl')
    _dump([(name, to_rows(Recording(frames, {body: Body(*values[:2]) for body, values in bodies.items()})))
           for name, (frames, bodies) in _load(out / 'raw.pkl')], out / 'denoised.pkl')
    _dump([(name, np.concatenate([rows, np.zeros((len(rows), 2 * WIDTH - rows.shape[1]), dtype=np.float32)], axis=1))
           for name, rows in _load(out / 'denoised.pkl')], out / 'two_bodies.pkl')
    names, sequences = zip(*_load(out / 'two_bodies.pkl'), strict=True)
    x = np.zeros((len(names), max(map(len, sequences)), 2 * WIDTH), dtype=np.float32)
    for clip, sequence in zip(x, sequences, strict=True):
        clip[:len(sequence)] = sequence
    y = one_hot([parse_name(name).action - 1 for name in names], DATASET.classes)
    train, test = order(names, PROTOCOL)
    np.savez(out / f'{PROTOCOL.file}.npz', x_train=x[train], y_train=y[train], x_test=x[test], y_test=y[test])


def _read_by_line(path: Path) -> tuple[int, dict]:
    """Return the number of frames with a body, and for each body id its first frame, joints (n, 25, 3) and pixels."""
    lines = path.read_text(encoding='utf-8').splitlines()
    start, frames, bodies = 1, 0, {}
    for _ in range(int(lines[0])):
        count = int(lines[start])
        start += 1
        for _ in range(count):
            joints, colours = np.zeros((1, 25, 3), dtype=np.float32), np.zeros((1, 25, 2), dtype=np.float32)
            for joint, line in enumerate(lines[start + 2:start + 27]):
                fields = line.strip().split()
                joints[0, joint] = np.array(fields[:3], dtype=np.float32)
                colours[0, joint] = np.array(fields[5:7], dtype=np.float32)
            first, *earlier = bodies.get(lines[start].split()[0], (frames, joints[:0], colours[:0]))
            bodies[lines[start].split()[0]] = first, np.vstack([earlier[0], joints]), np.vstack([earlier[1], colours])
            start += 27
        frames += count > 0
    return frames, bodies


def _dump(content, path: Path) -> None:
    path.write_bytes(pickle.dumps(content))


def _load(path: Path):
    return pickle.loads(path.read_bytes())


def run(*command: str) -> float:
    """Run a Python command; returns its seconds. Raises UserError if it fails."""
    began = time.perf_counter()
    if code := subprocess.run([sys.executable, *command], stdout=subprocess.DEVNULL, cwd=ROOT, check=False).returncode:
        raise UserError(f'{" ".join(command)} failed with exit code {code}; see its message above')
    return time.perf_counter() - began


def compare_preparation(raw: Path | None, samples: int, repeats: int, scratch: Path) -> list[dict]:
    """Time `prepare_as_usual` and prepare_ntu.py with 1 and 2 workers alternately; returns three rows.

    `raw` is a folder of .skeleton files; without it, about `samples` files are generated. Raises UserError if a command
    fails or the results differ.
    """
    if raw is None:
        raw = scratch / 'raw'
        run('data/synthesize.py', '--out', str(raw), '--clips_per_class', str(-(-samples // DATASET.classes)))
    sources = find_sources([raw], '.skeleton')
    megabytes = sum(source.path.stat().st_size for source in sources) / 1e6
    usual = 'import sys; from pathlib import Path; from tools.benchmarking import preparation as p; ' \
            'p.prepare_as_usual(*map(Path, sys.argv[1:]))'
    prepare = 'data/prepare_ntu.py', '--dataset', 'synth', '--protocol', 'xsub', '--raw', str(raw)
    commands = {'usual': lambda out: ('-c', usual, str(raw), out),
                '1 worker': lambda out: (*prepare, '--workers', '1', '--out', out),
                '2 workers': lambda out: (*prepare, '--workers', '2', '--out', out)}
    runs = {way: [] for way in commands}
    for _ in range(repeats):
        for way, command in commands.items():
            out = scratch / way
            shutil.rmtree(out, ignore_errors=True)
            out.mkdir()
            runs[way].append(run(*command(str(out))))
    check_equal([scratch / way / f'{PROTOCOL.file}.npz' for way in commands])
    seconds = {way: statistics.median(measured) for way, measured in runs.items()}
    return [{'stage': 'prepare', 'files': len(sources), 'text_mb': megabytes, 'way': way, 'seconds': seconds[way],
             'mb_per_s': megabytes / seconds[way], 'ratio': seconds['usual'] / seconds[way]} for way in commands]


def check_equal(paths: list[Path]) -> None:
    """Raise UserError if any dataset file differs from the first one."""
    for path in paths[1:]:
        with np.load(paths[0]) as expected, np.load(path) as members:
            for name in expected.files:
                if expected[name].dtype != members[name].dtype or not np.array_equal(expected[name], members[name]):
                    raise UserError(f'{path}: the array {name} differs from the one in {paths[0]}')
