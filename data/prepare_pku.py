"""Prepare PKU-MMD I and II: convert raw skeleton text to one dataset file per protocol.

    python data/prepare_pku.py --phase 1      # data/pku_raw/v1 to data/pku_v1/PKUv1_XSub.npz and PKUv1_XView.npz
    python data/prepare_pku.py --phase 2 --raw DIR --out DIR

The raw folder contains `skeleton/NAME.txt` (a line of 150 numbers per frame: two bodies of 25 joints), `label/NAME.txt`
(lines class,start,end,confidence) and two split files, cross-subject.txt and cross-view.txt, in any of the spellings
that are in use. Each label line is a sample, which is not centred and is cut after 300 frames. Samples are sorted by
the name of the video, then in the order of its label lines; the arrays equal those of the authors' script bit for bit.

T frames of a video.
"""

import re
import sys
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import numpy as np

if not __package__:     # run as a file, from any working directory
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from data.datasets import DATASETS
from data.ntu_text import FARTHEST, split_lines
from data.pipeline import Parsed, Tally, add_options, collect, select_protocols, settle_damaged, write_protocol
from data.sources import Source, find_sources
from data.spool import Sample
from util.errors import Parser, UserError, run_main

HERE = Path(__file__).resolve().parent
CLASSES, FRAMES, WIDTH = DATASETS['pku1'].classes, DATASETS['pku1'].frames, DATASETS['pku1'].width


class Video(NamedTuple):
    skeleton: Source
    label: Source

    def __str__(self) -> str:
        return str(self.skeleton)


def find_videos(raw: Path, tally: Tally) -> list[Video]:
    """Find the videos in a raw folder, sorted by name; those without skeletons or labels count as damaged.

    Raises:
        UserError: a folder is missing or empty.
    """
    skeletons, labels = ({source.stem: source for source in find_sources([raw / kind], '.txt')}
                         for kind in ('skeleton', 'label'))
    for files, others, kind in ((skeletons, labels, 'label'), (labels, skeletons, 'skeleton')):
        tally.damaged += [f'{files[stem]}: there is no {kind}/{stem}.txt' for stem in files if stem not in others]
    return [Video(skeletons[stem], labels[stem]) for stem in skeletons if stem in labels]


def find_split(raw: Path, kind: str) -> Path:
    """Return the split file for 'subject' or 'view' in the raw folder; raises UserError unless there is exactly one."""
    spelling = re.compile(rf'cross[-_ ]?{kind}([-_ ]?v?[12])?\.txt', re.IGNORECASE)
    paths = sorted(path for path in raw.iterdir() if spelling.fullmatch(path.name))
    if len(paths) != 1:
        problem = f'has {" and ".join(path.name for path in paths)}; keep one' if paths else 'has none'
        raise UserError(f'{raw}: needs one split file like cross-{kind}.txt, but {problem}')
    return paths[0]


def read_training_videos(path: Path) -> list[str]:
    """Read the training videos in line 2 of a split file; raises UserError if there is no video."""
    try:
        lines = path.read_text(encoding='utf-8-sig', errors='replace').splitlines()
    except OSError as error:
        raise UserError(f'{path}: cannot be read ({error.strerror}); correct its permissions') from error
    names = [name for name in re.split(r'[,\s]+', lines[1] if len(lines) > 1 else '') if name]
    if not names:
        raise UserError(f'{path}: line 2 lists no training video; download the file again')
    return names


def parse_skeleton(text: bytes) -> np.ndarray:
    """Parse the frames (T, 150) float64 of a video, in metres; raises UserError with the number of a damaged line."""
    lines = split_lines(text)
    try:
        return _parse_frames(lines)
    except ValueError:
        for number, line in enumerate(lines, 1):
            try:
                _parse_frames([line])
            except ValueError as error:
                raise UserError(f'line {number}: {error}') from None
    raise AssertionError('each line can be parsed by itself')


