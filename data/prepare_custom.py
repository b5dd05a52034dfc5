"""Recordings of one's own to one interchange file, and a settings file with which every stage trains on it.

    python data/prepare_custom.py --raw DIR --labels labels.csv --out DIR [--layout coco-17|skeleton.yaml]
    python data/prepare_custom.py --raw DIR --labels labels.csv --out DIR --test_subjects 3 6 9

The table's first line names its columns: `file` (as seen from --raw; of any format that data/recordings.py reads, one
clip each) and `label` (the class's name), and either `split` (train or test) or `subject`, of which --test_subjects
names those that test. Other columns may be there. It writes, for `--name custom`:

- `custom.npz`: clips in the order of the table, their files as names;
- `custom_about.json`: the class names, label 0 first (in ascending order, numbers by their value), and --centre and
  --scale; checkpoints take it along, so that recordings are prepared alike when they are to be named;
- `custom.yaml`: the settings; `custom_layout.yaml`: the joints, where they are none of the known layouts.
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
from typing import NamedTuple

import yaml

if not __package__:  # run by path: the repository's root is not on the search path yet
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from data.formats import FORMATS, format_from_suffix, read_recording
from data.formats.recording import body_size, size_note
from data.pipeline import Parsed, Sample, Source, Tally, add_options, collect, settle_damaged, write_protocol
from feeder.classes import metadata_path
from feeder.layouts import LAYOUTS, Layout, read_layout
from util.errors import Parser, UserError, quote, run_main
from util.files import atomic_write, check_outputs, check_writable, read_yaml
from util.options import POSITIVE, Number

CONFIG = Path(__file__).resolve().parents[1] / 'config'
CHUNK = 8           # files a process parses at a time
SEGMENT = 4         # frames of one segment in every recipe


class Row(NamedTuple):
    """A line of the table that could be used."""

    table: Path
    line: int
    name: str       # the file, as the table has it
    path: Path
    label: str
    train: bool

    def __str__(self) -> str:
        return f'{self.table}: line {self.line}: {self.name}'


# ---- the table -------------------------------------------------------------------------------------------------------


def read_table(path: Path, raw: Path, test_subjects: Sequence[str] | None) -> tuple[list[Row], list[str]]:
    """The rows that can be used, and what is wrong with the others, each with its line.

    Raises UserError when the table as a whole cannot be used.
    """
    lines = _split(path)
    header = [cell.strip().lower() for cell in lines[0][1]] if lines else []
    by_subject = test_subjects is not None
    for column in ('file', 'label', 'subject' if by_subject else 'split'):
        if header.count(column) != 1:
            hint = ' (or subject, and --test_subjects)' if column == 'split' else ''
            raise UserError(f'{path}: line 1: {header.count(column)} columns {column!r} among '
                            f'{quote(",".join(header))}; it needs one of file, of label and of '
                            f'{"subject" if by_subject else "split"}{hint}')
    if by_subject and 'split' in header:
        raise UserError(f'{path}: line 1: there is a column split, and --test_subjects is given; leave one of them out')
    rows, faults, seen = [], [], {}
    wanted = {_subject(subject) for subject in test_subjects or ()}
    for line, cells in lines[1:]:
        try:
            row = _row(path, line, cells, header, raw, wanted)
            place = os.path.realpath(row.path)
            if place in seen:
                raise UserError(f'{row.name!r:.80} is there twice, first in line {seen[place]}')
        except UserError as error:
            faults.append(f'{path}: line {line}: {error}')
            continue
        seen[place] = line
        rows.append(row)
    if by_subject and rows:
        there = {_subject(cells[header.index('subject')]) for _, cells in lines[1:] if len(cells) == len(header)}
        if absent := sorted(wanted - there):
            raise UserError(f'--test_subjects {absent[0]}: no line of {path} has this subject; correct it')
    return rows, faults


def _split(path: Path) -> list[tuple[int, list[str]]]:
    """The lines of a CSV file that are not empty: number and cells."""
    try:
        text = Source(path).read().decode('utf-8-sig')
    except UserError as error:
        raise UserError(f'{path}: {error}; correct --labels') from error
    except UnicodeDecodeError as error:
        raise UserError(f'{path}: not text in UTF-8 ({error.reason} at byte {error.start}); save it so') from error
    reader, lines = csv.reader(io.StringIO(text, newline=''), strict=True), []
    try:
        for cells in reader:
            if any(cell.strip() for cell in cells):
                lines.append((reader.line_num, cells))
    except csv.Error as error:
        raise UserError(f'{path}: line {reader.line_num}: not CSV ({error}); correct it') from error
    if len(lines) < 2:
        raise UserError(f'{path}: has no row; it needs a line with the names of the columns and one for each clip')
    return lines


def _row(table: Path, line: int, cells: Sequence[str], header: Sequence[str], raw: Path, wanted: set[str]) -> Row:
    if len(cells) != len(header):
        raise UserError(f'{len(cells)} cells, where line 1 names {len(header)} columns')
    values = {column: cell.strip() for column, cell in zip(header, cells, strict=True)}
    for column in ('file', 'label'):
        if not values[column] or not values[column].isprintable():
            raise UserError(f'{column} {values[column]!r:.80} is no name')
    if wanted:
        if not values['subject']:
            raise UserError('it names no subject')
        train = _subject(values['subject']) not in wanted
    elif values['split'].lower() not in ('train', 'test'):
        raise UserError(f'split {values["split"]!r:.40} is neither train nor test')
    else:
        train = values['split'].lower() == 'train'
    path = raw / values['file']
    if not os.path.isfile(path):    # of a name too long, too
        raise UserError(f'{path}: no such file')
    format_from_suffix(path)
    return Row(table, line, values['file'], path, values['label'], train)


def _subject(text: str) -> str:
    """'03' and '3' are one subject."""
    text = text.strip()
    return str(int(text)) if text.isdecimal() and len(text) < 10 else text


def class_names(rows: Sequence[Row]) -> list[str]:
    """The labels of all rows, each once, in ascending order: numbers by their value, before texts."""
    def key(name: str) -> tuple:
        return not name.isdecimal(), int(name) if name.isdecimal() and len(name) < 10 else 0, name

    return sorted({row.label for row in rows}, key=key)


# ---- the clips -------------------------------------------------------------------------------------------------------


def read(row: Row, layout: Layout | None, scale: float, centre: bool):
    """The row's recording; UserError without its path, which the row has. Formats in metres know no scale."""
    try:
        scale = 1. if FORMATS[format_from_suffix(row.path)].metres else scale
        return read_recording(row.path, layout, scale=scale, centre=centre)
    except UserError as error:
        raise UserError(str(error).removeprefix(f'{row.path}: ')) from error


