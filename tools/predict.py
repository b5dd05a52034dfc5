"""What is done in recordings: class names with probabilities, or features, from a checkpoint.

    python tools/predict.py --checkpoint runs/finetune/checkpoint-last.pth clip.skeleton clips.npz FOLDER
    python tools/predict.py --checkpoint runs/finetune/checkpoint-last.pth video.txt --window 90 --json video.json
    python tools/predict.py --checkpoint runs/pretrain/checkpoint-last.pth FOLDER --features features.npz

Files are of any format that data/recordings.py reads: NTU .skeleton, PKU text, NW-UCLA JSON, BVH, .npy of (T, V, 3) or
(T, M, V, 3), npz and PYSKL's pickles. A recording is prepared and resized whole, as in evaluation; with --window it is
looked at through a window that slides over it, and windows of one label that follow each other make a segment. Frames
count from 0, an end is the first frame after it, as in PKU-MMD's labels; of a format whose preparation drops frames
without a body, those that are left are counted. The same in Python: tools/recognition.py.
"""

import argparse
import csv
import io
import json
import sys
from pathlib import Path

import numpy as np

if __name__ == '__main__':     # run as a file, from any working directory
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from data.common import write_npz
from data.recordings import FORMATS, extent, remark_on_sizes
from tools.recognition import (
    Clock,
    Prediction,
    Recogniser,
    Recording,
    find_files,
    predict_all,
    read_files,
    suffixes_of,
    timeline,
)
from util.errors import Parser, UserError, printable, run_main
from util.files import atomic_write, check_outputs
from util.memory import report_out_of_memory
from util.options import COUNT, POSITIVE, text

COLUMNS = ('recording', 'start', 'end', 'rank', 'label', 'class', 'probability')


def top_of(scores: np.ndarray, names: list[str], count: int) -> list[dict]:
    """The likeliest of scores (C,), the best first; of equals the lower label."""
    best = np.argsort(-scores, kind='stable')[:count].tolist()
    return [{'label': label, 'class': names[label], 'probability': round(float(scores[label]), 6)} for label in best]


def describe(found: Prediction, names: list[str], args: argparse.Namespace) -> dict:
    """What JSON says of a recording."""
    told = {'recording': found.recording, 'frames': found.num_frames, 'label': found.label}
    if args.window is None:
        return told | {'top': top_of(found.scores[0], names, args.top)}
    segments = [{'start': one.start, 'end': one.end, 'label': one.label, 'class': names[one.label],
                 'probability': round(one.probability, 6)} for one in timeline(found.windows, found.scores)]
    windows = [{'start': place.start, 'end': place.end, 'top': top_of(scores, names, args.top)}
               for place, scores in zip(found.windows, found.scores, strict=True)]
    return told | {'segments': segments, 'windows': windows}


def as_rows(told: dict) -> list[list]:
    """The lines of CSV: the likeliest classes of the whole recording, or its segments."""
    if 'segments' in told:
        return [[told['recording'], one['start'], one['end'], 1, one['label'], one['class'], one['probability']]
                for one in told['segments']]
    return [[told['recording'], 0, told['frames'], rank, one['label'], one['class'], one['probability']]
            for rank, one in enumerate(told['top'], 1)]


def as_text(told: dict) -> str:
    head = f'{told["recording"]} ({told["frames"]} frames)'
    if 'segments' in told:
        lines = [f'  {one["start"]:7} to {one["end"]:<7} {one["probability"]:5.3f}  {one["class"]}'
                 for one in told['segments']]
    else:
        lines = [f'  {rank:3}  {one["probability"]:5.3f}  {one["class"]}' for rank, one in enumerate(told['top'], 1)]
    return '\n'.join([head, *lines])


def as_csv(recordings: list[dict]) -> str:
    out = io.StringIO(newline='')
    writer = csv.writer(out)
    writer.writerow(COLUMNS)
    for told in recordings:
        writer.writerows(as_rows(told))
    return out.getvalue()


def write(target: str, content: str) -> None:
    """To a file, atomically, or for '-' to stdout."""
    if target == '-':
        sys.stdout.write(content)
        return
    with atomic_write(target) as partial, open(partial, 'w', encoding='utf-8', newline='') as file:
        file.write(content)


class Kept:
    """What --features writes: a row a recording, or a window, whose frames its name then tells."""

    def __init__(self):
        self.rows, self.names, self.labels = [], [], []

    def add(self, found: Prediction, windows: bool) -> None:
        self.rows.append(found.features)
        self.names += [f'{found.name}[{place.start}:{place.end}]' if windows else found.name
                       for place in found.windows]
        self.labels += [found.label] * len(found.windows)

    def write(self, path: str, recogniser: Recogniser) -> None:
        """As tools/retrieval.py writes the test split; without labels unless every recording has one."""
        labels = {} if None in self.labels else {'label_test': np.array(self.labels, dtype=np.int64)}
        write_npz(path, features_test=np.concatenate(self.rows), name_test=np.array(self.names, dtype=np.str_),
                  **labels, benchmark=np.array(recogniser.benchmark), stream=np.array(recogniser.stream),
                  method=np.array(recogniser.method or 'features'))


