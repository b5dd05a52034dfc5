"""Tables of results in Markdown: one per benchmark, a row per experiment, beside the published figures."""

import re
from collections import defaultdict
from dataclasses import replace
from functools import cache
from pathlib import Path
from statistics import mean, stdev

from util.errors import UserError
from util.files import has_type, read_text, read_yaml, write_text
from util.results import KINDS, Experiment, Result, distinct_runs, group_runs, read_results

PUBLISHED = Path(__file__).resolve().parents[2] / 'config' / 'published.yaml'
EMPTY = '–'
HEAD = ('experiment', 'paper', "authors' weights", 'this code, last epoch: mean ± std (n)', 'each seed',
        'best epoch, chosen on test', 'top-5', 'minutes')
FOOTNOTES = '¹²³⁴⁵⁶⁷⁸⁹'


@cache
def read_published() -> tuple[dict[str, str], dict[str, dict[Experiment, dict[str, float]]]]:
    """Read config/published.yaml: titles of the sources, and top-1 % by benchmark, experiment and source."""
    content = read_yaml(PUBLISHED, 'published figures', 'get config/published.yaml from the repository')
    sources, figures = content['sources'], {}
    for benchmark, rows in content['figures'].items():
        figures[benchmark] = {}
        for row in rows:
            values = {source: row[source] for source in sources if source in row}
            if row['kind'] not in KINDS or not all(has_type(value, float) for value in values.values()):
                raise UserError(f'{PUBLISHED}: {benchmark}: {row} is not a valid published figure; correct this entry')
            experiment = Experiment(row['kind'], row['method'], row.get('share', 0.), row.get('source'))
            figures[benchmark][experiment] = values
    return sources, figures


def tables(results: list[Result], all_rows: bool = False, benchmark: str | None = None) -> str:
    """Return Markdown tables of all benchmarks or one; `all_rows` includes published rows without a run."""
    by_benchmark = defaultdict(list) | ({name: [] for name in read_published()[1]} if all_rows else {})
    for result in results:
        by_benchmark[result.benchmark].append(result)
    names = sorted(by_benchmark)
    if benchmark is not None and benchmark not in by_benchmark:
        raise UserError(f'--benchmark {benchmark}: no results for this benchmark; available: {", ".join(names)}')
    return '\n\n'.join(benchmark_table(name, by_benchmark[name], all_rows) for name in names
                       if benchmark in (None, name))


def benchmark_table(benchmark: str, results: list[Result], all_rows: bool = False) -> str:
    """Return the table of one benchmark; accuracies are top-1 % on its test split."""
    sources, published = read_published()
    published = published.get(benchmark, {})
    groups = {row: distinct_runs(runs) for row, runs in group_runs(results).items()}
    rows = set(groups)
    if all_rows:
        done = {_as_published(experiment) for experiment, _ in groups}
        rows |= {(experiment, '') for experiment in published if experiment not in done}
    footnotes, lines = {}, []
    for experiment, note in sorted(rows, key=lambda row: (row[0].sort_key, row[1])):
        figures = published.get(_as_published(experiment), {})
        paper = [f'{figure:.1f}' + (f' {footnotes.setdefault(source, FOOTNOTES[len(footnotes)])}'
                                    if source != 'paper' else '')
                 for source, figure in figures.items() if source != 'weights']
        lines.append([_row_name(experiment, note), ' / '.join(paper) or None,
                      f'{figures["weights"]:.1f}' if 'weights' in figures else None,
                      *_run_cells(groups.get((experiment, note), []))])
    parts = [f'**{benchmark}**', markdown(HEAD, lines)]
    if footnotes:
        parts.append('. '.join(f'{mark} {sources[source]}' for source, mark in footnotes.items()) + '.')
    return '\n\n'.join([*parts, *filter(None, [lead_table(groups)])])


def _as_published(experiment: Experiment) -> Experiment:
    """Return the published row for an experiment: runs of the authors' weights correspond to runs of MAMP."""
    return replace(experiment, method='MAMP') if experiment.method == "authors' weights" else experiment


def _row_name(experiment: Experiment, note: str) -> str:
    return experiment.name + (f' ({note})' if note else '')


