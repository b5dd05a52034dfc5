"""TensorBoard: pictures, gradient norm, throughput, hyperparameters, features; they change no weight."""

import math
from pathlib import Path

import numpy as np
import pytest
from google.protobuf import text_format
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
from tensorboard.plugins.projector.projector_config_pb2 import ProjectorConfig

import engine_pretrain
import tools.retrieval
from data.dataset_file import write_npz
from tests.conftest import NUM_TEST, check_same_run, read_lines, read_result, train
from tools.drawing import pictures


def read_events(folder: Path) -> EventAccumulator:
    """Everything TensorBoard reads in one run's folder."""
    return EventAccumulator(str(folder), size_guidance={'scalars': 0, 'images': 0}).Reload()


def scalars(folder: Path, tag: str) -> dict[int, float]:
    return {event.step: event.value for event in read_events(folder).Scalars(tag)}


def test_pictures_are_logged_change_no_weight_and_end_no_run(tiny_pretrain, tmp_path, monkeypatch, capsys):
    x = np.random.default_rng(0).normal(size=(4, 20, 60)).astype(np.float32).cumsum(1)
    write_npz(tmp_path / 'D.npz', x_train=x, y_train=np.eye(4), x_test=x, y_test=np.eye(4))
    kinect = [*tiny_pretrain, '--data_path', str(tmp_path / 'D.npz'), '--num_joints', '20', '--epochs', '3']
    train('pretrain', kinect, tmp_path / 'with', '--picture_epochs', '2')
    train('pretrain', kinect, tmp_path / 'without')
    check_same_run(tmp_path / 'with', tmp_path / 'without')
    drawn = read_events(tmp_path / 'with').Images('pictures/clip')
    assert [image.step for image in drawn] == [2, 3], 'every second epoch, and after the last one'
    assert not read_events(tmp_path / 'without').Tags()['images']
    monkeypatch.setattr(pictures, 'overview', lambda found: 1 / 0)
    train('pretrain', kinect, tmp_path / 'failed', '--picture_epochs', '1')
    assert (tmp_path / 'failed/result.json').exists()
    assert 'no picture in epoch 0: ZeroDivisionError' in capsys.readouterr().err


def test_losses_and_gradient_norms_before_clipping_are_logged_every_few_steps(tiny_pretrain, tmp_path, monkeypatch):
    norms, clip_gradients = [], engine_pretrain.clip_gradients

    def spy(model, max_norm):
        norms.append(math.sqrt(sum(float((weight.grad.double() ** 2).sum()) for weight in model.parameters())))
        return clip_gradients(model, max_norm)

    monkeypatch.setattr(engine_pretrain, 'clip_gradients', spy)
    train('pretrain', tiny_pretrain, tmp_path, '--clip_grad', '0.01', '--log_steps', '2')
    assert len(norms) == 10 and min(norms) > 0.01
    logged = scalars(tmp_path, 'train/grad_norm')
    assert logged == pytest.approx({step: norms[step - 1] for step in (2, 4, 5, 7, 9, 10)}, rel=1e-5)
    losses = scalars(tmp_path, 'train/loss')        # means of the steps since the last time
    assert (2 * losses[2] + 2 * losses[4] + losses[5]) / 5 == pytest.approx(read_lines(tmp_path)[0]['train_loss'])
    for tag in ('train/loss', 'train/lr', 'train/clips_per_s'):
        assert list(scalars(tmp_path, tag)) == list(logged), tag
    assert {'epoch/train_loss', 'epoch/clips_per_s', 'epoch/lr'} <= set(read_events(tmp_path).Tags()['scalars'])


def test_settings_and_outcome_belong_to_the_run_itself(tiny, tmp_path):
    train('linprobe', [*tiny, '--random_encoder', '--seed', '3'], tmp_path)
    result, events = read_result(tmp_path), read_events(tmp_path)
    content = events.summary_metadata['_hparams_/session_start_info'].plugin_data.content
    settings = HParamsPluginData.FromString(content).session_start_info.hparams
    assert settings['lr'].number_value == 1e-3 and settings['seed'].number_value == 3
    assert settings['protocol'].string_value == 'linprobe' and settings['method'].string_value == 'random encoder'
    content = events.summary_metadata['_hparams_/experiment'].plugin_data.content
    listed = {info.name.tag for info in HParamsPluginData.FromString(content).experiment.metric_infos}
    for name, value in (('test_top1', result['last']['top1']), ('train_loss', result['train_loss'])):
        assert scalars(tmp_path, f'outcome/{name}') == {10: pytest.approx(value, rel=1e-5)}
        assert f'outcome/{name}' in listed


@pytest.mark.parametrize('stage', ['linprobe', 'retrieval'])
def test_the_projector_reads_the_test_clips_features(stage, tiny, tmp_path):
    options = [*tiny, '--random_encoder', '--projector', '7']
    if stage == 'linprobe':
        train('linprobe', options, tmp_path, '--epochs', '1', '--save_features')
    else:
        for name in ('--effective_batch_size', '--lr', '--epochs'):
            del options[options.index(name):options.index(name) + 2]
        tools.retrieval.main([*options, '--batch_size', '4', '--output_dir', str(tmp_path)])
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
