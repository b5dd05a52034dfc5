"""What an interchange file holds, and what is off with it.

    python data/check.py data/ntu/NTU60_XSub.npz [more.npz ...] [--json facts.json]

A file's report ends with a line `off: ...` for each fault, or with `nothing is off`. Exit code 0 when no file has a
fault, 1 when one has, 2 when a file is not of this kind at all.

A frame counts when its coordinates do not sum to zero: training takes a clip to be as long as it has such frames. The
other frames before the last one that is not all zero are gaps. An empty clip has no frame that counts. Copies are clips
equal in every number; all-zero clips are not compared.

The SHA-256 of a member is that of its array's bytes in C order, `hashlib.sha256(array.tobytes())`: of the values as
stored, without the .npy header, so that neither the header's version nor the archive's compression has a part in it.
Shape and type are not in it; they stand beside it.

Every member is read once, in blocks; what stays in memory is a few hundred bytes a clip.

Axis letters: N clips of a split, B clips of a block, T frames, F frames of a block without the padding, M bodies,
V joints, C = 3 coordinates in metres. Rows and labels count from 0.
"""

import sys
import zipfile
from collections import Counter
from collections.abc import Iterator, Sequence
from hashlib import sha256
from itertools import groupby, pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

if not __package__:  # run by path: the repository's root is not on the search path yet
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from data.datasets import find_protocol
from data.ntu_text import NAME
from feeder.npz import open_member
from util.errors import Parser, UserError, run_main
from util.files import check_writable, write_json

SPLITS = ('train', 'test')
NUMBERS = {'x_train': 'float32', 'y_train': 'float64', 'x_test': 'float32', 'y_test': 'float64'}
BLOCK_BYTES = 1 << 24
FAR = 20             # metres; a Kinect sees 8 at most
FEW = 3              # examples in a line
BINS, BAR = 8, 16    # of the histogram: bins, characters of the longest bar
LAYOUTS = {150: (2, 25), 60: (1, 20)}    # numbers a frame: bodies, joints


def full_set(file: str) -> tuple[int, int, int, int, int] | None:
    """Training clips, test clips, classes, T and numbers per frame of a dataset file of the full set, by its name."""
    match = find_protocol(file)
    if match is None or match[1].counts is None:
        return None
    dataset, protocol = match
    return *protocol.counts, dataset.classes, dataset.frames, 3 * dataset.joints * dataset.bodies


class Clips(NamedTuple):
    """What one look at N clips finds."""
    valid: np.ndarray     # (N,) frames that count
    end: np.ndarray       # (N,) frames before the padding
    low: np.ndarray       # (N,) smallest coordinate, padding included; NaN when the clip holds one
    high: np.ndarray      # (N,) largest
    second: np.ndarray    # (N,) second body: 0 empty, 1 copy of the first, 2 its own; -1 not looked at
    digest: np.ndarray    # (N,) SHA-256 of the frames before the padding

    @property
    def finite(self) -> np.ndarray:
        return np.isfinite(self.low) & np.isfinite(self.high)


class Split(NamedTuple):
    """What is known of the N clips of a split."""
    clips: Clips
    label: np.ndarray            # (rows of y,), -1 where one is not one-hot
    names: list[str] | None      # N of them

    def call(self, row: int) -> str:
        return f'row {row}' if self.names is None else quote(self.names[row])

    def where(self, odd: np.ndarray) -> list[str]:
        """What calls the clips where odd (N,) holds."""
        return [self.call(row) for row in np.flatnonzero(odd)]


