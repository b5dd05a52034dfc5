import math

import numpy as np
import pytest
import torch

from model_mamp import MAMP, masking_order, motion, motion_intensity, normalise, patchify
from tests import golden_numbers
from tests.golden_numbers import ACTIVATION_ATOL, GRADIENT_RTOL, LOSS_RTOL

GOLDEN = ('mamp_small', 'mamp_stride2_raw_target', 'mae_small', 'mamp_full_size')
TINY = {'dim_feat': 16, 'decoder_dim_feat': 8, 'depth': 2, 'decoder_depth': 1, 'num_heads': 2, 'num_frames': 12,
        'num_joints': 5, 't_patch_size': 3}                                         # P = 4, L = 20, u·C = 9


@pytest.fixture
def make_tiny():
    """Makes a small model with every weight away from its initial value, and the clips to feed it."""
    def make(clips=2, bodies=2, **changes):
        model = MAMP(**TINY | changes)
        golden_numbers.fill_weights(model, seed=5)
        shape = (clips, 3, TINY['num_frames'], TINY['num_joints'], bodies)
        return model, torch.randn(shape, generator=torch.Generator().manual_seed(6))
    return make


# The authors' code

def golden_model(golden):
    forward_settings = ('mask_ratio', 'motion_stride', 'motion_aware_tau', 'seed')
    model = MAMP(**{key: value for key, value in golden['config'].items() if key not in forward_settings})
    if weights := golden_numbers.weights(golden):
        model.load_state_dict(weights)                                              # strict
    else:
        golden_numbers.fill_weights(model, golden['config']['seed'])
    return model


def golden_forward(model, golden, uniform):
    config = golden['config']
    return model(torch.from_numpy(golden['x']), config['mask_ratio'], config['motion_stride'],
                 config['motion_aware_tau'], uniform)


@pytest.mark.parametrize('name', GOLDEN)
def test_golden_loss_prediction_mask_and_gradients(name):
    golden = golden_numbers.load(name)
    model = golden_model(golden)
    loss, pred, mask = golden_forward(model, golden, torch.from_numpy(golden['uniform']))
    loss.backward()

    assert np.array_equal(mask.numpy(), golden['mask'])
    assert loss.item() == pytest.approx(float(golden['loss']), rel=LOSS_RTOL)
    np.testing.assert_allclose(pred.detach().numpy(), golden['pred'], rtol=0, atol=ACTIVATION_ATOL)
    norms = {key: parameter.grad.norm().item() for key, parameter in model.named_parameters()}
    assert norms == pytest.approx(golden['grad_norms'], rel=GRADIENT_RTOL)


@pytest.mark.parametrize('name', GOLDEN)
def test_golden_mask_from_the_seed_alone(name):
    golden = golden_numbers.load(name)
    config = golden['config']
    model = golden_model(golden)
    if name == 'mamp_full_size':                # the mask depends on no weight: spare the thirteen blocks
        model.blocks, model.decoder_blocks = model.blocks[:0], model.decoder_blocks[:0]
    torch.manual_seed(config['seed'])
    with torch.no_grad():
        _, _, mask = golden_forward(model, golden, uniform=None)
    assert np.array_equal(mask.numpy(), golden['mask'])


@pytest.mark.parametrize('decoder_depth, parameters', [(3, 8_789_004), (5, 10_368_524)])
def test_number_of_parameters(decoder_depth, parameters):
    assert sum(parameter.numel() for parameter in MAMP(decoder_depth=decoder_depth).parameters()) == parameters


# The same steps in plain float64 loops, written from the paper's formulas

