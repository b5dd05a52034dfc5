"""Mistakes of users end in one line, before anything is computed or written: one case a kind."""

import numpy as np
import pytest
import torch

from data.dataset_file import write_npz
from tests.conftest import on_step, refusal, train
from util.checkpoint import LAST, Checkpoint
from util.trainer import Trainer


@pytest.fixture(scope='module')
def files(tiny_npz, tiny_pretrain, tiny, tmp_path_factory):
    """A folder with a pre-training, a fine-tuning, and files with one error each."""
    folder = tmp_path_factory.mktemp('files')
    train('pretrain', [*tiny_pretrain, '--epochs', '1'], folder / 'pretrain')
    train('finetune', [*tiny, '--epochs', '1'], folder / 'finetune')
    checkpoint = vars(Checkpoint.read(folder / 'pretrain' / LAST))
    momenta = {0: {'step': torch.ones(()), 'exp_avg': torch.ones(1), 'exp_avg_sq': torch.ones(1)}}
    for name, content in {
            'list': [1], 'bare': checkpoint['model'], 'epoch': checkpoint | {'epoch': 'three'},
            'momenta': checkpoint | {'optimizer': checkpoint['optimizer'] | {'state': momenta}},
            'seed': checkpoint | {'args': checkpoint['args'] | {'seed': {'a': 1}}}}.items():
        torch.save(content, folder / f'{name}.pth')
    (folder / 'damaged').mkdir()
    (folder / 'damaged' / LAST).write_bytes((folder / 'pretrain' / LAST).read_bytes()[:5000])
    arrays = dict(np.load(tiny_npz))
    arrays['x_train'][3, 0, 1] = np.nan
    write_npz(folder / 'nan.npz', **arrays)
    (folder / 'text').write_text('text\n')
    return folder


PRETRAIN, FINETUNE, DAMAGED = (f'{{}}/{run}/{LAST}' for run in ('pretrain', 'finetune', 'damaged'))


@pytest.mark.parametrize('stage, options, part', [
    ('pretrain', '--data_path nowhere.npz', 'nowhere.npz: no such data file'),
    ('pretrain', '--data_path {}/nan.npz', 'clip 3 of x_train'), ('pretrain', '--num_joints 7', '--num_joints'),
    ('finetune', '--num_classes 5', '--num_classes is 5'), ('finetune', '--label_fraction 0.1', '2 training clips'),
    ('finetune', '--batch_size 1', 'BatchNorm'), ('pretrain', '--effective_batch_size 64', '22 training clips'),
    ('pretrain', '--dim_feat 200000', 'the weights take'), ('pretrain', '--device cuda', 'no CUDA GPU'),
    ('pretrain', '--device abacus', 'unknown device'), ('pretrain', '--attention flash', 'CUDA GPU'),
    ('pretrain', '--output_dir {}/text', 'is not a folder'), ('finetune', '--log_dir {}/text/below', 'is not a folder'),
    ('pretrain', '--output_dir /proc/x', 'cannot be written'), ('pretrain', '--output_dir {}/pretrain', 'auto'),
    ('pretrain', '--resume {}/none.pth', 'no such checkpoint'), ('pretrain', f'--resume {DAMAGED}', 'not a complete'),
    ('pretrain', '--resume auto --output_dir {}/damaged', 'all of its checkpoints are damaged'),
    ('pretrain', '--resume {}/list.pth', 'holds a list'), ('pretrain', '--resume {}/epoch.pth', 'wrong type'),
    ('pretrain', '--resume {}/bare.pth', 'no optimizer state'), ('pretrain', '--resume {}/momenta.pth', 'does not fit'),
    ('pretrain', f'--resume {PRETRAIN} --num_heads 4', 'trained with num_heads 2'),
    ('finetune', f'--resume {PRETRAIN}', 'a checkpoint of pre-training, but this stage is fine-tuning'),
    ('finetune', f'--eval --head mlp --resume {FINETUNE} --stream velocity', 'trained with stream joint'),
    ('finetune', f'--finetune {PRETRAIN} --dim_feat 32', 'does not fit the model'),
    ('finetune', f'--finetune {PRETRAIN} --num_heads 4', 'num_heads 2 (now 4)'),
    ('finetune', '--finetune {}/seed.pth', 'setting seed has the wrong type')])
def test_bad_input_is_refused_before_training(stage, options, part, files, stage_options, tmp_path, monkeypatch):
    monkeypatch.setattr(Trainer, 'steps', lambda *_: pytest.fail('it trains'))
    options = options.format(files).split()
    folder = [] if '--output_dir' in options else ['--output_dir', str(tmp_path / 'out')]
    before = {path: path.stat().st_mtime_ns for path in files.rglob('*')}
    refusal(lambda: train(stage, [*stage_options[stage], *folder, *options]), part)
    assert {path: path.stat().st_mtime_ns for path in files.rglob('*')} == before and not (tmp_path / 'out').exists()


def test_running_out_of_memory_is_one_line(tiny_pretrain, tmp_path, monkeypatch):
    def run_out(_):
        raise torch.OutOfMemoryError('CUDA out of memory. Tried to allocate 1.93 GiB.\nAnd a page of advice.')
    on_step(1, run_out, patch=monkeypatch.setattr)
    refusal(lambda: train('pretrain', tiny_pretrain, tmp_path), 'out of memory on cpu', '1.93 GiB', '--batch_size')
