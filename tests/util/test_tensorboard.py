"""TensorBoard: pictures, gradient norm, throughput, hyperparameters, features; they change no weight."""


import math
from pathlib import Path

import numpy as np
import pytest
import torch
from google.protobuf import text_format
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
from tensorboard.plugins.projector.projector_config_pb2 import ProjectorConfig

import engine_pretrain
import main_linprobe
import main_pretrain
import tools.retrieval
from data.dataset_file import one_hot, write_npz
from tests.conftest import NUM_TEST, read_result, read_weights
from tools.drawing import pictures


def read_events(folder: Path) -> EventAccumulator:
    """Everything TensorBoard reads in one run's folder."""
    return EventAccumulator(str(folder), size_guidance={'scalars': 0, 'images': 0}).Reload()


def scalars(folder: Path, tag: str) -> dict[int, float]:
    return {event.step: event.value for event in read_events(folder).Scalars(tag)}


@pytest.fixture(scope='module')
def kinect(tmp_path_factory) -> list[str]:
    """Options with which a tiny model pre-trains for two epochs of two steps on clips whose joints have names."""
    data = tmp_path_factory.mktemp('kinect') / 'D.npz'
    x = np.random.default_rng(0).normal(size=(4, 20, 60)).astype(np.float32).cumsum(1)
    write_npz(data, x_train=x, y_train=one_hot([0, 1, 0, 1], 2), x_test=x, y_test=one_hot([0, 1, 0, 1], 2))
    return ['--data_path', str(data), '--num_joints', '20', '--num_frames', '8', '--dim_feat', '16', '--depth', '1',
            '--num_heads', '2', '--effective_batch_size', '2', '--epochs', '2', '--lr', '1e-3', '--num_workers', '0',
            '--device', 'cpu', '--decoder_dim_feat', '16', '--decoder_depth', '1', '--mask_ratio', '0.5']


def test_pictures_are_logged_and_change_no_weight(kinect, tmp_path):
    main_pretrain.main([*kinect, '--epochs', '3', '--picture_epochs', '2', '--output_dir', str(tmp_path / 'with')])
    main_pretrain.main([*kinect, '--epochs', '3', '--output_dir', str(tmp_path / 'without')])
    one, other = read_weights(tmp_path / 'with'), read_weights(tmp_path / 'without')
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
    drawn = read_events(tmp_path / 'with').Images('pictures/clip')
    assert [image.step for image in drawn] == [4, 6], 'every second epoch, and after the last one'
    assert drawn[0].width == pictures.WIDTH * pictures.DPI and drawn[0].encoded_image_string[1:4] == b'PNG'
    assert not read_events(tmp_path / 'without').Tags()['images']
    assert len(list((tmp_path / 'with').glob('events.*'))) == len(list((tmp_path / 'without').glob('events.*')))


def test_no_picture_is_worth_a_run(kinect, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(pictures, 'overview', lambda found: 1 / 0)
    main_pretrain.main([*kinect, '--picture_epochs', '1', '--output_dir', str(tmp_path / 'o')])
    assert (tmp_path / 'o/result.json').exists()
    assert 'no picture in epoch 0: ZeroDivisionError' in capsys.readouterr().err


@pytest.mark.parametrize('clipped', [[], ['--clip_grad', '0.01']], ids=['free', 'clipped'])
def test_the_gradient_norm_is_that_of_the_step_before_clipping(clipped, tiny_pretrain, tmp_path, monkeypatch):
    norms, clip_gradients = [], engine_pretrain.clip_gradients

    def spy(model, max_norm):
        norms.append(math.sqrt(sum(float((weight.grad.double() ** 2).sum()) for weight in model.parameters())))
        return clip_gradients(model, max_norm)

    monkeypatch.setattr(engine_pretrain, 'clip_gradients', spy)
    main_pretrain.main([*tiny_pretrain, *clipped, '--log_steps', '2', '--output_dir', str(tmp_path)])
    assert len(norms) == 10 and min(norms) > 0.01
    logged = scalars(tmp_path, 'train/grad_norm')
    assert logged == pytest.approx({step: norms[step - 1] for step in (2, 4, 5, 7, 9, 10)}, rel=1e-5)
    for tag in ('train/loss', 'train/lr', 'train/clips_per_s'):
        assert list(scalars(tmp_path, tag)) == list(logged), tag
    assert min(scalars(tmp_path, 'train/clips_per_s').values()) > 0
    assert {'epoch/train_loss', 'epoch/clips_per_s', 'epoch/lr'} <= set(read_events(tmp_path).Tags()['scalars'])


def test_settings_and_outcome_belong_to_the_run_itself(tiny, tmp_path):
    main_linprobe.main([*tiny, '--random_encoder', '--seed', '3', '--output_dir', str(tmp_path)])
    assert not [path for path in tmp_path.iterdir() if path.is_dir()], 'no second run beside it'
    result, events = read_result(tmp_path), read_events(tmp_path)
    content = events.summary_metadata['_hparams_/session_start_info'].plugin_data.content
    settings = HParamsPluginData.FromString(content).session_start_info.hparams
    assert settings['lr'].number_value == 1e-3 and settings['seed'].number_value == 3
    assert settings['protocol'].string_value == 'linprobe' and settings['method'].string_value == 'random encoder'
    assert not {'output_dir', 'log_dir', 'config', 'num_workers'} & set(settings)
    for name, value in (('test_top1', result['last']['top1']), ('train_loss', result['train_loss'])):
        assert scalars(tmp_path, f'outcome/{name}') == {10: pytest.approx(value, rel=1e-5)}
        content = events.summary_metadata['_hparams_/experiment'].plugin_data.content
        assert f'outcome/{name}' in {info.name.tag for info in
                                     HParamsPluginData.FromString(content).experiment.metric_infos}


@pytest.mark.parametrize('stage', ['linprobe', 'retrieval'])
def test_the_projector_reads_the_test_clips_features(stage, tiny, tmp_path):
    options = [*tiny, '--random_encoder', '--projector', '7', '--output_dir', str(tmp_path)]
    if stage == 'linprobe':
        main_linprobe.main([*options, '--epochs', '1', '--save_features'])
    else:
        for name in ('--effective_batch_size', '--lr', '--epochs'):
            del options[options.index(name):options.index(name) + 2]
        tools.retrieval.main([*options, '--batch_size', '4'])
    config = text_format.Parse((tmp_path / 'projector_config.pbtxt').read_text(), ProjectorConfig()).embeddings[0]
    shown = np.loadtxt(tmp_path / config.tensor_path, delimiter='\t')
    labels = [line.split('\t') for line in (tmp_path / config.metadata_path).read_text().splitlines()]
    assert shown.shape == (7, 16) and labels[0] == ['class', 'clip'] and len(labels) == 8
    with np.load(tmp_path / 'features.npz') as events:
        assert len(events['label_test']) == NUM_TEST
        for row, (action, name) in zip(shown, labels[1:], strict=True):
            own = int(np.flatnonzero(events['name_test'] == name)[0])
            np.testing.assert_allclose(row, events['features_test'][own], rtol=1e-5)
            assert action == f'class {events["label_test"][own]}'
