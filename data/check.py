"""Report the content of dataset files, and problems in them.

    python data/check.py data/ntu/NTU60_XSub.npz [more.npz ...] [--json facts.json]

A report ends with a line `problem: ...` for each problem, or with `no problems`. Exit code 0 without problems, 1 with
some, 2 if a file is not a dataset file.

A frame is valid if its coordinates do not sum to zero: in training, a clip is as long as it has valid frames. Other
frames before the last one that is not all zero are gaps; an empty clip has no valid frame. Copies are clips equal in
every number; all-zero clips are not compared. The SHA-256 of a member is `hashlib.sha256(array.tobytes())`, so it does
not depend on headers or compression. Every member is read once, in blocks; a few hundred bytes per clip stay in memory.

N clips of a split, B clips of a block, T frames, F frames of a block without padding, M bodies, V joints, 3 coordinates
in metres. Rows and labels count from 0.
"""

import sys
import zipfile
from collections import Counter
from collections.abc import Iterator, Sequence
from hashlib import sha256
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

if not __package__:     # run as a file, from any working directory
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from data.datasets import DATASETS, find_protocol
from data.ntu_text import parse_name
from feeder.npz import open_member
from util.errors import Parser, UserError, printable, run_main
from util.files import check_writable, write_json

SPLITS = ('train', 'test')
MEMBERS = {'x': (3, 'float32', '(N, T, M·V·3)'), 'y': (2, 'float64', 'one-hot (N, classes)')}   # dimensions, type
SECOND_BODY = ('empty', 'copy', 'own')
BODIES_JOINTS = {dataset.width: (dataset.bodies, dataset.joints) for dataset in DATASETS.values()}
BLOCK_BYTES = 1 << 24
FAR = 20        # metres; a Kinect's range is 8
EXAMPLES = 3    # per line
BINS = 8        # of the histogram of lengths


class Clips(NamedTuple):
    """Measurements of N clips, arrays (N,)."""

    valid: np.ndarray       # valid frames
    end: np.ndarray         # frames before the padding
    low: np.ndarray         # smallest coordinate; NaN if the clip has one
    high: np.ndarray        # largest
    second: np.ndarray      # second body: index into SECOND_BODY; -1 if there is none
    digest: np.ndarray      # SHA-256 of the frames before the padding


class Split(NamedTuple):
    """The N clips of a split, their labels (-1: not one-hot) and names."""

    clips: Clips
    labels: np.ndarray
    names: list[str] | None

    def title(self, row: int) -> str:
        return f'row {row}' if self.names is None else printable(self.names[row])

    def titles(self, mask: np.ndarray) -> list[str]:
        return [self.title(row) for row in np.flatnonzero(mask)]


# ---- reading ---------------------------------------------------------------------------------------------------------


def open_members(path: Path) -> dict[str, np.ndarray]:
    """Map all arrays of a dataset file; raises UserError if it is not one, or a member is damaged."""
    arrays = {f'{kind}_{split}': open_member(path, f'{kind}_{split}') for split in SPLITS for kind in MEMBERS}
    for member, array in arrays.items():
        ndim, _, expected = MEMBERS[member[0]]
        if array.ndim != ndim or array.dtype.kind not in 'biuf' or array.size == 0:
            raise UserError(f'{path}: {member} is {array.dtype} {array.shape}, expected numbers {expected}; write the '
                            'file again')
    with zipfile.ZipFile(path) as archive:
        members = [name.removesuffix('.npy') for name in archive.namelist() if name.endswith('.npy')]
    return arrays | {member: open_member(path, member) for member in members if member not in arrays}


