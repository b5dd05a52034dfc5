"""Pictures of clips: what they show, and the data of the page (see test_page.py for the page in a browser)."""

import io
import json
import math
import re
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from PIL import Image, ImageSequence
from scipy.stats import pearsonr
from sklearn.metrics import r2_score

import tools.visualize
from data.dataset_file import one_hot, write_npz
from feeder.layouts import default_layout
from model_mamp import MAMP
from tests.conftest import refusal, train
from tools.drawing import analysis, pictures
from tools.drawing.animation import animate
from util.checkpoint import LAST
from util.weights import rebuild_model

SIZES = {'dim_feat': 16, 'depth': 2, 'num_heads': 2, 'num_frames': 8, 'num_joints': 20}
SETTINGS = {'mask_ratio': 0.5, 'motion_stride': 1, 'motion_aware_tau': 0.8, 'stream': 'joint', 'benchmark': 'nwucla'}


def a_clip(bodies: int = 1) -> analysis.Clip:
    torch.manual_seed(0)
    joints = torch.randn(1, 3, 8, 20, bodies).cumsum(2)
    return analysis.Clip(joints, joints, 'a clip', None, default_layout(20))


def analyse(checkpoint: Path, row: int) -> analysis.ClipAnalysis:
    model, loaded = rebuild_model(checkpoint)
    clip = analysis.load_clip(loaded.args['data_path'], 'test', row, loaded.args, default_layout(20))
    return analysis.analyse_clip(model, loaded.args, clip)


def a_model(**changes) -> MAMP:
    torch.manual_seed(0)
    return MAMP(**SIZES | {'decoder_dim_feat': 16, 'decoder_depth': 1} | changes).eval()


def colour_share(image: np.ndarray, colour: str) -> float:
    """Of the pixels (H, W, 3) of 0 to 255."""
    return float((np.abs(image.astype(int) - 255 * np.array(to_rgb(colour))).max(-1) < 12).mean())


@pytest.mark.parametrize('changes', [{}, {'norm_skes_loss': False}, {'target': 'joint'}])
def test_a_perfect_prediction_is_drawn_as_the_truth(changes):
    """Undoing the normalisation with the truth's own mean and spread must give the true motion back."""
    model, clip = a_model(**changes), a_clip(2)
    bodies = model.fold_bodies(clip.stream)
    model.forward_decoder = lambda latent, ids_restore: model.prediction_target(bodies, 1)
    found = analysis.analyse_clip(model, SETTINGS, clip, body=1).prediction
    np.testing.assert_allclose(found.pred, found.true, atol=1e-5)
    joints = clip.joints[0, ..., 1].permute(1, 2, 0).numpy()
    expected = joints if changes.get('target') == 'joint' else np.diff(joints, axis=0, append=joints[-1:])
    np.testing.assert_allclose(found.true, expected, atol=1e-6)
    assert found.metrics['loss'] < 1e-10 and found.metrics['r2'] == pytest.approx(1)


