"""Reports on saved class scores: accuracy per class, confused pairs, ensembles.

N clips, C classes.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np
from sklearn.metrics import confusion_matrix, top_k_accuracy_score

from feeder.classes import find_class_names
from tools.reporting.tables import markdown
from util.errors import UserError
from util.predictions import Scores, write_scores
from util.results import STREAMS, Result


def class_names(scores: Scores) -> list[str]:
    """Class names saved with the scores, those of the benchmark, or 'class 0', …"""
    classes = scores.scores.shape[1]
    if scores.classes is not None:
        return scores.classes.tolist()
    return find_class_names(scores.benchmark, classes) or [f'class {i}' for i in range(classes)]


def result_beside(path: Path) -> Result | None:
    """Result of the run that wrote a file, from the same folder, if there is one."""
    path = path.parent / 'result.json'
    return Result.read(path) if path.exists() else None


def accuracy(scores: Scores) -> dict[str, float]:
    """Top-1 and top-5 accuracy in percent, mean cross-entropy and number of samples."""
    label, values = scores.label, scores.scores
    classes = values.shape[1]
    top5 = 1. if classes <= 5 else top_k_accuracy_score(label, values, k=5, labels=np.arange(classes))
    probability = values[np.arange(len(label)), label].astype(np.float64)
    return {'top1': 100 * float((values.argmax(1) == label).mean()), 'top5': 100 * float(top5),
            'loss': float(-np.log(probability.clip(np.finfo(np.float32).tiny)).mean()), 'samples': len(label)}


def confusion(scores: Scores) -> np.ndarray:
    """Confusion matrix (C, C): rows are true classes, columns predicted ones."""
    return confusion_matrix(scores.label, scores.scores.argmax(1), labels=np.arange(scores.scores.shape[1]))


def class_table(scores: Scores) -> str:
    """Summary line and Markdown table of the accuracy per class, lowest first."""
    counts, names, total = confusion(scores), class_names(scores), accuracy(scores)
    clips, rows = counts.sum(1), []
    correct = 100 * counts.diagonal() / np.maximum(clips, 1)
    wrong = np.where(np.eye(len(names), dtype=bool), 0, counts)
    for i in sorted(range(len(names)), key=lambda i: (clips[i] == 0, correct[i], i)):
        j = wrong[i].argmax()
        rows.append([i, names[i], clips[i], f'{correct[i]:.1f}' if clips[i] else None,
                     f'{names[j]} ({wrong[i, j]})' if wrong[i, j] else None])
    summary = (f'{scores.benchmark}, {scores.stream}: {total["samples"]} clips, top-1 {total["top1"]:.1f} %, '
               f'top-5 {total["top5"]:.1f} %, mean over classes {correct[clips > 0].mean():.1f} %')
    return summary + '\n\n' + markdown(['label', 'class', 'clips', 'correct, %', 'most often predicted as (clips)'],
                                       rows)


def pairs_table(scores: Scores, most: int = 10) -> str:
    """Markdown table of the most confused pairs of classes, most clips first."""
    counts, names = confusion(scores), class_names(scores)
    pairs = [(int(counts[i, j]), counts[i, j] / counts[i].sum(), i, j) for i, j in np.argwhere(counts) if i != j]
    pairs.sort(key=lambda pair: (-pair[0], -pair[1], pair[2:]))
    if not pairs[:most]:
        return 'No confused classes.'
    return markdown(['class', 'predicted as', 'clips', 'of the class, %'],
                    [[names[i], names[j], count, f'{100 * share:.1f}'] for count, share, i, j in pairs[:most]])


def exclude(scores: Scores, path: Path) -> Scores:
    """Leave out the clips named in a text file, one per line.

    Raises UserError if it cannot be read, names an unknown clip, or names all clips.
    """
    try:
        names = {line.strip() for line in path.read_text(encoding='utf-8').splitlines()} - {''}
    except (OSError, ValueError) as error:
        raise UserError(f'{path}: cannot be read ({error}); give a text file with a clip name per line') from error
    if unknown := names - set(scores.name.tolist()):
        raise UserError(f'{path}: {len(unknown)} of its {len(names)} clips are not in {scores.path} '
                        f'({min(unknown):.80}); give names of the same test clips')
    kept = ~np.isin(scores.name, sorted(names))
    if not kept.any():
        raise UserError(f'{path}: names every clip of {scores.path}; leave some')
    return scores._replace(**{name: getattr(scores, name)[kept] for name in ('name', 'label', 'scores')})


def add_scores(members: list[Scores]) -> Scores:
    """Mean probabilities of several runs; clips are matched by name.

    Raises UserError if the runs differ in clips, labels or number of classes.
    """
    first = members[0]
    if len(members) < 2 or len({member.path.resolve() for member in members}) < len(members):
        raise UserError('--ensemble: give the scores.npz of two or more runs, each once')
    total, order = first.scores.astype(np.float64), np.argsort(first.name)
    for member in members[1:]:
        pair = f'{member.path} and {first.path}'
        if member.scores.shape[1] != first.scores.shape[1]:
            raise UserError(f'{pair}: {member.scores.shape[1]} and {first.scores.shape[1]} classes; give runs of one '
                            'benchmark')
        if missing := set(first.name) ^ set(member.name):
            raise UserError(f'{pair}: {len(missing)} clips are in one of them only ({min(missing)}); give runs on the '
                            'same test clips')
        match = np.empty(len(order), dtype=np.int64)        # row in `member` of each row of `first`
        match[order] = np.argsort(member.name)
        if (wrong := member.label[match] != first.label).any():
            i = int(wrong.argmax())
            raise UserError(f'{pair}: {first.name[i]} has labels {member.label[match][i]} and {first.label[i]}; give '
                            'runs of one benchmark')
        total += member.scores[match]
    streams = sorted((member.stream for member in members),
                     key=lambda stream: STREAMS.index(stream) if stream in STREAMS else len(STREAMS))
    return first._replace(scores=(total / len(members)).astype(np.float32), stream=' + '.join(streams))


def write_ensemble(members: list[Scores], folder: Path) -> str:
    """Write result.json and scores.npz of an ensemble; returns a table of all accuracies.

    Raises UserError as `add_scores`, and if `folder` belongs to another run.
    """
    folder, path = Path(folder), Path(folder) / 'scores.npz'
    present = result_beside(path)
    if (present and present.protocol != 'ensemble') or folder.resolve() in {member.path.resolve().parent
                                                                            for member in members}:
        raise UserError(f'--out {folder}: is the folder of another run; give a separate one')
    total, runs = add_scores(members)._replace(path=path), [result_beside(member.path) for member in members]

    def common(name: str):
        """The value of all members' results, None if they differ or a result is missing."""
        values = [getattr(run, name) if run else None for run in runs]
        return values[0] if all(value == values[0] for value in values) else None

    sources = {(run.pretraining or {}).get('benchmark') if run else None for run in runs}
    result = Result(total.benchmark, 'ensemble', common('method') or 'several methods', total.stream, common('seed'),
                    common('labels'), {'benchmark': sources.pop()} if len(sources) == 1 else None,
                    common('of') if common('protocol') == 'ensemble' else common('protocol'),
                    last=accuracy(total) | {'epoch': None})
    result = replace(result, members=[
        {'path': str(member.path), 'stream': member.stream, 'top1': accuracy(member)['top1'],
         **{name: getattr(run, name, None) for name in ('protocol', 'method', 'seed')}}
        for member, run in zip(members, runs, strict=True)])
    write_scores(total)
    result.write(folder)
    rows = [(member, accuracy(member)) for member in [*members, total]]
    return markdown(['stream', 'scores', 'top-1, %', 'top-5, %'],
                    [[member.stream, str(member.path), f'{score["top1"]:.1f}', f'{score["top5"]:.1f}']
                     for member, score in rows])
