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
from model_transformer import ActionTransformer
from tests.conftest import NUM_TEST, check_same_run, read_lines, read_result, read_weights, refusal, train, train_until
from util.checkpoint import BEST, LAST, PREVIOUS, Checkpoint
from util.config import parse_args
from util.dist import World
from util.precision import Precision
from util.results import Result


@pytest.fixture(scope='module')
def pretrained(tiny_pretrain, tmp_path_factory):
    folder = tmp_path_factory.mktemp('pretrain')
    train('pretrain', tiny_pretrain, folder)
    return folder


def test_training_learns_and_eval_repeats_the_last_score(tiny, tiny_pretrain, pretrained, tmp_path):
    train('pretrain', [*tiny_pretrain, '--epochs', '12', '--lr', '3e-3'], tmp_path / 'pretrain')
    options = [*tiny, '--epochs', '12', '--lr', '3e-3', '--layer_decay', '0.9']
    train('finetune', options, tmp_path, '--finetune', str(pretrained / LAST))
    for folder in (tmp_path / 'pretrain', tmp_path):
        losses = [line['train_loss'] for line in read_lines(folder)]
        assert losses[-1] < 0.7 * losses[0]
    train('finetune', options, tmp_path, '--eval', '--resume', 'auto')
    scores, last = json.loads((tmp_path / 'eval.json').read_text()), read_result(tmp_path)['last']
    assert scores['samples'] == NUM_TEST
    assert (scores['top1'], scores['top5'], scores['loss']) == (last['top1'], last['top5'], pytest.approx(last['loss']))


def test_the_probe_trains_its_head_only_and_counts_every_test_clip(tiny, pretrained, tmp_path):
    train('linprobe', [*tiny, '--finetune', str(pretrained / LAST)], tmp_path)
    before, after = read_weights(pretrained), read_weights(tmp_path)
    encoder = [name for name in after if not name.startswith('head.')]
    assert encoder and all(torch.equal(after[name], before[name]) for name in encoder)
    assert after['head.fc.0.num_batches_tracked'] == 2 * 5      # five steps an epoch
    result = read_result(tmp_path)
    assert result['last']['samples'] == NUM_TEST and result['last']['epoch'] == 1
    assert result['method'] == 'MAMP' and result['pretraining']['epoch'] == 1
    assert result['pretraining']['motion_stride'] == 1 and result['pretraining']['min_crop'] == 64
    assert result['best']['top1'] >= result['last']['top1'] and (tmp_path / BEST).exists()


@pytest.mark.parametrize('options', [['--stream', 'velocity', '--clip_grad', '0.1'], ['--precision', 'bf16'],
                                     ['--target', 'joint', '--motion_aware_tau', '0', '--no-norm_skes_loss'],
                                     ['--skip_empty_bodies', '--accum_iter', '2', '--motion_stride', '3']], ids=str)
def test_variants_of_pretraining_run(tiny_pretrain, tmp_path, options):
    train('pretrain', tiny_pretrain, tmp_path, *options, '--epochs', '1')
    assert 0 < read_result(tmp_path)['train_loss'] < 10


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


def test_pretraining_depends_on_the_seed_and_not_on_reading_threads_or_accumulation(tiny_pretrain, pretrained,
                                                                                     tmp_path):
    train('pretrain', tiny_pretrain, tmp_path / 'same', '--num_workers', '2')
    check_same_run(tmp_path / 'same', pretrained)
    train('pretrain', tiny_pretrain, tmp_path / 'other', '--seed', '1')
    assert not torch.equal(read_weights(pretrained)['norm.bias'], read_weights(tmp_path / 'other')['norm.bias'])
    train('pretrain', tiny_pretrain, tmp_path / 'halves', '--batch_size', '2')
    losses, expected = ([line['train_loss'] for line in read_lines(path)] for path in (tmp_path / 'halves', pretrained))
    assert losses == pytest.approx(expected, rel=1e-6)


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


def test_a_run_continues_in_mid_epoch_with_the_same_clips_only(tiny_pretrain, tiny_npz, tmp_path, capsys):
    """A copy of the file is the same data; between epochs other data may follow, with a warning."""
    options, folder = [*tiny_pretrain, '--save_steps', '1', '--resume', 'auto'], tmp_path / 'run'
    arrays = dict(np.load(tiny_npz))
    write_npz(tmp_path / 'labels.npz', **arrays | {'y_train': arrays['y_train'][::-1]})
    write_npz(tmp_path / 'fewer.npz', **arrays | {name: arrays[name][:-1] for name in ('x_train', 'y_train')})
    train_until(2, 'pretrain', options, folder)
    for more, part in ((['--data_path', str(tmp_path / 'labels.npz')], '22 clips'),
                       (['--data_path', str(tmp_path / 'fewer.npz')], '21 clips'), (['--seed', '1'], 'seed 0 -> 1')):
        refusal(partial(train, 'pretrain', options, folder, *more), 'in mid-epoch', part)
    shutil.copyfile(tiny_npz, tmp_path / 'copy.npz')
    train('pretrain', options, folder, '--data_path', str(tmp_path / 'copy.npz'))
    assert 'training clips' not in capsys.readouterr().err
    train('pretrain', options, folder, '--epochs', '3', '--data_path', str(tmp_path / 'labels.npz'))
    assert 'training clips' in capsys.readouterr().err


