"""Work that is left out gives the same numbers: equal bodies encoded once, training without empty bodies, padding."""

import pytest
import torch

from engine_pretrain import select_bodies
from feeder.augment import ClipMaker
from feeder.dataset import pack_clips
from model_mamp import MAMP
from model_transformer import ActionTransformer

SMALL = {'dim_feat': 16, 'depth': 2, 'num_heads': 2, 'num_frames': 16, 'num_joints': 7}


def mixed_batch():
    """Eight clips: two bodies, an empty second one, a copy, all empty, an empty first one, nearly a copy, …"""
    x = torch.randn(8, 16, 2, 7, 3, generator=torch.Generator().manual_seed(0))     # (N, T, M, V, C)
    x[1, :, 1] = 0
    x[2, :, 1] = x[2, :, 0]
    x[3] = 0
    x[4, :, 0] = 0
    x[5, :, 1] = x[5, :, 0]
    x[5, 15, 1, 6, 2] += 1e-3       # no copy: one number differs
    x[7, :, 1] = 0
    x[7, 3, 1, 2, 0] = 1e-3         # not empty
    batch = pack_clips(list(x.numpy()))
    return batch, ClipMaker(16, 'joint', 0, eval_crop=1.).eval_view(batch)


@pytest.mark.parametrize('protocol', ['linprobe', 'finetune'])
def test_eval_mode_encodes_equal_bodies_once(protocol):
    torch.manual_seed(0)
    model, (batch, clips) = ActionTransformer(5, protocol, **SMALL).eval(), mixed_batch()
    assert len(batch.distinct) == 12        # of 16: one for the four empty ones, none for the copy
    torch.testing.assert_close(model(clips, (batch.distinct, batch.inverse)), model(clips), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('pad', [False, True])
def test_pretraining_without_empty_bodies_equals_the_others_one_by_one(pad):
    torch.manual_seed(0)
    model, (batch, clips) = MAMP(decoder_dim_feat=16, decoder_depth=1, **SMALL), mixed_batch()
    batch = batch._replace(nonempty=batch.nonempty[:-1])        # 11, so that 12 need padding
    uniform = torch.rand(16, 28, generator=torch.Generator().manual_seed(1))
    selected, own_uniform, *weight = select_bodies(clips.repeat(2, 1, 1, 1, 1), uniform.repeat(2, 1), batch._replace(
        inverse=batch.inverse.repeat(4)), pad)
    assert len(selected) == (12 if pad else 11)
    loss = model(selected, .6, 1, .8, own_uniform, *weight)[0]
    errors = masked = 0.
    bodies = model.fold_bodies(clips)
    for number in batch.nonempty.tolist():
        body = bodies[number:number + 1].permute(0, 3, 1, 2)[..., None]
        own_loss, _, mask = model(body, .6, 1, .8, uniform[number:number + 1])
        errors, masked = errors + own_loss * mask.sum(), masked + mask.sum()
    torch.testing.assert_close(loss, errors / masked, rtol=1e-5, atol=0)


def test_a_batch_of_empty_bodies_trains_as_it_is():
    torch.manual_seed(0)
    model = MAMP(decoder_dim_feat=16, decoder_depth=1, **SMALL)
    batch, uniform = pack_clips(list(torch.zeros(2, 16, 2, 7, 3).numpy())), torch.rand(4, 28)
    clips = torch.zeros(2, 3, 16, 7, 2)
    loss = model(clips, .6, 1, .8, uniform)[0]
    assert loss.isfinite() and loss == model(*select_bodies(clips, uniform, batch, False)[:1], .6, 1, .8, uniform)[0]
