"""Prepare Northwestern-UCLA Multiview Action 3D (the `all_sqe` JSON release): one dataset file per protocol.

    python data/prepare_nwucla.py --raw nw_ucla.tar.xz --out data/nwucla

`--raw` is a folder, or an archive, which is read without unpacking it. The JSON files in its folder `all_sqe/`, at any
depth, are read, or all JSON files if there is no such folder. All-zero frames are dropped; joint 2 (numbered from 1) of
the first frame is the origin. Protocols:

- `NWUCLA_XView.npz`: views 1 and 2 for training, view 3 for testing; the benchmark's own protocol.
- `NWUCLA_XSub.npz`: odd subjects for training, even subjects for testing; defined here, without published results.
- `NWUCLA_Validation.npz` (`--protocol validation`), for choosing settings: views 1 and 2 only, subjects 3, 6 and 9 for
  testing, the other subjects for training. View 3, the test view of the benchmark, is not used.
- `NWUCLA_ValidationView.npz` (`--protocol validation_view`), for choosing settings across views: subjects 3, 6 and 9 in
  view 2 for testing, the other subjects in view 1 for training.

In the release that is available, the view 3 clips of actions a02 and a03 are copies of their view 2 clips, so that 95
of the 464 XView test clips are also training clips. These test clips are kept for comparison with other work, counted
in the summary and listed in `NWUCLA_XView_copies.txt` (`tools/report.py --scores … --without` excludes them).
"""

import json
import re
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

if not __package__:     # run as a file, from any working directory
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from data.datasets import DATASETS, Protocol
from data.pipeline import Parsed, Tally, add_options, collect, select_protocols, settle_damaged, write_protocol
from data.sources import Source, find_sources
from data.spool import Sample, Spool
from util.errors import Parser, UserError, one_line, run_main
from util.files import write_text

DATASET = DATASETS['nwucla']
CENTRE = 1      # joint 2, the spine
LARGEST = 1e38  # largest coordinate, just within float32
# Other formats by a key that their files contain
OTHER_JSON = {'data': 'Kinetics-Skeleton', 'frames': 'Azure Kinect', 'annotations': 'COCO annotations'}
CHUNK = 8       # files that a process parses at once
NAME = re.compile(r'a([0-9]{2})_s([0-9]{2})_e([0-9]{2})_v(0[123])')


class Facts(NamedTuple):
    """The facts in the name of a sample; all but the environment are numbered from 1."""

    action: int
    subject: int
    environment: int
    view: int


def parse_clip_name(name: str) -> Facts:
    """Parse a name aAA_sSS_eEE_vVV; raises UserError for any other name."""
    match = NAME.fullmatch(name)
    if match is None:
        raise UserError(f'{name!r:.60} is not a sample name (aAA_sSS_eEE_vVV, view 01 to 03)')
    return Facts(*map(int, match.groups()))


def parse_clip(text: str | bytes, name: str) -> tuple[np.ndarray, int]:
    """Parse a clip: frames (T, 20, 3) float32 in metres, centred, T >= 1, and the label of the release, 1..10.

    Raises:
        UserError: the JSON is damaged, is not an NW-UCLA clip, or contains another name.
    """
    try:
        clip = json.loads(text)
        stored, label, frames = clip['file_name'], clip['label'], np.array(clip['skeletons'])
    except (ValueError, OverflowError, RecursionError) as error:
        raise UserError(f'damaged JSON ({one_line(error)})') from error
    except (KeyError, TypeError) as error:
        origins = [name for key, name in OTHER_JSON.items() if isinstance(clip, dict) and key in clip]
        raise UserError('does not have the keys file_name, skeletons and label of an NW-UCLA clip'
                        + ''.join(f' but looks like a file of {origin}' for origin in origins[:1])
                        + '; save the joints as an .npy array (frames, bodies, joints, 3)') from error
    if stored != name:
        raise UserError(f'the file_name stored inside is {stored!r:.40}, which differs from the name of the file; '
                        'rename the file')
    if type(label) is not int or not 1 <= label <= DATASET.classes:
        raise UserError(f'label {label!r:.40} is not one of 1..{DATASET.classes}')
    if frames.shape[1:] != (DATASET.joints, 3) or frames.dtype.kind not in 'if':
        raise UserError(f'skeletons {frames.shape} of {frames.dtype}, expected frames x {DATASET.joints} joints x 3 '
                        'numbers')
    if not (np.abs(frames) < LARGEST).all():
        raise UserError('a coordinate is not finite or too large')
    frames = frames[(frames != 0).any(axis=(1, 2))]
    if not len(frames):
        raise UserError('all coordinates are zero')
    return (frames - frames[0, CENTRE]).astype(np.float32), label


