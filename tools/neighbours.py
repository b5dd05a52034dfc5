"""Recognition without training: labels of the nearest clips in the space of a frozen encoder's features.

Axis letters: N clips.
"""

import numpy as np
from sklearn.neighbors import KNeighborsClassifier

from feeder.subset import novel_classes
from util.errors import UserError
from util.predictions import Features


def check_protocol(labels: dict[str, np.ndarray], num_classes: int, protocol: str, k: int, every: int) -> None:
    """UserError when the clips with these labels (N,), by split, are too few for the protocol."""
    if protocol == 'knn':
        _check_neighbours(k, len(labels['train']))
    else:
        _novel(num_classes, every)


def _check_neighbours(k: int, clips: int) -> None:
    if k > clips:
        raise UserError(f'--k {k} exceeds the {clips} training clips; give less')


def _novel(num_classes: int, every: int) -> np.ndarray:
    novel = novel_classes(num_classes, every) if every else np.empty(0, dtype=np.int64)
    if len(novel) < 2:
        raise UserError(f'--novel_every {every} makes {len(novel)} of {num_classes} classes novel; 2 are the least')
    return novel


def knn(splits: dict[str, Features], k: int, metric: str) -> np.ndarray:
    """Labels (N,) for the test split: the majority among the k nearest training clips; of a tie the lowest."""
    train, test = splits['train'], splits['test']
    _check_neighbours(k, len(train.label))
    classifier = KNeighborsClassifier(k, metric=metric, algorithm='brute').fit(train.features, train.label)
    return classifier.predict(test.features)


def exemplars(splits: dict[str, Features], novel: np.ndarray, published: bool) -> Features:
    """One clip of each novel class (in the order of `novel`), after which the others are named.

    If `published`, NTU RGB+D 120's where they are (S001C003P008R001Axxx, from A061 on S018C003P008R001Axxx); else the
    first by name of the class's training clips, or of its test clips where it has none in training. Raises UserError
    for a class without any clip.
    """
    chosen = []
    for one in novel:
        wanted = [{f'S{1 if one < 60 else 18:03}C003P008R001A{one + 1:03}'}] * published
        for held, names in ((held, names) for names in (*wanted, None) for held in splits.values()):
            rows = np.flatnonzero(held.label == one)
            rows = rows[np.isin(held.name[rows], list(names))] if names else rows
            if len(rows):
                row = rows[held.name[rows].argmin()]
                chosen.append((held.features[row], held.name[row], one))
                break
        else:
            raise UserError(f'no clip of novel class {one} (counted from 0): choose others with --novel_every')
    return Features(*(np.array(column) for column in zip(*chosen, strict=True)))


def one_shot(splits: dict[str, Features], num_classes: int, every: int, metric: str) -> tuple[np.ndarray, Features]:
    """Labels of the novel classes' test clips by their nearest exemplar, and those clips without the exemplars.

    NTU RGB+D 120's one-shot protocol where the file is NTU120_OneShot.npz; the same idea on any other. The novel
    classes are every `every`-th one, from the first on.
    """
    novel, test = _novel(num_classes, every), splits['test']
    shown = exemplars(splits, novel, published=num_classes == 120)      # other sets' names may look the same
    asked = Features(*(field[np.isin(test.label, novel) & ~np.isin(test.name, shown.name)] for field in test))
    if not len(asked.label):
        raise UserError(f'--novel_every {every}: no test clip of a novel class but the exemplars')
    return knn({'train': shown, 'test': asked}, 1, metric), asked
