"""Prepare your own recordings: one dataset file, and a config file with which every stage trains on it.

    python data/prepare_custom.py --raw DIR --labels labels.csv --out DIR [--layout coco-17|skeleton.yaml]
    python data/prepare_custom.py --raw DIR --labels labels.csv --out DIR --test_subjects 3 6 9

The first line of the table contains the names of its columns: `file` (relative to --raw, one recording each, in any
format of data/formats), `label` (the class name), and either `split` (train or test) or `subject`, with the test
subjects listed in --test_subjects. Other columns are ignored; columns are separated by commas, semicolons or tabs.
Output, for `--name custom`:

- `custom.npz`: the clips in the order of the table, named after their files;
- `custom_about.json`: class names, label 0 first (in ascending order, numbers by value), --centre and --scale;
  checkpoints store these, so that tools/predict.py prepares recordings in the same way;
- `custom.yaml`: the config file; `custom_layout.yaml`: the joints, unless their layout is a known one.
"""

import argparse
import csv
import io
import json
import os
import re
import shlex
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import yaml

if not __package__:     # run as a file, from any working directory
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from data.formats import format_from_suffix, read_recording
from data.formats.keypoints import is_keypoint_folder
from data.formats.recording import Recording, bodies_note, body_size, select_bodies, size_note
from data.pipeline import Parsed, Tally, add_options, collect, print_commands, settle_damaged, write_protocol
from data.sources import Source
from data.spool import Sample, Spool
from feeder.classes import metadata_path
from feeder.layouts import Layout, known_layouts, read_layout
from util.errors import Parser, UserError, quote, run_main
from util.files import check_outputs, check_writable, read_yaml, write_text
from util.options import COUNT, POSITIVE, Number

CONFIG = Path(__file__).resolve().parents[1] / 'config'
CHUNK = 8           # files that a process parses at once
SEGMENT = 4         # frames per segment in every recipe


class Row(NamedTuple):
    """A valid line of the table."""

    source: str     # table and line
    name: str       # the file, as in the table
    path: Path
    label: str
    is_train: bool

    def __str__(self) -> str:
        return f'{self.source}: {self.name}'


# ---- the table -------------------------------------------------------------------------------------------------------


def read_table(path: Path, raw: Path, test_subjects: Sequence[str] | None) -> tuple[list[Row], list[str]]:
    """Return the valid rows of the table, and an error with the line number for each invalid row.

    Raises UserError if the table as a whole cannot be used.
    """
    column = 'split' if test_subjects is None else 'subject'
    test = ['test'] if test_subjects is None else [_plain_subject(subject) for subject in test_subjects]
    rows, errors, lines_by_file, subjects = [], [], {}, set()
    for line, values in _read_lines(path, column):
        try:
            if None in values or None in values.values():
                raise UserError('the number of cells differs from line 1')
            values = {name: cell.strip() for name, cell in values.items()}
            subjects.add(_plain_subject(values[column]))
            row = _check_row(f'{path}: line {line}', values, column, test, raw)
            file = os.path.realpath(row.path)
            if file in lines_by_file:
                raise UserError(f'{row.name!r:.80} is already listed in line {lines_by_file[file]}')
        except UserError as error:
            errors.append(f'{path}: line {line}: {error}')
            continue
        lines_by_file[file] = line
        rows.append(row)
    if test_subjects and (missing := sorted(set(test) - subjects)):
        raise UserError(f'--test_subjects {missing[0]}: no line of {path} has this subject; correct it')
    return rows, errors


def _read_lines(path: Path, split_column: str) -> list[tuple[int, dict]]:
    """Return the line number and the cells by column of each row of a CSV file that is not empty."""
    try:
        text = Source(path).read().decode('utf-8-sig')
    except UserError as error:
        raise UserError(f'{path}: {error}; correct --labels') from error
    except UnicodeDecodeError as error:
        raise UserError(f'{path}: not UTF-8 text ({error.reason} at byte {error.start}); save it as UTF-8') from error
    delimiter = max(',;\t', key=text.partition('\n')[0].count)
    reader = csv.DictReader(io.StringIO(text, newline=''), strict=True, delimiter=delimiter)
    try:
        reader.fieldnames = [name.strip().lower() for name in reader.fieldnames or ()]
        for column in ('file', 'label', split_column):
            if reader.fieldnames.count(column) != 1:
                raise UserError(f'{path}: line 1: {reader.fieldnames.count(column)} columns {column!r} in '
                                f'{quote(",".join(reader.fieldnames))}; it needs one each of file, label, and split '
                                'or, with --test_subjects, subject')
        if split_column == 'subject' and 'split' in reader.fieldnames:
            raise UserError(f'{path}: line 1: has a column split, but --test_subjects is set; omit one of them')
        rows = [(reader.line_num, values) for values in reader if any(values.values())]
    except csv.Error as error:
        raise UserError(f'{path}: line {reader.reader.line_num}: not CSV ({error}); correct it') from error
    if not rows:
        raise UserError(f'{path}: has no rows; it needs a line with the column names and one for each recording')
    return rows


