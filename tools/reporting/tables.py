"""The tables: one a benchmark, a row an experiment, published figures beside ours; and those in the README."""

import re
from collections import defaultdict
from functools import cache
from pathlib import Path
from statistics import mean, stdev

import yaml

from util.errors import UserError
from util.files import atomic_write
from util.results import distinct_runs, group_runs, place_of, read_results, warn_of_duplicates

PUBLISHED = Path(__file__).resolve().parents[2] / 'config' / 'published.yaml'
EMPTY = '–'
HEAD = ('experiment', 'paper', "authors' weights", 'ours, last epoch: mean ± std (n)', 'each seed',
        'best epoch, chosen on test', 'top-5', 'minutes')
MARKS = '¹²³⁴⁵⁶⁷⁸⁹'


@cache
def read_published(path: Path = PUBLISHED) -> dict:
    """{'sources': {source: text}, 'figures': {benchmark: {experiment: {source: top-1 %}}}}.

    Raises UserError when the file cannot be read or a figure is no number of a named source.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding='utf-8'))
        sources, figures = content['sources'], content['figures']
        for benchmark, rows in figures.items():
            for experiment, row in rows.items():
                place_of(experiment)
                for source, figure in row.items():
                    if source not in sources or not isinstance(figure, float):
                        raise ValueError(f'{benchmark}: {experiment}: {source}: {figure}')
    except OSError as error:
        raise UserError(f'{path}: cannot be read ({error.strerror})') from error
    except (yaml.YAMLError, ValueError, TypeError, KeyError, AttributeError, StopIteration) as error:
        raise UserError(f'{path}: not published figures ({" ".join(str(error).split())}); see its first lines '
                        'for what it must hold') from error
    return content


def tables(results: list[dict], all_rows: bool = False, benchmark: str | None = None) -> str:
    """Markdown, one table a benchmark under its name; with `all_rows` also what was published and we have not run."""
    published = read_published()['figures']
    by_benchmark = defaultdict(list) | ({name: [] for name in published} if all_rows else {})
    for result in results:
        by_benchmark[result['benchmark']].append(result)
    known = sorted(by_benchmark)
    if benchmark is not None and benchmark not in by_benchmark:
        raise UserError(f'--benchmark {benchmark}: no such results; there are {", ".join(known)}')
    return '\n\n'.join(table_of(name, by_benchmark[name], all_rows) for name in known if benchmark in (None, name))


def table_of(benchmark: str, results: list[dict], all_rows: bool = False) -> str:
    """The table of one benchmark. Accuracies are top-1 % on its test split; top-5 is of the last epoch, too."""
    published = read_published()['figures'].get(benchmark, {})
    groups = group_runs(results)
    for (experiment, _), runs in groups.items():
        warn_of_duplicates(experiment, runs)
    groups = {row: distinct_runs(runs) for row, runs in groups.items()}
    rows = list(groups)
    if all_rows:
        done = {_published_name(experiment) for experiment, _ in groups}
        rows += [(experiment, '') for experiment in published if experiment not in done]
    marks = {}
    lines = [_line(HEAD), '|---' * len(HEAD) + '|']
    for experiment, note in sorted(rows, key=lambda row: (place_of(row[0]), row[1])):
        figures = published.get(_published_name(experiment), {})
        paper = ' / '.join(_marked(figure, source, marks) for source, figure in figures.items() if source != 'weights')
        weights = f'{figures["weights"]:.1f}' if 'weights' in figures else EMPTY
        lines.append(_line([experiment + (f' ({note})' if note else ''), paper or EMPTY, weights,
                            *_ours(groups.get((experiment, note), []))]))
    sources = read_published()['sources']
    notes = [f'{mark} {sources[source]}' for source, mark in marks.items()]
    leads = leads_of(groups)
    return '\n'.join([f'**{benchmark}**', '', *lines, *(['', '. '.join(notes) + '.'] if notes else []),
                      *(['', leads] if leads else [])])


def leads_of(groups: dict[tuple[str, str], list[dict]]) -> str:
    """MAMP's lead over what it is compared with, as a Markdown table; '' where nothing can be compared.

    In points of the mean top-1 % of the last epoch, with the standard error of the difference of two means, from
    runs of two seeds or more on both sides. groups: as `util.results.group_runs` makes them, each seed once.
    """
    scores = {row: [run['last']['top1'] for run in runs if run['last']] for row, runs in groups.items()}
    rows = []
    for (experiment, note), own in scores.items():
        others = {'MAE': experiment.replace(', MAMP', ', MAE'),
                  'random encoder': experiment.replace(', MAMP', ', random encoder'),
                  'scratch': _scratch_of(experiment)}
        found = [scores.get((other, note), []) if other != experiment else [] for other in others.values()]
        if len(own) > 1 and any(len(other) > 1 for other in found):
            rows.append((experiment, note, [_lead(own, other) if len(other) > 1 else None for other in found]))
    rows.sort(key=lambda row: (place_of(row[0]), row[1]))
    return markdown(["MAMP's lead: points ± standard error", *(f'over {other}' for other in others)],
                    [[experiment + (f' ({note})' if note else ''), *cells] for experiment, note, cells in rows]
                    ) if rows else ''


def _scratch_of(experiment: str) -> str:
    """The row of the same labels on the same benchmark without pre-training."""
    # From scratch is both what was done and with which method; where the encoder came from is all the same there.
    name = re.sub(r'^(?:fine-tune|transfer from .+?)( \(auxiliary classes[^)]*\))?, MAMP(?=,|$)', r'scratch\1',
                  experiment)
    return re.sub(r', MAMP(?: from [^,]+)?(?=,|$)', ', scratch', name)


def _lead(own: list[float], other: list[float]) -> str:
    error = (stdev(own) ** 2 / len(own) + stdev(other) ** 2 / len(other)) ** 0.5
    return f'{mean(own) - mean(other):+.1f} ± {error:.1f}'


def _published_name(experiment: str) -> str:
    """The row under which an experiment was published: runs of the authors' weights are runs of MAMP."""
    return experiment.replace(", authors' weights", ', MAMP')


