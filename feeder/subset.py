"""Subsets of clips: a fraction of the labels (semi-supervised), and the classes of a one-shot split."""

import argparse

import numpy as np

from feeder.dataset import SkeletonDataset
from util.errors import UserError
from util.rng import derive_seed

DRAW = 3        # identifies this use of random numbers; feeder/augment.py has uses 0 to 2


def draw_labelled(label: np.ndarray, fraction: float, seed: int, balanced: bool = False) -> np.ndarray:
    """Draw int(N · fraction) of N labels (N,); returns their rows in ascending order, the same in every process.

    `balanced` draws equally many clips from each class (the numbers differ by at most one), or all clips of a class
    that has fewer. Raises UserError if the fraction amounts to less than one clip.
    """
    count = int(len(label) * fraction)
    if not count:
        raise UserError(f'--label_fraction {fraction:g} of {len(label)} training clips is less than one clip; choose a '
                        'larger fraction')
    order = np.random.default_rng(derive_seed(seed, DRAW)).permutation(len(label))
    if balanced:        # the n-th clip of every class comes before the (n + 1)-th of any; order among classes is random
        rank = np.empty(len(label), dtype=np.int64)
        for rows in (order[label[order] == value] for value in np.unique(label)):
            rank[rows] = np.arange(len(rows))
        order = order[np.argsort(rank[order], kind='stable')]
    return np.sort(order[:count])


def novel_classes(num_classes: int, every: int) -> np.ndarray:
    """Return the labels of every `every`-th class; 6 gives A001, A007, …, A115, the novel classes of NTU RGB+D 120."""
    return np.arange(0, num_classes, every)


def without_novel(label: np.ndarray, num_classes: int, every: int) -> np.ndarray:
    """Return the rows of labels (N,) whose class is not novel, or all rows if `every` is 0."""
    novel = novel_classes(num_classes, every) if every else ()
    return np.flatnonzero(~np.isin(label, novel))


def open_splits(args: argparse.Namespace) -> tuple[SkeletonDataset, SkeletonDataset]:
    """Open the training and test splits, reduced by --novel_every and --label_fraction.

    Sets `num_classes`, if it is missing, and `keypoints` in `args`. Raises UserError if the splits contradict the
    settings or each other, or if no training clip is left. The test split may become empty, as for the one-shot file of
    NTU RGB+D 120, whose test split has novel classes only.
    """
    train, test = (SkeletonDataset(args.data_path, split, args.num_joints) for split in ('train', 'test'))
    if train.num_classes != test.num_classes or train.num_classes < 2:
        raise UserError(f'{train.path}: y_train has {train.num_classes} classes, but y_test has {test.num_classes}; '
                        'regenerate the file with the same two or more classes in both splits')
    if train.num_bodies != test.num_bodies:
        raise UserError(f'{train.path}: x_train has {train.num_bodies} bodies, but x_test has {test.num_bodies}; '
                        'regenerate the file')
    args.num_classes, args.keypoints = args.num_classes or train.num_classes, train.keypoints
    if args.num_classes != train.num_classes:
        raise UserError(f'{train.path}: has {train.num_classes} classes, but --num_classes is {args.num_classes}; '
                        'omit --num_classes or choose another --data_path')
    for split in (train, test):
        split.rows = without_novel(split.label.numpy(), args.num_classes, args.novel_every)
    if not len(train.rows):
        raise UserError(f'{train.path}: --novel_every {args.novel_every} leaves no training clip; choose another value')
    if args.label_fraction < 1:
        labelled = draw_labelled(train.label.numpy()[train.rows], args.label_fraction, args.seed,
                                 args.label_draw == 'balanced')
        train.rows = train.rows[labelled]
    return train, test
