"""Nearest neighbours and one-shot recognition against brute force, and what is kept of a run."""

import json

import numpy as np
import pytest
import torch

import main_finetune
import main_linprobe
import main_pretrain
import tools.retrieval
from engine_finetune import evaluate, predict
from feeder.augment import ClipMaker
from feeder.dataset import EvalBatches, SkeletonDataset
from feeder.loader import BatchLoader
from model_transformer import ActionTransformer
from tests.conftest import refusal, read_result
from tools.neighbours import exemplars, knn, one_shot
from util.dist import World
from util.precision import Precision
from util.predictions import Features, read_features, write_features
from util.results import experiment_of, group_runs

CPU = torch.device('cpu')


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


@pytest.mark.parametrize('k', [1, 3, 8, 40])
@pytest.mark.parametrize('metric', ['cosine', 'euclidean', 'manhattan'])
def test_neighbours_vote(k, metric):
    splits = made(k)
    far = distances(splits['test'].features, splits['train'].features, metric)
    nearest = splits['train'].label[np.argsort(far, axis=1)[:, :k]]
    expected = [np.bincount(row, minlength=4).argmax() for row in nearest]
    assert (knn(splits, k, metric) == expected).all()


def test_more_neighbours_than_clips_are_refused():
    refusal(lambda: knn(made(0), 41, 'cosine'), '--k 41', '40')


@pytest.mark.parametrize('metric', ['cosine', 'euclidean'])
def test_one_shot_is_the_nearest_exemplar(metric):
    splits = made(7, 60, 80, classes=9)
    found, asked = one_shot(splits, 9, 3, metric)
    train, test = splits['train'], splits['test']
    shown = {one: min((name, i) for i, name in enumerate(train.name) if train.label[i] == one)[1] for one in (0, 3, 6)}
    queries = [i for i in range(80) if test.label[i] in (0, 3, 6)]
    far = distances(test.features[queries], train.features[list(shown.values())], metric)
    assert (found == np.array([0, 3, 6])[far.argmin(axis=1)]).all()
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
    shown = exemplars(splits, np.array([0, 6, 60, 12]), published=True)
    assert shown.name.tolist() == ['S001C003P008R001A001', 'S002C001P001R001A007', 'S018C003P008R001A061',
                                   'S002C001P009R001A013']
    assert shown.label.tolist() == [0, 6, 60, 12] and (shown.features[2] == splits['test'].features[0]).all()
    refusal(lambda: exemplars(splits, np.array([0, 18]), True), '18', '--novel_every')


def test_names_like_the_published_ones_mean_nothing_in_another_set():
    name = np.array([f'S001C00{view}P008R001A00{action}' for action in (1, 2) for view in (2, 3)])
    splits = dict.fromkeys(('train', 'test'), Features(np.eye(4), name, np.array([0, 0, 1, 1])))
    _, asked = one_shot(splits, 2, 1, 'cosine')
    assert asked.name.tolist() == ['S001C003P008R001A001', 'S001C003P008R001A002'], 'the first by name were shown'
    splits = {split: held._replace(label=np.array([0, 0, 6, 6])) for split, held in splits.items()}
    assert exemplars(splits, np.array([0]), True).name == 'S001C003P008R001A001'


def test_too_few_novel_classes_are_refused():
    refusal(lambda: one_shot(made(0), 4, 6, 'cosine'), '--novel_every 6', '1 of 4')
    refusal(lambda: one_shot(made(0), 4, 0, 'cosine'), '--novel_every 0')


def test_features_come_back(tmp_path):
    splits = made(1)
    write_features(tmp_path / 'f.npz', splits, benchmark='b', stream='joint', method='MAMP')
    back, facts = read_features(tmp_path / 'f.npz')
    assert facts == {'benchmark': 'b', 'stream': 'joint', 'method': 'MAMP'}
    assert all((one == other).all() for split in splits for one, other in zip(splits[split], back[split], strict=True))


RUN = {'seed': 2, 'pretraining': {'benchmark': 'b', 'seed': 1, 'mask_ratio': 0.9, 'target': 'motion', 'path': None},
       'config': {'depth': 4, 'mlp_ratio': 2.5}}


def kept(path, run: dict = RUN, **facts: str):
    write_features(path, made(1), run, **{'benchmark': 'b', 'stream': 'bone', 'method': 'MAMP'} | facts)
    return path


def recognise(path, *options: str) -> dict:
    out = path.parent / 'out'
    tools.retrieval.main(['--features', str(path), '--device', 'cpu', '--output_dir', str(out), *options])
    return read_result(out)


@pytest.mark.parametrize('options', [[], ['--benchmark', 'b', '--stream', 'bone', '--seed', '2']])
def test_features_tell_of_the_run_that_made_them(options, tmp_path):
    result = recognise(kept(tmp_path / 'f.npz'), *options)
    assert {key: result[key] for key in ('benchmark', 'stream', 'seed', 'method', 'pretraining')} == {
        'benchmark': 'b', 'stream': 'bone', 'seed': 2, 'method': 'MAMP', 'pretraining': RUN['pretraining']}
    assert (result['config']['depth'], result['config']['mlp_ratio'], result['config']['dim_feat']) == (4, 2.5, 256)
    assert experiment_of(result) == 'retrieval, MAMP, bone'