def parse(row: Row, asked: Layout | None, layout: Layout, classes: dict[str, int], scale: float,
          centre: bool) -> Parsed:
    """The row's clip, of the layout `asked` for or its own; UserError when that is not `layout`, or as `read`."""
    recording = read(row, asked, scale, centre)
    if recording.layout is None or recording.layout.joints != layout.joints:
        raise UserError(f'its {recording.num_joints} joints are not those of the other files, the {len(layout.joints)} '
                        f'of {layout.name}; leave it out, or give --layout where only names differ')
    frames = recording.frames
    bodies = int(frames.any(axis=(0, 2, 3)).nonzero()[0].max(initial=0)) + 1      # without empty ones at the end
    rows = frames[:, :bodies].reshape(len(frames), -1)
    return Parsed([Sample(row.name, classes[row.label], rows)], row.path.stat().st_size, Counter())


def common_layout(rows: Sequence[Row]) -> Layout:
    """The layout of the first file that can be read; UserError when nobody knows it, or none can be read."""
    fault = 'no file to read it from'
    for row in rows:
        try:
            recording = read(row, None, 1., True)
        except UserError as error:
            fault = f'{row}: {error}'
            continue
        if recording.layout is None:
            raise UserError(f'{row}: its {recording.num_joints} joints are of no known layout; give --layout a YAML '
                            'file that names them')
        return recording.layout
    raise UserError(f'no file could be read, the last one: {fault}')


# ---- what is written -------------------------------------------------------------------------------------------------


def settings_of(args: argparse.Namespace, layout: Layout, classes: int, train: int) -> dict:
    """What the settings file holds; recipes whose effective batch exceeds the training clips get a smaller one."""
    known = layout in LAYOUTS
    settings = {'benchmark': args.name, 'data_path': str((args.out / f'{args.name}.npz').resolve()),
                'layout': layout.name if known else str((args.out / f'{args.name}_layout.yaml').resolve()),
                'num_joints': len(layout.joints), 'num_frames': args.num_frames}
    if classes > 1:
        settings['num_classes'] = classes
    for stage in ('pretrain', 'linprobe', 'finetune'):
        usual = read_yaml(CONFIG / f'{stage}.yaml', 'settings', 'restore it')['effective_batch_size']
        if usual > train:
            settings[stage] = {'effective_batch_size': 1 << (train.bit_length() - 1)}
    return settings


def write_text(path: Path, text: str) -> None:
    with atomic_write(path) as partial:
        partial.write_text(text, encoding='utf-8')


def as_yaml(content: dict) -> str:
    return yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=1 << 20)


def outputs_of(args: argparse.Namespace) -> list[Path]:
    """All files that may be written: data, what is to be known of them, settings, layout."""
    path = args.out / f'{args.name}.npz'
    return [path, metadata_path(path), path.with_name(f'{args.name}.yaml'), path.with_name(f'{args.name}_layout.yaml')]


