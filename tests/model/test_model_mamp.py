"""The method: golden values of the authors' program, plain float64 loops, and statistics of the mask."""

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


def random(*shape, seed):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def random_uniform(*shape, seed):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def make_tiny(clips=2, **changes):
    """A small model, no weight of which has its initial value, and clips of two bodies (N, C, T, V, M)."""
    model = MAMP(**TINY | changes)
    golden_numbers.fill_weights(model, seed=5)
    return model, random(clips, 3, 12, 5, 2, seed=6)


# ---- the authors' program --------------------------------------------------------------------------------------------

@pytest.mark.parametrize('name', GOLDEN)
def test_loss_prediction_mask_and_gradients_are_the_golden_ones(name):
    golden = golden_numbers.load(name)
    config = dict(golden['config'])
    seed, *settings = (config.pop(key) for key in ('seed', 'mask_ratio', 'motion_stride', 'motion_aware_tau'))
    model = MAMP(**config)
    golden_numbers.load_weights(model, golden, seed)
    x = torch.from_numpy(golden['x'])
    loss, pred, mask = model(x, *settings, torch.from_numpy(golden['uniform']))
    loss.backward()
    assert np.array_equal(mask.numpy(), golden['mask'])
    assert loss.item() == pytest.approx(float(golden['loss']), rel=LOSS_RTOL)
    np.testing.assert_allclose(pred.detach().numpy(), golden['pred'], rtol=0, atol=ACTIVATION_ATOL)
    norms = {key: parameter.grad.norm().item() for key, parameter in model.named_parameters()}
    assert norms == pytest.approx(golden['grad_norms'], rel=GRADIENT_RTOL)

    torch.manual_seed(seed)
    assert np.array_equal(model.draw_mask(model.fold_bodies(x), settings[0], settings[2])[2].numpy(), golden['mask'])


def test_a_forward_pass_draws_random_numbers_once():
    model, x = make_tiny()
    torch.manual_seed(20)
    loss = model(x, 0.6)[0]
    state = torch.get_rng_state()
    torch.manual_seed(20)
    uniform = torch.rand(4, 20)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(model(x, 0.6, uniform=uniform)[0], loss) and torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize('decoder_depth, parameters', [(3, 8_789_004), (5, 10_368_524)])
def test_the_number_of_parameters_is_the_published_one(decoder_depth, parameters):
    assert sum(parameter.numel() for parameter in MAMP(decoder_depth=decoder_depth).parameters()) == parameters


# ---- plain float64 loops, written from the paper's formulas ----------------------------------------------------------

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
                squares = [(a - b) ** 2 for a, b in zip(predicted[token], expected, strict=True)]
                errors.append(sum(squares) / len(squares))
    return sum(errors) / len(errors)


@pytest.mark.parametrize('tau', [0.8, 0.3, 0])
def test_the_mask_equals_that_of_loops(tau):
    model, x = make_tiny(clips=4)
    x[:, :, :, 1] *= 5                                                              # a joint that moves more
    bodies, uniform = model.fold_bodies(x), random_uniform(8, 20, seed=7)
    intensity = motion_intensity(patchify(bodies, 3))
    order = masking_order(intensity, tau, uniform)
    with torch.no_grad():
        mask = model(x, 0.7, 1, tau, uniform)[2]
    for b, body in enumerate(bodies.tolist()):
        assert intensity[b].tolist() == pytest.approx(loop_intensity(body, u=3), rel=1e-5)
        keys = loop_sort_keys(loop_intensity(body, u=3), tau, uniform[b].tolist())
        expected = sorted(range(20), key=lambda token: keys[token])                 # noqa: B023  called at once
        assert min(keys[b] - keys[a] for a, b in zip(expected, expected[1:], strict=False)) > 1e-6      # no near tie
        assert order[b].tolist() == expected
        assert mask[b].tolist() == [token not in expected[:6] for token in range(20)]       # int(20 · (1 − 0.7)) is 6


