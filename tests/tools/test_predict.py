"""Predictions for recordings are what evaluation says of the same clips, whatever file they come from."""

import csv
import doctest
import json
import os
import shutil
import tarfile

import numpy as np
import pytest
import torch

import main_finetune
import main_pretrain
import tools.predict
import tools.retrieval
from data import prepare_ntu, prepare_nwucla, synthesize
from data.common import one_hot, write_npz
from data.formats import read_recording
from data.formats.recording import Recording, clean
from feeder.augment import ClipMaker
from feeder.classes import find_class_names
from feeder.dataset import SkeletonDataset
from model_mamp import MAMP
from model_transformer import ActionTransformer
from tests.conftest import NUM_CLASSES, NUM_JOINTS, ROOT, refusal
from tests.data.test_formats import unpack
from tools.recognition import Recogniser
from tools.recordings import Segment, predict_clips, read_clips, sliding_windows, timeline
from util.checkpoint import Checkpoint
from util.predictions import read_features

SIZES = {'dim_feat': 16, 'depth': 1, 'num_heads': 2, 'mlp_ratio': 4., 'num_frames': 16, 't_patch_size': 4}
SHARED = os.environ.get('MAMP_SHARED', ROOT / '../shared')


def save_model(path, num_joints, num_classes=None, benchmark='mine', stream='joint', **content):
    """A checkpoint of a random classifier, or without classes of a pre-trained model, as `Trainer.save` writes it."""
    torch.manual_seed(3)
    sizes = SIZES | {'num_joints': num_joints}
    model = ActionTransformer(num_classes, 'finetune', **sizes) if num_classes else \
        MAMP(**sizes, decoder_dim_feat=16, decoder_depth=1)
    with torch.no_grad():       # or every clip would be about as likely of one class as of another
        for weight in model.parameters():
            weight.add_(torch.randn(weight.shape) * 0.2)
        if num_classes:         # nor certain to be of one
            model.head.fc2.weight.mul_(0.05)
    settings = sizes | {'stream': stream, 'benchmark': benchmark, 'num_classes': num_classes}
    Checkpoint(model.state_dict(), settings, method='MAMP', code_version='test', **content).write(path)
    return path


def evaluated(path, npz, split, num_joints, num_classes):
    """{name: probabilities} of a file's clips, each by itself through dataset, evaluation view and model."""
    state = Checkpoint.read(path)
    model = ActionTransformer(num_classes, 'finetune', **SIZES, num_joints=num_joints)
    model.load_state_dict(state.model)
    dataset, clips_of = SkeletonDataset(npz, split, num_joints), ClipMaker(16, state.args['stream'], 0)
    with torch.inference_mode():
        return {name: model.eval()(clips_of.eval_view(dataset[[(row, 0)]]))[0].softmax(0).numpy()
                for row, name in enumerate(dataset.names.tolist())}


def predicted(capsys, *options, rc=0):
    """What JSON on stdout says; every class with its probability."""
    capsys.readouterr()
    assert tools.predict.main(['--device', 'cpu', '--json', '-', '--top', '1000', *map(str, options)]) == rc
    return json.loads(capsys.readouterr().out)


def row_of(top):
    """Probabilities in the order of the labels."""
    return [one['probability'] for one in sorted(top, key=lambda one: one['label'])]


