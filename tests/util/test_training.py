"""Whole runs of the three mains on a tiny dataset: what they write, that they learn, and how they are resumed."""

import json
import shutil
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

import engine_finetune
import engine_pretrain
import main_finetune
from data.dataset_file import write_npz
from engine_finetune import count_correct
from model_mamp import MAMP
from model_transformer import ActionTransformer
from tests.conftest import (
    NUM_TEST,
    NUM_TRAIN,
    check_same_run,
    read_lines,
    read_result,
    read_weights,
    refusal,
    train,
    train_until,
)
from util.checkpoint import BEST, LAST, Checkpoint
from util.config import parse_args
from util.dist import World
from util.log import RunLog
from util.optim import adamw, set_learning_rate
from util.precision import Precision
from util.results import Result


@pytest.fixture(scope='module')
def pretrained(tiny_pretrain, tmp_path_factory):
    folder = tmp_path_factory.mktemp('pretrain')
    train('pretrain', tiny_pretrain, folder)
    return folder


# ---- learning --------------------------------------------------------------------------------------------------------


def test_pretraining_overfits_two_clips_under_a_fixed_mask():
    torch.manual_seed(0)
    model = MAMP(dim_feat=32, decoder_dim_feat=32, depth=2, decoder_depth=2, num_heads=4, num_frames=16, num_joints=5,
                 t_patch_size=4)
    clips = torch.randn(2, 3, 16, 5, 1)
    uniform = torch.rand(2, 20)
    optimizer = adamw(model, (0.9, 0.95), weight_decay=0.)
    losses = []
    for step in range(400):
        set_learning_rate(optimizer, 3e-3 * min(1, step / 20, (400 - step) / 200))
        loss, _, _ = model(clips, mask_ratio=0.5, uniform=uniform)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.05 * losses[0]


def test_fine_tuning_learns_and_eval_repeats_its_last_score(tiny, pretrained, tmp_path):
    options = [*tiny, '--epochs', '12', '--lr', '3e-3', '--layer_decay', '0.9']
    train('finetune', options, tmp_path, '--finetune', str(pretrained / LAST))
    losses = [line['train_loss'] for line in read_lines(tmp_path)]
    assert losses[-1] < 0.7 * losses[0]
    train('finetune', options, tmp_path, '--eval', '--resume', 'auto')
    scores, last = json.loads((tmp_path / 'eval.json').read_text()), read_result(tmp_path)['last']
    assert scores['samples'] == NUM_TEST
    assert (scores['top1'], scores['top5']) == (last['top1'], last['top5'])
    assert scores['loss'] == pytest.approx(last['loss'], rel=1e-6)