def build_parser() -> Parser:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add('files', nargs='+', type=Path, metavar='FILE', help='recordings, or folders of them')
    add('--checkpoint', required=True, help='of main_finetune.py or main_linprobe.py; for --features of any stage')
    add('--top', type=COUNT, help='classes that are named (default: 5)')
    add('--window', type=COUNT, metavar='FRAMES', help='look through a window of so many frames (30 a second for all '
        'Kinect data) that slides over a recording (default: look at the whole at once)')
    add('--hop', type=COUNT, metavar='FRAMES', help='from one window to the next (default: half a window)')
    add('--json', metavar='PATH', help='everything as JSON; - for stdout, in place of the text')
    add('--csv', metavar='PATH', help='a line for each class named, or with --window for each segment; - for stdout')
    add('--features', metavar='NPZ', help='write the mean features, as tools/retrieval.py does')
    add('--split', choices=('train', 'test'), default='test', help='which clips of npz files (default: test)')
    add('--format', help='of all files (default: told by their suffixes)')
    add('--layout', metavar='NAME|YAML', help='what the joints of the files are (default: what they say, or their '
        'number)')
    add('--scale', type=POSITIVE, help='metres in a unit of npy, BVH and pickled files (default: as in the data the '
        'model was trained on)')
    add('--centre', action=argparse.BooleanOptionalAction, help='move the bodies of npy, BVH, pickled and PKU files, '
        'and in each window, to the origin (default: as in the data the model was trained on)')
    add('--batch_size', type=COUNT, default=64, help='clips or windows computed at a time (default: 64)')
    add('--device', type=text, default='auto', help='auto, cpu, cuda or cuda:N')
    add('--precision', choices=('fp32', 'tf32', 'bf16'), help='of matrix products (default: bf16 on GPUs that have it, '
        'fp32 elsewhere)')
    return parser


def check(args: argparse.Namespace) -> list[Path]:
    """The files to read; UserError for outputs that could not be written, or options that say nothing together."""
    if args.format is not None and args.format not in FORMATS:
        raise UserError(f'--format {args.format!r:.40}: give one of {", ".join(FORMATS)}')
    if args.json == '-' and args.csv == '-':
        raise UserError('--json - and --csv -: stdout takes one of them; give the other a file')
    if args.hop and (args.window is None or args.hop > args.window):
        raise UserError(f'--hop {args.hop}: needs a --window of as many frames or more')
    files = find_files(args.files, args.format)
    targets = [(f'--{name}', target) for name in ('json', 'csv', 'features') if (target := getattr(args, name))
               and (name == 'features' or target != '-')]
    check_outputs(targets, [args.checkpoint, *files])
    folders = [folder for folder in args.files if folder.is_dir()]
    for option, target in targets:      # not where it would be read next time
        inside = [folder for folder in folders if folder.resolve() in Path(target).resolve().parents]
        if inside and target.lower().endswith(suffixes_of(args.format)):
            raise UserError(f'{option} {target}: lies in {inside[0]}, where such files are read; give another place')
    return files


def run(args: argparse.Namespace, files: list[Path], recogniser: Recogniser) -> int:
    labels, speaks = recogniser.class_names is not None, '-' not in (args.json, args.csv)
    bad, recordings, kept, clock, sizes = [], [], Kept(), Clock(), {}

    def good():
        for found in read_files(files, recogniser, args.layout, args.format, args.scale, args.split):
            if isinstance(found, Recording):
                sizes[str(found)] = extent(found.frames)
                yield found
            else:
                bad.append(found)

    for found in predict_all(recogniser, good(), args.batch_size, args.window, args.hop, clock):
        if args.features:
            kept.add(found, args.window is not None)
        if labels:
            told = describe(found, recogniser.class_names, args)
            recordings.append(told)
            if speaks:
                print(as_text(told), flush=True)
    unreadable = [{'file': printable(path), 'reason': printable(str(error))} for path, error in bad]
    content = {'checkpoint': printable(args.checkpoint), 'benchmark': recogniser.benchmark,
               'stream': recogniser.stream, 'classes': recogniser.class_names, 'window': args.window, 'hop': args.hop,
               'recordings': recordings, 'unreadable': unreadable}
    if args.json:
        write(args.json, json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + '\n')
    if args.csv:
        write(args.csv, as_csv(recordings))
    if kept.rows:
        kept.write(args.features, recogniser)
    print(f'{clock.clips:,} {"windows" if args.window else "clips"}: {clock.reading:.1f} s reading, '
          f'{clock.computing:.1f} s computing on {recogniser.device}', file=sys.stderr)
    if remark := remark_on_sizes(sizes):
        print(remark, file=sys.stderr)
    for one in unreadable:
        where = '' if one['file'] in one['reason'] else f'{one["file"]}: '
        print(f'error: {where}{one["reason"]}', file=sys.stderr)
    return UserError.exit_code if bad else 0


def main(argv: list[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    files = check(args)
    recogniser = Recogniser(args.checkpoint, args.device, args.precision, args.centre)
    if not args.features or args.json or args.csv or args.top:
        recogniser.check_classes()
    args.top = args.top or 5
    with report_out_of_memory(args, recogniser.device):
        return run(args, files, recogniser)


if __name__ == '__main__':
    run_main(main)
