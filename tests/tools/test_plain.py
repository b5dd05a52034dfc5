"""The plain way of computing gives the numbers of the authors' program."""

import inspect

import numpy as np
import pytest
import torch

from engine_finetune import train_one_epoch
from feeder.augment import ClipMaker
from feeder.dataset import SkeletonDataset
from model_mamp import MAMP
from tests import golden_numbers
from tools.benchmark import build_model
from tools.benchmarking import plain
from util.config import parse_args, resolve_batch
from util.dist import World
from util.trainer import Trainer


@pytest.mark.parametrize('name', ['feeder_ntu', 'feeder_pku_long', 'feeder_gaps'])
def test_center_crops_are_the_authors(name, tmp_path):
    golden = golden_numbers.load(name)
    frames = golden['frames'].astype(np.float32)
    labels = np.eye(2)[np.zeros(len(frames), dtype=int)]
    np.savez(tmp_path / 'clips.npz', x_train=frames, y_train=labels, x_test=frames, y_test=labels)
    dataset = SkeletonDataset(tmp_path / 'clips.npz', 'test', 25)
    clips = plain.PlainDataset(dataset, ClipMaker(120, 'joint', 0), train=False)
    for row, expected in enumerate(golden['center_crop']):
        np.testing.assert_allclose(clips[row, 0][0], expected, atol=1e-5)


def test_training_clips_are_the_authors():
    golden = golden_numbers.load('feeder_ntu')
    for frames, (start, length), angles, expected in zip(golden['frames'], golden['crop_start_length'],
                                                         golden['angles'], golden['train_clip'], strict=True):
        clip = torch.from_numpy(frames.astype(np.float32)).view(len(frames), 2, 25, 3).permute(3, 0, 2, 1)
        made = plain.rotate(plain.resize(clip[:, start:start + length], 120), angles)
        np.testing.assert_allclose(made, expected, atol=1e-5)


def test_unfused_model_gives_the_authors_numbers():
    golden = golden_numbers.load('mamp_small')
    config = golden['config']
    model = MAMP(**{name: config[name] for name in inspect.signature(MAMP).parameters if name in config})
    model.load_state_dict(golden_numbers.weights(golden))
    plain.use_plain_attention(model)
    assert not any(block.attn.fused_attn for block in [*model.blocks, *model.decoder_blocks])
    loss, pred, mask = model(torch.from_numpy(golden['x']), config['mask_ratio'], config['motion_stride'],
                             config['motion_aware_tau'], torch.from_numpy(golden['uniform']))
    assert abs(loss.item() / golden['loss'] - 1) < golden_numbers.LOSS_RTOL
    np.testing.assert_allclose(pred.detach(), golden['pred'], atol=golden_numbers.ACTIVATION_ATOL)
    np.testing.assert_array_equal(mask, golden['mask'])


def test_a_plain_trainer_computes_as_the_authors_do(tiny, tiny_npz, tmp_path, monkeypatch):
    """Every body encoded, an optimiser that goes from tensor to tensor, clips made one by one, one wait a step."""
    args = parse_args('finetune', [*tiny, '--num_classes', '3', '--output_dir', str(tmp_path)])
    resolve_batch(args, 1)
    dataset, cpu = SkeletonDataset(tiny_npz, 'train', 5), torch.device('cpu')
    trainer = Trainer(args, World(0, 1, cpu), *build_model('finetune', args, cpu), dataset)
    plain.make_plain(trainer, dataset)
    assert not any(group['fused'] or group['foreach'] for group in trainer.optimizer.param_groups)
    batch = next(iter(trainer.loader))
    assert trainer.clips.train_view(batch, 0, 0) is batch.clips and len(batch.distinct) == 8
    waits, item = [], torch.Tensor.item
    monkeypatch.setattr(torch.Tensor, 'item', lambda self: waits.append(self) or item(self))
    trainer.facts = {'method': 'plain'}
    train_one_epoch(trainer, 0)
    assert sum(value is trainer.loss_sum for value in waits) == trainer.steps_per_epoch