def read_blocks(path: Path, member: str) -> Iterator[np.ndarray]:
    """Yield an array in blocks of rows (B, ...), each from its own map, whose pages leave memory when it is closed."""
    start, length = 0, 1
    while start < length:
        array = np.atleast_1d(open_member(path, member))
        length, rows = len(array), max(1, BLOCK_BYTES // max(array[:1].nbytes, 1))
        block = np.ascontiguousarray(array[start:start + rows])
        del array
        yield block
        start += rows


def measure_clips(x: np.ndarray) -> Clips:
    """Measure clips (B, T, M·V·3)."""
    with np.errstate(invalid='ignore', over='ignore'):
        valid = x.sum(axis=2) != 0                                                          # (B, T), as in the feeder
    low, high = x.min(axis=2), x.max(axis=2)                                                # (B, T)
    filled = (low != 0) | (high != 0)
    end = np.where(filled.any(axis=1), x.shape[1] - filled[:, ::-1].argmax(axis=1), 0)
    frames = x[np.arange(x.shape[1]) < end[:, None]] + 0        # (F, M·V·3); -0. + 0 is 0., so that copies are equal
    second = np.full(len(x), -1)
    if BODIES_JOINTS.get(x.shape[2], (1, 0))[0] == 2:
        first_body, second_body = np.split(frames, 2, axis=1)                               # (F, V·3) each
        clip = np.repeat(np.arange(len(x)), end)                                            # (F,)
        present, differs = (np.bincount(clip, mask.any(axis=1), len(x)) > 0
                            for mask in (second_body != 0, first_body != second_body))
        second = np.where(present, 1 + differs, 0)
    digest = [sha256(frames[start:stop]).digest() for start, stop in pairwise([0, *end.cumsum()])]
    return Clips(valid.sum(axis=1), end, low.min(axis=1), high.max(axis=1), second, np.array(digest, object))


def read_labels(y: np.ndarray) -> np.ndarray:
    """Return labels (B,) of rows (B, classes), -1 for rows that are not one-hot."""
    one_hot = np.isin(y, (0, 1)).all(axis=1) & (np.count_nonzero(y, axis=1) == 1)
    return np.where(one_hot, y.argmax(axis=1), -1)


def read(path: Path, arrays: dict[str, np.ndarray], bar: tqdm) -> tuple[dict[str, Split], dict[str, str]]:
    """Read a file: its two splits, and the SHA-256 of each member."""
    readers = {f'{kind}_{split}': reader for split in SPLITS
               for kind, reader in (('x', measure_clips), ('y', read_labels), ('name', np.copy))}
    parts, sums = {}, {}
    for member in arrays:
        digest, parts[member] = sha256(), []
        for block in read_blocks(path, member):
            digest.update(block.reshape(-1).view(np.uint8))
            parts[member].append(readers.get(member, len)(block))
            bar.update(block.nbytes)
        sums[member] = digest.hexdigest()
    splits = {}
    for split in SPLITS:
        clips = Clips(*map(np.concatenate, zip(*parts[f'x_{split}'], strict=True)))
        names = np.concatenate(parts.get(f'name_{split}', [[]]))
        splits[split] = Split(clips, np.concatenate(parts[f'y_{split}']),
                              names.tolist() if names.dtype.kind == 'U' and len(names) == len(clips.end) else None)
    return splits, sums


# ---- problems --------------------------------------------------------------------------------------------------------


def describe(problem: str, examples: Sequence[str]) -> list[str]:
    """Return the line of a problem with its first examples, none without examples."""
    listed = ', '.join(examples[:EXAMPLES]) + ', …' * (len(examples) > EXAMPLES)
    return [f'{problem}: {len(examples):,} ({listed})'] if examples else []


def check_members(arrays: dict[str, np.ndarray], splits: dict[str, Split]) -> Iterator[str]:
    """Yield problems of types and shapes."""
    for kind, (_, dtype, _) in MEMBERS.items():
        train, test = (arrays[f'{kind}_{split}'] for split in SPLITS)
        if {train.dtype, test.dtype} != {np.dtype(dtype)}:
            yield f'{kind}_train and {kind}_test: types {train.dtype} and {test.dtype}, not {dtype}'
        if train.shape[1:] != test.shape[1:]:
            yield f'{kind}_train and {kind}_test: shapes differ, {train.shape} and {test.shape}'
    for name, split in splits.items():
        clips = len(split.clips.end)
        if len(split.labels) != clips:
            yield f'y_{name}: {len(split.labels):,} rows for the {clips:,} clips of x_{name}'
        if split.names is None and ('name_train' in arrays or 'name_test' in arrays):
            yield f'name_{name}: not {clips:,} names'


def check_rows(name: str, split: Split) -> Iterator[str]:
    """Yield problems of single clips, labels and names of a split."""
    clips, labels, names = split.clips, split.labels, split.names or []
    finite = np.isfinite(clips.low) & np.isfinite(clips.high)
    yield from describe(f'x_{name}: empty clips', split.titles(clips.valid == 0))
    yield from describe(f'x_{name}: clips with NaN or infinity', split.titles(~finite))
    far = finite & (np.maximum(-clips.low, clips.high) > FAR)
    yield from describe(f'x_{name}: clips with coordinates beyond {FAR} m', split.titles(far))
    yield from describe(f'y_{name}: rows that are not one-hot', [f'row {row}' for row in np.flatnonzero(labels < 0)])
    yield from describe(f'y_{name}: labels that contradict the name',
                        [f'{title} has {label}' for title, label in zip(names, labels, strict=False)
                         if label_from_name(title) not in (None, label)])
    yield from describe(f'name_{name}: names more than once',
                        [printable(title) for title, count in Counter(names).items() if count > 1])


def label_from_name(name: str) -> int | None:
    """Return the label in a name of NTU RGB+D, None for other names."""
    try:
        return parse_name(name).action - 1
    except UserError:
        return None


def find_copies(train: Split, test: Split) -> dict[str, list[str]]:
    """Return pairs 'clip = first clip that it equals' within training, within test, and of test with training clips."""
    def first_rows(split: Split) -> dict[bytes, int]:
        return {digest: row for row, digest in reversed([*enumerate(split.clips.digest)]) if split.clips.end[row]}

    def pairs(split: Split, origin: Split) -> list[str]:
        first = first_rows(origin)
        return [f'{split.title(row)} = {origin.title(first[digest])}' for row, digest in enumerate(split.clips.digest)
                if digest in first and (split is not origin or first[digest] != row)]

    return {'x_train: copies of earlier clips': pairs(train, train),
            'x_test: copies of earlier clips': pairs(test, test),
            'x_test: copies of training clips': pairs(test, train)}


def check_sizes(file: str, arrays: dict[str, np.ndarray]) -> tuple[list[str], list[str]]:
    """Compare a file with the full dataset of its name; returns problems and notes."""
    dataset, protocol = find_protocol(file) or (None, None)
    if protocol is None or protocol.counts is None:
        return [], []
    x, y = arrays['x_train'], arrays['y_train']
    counts = len(x), len(arrays['x_test'])

    def compare(sizes: Sequence[int], full: Sequence[int], nouns: Sequence[str]) -> list[str]:
        return [f'{size:,} {noun}; the full {file} has {expected:,}'
                for size, expected, noun in zip(sizes, full, nouns, strict=True) if size != expected]

    clips = compare(counts, protocol.counts, ('training clips', 'test clips'))
    problems = compare((y.shape[1], *x.shape[1:]), (dataset.classes, dataset.frames, dataset.width),
                       ('classes', 'frames (T)', 'numbers per frame'))
    if all(abs(size / full - 1) < protocol.tolerance for size, full in zip(counts, protocol.counts, strict=True)):
        return problems, [f'{line}, as reported by later work' for line in clips]
    return clips + problems, []


# ---- report ----------------------------------------------------------------------------------------------------------


def check(path: Path, arrays: dict[str, np.ndarray], bar: tqdm) -> dict:
    """Return the facts on a file, as they are printed and written as JSON."""
    splits, sums = read(path, arrays, bar)
    train, test = splits.values()
    sizes, notes = check_sizes(path.stem, arrays)
    problems = [*check_members(arrays, splits), *sizes]
    problems += [line for name, split in splits.items() for line in check_rows(name, split)]
    both = sorted({*(train.names or [])} & {*(test.names or [])})
    problems += describe('name_train and name_test: names in both', [printable(name) for name in both])
    dataset, protocol = find_protocol(path.stem) or (None, None)
    copies = find_copies(train, test)
    counts = tuple(map(len, copies.values()))
    if protocol and any(counts) and counts == protocol.copies:
        notes.append('the copies are those of the release')
    else:
        problems += [line for problem, pairs in copies.items() for line in describe(problem, pairs)]
    return {'file': str(path), 'dataset': f'{dataset.title}; licence: {dataset.licence}' if dataset else 'unknown',
            'notes': notes, 'problems': problems,
            'copies': dict(zip(('within_train', 'within_test', 'of_train_in_test'), counts, strict=True)),
            'members': {member: {'sha256': sums[member], 'type': str(array.dtype), 'shape': array.shape}
                        for member, array in arrays.items()},
            **{name: summarise(arrays[f'x_{name}'], arrays[f'y_{name}'].shape[1], split)
               for name, split in splits.items()}}


def summarise(x: np.ndarray, classes: int, split: Split) -> dict:
    """Return the figures of a split of clips x (N, T, M·V·3)."""
    clips, (number, frames, width) = split.clips, x.shape
    finite = np.isfinite(clips.low) & np.isfinite(clips.high)
    per_class = np.bincount(split.labels[split.labels >= 0], minlength=classes)
    bodies, joints = BODIES_JOINTS.get(width, (None, None))
    edges = [*range(1, frames + 1, -(-frames // BINS)), frames + 1]
    gaps = clips.end - clips.valid
    return {
        'clips': number, 'frames': frames, 'numbers': width, 'bodies': bodies, 'joints': joints, 'classes': classes,
        'clips_per_class': per_class.tolist(), 'absent_classes': np.flatnonzero(per_class == 0).tolist(),
        'length': [int(clips.valid.min()), float(np.median(clips.valid)), int(clips.valid.max())],
        'lengths': {f'{start}-{stop - 1}': int(((clips.valid >= start) & (clips.valid < stop)).sum())
                    for start, stop in pairwise(edges)},
        'gap_frames': int(gaps.sum()), 'clips_with_gaps': int((gaps > 0).sum()),
        'second_body': {kind: int(((clips.second == code) & (clips.end > 0)).sum())
                        for code, kind in enumerate(SECOND_BODY)},
        'empty': int((clips.valid == 0).sum()), 'not_finite': int((~finite).sum()),
        'range': [float(clips.low[finite].min()), float(clips.high[finite].max())] if finite.any() else [np.nan] * 2,
    }


def format_column(facts: dict) -> dict[str, str]:
    """Return the cells of a split's column in the table, by row."""
    per_class = facts['clips_per_class']
    return {
        'clips': f'{facts["clips"]:,}', 'frames x numbers': f'{facts["frames"]} x {facts["numbers"]}',
        'bodies x joints': f'{facts["bodies"] or "unknown"} x {facts["joints"] or "unknown"}',
        'classes': f'{facts["classes"]}', '  without clips': f'{len(facts["absent_classes"])}',
        '  clips: min, median, max': f'{min(per_class):,}  {np.median(per_class):,g}  {max(per_class):,}',
        'frames: min, median, max': '{:,}  {:,g}  {:,}'.format(*facts['length']),
        **{f'  {interval}': f'{count:,}' for interval, count in facts['lengths'].items()},
        'gaps': f'{facts["gap_frames"]:,} frames, {facts["clips_with_gaps"]:,} clips',
        **({f'second body: {kind}': f'{count:,}' for kind, count in facts['second_body'].items()}
           if facts['bodies'] == 2 else {}),
        'empty clips': f'{facts["empty"]:,}', 'clips with NaN or infinity': f'{facts["not_finite"]:,}',
        'coordinates': '{:.3f} to {:.3f} m'.format(*facts['range'])}


def format_report(facts: dict) -> str:
    """Return the facts as text; the last lines are the problems."""
    train, test = (format_column(facts[split]) for split in SPLITS)
    lines = [facts['file'], f'dataset: {facts["dataset"]}', f'{"":28}{"train":>26}{"test":>26}']
    lines += [f'{row:28}{train.get(row, ""):>26}{test.get(row, ""):>26}'.rstrip() for row in {**train, **test}]
    lines.append('copies: {:,} within train, {:,} within test, {:,} of training clips in test'.format(
        *facts['copies'].values()))
    lines += [f'sha256 of {name}: {member["sha256"]} ({member["type"]}, {" x ".join(map(str, member["shape"]))})'
              for name, member in facts['members'].items()]
    lines += [f'note: {line}' for line in facts['notes']]
    return '\n'.join([*lines, *([f'problem: {line}' for line in facts['problems']] or ['no problems'])])


def main(argv: list[str] | None = None) -> int:
    parser = Parser(description='Report the content of dataset files, and problems in them.')
    parser.add_argument('files', type=Path, nargs='+', metavar='FILE.npz')
    parser.add_argument('--json', type=Path, metavar='FILE.json', help='write the facts as JSON too')
    args = parser.parse_args(argv)
    if args.json:
        if args.json.suffix != '.json':
            raise UserError(f'--json {args.json}: give a name that ends with .json')
        check_writable(args.json.parent)
    reports, opened = [], [open_members(path) for path in args.files]
    for path, arrays in zip(args.files, opened, strict=True):
        size = sum(array.nbytes for array in arrays.values())
        with tqdm(desc=path.name, total=size, unit='B', unit_scale=True, disable=None) as bar:
            reports.append(check(path, arrays, bar))
        print('\n' * (len(reports) > 1) + format_report(reports[-1]), flush=True)
    if args.json:
        write_json(args.json, reports)
    return int(any(facts['problems'] for facts in reports))


if __name__ == '__main__':
    run_main(main)