def test_features_that_tell_nothing_are_what_the_options_say(tmp_path):
    write_features(tmp_path / 'f.npz', made(1))
    for options, told in (([], ('f', 'joint', 0)),
                          (['--benchmark', 'a', '--stream', 'velocity', '--seed', '3'], ('a', 'velocity', 3))):
        result = recognise(tmp_path / 'f.npz', *options)
        assert (result['benchmark'], result['stream'], result['seed']) == told and result['method'] == 'features'


@pytest.mark.parametrize('option, value', [('benchmark', 'other'), ('stream', 'joint'), ('seed', '0')])
def test_an_option_that_contradicts_the_features_is_refused(option, value, tmp_path):
    path, config = kept(tmp_path / 'f.npz'), tmp_path / 'c.yaml'
    config.write_text(f'{option}: {value}\n')
    for words in ([f'--{option}', value], ['--config', str(config)]):
        refusal(lambda words=words: recognise(path, *words), f'--{option} {value}', path, f'of {option} ')
    assert not (tmp_path / 'out').exists()


@pytest.mark.parametrize('told', [
    '', '[]', '{"seed": 1}', '[' * 9999, {}, {'seed': -1}, {'seed': '1'}, {'seed': 1.5}, {'pretraining': 'p'},
    {'pretraining': {'seed': []}}, {'pretraining': {'benchmark': 3}}, {'pretraining': {'path': 'a\nb'}},
    {'config': None}, {'config': {'depth': float('inf')}}, {'config': {'depth': float('nan')}},
    {'config': {'depth': '8'}}], ids=lambda told: str(told)[:60])
def test_what_a_run_cannot_have_said_is_refused(told, tmp_path):
    run = told if isinstance(told, str) else json.dumps(RUN | told)
    write_features(tmp_path / 'f.npz', made(1))
    with np.load(tmp_path / 'f.npz') as held:
        members = dict(held)
    np.savez(tmp_path / 'f.npz', **members, run=np.array(run))
    if told == {}:
        assert read_features(tmp_path / 'f.npz')[1] == RUN
        return
    refusal(lambda: read_features(tmp_path / 'f.npz'), 'f.npz', 'run is', 'save it again')


