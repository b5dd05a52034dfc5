"""Report on finished runs: tables beside the published figures, accuracy per class, ensembles, figures.

python tools/report.py runs --all_rows --figure curves.png
python tools/report.py docs/results/nwucla_xview.jsonl
python tools/report.py --scores runs/nwucla_xview/finetune/scores.npz --confusion confusion.png
python tools/report.py --scores runs/nwucla_xview/finetune/scores.npz --without data/nwucla/NWUCLA_XView_copies.txt
python tools/report.py --ensemble joint/scores.npz bone/scores.npz velocity/scores.npz --out runs/nwucla_xview/ensemble
python tools/report.py --features runs/nwucla_xview/retrieval/features.npz --tsne tsne.png
python tools/report.py --readme README.md
"""

import argparse
import sys
from pathlib import Path

if __name__ == '__main__':     # run as a file, from any working directory
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tools.reporting.figures import draw_confusion, draw_curves, draw_tsne
from tools.reporting.scores import class_table, exclude, pairs_table, result_beside, write_ensemble
from tools.reporting.tables import rewrite_tables, tables
from util.errors import Parser, UserError, run_main
from util.files import check_outputs, check_writable
from util.predictions import read_features, read_scores
from util.results import read_results


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add('folder', type=Path, nargs='?',
        help='folder with finished runs at any depth, or a .jsonl file of results: one table per benchmark')
    add('--all_rows', action='store_true', help='include published rows without a run')
    add('--benchmark', metavar='NAME', help='only this table; with --features: the benchmark whose class names to use')
    add('--figure', type=Path, metavar='PNG', help='draw the training curves of the runs')
    add('--scores', type=Path, metavar='NPZ', help='accuracy per class, lowest first, and the most confused classes')
    add('--pairs', type=int, metavar='N', help='number of confused pairs to list (default: 10)')
    add('--without', type=Path, metavar='TXT', help='exclude clips from --scores: a file with a name per line')
    add('--confusion', type=Path, metavar='PNG', help='draw the confusion matrix of --scores')
    add('--ensemble', nargs='+', metavar='NPZ', help='average the scores of several runs')
    add('--out', type=Path, metavar='DIR', help='folder in which --ensemble writes result.json and scores.npz')
    add('--features', type=Path, metavar='NPZ', help='features for --tsne')
    add('--tsne', type=Path, metavar='PNG', help='draw the test features of --features (t-SNE)')
    add('--points', type=int, metavar='N', help='largest number of clips in --tsne (default: 2000)')
    add('--seed', type=int, help='seed of --tsne (default: 0)')
    add('--readme', type=Path, metavar='MD',
        help='update the tables between its lines <!-- table: PLACE --> and <!-- end -->')
    return parser


def check(args: argparse.Namespace) -> None:
    """Check that options occur together with those that they need, and fill in their defaults."""
    needs = {'all_rows': 'folder', 'figure': 'folder', 'confusion': 'scores', 'without': 'scores',
             'ensemble': 'out', 'out': 'ensemble', 'features': 'tsne', 'tsne': 'features', 'pairs': 'scores',
             'points': 'tsne', 'seed': 'tsne'}
    for name, other in needs.items():
        if getattr(args, name) not in (None, False) and getattr(args, other) is None:
            raise UserError(f'--{name} needs {"a folder of runs" if other == "folder" else f"--{other}"}')
    if not any((args.folder, args.scores, args.ensemble, args.features, args.readme)):
        raise UserError('nothing to report: specify a folder of runs, --scores, --ensemble, --features or --readme; '
                        '--help explains them')
    outputs = [(f'--{name}', path) for name in ('figure', 'confusion', 'tsne') if (path := getattr(args, name))]
    check_outputs(outputs, [path for path in (args.scores, args.without, args.features, args.readme) if path])
    for _, path in outputs:
        check_writable(path.parent)
    if args.out:
        check_writable(args.out)
    for name, default in (('pairs', 10), ('points', 2000), ('seed', 0)):
        if getattr(args, name) is None:
            setattr(args, name, default)
    if args.pairs < 0 or args.points < 5 or not 0 <= args.seed < 2**32:
        raise UserError('--pairs must be at least 0, --points at least 5, and --seed from 0 to 4294967295')


def main(argv: list[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    check(args)
    if args.folder:
        results = read_results(args.folder, may_be_empty=args.all_rows)
        text = tables(results, args.all_rows, args.benchmark)
        if args.figure:
            draw_curves([run for run in results if args.benchmark in (None, run.benchmark)], args.figure)
        print(text)
    if args.ensemble:
        print(write_ensemble([read_scores(path) for path in args.ensemble], args.out))
    if args.scores:
        scores = read_scores(args.scores)
        if args.without:
            scores = exclude(scores, args.without)
        if args.confusion:
            draw_confusion(scores, args.confusion)
        print(f'{class_table(scores)}\n\n{pairs_table(scores, args.pairs)}')
    if args.tsne:
        splits, facts = read_features(args.features, ('test',))
        run = result_beside(args.features)
        benchmark = args.benchmark or facts.get('benchmark') or (run and run.benchmark)
        draw_tsne(splits['test'], args.tsne, benchmark, args.points, args.seed)
    if args.readme:
        print(f'{args.readme}: {"updated" if rewrite_tables(args.readme) else "up to date"}')
    return 0


if __name__ == '__main__':
    run_main(main)