def open_members(path: Path) -> tuple[dict[str, np.ndarray], list[str]]:
    """All arrays of the file, mapped, and a line for each additional one that cannot be (Python objects, say).

    Raises UserError when x_train, y_train, x_test or y_test is missing, damaged, empty or something else.
    """
    arrays, faults = {member: open_member(path, member) for member in NUMBERS}, []
    for member, array in arrays.items():
        ndim, kinds, expected = (3, 'f', '(N, T, M·V·3)') if member[0] == 'x' else (2, 'biuf', 'one-hot (N, classes)')
        if array.ndim != ndim or array.dtype.kind not in kinds or array.size == 0:
            raise UserError(f'{path}: {member} is {array.dtype} {array.shape}; expected are numbers {expected}; write '
                            'the file again')
    with zipfile.ZipFile(path) as archive:
        stored = [name.removesuffix('.npy') for name in archive.namelist() if name.endswith('.npy')]
    for member in stored:
        try:
            arrays[member] = arrays[member] if member in arrays else open_member(path, member)
        except UserError as error:
            faults.append(str(error).removeprefix(f'{path}: '))
    return arrays, faults


def read_blocks(path: Path, member: str) -> Iterator[np.ndarray]:
    """The member's array in blocks of rows (B, ...), C order; raises UserError when it cannot be mapped.

    Each block has a map of its own: what was read counts as the process's memory until its map is closed.
    """
    begin, length = 0, 1
    while begin < length:
        array = np.atleast_1d(open_member(path, member))
        length, rows = len(array), max(1, BLOCK_BYTES // max(array[:1].nbytes, 1))
        block = np.ascontiguousarray(array[begin:begin + rows])
        del array
        yield block
        begin += rows


def look_at_clips(x: np.ndarray) -> Clips:
    """One look at the clips x (B, T, M·V·3)."""
    with np.errstate(invalid='ignore', over='ignore'):
        valid = x.sum(axis=2) != 0                                        # (B, T), summed as the feeder does
    low, high = x.min(axis=2), x.max(axis=2)                              # (B, T); NaN where a frame holds one
    filled = (low != 0) | (high != 0)
    end = np.where(filled.any(axis=1), x.shape[1] - filled[:, ::-1].argmax(axis=1), 0)
    frames = x[np.arange(x.shape[1]) < end[:, None]] + 0                  # (F, M·V·3); -0 + 0 is 0
    second = np.full(len(x), -1)
    if LAYOUTS.get(x.shape[2], (1,))[0] == 2:
        one, two = np.split(frames, 2, axis=1)                            # (F, V·3) each
        clip = np.repeat(np.arange(len(x)), end)                          # (F,)
        there, differs = (np.bincount(clip, found.any(axis=1), len(x)) > 0 for found in (two != 0, one != two))
        second = np.where(there, 1 + differs, 0)
    digest = [sha256(frames[a:b]).digest() for a, b in pairwise([0, *end.cumsum()])]
    return Clips(valid.sum(axis=1), end, low.min(axis=1), high.max(axis=1), second, np.array(digest, object))


def look_at_labels(y: np.ndarray) -> np.ndarray:
    """Labels (B,) of the rows y (B, classes); -1 where a row is not one-hot."""
    one_hot = np.isin(y, (0, 1)).all(axis=1) & (np.count_nonzero(y, axis=1) == 1)
    return np.where(one_hot, y.argmax(axis=1), -1)


def read(path: Path, arrays: dict[str, np.ndarray], bar: tqdm) -> tuple[dict[str, Split], dict[str, str]]:
    """The two splits, and the SHA-256 of each member."""
    looks = {f'{kind}_{split}': look for split in SPLITS
             for kind, look in (('x', look_at_clips), ('y', look_at_labels), ('name', np.copy))}
    found, sums = {}, {}
    for member in arrays:
        digest, found[member] = sha256(), []
        for block in read_blocks(path, member):
            digest.update(block.reshape(-1).view(np.uint8))
            found[member].append(looks.get(member, len)(block))
            bar.update(block.nbytes)
        sums[member] = digest.hexdigest()
    splits = {}
    for split in SPLITS:
        clips = Clips(*map(np.concatenate, zip(*found[f'x_{split}'], strict=True)))
        names = np.concatenate(found.get(f'name_{split}', [[]]))
        splits[split] = Split(clips, np.concatenate(found[f'y_{split}']),
                              names.tolist() if are_texts(names, len(clips.end)) else None)
    return splits, sums


def find_copies(train: Clips, test: Clips) -> tuple[list, list, list]:
    """Pairs (row, first row it equals): within train, within test, and of test rows with training rows."""
    rows = [[(row, clips.digest[row]) for row in np.flatnonzero(clips.end).tolist()] for clips in (train, test)]
    first = [{digest: row for row, digest in reversed(part)} for part in rows]
    within = ([(row, seen[digest]) for row, digest in part if seen[digest] != row]
              for part, seen in zip(rows, first, strict=True))
    return *within, [(row, first[0][digest]) for row, digest in rows[1] if digest in first[0]]


def are_texts(names: np.ndarray, number: int) -> bool:
    return names.dtype.kind == 'U' and names.shape == (number,)


def quote(name: str) -> str:
    return name if name.isprintable() else ascii(name)


def listed(found: Sequence[str]) -> str:
    """The first few, and an ellipsis when there are more."""
    return ', '.join(found[:FEW]) + ', …' * (len(found) > FEW)


def line(what: str, found: Sequence[str]) -> list[str]:
    """No line when nothing was found."""
    return [f'{what}: {len(found):,} ({listed(found)})'] if found else []


def ranges(numbers: list[int]) -> list[str]:
    """Ascending numbers, neighbours drawn together: '3', '7-9'."""
    runs = [[number for _, number in run] for _, run in groupby(enumerate(numbers), lambda pair: pair[1] - pair[0])]
    return [f'{run[0]}-{run[-1]}' if len(run) > 1 else f'{run[0]}' for run in runs]


def odd_members(arrays: dict[str, np.ndarray]) -> list[str]:
    """Types and shapes that are not the format's, or do not fit each other."""
    lines = [f'{member}: the numbers are {arrays[member].dtype}, not {dtype}'
             for member, dtype in NUMBERS.items() if arrays[member].dtype != dtype]
    for letter, what in (('x', 'frames x numbers a frame'), ('y', 'classes')):
        train, test = (' x '.join(map(str, arrays[f'{letter}_{split}'].shape[1:])) for split in SPLITS)
        if train != test:
            lines.append(f'{letter}_train and {letter}_test: {what} differ, {train} and {test}')
    if ('name_train' in arrays) != ('name_test' in arrays):
        lines.append('name_train and name_test: one of them is missing')
    for split in SPLITS:
        x, y, name = (arrays.get(f'{kind}_{split}') for kind in ('x', 'y', 'name'))
        if len(y) != len(x):
            lines.append(f'y_{split}: {len(y):,} rows for the {len(x):,} clips of x_{split}')
        if name is not None and not are_texts(name, len(x)):
            lines.append(f'name_{split}: {name.dtype} {name.shape}, not text for the {len(x):,} clips of x_{split}')
    return lines


def odd_rows(split: str, given: Split) -> list[str]:
    """What is off with single clips, labels and names of a split."""
    clips, label, names = given.clips, given.label, given.names or []
    far = clips.finite & (np.maximum(-clips.low, clips.high) > FAR)
    told = [match and int(match[5]) - 1 for match in map(NAME.fullmatch, names)]    # None: no name of NTU's
    against = [f'{name} has {held}' for name, said, held in zip(names, told, label, strict=False)
               if said is not None and held not in (-1, said)]
    return [*line(f'x_{split}: empty clips', given.where(clips.valid == 0)),
            *line(f'x_{split}: clips with NaN or infinity', given.where(~clips.finite)),
            *line(f'x_{split}: clips with coordinates beyond {FAR} m', given.where(far)),
            *line(f'y_{split}: rows that are not one-hot', [f'row {row}' for row in np.flatnonzero(label < 0)]),
            *line(f'y_{split}: labels against the name', against if len(label) == len(names) else []),
            *line(f'name_{split}: names more than once', [quote(name) for name, n in Counter(names).items() if n > 1])]


def odd_pairs(train: Split, test: Split, copies: tuple[list, list, list]) -> list[str]:
    """Names in both splits, and clips that are there twice."""
    both = sorted({*(train.names or [])} & {*(test.names or [])})
    lines = line('name_train and name_test: names in both', [quote(name) for name in both])
    for what, pairs, given, origin in (('x_train: copies of earlier clips', copies[0], train, train),
                                       ('x_test: copies of earlier clips', copies[1], test, test),
                                       ('x_test: copies of training clips', copies[2], test, train)):
        lines += line(what, [f'{given.call(row)} = {origin.call(first)}' for row, first in pairs])
    return lines


def odd_sizes(stem: str, arrays: dict[str, np.ndarray]) -> tuple[list[str], list[str]]:
    """Where the file differs from the full set that it is named after: in clips, and in shape."""
    x, y = arrays['x_train'], arrays['y_train']
    found = len(x), len(arrays['x_test']), y.shape[1], *x.shape[1:]
    what = ('training clips', 'test clips', 'classes', 'frames (T)', 'numbers a frame')
    lines = [f'{here:,} {noun}; the full {stem} has {full:,}' if here != full else ''
             for here, full, noun in zip(found, full_set(stem) or found, what, strict=True)]
    return list(filter(None, lines[:2])), list(filter(None, lines[2:]))


def check(path: Path, arrays: dict[str, np.ndarray], faults: list[str], bar: tqdm) -> dict:
    """The facts on a file, as they are printed and written as JSON; `arrays` and `faults` are `open_members`'."""
    splits, sums = read(path, arrays, bar)
    copies = find_copies(*(split.clips for split in splits.values()))
    counts, shapes = odd_sizes(path.stem, arrays)
    notes = []
    if arrays['x_train'].shape[2] not in LAYOUTS:
        notes.append('bodies and joints are unknown for so many numbers a frame; second bodies are not looked at')
    dataset, protocol = find_protocol(path.stem) or (None, None)
    if protocol and protocol.tolerance and all(abs(len(arrays[f'x_{split}']) / full - 1) < protocol.tolerance
                                               for split, full in zip(SPLITS, protocol.counts, strict=True)):
        counts, notes = [], notes + [f'{text}, as reported by later work' for text in counts]
    off = [*faults, *odd_members(arrays), *counts, *shapes]
    off += [text for split, given in splits.items() for text in odd_rows(split, given)]
    if dataset and tuple(map(len, copies)) == dataset.copies.get(path.stem):
        notes.append('the copies are those of the release: its view 3 clips of a02 and a03 are its view 2 clips')
        off += odd_pairs(*splits.values(), ([], [], []))
    else:
        off += odd_pairs(*splits.values(), copies)
    return {'file': str(path), 'notes': notes, 'off': off,
            'copies': dict(zip(('within_train', 'within_test', 'of_train_in_test'), map(len, copies), strict=True)),
            'members': {member: {'sha256': sums[member], 'type': str(array.dtype), 'shape': array.shape}
                        for member, array in arrays.items()},
            **{split: split_facts(arrays[f'x_{split}'], arrays[f'y_{split}'].shape[1], given)
               for split, given in splits.items()}}


def split_facts(x: np.ndarray, classes: int, given: Split) -> dict:
    """The figures of one split, x (N, T, M·V·3)."""
    clips, (number, frames, width) = given.clips, x.shape
    per_class = np.bincount(given.label[given.label >= 0], minlength=classes)
    edges = [*range(1, frames + 1, -(-frames // BINS)), frames + 1]
    gaps, some = clips.end - clips.valid, clips.finite.any()
    return {
        'clips': number, 'frames': frames, 'numbers': width, 'bodies_joints': LAYOUTS.get(width), 'classes': classes,
        'clips_per_class': per_class.tolist(), 'absent_classes': np.flatnonzero(per_class == 0).tolist(),
        'length': [int(clips.valid.min()), float(np.median(clips.valid)), int(clips.valid.max())],
        'lengths': {f'{a}-{b - 1}': int(((clips.valid >= a) & (clips.valid < b)).sum()) for a, b in pairwise(edges)},
        'gap_frames': int(gaps.sum()), 'clips_with_gaps': int((gaps > 0).sum()),
        'second_body': {kind: int(((clips.second == code) & (clips.end > 0)).sum())
                        for code, kind in enumerate(('empty', 'copy', 'own'))},
        'empty': int((clips.valid == 0).sum()), 'not_finite': int((~clips.finite).sum()),
        'range': [float(clips.low[clips.finite].min()), float(clips.high[clips.finite].max())] if some else None,
    }


def column(facts: dict) -> dict[str, str]:
    """A split's column of the table, by row."""
    layout, counts, absent = facts['bodies_joints'], facts['clips_per_class'], facts['absent_classes']
    cells = {
        'clips': f'{facts["clips"]:,}',
        'frames x numbers': f'{facts["frames"]} x {facts["numbers"]}',
        'bodies x joints': '{} x {}'.format(*layout) if layout else 'unknown',
        'classes': f'{facts["classes"]}',
        '  without a clip': f'{len(absent)}: {listed(ranges(absent))}' if absent else '0',
        '  clips: least, median, most': f'{min(counts):,}  {np.median(counts):,g}  {max(counts):,}',
        'frames: least, median, most': '{:,}  {:,g}  {:,}'.format(*facts['length']),
    }
    longest = max(1, *facts['lengths'].values())
    for interval, number in facts['lengths'].items():
        cells[f'  {interval}'] = f'{number:,} {"#" * -(-BAR * number // longest):{BAR}}'
    cells['gaps'] = f'{facts["gap_frames"]:,} frames, {facts["clips_with_gaps"]:,} clips'
    if layout and layout[0] == 2:
        cells |= {f'second body: {kind}': f'{number:,}' for kind, number in facts['second_body'].items()}
    return cells | {'empty clips': f'{facts["empty"]:,}', 'clips with NaN or infinity': f'{facts["not_finite"]:,}',
                    'coordinates': '{:.3f} to {:.3f} m'.format(*facts['range']) if facts['range'] else 'none'}


def report(facts: dict) -> str:
    """The facts as text; the last lines say what is off."""
    train, test = (column(facts[split]) for split in SPLITS)
    lines = [facts['file'], f'{"":28}{"train":>26}{"test":>26}']
    lines += [f'{row:28}{train.get(row, ""):>26}{test.get(row, ""):>26}'.rstrip() for row in {**train, **test}]
    lines.append('copies: {:,} within train, {:,} within test, {:,} of training clips in test'.format(
        *facts['copies'].values()))
    lines += [f'sha256 of {member}: {held["sha256"]} ({held["type"]}, {" x ".join(map(str, held["shape"]))})'
              for member, held in facts['members'].items()]
    lines += [f'note: {text}' for text in facts['notes']]
    return '\n'.join([*lines, *(f'off: {text}' for text in facts['off'])] + ['nothing is off'] * (not facts['off']))


def main(argv: list[str] | None = None) -> int:
    parser = Parser(description='what interchange files hold, and what is off with them')
    parser.add_argument('files', type=Path, nargs='+', metavar='FILE.npz')
    parser.add_argument('--json', type=Path, metavar='FILE.json', help='the facts as JSON as well')
    args = parser.parse_args(argv)
    if args.json and args.json.suffix != '.json':
        raise UserError(f'--json {args.json}: give it a name that ends with .json')
    if args.json:
        check_writable(args.json.parent)

    checked, opened = [], [open_members(path) for path in args.files]
    for path, (arrays, faults) in zip(args.files, opened, strict=True):
        size = sum(array.nbytes for array in arrays.values())
        with tqdm(desc=path.name, total=size, unit='B', unit_scale=True, disable=None) as bar:
            checked.append(check(path, arrays, faults, bar))
        print('\n' * (len(checked) > 1) + report(checked[-1]), flush=True)
    if args.json:
        write_json(args.json, checked)
    return int(any(facts['off'] for facts in checked))


if __name__ == '__main__':
    run_main(main)