def test_a_finished_run_keeps_its_result_and_can_be_extended_but_not_shortened(tiny_pretrain, pretrained, tmp_path):
    folder, resume = tmp_path / 'run', ['--resume', 'auto']
    shutil.copytree(pretrained, folder)
    text = (folder / 'result.json').read_text().replace('"processes": 1', '"processes": 99')
    (folder / 'result.json').write_text(text)
    train('pretrain', tiny_pretrain, folder, *resume)
    assert (folder / 'result.json').read_text() == text
    refusal(lambda: train('pretrain', tiny_pretrain, folder, '--epochs', '1', *resume), 'after 1 epochs')
    train('pretrain', tiny_pretrain, folder, '--epochs', '3', '--weight_decay', '0.5', *resume)
    lines = read_lines(folder)
    assert [line['epoch'] for line in lines] == [0, 1, 2]
    assert read_result(folder)['train_loss'] == lines[-1]['train_loss']
    checkpoint = Checkpoint.read(folder / LAST)
    assert {group['weight_decay'] for group in checkpoint.optimizer['param_groups']} == {0., 0.5}
    checkpoint.step = 1         # in the epoch after the last one
    checkpoint.write(folder / LAST)
    refusal(lambda: train('pretrain', tiny_pretrain, folder, '--epochs', '3', *resume), 'after 3 epochs')


def test_checkpoints_within_an_epoch_are_written_by_the_clock(tiny_pretrain, tmp_path, monkeypatch):
    saved = []
    monkeypatch.setattr(Checkpoint, 'write', lambda self, path, previous=None: saved.append(
        (path.name, previous, self.step)))
    train('pretrain', tiny_pretrain, tmp_path, '--epochs', '1', '--save_minutes', '1e-9', '--log_steps', '2')
    assert saved == [(LAST, PREVIOUS, 2), (LAST, PREVIOUS, 4), ('checkpoint-0.pth', None, 0), (LAST, PREVIOUS, 0)]


@pytest.mark.parametrize('stage, engine', [('pretrain', engine_pretrain), ('finetune', engine_finetune)])
def test_the_learning_rate_follows_the_schedule_at_every_step(stage, engine, stage_options, tmp_path, monkeypatch):
    rates = []
    monkeypatch.setattr(engine, 'set_learning_rate', lambda optimizer, lr: rates.append(lr))
    train(stage, stage_options[stage], tmp_path, '--warmup_epochs', '1', '--min_lr', '1e-4')
    assert rates[:6] == pytest.approx([0, 2e-4, 4e-4, 6e-4, 8e-4, 1e-3])
    assert rates[5:] == pytest.approx([1e-4 + 9e-4 * (1 + np.cos(np.pi * step / 5)) / 2 for step in range(5)])


def test_a_non_finite_test_loss_is_null_and_ends_no_run(tiny, tmp_path, monkeypatch, capsys):
    """Scores may overflow where weights do not; they are compared in fp32, as those of bf16 would tie."""
    def count(logits, label):
        assert logits.dtype == torch.float32
        return count_correct(logits, label) * torch.tensor([1, 1, 1, float('nan')])
    monkeypatch.setattr(engine_finetune, 'count_correct', count)
    train('finetune', tiny, tmp_path, '--precision', 'bf16')
    train('finetune', tiny, tmp_path, '--precision', 'bf16', '--eval', '--resume', 'auto')
    result, scores = (json.loads((tmp_path / name).read_text(), parse_constant=pytest.fail)
                      for name in ('result.json', 'eval.json'))
    assert all(line['test_loss'] is None and line['test_top1'] >= 0 for line in read_lines(tmp_path))
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


def test_evaluations_are_as_far_apart_as_requested_and_the_last_epoch_has_one(tiny, tmp_path):
    train('finetune', [*tiny, '--epochs', '4', '--eval_epochs', '3'], tmp_path)
    epochs = [json.loads(line) for line in (tmp_path / 'log.jsonl').read_text().splitlines()]
    assert [entry['epoch'] for entry in epochs if 'test_top1' in entry] == [2, 3] and len(epochs) == 4
    curve = Result.read(tmp_path / 'result.json').read_curve()
    assert curve['epoch'] == [2, 3] and len(curve['test_top1']) == 2


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


def test_sync_batchnorm_converts_the_head_where_it_can_work(tiny, monkeypatch):
    args = parse_args('finetune', [*tiny, '--sync_batchnorm', '--batch_size', '1', '--resume', 'auto'])
    cpu, gpu, models = torch.device('cpu'), torch.device('cuda', 0), []
    main_finetune.check_batch_norm(args, World(0, 2, gpu))
    refusal(lambda: main_finetune.check_batch_norm(args, World(0, 2, cpu)), '--sync_batchnorm', 'only on GPUs')
    refusal(lambda: main_finetune.check_batch_norm(args, World(0, 1, gpu)), '--batch_size 1')
    args.eval = True
    monkeypatch.setattr(main_finetune, 'check_batch_norm', lambda args, world: None)
    monkeypatch.setattr(main_finetune, 'evaluate_checkpoint', lambda args, world, model, *_: models.append(model))
    main_finetune.finetune(args, World(0, 2, cpu))
    assert type(models[0].head.bn) is nn.SyncBatchNorm


def test_command_that_trains_from_scratch(monkeypatch):
    command = 'main_finetune.py --config a.yaml b.yaml --finetune=x.pth --output_dir runs/f --layer_decay 0.8 ' \
        '--head linear --seed 3'
    monkeypatch.setattr('sys.argv', command.split())
    assert main_finetune.scratch_command(SimpleNamespace(output_dir='runs/f')) == 'python main_finetune.py --config ' \
        'a.yaml b.yaml --seed 3 --layer_decay 1 --head mlp --output_dir runs/f_scratch'
