"""NTU RGB+D 60 and 120, raw skeleton text, to one interchange file a protocol.

    python data/prepare_ntu.py --dataset ntu60      # data/nturgbd_raw/… to data/ntu/NTU60_XSub.npz and NTU60_XView.npz
    python data/prepare_ntu.py --dataset ntu120 --raw s001_to_s017.zip s018_to_s032.zip --out /somewhere

`--raw` takes folders and the zips as downloaded, which are read in place. A sample's setup, camera, performer and
action come from its name. Left out are the 535 samples with unusable skeletons (ntu_unusable.txt) and, for NTU-60, the
files of NTU-120. What remains keeps the order and every bit of the files that the authors' scripts write.
"""

import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

if not __package__:  # run by path: the repository's root is not on the search path yet
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from data.datasets import DATASETS, DataSet, Protocol
from data.ntu_actors import WIDTH, to_rows
from data.ntu_text import facts_of, parse_skeleton
from data.pipeline import (
    Parsed,
    Sample,
    Source,
    Spool,
    Tally,
    add_options,
    chosen_protocols,
    collect,
    find_sources,
    settle_damaged,
    write_protocol,
)
from util.errors import Parser, UserError, run_main

HERE = Path(__file__).resolve().parent
RAW = HERE / 'nturgbd_raw'
CHUNK = 8  # files a process parses at a time


def unusable_samples() -> set[str]:
    """The 535 names in ntu_unusable.txt."""
    lines = (HERE / 'ntu_unusable.txt').read_text().splitlines()
    return {f'{setup}{rest}' for setup, _, names in (line.partition(': ') for line in lines if line.startswith('S'))
            for rest in names.split()}


def default_raw(dataset: DataSet) -> list[Path]:
    """Default folders or zips of the raw files; raises UserError if a part of them is missing."""
    parts = []
    for names in dataset.raw:
        existing = [RAW / name for name in names if (RAW / name).exists()]
        if not existing:
            raise UserError(f'{RAW}: contains none of {", ".join(names)}; put one there or give --raw')
        parts.append(existing[0])
    if not parts:
        raise UserError('give --raw the folder that data/synthesize.py wrote')
    return parts


def choose(sources: Sequence[Source], dataset: DataSet, tally: Tally) -> list[Source]:
    """Select the files that belong to the data set by their names; counts the others, or lists them as damaged."""
    unusable = unusable_samples() if dataset.samples else set()
    chosen = []
    for source in sources:
        try:
            facts = facts_of(source.stem)
        except UserError as error:
            tally.damaged.append(f'{source}: {error}')
            continue
        if source.stem in unusable:
            tally.counts['left out: on the list of unusable skeletons'] += 1
        elif facts.setup > dataset.setups:
            tally.counts[f'left out: of a setup after {dataset.setups}'] += 1
        elif facts.action > dataset.classes:
            tally.damaged.append(f'{source}: action {facts.action}, where the set has {dataset.classes}')
        else:
            chosen.append(source)
    return chosen


def parse(source: Source) -> Parsed:
    """Read the sample of a `.skeleton` file; raises UserError if it is damaged or cannot be read."""
    text = source.read()
    sample = Sample(source.stem, facts_of(source.stem).action - 1, to_rows(parse_skeleton(text)))
    return Parsed([sample], len(text), Counter())


def order(names: Sequence[str], protocol: Protocol) -> tuple[list[int], list[int]]:
    """Indices into `names` of a protocol's training and test samples, in the order of its file."""
    rank = {value: place for place, value in enumerate(protocol.train)}
    keys = [getattr(facts_of(name), protocol.key) for name in names]
    by_name = sorted(range(len(names)), key=lambda index: names[index])
    train = sorted((index for index in by_name if keys[index] in rank), key=lambda index: rank[keys[index]])
    test = sorted((index for index in by_name if keys[index] not in rank), key=lambda index: keys[index])
    return train, test


def main(argv: list[str] | None = None) -> int:
    parser = Parser(description='Convert raw NTU RGB+D skeletons to NTU60_*.npz or NTU120_*.npz.')
    parser.add_argument('--dataset', choices=('ntu60', 'ntu120', 'synth'), required=True,
                        help='synth: files of data/synthesize.py')
    parser.add_argument('--raw', type=Path, nargs='+', help='folders or zips; default: those in data/nturgbd_raw')
    parser.add_argument('--out', type=Path, help='folder for the files; default: ntu, ntu120 or synthetic in data/')
    parser.add_argument('--protocol', nargs='+',
                        help='xsub, xview (ntu60, synth), xset, oneshot (ntu120); default: all but oneshot')
    add_options(parser)
    args = parser.parse_args(argv)
    dataset = DATASETS[args.dataset]
    usual = [name for name in dataset.protocols if name != 'oneshot']
    protocols = chosen_protocols(args.protocol or usual, dataset.protocols)
    out = args.out or HERE / dataset.folder

    tally = Tally()
    sources = choose(find_sources(args.raw or default_raw(dataset), '.skeleton'), dataset, tally)
    spool = collect(sources, parse, out, args.workers, CHUNK, tally)
    settle_damaged(tally.damaged, args.skip_damaged, out / f'{args.dataset}_damaged.txt')
    write_all(spool, dataset, protocols, out)
    tally.print(spool)
    if dataset.samples and len(spool) != dataset.samples:
        print(f'note: the full set has {dataset.samples:,} samples')
    return 0


def write_all(spool: Spool, dataset: DataSet, protocols: Sequence[Protocol], out: Path) -> None:
    """Write the dataset files of the protocols, padded to the longest sample of the whole set."""
    if not len(spool):
        raise UserError('no sample to write: every file is damaged or belongs to another set')
    for protocol in protocols:
        train, test = order(spool.names, protocol)
        write_protocol(out / f'{protocol.file}.npz', spool, train, test, dataset.classes, max(spool.lengths),
                       2 * WIDTH, dataset.second_body)


if __name__ == '__main__':
    run_main(main)
