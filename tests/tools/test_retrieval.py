"""Nearest neighbours and one-shot recognition against brute force, and what is kept of a run."""

import numpy as np
import pytest

import tools.retrieval
from feeder.dataset import SkeletonDataset
from tests.conftest import read_result, refusal, train
from tools.retrieval import knn, one_shot, select_exemplars
from util.checkpoint import LAST
from util.predictions import Features, read_features, write_features
from util.results import Result, group_runs


def made(seed: int, train: int = 40, test: int = 25, classes: int = 4) -> dict[str, Features]:
    rng = np.random.default_rng(seed)
    return {split: Features(rng.normal(size=(count, 6)).astype(np.float32),
                            np.array([f'{split}_{i:02}' for i in rng.permutation(count)]),
                            rng.integers(0, classes, count)) for split, count in (('train', train), ('test', test))}


def distances(a: np.ndarray, b: np.ndarray, metric: str) -> np.ndarray:
    a, b = a.astype(float), b.astype(float)
    if metric == 'cosine':
        return 1 - (a / np.linalg.norm(a, axis=1)[:, None]) @ (b / np.linalg.norm(b, axis=1)[:, None]).T
    return np.linalg.norm(a[:, None] - b[None], axis=2, ord={'euclidean': 2, 'manhattan': 1}[metric])


@pytest.mark.parametrize('k, metric', [(1, 'cosine'), (3, 'euclidean'), (8, 'manhattan'), (40, 'cosine')])
def test_neighbours_vote(k, metric):
    splits = made(k)
    far = distances(splits['test'].features, splits['train'].features, metric)
    nearest = splits['train'].label[np.argsort(far, axis=1)[:, :k]]
    expected = [np.bincount(row, minlength=4).argmax() for row in nearest]
    assert (knn(splits['train'], splits['test'], k, metric) == expected).all()


def test_one_shot_is_the_nearest_exemplar():
    splits = made(7, 60, 80, classes=9)
    labels, asked = one_shot(splits, 9, 3, 'cosine')
    train, test = splits['train'], splits['test']
    exemplars = {label: min((name, i) for i, name in enumerate(train.name) if train.label[i] == label)[1]
                 for label in (0, 3, 6)}
    queries = [i for i in range(80) if test.label[i] in (0, 3, 6)]
    far = distances(test.features[queries], train.features[list(exemplars.values())], 'cosine')
    assert (labels == np.array([0, 3, 6])[far.argmin(axis=1)]).all()
    assert (asked.name == test.name[queries]).all() and (asked.label == test.label[queries]).all()


def test_the_published_exemplars_are_taken_where_they_are():
    """A001 from setup 1, A061 from setup 18, in whichever split; a class without one shows its first training clip."""
    def split(*names):
        label = np.array([int(name[-3:]) - 1 for name in names])
        return Features(np.arange(6. * len(names)).reshape(-1, 6), np.array(names), label)
    splits = {'train': split('S001C001P001R001A001', 'S001C003P008R001A001', 'S003C001P001R001A007',
                             'S002C001P001R001A007', 'S019C003P008R001A061'),
              'test': split('S018C003P008R001A061', 'S001C003P008R001A061', 'S002C002P001R001A013',
                            'S002C001P009R001A013')}
    exemplars = select_exemplars(splits, np.array([0, 6, 60, 12]), published=True)
    assert exemplars.name.tolist() == ['S001C003P008R001A001', 'S002C001P001R001A007', 'S018C003P008R001A061',
                                   'S002C001P009R001A013']
    assert exemplars.label.tolist() == [0, 6, 60, 12] and (exemplars.features[2] == splits['test'].features[0]).all()
    refusal(lambda: select_exemplars(splits, np.array([0, 18]), True), '18', '--novel_every')


def test_features_of_different_widths_are_refused(tmp_path):
    splits = made(2)
    write_features(tmp_path / 'f.npz', splits | {'test': splits['test']._replace(features=np.ones((25, 5), 'f'))})
    refusal(lambda: read_features(tmp_path / 'f.npz'), 'f.npz', 'features')


@pytest.fixture(scope='module')
def pretrained(tiny_pretrain, tmp_path_factory):
    folder = tmp_path_factory.mktemp('pretrained')
    train('pretrain', tiny_pretrain, folder)
    return str(folder / LAST)


@pytest.fixture
def size(tiny) -> list[str]:
    """Of a training's options those that retrieval has."""
    left = ('--effective_batch_size', '--lr', '--epochs')
    return [word for option in zip(tiny[::2], tiny[1::2], strict=True) if option[0] not in left for word in option]


def test_retrieval_from_checkpoint_to_result(size, tiny_npz, pretrained, tmp_path):
    tools.retrieval.main([*size, '--finetune', pretrained, '--batch_size', '4', '--stream', 'velocity', '--seed', '3',
                          '--output_dir', str(tmp_path / 'a')])
    result, (splits, _) = read_result(tmp_path / 'a'), read_features(tmp_path / 'a' / 'features.npz')
    assert result['method'] == 'MAMP' and result['protocol'] == 'retrieval' and result['stream'] == 'velocity'
    test = SkeletonDataset(tiny_npz, 'test', 5)
    assert splits['test'].label.tolist() == test.label.tolist() and splits['test'].name.tolist() == list(test.names)
    far = distances(splits['test'].features, splits['train'].features, 'cosine')
    expected = 100 * (splits['train'].label[far.argmin(axis=1)] == splits['test'].label).mean()
    assert result['last'] == {'top1': pytest.approx(expected), 'samples': len(test), 'metric': 'cosine', 'k': 1}

    tools.retrieval.main(['--features', str(tmp_path / 'a' / 'features.npz'), '--output_dir', str(tmp_path / 'b')])
    again = read_result(tmp_path / 'b')
    assert all(again[name] == result[name] for name in ('last', 'benchmark', 'method', 'stream', 'seed', 'pretraining'))
    assert result['pretraining']['mask_ratio'] == 0.5 and again['seed'] == 3
    assert len(group_runs([Result.from_dict(run, None) for run in (again, result)])) == 1, 'the same recipe'


def test_one_shot_before_and_after_supervised_training(tiny, size, pretrained, tmp_path):
    train('finetune', [*tiny, '--finetune', pretrained, '--novel_every', '2'], tmp_path / 'ft')
    for source, method in ((pretrained, 'MAMP'), (str(tmp_path / 'ft' / LAST), 'MAMP + supervised')):
        tools.retrieval.main([*size, '--protocol', 'oneshot', '--novel_every', '2', '--finetune', source,
                              '--output_dir', str(tmp_path / 'out')])
        result = read_result(tmp_path / 'out')
        assert result['protocol'] == 'oneshot' and 0 <= result['last']['top1'] <= 100
        assert result['pretraining']['target'] == 'motion' and result['method'] == method


def test_scores_are_those_that_were_evaluated(tiny, pretrained, tmp_path):
    train('linprobe', [*tiny, '--finetune', pretrained, '--save_scores', '--save_features'], tmp_path)
    result, scores, kept = read_result(tmp_path), np.load(tmp_path / 'scores.npz'), np.load(tmp_path / 'features.npz')
    assert 100 * (scores['scores'].argmax(axis=1) == scores['label']).mean() == pytest.approx(result['last']['top1'])
    loss = -np.log(scores['scores'][np.arange(len(scores['label'])), scores['label']]).mean()
    assert loss == pytest.approx(result['last']['loss'], rel=1e-4)
    assert str(scores['stream']) == 'joint' and kept['features_test'].shape == (len(scores['label']), 16)
