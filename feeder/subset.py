"""Which clips take part: a share of the labels (semi-supervised), or the classes of one side of a one-shot split."""

import numpy as np

from util.errors import UserError
from util.rng import derive_seed

DRAW = 3        # what the random numbers are for; feeder/augment.py uses 0 to 2


def draw_labelled(label: np.ndarray, fraction: float, seed: int, balanced: bool = False) -> np.ndarray:
    """Rows whose labels are used: int(N · fraction) of (N,) labels, ascending; the same on every process.

    `balanced`: as many of each class as of any other, or one more; of a class that has too few, all. Raises
    UserError when nothing is left.
    """
    count = int(len(label) * fraction)
    if not count:
        raise UserError(f'--label_fraction {fraction:g} of {len(label)} training clips is none; give more')
    rng = np.random.default_rng(derive_seed(seed, DRAW))
    order = rng.permutation(len(label))
    if balanced:
        # The n-th clip of every class comes before the (n + 1)-th of any; which class first is drawn too.
        turn = np.empty(len(label), dtype=np.int64)
        for rows in (order[label[order] == one] for one in np.unique(label)):
            turn[rows] = np.arange(len(rows))
        order = order[np.argsort(turn[order], kind='stable')]
    return np.sort(order[:count])


def novel_classes(num_classes: int, every: int) -> np.ndarray:
    """Every so many-th class from the first on: A001, A007, …, A115 of NTU RGB+D 120's one-shot protocol for 6."""
    return np.arange(0, num_classes, every)


def without_novel(label: np.ndarray, num_classes: int, every: int) -> np.ndarray:
    """Rows (of (N,) labels) of the auxiliary classes, those that are not novel; all of them where `every` is 0."""
    if not every:
        return np.arange(len(label))
    rows = np.flatnonzero(~np.isin(label, novel_classes(num_classes, every)))
    if not len(rows):
        raise UserError(f'--novel_every {every} leaves no clip of another class')
    return rows
