"""Report the content of dataset files, and problems in them.

    python data/check.py data/ntu/NTU60_XSub.npz [more.npz ...] [--json facts.json]

A report ends with a line `problem: ...` for each problem, or with `no problems`. The exit code is 0 without problems, 1
with problems, and 2 if a file is not a dataset file.

A frame is valid if its coordinates do not sum to zero; in training, the length of a clip is its number of valid frames.
Other frames before the last one that is not all zero are gaps, and an empty clip has no valid frame. Copies are clips
with the same numbers throughout; all-zero clips are not compared. The SHA-256 of a member is
`hashlib.sha256(array.tobytes())`, which does not depend on headers or compression.

N clips of a split, T frames, M bodies, V joints, 3 coordinates in metres. Rows and labels are numbered from 0.
"""

import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
from tqdm import tqdm

if not __package__:     # run as a file, from any working directory
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from data.datasets import find_protocol
from data.measurements import BODIES_JOINTS, MEMBERS, SECOND_BODY, SPLITS, Split, open_members, read_dataset_file
from data.ntu_text import parse_name
from util.errors import Parser, UserError, printable, run_main
from util.files import check_writable, write_json

FAR = 20        # metres; a Kinect's range is 8
EXAMPLES = 3    # per line
BINS = 8        # of the histogram of lengths


# ---- problems --------------------------------------------------------------------------------------------------------


def describe(problem: str, examples: Sequence[str]) -> list[str]:
    """Return the line that reports a problem with its first examples, or no line if there are no examples."""
    listed = ', '.join(examples[:EXAMPLES]) + ', …' * (len(examples) > EXAMPLES)
    return [f'{problem}: {len(examples):,} ({listed})'] if examples else []


def check_members(arrays: dict[str, np.ndarray], splits: dict[str, Split]) -> Iterator[str]:
    """Yield problems with types and shapes."""
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
    """Yield problems with single clips, labels and names of a split."""
    clips, labels, names = split.clips, split.labels, split.names or []
    finite = np.isfinite(clips.low) & np.isfinite(clips.high)
    yield from describe(f'x_{name}: empty clips', split.titles(clips.valid == 0))
    yield from describe(f'x_{name}: clips with NaN or infinity', split.titles(~finite))
    far = finite & (np.maximum(-clips.low, clips.high) > FAR)
    yield from describe(f'x_{name}: clips with coordinates beyond {FAR} m', split.titles(far))
    yield from describe(f'y_{name}: rows that are not one-hot', [f'row {row}' for row in np.flatnonzero(labels < 0)])
    yield from describe(f'y_{name}: labels that contradict the name',
                        [f'{title} has {label}' for title, label in zip(names, labels, strict=False)
                         if label >= 0 and label_from_name(title) not in (None, label)])
    yield from describe(f'name_{name}: names more than once',
                        [printable(title) for title, count in Counter(names).items() if count > 1])


def label_from_name(name: str) -> int | None:
    """Return the label that is part of a sample name of NTU RGB+D, or None for other names."""
    try:
        return parse_name(name).action - 1
    except UserError:
        return None


def find_copies(train: Split, test: Split) -> dict[str, list[str]]:
    """Return pairs 'copy = original clip' within training, within test, and of test with training clips."""
    def pairs(split: Split, origin: Split) -> list[str]:
        first = {}
        for row in np.flatnonzero(origin.clips.end).tolist():
            first.setdefault(origin.clips.digest[row], row)
        return [f'{split.title(row)} = {origin.title(first[digest])}' for row, digest in enumerate(split.clips.digest)
                if digest in first and (split is not origin or first[digest] != row)]

    return {'x_train: copies of earlier clips': pairs(train, train),
            'x_test: copies of earlier clips': pairs(test, test),
            'x_test: copies of training clips': pairs(test, train)}


def check_sizes(file: str, arrays: dict[str, np.ndarray]) -> tuple[list[str], list[str]]:
    """Compare a file with the full dataset of the same name; returns problems and notes."""
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
    """Return the facts about a file, as they are printed and written as JSON."""
    splits, sums = read_dataset_file(path, list(arrays), bar)
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
    """Return the statistics of a split of clips x (N, T, M·V·3)."""
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
                        for code, kind in enumerate(SECOND_BODY[:3])},
        'empty': int((clips.valid == 0).sum()), 'not_finite': int((~finite).sum()),
        'range': [float(clips.low[finite].min()), float(clips.high[finite].max())] if finite.any() else [np.nan] * 2,
    }


def format_column(facts: dict) -> dict[str, str]:
    """Return the cells of a split's column in the table, by row name."""
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
        'coordinates': '{:.3f} to {:.3f}'.format(*facts['range'])}


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
            raise UserError(f'--json {args.json}: choose a name that ends in .json')
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
