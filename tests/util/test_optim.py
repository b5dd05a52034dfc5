"""Schedules, parameter groups, metrics and random numbers, against golden values and independent loops."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

import engine_finetune as metrics
from engine_pretrain import update_weights
from model_mamp import MAMP
from model_transformer import ActionTransformer
from tests import golden_numbers
from util import optim, rng
from util.capture import NO_GRAPHS
from util.dist import World

TINY = {'dim_feat': 16, 'num_heads': 2, 'num_frames': 12, 'num_joints': 5, 't_patch_size': 3}


@pytest.fixture(scope='module')
def golden():
    return golden_numbers.load('optim.json')


def groups_by_name(model, groups):
    """{parameter name: its group}; every parameter is in one group at most."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    pairs = [(names[id(parameter)], group) for group in groups for parameter in group['params']]
    assert len(dict(pairs)) == len(pairs)
    return dict(pairs)


def test_learning_rate_curves_are_the_golden_ones(golden):
    assert len(golden['lr_schedule']) == 3
    for curve in golden['lr_schedule']:
        rates = [optim.learning_rate(epoch, curve['lr'], curve['min_lr'], curve['warmup_epochs'], curve['epochs'])
                 for epoch, _ in curve['points']]
        assert rates == pytest.approx([value for _, value in curve['points']], rel=1e-12, abs=0)


def test_layer_and_weight_decay_of_fine_tuning_are_the_golden_ones(golden):
    """Also in what a step does: with zero gradients AdamW only decays, w · (1 − lr · lr_scale · weight decay)."""
    recipe = golden['layer_decay']
    model = ActionTransformer(7, 'finetune', depth=recipe['depth'], **TINY)
    for parameter in model.parameters():
        parameter.data.fill_(1.)
        parameter.grad = torch.zeros_like(parameter)
    optimizer = optim.adamw(model, (0.9, 0.999), recipe['weight_decay'], recipe['layer_decay'])
    optim.set_learning_rate(optimizer, 0.5)
    optimizer.step()
    groups = groups_by_name(model, optimizer.param_groups)
    assert groups.keys() == recipe['param'].keys() == dict(model.named_parameters()).keys()
    for name, (scale, decay) in recipe['param'].items():
        group = groups[name]
        assert (group['lr_scale'], group['weight_decay']) == pytest.approx((scale, decay), rel=1e-12, abs=0), name
        value = model.get_parameter(name).flatten()[0].item()
        assert value == pytest.approx(1 - 0.5 * scale * decay, abs=1e-7), name


def test_weight_decay_of_pretraining_is_the_golden_one_and_the_probe_has_none(golden):
    model = MAMP(depth=2, decoder_depth=1, decoder_dim_feat=8, **TINY)
    groups = groups_by_name(model, optim.adamw(model, (0.9, 0.95), 0.05).param_groups)
    assert {name: group['weight_decay'] for name, group in groups.items()} == golden['pretrain_weight_decay']
    assert all(group['lr_scale'] == 1 and group['betas'] == (0.9, 0.95) for group in groups.values())

    model = ActionTransformer(7, 'linprobe', depth=2, **TINY)
    groups = groups_by_name(model, optim.sgd(model, weight_decay=0.).param_groups)
    assert groups.keys() == {'head.fc.1.weight', 'head.fc.1.bias'}
    assert all(group['momentum'] == 0.9 and not group['nesterov'] for group in groups.values())


def test_an_update_clips_the_gradient_norm_and_returns_it():
    weight = torch.nn.Parameter(torch.zeros(8))
    weight.grad = torch.full_like(weight, 2.)
    model, optimizer = torch.nn.ParameterList([weight]), torch.optim.SGD([weight], lr=1.)
    trainer = SimpleNamespace(args=SimpleNamespace(clip_grad=0.1), model=model, world=World(0, 1, torch.device('cpu')),
                              optimizer=optimizer, graphs=NO_GRAPHS)
    assert update_weights(trainer).item() == pytest.approx(2 * 8 ** 0.5)
    assert weight.norm().item() == pytest.approx(0.1, rel=1e-5) and weight.grad is None


@pytest.mark.parametrize('classes', [3, 60])
def test_metrics_equal_those_of_loops_also_summed_over_uneven_batches(classes):
    draw = np.random.default_rng(classes)
    logits = (draw.standard_normal((97, classes)) * 3).astype(np.float32)
    label = draw.integers(classes, size=97)
    parts = [torch.from_numpy(array).split([64, 32, 1]) for array in (logits, label)]
    counts = sum(metrics.count_correct(*part) for part in zip(*parts, strict=True))
    top1 = top5 = loss = 0
    for row, correct in zip(logits.astype(np.float64), label, strict=True):
        best = np.argsort(-row)
        top1 += best[0] == correct
        top5 += correct in best[:5]
        loss += np.log(np.exp(row).sum()) - row[correct]
    assert metrics.summarise(counts) == pytest.approx(
        {'top1': 100 * top1 / 97, 'top5': 100 * top5 / 97, 'loss': loss / 97, 'samples': 97}, rel=1e-5)


def splitmix64(state):
    """With Python's unbounded integers, after Steele, Lea and Flood (2014)."""
    while True:
        state = (state + 0x9E3779B97F4A7C15) % 2**64
        z = (state ^ (state >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
        yield z ^ (z >> 31)


@pytest.mark.parametrize('key, size', [(0, 1), (1234567, 50), (2**63 - 1, 50)])
def test_uniform_is_the_splitmix64_stream_of_the_key(key, size):
    """Position p takes numbers p · size to p · size + size − 1 of the stream, the upper 24 bits of each."""
    stream, state = splitmix64(key), torch.get_rng_state()
    expected = [[(next(stream) >> 40) / 2**24 for _ in range(size)] for _ in range(8)]
    assert rng.uniform(key, torch.arange(8), size).tolist() == expected
    assert torch.equal(torch.get_rng_state(), state), "PyTorch's generator is left alone"
