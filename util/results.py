"""Finished runs: reading what they left, and which experiment of the paper each one is.

An experiment's name, 'semi 10 %, MAMP, bone' say, says what was done, with which method, on which stream where that is
not the joints. It names a row of the tables and, in config/published.yaml, the published figures of that row.
"""

import json
import logging
import re
from collections import defaultdict
from functools import cache
from pathlib import Path

from util.errors import UserError
from util.options import defaults_of, is_recipe
from util.predictions import MOST

log = logging.getLogger(__name__)

PROTOCOLS = {'pretrain': 'pre-training', 'linprobe': 'linear', 'finetune': 'fine-tune', 'retrieval': 'retrieval',
             'oneshot': 'one-shot', 'ensemble': 'ensemble'}
# The rows' order: what was done, with which method, on which stream.
KINDS = ('pre-training', 'linear', 'fine-tune', 'scratch', 'semi', 'transfer', 'retrieval', 'one-shot', 'ensemble')
METHODS = ('MAMP', "authors' weights", 'MAE', 'random encoder', 'scratch')
STREAMS = ('joint', 'bone', 'velocity')
EVERY = 6       # class of NTU RGB+D 120 is novel in its one-shot protocol


def read_results(folder: Path, may_be_empty: bool = False) -> list[dict]:
    """Every result.json below `folder`, with its path; UserError when there is none or one is damaged."""
    results = [read_result(path) for path in sorted(folder.rglob('result.json'))]
    if not results and not (may_be_empty and folder.is_dir()):
        raise UserError(f'{folder}: no result.json below it; give the folder of finished runs')
    return results


def read_result(path: Path) -> dict:
    """A run's result.json, with its path; UserError when it is missing or damaged."""
    try:
        result = json.loads(path.read_text(encoding='utf-8'))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f'{path}: not JSON of a run ({error}); remove it or run that stage again') from error
    if fault := _fault_of(result):
        raise UserError(f'{path}: {fault}; remove it or run that stage again')
    return result | {'path': path}


def _fault_of(result) -> str | None:
    """What is wrong with the content of a result.json, None where nothing is."""
    def is_number(value) -> bool:
        return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < MOST

    def is_plain(value) -> bool:
        return isinstance(value, str | None) or is_number(value)

    if not isinstance(result, dict):
        return 'not JSON of a run (no map)'
    if lacking := {'benchmark', 'protocol', 'method', 'last', 'best', 'wall_seconds'} - result.keys():
        return f'no {", ".join(sorted(lacking))}'
    for key in ('benchmark', 'method'):
        if not isinstance(result[key], str) or not result[key].isprintable():
            return f'{key} {result[key]!r:.80} is no name'
    for protocol in (result['protocol'], result.get('of') or 'pretrain'):
        if not isinstance(protocol, str) or protocol not in PROTOCOLS:
            return f'protocol {protocol!r:.80} is none of {", ".join(PROTOCOLS)}'
    if result.get('of') == 'ensemble':
        return 'an ensemble of ensembles'
    for key in ('last', 'best', 'labels', 'pretraining', 'config'):
        if not isinstance(result.get(key), dict | None):
            return f'{key} is neither a map nor null'
    for key in ('last', 'best'):
        if result[key] and not all(is_number(result[key].get(score, 0 if score == 'top5' else None))
                                   for score in ('top1', 'top5')):
            return f'{key} has no top1 or one that is no number'
    if result['wall_seconds'] is not None and not is_number(result['wall_seconds']):
        return f'wall_seconds {result["wall_seconds"]!r:.80} is no number'
    if result.get('labels') and not is_number(result['labels'].get('fraction')):
        return 'labels has no fraction'
    told = {'stream': (result.get('stream'), (result.get('config') or {}).get('stream')),
            'benchmark of the pre-training': [(result.get('pretraining') or {}).get('benchmark')],
            'metric': [(result['last'] or {}).get('metric')], 'draw': [(result.get('labels') or {}).get('draw')]}
    for what, names in told.items():
        if not all(isinstance(name, str | None) for name in names):
            return f'{what} is no name'
    if not all(isinstance((held or {}).get('seed'), int | None) for held in (result, result.get('pretraining'))):
        return 'seed is no whole number'
    for name, value in (('k', (result['last'] or {}).get('k')),
                        ('novel_every', (result.get('config') or {}).get('novel_every'))):
        if not is_plain(value):
            return f'{name} is no number'
    return None