def test_features_lead_nowhere_they_should_not(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ('..', '../../up', '/abs', ''):
        path = kept(tmp_path / 'f.npz', benchmark=name)
        refusal(lambda path=path: tools.retrieval.main(['--features', str(path), '--device', 'cpu']), 'no name for a')
    refusal(lambda: recognise(kept(tmp_path / 'f.npz', stream='smell')), 'smell', 'velocity')
    assert [one.name for one in tmp_path.iterdir()] == ['f.npz']


def test_the_result_of_the_run_that_wrote_the_features_stays(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = kept(tmp_path / 'runs' / 'b' / 'retrieval' / 'features.npz')
    refusal(lambda: tools.retrieval.main(['--features', str(path), '--device', 'cpu']), 'another --output_dir')
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize('split, field, value', [
    ('train', 'label', np.zeros(39, int)), ('test', 'features', np.full((25, 6), np.nan, np.float32)),
    ('test', 'features', np.zeros((25, 5), np.float32)), ('train', 'features', np.zeros((40, 6), int)),
    ('test', 'name', np.array(['a'])), ('train', 'label', np.zeros(40))])
def test_features_that_do_not_fit_are_refused(split, field, value, tmp_path):
    splits = made(2)
    splits[split] = splits[split]._replace(**{field: value})
    write_features(tmp_path / 'f.npz', splits)
    refusal(lambda: read_features(tmp_path / 'f.npz'), 'f.npz', 'features')


@pytest.fixture(scope='module')
def pretrained(tiny_pretrain, tmp_path_factory):
    folder = tmp_path_factory.mktemp('pretrained')
    main_pretrain.main([*tiny_pretrain, '--output_dir', str(folder)])
    return folder / 'checkpoint-last.pth'


def size_of(tiny: list[str]) -> list[str]:
    """Of a training's options those that retrieval has."""
    pairs = zip(tiny[::2], tiny[1::2], strict=True)
    left = ('--effective_batch_size', '--lr', '--epochs')
    return [word for name, value in pairs if name not in left for word in (name, value)]


def test_retrieval_from_checkpoint_to_result(tiny, tiny_npz, pretrained, tmp_path):
    options = [*size_of(tiny), '--finetune', str(pretrained), '--batch_size', '4', '--stream', 'velocity',
               '--seed', '3']
    tools.retrieval.main([*options, '--output_dir', str(tmp_path / 'a')])
    result, (splits, _) = read_result(tmp_path / 'a'), read_features(tmp_path / 'a' / 'features.npz')
    assert result['method'] == 'MAMP' and result['protocol'] == 'retrieval' and result['stream'] == 'velocity'
    test = SkeletonDataset(tiny_npz, 'test', 5)
    assert splits['test'].label.tolist() == test.label.tolist() and splits['test'].name.tolist() == list(test.names)
    far = distances(splits['test'].features, splits['train'].features, 'cosine')
    expected = 100 * (splits['train'].label[far.argmin(axis=1)] == splits['test'].label).mean()
    assert result['last'] == {'top1': pytest.approx(expected), 'samples': len(test), 'metric': 'cosine', 'k': 1}

    tools.retrieval.main(['--features', str(tmp_path / 'a' / 'features.npz'), '--output_dir', str(tmp_path / 'b')])
    again = read_result(tmp_path / 'b')
    told = ('last', 'benchmark', 'method', 'stream', 'seed', 'pretraining')
    assert [again[key] for key in told] == [result[key] for key in told] and result['pretraining']['mask_ratio'] == 0.5
    assert again['seed'] == 3 and len(group_runs([run | {'path': ''} for run in (again, result)])) == 1, 'one recipe'
    assert not (tmp_path / 'b' / 'features.npz').exists()


def test_one_shot_before_and_after_supervised_training(tiny, pretrained, tmp_path):
    size, shot = size_of(tiny), ['--protocol', 'oneshot', '--novel_every', '2', '--batch_size', '4']
    main_finetune.main([*tiny, '--finetune', str(pretrained), '--novel_every', '2', '--output_dir',
                        str(tmp_path / 'ft')])
    methods = []
    for source in (pretrained, tmp_path / 'ft' / 'checkpoint-last.pth'):
        tools.retrieval.main([*size, *shot, '--finetune', str(source), '--output_dir', str(tmp_path / 'out')])
        result = read_result(tmp_path / 'out')
        assert result['protocol'] == 'oneshot' and 0 <= result['last']['top1'] <= 100
        assert result['pretraining']['target'] == 'motion'
        methods.append(result['method'])
    assert methods == ['MAMP', 'MAMP + supervised']


def test_scores_are_those_that_were_evaluated(tiny, tiny_npz, pretrained, tmp_path):
    options = [*tiny, '--finetune', str(pretrained), '--save_scores', '--save_features', '--output_dir', str(tmp_path)]
    main_linprobe.main(options)
    result, scores, kept = read_result(tmp_path), np.load(tmp_path / 'scores.npz'), np.load(tmp_path / 'features.npz')
    assert 100 * (scores['scores'].argmax(axis=1) == scores['label']).mean() == pytest.approx(result['last']['top1'])
    loss = -np.log(scores['scores'][np.arange(len(scores['label'])), scores['label']]).mean()
    assert loss == pytest.approx(result['last']['loss'], rel=1e-4)
    np.testing.assert_allclose(scores['scores'].sum(axis=1), 1, rtol=1e-5)
    assert str(scores['stream']) == 'joint' and kept['features_test'].shape == (len(scores['label']), 16)
    (tmp_path / 'scores.npz').unlink()
    main_linprobe.main([*tiny, '--eval', '--resume', 'auto', '--save_scores', '--output_dir', str(tmp_path)])
    np.testing.assert_allclose(np.load(tmp_path / 'scores.npz')['scores'], scores['scores'], atol=1e-6)


def test_predictions_of_several_processes_come_together(tiny_npz):
    """Each of two fills in its rows; what `World.sum` adds up is what one process finds."""
    torch.manual_seed(0)
    model = ActionTransformer(3, 'linprobe', dim_feat=16, depth=1, num_heads=2, num_frames=16, num_joints=5)
    dataset, clips_of = SkeletonDataset(tiny_npz, 'test', 5), ClipMaker(16, 'joint', 0)

    def found(rank, size):
        loader = BatchLoader(dataset, EvalBatches(range(len(dataset)), 4, rank, size), CPU, 0)
        return predict(model, loader, clips_of, Precision('fp32', CPU), World(0, 1, CPU), len(dataset))
    one, parts = found(0, 1), [found(rank, 2) for rank in (0, 1)]
    for name in ('features', 'scores'):
        np.testing.assert_allclose(parts[0][name] + parts[1][name], one[name], atol=1e-6)
        assert (one[name] != 0).any(axis=1).all()


def test_the_head_is_evaluated_in_fp32_and_scores_agree_with_the_accuracy(tiny_npz):
    """In bf16 logits of classes tie, and the two would break ties differently."""
    torch.manual_seed(0)
    model = ActionTransformer(num_classes=3, num_joints=5, num_frames=16, dim_feat=16, depth=1, num_heads=2,
                              protocol='finetune')
    dataset, clips_of, seen = SkeletonDataset(tiny_npz, 'test', 5), ClipMaker(16, 'joint', 0), []
    model.head.register_forward_hook(lambda _, given, made: seen.append((given[0].dtype, made.dtype)))
    world, precision = World(0, 1, CPU), Precision('bf16', CPU)
    loader = BatchLoader(dataset, EvalBatches(dataset.rows, 4, 0, 1), CPU, 0)
    scored = evaluate(model, loader, clips_of, precision, world)
    found = predict(model, loader, clips_of, precision, world, len(dataset))
    assert set(seen) == {(torch.float32, torch.float32)}
    assert scored['top1'] == pytest.approx(100 * (found['scores'].argmax(1) == dataset.label.numpy()).mean())
