"""Which clips take part: a share of the labels (semi-supervised), or the classes of one side of a one-shot split."""

import argparse

import numpy as np

from feeder.dataset import SkeletonDataset
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


def open_splits(args: argparse.Namespace) -> tuple[SkeletonDataset, SkeletonDataset]:
    """Open the training and test split, reduced by --novel_every and --label_fraction; fills in --num_classes.

    Raises UserError if the splits contradict the settings or each other, or no training clip is left.
    """
    train, test = (SkeletonDataset(args.data_path, split, args.num_joints) for split in ('train', 'test'))
    if train.num_classes != test.num_classes or train.num_classes < 2:
        raise UserError(f'{train.path}: y_train has {train.num_classes} classes, y_test {test.num_classes}; write the '
                        'file again, with the same two or more classes in both')
    if train.num_bodies != test.num_bodies:
        raise UserError(f'{train.path}: x_train has {train.num_bodies} bodies, x_test {test.num_bodies}; write the '
                        'file again')
    args.num_classes = args.num_classes or train.num_classes
    if args.num_classes != train.num_classes:
        raise UserError(f'{train.path}: has {train.num_classes} classes, --num_classes is {args.num_classes}; leave it '
                        'out or give another --data_path')
    for split in (train, test):
        split.rows = without_novel(split.label.numpy(), args.num_classes, args.novel_every)
    if not len(train.rows):
        raise UserError(f'{train.path}: --novel_every {args.novel_every} leaves no training clip; give another value')
    if args.label_fraction < 1:
        labelled = draw_labelled(train.label.numpy()[train.rows], args.label_fraction, args.seed,
                                 args.label_draw == 'balanced')
        train.rows = train.rows[labelled]
    return train, test
