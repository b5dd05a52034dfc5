"""The encoder and the classifier: golden logits, the authors' names, initial values, and formulas in float64."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from model_mamp import MAMP
from model_transformer import ActionTransformer, SkeletonEncoder, make_blocks
from tests import golden_numbers
from tests.golden_numbers import ACTIVATION_ATOL
from util.checkpoint import Checkpoint

TINY = {'dim_feat': 16, 'depth': 2, 'num_heads': 2, 'num_frames': 12, 'num_joints': 5, 't_patch_size': 3}


def make_clips(count, bodies=2, seed=0):
    return torch.randn(count, 3, 12, 5, bodies, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize('name', ['linprobe_small', 'finetune_small'])
def test_logits_are_the_golden_ones(name):
    golden = golden_numbers.load(name)
    config = dict(golden['config'])
    seed = config.pop('seed')
    model = ActionTransformer(**config)
    golden_numbers.load_weights(model, golden, seed)
    with torch.no_grad():
        logits = model.eval()(torch.from_numpy(golden['x']))
    np.testing.assert_allclose(logits.numpy(), golden['logits'], rtol=0, atol=ACTIVATION_ATOL)


def test_the_numbers_of_parameters_are_the_published_ones():
    models = MAMP(decoder_depth=3), MAMP(decoder_depth=5), ActionTransformer(num_classes=60, protocol='finetune')
    assert [sum(parameter.numel() for parameter in model.parameters()) for model in models] == [
        8_789_004, 10_368_524, 19_572_284]


@pytest.mark.parametrize('make', [
    lambda **size: MAMP(decoder_dim_feat=48, decoder_depth=1, **size),
    lambda **size: ActionTransformer(60, 'finetune', **size), lambda **size: ActionTransformer(60, 'linprobe', **size)],
    ids=['MAMP', 'finetune', 'linprobe'])
def test_initial_values_have_their_distributions(make):
    torch.manual_seed(1)
    model = make(dim_feat=64, depth=2, num_heads=4)
    for name, module in model.named_modules():
        if isinstance(module, nn.LayerNorm) or name == 'head.bn':
            assert (module.weight == 1).all() and not module.bias.any() and module.eps == 1e-5, name
        elif name == 'head.fc.1':                                                   # the probe's
            assert module.weight.std().item() == pytest.approx(0.01, rel=0.05) and not module.bias.any()
        elif isinstance(module, nn.Linear):                                         # Xavier; qkv as one 3D × D matrix
            bound = math.sqrt(6 / (module.in_features + module.out_features))
            assert 0.97 * bound < module.weight.abs().max() <= bound * (1 + 1e-6) and not module.bias.any(), name
            assert module.weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.05), name
    for name, parameter in model.named_parameters():
        if name.endswith('_embed') or name == 'mask_token':
            # at least 1,200 normal values, but 48 in the mask token
            rel = 0.5 if name == 'mask_token' else 0.1
            assert parameter.std().item() == pytest.approx(0.02, rel=rel), name
            assert abs(parameter.mean().item()) < 5 * 0.02 / math.sqrt(parameter.numel()), name
    bound = 1 / math.sqrt(3 * 4)                                # PyTorch's default for a convolution: 1 / √fan-in
    for parameter in model.joints_embed.proj.parameters():
        assert 0.9 * bound < parameter.abs().max() <= bound


def test_heads_equal_their_formulas():
    features = torch.randn(3, 2, 4, 5, 16, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        probe = ActionTransformer(7, 'linprobe', **TINY).eval().head
        pooled = features.numpy().astype(np.float64).mean(axis=(1, 2, 3)) / math.sqrt(1 + 1e-6)
        expected = pooled @ probe.fc[1].weight.double().numpy().T
        np.testing.assert_allclose(probe(features).numpy(), expected, atol=1e-6)

        tuned = ActionTransformer(7, 'finetune', **TINY).eval().head
        pooled = features.numpy().astype(np.float64).mean(axis=2).reshape(3, 2, 5 * 16).mean(axis=1)
        hidden = np.maximum(pooled @ tuned.fc1.weight.double().numpy().T / math.sqrt(1 + 1e-5), 0)
        np.testing.assert_allclose(tuned(features).numpy(), hidden @ tuned.fc2.weight.double().numpy().T, atol=1e-5)


def test_a_linear_head_for_fine_tuning_computes_what_the_probe_does():
    features = torch.randn(3, 2, 4, 5, 16, generator=torch.Generator().manual_seed(9))
    tuned = ActionTransformer(7, 'finetune', **TINY, head='linear').eval()
    probe = ActionTransformer(7, 'linprobe', **TINY).eval()
    probe.head.load_state_dict(tuned.head.linear.state_dict())
    assert torch.equal(tuned.head(features), probe.head(features))
    assert Checkpoint(tuned.state_dict()).stage == 'finetune'
    assert all(parameter.requires_grad for parameter in tuned.parameters())


def test_patch_dropout_keeps_as_many_random_segments_of_each_joint():
    model = ActionTransformer(7, 'finetune', **TINY, patch_drop_rate=0.5)
    segments, joints = model.num_segments, model.num_joints
    tokens = torch.arange(64 * segments * joints).view(64, -1, 1).float()           # (B, L, 1): each token is unique
    kept = model.train().drop_patches(tokens).long().view(64, segments // 2, joints)
    assert torch.equal(kept % joints, torch.arange(joints).expand_as(kept))
    assert torch.equal(kept // (segments * joints), torch.arange(64)[:, None, None].expand_as(kept))
    assert all(len(set(column.tolist())) == segments // 2 for body in kept for column in body.T)
    share = (kept // joints % segments).flatten().bincount(minlength=segments) / kept.numel()
    assert share == pytest.approx([1 / segments] * segments, abs=0.05)
    x = make_clips(2)
    assert model(x).shape == (2, 7) and model.features(x).shape[2] == segments // 2
    assert model.eval().features(x).shape[2] == segments


def test_the_probe_trains_its_head_alone():
    model = ActionTransformer(7, 'linprobe', **TINY | {'drop_path_rate': 0.5}).train()
    encoder = [module for name, module in model.named_modules() if name and not name.startswith('head')]
    assert model.training and model.head.fc[0].training and not any(module.training for module in encoder)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model(make_clips(6)).square().sum().backward()
    assert {name for name, parameter in model.named_parameters() if parameter.grad is not None} == {
        'head.fc.1.weight', 'head.fc.1.bias'}
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {'head.fc.0.running_mean', 'head.fc.0.running_var', 'head.fc.0.num_batches_tracked'}
    assert not any(module.training for module in model.eval().modules())


def test_the_head_drops_out_in_training_only():
    model = ActionTransformer(7, 'finetune', **TINY, head_dropout=0.3)
    features = torch.ones(4, 2, 4, 5, 16)
    torch.manual_seed(6)
    dropped = model.head.train().dropout(features)
    assert (dropped == 0).float().mean().item() == pytest.approx(0.3, abs=5 * math.sqrt(0.21 / features.numel()))
    assert not torch.equal(model.head(features), model.head(features))
    assert torch.equal(model.head.eval().dropout(features), features)


def test_drop_path_rates_are_the_golden_ones():
    golden = golden_numbers.load('optim.json')['drop_path_rates']
    model = ActionTransformer(7, 'finetune', **TINY | {'depth': golden['depth'], 'drop_path_rate': golden['rate']})
    for branch in ('drop_path1', 'drop_path2'):
        rates = [getattr(getattr(block, branch), 'drop_prob', 0.) for block in model.blocks]
        assert rates == golden['per_block']


def test_stochastic_depth_is_drawn_per_body():
    """Every body keeps or loses each branch whole; bodies of one clip are drawn apart."""
    model = ActionTransformer(7, 'finetune', **TINY | {'drop_path_rate': 0.5})
    golden_numbers.fill_weights(model, seed=7)
    x = make_clips(1, bodies=1).expand(32, -1, -1, -1, 2)                           # 64 equal bodies
    with torch.no_grad():
        first, second = model.blocks                                                # rates 0 and 0.5
        tokens = first(model.embed(model.fold_bodies(x[:1, ..., :1])))
        outcomes = []
        for attention in (0., 2.):                                                  # dropped, or kept and doubled
            middle = tokens + attention * second.attn(second.norm1(tokens))
            outcomes += [model.norm(middle + mlp * second.mlp(second.norm2(middle))) for mlp in (0., 2.)]
        torch.manual_seed(8)
        features = model.train().features(x).flatten(2, 3)                          # (N, M, L, D)
        # distance of every body to each of the four outcomes, the largest over its tokens
        far = torch.stack([(features - outcome).abs().amax(dim=(2, 3)) for outcome in outcomes])
    nearest = far.argmin(dim=0)
    assert far.amin(dim=0).max() < 1e-5 and far.sort(dim=0).values[1].min() > 1e-3
    assert nearest.unique().tolist() == [0, 1, 2, 3]
    assert (nearest[:, 0] != nearest[:, 1]).any()


def test_a_block_equals_its_formulas():
    """Pre-norm attention and an MLP with exact GELU, in float64."""
    block, = make_blocks(8, 1, 2, 4.)
    golden_numbers.fill_weights(block, seed=9)
    block = block.double()
    for parameter in block.parameters():
        parameter.data *= 4                             # far enough from linear to tell erf's GELU from tanh's
    tokens = torch.randn(2, 6, 8, generator=torch.Generator().manual_seed(10), dtype=torch.float64)

    def norm(x, layer):
        x = x - x.mean(dim=-1, keepdim=True)
        return x / (x.square().mean(dim=-1, keepdim=True) + 1e-5).sqrt() * layer.weight + layer.bias

    with torch.no_grad():
        q, k, v = (norm(tokens, block.norm1) @ block.attn.qkv.weight.T + block.attn.qkv.bias).chunk(3, dim=-1)
        heads = []
        for part in (slice(0, 4), slice(4, 8)):
            scores = q[..., part] @ k[..., part].transpose(1, 2) / 2                # √(8 / 2 heads) = 2
            heads.append(scores.softmax(dim=-1) @ v[..., part])
        expected = tokens + torch.cat(heads, dim=-1) @ block.attn.proj.weight.T + block.attn.proj.bias
        hidden = norm(expected, block.norm2) @ block.mlp.fc1.weight.T + block.mlp.fc1.bias
        hidden = hidden * 0.5 * (1 + torch.erf(hidden / math.sqrt(2)))
        expected = expected + hidden @ block.mlp.fc2.weight.T + block.mlp.fc2.bias
        torch.testing.assert_close(block(tokens), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize('constructor, settings, part', [
    (SkeletonEncoder, {'num_frames': 13}, 'num_frames 13'), (SkeletonEncoder, {'dim_feat': 15}, 'dim_feat 15'),
    (MAMP, {'decoder_dim_feat': 9}, 'decoder_dim_feat 9'), (MAMP, {'target': 'bone'}, "'bone'"),
    (ActionTransformer, {'num_classes': 7, 'protocol': 'knn'}, "'knn'")])
def test_impossible_settings_are_refused(constructor, settings, part):
    with pytest.raises(ValueError, match=part):
        constructor(**settings)
