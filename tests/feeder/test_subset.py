"""Which clips take part: shares of the labels, the classes of a one-shot split, and that training sees just those."""

import json

import numpy as np
import pytest

import main_finetune
from feeder.dataset import EvalBatches, SkeletonDataset, TrainBatches
from feeder.subset import draw_labelled, novel_classes, without_novel
from tests.conftest import refusal
from util.trainer import Trainer

LABEL = np.repeat([0, 1, 2, 3], [50, 30, 17, 3])


@pytest.mark.parametrize('balanced', [False, True])
@pytest.mark.parametrize('fraction', [0.01, 0.1, 0.295, 0.5, 1])
def test_a_share_is_drawn_once_for_all(fraction, balanced):
    rows = draw_labelled(LABEL, fraction, 3, balanced)
    assert len(rows) == int(100 * fraction) and (np.diff(rows) > 0).all() and set(rows) <= set(range(100))
    assert (rows == draw_labelled(LABEL, fraction, 3, balanced)).all()
    if fraction < 1:
        assert {tuple(draw_labelled(LABEL, fraction, seed, balanced)) for seed in range(20)} != {tuple(rows)}


def test_the_published_sizes_of_ntu60():
    assert [len(draw_labelled(np.zeros(n, dtype=int), share, 0)) for n in (40091, 37646) for share in (.01, .1)] == [
        400, 4009, 376, 3764]


def test_a_random_share_is_any_clips():
    """Each clip is as likely as any other: 2,000 draws of 10 of 100, 200 times each within 5 standard deviations."""
    counts = sum(np.bincount(draw_labelled(LABEL, 0.1, seed), minlength=100) for seed in range(2000))
    assert abs(counts - 200).max() < 5 * np.sqrt(2000 * .1 * .9)


@pytest.mark.parametrize('fraction, most', [(0.04, 1), (0.12, 3), (0.3, 9), (0.51, 16)])
def test_a_balanced_share_has_as_many_of_each(fraction, most):
    for seed in range(20):
        counts = np.bincount(LABEL[draw_labelled(LABEL, fraction, seed, balanced=True)], minlength=4)
        assert counts.sum() == int(100 * fraction)
        assert all(count in (most - 1, most, have) for count, have in zip(counts, (50, 30, 17, 3), strict=True))
        assert counts[3] == min(3, most)


def test_no_label_at_all_is_refused():
    refusal(lambda: draw_labelled(LABEL, 0.009, 0), '--label_fraction 0.009', '100')


def test_novel_classes_are_the_published_ones():
    assert [f'A{one + 1:03}' for one in novel_classes(120, 6)] == [
        'A001', 'A007', 'A013', 'A019', 'A025', 'A031', 'A037', 'A043', 'A049', 'A055', 'A061', 'A067', 'A073', 'A079',
        'A085', 'A091', 'A097', 'A103', 'A109', 'A115']
    assert (without_novel(LABEL, 4, 2) == [*range(50, 80), *range(97, 100)]).all()
    assert (without_novel(LABEL, 4, 0) == np.arange(100)).all()


def test_batches_hold_the_rows_that_take_part_only():
    rows = np.array([3, 5, 8, 13, 21, 34, 55])
    train = TrainBatches(rows, 2, 1, 0, 1, 0)
    seen = [row for batch in train for row, _ in batch]
    assert len(train) == 3 and len(set(seen)) == 6 and set(seen) <= set(rows)
    shares = [[row for batch in EvalBatches(rows, 2, rank, 2) for row, _ in batch] for rank in (0, 1)]
    assert sorted(shares[0] + shares[1]) == list(rows)


def read_result(folder) -> dict:
    return json.loads((folder / 'result.json').read_text())


def test_semi_supervised_training_says_what_it_saw(tiny, tiny_npz, tmp_path):
    main_finetune.main([*tiny, '--label_fraction', '0.5', '--seed', '4', '--output_dir', str(tmp_path)])
    names = (tmp_path / 'labelled.txt').read_text().split()
    label = SkeletonDataset(tiny_npz, 'train', 5).label.numpy()
    assert names == [f'train_{row}' for row in draw_labelled(label, 0.5, 4)]
    result = read_result(tmp_path)
    assert result['labels'] == {'fraction': 0.5, 'clips': 11, 'draw': 'random'}
    assert result['last']['samples'] == len(SkeletonDataset(tiny_npz, 'test', 5))


def test_auxiliary_classes_only(tiny, tiny_npz, tmp_path):
    """Of classes 0, 1, 2 the middle one remains with every second left out: nothing else is trained or tested on."""
    main_finetune.main([*tiny, '--novel_every', '2', '--output_dir', str(tmp_path), '--save_scores'])
    test = SkeletonDataset(tiny_npz, 'test', 5).label.numpy()
    result, scores = read_result(tmp_path), np.load(tmp_path / 'scores.npz')
    assert result['labels'] is None and result['last']['samples'] == (test == 1).sum() == len(scores['name'])
    assert (scores['label'] == 1).all() and scores['scores'].shape[1] == 3
    assert not (tmp_path / 'labelled.txt').exists()


def test_a_run_stopped_inside_an_epoch_goes_on_with_the_same_clips_only(tiny, tmp_path, monkeypatch):
    options = [*tiny, '--label_fraction', '0.8', '--save_steps', '1', '--output_dir', str(tmp_path)]
    update, done = Trainer.update, []

    def update_twice(trainer):
        done.append(update(trainer))
        if len(done) == 2:
            raise KeyboardInterrupt
    monkeypatch.setattr(Trainer, 'update', update_twice)
    with pytest.raises(KeyboardInterrupt):
        main_finetune.main(options)
    refusal(lambda: main_finetune.main([*options, '--resume', 'auto', '--label_fraction', '1']), 'inside an epoch',
            'label_fraction 0.8 -> 1.0')
    refusal(lambda: main_finetune.main([*options, '--resume', 'auto', '--label_draw', 'balanced']), 'label_draw')
    main_finetune.main([*options, '--resume', 'auto'])
    assert read_result(tmp_path)['labels']['fraction'] == 0.8
