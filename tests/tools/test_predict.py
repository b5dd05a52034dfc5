"""Predictions equal those of evaluation, whatever file the recordings come from."""

import csv
import doctest
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch

import tools.predict
import tools.recognition
from data import prepare_ntu
from data.dataset_file import one_hot, write_npz
from data.formats.recording import Recording, clean
from feeder.augment import ClipMaker
from feeder.dataset import SkeletonDataset
from model_mamp import MAMP
from model_transformer import ActionTransformer
from tests.conftest import refusal, train
from tests.data.raw_files import unpack
from tools.recognition import Recogniser
from tools.recordings import Segment, predict_clips, read_clips, sliding_windows, timeline
from util.checkpoint import Checkpoint
from util.predictions import read_features
from util.weights import rebuild_model

SIZES = {'dim_feat': 16, 'depth': 1, 'num_heads': 2, 'mlp_ratio': 4., 'num_frames': 16, 't_patch_size': 4}


def save_model(path, num_joints, num_classes=None, benchmark='mine', stream='joint', **content):
    """Write a checkpoint of a random classifier, or, without classes, of a pre-trained model."""
    torch.manual_seed(3)
    sizes = SIZES | {'num_joints': num_joints}
    model = ActionTransformer(num_classes, 'finetune', **sizes) if num_classes else \
        MAMP(**sizes, decoder_dim_feat=16, decoder_depth=1)
    with torch.no_grad():       # so that probabilities differ between classes, without being 0 or 1
        for weight in model.parameters():
            weight.add_(torch.randn(weight.shape) * 0.2)
        if num_classes:
            model.head.fc2.weight.mul_(0.05)
    settings = sizes | {'stream': stream, 'benchmark': benchmark, 'num_classes': num_classes}
    Checkpoint(model.state_dict(), settings, method='MAMP', code_version='test', **content).write(path)
    return path


def evaluate(path, npz, split='test'):
    """{name: probabilities} of the clips of a dataset file, one at a time through dataset, view and model."""
    model, checkpoint = rebuild_model(path)
    dataset = SkeletonDataset(npz, split, checkpoint.args['num_joints'])
    clip_maker = ClipMaker(16, checkpoint.args['stream'], 0)
    with torch.inference_mode():
        return {name: model(clip_maker.eval_view(dataset[[(row, 0)]]))[0].softmax(0).numpy()
                for row, name in enumerate(dataset.names.tolist())}


def predict(capsys, *options, code=0):
    """Run the command; returns its JSON, with the probabilities of all classes."""
    capsys.readouterr()
    assert tools.predict.main(['--device', 'cpu', '--json', '-', '--top', '1000', *map(str, options)]) == code
    return json.loads(capsys.readouterr().out)


def probabilities(entry):
    """Probabilities in the order of the labels."""
    return [top['probability'] for top in sorted(entry['top'], key=lambda top: top['label'])]


