"""What saved class scores say: accuracies, what goes wrong by class, and ensembles that add the scores of several runs.

C classes.
"""

from pathlib import Path

import numpy as np
from sklearn.metrics import accuracy_score, confusion_matrix, top_k_accuracy_score

from feeder.classes import find_class_names
from tools.reporting.tables import markdown
from util.errors import UserError
from util.files import write_json
from util.predictions import Scores, write_scores
from util.results import STREAMS, read_result


def class_names(scores: Scores) -> list[str]:
    """Names where they are known, 'class 0' and so on elsewhere; those of the data itself come first."""
    classes = scores.scores.shape[1]
    if scores.classes is not None:
        return scores.classes.tolist()
    return find_class_names(scores.benchmark, classes) or [f'class {i}' for i in range(classes)]


def told_beside(path: Path) -> dict:
    """The result.json of the run that wrote `path`, empty when there is none; UserError when it is damaged."""
    told = path.parent / 'result.json'
    return read_result(told) if told.exists() else {}


# ---- accuracies ------------------------------------------------------------------------------------------------------


def accuracy_of(scores: Scores) -> dict[str, float]:
    """top1 and top5 in percent, mean cross-entropy, number of samples."""
    label, values = scores.label, scores.scores
    classes = values.shape[1]
    top5 = 1. if classes <= 5 else top_k_accuracy_score(label, values, k=5, labels=np.arange(classes))
    given = values[np.arange(len(label)), label].astype(np.float64)
    return {'top1': 100 * float(accuracy_score(label, values.argmax(1))), 'top5': 100 * float(top5),
            'loss': float(-np.log(given.clip(np.finfo(np.float32).tiny)).mean()), 'samples': len(label)}


def confusion_of(scores: Scores) -> np.ndarray:
    """(C, C) counts: row the true class, column the one with the highest score."""
    return confusion_matrix(scores.label, scores.scores.argmax(1), labels=np.arange(scores.scores.shape[1]))


def class_table(scores: Scores) -> str:
    """A line on the whole, then accuracy by class as a Markdown table, the worst class first."""
    counts, names, whole = confusion_of(scores), class_names(scores), accuracy_of(scores)
    clips, rows = counts.sum(1), []
    shares = 100 * counts.diagonal() / np.maximum(clips, 1)
    for i in sorted(range(len(names)), key=lambda i: (clips[i] == 0, shares[i], i)):
        wrong = np.where(np.arange(len(names)) == i, 0, counts[i])
        other = f'{names[wrong.argmax()]} ({wrong.max()})' if wrong.any() else None
        rows.append([i, names[i], clips[i], f'{shares[i]:.1f}' if clips[i] else None, other])
    line = (f'{scores.benchmark}, {scores.stream}: {whole["samples"]} clips, top-1 {whole["top1"]:.1f} %, '
            f'top-5 {whole["top5"]:.1f} %, mean over classes {shares[clips > 0].mean():.1f} %')
    return line + '\n\n' + markdown(['label', 'class', 'clips', 'correct, %', 'most often taken for (clips)'], rows)


def confused_pairs(scores: Scores, most: int = 10) -> list[tuple[int, int, int, float]]:
    """The pairs most confused: (true class, taken for, clips, their share of the true class), most clips first."""
    counts = confusion_of(scores)
    clips = counts.sum(1)
    pairs = [(int(i), int(j), int(counts[i, j]), float(counts[i, j] / clips[i]))
             for i, j in np.argwhere(counts) if i != j]
    return sorted(pairs, key=lambda pair: (-pair[2], -pair[3], pair[:2]))[:most]


def pairs_table(scores: Scores, most: int = 10) -> str:
    """The most confused pairs as a Markdown table."""
    names, pairs = class_names(scores), confused_pairs(scores, most)
    if not pairs:
        return 'No clip is taken for another class.'
    return markdown(['class', 'taken for', 'clips', 'of the class, %'],
                    [[names[i], names[j], count, f'{100 * share:.1f}'] for i, j, count, share in pairs])