def parse(source: Source) -> Parsed:
    """Parse the sample of a JSON file; raises UserError if it is damaged or cannot be read."""
    parse_clip_name(source.stem)
    text = source.read()
    frames, label = parse_clip(text, source.stem)
    return Parsed([Sample(source.stem, label - 1, frames.reshape(len(frames), -1))], len(text), Counter())


def find_copies(spool: Spool, train: Sequence[int], test: Sequence[int]) -> list[str]:
    """Return the names of the test clips that are identical to a training clip."""
    clips = {spool[index].tobytes() for index in train}
    return [spool.names[index] for index in test if spool[index].tobytes() in clips]


def split_clips(names: Sequence[str], protocol: Protocol,
                train_subjects: Sequence[int] | None = None) -> tuple[list[int], list[int]]:
    """Return the indices of the training and test clips of a protocol; raises UserError if a split is empty.

    Training clips of other subjects than `train_subjects`, if specified, are omitted.
    """
    facts = [parse_clip_name(name) for name in names]
    splits = [protocol.split(fact) for fact in facts]
    train, test = ([index for index, split in enumerate(splits) if split == part] for part in ('train', 'test'))
    if train_subjects:
        train = [index for index in train if facts[index].subject in train_subjects]
    if not train or not test:
        raise UserError(f'{protocol.file}: no {"test" if train else "training"} clip; set --raw to the complete '
                        'release and --train_subjects to subjects of the training split')
    return train, test


def write_files(path: Path, spool: Spool, train: list[int], test: list[int]) -> None:
    """Write a dataset file, padded to its longest clip, and the list of copies."""
    write_protocol(path, spool, train, test, DATASET.classes, max(spool.lengths[index] for index in train + test),
                   DATASET.width)
    if copies := find_copies(spool, train, test):
        path = path.with_name(f'{path.stem}_copies.txt')
        write_text(path, '\n'.join(copies) + '\n')
        print(f'{len(copies)} test clips are copies of training clips, listed in {path}')


def main(argv: list[str] | None = None) -> int:
    parser = Parser(description='Convert the JSON files of Northwestern-UCLA (all_sqe) to dataset files.')
    parser.add_argument('--raw', type=Path, required=True, help='folder, tar or zip')
    parser.add_argument('--out', type=Path, required=True, help='folder of the output')
    parser.add_argument('--protocol', nargs='+', help=f'{", ".join(DATASET.protocols)}; default: xview and xsub')
    parser.add_argument('--train_subjects', type=int, nargs='+', metavar='N', help='use training clips of these '
                        'subjects only, to study small training sets')
    add_options(parser)
    args = parser.parse_args(argv)
    protocols = select_protocols(args.protocol, DATASET)

    tally = Tally()
    sources = find_sources([args.raw], '.json')
    sources = [source for source in sources if source.file.parent.name == 'all_sqe'] or sources
    spool = collect(sources, parse, args.out, args.workers, CHUNK, tally)
    settle_damaged(tally.damaged, args.skip_damaged, args.out / 'nwucla_damaged.txt')
    splits = {protocol.file: split_clips(spool.names, protocol, args.train_subjects) for protocol in protocols}
    for file, (train, test) in splits.items():
        write_files(args.out / f'{file}.npz', spool, train, test)
    tally.print(spool)
    if len(spool) != DATASET.samples:
        print(f'note: the full dataset has {DATASET.samples:,} samples')
    return 0


if __name__ == '__main__':
    run_main(main)
