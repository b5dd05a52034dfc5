"""Whole runs of the three mains on a tiny set: what they write, that they learn, stop, and go on exactly."""


import json
import re
import shutil
import signal

import numpy as np
import pytest
import torch

import engine_finetune
import main_finetune
import main_linprobe
import main_pretrain
from data.common import write_npz
from model_mamp import MAMP
from tests.conftest import NUM_TEST, NUM_TRAIN, read_lines, read_result, read_weights, refusal, run
from util.checkpoint import Checkpoint
from util.errors import UserError
from util.log import RunLog
from util.metrics import count_correct
from util.optim import adamw, set_learning_rate
from util.results import Result
from util.trainer import NonFiniteLoss, Trainer


@pytest.fixture(scope='module')
def pretrained(tiny_pretrain, tmp_path_factory):
    folder = tmp_path_factory.mktemp('pretrain')
    assert main_pretrain.main([*tiny_pretrain, '--output_dir', str(folder)]) == 0
    return folder


def test_overfits_two_clips_under_a_fixed_mask():
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


def test_a_run_leaves_log_result_and_checkpoints(pretrained):
    lines = read_lines(pretrained)
    assert [line['epoch'] for line in lines] == [0, 1]
    result = read_result(pretrained)
    assert result['method'] == 'MAMP' and result['train_loss'] == lines[-1]['train_loss'] and result['clips_per_s'] > 0
    assert {'benchmark', 'seed', 'wall_seconds', 'code_version', 'config'} <= result.keys()
    assert sorted(path.name for path in pretrained.glob('*.pth')) == ['checkpoint-1.pth', 'checkpoint-last.pth',
                                                                       'checkpoint-previous.pth']
    checkpoint = Checkpoint.read(pretrained / 'checkpoint-1.pth')
    assert checkpoint.epoch == 1 and checkpoint.args['mask_ratio'] == 0.5
    assert list(pretrained.glob('events.out.tfevents*'))


