"""Results of runs: the content of result.json, and the experiment that each run belongs to.

An experiment is a row of the tables: the protocol, the method and the stream.
"""

import dataclasses
import logging
from collections import defaultdict
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from util.errors import UserError, one_line
from util.files import has_type, read_json, write_json
from util.options import defaults_of, is_recipe

log = logging.getLogger(__name__)

FORMAT_VERSION = 2
KINDS = ('pre-training', 'linear', 'fine-tune', 'scratch', 'semi', 'transfer', 'retrieval', 'one-shot', 'ensemble')
METHODS = ('MAMP', "authors' weights", 'MAE', 'random encoder', 'scratch')
STREAMS = ('joint', 'bone', 'velocity')
PROTOCOLS = {'pretrain': 'pre-training', 'linprobe': 'linear', 'finetune': 'fine-tune', 'retrieval': 'retrieval',
             'oneshot': 'one-shot', 'ensemble': 'ensemble'}
# Entries of maps in a result that tables need: map, entry, type.
ENTRIES = (('last', 'top1', float), ('best', 'top1', float), ('labels', 'fraction', float),
           ('pretraining', 'benchmark', str | None), ('config', 'stream', str | None))
REMEDY = 'remove it or rerun the stage that wrote it'
NOVEL_EVERY = 6     # class spacing of the published one-shot protocol (NTU RGB+D 120)


@dataclass(frozen=True)
class Experiment:
    """The key of a row of the tables; sorts in the order of the tables."""

    kind: str                           # one of KINDS
    method: str                         # MAMP, MAE, random encoder, scratch, …
    share: float = 0.                   # percent of the labels used (semi)
    source: str | None = None           # benchmark of the pre-training, if it differs
    stream: str = 'joint'               # of an ensemble: all streams, 'joint + bone'
    notes: tuple[str, ...] = ()         # deviations from the published protocol
    member_stage: str | None = None     # stage of the members of an ensemble

    @property
    def stage(self) -> str:
        """Name without method and stream: 'linear', 'semi 10 %', 'transfer from ntu60_xsub', …"""
        name = {'semi': f'semi {self.share:g} %', 'transfer': f'transfer from {self.source}',
                'ensemble': f'ensemble of {self.stream}'}.get(self.kind, self.kind)
        name += f' ({", ".join(self.notes)})' if self.notes else ''
        return f'{name}, {self.member_stage}' if self.member_stage else name

    @property
    def name(self) -> str:
        """Name of the row."""
        name = self.stage
        if self.kind != 'scratch' and self.member_stage != 'scratch':
            name += f', {self.method}'
        if self.source and self.kind != 'transfer':
            name += f' from {self.source}'
        return name + (f', {self.stream}' if self.kind != 'ensemble' and self.stream != 'joint' else '')

    @property
    def sort_key(self) -> tuple:
        method = next((i for i, name in enumerate(METHODS) if self.method.startswith(name)), len(METHODS))
        stream = STREAMS.index(self.stream) if self.stream in STREAMS else 0
        return KINDS.index(self.kind), self.share, method, bool(self.notes), self.stage, self.method, stream