@pytest.fixture(scope='module')
def tuned(tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp('tuned')
    main_finetune.main([*tiny, '--save_scores', '--save_features', '--output_dir', str(folder)])
    return folder


def test_npz_equals_saved_scores(tuned, tiny_npz, capsys):
    entry = predicted(capsys, '--checkpoint', tuned / 'checkpoint-last.pth', tiny_npz, '--batch_size', 4)
    kept = np.load(tuned / 'scores.npz')
    found = [row_of(one['top']) for one in entry['recordings']]
    np.testing.assert_allclose(found, kept['scores'], rtol=0, atol=1e-5)
    assert np.ptp(kept['scores'], axis=0).max() > 1e-3, 'clips that differ'
    assert [one['recording'] for one in entry['recordings']] == [f'{tiny_npz}:{name}' for name in kept['name']]
    assert [one['label'] for one in entry['recordings']] == kept['label'].tolist()
    train = predicted(capsys, '--checkpoint', tuned / 'checkpoint-last.pth', tiny_npz, '--split', 'train')
    assert len(train['recordings']) == 22 and train['recordings'][0]['recording'].endswith(':train_0')


def test_features_equal_those_of_retrieval(tiny, tiny_npz, tiny_pretrain, tmp_path, capsys):
    main_pretrain.main([*tiny_pretrain, '--epochs', '1', '--output_dir', str(tmp_path / 'p')])
    given = tmp_path / 'p/checkpoint-last.pth'
    size = [word for pair in zip(tiny[::2], tiny[1::2], strict=True) for word in pair
            if pair[0] not in ('--effective_batch_size', '--lr', '--epochs')]
    tools.retrieval.main([*size, '--finetune', str(given), '--output_dir', str(tmp_path / 'r')])
    assert tools.predict.main(['--checkpoint', str(given), str(tiny_npz), '--device', 'cpu', '--features',
                              str(tmp_path / 'f.npz')]) == 0
    assert capsys.readouterr().out == ''
    (ours, facts), (theirs, _) = (read_features(path, ('test',)) for path in
                                  (tmp_path / 'f.npz', tmp_path / 'r/features.npz'))
    np.testing.assert_allclose(ours['test'].features, theirs['test'].features, rtol=0, atol=1e-5)
    for field in ('name', 'label'):
        np.testing.assert_array_equal(getattr(ours['test'], field), getattr(theirs['test'], field))
    assert facts['method'] == 'MAMP' and facts['stream'] == 'joint'


@pytest.mark.parametrize('stream', ['joint', 'bone'])
def test_raw_ntu_text_equals_saved_scores(stream, tmp_path, capsys):
    synthesize.main(['--out', str(tmp_path / 'raw'), '--clips_per_class', '4', '--classes', '2', '--workers', '1'])
    prepare_ntu.main(['--dataset', 'synth', '--raw', str(tmp_path / 'raw'), '--out', str(tmp_path), '--protocol',
                      'xsub', '--workers', '1'])
    sizes = [word for name, value in SIZES.items() for word in (f'--{name}', str(value))]
    main_finetune.main(['--data_path', str(tmp_path / 'SYNTH_XSub.npz'), *sizes, '--effective_batch_size', '2',
                        '--epochs', '1', '--lr', '1e-3', '--device', 'cpu', '--num_workers', '0', '--stream', stream,
                        '--save_scores', '--save_features', '--output_dir', str(tmp_path / 'run')])
    kept, features = np.load(tmp_path / 'run/scores.npz'), np.load(tmp_path / 'run/features.npz')
    entry = predicted(capsys, '--checkpoint', tmp_path / 'run/checkpoint-last.pth', tmp_path / 'raw', '--features',
                     tmp_path / 'f.npz', '--batch_size', 3)
    found = {os.path.basename(one['recording'])[:-9]: one for one in entry['recordings']}
    ours = np.load(tmp_path / 'f.npz')
    rows = dict(zip(ours['name_test'].tolist(), ours['features_test'], strict=True))
    assert len(found) == 8 and list(found) == sorted(found) and len(kept['name']) >= 2
    for name, label, scores, feature in zip(kept['name'].tolist(), kept['label'], kept['scores'],
                                            features['features_test'], strict=True):
        np.testing.assert_allclose(row_of(found[name]['top']), scores, rtol=0, atol=1e-5)
        np.testing.assert_allclose(rows[name], feature, rtol=0, atol=1e-5)
        assert found[name]['label'] == label
    assert {one['class'] for one in found[name]['top']} <= set(find_class_names('SYNTH_XSub', 12))


@pytest.mark.parametrize('dataset, classes', [('ntu60', 60), ('ntu120', 120)])
def test_the_second_body_is_that_of_the_data_set(dataset, classes, tmp_path):
    """Zeros, or the first one again; entry by the benchmark, as checkpoints did not always say how many bodies."""
    raw = unpack('ntu_excerpt_raw.tar.xz', tmp_path) / dataset
    prepare_ntu.main(['--dataset', dataset, '--raw', str(raw), '--out', str(tmp_path), '--protocol', 'xsub',
                      '--workers', '1'])
    npz, path = tmp_path / f'{dataset.upper()}_XSub.npz', save_model(tmp_path / 'c.pth', 25, classes, dataset + '_xsub')
    expected = evaluated(path, npz, 'train', 25, classes) if len(np.load(npz)['x_train']) else {}
    expected |= evaluated(path, npz, 'test', 25, classes) if len(np.load(npz)['x_test']) else {}
    recogniser, single = Recogniser(path, 'cpu'), 0
    for found in predict_clips(recogniser, read_clips(sorted(raw.iterdir()), recogniser), 2):
        np.testing.assert_allclose(found.scores[0], expected[found.recording.name], rtol=0, atol=1e-5)
        single += read_recording(found.recording.path).frames.shape[1] == 1
    assert single, 'one with a single actor'


def test_nwucla_json_equals_its_npz(tmp_path):
    archive = os.path.join(SHARED, 'data/nw_ucla.tar.xz')
    if not os.path.exists(archive):
        pytest.skip('no data/nw_ucla.tar.xz in MAMP_SHARED')
    folder = tmp_path / 'all_sqe'
    with tarfile.open(archive) as tar:
        for _, member in zip(range(40), (one for one in tar if one.name.endswith('.json')), strict=False):
            member.name = os.path.basename(member.name)
            tar.extract(member, folder, filter='data')
    prepare_nwucla.main(['--raw', str(folder), '--out', str(tmp_path), '--protocol', 'xview'])
    path = save_model(tmp_path / 'c.pth', 20, 10, 'nwucla_xview')
    expected = evaluated(path, tmp_path / 'NWUCLA_XView.npz', 'test', 20, 10)
    recogniser = Recogniser(path, 'cpu')
    found = {one.recording.name: one for one in predict_clips(recogniser, read_clips(sorted(folder.iterdir()), recogniser), 16)}
    assert recogniser.num_bodies == 1 and len(found) == 40 and len(expected) > 5
    for name, scores in expected.items():
        np.testing.assert_allclose(found[name].scores[0], scores, rtol=0, atol=1e-5)


def test_a_pku_video_and_a_window_of_it(tmp_path, capsys):
    """Neither is centred for a model of PKU-MMD; a window of a label's rows is the sample of that label."""
    raw = unpack('pku_excerpt_raw.tar.xz', tmp_path) / 'pku_v1/skeleton/0003-M.txt'
    rows = np.loadtxt(raw)
    rows[40:47] = 0         # nobody for a while: the clip then ends so many frames earlier, as in training
    np.savetxt(raw, rows, '%.7f')
    start = int(np.flatnonzero((rows != 0).any(axis=1))[0])
    assert start + 24 <= 40 and len(rows) > 60
    x = np.zeros((2, len(rows), 150), np.float32)
    x[0] = rows
    x[1, :24] = rows[start:start + 24]
    write_npz(tmp_path / 'v.npz', x_train=x, y_train=one_hot([0, 0], 51), x_test=x, y_test=one_hot([0, 0], 51))
    path = save_model(tmp_path / 'c.pth', 25, 51, 'pkuv1_xsub')
    whole, sample = evaluated(path, tmp_path / 'v.npz', 'test', 25, 51).values()
    assert abs(whole - sample).max() > 1e-3
    entry = predicted(capsys, '--checkpoint', path, raw)['recordings'][0]
    np.testing.assert_allclose(row_of(entry['top']), whole, rtol=0, atol=1e-5)
    entry = predicted(capsys, '--checkpoint', path, tmp_path / 'v.npz')['recordings'][0]
    np.testing.assert_allclose(row_of(entry['top']), whole, rtol=0, atol=1e-5)
    entry = predicted(capsys, '--checkpoint', path, raw, '--window', 24, '--hop', 1)['recordings'][0]
    window = next(one for one in entry['windows'] if one['start'] == start)
    np.testing.assert_allclose(row_of(window['top']), sample, rtol=0, atol=1e-5)
    assert window['end'] == start + 24 and entry['frames'] == len(rows)
    # A model of a set that is centred gets a centred video.
    other = Recogniser(save_model(tmp_path / 'o.pth', 25, 60, 'ntu60_xsub'), 'cpu')
    found, = read_clips([raw], other)
    np.testing.assert_allclose(found.frames[start, 0, 1], 0, atol=1e-6)


@pytest.mark.parametrize('frames, window, hop', [(100, 30, 7), (100, 30, None), (31, 30, 1), (64, 16, 16), (50, 9, 4),
                                                 (7, 3, 2), (5, 1, 1), (1000, 90, 45)])
def test_each_frame_belongs_to_the_nearest_window(frames, window, hop):
    places = sliding_windows(frames, window, hop)
    starts = [place.start for place in places]
    assert all(place.end - place.start == window for place in places) and starts == sorted(set(starts))
    assert starts[0] == 0 and places[-1].end == frames and max(np.diff(starts), default=0) <= (hop or window // 2)
    owner = np.concatenate([np.full(place.stop - place.begin, row) for row, place in enumerate(places)])
    assert len(owner) == frames
    middles = np.array(starts) + window / 2
    for frame, row in enumerate(owner):
        assert abs(middles - frame - 0.5).min() == abs(middles[row] - frame - 0.5)


def test_neighbours_of_one_label_are_one_segment():
    scores = np.array([[.9, .1], [.7, .3], [.2, .8], [.6, .4], [.8, .2]])
    places = sliding_windows(60, 20, 10)
    assert timeline(places, scores) == [Segment(0, 25, 0, pytest.approx(.8)), Segment(25, 35, 1, pytest.approx(.8)),
                                        Segment(35, 60, 0, pytest.approx(.7))]
    parted = timeline([places[0], places[1], places[3], places[4]], scores[[0, 1, 3, 4]])      # nobody in the third
    assert [(one.start, one.end, one.label) for one in parted] == [(0, 25, 0), (35, 60, 0)]


def test_windows_are_recordings_of_their_own(tmp_path, capsys):
    """Each is centred and predicted as if it had been recorded alone; those without a body are left out."""
    path = save_model(tmp_path / 'c.pth', 20, 10, 'nwucla_xview')
    frames = np.random.default_rng(2).normal(size=(50, 20, 3)).cumsum(axis=0)
    np.save(tmp_path / 'a.npy', frames)
    entry = predicted(capsys, '--checkpoint', path, tmp_path / 'a.npy', '--window', 20, '--hop', 15, '--features',
                     tmp_path / 'f.npz')['recordings'][0]
    recogniser = Recogniser(path, 'cpu')
    assert [(one['start'], one['end']) for one in entry['windows']] == [(0, 20), (15, 35), (30, 50)]
    for one in entry['windows']:
        np.testing.assert_allclose(row_of(one['top']), recogniser.probabilities(frames[one['start']:one['end']]),
                                   rtol=0, atol=2e-5)
    assert np.load(tmp_path / 'f.npz')['name_test'].tolist() == ['a[0:20]', 'a[15:35]', 'a[30:50]']
    assert 'label_test' not in np.load(tmp_path / 'f.npz')
    empty = np.concatenate([frames, np.zeros((60, 20, 3)), frames])[:, None].astype(np.float32)
    found, = predict_clips(recogniser, [Recording(path, empty, None)], 3, 20, 20)
    assert [place.start for place in found.windows] == [0, 20, 40, 100, 120, 140]


@pytest.fixture(scope='module')
def classifier(tmp_path_factory):
    """A classifier of two bodies of five joints, whose class names its data entry."""
    names = ['sit', 'stand', 'wave "hi", ']
    return save_model(tmp_path_factory.mktemp('mine') / 'c.pth', 5, 3, bodies=2, class_names=names)


def test_the_example_in_the_documentation(classifier):
    done = doctest.testmod(tools.recognition, extraglobs={'checkpoint': str(classifier), 'np': np})
    assert done.attempted >= 6 and not done.failed


def test_arrays_of_every_shape(classifier):
    recogniser, rng = Recogniser(classifier, 'cpu'), np.random.default_rng(1)
    one, two = rng.normal(size=(40, 5, 3)), rng.normal(size=(9, 2, 5, 3))
    both = recogniser.probabilities([one, two, one[:1]], batch_size=2)
    assert both.shape == (3, 3) and both.dtype == np.float32 and recogniser.features([one]).shape == (1, 16)
    np.testing.assert_allclose(both.sum(axis=1), 1, atol=1e-6)
    for row, frames in zip(both, (one, two, one[:1]), strict=True):
        np.testing.assert_allclose(recogniser.probabilities(frames), row, atol=1e-6)
    alike = [one[:, None], np.stack([one, np.zeros_like(one)], 1), one + 3, one.tolist(),
             np.insert(one, 7, 0, axis=0), clean(one[:, None], None)]
    for frames, row in zip(alike, recogniser.probabilities(alike), strict=True):
        np.testing.assert_allclose(row, both[0], atol=1e-5, err_msg=str(np.shape(frames)))
    assert abs(recogniser.probabilities(one[::-1].copy()) - both[0]).max() > 1e-4, 'it looks at the clip'


def test_of_too_many_bodies_those_that_move_most_stay(classifier):
    recogniser, rng = Recogniser(classifier, 'cpu'), np.random.default_rng(1)
    bodies = rng.normal(size=(30, 4, 5, 3)) * np.array([1, .1, 0, 3])[:, None, None]
    bodies[:15, 1] += 9
    bodies[15:, 1:] = 0     # two leave: where they are not they do not move either
    recogniser.centre = False
    np.testing.assert_array_equal(recogniser.fit_bodies(bodies), bodies[:, [0, 3]])
    assert recogniser.fit_bodies(bodies[:, :1]).shape == (30, 2, 5, 3)


@pytest.mark.parametrize('entry, benchmark, classes, centre, scale, repeats', [
    (None, 'pku1_xsub', 51, False, 1, False), (None, 'ntu120_xsub', 120, True, 1, True),
    (None, 'mine', 51, True, 1, False),
    (None, 'mine', 120, True, 1, False), (None, 'pku_like', 9, True, 1, False),
    ({'centre': True, 'scale': .01}, 'pku1_xsub', 51, True, .01, False),
    ({'centre': False, 'scale': 1.}, 'mine', 120, False, 1, False)])
def test_how_recordings_were_prepared(entry, benchmark, classes, centre, scale, repeats, tmp_path):
    """What a checkpoint says; or what is known of its benchmark; a number of classes tells of the authors' only."""
    more = {} if entry is None else {'preparation': entry}
    recogniser = Recogniser(save_model(tmp_path / 'c.pth', 25, classes, benchmark, **more), 'cpu')
    assert (recogniser.centre, recogniser.scale, recogniser.repeats_body) == (centre, scale, repeats)


@pytest.mark.parametrize('frames, naming', [
    (np.ones((4, 7, 3)), '(4, 7, 3)'), (np.ones((4, 5)), '(T, 5, 3)'), (np.zeros((4, 5, 3)), 'zero'),
    (np.full((4, 5, 3), np.nan), 'frame 0'), ([np.ones((4, 5, 3)), np.ones((0, 5, 3))], 'recording 1'), ([], 'list')],
    ids=str)
def test_arrays_that_are_refused(frames, naming, classifier):
    refusal(lambda: Recogniser(classifier, 'cpu').probabilities(frames), naming)


def test_training_writes_class_names_and_bodies_into_checkpoints(tiny, tiny_npz, tmp_path):
    data = tmp_path / 'mine.npz'
    data.symlink_to(tiny_npz)
    names = [f'act {i}' for i in range(NUM_CLASSES)]
    (tmp_path / 'mine_about.json').write_text(json.dumps({'classes': names, 'centre': False, 'scale': 0.5}))
    options = [word if word != str(tiny_npz) else str(data) for word in tiny]
    main_finetune.main([*options, '--epochs', '1', '--output_dir', str(tmp_path / 'run')])
    data.unlink()
    recogniser = Recogniser(tmp_path / 'run/checkpoint-last.pth', 'cpu')
    assert recogniser.class_names == names and recogniser.num_bodies == 2 and recogniser.num_joints == NUM_JOINTS
    assert not recogniser.centre and recogniser.scale == 0.5


def test_a_pretrained_model_has_features_and_no_labels(tmp_path):
    path = save_model(tmp_path / 'c.pth', 5, None)
    np.save(tmp_path / 'a.npy', np.random.default_rng(0).normal(size=(9, 5, 3)))
    for options in ([], ['--features', str(tmp_path / 'f.npz'), '--json', str(tmp_path / 'j.json')]):
        refusal(lambda options=options: tools.predict.main(['--checkpoint', str(path), str(tmp_path / 'a.npy'),
                                                           *options]), path, 'pre-training', '--features')
    assert not (tmp_path / 'j.json').exists() and not (tmp_path / 'f.npz').exists()
    recogniser = Recogniser(path, 'cpu')
    assert recogniser.class_names is None and recogniser.features(np.ones((3, 5, 3))).shape == (16,)
    refusal(lambda: recogniser.probabilities(np.ones((3, 5, 3))), 'has no classes')


@pytest.fixture
def folder(tmp_path):
    """Two good recordings, below each other; one that is damaged, one of other joints, and a text nobody asked for."""
    rng, folder = np.random.default_rng(0), tmp_path / 'in'
    (folder / 'b').mkdir(parents=True)
    np.save(folder / 'b/one.npy', rng.normal(size=(12, 5, 3)))
    np.save(folder / 'two.npy', rng.normal(size=(40, 3, 5, 3)).cumsum(axis=0))
    np.save(folder / 'arm.npy', rng.normal(size=(15, 20, 3)))
    (folder / 'cut.skeleton').write_text('1\n1\n')
    (folder / 'README.md').write_text('not a recording')
    return folder


@pytest.mark.parametrize('options, naming', [
    (['in/two.npy', '--json', 'mine.pth'], 'is also an input (mine.pth)'), (['in', '--csv', 'in/two.npy'], 'is also an input'),
    (['in/two.npy', '--csv', 'in/../in/two.npy'], 'is also an input'), (['in', '--json', 'in/new.json'], 'are read'),
    (['in/two.npy', '--json', 'x', '--csv', './x'], 'the file of --json'), (['in/two.npy', '--csv', '/dev/null'], 'not a regular file')],
    ids=str)
def test_no_output_takes_the_place_of_an_input(options, naming, folder, classifier, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copy(classifier, 'mine.pth')
    before = {path: path.read_bytes() for path in (tmp_path / 'mine.pth', folder / 'two.npy')}
    refusal(lambda: tools.predict.main(['--checkpoint', 'mine.pth', *options]), naming)
    assert all(path.read_bytes() == content for path, content in before.items())
    assert sorted(os.listdir()) == ['in', 'mine.pth']


def test_a_folder_with_bad_files(folder, classifier, tmp_path, capsys):
    """The good are predicted, the others listed at the end on stderr, a line each."""
    out = tmp_path / 'out.json'
    assert tools.predict.main(['--checkpoint', str(classifier), str(folder), str(folder / 'two.npy'), '--device', 'cpu',
                              '--top', '2', '--json', str(out)]) == 2
    done = capsys.readouterr()
    entry, lines = json.loads(out.read_text()), done.err.splitlines()
    assert [os.path.basename(one['recording']) for one in entry['recordings']] == [
        'one.npy', 'two.npy']
    assert lines[0].startswith('2 clips: ') and len(lines) == 4
    assert '1 of 2 recordings have bodies of no human size' in lines.pop(1)
    assert lines[1].startswith('error: ') and 'arm.npy: bodies have 20 joints (kinect-v1), the model expects 5 joints;' in \
        lines[1]
    assert 'cut.skeleton' in lines[2] and 'line 2' in lines[2] and lines[2].count('cut.skeleton') == 1
    assert [os.path.basename(one['file']) for one in entry['unreadable']] == ['arm.npy', 'cut.skeleton']
    shown = done.out.splitlines()
    assert len(shown) == 6 and shown[0] == f'{folder / "b/one.npy"} (12 frames)'
    best = entry['recordings'][0]['top']
    assert shown[1:3] == [f'    {rank}  {one["probability"]:.3f}  {one["class"]}' for rank, one in enumerate(best, 1)]
    assert best[0]['probability'] >= best[1]['probability'] and len(best) == 2


def test_csv_tells_the_same_as_json(folder, classifier, tmp_path, capsys):
    files = ['--checkpoint', str(classifier), str(folder / 'two.npy'), str(folder / 'b'), '--device', 'cpu']
    assert tools.predict.main([*files, '--csv', '-', '--json', str(tmp_path / 'j.json')]) == 0
    table, entry = capsys.readouterr().out, json.loads((tmp_path / 'j.json').read_text())
    rows = list(csv.DictReader(table.splitlines(keepends=True)))
    flat = [(one['recording'], '0', str(one['frames']), str(rank), top['class'], top['probability'])
            for one in entry['recordings'] for rank, top in enumerate(one['top'], 1)]
    assert len(rows) == 6 and flat == [(row['recording'], row['start'], row['end'], row['rank'], row['class'],
                                        float(row['probability'])) for row in rows]
    assert {row['class'] for row in rows} == {'sit', 'stand', 'wave "hi", '}
    assert tools.predict.main([*files, '--csv', str(tmp_path / 'w.csv'), '--window', '6']) == 0
    assert ' to 40 ' in capsys.readouterr().out
    with open(tmp_path / 'w.csv', newline='') as file:
        rows = list(csv.DictReader(file))
    assert rows[0]['start'] == '0' and {row['rank'] for row in rows} == {'1'} and len(rows) > 2
    for one, other in zip(rows, rows[1:], strict=False):
        assert other['start'] == (one['end'] if one['recording'] == other['recording'] else '0')


def test_a_damaged_clip_of_an_npz_is_named_and_the_others_predicted(classifier, tmp_path, capsys):
    x = np.random.default_rng(0).normal(size=(3, 8, 30)).astype(np.float32)
    x[1, 2, 3] = np.nan
    write_npz(tmp_path / 'a.npz', x_train=x, y_train=one_hot([0, 1, 2], 3), x_test=x, y_test=one_hot([0, 1, 2], 3))
    entry = predicted(capsys, '--checkpoint', classifier, tmp_path / 'a.npz', rc=2)
    assert [one['recording'][-6:] for one in entry['recordings']] == ['test_0', 'test_2']
    assert 'clip 1 of x_test' in entry['unreadable'][0]['reason']


def test_joints_of_another_layout(classifier, tmp_path, capsys):
    model = save_model(tmp_path / 'c.pth', 25, 60, 'ntu60_xsub')
    write_npz(tmp_path / 'a.npz', x_test=np.ones((2, 8, 60), np.float32), y_test=one_hot([0, 1], 10))
    np.save(tmp_path / 'a.npy', np.random.default_rng(0).normal(size=(9, 25, 3)))
    (tmp_path / 'other.yaml').write_text('joints: {j0: , ' + ', '.join(f'j{i}: 0' for i in range(1, 25)) + '}')
    entry = predicted(capsys, '--checkpoint', model, tmp_path / 'a.npz', rc=2)
    assert 'bodies have 20 joints (kinect-v1), the model expects 25 joints (kinect-v2)' in entry['unreadable'][0]['reason']
    entry = predicted(capsys, '--checkpoint', model, tmp_path / 'a.npy', '--layout', tmp_path / 'other.yaml', rc=2)
    assert 'bodies have 25 joints (other), the model expects 25 joints (kinect-v2)' in entry['unreadable'][0]['reason']
    assert predicted(capsys, '--checkpoint', model, tmp_path / 'a.npy', '--layout', 'kinect-v2')['recordings']


@pytest.mark.parametrize('options, naming', [
    (['nowhere.npy'], 'nowhere.npy'), (['.'], '.skeleton'), (['README'], 'suffix'), (['--format', 'x'], "'x'"),
    (['--hop', '3'], '--window'), (['--window', '3', '--hop', '4'], '--hop 4'), (['--window', '0'], '>= 1'),
    (['--json', '-', '--csv', '-'], 'stdout'), (['--json', 'x', '--csv', 'x'], '--csv x'), (['--json', '.'], 'folder'),
    (['--features', 'README/x.npz'], 'README'), (['--layout', 'nowhere'], 'nowhere'), (['--json', 'a.npy'], 'is also an input'),
    (['--device', 'abacus'], 'abacus'), (['--scale', '0'], '> 0')], ids=' '.join)
def test_what_is_refused_before_anything_is_predicted(options, naming, classifier, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'README').write_text('text')
    given = []
    if options[0].startswith('--'):
        np.save(tmp_path / 'a.npy', np.ones((4, 5, 3)))
        given = ['a.npy']
    refusal(lambda: tools.predict.main(['--checkpoint', str(classifier), *given, *options]), naming)
    assert capsys.readouterr().out == '' and sorted(os.listdir()) == sorted(['README', *given])