def _check_row(source: str, values: dict[str, str], split_column: str, test: Sequence[str], raw: Path) -> Row:
    for column in ('file', 'label', split_column):
        if not values[column] or not values[column].isprintable():
            raise UserError(f'{column} {values[column]!r:.80} is empty or not printable')
    split = _plain_subject(values[split_column])
    if split_column == 'split' and (split := split.lower()) not in ('train', 'test'):
        raise UserError(f'split {values["split"]!r:.40} is neither train nor test')
    path = raw / values['file'].replace('\\', '/')
    if not os.path.isfile(path) and not is_keypoint_folder(path):
        raise UserError(f'{path}: no such file')
    format_from_suffix(path)
    return Row(source, values['file'], path, values['label'], split not in test)


def _plain_subject(text: str) -> str:
    """Strip leading zeros from a subject, so that '03' and '3' are the same."""
    text = text.strip()
    return text.lstrip('0') or '0' if text.isdecimal() else text


def class_names(rows: Sequence[Row]) -> list[str]:
    """Return the labels of all rows in ascending order: numbers by value, then other strings."""
    return sorted({row.label for row in rows},
                  key=lambda name: (not name.isdecimal(), int(name) if name.isdecimal() else 0, name))


# ---- the clips -------------------------------------------------------------------------------------------------------


def read_row(row: Row, layout: Layout | None, **options) -> Recording:
    """Read the recording of a row, with options of `read_recording`; raises UserError without the path of the file."""
    try:
        return read_recording(row.path, layout, **options)
    except UserError as error:
        raise UserError(str(error).removeprefix(f'{row.path}: ')) from error


def parse(row: Row, requested: Layout | None, layout: Layout, labels: dict[str, int], options: dict[str, Any],
          planar: bool, most_bodies: int) -> Parsed:
    """Read the clip of a row, in the requested layout or its own; raises UserError if this is not `layout`."""
    recording = read_row(row, requested, **options)
    if recording.planar != planar:
        kind = '2D keypoints' if recording.planar else '3D joints'
        raise UserError(f'has {kind}, unlike the first file; omit this file')
    if recording.layout is None or recording.layout.joints != layout.joints:
        raise UserError(f'its {recording.num_joints} joints differ from the {len(layout.joints)} joints of the other '
                        f'files ({layout.name}); omit this file, or set --layout if only the names differ')
    frames = select_bodies(recording.frames, most_bodies, layout, options['centre'], planar)       # (T, M, V, 3)
    bodies = int(frames.any(axis=(0, 2, 3)).nonzero()[0].max(initial=0)) + 1        # without empty bodies at the end
    sample = Sample(row.name, labels[row.label], frames[:, :bodies].reshape(len(frames), -1))
    notes = recording.notes + bodies_note(recording.frames, most_bodies)
    return Parsed([sample], row.path.stat().st_size, Counter(notes))


def inspect_first(rows: Sequence[Row], requested: Layout | None, options: dict[str, Any]) -> tuple[Layout, bool]:
    """Return the layout of the first readable file, and if it has 2D keypoints.

    Raises UserError if the layout is unknown, or no file is readable.
    """
    message = 'there is no file'
    for row in rows:
        try:
            recording = read_row(row, requested, **options)
        except UserError as error:
            message = f'{row}: {error}'
            continue
        if recording.layout is None:
            raise UserError(f'{row}: the layout of its {recording.num_joints} joints is not known; set --layout to a '
                            'YAML file with their names')
        return recording.layout, recording.planar
    raise UserError(f'no file could be read; the last error is: {message}')


# ---- output ----------------------------------------------------------------------------------------------------------


def output_files(args: argparse.Namespace) -> tuple[Path, Path, Path, Path]:
    """Return the paths of dataset file, metadata, config file and layout."""
    path = args.out.resolve() / f'{args.name}.npz'
    return path, metadata_path(path), path.with_suffix('.yaml'), path.with_name(f'{args.name}_layout.yaml')


def make_settings(args: argparse.Namespace, layout: Layout, num_classes: int, num_train: int) -> dict:
    """Return the content of the config file, with smaller batches where a recipe's exceeds the training set."""
    path, _, _, layout_path = output_files(args)
    settings = {'benchmark': args.name, 'data_path': str(path),
                'layout': layout.name if layout in known_layouts() else str(layout_path),
                'num_joints': len(layout.joints), 'num_frames': args.num_frames}
    if num_classes > 1:
        settings['num_classes'] = num_classes
    for stage in ('pretrain', 'linprobe', 'finetune'):
        if read_yaml(CONFIG / f'{stage}.yaml', 'settings', 'restore it')['effective_batch_size'] > num_train:
            settings[stage] = {'effective_batch_size': 1 << (num_train.bit_length() - 1)}
    return settings