def test_the_probe_trains_its_head_only_and_counts_every_test_clip(tiny, pretrained, tmp_path):
    train('linprobe', [*tiny, '--finetune', str(pretrained / LAST)], tmp_path)
    before, after = read_weights(pretrained), read_weights(tmp_path)
    encoder = [name for name in after if not name.startswith('head.')]
    assert encoder and all(torch.equal(after[name], before[name]) for name in encoder)
    assert after['head.fc.0.num_batches_tracked'] == 2 * (NUM_TRAIN // 4)
    result = read_result(tmp_path)
    assert result['last']['samples'] == NUM_TEST and result['last']['epoch'] == 1
    assert result['method'] == 'MAMP' and result['pretraining']['epoch'] == 1
    assert result['best']['top1'] >= result['last']['top1'] and (tmp_path / BEST).exists()


@pytest.mark.parametrize('options', [['--stream', 'velocity', '--clip_grad', '0.1'], ['--precision', 'bf16'],
                                     ['--target', 'joint', '--motion_aware_tau', '0', '--no-norm_skes_loss'],
                                     ['--skip_empty_bodies', '--accum_iter', '2', '--motion_stride', '3']], ids=str)
def test_variants_of_pretraining_run(tiny_pretrain, tmp_path, options):
    train('pretrain', tiny_pretrain, tmp_path, *options, '--epochs', '1')
    assert 0 < read_result(tmp_path)['train_loss'] < 10


# ---- runs that must be equal -----------------------------------------------------------------------------------------


def test_accumulation_does_not_change_pretraining(tiny_pretrain, pretrained, tmp_path):
    """Crops, angles and masks depend on the position in the effective batch, so two halves make the same step."""
    train('pretrain', tiny_pretrain, tmp_path, '--batch_size', '2')
    for halves, line in zip(read_lines(tmp_path), read_lines(pretrained), strict=True):
        assert halves['train_loss'] == pytest.approx(line['train_loss'], rel=1e-6)


def test_loss_and_accumulated_gradients_of_a_classifier_are_those_of_the_whole_batch():
    """In eval mode: in training, BatchNorm's statistics are those of a micro-batch. Smoothing mixes in all classes."""
    model = ActionTransformer(3, 'finetune', dim_feat=16, depth=1, num_heads=2, num_frames=8, num_joints=5).eval()
    clips, label, outcomes = torch.randn(4, 3, 8, 5, 2), torch.tensor([0, 1, 2, 1]), []
    for accum_iter in (1, 2):
        trainer = SimpleNamespace(args=SimpleNamespace(accum_iter=accum_iter, smoothing=0.1), model=model, loss_sum=0.,
                                  precision=Precision('fp32', torch.device('cpu')))
        model.zero_grad()
        for batch in zip(clips.chunk(accum_iter), label.chunk(accum_iter), strict=True):
            engine_finetune.forward_backward(trainer, trainer.model, *batch)
        outcomes.append([trainer.loss_sum, *(parameter.grad for parameter in model.parameters())])
    torch.testing.assert_close(*outcomes)
    log_probability = model(clips).log_softmax(dim=1)
    expected = -(0.9 * log_probability[range(4), label] + 0.1 * log_probability.mean(dim=1)).mean()
    torch.testing.assert_close(outcomes[0][0], expected)


def test_equal_seeds_give_equal_weights_and_other_seeds_do_not(tiny_pretrain, pretrained, tmp_path):
    train('pretrain', tiny_pretrain, tmp_path / 'same', '--num_workers', '2')
    check_same_run(tmp_path / 'same', pretrained)
    train('pretrain', tiny_pretrain, tmp_path / 'other', '--seed', '1')
    biases = [read_weights(folder)['norm.bias'] for folder in (pretrained, tmp_path / 'other')]
    assert not torch.equal(*biases)


@pytest.mark.parametrize('stage', ['pretrain', 'linprobe', 'finetune'])
def test_data_on_the_device_changes_no_bit_of_a_run(stage, stage_options, tmp_path, capsys):
    """Also when it resumes, within an epoch, a run that had its data in a file."""
    options = [*stage_options[stage], '--accum_iter', '2', '--save_steps', '1', '--log_steps', '1']
    train(stage, options, tmp_path / 'file')
    train(stage, options, tmp_path / 'device', '--data_on_device')
    check_same_run(tmp_path / 'device', tmp_path / 'file')
    train_until(8, stage, options, tmp_path / 'resumed')
    capsys.readouterr()
    train(stage, options, tmp_path / 'resumed', '--data_on_device', '--resume', 'auto')
    output = capsys.readouterr().err
    assert 'epoch 1, step 2' in output and 'GB of memory on cpu' in output and 'other settings' not in output
    check_same_run(tmp_path / 'resumed', tmp_path / 'file')


# ---- resuming --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope='module')
def changed_npz(tiny_npz, tmp_path_factory):
    """Variants of the tiny dataset: other labels, sample names, one training clip less."""
    root = tmp_path_factory.mktemp('changed')
    with np.load(tiny_npz) as file:
        arrays = dict(file)
    write_npz(root / 'labels.npz', **arrays | {'y_train': arrays['y_train'][::-1]})
    write_npz(root / 'names.npz', **arrays | {'name_train': np.array([f'clip {i}' for i in range(NUM_TRAIN)])})
    write_npz(root / 'fewer.npz', **arrays | {name: arrays[name][:-1] for name in ('x_train', 'y_train')})
    return root


def test_a_run_continues_within_an_epoch_with_the_same_clips_only(tiny_pretrain, tiny_npz, changed_npz, tmp_path,
                                                                  capsys):
    """A copy of the file is the same data; between epochs other data may follow, with a warning."""
    options, folder = [*tiny_pretrain, '--save_steps', '1', '--resume', 'auto'], tmp_path / 'run'
    train_until(2, 'pretrain', options, folder)
    for name, clips in (('labels', NUM_TRAIN), ('names', NUM_TRAIN), ('fewer', NUM_TRAIN - 1)):
        changed = ['--data_path', str(changed_npz / f'{name}.npz')]
        refusal(partial(train, 'pretrain', options, folder, *changed), 'in mid-epoch', f'{clips} clips',
                'use the same data and settings')
    refusal(lambda: train('pretrain', options, folder, '--seed', '1'), 'in mid-epoch', 'seed 0 -> 1')
    shutil.copyfile(tiny_npz, tmp_path / 'copy.npz')
    train('pretrain', options, folder, '--data_path', str(tmp_path / 'copy.npz'))
    assert 'training clips' not in capsys.readouterr().err

    before = Checkpoint.read(folder / LAST)
    train('pretrain', options, folder, '--epochs', '3', '--data_path', str(changed_npz / 'labels.npz'))
    assert 'training clips' in capsys.readouterr().err
    assert Checkpoint.read(folder / LAST).progress['data'] != before.progress['data']


def test_a_finished_run_keeps_its_result_and_cannot_be_shortened(tiny_pretrain, pretrained, tmp_path):
    folder = tmp_path / 'run'
    shutil.copytree(pretrained, folder)
    text = (folder / 'result.json').read_text().replace('"processes": 1', '"processes": 99')
    (folder / 'result.json').write_text(text)
    train('pretrain', tiny_pretrain, folder, '--resume', 'auto')
    assert (folder / 'result.json').read_text() == text
    refusal(lambda: train('pretrain', tiny_pretrain, folder, '--epochs', '1', '--resume', 'auto'), 'after 1 epochs')


def test_a_run_never_ends_in_mid_epoch(pretrained, tiny_pretrain, tmp_path):
    folder = tmp_path / 'run'
    shutil.copytree(pretrained, folder)
    checkpoint = Checkpoint.read(folder / LAST)
    checkpoint.step = 1         # in the epoch after the last one
    checkpoint.write(folder / LAST)
    refusal(lambda: train('pretrain', tiny_pretrain, folder, '--resume', str(folder / LAST)), 'ends after')


def test_a_resumed_run_has_the_settings_given_now(tiny_pretrain, pretrained, tmp_path):
    shutil.copytree(pretrained, tmp_path / 'run')
    train('pretrain', tiny_pretrain, tmp_path / 'run', '--epochs', '3', '--weight_decay', '0.5', '--resume', 'auto')
    assert [line['epoch'] for line in read_lines(tmp_path / 'run')] == [0, 1, 2]
    groups = Checkpoint.read(tmp_path / 'run' / LAST).optimizer['param_groups']
    assert {group['weight_decay'] for group in groups} == {0., 0.5}


# ---- what a run writes -----------------------------------------------------------------------------------------------


def test_a_run_leaves_log_result_and_checkpoints(pretrained):
    lines, result = read_lines(pretrained), read_result(pretrained)
    assert [line['epoch'] for line in lines] == [0, 1]
    assert result['method'] == 'MAMP' and result['train_loss'] == lines[-1]['train_loss'] and result['clips_per_s'] > 0
    assert {'benchmark', 'seed', 'wall_seconds', 'code_version', 'config'} <= result.keys()
    assert sorted(path.name for path in pretrained.glob('*.pth')) == ['checkpoint-1.pth', LAST,
                                                                       'checkpoint-previous.pth']
    checkpoint = Checkpoint.read(pretrained / 'checkpoint-1.pth')
    assert checkpoint.epoch == 1 and checkpoint.args['mask_ratio'] == 0.5
    assert list(pretrained.glob('events.out.tfevents*'))


def test_checkpoints_within_an_epoch_are_written_by_the_clock(tiny_pretrain, tmp_path, monkeypatch):
    saved = []
    monkeypatch.setattr(Checkpoint, 'write', lambda self, path, previous=None: saved.append((path.name, self.step)))
    train('pretrain', tiny_pretrain, tmp_path, '--epochs', '1', '--save_minutes', '1e-9', '--log_steps', '2')
    assert saved == [(LAST, 2), (LAST, 4), ('checkpoint-0.pth', 0), (LAST, 0)]


def test_losses_are_logged_every_few_steps_and_at_the_end_of_an_epoch(tiny_pretrain, tmp_path, monkeypatch):
    logged = []
    monkeypatch.setattr(RunLog, 'scalars', lambda log, values, step: logged.append((step, values)))
    train('pretrain', tiny_pretrain, tmp_path, '--log_steps', '3')
    losses = {step: values['train/loss'] for step, values in logged if 'train/loss' in values}
    assert sorted(losses) == [3, 5, 8, 10]
    assert (3 * losses[3] + 2 * losses[5]) / 5 == pytest.approx(read_lines(tmp_path)[0]['train_loss'])


@pytest.mark.parametrize('stage, engine', [('pretrain', engine_pretrain), ('finetune', engine_finetune)])
def test_the_learning_rate_follows_the_schedule_at_every_step(stage, engine, stage_options, tmp_path, monkeypatch):
    rates = []
    monkeypatch.setattr(engine, 'set_learning_rate', lambda optimizer, lr: rates.append(lr))
    train(stage, stage_options[stage], tmp_path, '--warmup_epochs', '1', '--min_lr', '1e-4')
    assert rates[:6] == pytest.approx([0, 2e-4, 4e-4, 6e-4, 8e-4, 1e-3])
    assert rates[5:] == pytest.approx([1e-4 + 9e-4 * (1 + np.cos(np.pi * step / 5)) / 2 for step in range(5)])


def test_a_non_finite_test_loss_is_null_and_ends_no_run(tiny, tmp_path, monkeypatch, capsys):
    """Scores may overflow where weights do not."""
    monkeypatch.setattr(engine_finetune, 'count_correct', lambda logits, label:
                        count_correct(logits, label) * torch.tensor([1, 1, 1, float('nan')]))
    train('finetune', tiny, tmp_path)
    train('finetune', tiny, tmp_path, '--eval', '--resume', 'auto')
    texts = [(tmp_path / name).read_text() for name in ('result.json', 'eval.json')]
    texts += (tmp_path / 'log.jsonl').read_text().splitlines()
    result, scores, *lines = [json.loads(text, parse_constant=pytest.fail) for text in texts]
    assert len(lines) == 2 and all(line['test_loss'] is None and line['test_top1'] >= 0 for line in lines)
    assert result['last']['loss'] is None and scores['loss'] is None and result['last']['samples'] == NUM_TEST
    assert Result.read(tmp_path / 'result.json').last == result['last']
    assert capsys.readouterr().err.count('test loss is not finite') == 2


def test_the_best_epoch_is_that_of_the_highest_accuracy(tiny, tmp_path, monkeypatch):
    accuracies = iter([30., 50., 40.])
    monkeypatch.setattr(main_finetune, 'evaluate', lambda *_: {
        'top1': next(accuracies), 'top5': 90., 'loss': 1., 'samples': NUM_TEST})
    train('finetune', tiny, tmp_path, '--epochs', '3')
    result = read_result(tmp_path)
    assert [(result[name]['epoch'], result[name]['top1']) for name in ('best', 'last')] == [(1, 50.), (2, 40.)]
    assert Checkpoint.read(tmp_path / BEST).epoch == 1


def test_logits_are_compared_in_fp32(tiny, tmp_path, monkeypatch):
    """Those of bf16 would tie."""
    dtypes = []
    monkeypatch.setattr(engine_finetune, 'count_correct', lambda logits, label: dtypes.append(logits.dtype)
                        or count_correct(logits, label))
    train('finetune', tiny, tmp_path, '--precision', 'bf16', '--epochs', '1')
    assert {*dtypes} == {torch.float32}


def test_predictions_do_not_replace_those_of_another_run(tiny, tmp_path):
    first, second = tmp_path / 'first', tmp_path / 'second'
    for seed, folder in enumerate((first, second)):
        train('finetune', tiny, folder, '--epochs', '1', '--seed', str(seed), '--save_scores')
    before = {path.name: path.read_bytes() for path in second.iterdir()}
    options = [*tiny, '--eval', '--save_scores', '--resume', str(first / LAST)]
    refusal(lambda: train('finetune', options, second), second, 'another run', 'choose a different --output_dir')
    assert {path.name: path.read_bytes() for path in second.iterdir()} == before
    (first / 'scores.npz').unlink()
    for folder in (first, tmp_path / 'new'):
        train('finetune', options, folder)
        assert (folder / 'scores.npz').exists()


# ---- BatchNorm over processes ----------------------------------------------------------------------------------------


def test_sync_batchnorm_converts_the_head_of_several_processes(tiny, monkeypatch):
    models = []
    monkeypatch.setattr(main_finetune, 'check_batch_norm', lambda args, world: None)    # it needs GPUs
    monkeypatch.setattr(main_finetune, 'evaluate_checkpoint', lambda args, world, model, *_: models.append(model))
    for processes in (1, 2):
        args = parse_args('finetune', [*tiny, '--sync_batchnorm', '--eval', '--resume', 'auto'])
        main_finetune.finetune(args, World(0, processes, torch.device('cpu')))
    assert [type(model.head.bn) for model in models] == [nn.BatchNorm1d, nn.SyncBatchNorm]
    assert models[0].state_dict().keys() == models[1].state_dict().keys()


def test_sync_batchnorm_is_refused_where_it_cannot_work(tiny):
    args = parse_args('finetune', [*tiny, '--sync_batchnorm', '--batch_size', '1'])
    cpu, gpu = torch.device('cpu'), torch.device('cuda', 0)
    main_finetune.check_batch_norm(args, World(0, 2, gpu))
    refusal(lambda: main_finetune.check_batch_norm(args, World(0, 2, cpu)), '--sync_batchnorm', 'only on GPUs')
    refusal(lambda: main_finetune.check_batch_norm(args, World(0, 1, gpu)), '--batch_size 1')
