"""What is not computed twice: the same numbers, and less work."""

import shutil

import pytest
import torch

from model_mamp import MAMP, motion_intensity, patchify
from model_transformer import ActionTransformer, distinct_bodies
from util.precision import compile_blocks

SMALL = {'dim_feat': 16, 'depth': 2, 'num_heads': 2, 'num_frames': 16, 'num_joints': 7}


def mixed_batch(seed: int = 0) -> torch.Tensor:
    """Clips (8, 3, 16, 7, 2): two bodies, a copy, an empty second or first one, both empty, nearly a copy."""
    x = torch.randn(8, 3, 16, 7, 2, generator=torch.Generator().manual_seed(seed))
    x[1, ..., 1] = 0
    x[2, ..., 1] = x[2, ..., 0]
    x[3] = 0
    x[4, ..., 0] = 0
    x[5, ..., 1] = x[5, ..., 0]
    x[5, 2, 15, 6, 1] += 1e-6       # no copy: one number differs
    x[6, ..., 1] = x[0, ..., 0]     # a copy of another clip's body: not looked for
    x[7, ..., 1] = 0
    x[7, 0, 3, 2, 1] = 1e-30        # not empty
    return x


def encoded(model, x) -> tuple[torch.Tensor, int]:
    """Logits, and how many bodies went through the blocks."""
    seen = []
    handle = model.blocks[0].register_forward_pre_hook(lambda module, inputs: seen.append(len(inputs[0])))
    logits = model(x)
    handle.remove()
    return logits, sum(seen)


def test_distinct_bodies_by_brute_force():
    x = mixed_batch()
    bodies = list(x.permute(0, 4, 1, 2, 3).flatten(0, 1))
    expected = []
    for number, body in enumerate(bodies):
        same = number
        if not body.any():
            same = next(other for other in range(16) if not bodies[other].any())
        elif torch.equal(body, bodies[number // 2 * 2]):
            same = number // 2 * 2
        expected.append(same)
    distinct, place = distinct_bodies(x)
    assert distinct.tolist() == sorted(set(expected))
    assert distinct[place].tolist() == expected


@pytest.mark.parametrize('protocol', ['linprobe', 'finetune'])
def test_eval_mode_encodes_each_body_once(protocol):
    torch.manual_seed(0)
    model = ActionTransformer(5, protocol, **SMALL).eval()
    x = mixed_batch()
    with torch.no_grad():
        logits, count = encoded(model, x)
        alone = torch.cat([model.head(model.encode(model.embed(model.fold_bodies(clip[None]))).view(1, 2, 4, 7, 16))
                           for clip in x])
    torch.testing.assert_close(logits, alone, rtol=1e-5, atol=1e-6)
    model.equal_bodies_once = False
    assert encoded(model, x)[1] == 16
    assert count == 12      # of 16: one for the four empty ones, none for the copy


@pytest.mark.parametrize('protocol, count', [('linprobe', 12), ('finetune', 16)])
def test_training_encodes_all_bodies_where_chance_has_a_part(protocol, count):
    torch.manual_seed(0)
    model = ActionTransformer(5, protocol, drop_path_rate=.3 if protocol == 'finetune' else 0., **SMALL).train()
    assert encoded(model, mixed_batch())[1] == count


def test_gradients_pass_through_a_body_that_stands_for_several():
    torch.manual_seed(0)
    model = ActionTransformer(5, 'finetune', **SMALL).eval()
    x, results = mixed_batch(), []
    for features in (model.features(x),
                     model.encode(model.embed(model.fold_bodies(x))).view(8, 2, 4, 7, 16)):
        model.zero_grad()
        model.head(features).square().sum().backward()
        results.append([p.grad.clone() for p in model.parameters()])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize('empty_first', [False, True])
def test_pretraining_without_empty_bodies_is_training_on_the_others(empty_first):
    torch.manual_seed(0)
    model = MAMP(decoder_dim_feat=16, decoder_depth=1, **SMALL)
    x = mixed_batch()
    if empty_first:
        x = x.flip(4)
    uniform = torch.rand(16, 28, generator=torch.Generator().manual_seed(1))
    loss, pred, mask = model(x, .6, 1, .8, uniform, skip_empty_bodies=True)
    bodies = model.fold_bodies(x)
    there = [number for number, body in enumerate(bodies) if body.any()]
    assert len(there) == 12
    errors, masked = 0., 0.
    for row, number in enumerate(there):        # one by one
        one = bodies[number:number + 1].permute(0, 3, 1, 2)[..., None]
        own, _, own_mask = model(one, .6, 1, .8, uniform[number:number + 1])
        torch.testing.assert_close(mask[row], own_mask[0], rtol=0, atol=0)
        errors, masked = errors + own * own_mask.sum(), masked + own_mask.sum()
    torch.testing.assert_close(loss, errors / masked, rtol=1e-5, atol=0)
    assert len(pred) == len(there)


def test_a_batch_of_empty_bodies_trains_as_it_is():
    torch.manual_seed(0)
    model = MAMP(decoder_dim_feat=16, decoder_depth=1, **SMALL)
    x, uniform = torch.zeros(2, 3, 16, 7, 2), torch.rand(4, 28)
    losses = [model(x, .6, 1, .8, uniform, skip_empty_bodies=skip)[0] for skip in (False, True)]
    assert losses[0].isfinite() and losses[0] == losses[1]
    assert not motion_intensity(patchify(model.fold_bodies(x), 4)).any()


def is_compiled(block):
    return 'forward' in vars(block)


@pytest.mark.slow
def test_compiled_blocks_compute_the_same(monkeypatch):
    """Compiling takes most of a minute, and a C++ compiler."""
    if shutil.which('g++') is None:
        pytest.skip('no C++ compiler')
    monkeypatch.setattr(torch._dynamo.config, 'suppress_errors', False)
    results = []
    for wanted in ('off', 'on'):
        torch.manual_seed(0)
        model = MAMP(decoder_dim_feat=16, decoder_depth=1, **SMALL)
        names = list(model.state_dict())
        assert compile_blocks(model, wanted, torch.device('cpu')) == (wanted == 'on')
        assert list(model.state_dict()) == names
        assert all(is_compiled(block) == (wanted == 'on') for block in (*model.blocks, *model.decoder_blocks))
        loss, pred, _ = model(mixed_batch(), .6, 1, .8, torch.rand(16, 28))
        loss.backward()
        results.append([loss, pred, *(p.grad for p in model.parameters())])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_compiling_is_left_to_gpus():
    model = MAMP(decoder_dim_feat=16, decoder_depth=1, **SMALL)
    assert not compile_blocks(model, 'auto', torch.device('cpu'))
    assert not any(map(is_compiled, model.blocks))