@dataclass
class Result:
    """The outcome of a run, as result.json holds it; accuracies in percent."""

    benchmark: str
    protocol: str                       # a key of PROTOCOLS
    method: str
    stream: str = 'joint'
    seed: int | None = None
    labels: dict | None = None          # {'fraction', 'clips', 'draw'} if only a fraction of the labels is used
    pretraining: dict | None = None     # settings of the pre-training that the encoder comes from
    of: str | None = None               # protocol of the members of an ensemble
    members: list | None = None         # of an ensemble
    last: dict | None = None            # top1, top5, loss, samples, epoch of the last epoch
    best: dict | None = None            # of the best epoch on the test split
    train_loss: float | None = None
    wall_seconds: float | None = None
    clips_per_s: float | None = None
    train_clips: int | None = None
    test_clips: int | None = None
    bodies: int | None = None
    classes: int | None = None
    class_names: list | None = None
    layout: str | None = None
    machine: str | None = None
    precision: str | None = None
    compiled: bool | None = None
    processes: int | None = None
    resumed: bool = False
    code_version: str | None = None
    command: str | None = None
    config: dict = field(default_factory=dict)      # settings of the run
    curve: dict | None = None           # {'epoch': […], 'train_loss': […], 'test_top1': […]}, in collected results
    format_version: int = FORMAT_VERSION
    path: Path | None = None            # file it was read from; not written

    def to_dict(self) -> dict:
        """Return the entries of result.json."""
        return {entry.name: getattr(self, entry.name) for entry in dataclasses.fields(self) if entry.name != 'path'}

    def write(self, folder: str | Path) -> None:
        """Write result.json into the folder of the run."""
        write_json(Path(folder) / 'result.json', {name: value for name, value in self.to_dict().items()
                                                  if name != 'curve'})

    @classmethod
    def read(cls, path: Path) -> 'Result':
        """Read a result.json; raises UserError if it is missing or damaged."""
        return cls.from_dict(read_json(path, REMEDY), path)

    @classmethod
    def from_dict(cls, content, path: Path) -> 'Result':
        """Check and convert the entries of a result, including files of earlier versions. Raises UserError."""
        if not isinstance(content, dict):
            raise UserError(f'{path}: not a result file of a run; {REMEDY}')
        types = {entry.name: entry.type for entry in dataclasses.fields(cls) if entry.name != 'path'}
        content = {name: value for name, value in content.items() if name in types and value is not None}
        wrong = [*({'benchmark', 'protocol', 'method'} - content.keys()),
                 *(name for name, value in content.items() if not has_type(value, types[name]))]
        if not wrong:
            wrong = [f'{name}.{key}' for name, key, kind in ENTRIES
                     if name in content and not has_type(content[name].get(key), kind)]
        if wrong:
            raise UserError(f'{path}: entries are missing or of the wrong type: {", ".join(sorted(wrong))}; {REMEDY}')
        content.setdefault('stream', content.get('config', {}).get('stream') or 'joint')
        if not {content['protocol'], content.get('of') or content['protocol']} <= PROTOCOLS.keys():
            raise UserError(f'{path}: unknown protocol; {REMEDY}')
        return cls(**content, path=path)

    @cached_property
    def experiment(self) -> Experiment:
        """The row of the tables that this run belongs to."""
        method = "authors' weights" if self.method == 'authors' else self.method
        source = (self.pretraining or {}).get('benchmark')
        source = source if source and source.lower() != self.benchmark.lower() else None
        kind, notes = PROTOCOLS[self.protocol], []
        if self.protocol == 'ensemble':
            member = dataclasses.replace(self, protocol=self.of, of=None).experiment if self.of else None
            return Experiment('ensemble', method, stream=self.stream, source=None if member and
                              member.kind == 'transfer' else source, member_stage=member and member.stage)
        every, scores = self.config.get('novel_every', NOVEL_EVERY), self.last or {}
        if self.protocol in ('retrieval', 'oneshot'):
            if self.protocol == 'retrieval' and scores.get('k', 1) != 1:
                notes.append(f'k = {scores["k"]}')
            if self.protocol == 'oneshot' and every != NOVEL_EVERY:
                notes.append(f'novel_every {every}')
            if scores.get('metric', 'cosine') != 'cosine':
                notes.append(scores['metric'])
        else:
            if self.labels:
                kind = 'semi'
                notes += [self.labels['draw']] if self.labels.get('draw', 'random') != 'random' else []
            elif self.protocol == 'finetune' and method == 'scratch':
                kind = 'scratch'
            elif self.protocol == 'finetune' and source:
                kind = 'transfer'
            if self.config.get('novel_every'):
                notes += ['auxiliary classes', *([f'novel_every {every}'] if every != NOVEL_EVERY else [])]
        share = 100 * self.labels['fraction'] if self.labels else 0.
        return Experiment(kind, method, share, source, self.stream, tuple(notes))

    def recipe(self) -> dict[str, str]:
        """Settings of this run and of its pre-training in which runs of one experiment may differ (ablations)."""
        recipe = {name: str(value) for name, value in self.config.items() if is_recipe(name)}
        return recipe | {f'pre-training {name}': str(value) for name, value in (self.pretraining or {}).items()
                         if name not in ('benchmark', 'path', 'seed')}

    def default(self, name: str) -> str:
        """Return the default of a setting, for runs made before the option existed."""
        option = name.removeprefix('pre-training ')
        stage = 'pretrain' if option != name else {'oneshot': 'retrieval'}.get(self.protocol, self.protocol)
        if stage == 'ensemble':
            return 'unknown'
        defaults = defaults_of(stage) | {'keypoints': '3d'}      # which comes from the dataset file
        return str(defaults.get(option, 'unknown'))

    def seeds(self) -> tuple[int | None, int | None]:
        """Seed of the run, and seed of the pre-training that it starts from."""
        return self.seed, (self.pretraining or {}).get('seed')

    def read_curve(self) -> dict[str, list]:
        """Read the curve {'epoch': […], 'train_loss': […], 'test_top1': […]}; raises UserError without log.jsonl."""
        if self.curve is not None:
            return self.curve
        path = self.path.parent / 'log.jsonl'
        lines = read_json(path, 'omit --figure or rerun the stage that wrote it', lines=True)
        try:
            evaluated = [line for line in lines if 'test_top1' in line]     # --eval_epochs omits some
            lines = evaluated or lines
            names = ['epoch', 'train_loss', *(['test_top1'] if evaluated else [])]
            return {name: [float(line[name]) for line in lines] for name in names}
        except (ValueError, TypeError, KeyError, IndexError) as error:
            raise UserError(f'{path}: invalid entries ({one_line(error)}); omit --figure or rerun the stage that '
                            'wrote it') from error