def _marked(figure: float, source: str, marks: dict[str, str]) -> str:
    """'84.9' from the paper itself; '62.0 ¹' from elsewhere, with a mark of its own for each source."""
    if source == 'paper':
        return f'{figure:.1f}'
    return f'{figure:.1f} {marks.setdefault(source, MARKS[len(marks)])}'


def _ours(runs: list[dict]) -> list[str]:
    """The cells of one row: last epoch, each seed, best epoch, top-5, minutes."""
    scored = [run for run in runs if run['last']]

    def spread_of(which: str, score: str) -> str:       # of all runs or of none: n stands in one column only
        values = [run[which].get(score) for run in scored if run[which]]
        return spread(values) if values and len(values) == len(scored) and None not in values else EMPTY

    timed = [run['wall_seconds'] for run in runs if run['wall_seconds'] is not None]
    return [f'{spread_of("last", "top1")} ({len(scored)})' if scored else EMPTY,
            ', '.join(f'{run["last"]["top1"]:.1f}' for run in scored) or EMPTY,
            spread_of('best', 'top1'), spread_of('last', 'top5'), f'{mean(timed) / 60:.1f}' if timed else EMPTY]


def spread(values: list[float]) -> str:
    """'56.4 ± 6.5', the mean and the standard deviation (n − 1), or the value alone when there is only one."""
    return f'{mean(values):.1f}' + (f' ± {stdev(values):.1f}' if len(values) > 1 else '')


def _line(cells) -> str:
    """A row of a Markdown table; a bar within a cell would begin another one."""
    return f'| {" | ".join(str(cell).replace("|", chr(92) + "|") for cell in cells)} |'


def markdown(head: list[str], rows: list[list]) -> str:
    """A Markdown table; None is an empty cell."""
    return '\n'.join([_line(head), '|---' * len(head) + '|',
                      *(_line(EMPTY if cell is None else cell for cell in row) for row in rows)])


def with_tables(path: Path) -> str:
    """The text of a Markdown file, what stands between each pair of markers replaced by the table of that folder.

    `<!-- table: FOLDER -->` and `<!-- end -->` stand on lines of their own, FOLDER counts from the file's own place.
    Raises UserError for a file that cannot be read or has no markers, a marker without its other one, and as
    `read_results`.
    """
    try:
        text = path.read_text(encoding='utf-8')
    except (OSError, ValueError) as error:
        raise UserError(f'{path}: cannot be read ({error}); give a Markdown file') from error
    out, begun, found = [], None, 0
    for number, line in enumerate(text.splitlines(), 1):
        begins, ends = re.fullmatch(r'<!-- table: (.+?) -->\s*', line), re.fullmatch(r'<!-- end -->\s*', line)
        if (begins and begun) or (ends and not begun):
            raise UserError(f'{path}: line {number}: {line.strip()} ' + (
                f'inside the table begun in line {begun}' if begins else 'without <!-- table: FOLDER --> before it'))
        if ends or not begun:
            out.append(line)
        if begins:
            begun, found = number, found + 1
            out += ['', tables(read_results(path.parent / begins[1])), '']
        elif ends:
            begun = None
    if begun or not found:
        raise UserError(f'{path}: ' + (f'line {begun}: a table without <!-- end -->' if begun else
                                       'no <!-- table: FOLDER --> in it'))
    return '\n'.join(out) + '\n'


def rewrite_tables(path: Path) -> bool:
    """Puts the tables into the file; whether that changed it. Raises as `with_tables`."""
    text = with_tables(path)
    if text == path.read_text(encoding='utf-8'):
        return False
    with atomic_write(path) as partial:
        partial.write_text(text, encoding='utf-8')
    return True