def test_target_equals_that_of_loops():
    bodies = random(2, 12, 5, 3, seed=9)
    for stride in (1, 2, 5):
        np.testing.assert_allclose(motion(bodies, stride).numpy(), [loop_motion(body, stride)
                                                                    for body in bodies.tolist()], atol=1e-6)
    for body, patches in zip(bodies.tolist(), patchify(bodies, 3).tolist(), strict=True):
        assert {(p, v): patches[p][v] for p in range(4) for v in range(5)} == loop_patches(body, u=3)
    target = random(2, 4, 9, seed=10) * 3 + 7
    target[0, 0] *= 1e-4                                        # where the 1e-6 beside the variance matters
    target[1, 0] = 0.
    np.testing.assert_allclose(normalise(target).numpy(), [[loop_normalise(token) for token in body]
                                                           for body in target.tolist()], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('target', ['motion', 'joint'])
@pytest.mark.parametrize('stride, normalised', [(1, True), (2, False), (3, True)])
def test_the_loss_equals_that_of_loops(target, stride, normalised):
    """With an empty second body; the joint target does not depend on the stride."""
    model, x = make_tiny(target=target, norm_skes_loss=normalised)
    x[1, ..., 1] = 0.
    with torch.no_grad():
        loss, pred, mask = model(x, 0.6, stride, 0.8)
    assert mask.sum(dim=1).tolist() == [12] * 4
    bodies = model.fold_bodies(x).tolist()
    expected = loop_loss(bodies, pred.tolist(), mask.tolist(), 3, stride, target, normalised)
    assert loss.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize('segments, joints, mask_ratio, visible', [
    (30, 25, 0.9, 74), (30, 25, 0.8, 149), (6, 25, 0.9, 14), (4, 5, 0.5, 10)])
def test_the_number_of_visible_tokens_is_truncated_in_double_arithmetic(segments, joints, mask_ratio, visible):
    """1 − 0.9 is 0.09999999999999998 there, so 74 of 750 tokens are visible, not 75."""
    model = MAMP(dim_feat=4, decoder_dim_feat=4, depth=0, decoder_depth=0, num_heads=1, num_frames=segments,
                 num_joints=joints, t_patch_size=1)
    with torch.no_grad():
        _, pred, mask = model(torch.randn(1, 3, segments, joints, 2), mask_ratio)
    assert pred.shape == (2, segments * joints, 3)
    assert (mask.shape, (mask == 0).sum(dim=1).tolist()) == ((2, segments * joints), [visible, visible])


# ---- statistics of the mask ------------------------------------------------------------------------------------------

def test_the_last_token_in_the_order_follows_the_motion_probabilities():
    """The largest of log π + Gumbel noise is token i with probability π_i exactly (the Gumbel-max theorem)."""
    body = random(12, 5, 3, seed=12) * torch.linspace(0.1, 2, 5)[:, None]
    intensity = torch.tensor(loop_intensity(body.tolist(), u=3), dtype=torch.float64)
    probability = (intensity / (intensity.max() * 0.4)).softmax(dim=0)
    draws = 40_000
    uniform = random_uniform(draws, 20, seed=13)
    last = masking_order(motion_intensity(patchify(body[None], 3)).expand(draws, -1), 0.4, uniform)[:, -1]
    frequency = last.bincount(minlength=20).double() / draws
    deviation = (probability * (1 - probability) / draws).sqrt()
    assert probability.max() / probability.min() > 3                                # otherwise the bound is loose
    assert ((frequency - probability).abs() < 5 * deviation).all()


def test_a_moving_joint_is_masked_more_often_only_with_tau():
    x = torch.zeros(2000, 12, 5, 3)
    x[:, :, 2] = random(2000, 12, 3, seed=14)
    model, uniform = make_tiny()[0], random_uniform(2000, 20, seed=15)

    def masked_share(tau, bodies):
        mask = model.draw_mask(bodies, 0.5, tau, uniform)[2]
        return mask.unflatten(1, (4, 5)).mean(dim=(0, 1))                           # (V,)

    # 8,000 tokens a joint, drawn without replacement: five standard deviations are at most 5 · ½ / √8000 = 0.028
    assert (masked_share(0., x) - 0.5).abs().max() < 0.028
    assert (masked_share(0.8, torch.zeros_like(x)) - 0.5).abs().max() < 0.028       # a body that does not move
    moving = masked_share(0.8, x)
    assert moving[2] > 0.6 and moving[[0, 1, 3, 4]].max() < 0.5
    assert masked_share(0.2, x)[2] > moving[2] + 0.05                               # a smaller tau is more selective


# ---- what loss and prediction depend on ------------------------------------------------------------------------------

def test_the_loss_depends_on_predictions_of_masked_tokens_only():
    model, x = make_tiny()
    bodies = model.fold_bodies(x)
    with torch.no_grad():
        _, pred, mask = model(x, 0.6)
        loss = model.forward_loss(bodies, pred, mask, 1)
        assert model.forward_loss(bodies, pred + 9. * (1 - mask)[..., None], mask, 1) == loss
        one_token = torch.zeros_like(pred)
        one_token[0, mask[0].argmax()] = 9.
        assert model.forward_loss(bodies, pred + one_token, mask, 1) != loss


def test_predictions_depend_on_visible_tokens_of_the_same_body_only():
    model, x = make_tiny()
    uniform = random_uniform(4, 20, seed=17)
    with torch.no_grad():
        _, pred, mask = model(x, 0.6, 1, 0., uniform)           # tau 0: the mask does not depend on x
        masked = mask.view(2, 2, 4, 5).permute(0, 2, 3, 1).repeat_interleave(3, dim=1)[:, None]     # (N, 1, T, V, M)
        assert torch.equal(model(x + 9 * masked, 0.6, 1, 0., uniform)[1], pred)
        assert not torch.allclose(model(x + 9 * (1 - masked), 0.6, 1, 0., uniform)[1], pred)
        for clip, body in np.ndindex(2, 2):
            row = 2 * clip + body                                                   # sample-major
            alone = model(x[clip:clip + 1, ..., body:body + 1], 0.6, 1, 0., uniform[row:row + 1])
            assert torch.equal(alone[2][0], mask[row])
            torch.testing.assert_close(alone[1][0], pred[row], rtol=0, atol=1e-5)


def test_empty_bodies_count_in_the_loss_unless_their_weight_is_zero():
    model, x = make_tiny()
    x[..., 1] = 0.
    uniform = random_uniform(4, 20, seed=18)
    loss, pred, mask = model(x, 0.6, 1, 0.8, uniform)
    loss.backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())
    with torch.no_grad():
        moving = model(x[..., :1], 0.6, 1, 0.8, uniform[0::2])[0].item()
        empty = pred[1::2].square().mean(dim=2)[mask[1::2] == 1].mean().item()      # their target is zero
        assert abs(moving - empty) > 0.1
        assert loss.item() == pytest.approx((moving + empty) / 2, rel=1e-5)
        weighted = model(x, 0.6, 1, 0.8, uniform, weight=torch.tensor([1., 0., 1., 0.]))[0].item()
        assert weighted == pytest.approx(moving, rel=1e-5)


# ---- precision -------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('target', ['motion', 'joint'])
def test_mask_target_and_loss_are_fp32_under_autocast(target):
    model, x = make_tiny(clips=8, target=target)
    x += 100                                        # bf16 would round these coordinates to halves of a metre
    bodies, uniform = model.fold_bodies(x), random_uniform(16, 20, seed=21)
    with torch.no_grad():
        exact = model(x, 0.6, 1, 0.8, uniform)[2]
        with torch.autocast('cpu', dtype=torch.bfloat16):
            loss, pred, mask = model(x, 0.6, 1, 0.8, uniform)
        assert (pred.dtype, loss.dtype) == (torch.bfloat16, torch.float32)          # autocast was on, and off
        assert torch.equal(mask, exact)
        assert loss == model.forward_loss(bodies, pred.float(), mask, 1)
    rounded = model.draw_mask(bodies.bfloat16(), 0.6, 0.8, uniform)[2]
    assert not torch.equal(rounded, exact)                                          # the test can see the difference
