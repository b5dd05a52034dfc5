"""Prepare NTU RGB+D 60 and 120: convert raw skeleton text to one dataset file per protocol.

    python data/prepare_ntu.py --dataset ntu60      # data/nturgbd_raw/… to data/ntu/NTU60_XSub.npz and NTU60_XView.npz
    python data/prepare_ntu.py --dataset ntu120 --raw s001_to_s017.zip s018_to_s032.zip --out /somewhere

`--raw` accepts folders and the downloaded zips, which are not unpacked. Setup, camera, performer and action are taken
from the name of a sample. The 535 samples with unusable skeletons (ntu_unusable.txt) are omitted, and for NTU-60 also
the files of NTU-120. The arrays equal those of the authors' scripts bit for bit, in the same order.
"""

import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

if not __package__:     # run as a file, from any working directory
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from data.datasets import DATASETS, DataSet, Protocol
from data.ntu_actors import to_rows
from data.ntu_text import parse_name, parse_skeleton
from data.pipeline import Parsed, Tally, add_options, collect, select_protocols, settle_damaged, write_protocol
from data.sources import Source, find_sources
from data.spool import Sample
from util.errors import Parser, UserError, run_main

HERE = Path(__file__).resolve().parent
CHUNK = 8       # files that a process parses at once


def read_unusable() -> set[str]:
    """Read the 535 names in ntu_unusable.txt."""
    lines = (Path(__file__).with_name('ntu_unusable.txt')).read_text(encoding='utf-8').splitlines()
    return {f'{setup}{rest}' for setup, _, names in (line.partition(': ') for line in lines if line.startswith('S'))
            for rest in names.split()}


def default_raw(dataset: DataSet) -> list[Path]:
    """Return the default folders or zips of the raw files; raises UserError if any part is missing."""
    if not dataset.raw:
        raise UserError('set --raw to the folder that data/synthesize.py wrote')
    parts = [[HERE / name for name in names if (HERE / name).exists()] for names in dataset.raw]
    for existing, names in zip(parts, dataset.raw, strict=True):
        if not existing:
            raise UserError(f'{HERE}: contains none of {", ".join(names)}; put one there or set --raw')
    return [existing[0] for existing in parts]


def select(sources: Sequence[Source], dataset: DataSet, tally: Tally) -> list[Source]:
    """Select the files that belong to the dataset by their names; others are counted, or listed as damaged."""
    unusable = read_unusable() if dataset.samples else set()
    selected = []
    for source in sources:
        try:
            facts = parse_name(source.stem)
        except UserError as error:
            tally.damaged.append(f'{source}: {error}')
            continue
        if source.stem in unusable:
            tally.counts['omitted: on the list of unusable skeletons'] += 1
        elif facts.setup > dataset.setups:
            tally.counts[f'omitted: of a setup after {dataset.setups}'] += 1
        elif facts.action > dataset.classes:
            tally.damaged.append(f'{source}: action {facts.action}, but the dataset has {dataset.classes}')
        else:
            selected.append(source)
    return selected


def parse(source: Source) -> Parsed:
    """Parse the sample of a `.skeleton` file; raises UserError if it is damaged or cannot be read."""
    text = source.read()
    sample = Sample(source.stem, parse_name(source.stem).action - 1, to_rows(parse_skeleton(text)))
    return Parsed([sample], len(text), Counter())


def order(names: Sequence[str], protocol: Protocol) -> tuple[list[int], list[int]]:
    """Return the indices into `names` of the training and test samples of a protocol, in the order of its file.

    Samples are sorted by the order of the training values, then by name; for test samples the values are in ascending
    order.
    """
    rank = {value: position for position, value in enumerate(protocol.train)}
    values = [getattr(parse_name(name), protocol.key) for name in names]
    by_name = sorted(range(len(names)), key=names.__getitem__)
    train = sorted((index for index in by_name if values[index] in rank), key=lambda index: rank[values[index]])
    test = sorted((index for index in by_name if values[index] not in rank), key=values.__getitem__)
    return train, test


def main(argv: list[str] | None = None) -> int:
    parser = Parser(description='Convert raw NTU RGB+D skeletons to dataset files.')
    parser.add_argument('--dataset', choices=('ntu60', 'ntu120', 'synth'), required=True,
                        help='synth: files of data/synthesize.py')
    parser.add_argument('--raw', type=Path, nargs='+', help='folders or zips; default: those in data/nturgbd_raw')
    parser.add_argument('--out', type=Path, help='folder of the output; default: ntu, ntu120 or synthetic in data/')
    parser.add_argument('--protocol', nargs='+',
                        help='xsub, xview (ntu60, synth), xset, oneshot (ntu120); default: all but oneshot')
    add_options(parser)
    args = parser.parse_args(argv)
    dataset = DATASETS[args.dataset]
    protocols = select_protocols(args.protocol, dataset)
    out = args.out or HERE / dataset.folder

    tally = Tally()
    sources = select(find_sources(args.raw or default_raw(dataset), '.skeleton'), dataset, tally)
    spool = collect(sources, parse, out, args.workers, CHUNK, tally)
    settle_damaged(tally.damaged, args.skip_damaged, out / f'{args.dataset}_damaged.txt')
    if not len(spool):
        raise UserError('no sample to write: every file is damaged or belongs to another dataset')
    for protocol in protocols:      # all padded to the longest sample of the whole set
        write_protocol(out / f'{protocol.file}.npz', spool, *order(spool.names, protocol), dataset.classes,
                       max(spool.lengths), dataset.width, dataset.second_body)
    tally.print(spool)
    if dataset.samples and len(spool) != dataset.samples:
        print(f'note: the full dataset has {dataset.samples:,} samples')
    return 0


if __name__ == '__main__':
    run_main(main)