def read_log(path: Path) -> list[dict]:
    """The lines of a run's log.jsonl; UserError when it is missing or damaged."""
    try:
        lines = [json.loads(line) for line in path.read_text(encoding='utf-8').splitlines()]
        if not all(isinstance(line, dict) and 'epoch' in line and 'train_loss' in line for line in lines):
            raise ValueError('a line without epoch and train_loss')
        if not all(isinstance(line.get(key, 0), int | float) and abs(line.get(key, 0)) < MOST for line in lines
                   for key in ('epoch', 'train_loss', 'test_top1')):
            raise ValueError('an epoch, loss or accuracy that is no number')
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f'{path}: cannot be read ({error}); leave out --figure or run that stage again') from error
    return lines


def stage_of(result: dict) -> str:
    """What was done, without method and stream: 'linear', 'semi 10 %', 'transfer from ntu60_xsub', …"""
    protocol, labels, config = result['protocol'], result.get('labels'), result.get('config') or {}
    if protocol == 'ensemble':
        of = f', {stage_of(result | {"protocol": result["of"]})}' if result.get('of') else ''
        return f'ensemble of {stream_of(result)}{of}'
    if protocol in ('retrieval', 'oneshot'):        # without a note: the published protocol, k = 1 by cosine
        scores = result['last'] or {}
        notes = [f'k = {scores["k"]}'] if protocol == 'retrieval' and scores.get('k', 1) != 1 else []
        every = config.get('novel_every', EVERY)
        notes += [f'novel_every {every}'] if protocol == 'oneshot' and every != EVERY else []
        notes += [scores['metric']] if scores.get('metric', 'cosine') != 'cosine' else []
        return _noted(PROTOCOLS[protocol], notes)
    if labels:
        name = f'semi {100 * labels["fraction"]:g} %'
        notes = [] if labels.get('draw', 'random') == 'random' else [labels['draw']]
        return _noted(name, notes + _auxiliary(config))
    if protocol == 'finetune' and result['method'] == 'scratch':
        name = 'scratch'
    elif protocol == 'finetune' and source_of(result):
        name = f'transfer from {source_of(result)}'
    else:
        name = PROTOCOLS[protocol]
    return _noted(name, _auxiliary(config))


def _noted(name: str, notes: list[str]) -> str:
    return name + (f' ({", ".join(notes)})' if notes else '')


def _auxiliary(config: dict) -> list[str]:
    every = config.get('novel_every')
    return ['auxiliary classes', *([f'novel_every {every}'] if every != EVERY else [])] if every else []


def source_of(result: dict) -> str | None:
    """The benchmark whose clips the encoder was pre-trained on, where that is another than the run's own."""
    source = (result.get('pretraining') or {}).get('benchmark')
    return source if source and source.lower() != result['benchmark'].lower() else None


def stream_of(result: dict) -> str:
    return result.get('stream') or (result.get('config') or {}).get('stream') or 'joint'


def experiment_of(result: dict) -> str:
    """The row of the tables that a run belongs to."""
    stage, method, stream = stage_of(result), result['method'], stream_of(result)
    if method == 'authors':
        method = "authors' weights"
    # From scratch is both what was done and with which method.
    parts = [stage] if method == 'scratch' and stage.split(' (')[0].endswith('scratch') else [stage, method]
    if source_of(result) and 'transfer' not in stage:
        parts[-1] += f' from {source_of(result)}'
    if stream != 'joint' and result['protocol'] != 'ensemble':
        parts.append(stream)
    return ', '.join(parts)


