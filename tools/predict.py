"""Classify skeleton recordings, or extract features, with a trained checkpoint.

    python tools/predict.py --checkpoint runs/finetune/checkpoint-last.pth clip.skeleton clips.npz FOLDER
    python tools/predict.py --checkpoint runs/finetune/checkpoint-last.pth video.txt --window 90 --html video.html
    python tools/predict.py --checkpoint runs/pretrain/checkpoint-last.pth FOLDER --features features.npz

Reads all formats of data/formats: NTU .skeleton, PKU text, NW-UCLA JSON, BVH, .npy of (T, V, 3) or (T, M, V, 3), npz,
PYSKL pickles, and 2D keypoints of OpenPose (a folder for each recording), AlphaPose and COCO. A recording is prepared
and resized as a whole, as in evaluation; with --window, windows slide over it, and neighbouring windows with the same
label form a segment. Frames are numbered from 0, and ends are exclusive; in formats whose preparation drops frames
without a body, only the remaining frames are numbered. For use in Python see tools/recognition.py.
"""

import argparse
import csv
import io
import json
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np

if __name__ == '__main__':     # run as a file, from any working directory
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from data.formats import FORMATS
from data.formats.recording import Recording, assumption_notes, body_size, size_note
from feeder.layouts import default_layout
from tools.drawing.page import recording_scene, write_page
from tools.recognition import Recogniser
from tools.recordings import Prediction, find_files, predict_clips, read_clips, timeline, top_classes
from util.errors import Parser, UserError, printable, run_main
from util.files import atomic_write, check_outputs
from util.options import COUNT, POSITIVE, text

PAGE_MOST = 20      # recordings on a page
COLUMNS = ('recording', 'start', 'end', 'rank', 'label', 'class', 'probability')


def named_classes(scores: np.ndarray, names: list[str], count: int) -> list[dict]:
    """Return the most likely classes of scores (C,) as JSON, best first."""
    return [{'label': label, 'class': names[label], 'probability': probability}
            for label, probability in top_classes(scores, count)]


def to_entry(prediction: Prediction, names: list[str], args: argparse.Namespace) -> dict:
    """Return the JSON entry of a recording."""
    recording = prediction.recording
    entry = {'recording': recording.title, 'frames': len(recording.frames), 'label': recording.label}
    if args.window is None:
        return entry | {'top': named_classes(prediction.scores[0], names, args.top)}
    segments = [{'start': segment.start, 'end': segment.end, 'label': segment.label, 'class': names[segment.label],
                 'probability': round(segment.probability, 6)}
                for segment in timeline(prediction.windows, prediction.scores)]
    windows = [{'start': place.start, 'end': place.end, 'top': named_classes(scores, names, args.top)}
               for place, scores in zip(prediction.windows, prediction.scores, strict=True)]
    return entry | {'segments': segments, 'windows': windows}


def to_scene(prediction: Prediction, recogniser: Recogniser, args: argparse.Namespace) -> dict:
    """Return the scene of a recording for --html."""
    windows = f'{args.window} frames, every {args.hop or max(args.window // 2, 1)}' if args.window else \
        'the whole recording'
    facts = {'checkpoint': args.checkpoint, 'benchmark': recogniser.benchmark or 'not recorded', 'window': windows,
             'classes': str(len(recogniser.class_names))}
    layout = prediction.recording.layout or recogniser.layout or default_layout(recogniser.num_joints)
    return recording_scene(prediction, recogniser.class_names, layout,
                           [[name, printable(fact)] for name, fact in facts.items()])


def to_rows(entry: dict) -> list[dict]:
    """Return the rows of a recording with the columns COLUMNS: its most likely classes, or its segments."""
    rows = [{'rank': 1} | segment for segment in entry.get('segments', ())] or \
        [{'start': 0, 'end': entry['frames'], 'rank': rank} | top for rank, top in enumerate(entry.get('top', ()), 1)]
    return [{'recording': entry['recording']} | row for row in rows]


