"""The method: golden values of the authors' program, plain float64 loops, and statistics of the mask."""

import math

import numpy as np
import pytest
import torch

from model_mamp import MAMP, masking_order, motion_intensity, patchify
from tests import golden_numbers
from tests.golden_numbers import ACTIVATION_ATOL, GRADIENT_RTOL, LOSS_RTOL

TINY = {'dim_feat': 16, 'decoder_dim_feat': 8, 'depth': 2, 'decoder_depth': 1, 'num_heads': 2, 'num_frames': 12,
        'num_joints': 5, 't_patch_size': 3}                                         # P = 4, L = 20, u·C = 9


def random(*shape, seed, draw=torch.randn):
    return draw(shape, generator=torch.Generator().manual_seed(seed))


def make_tiny(clips=2, **changes):
    """A small model, no weight of which has its initial value, and clips of two bodies (N, C, T, V, M)."""
    model = MAMP(**TINY | changes)
    golden_numbers.fill_weights(model, seed=5)
    return model, random(clips, 3, 12, 5, 2, seed=6)


@pytest.mark.parametrize('name', ['mamp_small', 'mamp_stride2_raw_target', 'mae_small', 'mamp_full_size'])
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


def loop_patches(body, u):
    """(T, V, C) nested -> {(p, v): u·C numbers, frame by frame}"""
    return {(p, v): [float(c) for frame in body[p * u:(p + 1) * u] for c in frame[v]]
            for p in range(len(body) // u) for v in range(len(body[0]))}


def loop_intensity(body, u):
    patches, segments, joints = loop_patches(body, u), len(body) // u, len(body[0])
    change = {}
    for p, v in np.ndindex(segments, joints):
        pairs = list(zip(patches[max(p, 1), v], patches[max(p, 1) - 1, v], strict=True))
        change[p, v] = sum(abs(now - before) for now, before in pairs) / len(pairs)
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
    bodies, uniform = model.fold_bodies(x), random(8, 20, seed=7, draw=torch.rand)
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


@pytest.mark.parametrize('target', ['motion', 'joint'])
@pytest.mark.parametrize('stride, normalised', [(1, True), (2, False), (3, True)])
def test_the_loss_equals_that_of_loops(target, stride, normalised):
    """With an empty second body and a joint that hardly moves; the joint target does not depend on the stride."""
    model, x = make_tiny(target=target, norm_skes_loss=normalised)
    x[1, ..., 1] = 0.
    x[:, :, :, 4] *= 1e-3                               # where the 1e-6 beside the variance matters
    with torch.no_grad():
        loss, pred, mask = model(x, 0.6, stride, 0.8)
    assert mask.sum(dim=1).tolist() == [12] * 4
    bodies = model.fold_bodies(x).tolist()
    expected = loop_loss(bodies, pred.tolist(), mask.tolist(), 3, stride, target, normalised)
    assert loss.item() == pytest.approx(expected, rel=1e-5)


def test_the_last_token_in_the_order_follows_the_motion_probabilities():
    """The largest of log π + Gumbel noise is token i with probability π_i exactly (the Gumbel-max theorem)."""
    body = random(12, 5, 3, seed=12) * torch.linspace(0.1, 2, 5)[:, None]
    intensity = torch.tensor(loop_intensity(body.tolist(), u=3), dtype=torch.float64)
    probability = (intensity / (intensity.max() * 0.4)).softmax(dim=0)
    draws = 40_000
    uniform = random(draws, 20, seed=13, draw=torch.rand)
    last = masking_order(motion_intensity(patchify(body[None], 3)).expand(draws, -1), 0.4, uniform)[:, -1]
    frequency = last.bincount(minlength=20).double() / draws
    deviation = (probability * (1 - probability) / draws).sqrt()
    assert probability.max() / probability.min() > 3                                # otherwise the bound is loose
    assert ((frequency - probability).abs() < 5 * deviation).all()


@pytest.mark.parametrize('target', ['motion', 'joint'])
def test_mask_target_and_loss_are_fp32_under_autocast(target):
    model, x = make_tiny(clips=8, target=target)
    x += 100                                        # bf16 would round these coordinates to halves of a metre
    bodies, uniform = model.fold_bodies(x), random(16, 20, seed=21, draw=torch.rand)
    with torch.no_grad():
        exact = model(x, 0.6, 1, 0.8, uniform)[2]
        with torch.autocast('cpu', dtype=torch.bfloat16):
            loss, pred, mask = model(x, 0.6, 1, 0.8, uniform)
        assert (pred.dtype, loss.dtype) == (torch.bfloat16, torch.float32)          # autocast was on, and off
        assert torch.equal(mask, exact)
        assert loss == model.forward_loss(bodies, pred.float(), mask, 1)
    rounded = model.draw_mask(bodies.bfloat16(), 0.6, 0.8, uniform)[2]
    assert not torch.equal(rounded, exact)                                          # the test can see the difference
