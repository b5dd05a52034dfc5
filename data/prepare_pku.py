"""PKU-MMD I and II, raw skeleton text, to one interchange file a protocol.

    python data/prepare_pku.py --phase 1      # data/pku_raw/v1 to data/pku_v1/PKUv1_XSub.npz and PKUv1_XView.npz
    python data/prepare_pku.py --phase 2 --raw DIR --out DIR

The raw folder holds `skeleton/NAME.txt` (a row a frame: 150 numbers, two bodies of 25 joints), `label/NAME.txt` (rows
class,start,end,confidence) and the two split files, cross-subject.txt and cross-view.txt in any of the spellings that
circulate. Each label row is a sample, not centred, cut at 300 frames; videos in sorted order, then label rows.
"""

import re
import sys
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import numpy as np

if not __package__:  # run by path: the repository's root is not on the search path yet
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from data.datasets import DATASETS
from data.ntu_text import FARTHEST, split_lines
from data.pipeline import (
    Parsed,
    Sample,
    Source,
    Tally,
    add_options,
    chosen_protocols,
    collect,
    settle_damaged,
    write_protocol,
)
from util.errors import Parser, UserError, run_main

HERE = Path(__file__).resolve().parent
CLASSES, FRAMES, WIDTH = DATASETS['pku1'].classes, DATASETS['pku1'].frames, 150


class Video(NamedTuple):
    skeleton: Path
    label: Path

    def __str__(self) -> str:
        return str(self.skeleton)


def find_videos(raw: Path, tally: Tally) -> list[Video]:
    """The videos of a raw folder, sorted by name; half ones, without skeletons or labels, count as damaged.

    Raises:
        UserError: a folder is missing or empty.
    """
    files = {}
    for kind in ('skeleton', 'label'):
        folder = raw / kind
        if not folder.is_dir():
            raise UserError(f'{folder}: no such folder; give --raw the one that has skeleton/, label/ and the splits')
        try:
            files[kind] = {path.stem: path for path in folder.iterdir()
                           if path.suffix.lower() == '.txt' and not path.name.startswith('.')}
        except OSError as error:
            raise UserError(f'{folder}: cannot be read ({error.strerror}); correct its permissions') from error
        if not files[kind]:
            raise UserError(f'{folder}: no .txt file in it; put the release\'s {kind} files there')
    for kind, other in (('skeleton', 'label'), ('label', 'skeleton')):
        tally.damaged += [f'{files[kind][stem]}: there is no {other}/{stem}.txt'
                          for stem in sorted(files[kind].keys() - files[other].keys())]
    return [Video(files['skeleton'][stem], files['label'][stem])
            for stem in sorted(files['skeleton'].keys() & files['label'].keys())]


def find_split(raw: Path, kind: str) -> Path:
    """The split file for 'subject' or 'view' in the raw folder; raises UserError unless there is just one."""
    spelling = re.compile(rf'cross[-_ ]?{kind}([-_ ]?v?[12])?\.txt', re.IGNORECASE)
    found = sorted(path for path in raw.iterdir() if spelling.fullmatch(path.name))
    if len(found) != 1:
        which = f'there are {" and ".join(path.name for path in found)}; keep one' if found else 'there is none'
        raise UserError(f'{raw}: needs one split file like cross-{kind}.txt, {which}')
    return found[0]


def training_videos(path: Path) -> list[str]:
    """The training videos that line 2 of a split file names; raises UserError when there are none."""
    try:
        lines = path.read_text(encoding='utf-8-sig', errors='replace').splitlines()
    except OSError as error:
        raise UserError(f'{path}: cannot be read ({error.strerror}); correct its permissions') from error
    names = [name for name in re.split(r'[,\s]+', lines[1] if len(lines) > 1 else '') if name]
    if not names:
        raise UserError(f'{path}: line 2 names no training video; get the file from the release again')
    return names


def read_text(path: Path) -> bytes:
    try:
        return Source(path).read()
    except UserError as error:
        raise UserError(f'{path} {error}') from error