def to_text(entry: dict) -> str:
    """Return the console output of a recording."""
    line = '  {start:7} to {end:<7} {probability:5.3f}  {class}' if 'segments' in entry else \
        '  {rank:3}  {probability:5.3f}  {class}'
    return '\n'.join([f'{entry["recording"]} ({entry["frames"]} frames)', *(line.format(**r) for r in to_rows(entry))])


def to_csv(entries: list[dict]) -> str:
    """Return the CSV table of all recordings."""
    out = io.StringIO(newline='')
    writer = csv.DictWriter(out, COLUMNS)
    writer.writeheader()
    for entry in entries:
        writer.writerows(to_rows(entry))
    return out.getvalue()


def write(target: str, content: str) -> None:
    """Write to a file, atomically, or to stdout for '-'."""
    if target == '-':
        sys.stdout.write(content)
        return
    with atomic_write(target) as partial, open(partial, 'w', encoding='utf-8', newline='') as file:
        file.write(content)


def write_entries(args: argparse.Namespace, entries: list[dict], unreadable: list[dict],
                  recogniser: Recogniser) -> None:
    """Write the files of --json and --csv, if requested."""
    content = {'checkpoint': printable(args.checkpoint), 'benchmark': recogniser.benchmark,
               'stream': recogniser.stream, 'classes': recogniser.class_names, 'window': args.window, 'hop': args.hop,
               'recordings': entries, 'unreadable': unreadable}
    if args.json:
        write(args.json, json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + '\n')
    if args.csv:
        write(args.csv, to_csv(entries))


def write_features(path: str, predictions: list[Prediction], has_windows: bool, recogniser: Recogniser) -> None:
    """Write features.npz with one row per recording, or with `has_windows` one per window, `name[start:end]`.

    Labels are written only if every recording has a label.
    """
    rows = [(prediction.recording, place) for prediction in predictions for place in prediction.windows]
    names = [f'{recording.name}[{place.start}:{place.end}]' if has_windows else recording.name
             for recording, place in rows]
    labels = [recording.label for recording, _ in rows]
    labels = {} if None in labels else {'label_test': np.array(labels, dtype=np.int64)}
    with atomic_write(path) as partial, open(partial, 'wb') as file:
        np.savez(file, features_test=np.concatenate([prediction.features for prediction in predictions]),
                 name_test=np.array(names, dtype=np.str_), **labels, benchmark=recogniser.benchmark,
                 stream=recogniser.stream, method=recogniser.method or 'features')


def build_parser() -> Parser:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add('files', nargs='+', type=Path, metavar='FILE', help='recordings, or folders of them')
    add('--checkpoint', required=True, help='checkpoint of main_finetune.py or main_linprobe.py; '
        'for --features, a checkpoint of any stage')
    add('--top', type=COUNT, help='number of classes to list (default: 5)')
    add('--window', type=COUNT, metavar='FRAMES', help='slide a window of this many frames over each recording '
        '(Kinect data has 30 a second; default: the whole recording at once)')
    add('--hop', type=COUNT, metavar='FRAMES', help='frames from one window to the next (default: half a window)')
    add('--json', metavar='PATH', help='write everything as JSON; - for stdout')
    add('--csv', metavar='PATH', help='write a row per class, or per segment with --window; - for stdout')
    add('--html', metavar='PAGE', help='a self-contained web page: the recordings, with a timeline of labels')
    add('--features', metavar='NPZ', help='write mean features, for tools/retrieval.py')
    add('--split', choices=('train', 'test'), default='test', help='split of npz files (default: test)')
    add('--format', choices=tuple(FORMATS), help='format of all files (default: by suffix)')
    add('--layout', metavar='NAME|YAML', help='joint layout of the files (default: their own, or by the number of '
        'joints)')
    add('--scale', type=POSITIVE, help='metres per unit of npy, BVH and PYSKL files (default: that of the training '
        'data)')
    add('--centre', action=argparse.BooleanOptionalAction, help='move the bodies of npy, BVH, PYSKL and PKU files '
        'and of each window to the origin (default: as for the training data)')
    add('--bodies_first', action=argparse.BooleanOptionalAction, help='read .npy arrays as (bodies, frames, joints, 3) '
        '(default: if they have more bodies than frames otherwise)')
    add('--batch_size', type=COUNT, default=64, help='clips or windows per batch (default: 64)')
    add('--device', type=text, default='auto', help='auto, cpu, cuda or cuda:N')
    add('--precision', choices=('fp32', 'tf32', 'bf16'), help='precision of matrix products (default: bf16 on GPUs '
        'that support it, else fp32)')
    return parser


