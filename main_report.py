"""A folder of runs -> one Markdown table (mean ± standard deviation over seeds) and the training curves.

python main_report.py runs/nwucla_xview [--figure curves.png]
"""

import argparse
import json
from collections import defaultdict
from pathlib import Path
from statistics import mean, stdev

import matplotlib

matplotlib.use('Agg')       # figures are files: no screen is needed
import matplotlib.pyplot as plt  # noqa: E402

from util.errors import UserError, run_main  # noqa: E402
from util.files import replacing  # noqa: E402


def read_results(folder: Path) -> list[dict]:
    """Every result.json below `folder`, with its path; UserError when there is none or one is damaged."""
    results = []
    for path in sorted(folder.rglob('result.json')):
        try:
            result = json.loads(path.read_text()) | {'path': path}
        except (ValueError, TypeError) as error:
            raise UserError(f'{path}: not JSON of a run ({error}); remove it or run that stage again') from error
        if lacking := {'benchmark', 'protocol', 'method', 'last', 'best', 'wall_seconds'} - result.keys():
            raise UserError(f'{path}: no {", ".join(sorted(lacking))}; remove it or run that stage again')
        results.append(result)
    if not results:
        raise UserError(f'{folder}: no result.json below it; give the folder of finished runs')
    return results


def read_log(path: Path) -> list[dict]:
    """The lines of a run's log.jsonl; UserError when it is missing or damaged."""
    try:
        return [json.loads(line) for line in path.read_text().splitlines()]
    except (OSError, ValueError) as error:
        raise UserError(f'{path}: cannot be read ({error}); leave out --figure or run that stage again') from error


def rank(protocol: str) -> int:
    """Stages in the order in which they are run."""
    return ('pretrain', 'linprobe', 'finetune').index(protocol)


def spread(values: list[float]) -> str:
    """'56.4 ± 6.5', or the value alone when there is only one."""
    return f'{mean(values):.1f}' + (f' ± {stdev(values):.1f}' if len(values) > 1 else '')


def table(results: list[dict]) -> str:
    """One row for each benchmark, stage and method; accuracy at the last epoch counts, the best one is shown apart.

    ± is the standard deviation (n − 1) over seeds.
    """
    groups = defaultdict(list)
    for result in results:
        groups[result['benchmark'], result['protocol'], result['method']].append(result)
    head = ['benchmark', 'stage', 'encoder', 'top-1 last, %', 'top-1 best, %', 'top-5 last, %', 'each seed, last', 'n',
            'minutes']
    lines = [f'| {" | ".join(head)} |', '|---' * len(head) + '|']
    for (benchmark, stage, method), runs in sorted(groups.items(), key=lambda item: (item[0][0], rank(item[0][1]))):
        scored = [run for run in runs if run['last']]
        cells = [spread([run[which][score] for run in scored]) if scored else '–'
                 for which, score in (('last', 'top1'), ('best', 'top1'), ('last', 'top5'))]
        seeds = ', '.join(f'{run["last"]["top1"]:.1f}' for run in scored) or '–'
        minutes = f'{mean(run["wall_seconds"] for run in runs) / 60:.1f}'
        lines.append(f'| {" | ".join([benchmark, stage, method, *cells, seeds, str(len(runs)), minutes])} |')
    return '\n'.join(lines)


def draw_curves(results: list[dict], path: Path) -> None:
    """Training loss and test accuracy over epochs, one panel a stage and quantity, one line a run."""
    stages = sorted({result['protocol'] for result in results}, key=rank)
    panels = [(stage, key) for stage in stages for key in ('train_loss', 'test_top1')
              if (stage, key) != ('pretrain', 'test_top1')]
    figure, axes = plt.subplots(1, len(panels), figsize=(3.4 * len(panels), 3), squeeze=False, layout='constrained')
    methods = {method: f'C{i}' for i, method in enumerate(dict.fromkeys(result['method'] for result in results))}
    for axis, (stage, key) in zip(axes[0], panels, strict=True):
        for result in results:
            if result['protocol'] == stage:
                lines = read_log(result['path'].parent / 'log.jsonl')
                axis.plot([line['epoch'] for line in lines], [line[key] for line in lines],
                          color=methods[result['method']], label=result['method'], linewidth=1)
        axis.set(title=stage, xlabel='epoch', ylabel={'train_loss': 'training loss', 'test_top1': 'test top-1, %'}[key])
        handles, labels = axis.get_legend_handles_labels()
        unique = dict(zip(labels, handles, strict=True))
        axis.legend(unique.values(), unique.keys(), fontsize='small')
    with replacing(path) as partial:
        figure.savefig(partial, dpi=110, format='png')
    plt.close(figure)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('folder', type=Path, help='folder with finished runs, at any depth')
    parser.add_argument('--figure', type=Path, help='also draw the training curves into this PNG')
    args = parser.parse_args(argv)
    results = read_results(args.folder)
    print(table(results))
    if args.figure:
        draw_curves(results, args.figure)
    return 0


if __name__ == '__main__':
    run_main(main)