def test_the_figures_of_a_clip_are_the_models_loss_and_other_libraries_scores():
    model, clip, state = a_model(), a_clip(), torch.get_rng_state()
    looked = analysis.analyse_clip(model, SETTINGS, clip, seed=3)
    assert torch.equal(state, torch.get_rng_state()), 'training goes on with its own random numbers'
    uniform = torch.rand(1, 40, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        loss, pred, mask = model(clip.stream, 0.5, 1, 0.8, uniform)
    numbers, hidden = looked.prediction.metrics, mask[0] == 1
    np.testing.assert_array_equal(looked.prediction.masked.ravel(), hidden.numpy())
    true = model.prediction_target(model.fold_bodies(clip.stream), 1)[0][hidden].double().numpy().ravel()
    said = pred[0][hidden].double().numpy().ravel()
    assert numbers == pytest.approx({
        'loss': loss.item(), 'loss_zero': sum(value ** 2 for value in true) / len(true), 'masked': 0.5,
        'loss_mean': sum((value - true.mean()) ** 2 for value in true) / len(true), 'r2': r2_score(true, said),
        'r': pearsonr(true, said).statistic}, rel=1e-5)


def test_attention_is_what_the_chosen_query_head_and_block_compute_with():
    """Against loops in float64 over queries and keys of the second block."""
    model, clip = a_model(), a_clip(2)
    bodies = clip.stream[0].permute(3, 1, 2, 0)
    with torch.no_grad():
        first, weights, own = *(model.attention(bodies, block).numpy() for block in (0, 1)), model.blocks[1]
        q, k, _ = own.attn.qkv(own.norm1(model.blocks[0](model.embed(bodies))))[1].double().numpy().reshape(
            40, 3, 2, 8).transpose(1, 2, 0, 3)                                              # (3, H, L, E) of body 1
    for i in (0, 17, 39):
        scores = [math.exp(sum(a * b for a, b in zip(q[1, i], key, strict=True)) / math.sqrt(8)) for key in k[1]]
        np.testing.assert_allclose(weights[1, 1, i], np.array(scores) / sum(scores), rtol=1e-4)
    for options, expected in (({'head': 1, 'query': (7, 1)}, first[1, 1, 1 * 20 + 7]), ({}, first[1].mean((0, 1)))):
        looked = analysis.analyse_clip(model, SETTINGS, clip, body=1, block=0, **options).attention
        np.testing.assert_allclose(looked.weight.ravel(), expected * 40, rtol=1e-5)


@pytest.mark.parametrize('target', ['motion', 'joint'])
def test_the_animation_shows_each_frame_and_what_is_hidden(target):
    content = animate(analysis.analyse_clip(a_model(target=target), SETTINGS, a_clip()), most=4)
    film = Image.open(io.BytesIO(content))
    assert film.format == 'GIF' and film.n_frames == 4 and len(content) < 200_000, 'every other of 8 frames'
    images = [np.asarray(frame.convert('RGB')) for frame in ImageSequence.Iterator(film)]
    assert all(not np.array_equal(one, other) for one, other in pairwise(images))
    left, right = np.split(images[1][:380], 2, axis=1)
    for image, colour in ((left, pictures.VISIBLE), (right, pictures.PREDICTED), (images[1], pictures.MASKED),
                          (images[1], pictures.TRUE)):
        assert colour_share(image, colour) > 2e-4
    assert not colour_share(left, pictures.PREDICTED) and not colour_share(right, pictures.VISIBLE)


@pytest.fixture(scope='module')
def runs(tiny, tiny_pretrain, tmp_path_factory) -> Path:
    """A pre-trained model and a fine-tuned one, for synthetic Kinect-v1 clips, since pictures name joints."""
    folder = tmp_path_factory.mktemp('pictures')
    x = np.random.default_rng(0).normal(size=(4, 20, 60)).astype(np.float32).cumsum(1)
    y = one_hot([0, 1, 0, 1], 2)
    write_npz(folder / 'D.npz', x_train=x, y_train=y, x_test=x, y_test=y, name_test=np.array(['<i>a</i>', *'bcd']))
    for stage, options in (('pretrain', tiny_pretrain), ('finetune', tiny)):
        train(stage, [*options, '--data_path', str(folder / 'D.npz'), '--num_joints', '20', '--num_frames', '8',
                      '--depth', '1', '--epochs', '1'], folder / stage)
    return folder


def page_data(page: Path) -> dict:
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', page.read_text(), re.S)[1])


def test_picture_animation_and_page_of_a_clip(runs):
    page = runs / 'c.html'
    assert tools.visualize.main(['--checkpoint', str(runs / 'pretrain' / LAST), '--clip', '0', '--out',
                                str(runs / 'c.png'), '--gif', str(runs / 'c.gif'), '--html', str(page),
                                '--query', 'right hand', '1', '--block', '0', '--head', '1']) == 0
    assert not re.search('https?:|@import|<(link|iframe|object|img)', page.read_text())
    data, numbers = page_data(page), analyse(runs / 'pretrain' / LAST, 0).prediction.metrics
    assert '<i>' not in re.sub(r'innerHTML.*', '', page.read_text()), 'names of clips are text, not tags'
    assert data['start'] == {'block': 0, 'head': 1, 'body': 0, 'map': 'attention', 'query': {'joint': 11, 'segment': 1},
                             'frame': 6}
    mask = data['scenes'][0]['masks'][0]
    assert '(<i>a</i>)' in data['scenes'][0]['title'] and mask['metrics'] == pytest.approx(
        {name: value for name, value in numbers.items() if name != 'masked'}, rel=1e-5)
    assert f'{numbers["loss"]:.3g}' in mask['quality'] and '20 of 40 joint-segments (50 %)' in mask['text']
    with Image.open(runs / 'c.png') as image, Image.open(runs / 'c.gif') as film:
        assert np.asarray(image.convert('RGB')).std() > 12 and film.format == 'GIF' and film.n_frames == 8


def test_a_classifier_names_the_action_and_refuses_to_animate(runs):
    checkpoint = str(runs / 'finetune' / LAST)
    assert tools.visualize.main(['--checkpoint', checkpoint, '--clip', '1', '--html', str(runs / 'f.html')]) == 0
    looked, (scene,) = analyse(checkpoint, 1), page_data(runs / 'f.html')['scenes']
    assert looked.prediction is None and 'masks' not in scene and scene['classes'] == ['class 0', 'class 1']
    best = looked.classes.argmax()
    assert scene['label'] == 1
    assert scene['windows'][0]['top'][0] == [best, pytest.approx(looked.classes[best], abs=1e-4)]
    refusal(lambda: tools.visualize.main(['--checkpoint', checkpoint, '--gif', str(runs / 'f.gif')]),
            '--gif', 'fine-tuning', 'predicts no motion', '--html')


def test_what_is_not_there_cannot_be_looked_at_and_nothing_is_written(runs):
    options = ['--checkpoint', str(runs / 'pretrain' / LAST), '--out', str(runs / 'no.png')]
    for more, part in ((['--clip', '0', '4'], '0 to 3'), (['--head', '2'], '0 to 1'),
                       (['--query', 'tail', '0'], 'right hand'), (['--query', 'head', '2'], '--query 2')):
        refusal(lambda more=more: tools.visualize.main([*options, *more]), part)
    assert not list(runs.glob('no*'))


def test_a_recording_is_looked_at_as_its_clip_in_an_npz_is(runs, monkeypatch):
    """The walk of a body whose spine begins at the origin, in a file of its own and as a row of the data."""
    rows = np.random.default_rng(1).normal(size=(20, 20, 3)).astype(np.float32).cumsum(0)
    rows -= rows[0, 1]
    np.save(runs / 'walk.npy', rows)
    write_npz(runs / 'W.npz', x_test=np.stack([rows[::-1], rows]).reshape(2, 20, 60), y_test=one_hot([0, 1], 2))
    drawn = []
    monkeypatch.setattr(pictures, 'overview', lambda looked: drawn.append(looked) or Figure((1, 1)))
    options = ['--checkpoint', str(runs / 'pretrain' / LAST), '--out', str(runs / 'raw.png'), '--data_path']
    tools.visualize.main([*options, str(runs / 'walk.npy')])
    tools.visualize.main([*options, str(runs / 'W.npz'), '--clip', '1', '0', '--split', 'test'])
    assert {path.name for path in runs.glob('raw*')} == {'raw.png', 'raw-1.png', 'raw-0.png'}, 'a picture for each clip'
    raw, row, _ = drawn
    assert torch.equal(raw.clip.stream, row.clip.stream) and raw.clip.title == 'walk.npy'
    assert np.array_equal(raw.prediction.pred, row.prediction.pred)
    refusal(lambda: tools.visualize.main([*options, str(runs / 'walk.npy'), '--clip', '1']), '--clip 1', '0 to 0')
    np.save(runs / 'odd.npy', rows[:, :5])
    refusal(lambda: tools.visualize.main([*options, str(runs / 'odd.npy')]), 'odd.npy', '5 joints')