def _run_cells(runs: list[Result]) -> list[str | None]:
    """Return the cells of a row: last epoch, each seed, best epoch, top-5, minutes."""
    scored = [run for run in runs if run.last]

    def spread_of_all(scores: list[dict | None], name: str) -> str | None:
        values = [score.get(name) for score in scores if score]
        return spread(values) if values and len(values) == len(scored) and None not in values else None

    seconds = [run.wall_seconds for run in runs if run.wall_seconds is not None]
    top1 = spread_of_all([run.last for run in scored], 'top1')
    return [f'{top1} ({len(scored)})' if scored else None,
            ', '.join(f'{run.last["top1"]:.1f}' for run in scored) or None,
            spread_of_all([run.best for run in scored], 'top1'), spread_of_all([run.last for run in scored], 'top5'),
            f'{mean(seconds) / 60:.1f}' if seconds else None]


def lead_table(groups: dict[tuple[Experiment, str], list[Result]]) -> str:
    """Return the table of MAMP's lead over MAE, a random encoder and training from scratch.

    The lead is the difference of mean top-1 % at the last epoch, with its standard error if both sides have at least
    two seeds.
    """
    scores = {row: [run.last['top1'] for run in runs if run.last] for row, runs in groups.items()}
    rows = []
    for (experiment, note), own in sorted(scores.items(), key=lambda item: (item[0][0].sort_key, item[0][1])):
        if experiment.method != 'MAMP' or not own:
            continue
        baselines = [replace(experiment, method='MAE'), replace(experiment, method='random encoder'), None]
        if experiment.kind in ('fine-tune', 'transfer', 'semi'):
            kind = 'semi' if experiment.kind == 'semi' else 'scratch'
            baselines[2] = replace(experiment, kind=kind, method='scratch', source=None)
        others = [scores.get((baseline, note), []) for baseline in baselines]
        if any(others):
            rows.append([_row_name(experiment, note), *(_lead(own, other) if other else None for other in others)])
    return markdown(["MAMP's lead: points ± standard error", 'over MAE', 'over random encoder', 'over scratch'],
                    rows) if rows else ''


def _lead(own: list[float], other: list[float]) -> str:
    lead = f'{mean(own) - mean(other):+.1f}'
    if min(len(own), len(other)) < 2:
        return f'{lead} (n = 1)'
    return f'{lead} ± {(stdev(own) ** 2 / len(own) + stdev(other) ** 2 / len(other)) ** 0.5:.1f}'


def spread(values: list[float]) -> str:
    """Format mean and standard deviation (n − 1), '56.4 ± 6.5', or a single value."""
    return f'{mean(values):.1f}' + (f' ± {stdev(values):.1f}' if len(values) > 1 else '')


def markdown(head, rows: list[list]) -> str:
    """Return a Markdown table; None is an empty cell."""
    def line(cells) -> str:
        texts = [EMPTY if cell is None else str(cell).replace('|', '\\|') for cell in cells]
        return f'| {" | ".join(texts)} |'
    return '\n'.join([line(head), '|---' * len(head) + '|', *map(line, rows)])


def rewrite_tables(path: Path) -> bool:
    """Update the tables of a Markdown file; returns True if it changed.

    The text between a line `<!-- table: PLACE -->` and the next line `<!-- end -->` is replaced by the tables of the
    results at PLACE, relative to the file. Raises UserError for a file without such lines.
    """
    text = read_text(path, 'use a Markdown file')
    pattern = re.compile(r'^(<!-- table: (.+?) -->)\n.*?^(<!-- end -->)$', re.MULTILINE | re.DOTALL)
    starts, ends = (len(re.findall(rf'^<!-- {word}', text, re.MULTILINE)) for word in ('table: ', 'end -->'))
    if not starts or starts != ends or len(pattern.findall(text)) != starts:
        raise UserError(f'{path}: {starts} lines <!-- table: PLACE --> and {ends} lines <!-- end -->; there must be '
                        'one or more pairs, each marker on its own line')
    updated = pattern.sub(lambda match: f'{match[1]}\n\n{tables(read_results(path.parent / match[2]))}\n\n{match[3]}',
                          text)
    if updated != text:
        write_text(path, updated)
    return updated != text
