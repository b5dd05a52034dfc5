"""Subsets of clips: shares of the labels, the classes of a one-shot split, and runs that train on just those."""

import numpy as np
import pytest

from data.dataset_file import one_hot, write_npz
from feeder.dataset import SkeletonDataset
from feeder.subset import draw_labelled, novel_classes, without_novel
from tests.conftest import NUM_TEST, read_result, refusal, train, train_until

LABEL = np.repeat([0, 1, 2, 3], [50, 30, 17, 3])


@pytest.mark.parametrize('balanced', [False, True])
def test_a_share_is_a_function_of_the_seed(balanced):
    for fraction in (0.01, 0.295, 0.5, 1):
        rows = draw_labelled(LABEL, fraction, 3, balanced)
        assert len(rows) == int(100 * fraction) and (np.diff(rows) > 0).all() and set(rows) <= set(range(100))
        assert (rows == draw_labelled(LABEL, fraction, 3, balanced)).all()
        assert fraction == 1 or {tuple(draw_labelled(LABEL, fraction, seed, balanced)) for seed in range(20)} != {
            tuple(rows)}
    refusal(lambda: draw_labelled(LABEL, 0.009, 0, balanced), '--label_fraction 0.009', '100')


@pytest.mark.parametrize('fraction, most', [(0.04, 1), (0.12, 3), (0.51, 16)])
def test_a_balanced_share_has_equally_many_of_each_class(fraction, most):
    for seed in range(20):
        counts = np.bincount(LABEL[draw_labelled(LABEL, fraction, seed, balanced=True)], minlength=4)
        assert counts.sum() == int(100 * fraction) and counts[3] == min(3, most)
        assert all(count in (most - 1, most, size) for count, size in zip(counts, (50, 30, 17, 3), strict=True))


def test_novel_classes_are_the_published_ones():
    assert novel_classes(120, 6).tolist() == [*range(0, 120, 6)], 'A001, A007, …, A115'
    assert (without_novel(LABEL, 4, 2) == [*range(50, 80), *range(97, 100)]).all()
    assert (without_novel(LABEL, 4, 0) == np.arange(100)).all()


def test_semi_supervised_training_also_when_it_resumes(tiny, tiny_npz, tmp_path):
    options = [*tiny, '--label_fraction', '0.5', '--seed', '4', '--save_steps', '1']
    train_until(2, 'finetune', options, tmp_path)
    label = SkeletonDataset(tiny_npz, 'train', 5).label.numpy()
    names = (tmp_path / 'labelled.txt').read_text().split()
    assert names == [f'train_{row}' for row in draw_labelled(label, 0.5, 4)]
    options += ['--resume', 'auto']
    refusal(lambda: train('finetune', options, tmp_path, '--label_fraction', '1'), 'label_fraction 0.5')
    refusal(lambda: train('finetune', options, tmp_path, '--label_draw', 'balanced'), 'label_draw')
    train('finetune', options, tmp_path)
    result = read_result(tmp_path)
    assert result['labels'] == {'fraction': 0.5, 'clips': 11, 'draw': 'random'}
    assert result['last']['samples'] == NUM_TEST


def test_training_without_novel_classes(tiny, tiny_npz, tmp_path):
    """Of classes 0, 1, 2 only the middle one is trained and tested on."""
    train('finetune', tiny, tmp_path, '--novel_every', '2', '--save_scores')
    test = SkeletonDataset(tiny_npz, 'test', 5).label.numpy()
    result, scores = read_result(tmp_path), np.load(tmp_path / 'scores.npz')
    assert result['labels'] is None and result['last']['samples'] == (test == 1).sum() == len(scores['name'])
    assert (scores['label'] == 1).all() and scores['scores'].shape[1] == 3
    assert not (tmp_path / 'labelled.txt').exists()


def test_auxiliary_training_where_all_test_classes_are_novel(tiny, tiny_npz, tmp_path):
    """As in the one-shot file of NTU RGB+D 120: nothing is left to evaluate on. No training clip left is an error."""
    members = dict(np.load(tiny_npz))
    for split, labels in (('train', [1]), ('test', [0, 2])):
        members[f'y_{split}'] = one_hot(np.resize(labels, len(members[f'x_{split}'])), 3)
    write_npz(tmp_path / 'oneshot.npz', **members)
    options = [*tiny, '--data_path', str(tmp_path / 'oneshot.npz'), '--novel_every', '2']
    train('finetune', options, tmp_path / 'run', '--save_scores')
    assert read_result(tmp_path / 'run')['last'] is None and not (tmp_path / 'run/scores.npz').exists()
    members['y_train'] = one_hot(np.zeros(22, dtype=int), 3)
    write_npz(tmp_path / 'oneshot.npz', **members)
    refusal(lambda: train('finetune', options, tmp_path / 'none'), 'oneshot.npz', 'no training clip')