def place_of(experiment: str) -> tuple:
    """Sorts the rows: by kind, share of labels and method, the plain protocol before its variants, then by stream."""
    kind = next(i for i, kind in enumerate(KINDS) if experiment.startswith(kind))
    share = re.match(r'semi (\S+) %', experiment)
    method = next((i for i, method in enumerate(METHODS) if f', {method}' in experiment), len(METHODS))
    stream = next((i for i, stream in enumerate(STREAMS) if experiment.endswith(f', {stream}')), 0)
    name = experiment.removesuffix(f', {STREAMS[stream]}')
    return kind, float(share[1]) if share else 0., method, '(' in name, name, stream


def group_runs(results: list[dict]) -> dict[tuple[str, str], list[dict]]:
    """Runs of one benchmark by (experiment, note), each group sorted by seed.

    Runs of one experiment that differ in a setting of the recipe (an ablation) are not averaged: the note, '' where
    there is none, says what tells them apart. A run from before an option existed did what its default does.
    """
    experiments, groups = defaultdict(list), defaultdict(list)
    for result in results:
        experiments[experiment_of(result)].append(result)
    for experiment, runs in experiments.items():
        recipes = [_recipe_of(run) for run in runs]
        keys = sorted(set().union(*recipes))
        told = [{key: recipe.get(key, _unless_told(run, key)) for key in keys}
                for run, recipe in zip(runs, recipes, strict=True)]
        telling = [key for key in keys if len({recipe[key] for recipe in told}) > 1]
        for run, recipe in zip(runs, told, strict=True):
            groups[experiment, ', '.join(f'{key} {recipe[key]}' for key in telling)].append(run)
    for runs in groups.values():
        runs.sort(key=lambda run: (run.get('seed') is None, run.get('seed') or 0, str(run['path'])))
    return groups


def _recipe_of(result: dict) -> dict[str, str]:
    recipe = {key: str(value) for key, value in (result.get('config') or {}).items() if is_recipe(key)}
    return recipe | {f'pre-training {key}': str(value) for key, value in (result.get('pretraining') or {}).items()
                     if key not in ('benchmark', 'path', 'seed')}


def _unless_told(result: dict, key: str) -> str:
    """The value of a setting that a run does not tell: its default, where it is an option of that stage."""
    name = key.removeprefix('pre-training ')
    return str(_defaults('pretrain' if name != key else result['protocol']).get(name, 'not told'))


@cache
def _defaults(protocol: str) -> dict:
    return {} if protocol == 'ensemble' else defaults_of('retrieval' if protocol == 'oneshot' else protocol)


# ---- runs of one seed ------------------------------------------------------------------------------------------------


def _seeds_of(run: dict) -> tuple[int | None, int | None]:
    """The run's own seed and that of the pre-training it starts from."""
    return run.get('seed'), (run.get('pretraining') or {}).get('seed')


def distinct_runs(runs: list[dict]) -> list[dict]:
    """Of runs with the same seeds, their own and the pre-training's, only the first.

    A run that was copied, or done again, says nothing new of how far seeds differ: counted twice it would make a
    deviation too small. A run without a seed counts by itself.
    """
    first = {}
    for i, run in enumerate(runs):
        seeds = _seeds_of(run)
        first.setdefault(seeds if seeds[0] is not None else i, run)
    return list(first.values())


def warn_of_duplicates(experiment: str, runs: list[dict]) -> None:
    """Names the runs that `distinct_runs` leaves out."""
    kept = distinct_runs(runs)
    for run in runs:
        if not any(run is one for one in kept):
            first = next(one for one in kept if _seeds_of(one) == _seeds_of(run))
            log.warning('%s, %s: seed %s is there twice, in %s, which counts, and in %s, which is left out',
                        run['benchmark'], experiment, run['seed'], first['path'], run['path'])


class Result:
    def __init__(self, **values):
        self.__dict__.update(values)

    def write(self, folder):
        from util.files import write_json
        write_json(Path(folder) / 'result.json', self.__dict__)

    @classmethod
    def read(cls, path):
        result = cls()
        result.__dict__.update(read_result(path))
        return result