def write_all(args: argparse.Namespace, rows: Sequence[Row], spool: Spool, layout: Layout,
              classes: Sequence[str], planar: bool) -> int:
    """Write all files, the config file last; returns the number of training clips, raises UserError for too few."""
    train_names = {row.name for row in rows if row.is_train}
    train = [index for index, name in enumerate(spool.names) if name in train_names]
    test = [index for index, name in enumerate(spool.names) if name not in train_names]
    if len(train) < 2 or not test:
        raise UserError(f'{args.labels}: {len(train)} training and {len(test)} test clips; at least 2 training clips '
                        'and 1 test clip are needed')
    path, metadata, config, layout_path = output_files(args)
    write_protocol(path, spool, train, test, len(classes), max(spool.lengths), max(spool.widths), planar=planar)
    content = {'classes': list(classes), 'centre': args.centre, 'scale': args.scale}
    write_text(metadata, json.dumps(content, indent=1, ensure_ascii=False) + '\n')
    if layout not in known_layouts():
        write_text(layout_path, to_yaml({'name': layout.name, 'joints': layout.as_map()}))
    write_text(config, f'# Written by data/prepare_custom.py: {len(train)} training clips, {len(test)} test clips.\n'
               + to_yaml(make_settings(args, layout, len(classes), len(train))))
    if len(classes) < 2:
        print('note: there is only one class, so the data can only be used for pre-training')
    if missing := sorted(set(range(len(classes))) - {spool.labels[index] for index in train}):
        print(f'note: {len(missing)} classes have no training clip ({", ".join(classes[i] for i in missing[:3])}'
              f'{", …" if len(missing) > 3 else ""})')
    return len(train)


def to_yaml(content: dict) -> str:
    return yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=1 << 20)


def _file_name(text: str) -> str:
    if not re.fullmatch(r'[A-Za-z0-9][A-Za-z0-9._-]{0,80}', text):
        raise argparse.ArgumentTypeError(f'{text!r}: use only letters, digits, ., _ and -')
    return text


def build_parser() -> Parser:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--raw', type=Path, required=True, help='folder of the recordings')
    parser.add_argument('--labels', type=Path, required=True, metavar='CSV', help='table (CSV) of files and labels')
    parser.add_argument('--out', type=Path, required=True, help='output folder, created if missing')
    parser.add_argument('--name', type=_file_name, default='custom', help='name of the files and of the benchmark')
    parser.add_argument('--layout', metavar='NAME|YAML', help='joint layout (default: the layout of the files)')
    parser.add_argument('--test_subjects', nargs='+', metavar='SUBJECT', help='subjects of the test split')
    parser.add_argument('--scale', type=POSITIVE, default=1., help='metres per unit of npy, BVH and PYSKL files')
    parser.add_argument('--centre', action=argparse.BooleanOptionalAction, default=True,
                        help='move the bodies in npy, BVH, PYSKL and PKU files to the origin (default: yes)')
    parser.add_argument('--planar', action='store_true', help='read .npy arrays of three numbers per joint as '
                        '2D keypoints: x, y in pixels, and score')
    parser.add_argument('--bodies_first', action=argparse.BooleanOptionalAction, help='read .npy arrays as (bodies, '
                        'frames, joints, 3) (default: if they have more bodies than frames otherwise)')
    parser.add_argument('--bodies', type=COUNT, default=2, help='largest number of bodies per clip; those '
                        'that move most are kept')
    parser.add_argument('--num_frames', type=Number(int, least=SEGMENT), default=120,
                        help='frames per clip after resizing (default: 120, as in the paper)')
    add_options(parser)
    return parser


def main(argv: list[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    if args.num_frames % SEGMENT:
        raise UserError(f'--num_frames {args.num_frames} must be a multiple of {SEGMENT}, the number of frames per '
                        'segment')
    check_writable(args.out)
    requested = read_layout(args.layout) if args.layout else None
    rows, errors = read_table(args.labels, args.raw, args.test_subjects)
    inputs = [args.labels, *([args.layout] if args.layout else []), *(row.path for row in rows)]
    check_outputs([('--name', path) for path in output_files(args)], inputs)
    classes, tally = class_names(rows), Tally(damaged=errors)
    damaged, remedy = args.out / f'{args.name}_damaged.txt', 'correct the table or the files'
    if not rows:
        settle_damaged(errors, False, damaged, remedy)
    options = {name: getattr(args, name) for name in ('scale', 'centre', 'planar', 'bodies_first')}
    layout, planar = inspect_first(rows, requested, options)
    if not requested and layout not in known_layouts():     # of a BVH file
        layout = replace(layout, name=args.name)
    labels = {name: label for label, name in enumerate(classes)}
    reader = partial(parse, requested=requested, layout=layout, labels=labels, options=options, planar=planar,
                     most_bodies=args.bodies)
    spool = collect(rows, reader, args.out, args.workers, CHUNK, tally)
    settle_damaged(tally.damaged, args.skip_damaged, damaged, remedy)
    sizes = {name: body_size(spool[index].reshape(spool.lengths[index], -1, len(layout.joints), 3))
             for index, name in enumerate(spool.names)}
    for note in [] if planar else size_note(sizes):
        print(note, file=sys.stderr)
    train_clips = write_all(args, rows, spool, layout, classes, planar)
    tally.print(spool)
    print_commands(shlex.quote(str(output_files(args)[2])), args.name, train_clips)
    return 0


if __name__ == '__main__':
    run_main(main)
