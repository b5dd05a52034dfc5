"""Reports on class scores: accuracy per class, confused pairs, ensembles.

N clips, C classes.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np
from sklearn.metrics import confusion_matrix, top_k_accuracy_score

from feeder.classes import find_class_names
from tools.reporting.tables import markdown
from util.errors import UserError
from util.files import read_text
from util.predictions import Scores, write_scores
from util.results import STREAMS, Result


def class_names(scores: Scores) -> list[str]:
    """Return the class names saved with the scores, or those of the benchmark, or 'class 0', …"""
    classes = scores.scores.shape[1]
    if scores.classes is not None:
        return scores.classes.tolist()
    return find_class_names(scores.benchmark, classes) or [f'class {i}' for i in range(classes)]


def result_beside(path: Path) -> Result | None:
    """Return the result of the run that wrote a file, from the same folder, if there is one."""
    path = path.parent / 'result.json'
    return Result.read(path) if path.exists() else None


def accuracy(scores: Scores) -> dict[str, float]:
    """Return top-1 and top-5 accuracy in percent, mean cross-entropy and number of samples."""
    label, values = scores.label, scores.scores
    classes = values.shape[1]
    top5 = 1. if classes <= 5 else top_k_accuracy_score(label, values, k=5, labels=np.arange(classes))
    probability = values[np.arange(len(label)), label].astype(np.float64)
    return {'top1': 100 * float((values.argmax(1) == label).mean()), 'top5': 100 * float(top5),
            'loss': float(-np.log(probability.clip(np.finfo(np.float32).tiny)).mean()), 'samples': len(label)}


def confusion(scores: Scores) -> np.ndarray:
    """Return the confusion matrix (C, C): rows are true classes, columns predicted classes."""
    return confusion_matrix(scores.label, scores.scores.argmax(1), labels=np.arange(scores.scores.shape[1]))


def class_table(scores: Scores) -> str:
    """Return a summary line and a Markdown table of the accuracy per class, lowest first."""
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
    """Return a Markdown table of the most confused pairs of classes, most clips first."""
    counts, names = confusion(scores), class_names(scores)
    pairs = [(int(counts[i, j]), counts[i, j] / counts[i].sum(), i, j) for i, j in np.argwhere(counts) if i != j]
    pairs.sort(key=lambda pair: (-pair[0], -pair[1], pair[2:]))
    if not pairs[:most]:
        return 'No confused classes.'
    return markdown(['class', 'predicted as', 'clips', 'of the class, %'],
                    [[names[i], names[j], count, f'{100 * fraction:.1f}'] for count, fraction, i, j in pairs[:most]])


def exclude(scores: Scores, path: Path) -> Scores:
    """Exclude the clips listed in a text file, one name per line.

    Raises UserError if the file cannot be read, contains an unknown clip, or contains all clips.
    """
    names = {line.strip() for line in read_text(path, 'use a text file with a clip name per line').splitlines()} - {''}
    if unknown := names - set(scores.name.tolist()):
        raise UserError(f'{path}: {len(unknown)} of the {len(names)} listed clips are not in {scores.path} '
                        f'(for example {min(unknown):.80}); list only clips that have scores')
    kept = ~np.isin(scores.name, sorted(names))
    if not kept.any():
        raise UserError(f'{path}: lists every clip of {scores.path}, so none would remain; list fewer clips')
    return scores._replace(**{name: getattr(scores, name)[kept] for name in ('name', 'label', 'scores')})


def add_scores(members: list[Scores]) -> Scores:
    """Average the probabilities of several runs; clips are matched by name.

    Raises UserError if the runs differ in clips, labels or number of classes.
    """
    first = members[0]
    if len(members) < 2 or len({member.path.resolve() for member in members}) < len(members):
        raise UserError('--ensemble: specify the scores.npz files of at least two different runs')
    total, order = first.scores.astype(np.float64), np.argsort(first.name)
    for member in members[1:]:
        pair = f'{member.path} and {first.path}'
        if member.scores.shape[1] != first.scores.shape[1]:
            raise UserError(f'{pair}: {member.scores.shape[1]} and {first.scores.shape[1]} classes; use runs of one '
                            'benchmark')
        if missing := set(first.name) ^ set(member.name):
            raise UserError(f'{pair}: {len(missing)} clips are in one of them only ({min(missing)}); use runs on the '
                            'same test clips')
        match = np.empty(len(order), dtype=np.int64)        # row in `member` of each row of `first`
        match[order] = np.argsort(member.name)
        if (wrong := member.label[match] != first.label).any():
            i = int(wrong.argmax())
            raise UserError(f'{pair}: {first.name[i]} has labels {member.label[match][i]} and {first.label[i]}; use '
                            'runs of one benchmark')
        total += member.scores[match]
    streams = sorted((member.stream for member in members),
                     key=lambda stream: STREAMS.index(stream) if stream in STREAMS else len(STREAMS))
    return first._replace(scores=(total / len(members)).astype(np.float32), stream=' + '.join(streams))


def write_ensemble(members: list[Scores], folder: Path) -> str:
    """Write result.json and scores.npz of an ensemble; returns a table of all accuracies.

    Raises UserError as `add_scores` does, and if `folder` belongs to another run.
    """
    folder, path = Path(folder), Path(folder) / 'scores.npz'
    present = result_beside(path)
    if (present and present.protocol != 'ensemble') or folder.resolve() in {member.path.resolve().parent
                                                                            for member in members}:
        raise UserError(f'--out {folder}: is the folder of another run; choose a separate folder')
    total, runs = add_scores(members)._replace(path=path), [result_beside(member.path) for member in members]

    def common(name: str):
        """Return the value that all members' results share, or None if they differ or a result is missing."""
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