def parse_skeleton(text: bytes) -> np.ndarray:
    """Frames (T, 150) float64 of a video, metres; raises UserError naming the first line that is not 150 numbers."""
    lines = split_lines(text)
    if lines == ['']:  # which NumPy would warn of
        raise UserError('line 1: the file is empty')
    try:
        frames = np.loadtxt(lines, comments=None, ndmin=2)
        if frames.shape == (len(lines), WIDTH) and (np.abs(frames) <= FARTHEST).all():
            return frames
    except ValueError:
        pass
    for number, line in enumerate(lines, 1):
        if (fields := len(line.split())) != WIDTH:
            raise UserError(f'line {number}: {fields} fields in place of {WIDTH}')
        try:
            row = np.loadtxt([line], comments=None)
        except ValueError as error:
            raise UserError(f'line {number}: {error}') from None
        if not (np.abs(row) <= FARTHEST).all():
            raise UserError(f'line {number}: a coordinate is not finite or far off')
    raise AssertionError('every line is a frame by itself')


def parse_label(line: bytes, frames: int) -> tuple[int, int, int]:
    """Class (0-based), start and end, as it stands, of a label row in a video of so many frames.

    Raises UserError for a row that is none, or lies outside the video.
    """
    fields = [field.strip() for field in line.split(b',')]
    if len(fields) != 4 or not all(field.isdigit() and len(field) < 10 for field in fields[:3]):
        raise UserError(f'{line.decode("latin-1").strip()!r:.60} is not class,start,end,confidence')
    action, start, end = map(int, fields[:3])
    if not 1 <= action <= CLASSES:
        raise UserError(f'class {action} is not one of 1..{CLASSES}')
    if not start < min(end, frames):
        raise UserError(f'frames {start} to {end} are none of the {frames} of the video')
    return action - 1, start, end


def parse(video: Video) -> Parsed:
    """The samples of one video; raises UserError when its skeletons are damaged or it cannot be read."""
    text, labels = read_text(video.skeleton), read_text(video.label)
    frames = parse_skeleton(text)
    rows = [(number, line) for number, line in enumerate(labels.split(b'\n'), 1) if line.strip()]
    samples, counts, damaged = [], Counter(), []
    if not rows:
        raise UserError(f'no row in {video.label}')
    for number, line in rows:
        try:
            label, start, end = parse_label(line, len(frames))
        except UserError as error:
            damaged.append(f'{video.label}: line {number}: {error}')
            continue
        counts['clipped: their label ends after the video'] += end > len(frames)
        sample = frames[start:end]
        if sample.sum() == 0:
            counts['left out: all coordinates are zero'] += 1
            continue
        counts[f'cut at {FRAMES} frames'] += len(sample) > FRAMES
        name = f'{video.skeleton.stem}_{number:03}'
        samples.append(Sample(name, label, sample[:FRAMES].astype(np.float32)))
    return Parsed(samples, len(text) + len(labels), counts, damaged)


def main(argv: list[str] | None = None) -> int:
    parser = Parser(description='PKU-MMD raw skeletons to PKUv1_*.npz or PKUv2_*.npz')
    parser.add_argument('--phase', type=int, choices=(1, 2), required=True)
    parser.add_argument('--raw', type=Path, help='default: data/pku_raw/v1 or v2')
    parser.add_argument('--out', type=Path, help='folder for the files; default: data/pku_v1 or pku_v2')
    parser.add_argument('--protocol', nargs='+', help='xsub, xview; default: both')
    add_options(parser)
    args = parser.parse_args(argv)
    raw, out = args.raw or HERE / 'pku_raw' / f'v{args.phase}', args.out or HERE / f'pku_v{args.phase}'
    protocols = chosen_protocols(args.protocol, DATASETS[f'pku{args.phase}'].protocols)

    tally = Tally()
    videos = find_videos(raw, tally)
    splits = {protocol.file: find_split(raw, protocol.key) for protocol in protocols}
    train = {file: set(training_videos(path)) for file, path in splits.items()}
    there = {video.skeleton.stem for video in videos}
    for file, path in splits.items():
        tally.damaged += [f'{path}: line 2: there is no video {name}' for name in sorted(train[file] - there)]
    spool = collect(videos, parse, out, args.workers, 1, tally)
    settle_damaged(tally.damaged, args.skip_damaged, out / f'PKUv{args.phase}_damaged.txt')
    if not len(spool):
        raise UserError(f'{raw}: no sample in it that could be used')
    for file in splits:
        parts = [], []
        for index, name in enumerate(spool.names):
            parts[name.rsplit('_', 1)[0] not in train[file]].append(index)
        write_protocol(out / f'{file}.npz', spool, *parts, CLASSES, FRAMES, WIDTH)
    tally.print(spool)
    return 0


if __name__ == '__main__':
    run_main(main)