def check(args: argparse.Namespace) -> list[Path]:
    """Return the files to read; raises UserError if outputs cannot be written or options contradict each other."""
    if args.json == '-' and args.csv == '-':
        raise UserError('--json - and --csv -: only one of them can go to stdout; specify a file for the other')
    if args.hop and (args.window is None or args.hop > args.window):
        raise UserError(f'--hop {args.hop}: must be used with a --window of at least as many frames')
    files = find_files(args.files, args.format)
    targets = [(f'--{name}', target) for name in ('json', 'csv', 'html', 'features') if (target := getattr(args, name))
               and (name in ('html', 'features') or target != '-')]
    check_outputs(targets, [args.checkpoint, *files])
    return files


def run(args: argparse.Namespace, clips: Iterator[Recording | tuple[Path, UserError]], recogniser: Recogniser) -> int:
    """Predict all clips and write the outputs; returns the exit code."""
    failures, entries, predictions, scenes, sizes, assumptions, count = [], [], [], [], {}, Counter(), 0
    prints_text = recogniser.class_names is not None and '-' not in (args.json, args.csv)

    def readable_clips() -> Iterator[Recording]:
        for clip in clips:
            if isinstance(clip, Recording):
                sizes[clip.title] = 1. if clip.planar else body_size(clip.frames)
                assumptions.update(clip.notes)
                yield clip
            else:
                failures.append(clip)

    start = time.perf_counter()
    for prediction in predict_clips(recogniser, readable_clips(), args.batch_size, args.window, args.hop):
        count += len(prediction.windows)
        if args.features:
            blank = prediction.recording._replace(frames=prediction.recording.frames[:0])   # frees the memory
            predictions.append(prediction._replace(recording=blank))
        if recogniser.class_names is not None:
            entries.append(to_entry(prediction, recogniser.class_names, args))
            if args.html and len(scenes) < PAGE_MOST:
                scenes.append(to_scene(prediction, recogniser, args))
            if prints_text:
                print(to_text(entries[-1]), flush=True)
    unreadable = [{'file': printable(path), 'reason': printable(str(error))} for path, error in failures]
    write_entries(args, entries, unreadable, recogniser)
    if predictions:
        write_features(args.features, predictions, args.window is not None, recogniser)
    notes = assumption_notes(assumptions, len(sizes)) + size_note(sizes)
    if scenes:
        write_page(args.html, f'MAMP: {scenes[0]["title"]}', scenes)
        if len(entries) > len(scenes):
            notes = [*notes, f'note: {args.html} has the first {len(scenes)} of {len(entries)} recordings']
    print(f'{count:,} {"windows" if args.window else "clips"} in {time.perf_counter() - start:.1f} s on '
          f'{recogniser.device}', *notes, sep='\n', file=sys.stderr)
    for failure in unreadable:
        print(f'error: {failure["reason"]}', file=sys.stderr)
    return UserError.exit_code if failures else 0


def main(argv: list[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    files = check(args)
    recogniser = Recogniser(args.checkpoint, args.device, args.precision, args.centre)
    if not args.features or args.json or args.csv or args.html or args.top:
        recogniser.check_classes()
    args.top = args.top or 5
    clips = read_clips(files, recogniser, args.layout, args.format, args.scale, args.split, args.bodies_first)
    return run(args, clips, recogniser)


if __name__ == '__main__':
    run_main(main)