def without(scores: Scores, path: Path) -> Scores:
    """The scores without the clips whose names stand in the text file, one a line.

    Raises UserError when it cannot be read, names a clip that has no scores, or leaves none.
    """
    try:
        names = {line.strip() for line in path.read_text(encoding='utf-8').splitlines()} - {''}
    except (OSError, ValueError) as error:
        raise UserError(f'{path}: cannot be read ({error}); give a text file, a clip\'s name a line') from error
    if other := names - set(scores.name.tolist()):
        raise UserError(f'{path}: {len(other)} of its {len(names)} clips are not in {scores.path} ({min(other):.80}); '
                        'give names of the same test clips')
    kept = ~np.isin(scores.name, sorted(names))
    if not kept.any():
        raise UserError(f'{path}: names every clip of {scores.path}; leave some')
    return scores._replace(**{field: getattr(scores, field)[kept] for field in ('name', 'label', 'scores')})


# ---- ensembles -------------------------------------------------------------------------------------------------------


def add_scores(members: list[Scores]) -> Scores:
    """The mean of several runs' probabilities, clips matched by name, in the order of the first.

    Raises UserError when they are not of the same clips, labels and classes.
    """
    first = members[0]
    if len(members) < 2 or len({member.path.resolve() for member in members}) < len(members):
        raise UserError('--ensemble: give the scores.npz of two runs or more, each once')
    total, order = first.scores.astype(np.float64), np.argsort(first.name)
    for other in members[1:]:
        where = f'{other.path} and {first.path}'
        if other.scores.shape[1] != first.scores.shape[1]:
            raise UserError(f'{where}: {other.scores.shape[1]} and {first.scores.shape[1]} classes; add runs of one '
                            'benchmark')
        if lacking := set(first.name) ^ set(other.name):
            raise UserError(f'{where}: {len(lacking)} clips are in one of them only ({min(lacking)}); add runs on the '
                            'same test clips')
        match = np.empty(len(order), dtype=np.int64)        # row of `other` for each row of `first`
        match[order] = np.argsort(other.name)
        if (wrong := other.label[match] != first.label).any():
            i = int(wrong.argmax())
            raise UserError(f'{where}: {first.name[i]} has label {other.label[match][i]} and {first.label[i]}; add '
                            'runs of one benchmark')
        total += other.scores[match]
    streams = sorted((member.stream for member in members),
                     key=lambda stream: STREAMS.index(stream) if stream in STREAMS else len(STREAMS))
    return first._replace(scores=(total / len(members)).astype(np.float32), stream=' + '.join(streams))


def write_ensemble(members: list[Scores], folder: Path) -> str:
    """Adds the members' scores, writes result.json and scores.npz into `folder`; returns a table of all accuracies.

    Raises as `add_scores`, and UserError when `folder` is that of another run.
    """
    folder = Path(folder)
    if told_beside(folder / 'scores.npz').get('protocol', 'ensemble') != 'ensemble' \
            or folder.resolve() in {member.path.resolve().parent for member in members}:
        raise UserError(f'--out {folder}: is the folder of another run; give one of its own')
    total, told = add_scores(members), [told_beside(member.path) for member in members]

    def common(key: str):
        return told[0].get(key) if all(other.get(key) == told[0].get(key) for other in told) else None

    of = common('of') if common('protocol') == 'ensemble' else common('protocol')
    source = {(other.get('pretraining') or {}).get('benchmark') for other in told}
    listed = [{'path': str(member.path), 'stream': member.stream, 'top1': accuracy_of(member)['top1'],
               **{key: other.get(key) for key in ('protocol', 'method', 'seed')}}
              for member, other in zip(members, told, strict=True)]
    result = {'benchmark': total.benchmark, 'protocol': 'ensemble', 'of': of,
              'method': common('method') or 'several methods', 'seed': common('seed'), 'stream': total.stream,
              'labels': common('labels'), 'pretraining': {'benchmark': source.pop()} if len(source) == 1 else None,
              'last': accuracy_of(total) | {'epoch': None}, 'best': None, 'wall_seconds': None, 'members': listed}
    write_scores(total._replace(path=folder / 'scores.npz'))
    write_json(folder / 'result.json', result)
    rows = []
    for member in [*members, total._replace(path=folder / 'scores.npz')]:
        whole = accuracy_of(member)
        rows.append([member.stream, str(member.path), f'{whole["top1"]:.1f}', f'{whole["top5"]:.1f}'])
    return markdown(['stream', 'scores', 'top-1, %', 'top-5, %'], rows)
