import math

import numpy as np
import pytest
import torch

from model_mamp import MAMP
from model_transformer import ActionTransformer
from tests import golden_numbers
from util import metrics, optim, rng

TINY = {'dim_feat': 16, 'num_heads': 2, 'num_frames': 12, 'num_joints': 5, 't_patch_size': 3}


@pytest.fixture(scope='module')
def golden():
    return golden_numbers.load('optim.json')


def by_name(model, groups):
    """{parameter name: the group it is in}, every parameter in one group at most."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    pairs = [(names[id(parameter)], group) for group in groups for parameter in group['params']]
    assert len(dict(pairs)) == len(pairs)
    return dict(pairs)


def test_learning_rate_curves(golden):
    assert len(golden['lr_schedule']) == 3
    for curve in golden['lr_schedule']:
        given = [optim.learning_rate(epoch, curve['lr'], curve['min_lr'], curve['warmup_epochs'], curve['epochs'])
                 for epoch, _ in curve['points']]
        assert given == pytest.approx([value for _, value in curve['points']], rel=1e-12, abs=0)


def test_layer_and_weight_decay_of_every_parameter_when_finetuning(golden):
    recipe = golden['layer_decay']
    model = ActionTransformer(7, 'finetune', depth=recipe['depth'], **TINY)
    groups = by_name(model, optim.param_groups(model, recipe['weight_decay'], recipe['layer_decay']))
    assert groups.keys() == recipe['param'].keys() == dict(model.named_parameters()).keys()
    for name, (scale, decay) in recipe['param'].items():
        given = groups[name]['lr_scale'], groups[name]['weight_decay']
        assert given == pytest.approx((scale, decay), rel=1e-12, abs=0), name


def test_weight_decay_of_every_parameter_when_pretraining(golden):
    model = MAMP(depth=2, decoder_depth=1, decoder_dim_feat=8, **TINY)
    groups = by_name(model, optim.adamw(model, (0.9, 0.95), 0.05).param_groups)
    decays = {name: group['weight_decay'] for name, group in groups.items()}
    assert decays == golden['pretrain_weight_decay']
    assert all(group['lr_scale'] == 1 and group['betas'] == (0.9, 0.95) for group in groups.values())


def test_probe_optimises_its_head_alone():
    model = ActionTransformer(7, 'linprobe', depth=2, **TINY)
    optimizer = optim.sgd(model, weight_decay=0.)
    assert by_name(model, optimizer.param_groups).keys() == {'head.fc.1.weight', 'head.fc.1.bias'}
    assert all(group['momentum'] == 0.9 and not group['nesterov'] and group['dampening'] == 0
               for group in optimizer.param_groups)


def test_a_step_decays_and_scales_as_the_groups_say(golden):
    """With zero gradients AdamW only decays: w · (1 − lr · lr_scale · weight decay)."""
    recipe = golden['layer_decay']
    model = ActionTransformer(7, 'finetune', depth=recipe['depth'], **TINY)
    for parameter in model.parameters():
        parameter.data.fill_(1.)
        parameter.grad = torch.zeros_like(parameter)
    optimizer = optim.adamw(model, (0.9, 0.999), recipe['weight_decay'], recipe['layer_decay'])
    optim.set_learning_rate(optimizer, 0.5)
    optimizer.step()
    for name, parameter in model.named_parameters():
        scale, decay = recipe['param'][name]
        assert parameter.flatten()[0].item() == pytest.approx(1 - 0.5 * scale * decay, abs=1e-7), name


def brute_force_metrics(logits, label):
    top1 = top5 = loss = 0
    for row, wanted in zip(logits.astype(np.float64), label, strict=True):
        best = np.argsort(-row)
        top1 += best[0] == wanted
        top5 += wanted in best[:5]
        loss += np.log(np.exp(row - row.max()).sum()) + row.max() - row[wanted]
    samples = len(label)
    return {'top1': 100 * top1 / samples, 'top5': 100 * top5 / samples, 'loss': loss / samples, 'samples': samples}


@pytest.mark.parametrize('classes', [2, 3, 5, 6, 60])
def test_metrics_against_loops(classes):
    draw = np.random.default_rng(classes)
    logits = (draw.standard_normal((97, classes)) * 3).astype(np.float32)
    label = draw.integers(classes, size=97)
    counts = metrics.count_correct(torch.from_numpy(logits), torch.from_numpy(label))
    assert (counts.shape, counts.dtype) == ((4,), torch.float64)
    summary = metrics.summarise(counts)
    assert summary == pytest.approx(brute_force_metrics(logits, label), rel=1e-5)
    assert (summary['top5'] == 100) == (classes <= 5) and type(summary['samples']) is int


def test_counts_of_uneven_batches_add_up():
    draw = np.random.default_rng(1)
    logits = torch.from_numpy(draw.standard_normal((50, 11)).astype(np.float32))
    label = torch.from_numpy(draw.integers(11, size=50))
    parts = sum(metrics.count_correct(*part) for part in zip(logits.split([32, 17, 1]), label.split([32, 17, 1]),
                                                             strict=True))
    assert metrics.summarise(parts) == pytest.approx(metrics.summarise(metrics.count_correct(logits, label)), rel=1e-6)


class SplitMix64:
    """With Python's unbounded integers, after Steele, Lea and Flood (2014)."""

    def __init__(self, seed):
        self.state = seed

    def __next__(self):
        self.state = (self.state + 0x9E3779B97F4A7C15) % 2**64
        z = self.state
        z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
        return z ^ (z >> 31)


@pytest.mark.parametrize('key', [0, 1, 1234567, 2**62 + 12345, 2**63 - 1])
@pytest.mark.parametrize('size', [1, 3, 50])
def test_uniform_is_the_splitmix64_stream_of_the_key(key, size):
    """Position p takes numbers p · size to p · size + size − 1 of the stream, the upper 24 bits of each."""
    stream = SplitMix64(key)
    expected = [[(next(stream) >> 40) / 2**24 for _ in range(size)] for _ in range(8)]
    assert rng.uniform(key, torch.arange(8), size).tolist() == expected


def test_uniform_leaves_the_global_generators_alone():
    torch.manual_seed(3)
    before = torch.get_rng_state()
    rng.uniform(7, torch.arange(4), 5)
    rng.derive_seed(1, 2)
    assert torch.equal(torch.get_rng_state(), before)


def test_uniform_is_uniform():
    numbers = rng.uniform(rng.derive_seed(0, 1, 2), torch.arange(2000), 500).double()
    count = numbers.numel()
    assert numbers.min() >= 0 and numbers.max() < 1
    # five standard deviations of the mean, the variance (kurtosis: 1/80 − 1/144 = 1/180) and a correlation
    assert abs(numbers.mean() - 1 / 2) < 5 * math.sqrt(1 / 12 / count)
    assert abs(numbers.var() - 1 / 12) < 5 * math.sqrt(1 / 180 / count)
    for one, other in ((numbers[:, :-1], numbers[:, 1:]), (numbers[:-1], numbers[1:])):
        correlation = ((one - 0.5) * (other - 0.5)).mean() * 12
        assert abs(correlation) < 5 / math.sqrt(one.numel())
    shares = numbers.flatten().histc(100, 0, 1) / count
    assert (shares - 0.01).abs().max() < 5 * math.sqrt(0.01 * 0.99 / count)
