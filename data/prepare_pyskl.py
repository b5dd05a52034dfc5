"""Prepare PYSKL annotation files (pickles): one dataset file for each training and test split.

    python data/prepare_pyskl.py ntu60_3danno.pkl       # to data/ntu_pyskl/NTU60_XSub.npz and NTU60_XView.npz
    python data/prepare_pyskl.py ntu60_hrnet.pkl        # 2D keypoints, to data/ntu_pyskl/NTU60_XSub_2D.npz, …
    python data/prepare_pyskl.py my_train.pkl my_test.pkl --out data/mine       # lists of annotations without splits

A file contains `annotations` and `split`, which lists the names of the clips of each split (xsub_train, xsub_val,
train1, test1, …), or is only a list of annotations. Clips are written in the order of the splits and centred as in
prepare_ntu.py. A validation split is written as the test split if there is no other. Nothing in the files is executed.

PYSKL selects the actors of NTU RGB+D in a different way than the scripts of MAMP's authors, so some clips differ from
those of prepare_ntu.py.
"""

import re
import shlex
import sys
from collections import Counter
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import NamedTuple

if not __package__:     # run as a file, from any working directory
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from data.datasets import DataSet, find_dataset
from data.formats.pyskl import check_annotation, clip_name, is_planar, read_pickle
from data.formats.recording import Options, bodies_note, make_recording, select_bodies
from data.pipeline import Parsed, Tally, add_options, collect, print_commands, settle_damaged, write_protocol
from data.spool import Sample, Spool
from feeder.classes import metadata_path
from feeder.layouts import read_layout
from util.errors import Parser, UserError, run_main
from util.files import read_text, write_json
from util.options import COUNT, POSITIVE

HERE = Path(__file__).resolve().parent
SPLIT = re.compile(r'(.*?)_?(train|val|test)_?(\d*)', re.IGNORECASE)


class Entry(NamedTuple):
    """An annotation with its position in the file and the name of its clip."""

    number: int
    name: str
    annotation: dict

    def __str__(self) -> str:
        return f'annotation {self.number} ({self.name:.80})'


def read_files(paths: list[Path]) -> tuple[list, dict[str, list[str]]]:
    """Return annotations and splits of a file, or of a training and a test file that are lists; raises UserError."""
    contents = []
    for path in paths:
        try:
            contents.append(read_pickle(path))
        except UserError as error:
            raise UserError(f'{path}: {error}') from error
    if len(paths) == 2 and all(isinstance(content, list) for content in contents):
        return contents[0] + contents[1], {split: [clip_name(annotation) for annotation in content]
                                           for split, content in zip(('train', 'test'), contents, strict=True)}
    content = contents[0] if isinstance(contents[0], dict) else {}
    annotations, splits = content.get('annotations'), content.get('split')
    if len(paths) > 1 or not isinstance(annotations, list) or not isinstance(splits, dict) or not all(
            isinstance(split, str) and isinstance(names, list) and all(isinstance(name, str) for name in names)
            for split, names in splits.items()):
        raise UserError(f'{paths[0]}: specify one file with annotations and split (lists of clip names by split), or a '
                        'training and a test file that are lists of annotations')
    return annotations, splits


def pair_splits(splits: Iterable[str]) -> dict[str, tuple[str, str]]:
    """Pair training and test splits, by protocol ('xsub', '1', ''); raises UserError if there is no such pair."""
    parts = {}
    for split in splits:
        if match := SPLIT.fullmatch(split):
            protocol = '_'.join(filter(None, (match[1].lower(), match[3])))
            parts.setdefault(protocol, {})[match[2].lower()] = split
    pairs = {protocol: (part['train'], part.get('test', part.get('val'))) for protocol, part in parts.items()
             if 'train' in part and len(part) > 1}
    if not pairs:
        raise UserError(f'no training split has a test or validation split (splits: {", ".join(splits) or "none"}); '
                        'use a different file')
    return pairs


def parse(entry: Entry, options: Options, num_joints: int, most_bodies: int) -> Parsed:
    """Prepare the clip of an annotation, and free the annotation's memory; raises UserError if it is invalid."""
    try:
        (name, keypoint, label), planar = check_annotation(entry.annotation), is_planar(entry.annotation)
    finally:
        if isinstance(entry.annotation, dict):
            entry.annotation.clear()
    if planar != options.planar:
        raise UserError(f'has {"2D" if planar else "3D"} joints, unlike the first valid annotation')
    if keypoint.shape[2] != num_joints:
        raise UserError(f'has {keypoint.shape[2]} joints, but the first valid annotation has {num_joints}')
    recording = make_recording(Path(name), keypoint.swapaxes(0, 1), options)                # (T, M, V, 3)
    frames = select_bodies(recording.frames, most_bodies, recording.layout, options.centre, options.planar)
    notes = recording.notes + bodies_note(recording.frames, most_bodies)
    return Parsed([Sample(name, label, frames.reshape(len(frames), -1))], keypoint.nbytes, Counter(notes))