def test_probe_trains_the_head_only_and_counts_every_test_clip(tiny, pretrained, tmp_path):
    main_linprobe.main([*tiny, '--finetune', str(pretrained / 'checkpoint-last.pth'), '--output_dir', str(tmp_path)])
    before, after = read_weights(pretrained), read_weights(tmp_path)
    encoder = [name for name in after if not name.startswith('head.')]
    assert encoder and all(torch.equal(after[name], before[name]) for name in encoder)
    assert after['head.fc.0.num_batches_tracked'] == 2 * (NUM_TRAIN // 4)
    result = read_result(tmp_path)
    assert result['last']['samples'] == NUM_TEST and result['last']['epoch'] == 1
    assert result['method'] == 'MAMP' and result['pretraining']['epoch'] == 1
    assert result['best']['top1'] >= result['last']['top1']
    assert (tmp_path / 'checkpoint-best.pth').exists()


def test_fine_tuning_learns_and_eval_repeats_its_last_score(tiny, pretrained, tmp_path):
    options = [*tiny, '--epochs', '12', '--lr', '3e-3', '--layer_decay', '0.9']
    main_finetune.main([*options, '--finetune', str(pretrained / 'checkpoint-last.pth'), '--output_dir', str(tmp_path)])
    losses = [line['train_loss'] for line in read_lines(tmp_path)]
    assert losses[-1] < 0.7 * losses[0]
    main_finetune.main([*options, '--eval', '--resume', 'auto', '--output_dir', str(tmp_path)])
    scores, last = json.loads((tmp_path / 'eval.json').read_text()), read_result(tmp_path)['last']
    assert scores['samples'] == NUM_TEST
    assert (scores['top1'], scores['top5']) == (last['top1'], last['top5'])
    assert scores['loss'] == pytest.approx(last['loss'], rel=1e-6)


@pytest.mark.parametrize('options', [['--stream', 'velocity'], ['--target', 'joint', '--motion_aware_tau', '0'],
                                     ['--precision', 'bf16'], ['--clip_grad', '0.1', '--no-norm_skes_loss'],
                                     ['--accum_iter', '2', '--motion_stride', '3']], ids=' '.join)
def test_variants_of_pretraining_run(tiny_pretrain, tmp_path, options):
    main_pretrain.main([*tiny_pretrain, *options, '--epochs', '1', '--output_dir', str(tmp_path)])
    assert 0 < read_result(tmp_path)['train_loss'] < 10


def test_accumulation_does_not_change_pretraining(tiny_pretrain, pretrained, tmp_path):
    """Crops, angles and masks follow the place in the effective batch, so two halves make the same step."""
    main_pretrain.main([*tiny_pretrain, '--batch_size', '2', '--output_dir', str(tmp_path)])
    for ours, whole in zip(read_lines(tmp_path), read_lines(pretrained), strict=True):
        assert ours['train_loss'] == pytest.approx(whole['train_loss'], rel=1e-6)


def test_the_same_seed_gives_the_same_weights_another_does_not(tiny_pretrain, pretrained, tmp_path):
    for name, options in (('same', ['--num_workers', '1']), ('other', ['--seed', '1'])):
        main_pretrain.main([*tiny_pretrain, *options, '--output_dir', str(tmp_path / name)])
    expected, same, other = (read_weights(folder) for folder in (pretrained, tmp_path / 'same', tmp_path / 'other'))
    assert all(torch.equal(expected[name], same[name]) for name in expected)
    assert not torch.equal(expected['decoder_pred.weight'], other['decoder_pred.weight'])


# What a run that is killed executes: its own kill -9 comes right after some update in the middle of an epoch.
KILLED = """
import os, signal, sys
from util.trainer import Trainer
save_if_due, steps = Trainer.save_if_due, []
def save_or_die(trainer, *place):
    steps.append(1)
    if len(steps) == 9:
        os.kill(os.getpid(), signal.SIGKILL)
    save_if_due(trainer, *place)
Trainer.save_if_due = save_or_die
import {main}
{main}.main(sys.argv[1:])
"""


@pytest.mark.parametrize('stage', ['pretrain', 'linprobe', 'finetune'])
def test_resumed_after_a_kill_inside_an_epoch_it_ends_bit_for_bit_the_same(stage, tiny, tiny_pretrain, tmp_path):
    options = {'pretrain': tiny_pretrain, 'linprobe': [*tiny, '--random_encoder'],
               'finetune': [*tiny, '--drop_path_rate', '0.3']}[stage]
    options = [*options, '--epochs', '3', '--num_workers', '1', '--accum_iter', '2', '--save_steps', '1', '--log_steps',
               '2']
    whole, killed = tmp_path / 'whole', tmp_path / 'killed'
    assert run(f'main_{stage}.py', *options, '--output_dir', str(whole)).returncode == 0
    died = run('-c', KILLED.format(main=f'main_{stage}'), *options, '--output_dir', str(killed))
    assert died.returncode == -9
    state = Checkpoint.read(killed / 'checkpoint-last.pth')
    assert (state.epoch, state.step) == (0, 3), 'the second epoch was under way'
    resumed = run(f'main_{stage}.py', *options, '--output_dir', str(killed), '--resume', 'auto')
    assert resumed.returncode == 0, resumed.stderr
    expected, got = (Checkpoint.read(folder / 'checkpoint-last.pth') for folder in (whole, killed))
    assert expected.model.keys() == got.model.keys()
    assert all(torch.equal(expected.model[name], got.model[name]) for name in expected.model)
    for index, moments in expected.optimizer['state'].items():
        assert all(torch.equal(value, got.optimizer['state'][index][key]) for key, value in moments.items()
                   if isinstance(value, torch.Tensor))
    kept = ('epoch', 'train_loss', 'lr', 'test_top1', 'test_loss')
    first, second = ([[line.get(key) for key in kept] for line in read_lines(folder)] for folder in (whole, killed))
    assert first == second


STAGE_OPTIONS = {'pretrain': [], 'linprobe': ['--random_encoder'], 'finetune': ['--drop_path_rate', '0.3']}
KEPT = ('epoch', 'train_loss', 'lr', 'test_top1', 'test_top5', 'test_loss', 'test_samples')


@pytest.mark.parametrize('stage', STAGE_OPTIONS)
def test_data_on_the_device_changes_no_bit_of_a_run(stage, tiny, tiny_pretrain, tmp_path, monkeypatch, capsys):
    """The same losses, scores and weights; also when it goes on, inside an epoch, with a run that was without."""
    main = {'pretrain': main_pretrain, 'linprobe': main_linprobe, 'finetune': main_finetune}[stage].main
    options = [*(tiny_pretrain if stage == 'pretrain' else tiny), *STAGE_OPTIONS[stage], '--accum_iter', '2',
               '--save_steps', '1', '--log_steps', '1']
    folders = usual, resident, resumed = [tmp_path / name for name in ('usual', 'resident', 'resumed')]
    main([*options, '--output_dir', str(usual)])
    main([*options, '--data_on_device', '--output_dir', str(resident)])

    class Killed(Exception):
        pass

    def save_or_die(trainer, epoch, step, save=Trainer.save_if_due):
        updates.append(trainer)
        if len(updates) == 8:
            raise Killed
        save(trainer, epoch, step)

    updates = []
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(Trainer, 'save_if_due', save_or_die)
        main([*options, '--output_dir', str(resumed)])
    state = Checkpoint.read(resumed / 'checkpoint-last.pth')
    assert (state.epoch, state.step) == (0, 2), 'the second epoch was under way'
    capsys.readouterr()
    main([*options, '--data_on_device', '--resume', 'auto', '--output_dir', str(resumed)])
    output = capsys.readouterr().err
    assert 'resumed' in output and 'GB of memory on cpu' in output and 'other settings' not in output

    expected, lines = read_weights(usual), [[line.get(key) for key in KEPT] for line in read_lines(usual)]
    for folder in folders[1:]:
        assert [[line.get(key) for key in KEPT] for line in read_lines(folder)] == lines
        got = read_weights(folder)
        assert expected.keys() == got.keys() and all(torch.equal(expected[name], got[name]) for name in expected)
        assert read_result(folder)['config']['data_on_device']


@pytest.fixture(scope='module')
def other_npz(tiny_npz, tmp_path_factory):
    """Files like the tiny one, but for what their name says."""
    root = tmp_path_factory.mktemp('other')
    with np.load(tiny_npz) as held:
        arrays = {name: held[name] for name in held}
    names = {'name_train': np.array([f'clip {i}' for i in range(NUM_TRAIN)])}
    write_npz(root / 'labels.npz', **arrays | {'y_train': arrays['y_train'][::-1]})
    write_npz(root / 'names.npz', **arrays | names)
    write_npz(root / 'fewer.npz', **arrays | {name: arrays[name][:-1] for name in ('x_train', 'y_train')})
    return root


def test_inside_an_epoch_a_run_goes_on_with_the_same_clips_only(tiny_pretrain, tiny_npz, other_npz, tmp_path,
                                                                monkeypatch, capsys):
    """Copied elsewhere the file is the same; between epochs another one may take its place, and is named."""
    options = [*tiny_pretrain, '--save_steps', '1', '--output_dir', str(tmp_path / 'run')]
    save, done = Trainer.save_if_due, []

    def save_once(trainer, *place):
        done.append(place)
        if len(done) == 2:
            raise ZeroDivisionError
        save(trainer, *place)
    with monkeypatch.context() as patch, pytest.raises(ZeroDivisionError):
        patch.setattr(Trainer, 'save_if_due', save_once)
        main_pretrain.main(options)
    options += ['--resume', 'auto']
    for name, clips in (('labels', NUM_TRAIN), ('names', NUM_TRAIN), ('fewer', NUM_TRAIN - 1)):
        refusal(lambda path=other_npz / f'{name}.npz': main_pretrain.main([*options, '--data_path', str(path)]),
                'within an epoch', f'{clips} clips', 'give the same settings and data')
    shutil.copyfile(tiny_npz, tmp_path / 'copy.npz')
    main_pretrain.main([*options, '--data_path', str(tmp_path / 'copy.npz')])
    assert 'training clips' not in capsys.readouterr().err

    last = tmp_path / 'run' / 'checkpoint-last.pth'
    state = Checkpoint.read(last)
    main_pretrain.main([*options, '--epochs', '3', '--data_path', str(other_npz / 'labels.npz')])
    assert 'training clips' in capsys.readouterr().err
    assert Checkpoint.read(last).progress['data'] != state.progress['data'], 'from here on the new one'


def test_a_finished_run_keeps_its_result_and_cannot_be_shortened(tiny_pretrain, pretrained):
    text = (pretrained / 'result.json').read_text()
    marked = text.replace('"processes": 1', '"processes": 99')
    (pretrained / 'result.json').write_text(marked)
    main_pretrain.main([*tiny_pretrain, '--output_dir', str(pretrained), '--resume', 'auto'])
    assert (pretrained / 'result.json').read_text() == marked
    with pytest.raises(UserError, match='beyond --epochs 1'):
        main_pretrain.main([*tiny_pretrain, '--epochs', '1', '--output_dir', str(pretrained), '--resume', 'auto'])
    (pretrained / 'result.json').write_text(text)


def test_resuming_goes_on_with_the_options_given(tiny_pretrain, pretrained, tmp_path):
    shutil.copytree(pretrained, tmp_path / 'run')
    with open(tmp_path / 'run' / 'log.jsonl', 'a') as log:
        log.write('{"epoch": 2, "train_lo')          # as a kill may leave it
    main_pretrain.main([*tiny_pretrain, '--epochs', '3', '--weight_decay', '0.5', '--output_dir', str(tmp_path / 'run'),
                        '--resume', 'auto'])
    assert [line['epoch'] for line in read_lines(tmp_path / 'run')] == [0, 1, 2]
    groups = Checkpoint.read(tmp_path / 'run' / 'checkpoint-last.pth').optimizer['param_groups']
    assert {group['weight_decay'] for group in groups} == {0., 0.5}


@pytest.mark.parametrize('options, says', [(['--num_frames', '24'], 'temp_embed'), (['--depth', '1'], 'not a weight'),
                                           (['--num_heads', '4'], 'num_heads 2 (now 4)'),
                                           (['--stream', 'velocity'], 'stream joint'),
                                           (['--effective_batch_size', '23'], '22 training clips')], ids=str)
def test_a_checkpoint_that_does_not_fit_is_not_resumed(tiny_pretrain, pretrained, options, says):
    before = (pretrained / 'checkpoint-last.pth').read_bytes()
    with pytest.raises(UserError, match=re.escape(says)):
        main_pretrain.main([*tiny_pretrain, *options, '--epochs', '3', '--output_dir', str(pretrained), '--resume',
                            'auto'])
    assert (pretrained / 'checkpoint-last.pth').read_bytes() == before


def test_minutes_alone_bring_a_checkpoint_inside_an_epoch(tiny_pretrain, tmp_path, monkeypatch):
    saved = []
    monkeypatch.setattr(Checkpoint, 'write', lambda self, path, previous=None: saved.append((path.name, self.step)))
    main_pretrain.main([*tiny_pretrain, '--epochs', '1', '--save_minutes', '1e-9', '--log_steps', '2', '--output_dir',
                        str(tmp_path)])
    assert saved == [('checkpoint-last.pth', 2), ('checkpoint-last.pth', 4), ('checkpoint-0.pth', 0),
                     ('checkpoint-last.pth', 0)]


def test_the_loss_is_read_at_the_end_of_every_epoch_however_short(tiny_pretrain, tmp_path, monkeypatch):
    read = []
    monkeypatch.setattr(RunLog, 'scalars', lambda log, values, step: read.append((step, values)))
    main_pretrain.main([*tiny_pretrain, '--log_steps', '3', '--output_dir', str(tmp_path)])
    losses = {step: values['train/loss'] for step, values in read if 'train/loss' in values}
    assert sorted(losses) == [3, 5, 8, 10]
    assert (3 * losses[3] + 2 * losses[5]) / 5 == pytest.approx(read_lines(tmp_path)[0]['train_loss'])


@pytest.mark.parametrize('loss', [float('inf'), float('nan')])
def test_a_test_loss_that_is_not_finite_is_null_and_ends_no_run(loss, tiny, tmp_path, monkeypatch, capsys):
    """Scores may overflow where weights do not."""
    def count(logits, label):
        return count_correct(logits, label) * torch.tensor([1, 1, 1, loss])
    monkeypatch.setattr(engine_finetune, 'count_correct', count)
    main_finetune.main([*tiny, '--output_dir', str(tmp_path)])
    main_finetune.main([*tiny, '--eval', '--resume', 'auto', '--output_dir', str(tmp_path)])
    texts = [(tmp_path / name).read_text() for name in ('result.json', 'eval.json')]
    texts += (tmp_path / 'log.jsonl').read_text().splitlines()
    result, scores, *lines = [json.loads(text, parse_constant=pytest.fail) for text in texts]
    assert len(lines) == 2 and all(line['test_loss'] is None and line['test_top1'] >= 0 for line in lines)
    assert result['last']['loss'] is None and scores['loss'] is None and result['last']['samples'] == NUM_TEST
    assert Result.read(tmp_path / 'result.json').last == result['last']
    assert capsys.readouterr().err.count('test loss is not finite') == 2


@pytest.mark.parametrize('what', ['scores', 'features'])
def test_predictions_do_not_replace_those_of_another_run(what, tiny, tmp_path):
    ours, other, file = tmp_path / 'ours', tmp_path / 'other', f'{what}.npz'
    for folder, seed in ((ours, '0'), (other, '1')):
        main_finetune.main([*tiny, '--epochs', '1', '--seed', seed, f'--save_{what}', '--output_dir', str(folder)])
    before = {path.name: path.read_bytes() for path in other.iterdir() if path.is_file()}
    options = [*tiny, '--eval', f'--save_{what}', '--resume', str(ours / 'checkpoint-last.pth'), '--output_dir']
    refusal(lambda: main_finetune.main([*options, str(other)]), other, 'another run', 'give another --output_dir')
    assert {path.name: path.read_bytes() for path in other.iterdir() if path.is_file()} == before
    (ours / file).unlink()
    main_finetune.main([*options, str(ours)])
    main_finetune.main([*options, str(tmp_path / 'new')])
    assert (ours / file).exists() and (tmp_path / 'new' / file).exists()


# What a run executes that is killed, or fails, when its training is over and its test clips are read once more.
ENDED_IN_PREDICT = """
import os, signal, sys
import main_finetune
main_finetune.predict = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
main_finetune.main(sys.argv[1:])
"""


@pytest.mark.parametrize('how', ['exception', 'killed'])
def test_a_run_that_ends_before_its_predictions_is_not_finished(how, tiny, tmp_path, monkeypatch):
    """result.json is what scripts pass over a folder for: it comes last, and going on makes what is missing."""
    options = [*tiny, '--label_fraction', '0.5', '--save_scores', '--output_dir', str(tmp_path)]
    if how == 'killed':
        assert run('-c', ENDED_IN_PREDICT, *options).returncode == -signal.SIGKILL
    else:
        def fail(*_):
            raise ZeroDivisionError
        with monkeypatch.context() as patch, pytest.raises(ZeroDivisionError):
            patch.setattr(main_finetune, 'predict', fail)
            main_finetune.main(options)
    assert Checkpoint.read(tmp_path / 'checkpoint-last.pth').epoch == 1, 'training was over'
    assert not (tmp_path / 'result.json').exists() and not (tmp_path / 'scores.npz').exists()
    main_finetune.main([*options, '--resume', 'auto'])
    assert read_result(tmp_path)['last']['samples'] == NUM_TEST
    with np.load(tmp_path / 'scores.npz') as scores:
        assert len(scores['scores']) == NUM_TEST


def test_an_earlier_run_is_not_overwritten(tiny_pretrain, pretrained):
    with pytest.raises(UserError, match='--resume auto'):
        main_pretrain.main([*tiny_pretrain, '--output_dir', str(pretrained)])


def test_a_loss_that_is_not_finite_stops_the_run_and_spoils_no_checkpoint(tiny_pretrain, tmp_path):
    options = [*tiny_pretrain, '--epochs', '4', '--warmup_epochs', '1', '--log_steps', '1', '--save_steps', '1']
    with pytest.raises(NonFiniteLoss, match='not finite'):
        main_pretrain.main([*options, '--lr', '1e30', '--output_dir', str(tmp_path)])
    saved = sorted(tmp_path.glob('*.pth'))
    assert saved, 'the first step, at learning rate 0, was saved'
    assert all(value.isfinite().all() for path in saved for value in Checkpoint.read(path).model.values())