def _parse_frames(lines: list[str]) -> np.ndarray:
    if (fields := len(lines[0].split())) != WIDTH:
        raise ValueError(f'{fields} fields, expected {WIDTH}')
    frames = np.loadtxt(lines, comments=None, ndmin=2)
    if frames.shape != (len(lines), WIDTH):     # NumPy skips empty lines
        raise ValueError('a line is empty')
    if not (np.abs(frames) <= FARTHEST).all():
        raise ValueError('a coordinate is not finite or too large')
    return frames


def parse_label(line: bytes, frames: int) -> tuple[int, int, int]:
    """Parse class (numbered from 0), start and end from a label line of a video of `frames` frames.

    Raises UserError for an invalid line, or one that is outside the video.
    """
    fields = [field.strip() for field in line.split(b',')]
    if len(fields) != 4 or not all(field.isdigit() and len(field) < 10 for field in fields[:3]):
        raise UserError(f'{line.decode("latin-1").strip()!r:.60} is not of the form class,start,end,confidence')
    action, start, end = map(int, fields[:3])
    if not 1 <= action <= CLASSES:
        raise UserError(f'class {action} is not one of 1..{CLASSES}')
    if not start < min(end, frames):
        raise UserError(f'frames {start} to {end} are not in the video of {frames} frames')
    return action - 1, start, end


def parse(video: Video) -> Parsed:
    """Parse the samples of a video; raises UserError if its skeletons are damaged or a file cannot be read."""
    text = video.skeleton.read()
    try:
        labels = video.label.read()
    except UserError as error:
        raise UserError(f'{video.label}: {error}') from error
    frames = parse_skeleton(text)
    lines = [(number, line) for number, line in enumerate(labels.split(b'\n'), 1) if line.strip()]
    if not lines:
        raise UserError(f'{video.label} is empty')
    samples, counts, damaged = [], Counter(), []
    for number, line in lines:
        try:
            label, start, end = parse_label(line, len(frames))
        except UserError as error:
            damaged.append(f'{video.label}: line {number}: {error}')
            continue
        counts['clipped: their label ends after the video'] += end > len(frames)
        clip = frames[start:end]
        if clip.sum() == 0:     # in float64, before the cut, as the authors' script does
            counts['omitted: all coordinates are zero'] += 1
            continue
        counts[f'cut at {FRAMES} frames'] += len(clip) > FRAMES
        samples.append(Sample(f'{video.skeleton.stem}_{number:03}', label, clip[:FRAMES].astype(np.float32)))
    return Parsed(samples, len(text) + len(labels), counts, damaged)


def main(argv: list[str] | None = None) -> int:
    parser = Parser(description='Convert raw PKU-MMD skeletons to dataset files.')
    parser.add_argument('--phase', type=int, choices=(1, 2), required=True)
    parser.add_argument('--raw', type=Path, help='folder of the raw files; default: data/pku_raw/v1 or v2')
    parser.add_argument('--out', type=Path, help='folder of the output; default: data/pku_v1 or pku_v2')
    parser.add_argument('--protocol', nargs='+', help='xsub, xview; default: both')
    add_options(parser)
    args = parser.parse_args(argv)
    dataset = DATASETS[f'pku{args.phase}']
    raw, out = args.raw or HERE / dataset.raw[0][0], args.out or HERE / dataset.folder
    protocols = select_protocols(args.protocol, dataset)

    tally = Tally()
    videos = find_videos(raw, tally)
    stems, train = {video.skeleton.stem for video in videos}, {}
    for protocol in protocols:
        path = find_split(raw, protocol.key)
        train[protocol] = set(read_training_videos(path))
        tally.damaged += [f'{path}: line 2: there is no video {name}' for name in sorted(train[protocol] - stems)]
    spool = collect(videos, parse, out, args.workers, 1, tally)
    settle_damaged(tally.damaged, args.skip_damaged, out / f'PKUv{args.phase}_damaged.txt')
    if not len(spool):
        raise UserError(f'{raw}: no usable sample')
    for protocol in protocols:
        parts = [], []
        for index, name in enumerate(spool.names):
            parts[name.rsplit('_', 1)[0] not in train[protocol]].append(index)
        write_protocol(out / f'{protocol.file}.npz', spool, *parts, CLASSES, FRAMES, WIDTH)
    tally.print(spool)
    return 0


if __name__ == '__main__':
    run_main(main)