def read_results(place: Path, may_be_empty: bool = False) -> list[Result]:
    """Read all results in a folder (result.json and collected *.jsonl files) or in one such file.

    Raises UserError if there are no results, or if a file is damaged.
    """
    if place.is_file() and place.suffix == '.json':
        return [Result.read(place)]
    collected = [path for path in place.glob('*.jsonl') if path.name != 'log.jsonl']
    files = [place] if place.is_file() else sorted([*place.rglob('result.json'), *collected])
    results = []
    for path in files:
        results += [Result.read(path)] if path.name == 'result.json' else \
            [Result.from_dict(line, path) for line in read_json(path, 'specify a file of results', lines=True)]
    if not results and not (may_be_empty and place.is_dir()):
        raise UserError(f'{place}: no results; specify a folder of finished runs or a .jsonl file of results')
    return results


def group_runs(results: list[Result]) -> dict[tuple[Experiment, str], list[Result]]:
    """Group the runs of one benchmark by (experiment, note); each group is sorted by seed.

    Runs of one experiment whose recipes differ (an ablation) form separate groups; the note names the settings that
    differ and is empty otherwise.
    """
    experiments, groups = defaultdict(list), defaultdict(list)
    for result in results:
        experiments[result.experiment].append(result)
    for experiment, runs in experiments.items():
        names = sorted(set().union(*(run.recipe() for run in runs)))
        recipes = [{name: run.recipe().get(name, run.default(name)) for name in names} for run in runs]
        differing = [name for name in names if len({recipe[name] for recipe in recipes}) > 1]
        for run, recipe in zip(runs, recipes, strict=True):
            groups[experiment, ', '.join(f'{name} {recipe[name]}' for name in differing)].append(run)
    for runs in groups.values():
        runs.sort(key=lambda run: (run.seed is None, run.seed or 0, str(run.path)))
    return groups


def distinct_runs(runs: list[Result]) -> list[Result]:
    """Keep the first of several runs with equal seeds (of the run and of its pre-training), and warn about the others.

    Copies and repetitions do not contribute to the deviation over seeds. Runs without a seed are kept.
    """
    first = {}
    for i, run in enumerate(runs):
        kept = first.setdefault(run.seeds() if run.seed is not None else i, run)
        if kept is not run:
            log.warning('%s, %s: seed %s occurs twice, in %s (used) and in %s (ignored)', run.benchmark,
                        run.experiment.name, run.seed, kept.path, run.path)
    return list(first.values())