def first_valid(annotations: list) -> tuple[int, bool]:
    """Return the number of joints of the first valid annotation, and if they are 2D; raises UserError without one."""
    error = UserError('there are no annotations')
    for annotation in annotations:
        try:
            return check_annotation(annotation)[1].shape[2], is_planar(annotation)
        except UserError as reason:
            error = reason
    raise UserError(f'no annotation is valid; the last error is: {error}')


def read_label_map(path: Path | None) -> list[str] | None:
    """Read the class names of --label_map, one per line; raises UserError if the file cannot be read."""
    if path is None:
        return None
    return [line.strip() for line in read_text(path, 'correct --label_map').rstrip().splitlines()]


def write_file(path: Path, spool: Spool, pair: tuple[list[str], list[str]], dataset: DataSet | None,
               class_names: list[str] | None, width: int, planar: bool, scale: float) -> None:
    """Write a dataset file of training and test clips by name, and its class names; raises UserError."""
    index = {name: number for number, name in enumerate(spool.names)}
    if len(index) < len(spool):
        raise UserError(f'clip {Counter(spool.names).most_common(1)[0][0]} occurs more than once; keep one annotation')
    classes = dataset.classes if dataset else len(class_names or ()) or 1 + max(spool.labels)
    if max(spool.labels) >= classes:
        raise UserError(f'label {max(spool.labels)} is too large for {classes} classes, numbered from 0; correct the '
                        'file or --label_map')
    if len(class_names or ()) not in (0, classes):
        raise UserError(f'--label_map has {len(class_names)} names for {classes} classes; correct it')
    train, test = ([index[name] for name in names if name in index] for names in pair)
    write_protocol(path, spool, train, test, classes, max(spool.lengths), width,
                   dataset.second_body if dataset else 'zeros', planar)
    if class_names or scale != 1:
        names = class_names or [f'class {label}' for label in range(classes)]
        write_json(metadata_path(path), {'classes': names, 'centre': True, 'scale': scale})


def build_parser() -> Parser:
    parser = Parser(description='Convert PYSKL annotation files to dataset files.')
    parser.add_argument('files', type=Path, nargs='+', metavar='FILE.pkl',
                        help='one file with splits, or a training and a test file without')
    parser.add_argument('--out', type=Path, help='folder of the output; default: data/ntu_pyskl for NTU RGB+D, else '
                        'data/NAME')
    parser.add_argument('--layout', metavar='NAME|YAML', help='joint layout; default: by the number of joints')
    parser.add_argument('--scale', type=POSITIVE, default=1., help='metres per unit of the joints')
    parser.add_argument('--bodies', type=COUNT, default=2, help='largest number of bodies per clip; those that '
                        'move most are kept')
    parser.add_argument('--label_map', type=Path, metavar='TXT', help='class names, one per line in the order of the '
                        'labels (PYSKL: tools/data/label_map)')
    add_options(parser, workers=False)
    return parser


def main(argv: list[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    stem = re.sub(r'_?(3danno|hrnet|train)$', '', args.files[0].stem) or args.files[0].resolve().parent.name
    dataset = find_dataset(stem)
    out = args.out or HERE / ('ntu_pyskl' if dataset else stem)

    class_names, (annotations, splits) = read_label_map(args.label_map), read_files(args.files)
    names = pair_splits(splits)
    pairs = {protocol: tuple(splits[split] for split in pair) for protocol, pair in names.items()}
    for split in splits.keys() - {split for pair in names.values() for split in pair}:
        print(f'note: split {split} is not written')
    (num_joints, planar), tally = first_valid(annotations), Tally('annotations')
    options = Options(read_layout(args.layout) if args.layout else None, args.scale, planar=planar)
    known = set(map(clip_name, annotations))
    tally.damaged += [f'split {protocol}: there is no annotation {name!r:.80}' for protocol, pair in pairs.items()
                      for names in pair for name in names if name not in known]
    bodies = min(args.bodies, dataset.bodies) if dataset else args.bodies
    reader = partial(parse, options=options, num_joints=num_joints, most_bodies=bodies)
    spool = collect([Entry(number, clip_name(annotation), annotation) for number, annotation in enumerate(annotations)],
                    reader, out, 1, 1, tally)
    settle_damaged(tally.damaged, args.skip_damaged, out / f'{stem}_damaged.txt', 'correct the file')
    if not len(spool):
        raise UserError('no clip to write: every annotation is damaged')
    commands = []
    for protocol, pair in pairs.items():
        file = dataset.protocols[protocol].file if dataset and protocol in dataset.protocols else \
            '_'.join(filter(None, (stem, protocol)))
        path, width = out / f'{file}{"_2D" * planar}.npz', 3 * num_joints * (dataset.bodies if dataset else bodies)
        write_file(path, spool, pair, dataset, class_names, width, planar, args.scale)
        config = f'config/{dataset.key}_{protocol}{"_2d" * planar}.yaml' if dataset else f'config/{stem}.yaml'
        words = config if (HERE.parent / config).is_file() else f'--num_joints {num_joints}'
        words += f' --layout {args.layout}' if args.layout else ''
        commands.append((f'{words} --data_path {shlex.quote(str(path))}', path.stem, len(pair[0])))
    tally.print(spool)
    print_commands(*commands[0])
    return 0


if __name__ == '__main__':
    run_main(main)