def assert_close(made, expected):
    np.testing.assert_allclose(made, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize('head', ['mlp', 'linear'])
def test_npz_equals_saved_scores_and_features(head, tiny, tiny_npz, tmp_path, capsys):
    train('finetune', [*tiny, '--head', head, '--patch_drop_rate', '0.5', '--save_scores', '--save_features'], tmp_path)
    options = ['--checkpoint', tmp_path / 'checkpoint-last.pth', tiny_npz, '--batch_size', 4]
    recordings = predict(capsys, *options, '--features', tmp_path / 'f.npz')['recordings']
    saved = np.load(tmp_path / 'scores.npz')
    assert_close([probabilities(entry) for entry in recordings], saved['scores'])
    assert [entry['recording'] for entry in recordings] == [f'{tiny_npz}:{name}' for name in saved['name']]
    assert [entry['label'] for entry in recordings] == saved['label'].tolist()
    (made, _), (expected, _) = (read_features(tmp_path / name, ('test',)) for name in ('f.npz', 'features.npz'))
    assert_close(made['test'].features, expected['test'].features)
    assert all((made['test'][i] == expected['test'][i]).all() for i in (1, 2)), 'names and labels'
    assert len(predict(capsys, *options, '--split', 'train')['recordings']) == 22


@pytest.mark.parametrize('dataset, classes, stream', [('ntu60', 60, 'bone'), ('ntu120', 120, 'joint')])
def test_raw_ntu_text_equals_its_npz(dataset, classes, stream, tmp_path):
    """Second bodies are copies or zeros, by benchmark."""
    raw = unpack('ntu_excerpt_raw.tar.xz', tmp_path) / dataset
    prepare_ntu.main(['--dataset', dataset, '--raw', str(raw), '--out', str(tmp_path), '--protocol', 'xsub',
                      '--workers', '1'])
    npz = tmp_path / f'{dataset.upper()}_XSub.npz'
    path = save_model(tmp_path / 'c.pth', 25, classes, f'{dataset}_xsub', stream)
    expected = {}
    for split in ('train', 'test'):
        if len(np.load(npz)[f'x_{split}']):
            expected |= evaluate(path, npz, split)
    recogniser = Recogniser(path, 'cpu')
    for recording, _, _, scores in predict_clips(recogniser, read_clips(sorted(raw.iterdir()), recogniser), 2):
        assert_close(scores[0], expected[recording.name])
        assert recording.label == int(recording.name[-3:]) - 1
    unnamed, = read_clips([min(raw.iterdir()).rename(tmp_path / 'mine.skeleton')], recogniser)
    assert unnamed.label is None


def test_a_pku_video_and_a_window_of_it(tmp_path, capsys):
    """Neither is centred for a model of PKU-MMD; a window over a labelled interval is the training clip."""
    raw = unpack('pku_excerpt_raw.tar.xz', tmp_path) / 'pku_v1/skeleton/0003-M.txt'
    rows = np.loadtxt(raw)
    rows[40:47] = 0         # without bodies: the clip then ends as many frames earlier, as in training
    np.savetxt(raw, rows, '%.7f')
    start = int(np.flatnonzero((rows != 0).any(axis=1))[0])
    x = np.zeros((2, len(rows), 150), np.float32)
    x[0], x[1, :24] = rows, rows[start:start + 24]
    write_npz(tmp_path / 'v.npz', x_train=x, y_train=one_hot([0, 0], 51), x_test=x, y_test=one_hot([0, 0], 51))
    path = save_model(tmp_path / 'c.pth', 25, 51, 'pkuv1_xsub')
    whole, sample = evaluate(path, tmp_path / 'v.npz').values()
    for file in (raw, tmp_path / 'v.npz'):
        assert_close(probabilities(predict(capsys, '--checkpoint', path, file)['recordings'][0]), whole)
    entry = predict(capsys, '--checkpoint', path, raw, '--window', 24, '--hop', 1)['recordings'][0]
    assert_close(probabilities(entry['windows'][start]), sample)
    centred, = read_clips([raw], Recogniser(path, 'cpu', centre=True))
    np.testing.assert_allclose(centred.frames[start, 0, 1], 0, atol=1e-6)


@pytest.mark.parametrize('frames, window, hop', [(100, 30, 7), (100, 30, None)])
def test_each_frame_belongs_to_the_nearest_window(frames, window, hop):
    places = sliding_windows(frames, window, hop)
    starts = [place.start for place in places]
    assert all(place.end - place.start == window for place in places) and starts == sorted(set(starts))
    assert starts[0] == 0 and places[-1].end == frames and max(np.diff(starts)) <= (hop or window // 2)
    owner = np.concatenate([np.full(place.stop - place.begin, row) for row, place in enumerate(places)])
    distance = abs(np.array(starts) + window / 2 - np.arange(frames)[:, None] - 0.5)
    assert (distance[np.arange(frames), owner] == distance.min(axis=1)).all()


def test_neighbouring_windows_with_the_same_label_are_merged():
    scores = np.array([[.9, .1], [.7, .3], [.2, .8], [.6, .4], [.8, .2]])
    places = sliding_windows(60, 20, 10)
    assert timeline(places, scores) == [Segment(0, 25, 0, pytest.approx(.8)), Segment(25, 35, 1, pytest.approx(.8)),
                                        Segment(35, 60, 0, pytest.approx(.7))]
    separate = timeline([places[0], places[1], places[3], places[4]], scores[[0, 1, 3, 4]])    # the third has no body
    assert [(segment.start, segment.end, segment.label) for segment in separate] == [(0, 25, 0), (35, 60, 0)]


def test_windows_equal_separate_recordings(tmp_path, capsys):
    """Each is centred and predicted by itself; those without a body are left out."""
    path = save_model(tmp_path / 'c.pth', 20, 10, 'nwucla_xview')
    frames = np.random.default_rng(2).normal(size=(50, 20, 3)).cumsum(axis=0)
    np.save(tmp_path / 'a.npy', frames)
    entry, = predict(capsys, '--checkpoint', path, tmp_path / 'a.npy', '--window', 20, '--hop', 15, '--features',
                     tmp_path / 'f.npz')['recordings']
    recogniser = Recogniser(path, 'cpu')
    assert [(window['start'], window['end']) for window in entry['windows']] == [(0, 20), (15, 35), (30, 50)]
    for window in entry['windows']:
        assert_close(probabilities(window), recogniser.probabilities(frames[window['start']:window['end']]))
    assert np.load(tmp_path / 'f.npz')['name_test'].tolist() == ['a[0:20]', 'a[15:35]', 'a[30:50]']
    empty = np.concatenate([frames, np.zeros((60, 20, 3)), frames])[:, None].astype(np.float32)
    prediction, = predict_clips(recogniser, [Recording(path, empty, None)], 3, 20, 20)
    assert [place.start for place in prediction.windows] == [0, 20, 40, 100, 120, 140]


@pytest.fixture(scope='module')
def classifier(tmp_path_factory):
    """A classifier of two bodies of five joints with class names."""
    return save_model(tmp_path_factory.mktemp('mine') / 'c.pth', 5, 3, bodies=2,
                      class_names=['sit', 'stand', 'wave "hi", '])


def test_example_in_the_documentation(classifier):
    result = doctest.testmod(tools.recognition, extraglobs={'checkpoint': str(classifier), 'np': np})
    assert result.attempted >= 6 and not result.failed


def test_arrays_of_all_shapes_and_invalid_ones(classifier):
    recogniser, rng = Recogniser(classifier, 'cpu'), np.random.default_rng(1)
    single, pair = rng.normal(size=(40, 5, 3)), rng.normal(size=(9, 2, 5, 3))
    rows = recogniser.probabilities([single, pair, single[:1]], batch_size=2)
    assert rows.shape == (3, 3) and rows.dtype == np.float32 and recogniser.features([single]).shape == (1, 16)
    assert_close(rows, [recogniser.probabilities(frames) for frames in (single, pair, single[:1])])
    for frames in (single[:, None], np.stack([single, 0 * single], 1), single + 3, single.tolist(),
                   np.insert(single, 7, 0, axis=0), clean(single[:, None], None)):
        assert_close(recogniser.probabilities(np.asarray(frames)), rows[0])
    assert abs(recogniser.probabilities(single[::-1].copy()) - rows[0]).max() > 1e-4, 'depends on the clip'
    for frames, part in ((np.ones((4, 7, 3)), '(4, 7, 3)'), (0 * single, 'zero'), ([], 'empty'),
                         ([single, np.nan * single], 'recording 1'), (single[:0], 'expected numbers')):
        refusal(lambda frames=frames: recogniser.probabilities(frames), part)


def test_of_too_many_bodies_those_that_move_most_are_kept(classifier):
    bodies = np.random.default_rng(1).normal(size=(30, 4, 5, 3)) * np.array([1, .1, 0, 3])[:, None, None]
    bodies[:15, 1] += 9
    bodies[15:, 1:] = 0     # absent frames do not count as motion
    kept = Recogniser(classifier, 'cpu', centre=False).fit_bodies(bodies)
    np.testing.assert_array_equal(kept, bodies[:, [0, 3]])


@pytest.mark.parametrize('preparation, benchmark, classes, centre, scale, repeats', [
    (None, 'pku1_xsub', 51, False, 1, False), (None, 'ntu120_xsub', 120, True, 1, True),
    (None, 'mine', 120, True, 1, False), ({'centre': True, 'scale': .01}, 'pku1_xsub', 51, True, .01, False)])
def test_preparation(preparation, benchmark, classes, centre, scale, repeats, tmp_path):
    """As recorded in the checkpoint, or else as for the data set of its benchmark."""
    recogniser = Recogniser(save_model(tmp_path / 'c.pth', 25, classes, benchmark, preparation=preparation), 'cpu')
    assert (recogniser.centre, recogniser.scale, recogniser.repeats_body) == (centre, scale, repeats)


def test_a_pretrained_model_has_features_and_no_labels(tmp_path):
    path, valid = save_model(tmp_path / 'c.pth', 5), np.random.default_rng(0).normal(size=(9, 5, 3))
    np.save(tmp_path / 'a.npy', valid)
    recogniser, command = Recogniser(path, 'cpu'), ['--checkpoint', str(path), str(tmp_path / 'a.npy')]
    refusal(lambda: tools.predict.main([*command, '--json', '-']), path, 'pre-training', '--features')
    assert tools.predict.main([*command, '--device', 'cpu', '--features', str(tmp_path / 'f.npz')]) == 0
    assert_close(np.load(tmp_path / 'f.npz')['features_test'], recogniser.features([valid]))
    refusal(lambda: recogniser.probabilities(valid), 'has no classes')


def test_a_folder_with_damaged_files(classifier, tmp_path, capsys):
    """Valid recordings are predicted, the others listed at the end on stderr, a line each."""
    rng, folder, out = np.random.default_rng(0), tmp_path / 'in', tmp_path / 'out.json'
    (folder / 'b').mkdir(parents=True)
    np.save(folder / 'b/one.npy', rng.normal(size=(12, 5, 3)))
    np.save(folder / 'two.npy', rng.normal(size=(40, 3, 5, 3)).cumsum(axis=0))
    np.save(folder / 'arm.npy', rng.normal(size=(15, 20, 3)))
    (folder / 'cut.skeleton').write_text('1\n1\n')
    x = rng.normal(size=(2, 8, 30)).astype(np.float32)
    x[1, 2, 3] = np.nan
    write_npz(folder / 'many.npz', x_test=x, y_test=one_hot([0, 1], 3))
    (folder / 'README.md').write_text('not a recording')
    assert tools.predict.main(['--checkpoint', str(classifier), str(folder), str(folder / 'two.npy'), '--device', 'cpu',
                               '--top', '2', '--json', str(out)]) == 2
    printed, content = capsys.readouterr(), json.loads(out.read_text())
    assert [os.path.basename(entry['recording']) for entry in content['recordings']] == [
        'one.npy', 'many.npz:test_0', 'two.npy']
    parts = ('2 of 3 recordings were read with the joints unknown', '1 of 3 recordings were reduced to the 2 bodies',
             'are not of human size', f'error: {folder}/arm.npy: bodies have 20 joints', 'line 2', 'x_test has NaN')
    assert all(part in line for part, line in zip(parts, printed.err.splitlines()[1:], strict=True)), printed.err
    lines, best = printed.out.splitlines(), content['recordings'][0]['top']
    assert len(lines) == 9 and len(best) == 2 and best[0]['probability'] >= best[1]['probability']
    assert best[0]['class'] in lines[1] and f'{best[0]["probability"]:.3f}' in lines[1]


def test_csv_equals_json(classifier, tmp_path, capsys):
    np.save(tmp_path / 'a.npy', np.random.default_rng(0).normal(size=(40, 3, 5, 3)).cumsum(axis=0))
    options = ['--checkpoint', str(classifier), str(tmp_path / 'a.npy'), '--device', 'cpu']
    assert tools.predict.main([*options, '--csv', '-', '--json', str(tmp_path / 'j.json')]) == 0
    rows = list(csv.DictReader(capsys.readouterr().out.splitlines()))
    entry, = json.loads((tmp_path / 'j.json').read_text())['recordings']
    assert [[row['class'], float(row['probability'])] for row in rows] == [
        [top['class'], top['probability']] for top in entry['top']]
    assert list(rows[1].values())[:4] == [entry['recording'], '0', '40', '2']
    assert tools.predict.main([*options, '--csv', str(tmp_path / 'w.csv'), '--window', '6']) == 0
    rows = list(csv.DictReader((tmp_path / 'w.csv').read_text().splitlines()))
    assert {row['rank'] for row in rows} == {'1'} and len(rows) > 2
    assert [row['start'] for row in rows] == ['0', *(row['end'] for row in rows[:-1])] and rows[-1]['end'] == '40'


def test_a_layout_that_is_not_the_models(tmp_path, capsys):
    np.save(tmp_path / 'a.npy', np.ones((9, 25, 3)))
    (tmp_path / 'other.yaml').write_text('joints: {j0: , ' + ', '.join(f'j{i}: 0' for i in range(1, 25)) + '}')
    failure, = predict(capsys, '--checkpoint', save_model(tmp_path / 'c.pth', 25, 60, 'ntu60_xsub'), tmp_path / 'a.npy',
                       '--layout', tmp_path / 'other.yaml', code=2)['unreadable']
    assert 'has the joints other, but the model expects kinect-v2' in failure['reason']


@pytest.mark.parametrize('options, part', [
    (['nowhere.npy'], 'nowhere.npy'), (['empty'], '.skeleton'), (['README'], 'suffix'), (['--hop', '3'], '--window'),
    (['--json', '-', '--csv', '-'], 'stdout'), (['--json', 'x', '--csv', './x'], 'the file of --json'),
    (['--json', 'a.npy'], 'also an input'), (['--csv', '/dev/null'], 'not a regular file')], ids=' '.join)
def test_invalid_options_are_refused_first(options, part, classifier, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path('README').write_text('text')
    Path('empty').mkdir()
    np.save('a.npy', np.ones((4, 5, 3)))
    before = {path.name: path.is_file() and path.read_bytes() for path in tmp_path.iterdir()}
    refusal(lambda: tools.predict.main(['--checkpoint', str(classifier), 'a.npy', *options]), part)
    assert before == {path.name: path.is_file() and path.read_bytes() for path in tmp_path.iterdir()}