def write_all(args: argparse.Namespace, rows: Sequence[Row], spool, layout: Layout, classes: Sequence[str]) -> Path:
    """Writes the files, the settings last, and returns their path; UserError when there is too little to train on."""
    trains = {row.name: row.train for row in rows}
    parts = [[index for index, name in enumerate(spool.names) if trains[name] is side] for side in (True, False)]
    if len(parts[0]) < 2 or not parts[1]:
        raise UserError(f'{args.labels}: {len(parts[0])} training and {len(parts[1])} test clips; 2 and 1 are the '
                        'least')
    path = args.out / f'{args.name}.npz'
    write_protocol(path, spool, *parts, len(classes), max(spool.lengths), max(spool.widths))
    about = {'classes': list(classes), 'centre': args.centre, 'scale': args.scale}
    write_text(metadata_path(path), json.dumps(about, indent=1, ensure_ascii=False) + '\n')
    if layout not in LAYOUTS:
        write_text(args.out / f'{args.name}_layout.yaml', as_yaml({'name': layout.name, 'joints': layout.as_map()}))
    settings = path.with_name(f'{args.name}.yaml')
    write_text(settings, f'# Written by data/prepare_custom.py: {len(parts[0])} training clips, {len(parts[1])} test '
               f'clips.\n# num_frames is what the clips are resized to.\n'
               + as_yaml(settings_of(args, layout, len(classes), len(parts[0]))))
    if len(classes) < 2:
        print('note: one class only, so this is for pre-training')
    without = [name for label, name in enumerate(classes) if label not in {spool.labels[index] for index in parts[0]}]
    if without:
        print(f'note: {len(without)} classes have no training clip ({", ".join(without[:3])}'
              f'{", …" if len(without) > 3 else ""})')
    return settings


def _name(text: str) -> str:
    if not re.fullmatch(r'[A-Za-z0-9][A-Za-z0-9._-]{0,80}', text):
        raise argparse.ArgumentTypeError(f'{text!r}: give letters, digits, ., _ and -')
    return text


def build_parser() -> Parser:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--raw', type=Path, required=True, help='folder of the recordings')
    parser.add_argument('--labels', type=Path, required=True, metavar='CSV', help='table of files and labels')
    parser.add_argument('--out', type=Path, required=True, help='folder for the files; made when missing')
    parser.add_argument('--name', type=_name, default='custom', help='of the files and the benchmark')
    parser.add_argument('--layout', metavar='NAME|YAML', help='what the joints are (default: what the files say)')
    parser.add_argument('--test_subjects', nargs='+', metavar='SUBJECT', help='subjects that test; the others train')
    parser.add_argument('--scale', type=POSITIVE, default=1., help='metres in a unit of npy, BVH and pickled files')
    parser.add_argument('--centre', action=argparse.BooleanOptionalAction, default=True,
                        help='move the bodies of such files and of PKU-MMD to the origin, as those of other sets are')
    parser.add_argument('--num_frames', type=Number(int, least=SEGMENT), default=120,
                        help='frames after the resize, for the settings (default: 120, as in the paper)')
    add_options(parser)
    return parser


def main(argv: list[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    if args.num_frames % SEGMENT:
        raise UserError(f'--num_frames {args.num_frames} is no multiple of {SEGMENT}, the frames of a segment')
    check_writable(args.out)
    asked = read_layout(args.layout) if args.layout else None
    rows, faults = read_table(args.labels, args.raw, args.test_subjects)
    given = [args.labels, *([args.layout] if args.layout else []), *(row.path for row in rows)]
    check_outputs([('--name', path) for path in outputs_of(args)], given)
    classes, tally = class_names(rows), Tally(damaged=faults)
    damaged = args.out / f'{args.name}_damaged.txt'
    remedy = 'correct the table or the files'
    if not rows:
        settle_damaged(faults, False, damaged, remedy)
    layout = asked or common_layout(rows)
    if not asked and layout not in LAYOUTS:     # a BVH file's, called like it
        layout = replace(layout, name=args.name)
    labels = {name: label for label, name in enumerate(classes)}
    reader = partial(parse, asked=asked, layout=layout, classes=labels, scale=args.scale, centre=args.centre)
    spool = collect(rows, reader, args.out, args.workers, CHUNK, tally)
    settle_damaged(tally.damaged, args.skip_damaged, damaged, remedy)
    if note := size_note({name: body_size(spool[index].reshape(spool.lengths[index], -1, len(layout.joints), 3))
                                  for index, name in enumerate(spool.names)}):
        print(note, file=sys.stderr)
    settings = write_all(args, rows, spool, layout, classes)
    tally.print(spool)
    print('next: python main_finetune.py --config config/finetune.yaml '
          f'{shlex.quote(str(settings))} --finetune CHECKPOINT')
    return 0


if __name__ == '__main__':
    run_main(main)