def loop_patches(body, u):
    """(T, V, C) nested -> {(p, v): u·C numbers, frame by frame}"""
    return {(p, v): [float(c) for frame in body[p * u:(p + 1) * u] for c in frame[v]]
            for p in range(len(body) // u) for v in range(len(body[0]))}


def loop_intensity(body, u):
    patches = loop_patches(body, u)
    segments, joints = len(body) // u, len(body[0])
    change = {}
    for p in range(1, segments):
        for v in range(joints):
            pairs = list(zip(patches[p, v], patches[p - 1, v], strict=True))
            change[p, v] = sum(abs(now - before) for now, before in pairs) / len(pairs)
    for v in range(joints):
        change[0, v] = change[1, v]
    return [change[p, v] for p in range(segments) for v in range(joints)]


def loop_sort_keys(intensity, tau, uniform):
    if tau == 0:
        return list(uniform)
    scaled = [value / (max(intensity) * tau + 1e-10) for value in intensity]
    total = sum(math.exp(value) for value in scaled)
    return [math.log(math.exp(value) / total) - math.log(-math.log(number + 1e-10) + 1e-10)
            for value, number in zip(scaled, uniform, strict=True)]


def loop_mask(keys, num_kept):
    kept = sorted(range(len(keys)), key=lambda token: keys[token])[:num_kept]
    return [0 if token in kept else 1 for token in range(len(keys))]


def loop_motion(body, stride):
    zero = [[0.] * len(body[0][0])] * len(body[0])
    return [[[float(b) - float(a) for a, b in zip(before, after, strict=True)]
             for before, after in zip(body[t], body[t + stride], strict=True)] if t + stride < len(body) else zero
            for t in range(len(body))]


def loop_normalise(values):
    mean = sum(values) / len(values)
    variance = sum((value - mean) ** 2 for value in values) / (len(values) - 1)
    return [(value - mean) / math.sqrt(variance + 1e-6) for value in values]


def loop_loss(bodies, pred, mask, u, stride, target, normalised):
    errors = []
    for body, predicted, masked in zip(bodies, pred, mask, strict=True):
        signal = loop_patches(loop_motion(body, stride) if target == 'motion' else body, u)
        for token, key in enumerate(sorted(signal)):
            expected = loop_normalise(signal[key]) if normalised else signal[key]
            if masked[token]:
                errors.append(sum((a - b) ** 2 for a, b in zip(predicted[token], expected, strict=True)) / len(expected))
    return sum(errors) / len(errors)


@pytest.mark.parametrize('tau', [0.8, 0.3, 0])
def test_mask_against_loops(make_tiny, tau):
    model, x = make_tiny(clips=4)
    x[:, :, :, 1] *= 5                                                          # a joint that moves more
    bodies = x.permute(0, 4, 2, 3, 1).flatten(0, 1)
    uniform = torch.rand(8, 20, generator=torch.Generator().manual_seed(7))
    with torch.no_grad():
        _, _, mask = model(x, 0.7, 1, tau, uniform)
    for body, draw, given in zip(bodies.tolist(), uniform.tolist(), mask.tolist(), strict=True):
        keys = loop_sort_keys(loop_intensity(body, u=3), tau, draw)
        ranked = sorted(keys)
        assert ranked[6] - ranked[5] > 1e-5                                     # no tie that rounding could turn
        assert given == loop_mask(keys, num_kept=6)                             # int(20 · (1 − 0.7)) is 6


def test_intensity_and_order_against_loops():
    generator = torch.Generator().manual_seed(8)
    bodies, uniform = torch.randn(3, 12, 5, 3, generator=generator), torch.rand(3, 20, generator=generator)
    intensity = motion_intensity(patchify(bodies, 3))
    assert torch.equal(intensity[:, :5], intensity[:, 5:10])                    # segment 0 takes segment 1's
    order = masking_order(intensity, 0.8, uniform)
    for body, draw, given, tokens in zip(bodies.tolist(), uniform.tolist(), intensity, order.tolist(), strict=True):
        expected = loop_intensity(body, u=3)
        assert given.tolist() == pytest.approx(expected, rel=1e-5)
        keys = loop_sort_keys(expected, 0.8, draw)
        assert tokens == sorted(range(20), key=lambda token: keys[token])       # noqa: B023  called at once


def test_patches_are_frame_major():
    bodies = torch.arange(2 * 6 * 5 * 3).float().reshape(2, 6, 5, 3)
    patches = patchify(bodies, 3)
    assert patches.shape == (2, 2, 5, 9)
    for body, given in zip(bodies.tolist(), patches.tolist(), strict=True):
        assert {(p, v): given[p][v] for p in range(2) for v in range(5)} == loop_patches(body, u=3)


@pytest.mark.parametrize('stride', [1, 2, 5])
def test_motion_against_loops(stride):
    bodies = torch.randn(2, 12, 5, 3, generator=torch.Generator().manual_seed(9))
    given = motion(bodies, stride)
    np.testing.assert_allclose(given.numpy(), [loop_motion(body, stride) for body in bodies.tolist()], atol=1e-6)
    assert not given[:, -stride:].any() and given[:, -stride - 1].any()


def test_normalised_target_has_unbiased_unit_variance():
    target = torch.randn(2, 4, 9, generator=torch.Generator().manual_seed(10)) * 3 + 7
    target[0, 0] *= 1e-4                                        # where the 1e-6 beside the variance can be seen
    target[1, 0] = 0.
    given = normalise(target)
    np.testing.assert_allclose(given.numpy(), [[loop_normalise(token) for token in body] for body in target.tolist()],
                               rtol=1e-4, atol=1e-4)
    assert given[0, 1].square().mean().item() == pytest.approx(8 / 9, rel=1e-5)


@pytest.mark.parametrize('target', ['motion', 'joint'])
@pytest.mark.parametrize('stride, normalised', [(1, True), (2, False), (3, True)])
def test_loss_against_loops(make_tiny, target, stride, normalised):
    model, x = make_tiny(target=target, norm_skes_loss=normalised)
    x[1, ..., 1] = 0.                                                           # an empty second body
    with torch.no_grad():
        loss, pred, mask = model(x, 0.6, stride, 0.8)
    assert mask.sum(dim=1).tolist() == [12] * 4
    bodies = x.permute(0, 4, 2, 3, 1).flatten(0, 1)
    expected = loop_loss(bodies.tolist(), pred.tolist(), mask.tolist(), 3, stride, target, normalised)
    assert loss.item() == pytest.approx(expected, rel=1e-5)


def test_joint_target_is_independent_of_the_stride(make_tiny):
    model, x = make_tiny(target='joint')
    uniform = torch.rand(4, 20, generator=torch.Generator().manual_seed(11))
    with torch.no_grad():
        assert model(x, 0.6, 1, 0., uniform)[0] == model(x, 0.6, 5, 0., uniform)[0]
        assert make_tiny(target='motion')[0](x, 0.6, 1, 0., uniform)[0] != model(x, 0.6, 1, 0., uniform)[0]


@pytest.mark.parametrize('segments, joints, mask_ratio, kept', [
    (30, 25, 0.9, 74), (30, 25, 0.8, 149), (6, 25, 0.9, 14), (6, 25, 0.8, 29), (4, 5, 0.5, 10), (4, 5, 0.96, 0)])
def test_number_of_kept_tokens_truncates_in_double(segments, joints, mask_ratio, kept):
    """1 − 0.9 is 0.09999999999999998 in double arithmetic, so 750 tokens keep 74, not 75."""
    model = MAMP(dim_feat=4, decoder_dim_feat=4, depth=0, decoder_depth=0, num_heads=1, num_frames=segments,
                 num_joints=joints, t_patch_size=1)
    with torch.no_grad():
        _, pred, mask = model(torch.randn(1, 3, segments, joints, 2), mask_ratio)
    assert pred.shape == (2, segments * joints, 3)
    assert (mask.shape, (mask == 0).sum(dim=1).tolist()) == ((2, segments * joints), [kept, kept])
    assert set(mask.unique().tolist()) <= {0., 1.}


# Statistics of the mask

def test_most_moving_token_is_masked_in_proportion_to_its_probability():
    """The largest of log π + Gumbel noise is token i with probability π_i exactly (the Gumbel-max theorem)."""
    body = torch.randn(12, 5, 3, generator=torch.Generator().manual_seed(12)) * torch.linspace(0.1, 2, 5)[:, None]
    intensity = torch.tensor(loop_intensity(body.tolist(), u=3), dtype=torch.float64)
    probability = (intensity / (intensity.max() * 0.4)).softmax(dim=0)
    draws = 40_000
    uniform = torch.rand(draws, 20, generator=torch.Generator().manual_seed(13))
    last = masking_order(motion_intensity(patchify(body[None], 3)).expand(draws, -1), 0.4, uniform)[:, -1]
    frequency = last.bincount(minlength=20).double() / draws
    deviation = (probability * (1 - probability) / draws).sqrt()
    assert probability.max() / probability.min() > 3                            # otherwise the bound is loose
    assert ((frequency - probability).abs() < 5 * deviation).all()


def test_moving_joint_is_masked_more_often_only_with_tau(make_tiny):
    model, _ = make_tiny()
    x = torch.zeros(2000, 3, 12, 5, 1)
    x[:, :, :, 2] = torch.randn(2000, 3, 12, 1, generator=torch.Generator().manual_seed(14))
    uniform = torch.rand(2000, 20, generator=torch.Generator().manual_seed(15))
    bodies = model.fold_bodies(x)

    def masked_share(tau):
        mask = model.draw_mask(bodies, 0.5, tau, uniform)[2]
        return mask.unflatten(1, (4, 5)).mean(dim=(0, 1))                       # (V,)

    # 8,000 tokens a joint, drawn without replacement: five standard deviations are at most 5 · ½ / √8000 = 0.028
    assert (masked_share(0.) - 0.5).abs().max() < 0.028
    moving = masked_share(0.8)
    assert moving[2] > 0.6 and moving[[0, 1, 3, 4]].max() < 0.5
    assert masked_share(0.2)[2] > moving[2] + 0.05                              # a smaller tau is more selective


def test_a_still_body_is_masked_uniformly(make_tiny):
    model, _ = make_tiny()
    uniform = torch.rand(4000, 20, generator=torch.Generator().manual_seed(16))
    mask = model.draw_mask(torch.zeros(4000, 12, 5, 3), 0.5, 0.8, uniform)[2]
    assert (mask.mean(dim=0) - 0.5).abs().max() < 5 * 0.5 / math.sqrt(4000)


# What the loss and the prediction may and may not depend on

def test_loss_is_independent_of_predictions_at_kept_tokens(make_tiny):
    model, x = make_tiny()
    bodies = model.fold_bodies(x)
    with torch.no_grad():
        _, pred, mask = model(x, 0.6)
        loss = model.forward_loss(bodies, pred, mask, 1)
        assert model.forward_loss(bodies, pred + 9. * (1 - mask)[..., None], mask, 1) == loss
        assert model.forward_loss(bodies, pred + 9. * mask[..., None], mask, 1) > loss
        one_token = torch.zeros_like(pred)
        one_token[0, mask[0].argmax()] = 9.
        assert model.forward_loss(bodies, pred + one_token, mask, 1) != loss


def test_predictions_are_independent_of_masked_tokens(make_tiny):
    model, x = make_tiny()
    uniform = torch.rand(4, 20, generator=torch.Generator().manual_seed(17))
    with torch.no_grad():
        _, pred, mask = model(x, 0.6, 1, 0., uniform)           # tau 0: the mask does not depend on x
        masked = mask.view(2, 2, 4, 5).permute(0, 2, 3, 1).repeat_interleave(3, dim=1)[:, None]     # (N, 1, T, V, M)
        assert torch.equal(model(x + 9 * masked, 0.6, 1, 0., uniform)[1], pred)
        assert not torch.allclose(model(x + 9 * (1 - masked), 0.6, 1, 0., uniform)[1], pred)


def test_empty_bodies_take_part_and_stay_finite(make_tiny):
    model, x = make_tiny()
    x[..., 1] = 0.
    uniform = torch.rand(4, 20, generator=torch.Generator().manual_seed(18))
    loss, pred, mask = model(x, 0.6, 1, 0.8, uniform)
    loss.backward()
    assert pred.isfinite().all() and mask.sum(dim=1).tolist() == [12] * 4
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())
    with torch.no_grad():
        actors = model(x[..., :1], 0.6, 1, 0.8, uniform[0::2])[0].item()
        empty = model(x[..., 1:], 0.6, 1, 0.8, uniform[1::2])[0].item()
    assert abs(actors - empty) > 0.1
    assert loss.item() == pytest.approx((actors + empty) / 2, rel=1e-5)
    # an empty body's target is zero: what is left is the prediction itself
    predicted = pred[1::2].square().mean(dim=2)[mask[1::2] == 1].mean().item()
    assert empty == pytest.approx(predicted, rel=1e-5)


def test_bodies_do_not_see_each_other(make_tiny):
    model, x = make_tiny(clips=3)
    uniform = torch.rand(6, 20, generator=torch.Generator().manual_seed(19))
    with torch.no_grad():
        _, pred, mask = model(x, 0.6, 1, 0.8, uniform)
        for clip in range(3):
            for body in range(2):
                row = 2 * clip + body                                           # sample-major
                alone = model(x[clip:clip + 1, ..., body:body + 1], 0.6, 1, 0.8, uniform[row:row + 1])
                assert torch.equal(alone[2][0], mask[row])
                torch.testing.assert_close(alone[1][0], pred[row], rtol=0, atol=1e-5)


@pytest.mark.parametrize('tau', [0.8, 0])
def test_forward_draws_once(make_tiny, tau):
    model, x = make_tiny()
    model.train()
    torch.manual_seed(20)
    loss, _, mask = model(x, 0.6, 1, tau)
    after = torch.get_rng_state()
    torch.manual_seed(20)
    uniform = torch.rand(4, 20)
    assert torch.equal(torch.get_rng_state(), after)
    again, _, same = model(x, 0.6, 1, tau, uniform)
    assert torch.equal(torch.get_rng_state(), after)                            # a given draw replaces that one
    assert torch.equal(mask, same) and torch.equal(loss, again)


# Precision and attention kernels

@pytest.mark.parametrize('target', ['motion', 'joint'])
def test_mask_target_and_loss_stay_fp32_under_autocast(make_tiny, target):
    model, x = make_tiny(clips=8, target=target)
    x += 100                                        # bf16 would round these coordinates to halves of a metre
    bodies = model.fold_bodies(x)
    uniform = torch.rand(16, 20, generator=torch.Generator().manual_seed(21))
    with torch.no_grad():
        _, _, exact = model(x, 0.6, 1, 0.8, uniform)
        with torch.autocast('cpu', dtype=torch.bfloat16):
            loss, pred, mask = model(x, 0.6, 1, 0.8, uniform)
        assert (pred.dtype, loss.dtype) == (torch.bfloat16, torch.float32)      # autocast was on, and off
        assert torch.equal(mask, exact)
        assert loss == model.forward_loss(bodies, pred.float(), mask, 1)
    rounded = model.draw_mask(bodies.bfloat16(), 0.6, 0.8, uniform)[2]
    assert not torch.equal(rounded, exact)                                      # the test can tell the two apart


def test_fused_and_plain_attention_agree():
    golden = golden_numbers.load('mamp_small')
    results = {}
    for fused in (True, False):
        model = golden_model(golden)
        for block in (*model.blocks, *model.decoder_blocks):
            assert isinstance(block.attn.fused_attn, bool)
            block.attn.fused_attn = fused
        loss, pred, _ = golden_forward(model, golden, torch.from_numpy(golden['uniform']))
        loss.backward()
        results[fused] = loss.item(), pred.detach(), [p.grad.norm().item() for p in model.parameters()]
    assert results[True][0] == pytest.approx(results[False][0], rel=LOSS_RTOL)
    torch.testing.assert_close(results[True][1], results[False][1], rtol=0, atol=ACTIVATION_ATOL)
    assert results[True][2] == pytest.approx(results[False][2], rel=GRADIENT_RTOL)


@pytest.mark.parametrize('changes, named', [
    ({'num_frames': 13}, 'num_frames 13'), ({'dim_feat': 15}, 'dim_feat 15'),
    ({'decoder_dim_feat': 9}, 'decoder_dim_feat 9'), ({'target': 'bone'}, "'bone'")])
def test_impossible_settings_are_refused(changes, named):
    with pytest.raises(ValueError, match=named):
        MAMP(**TINY | changes)
