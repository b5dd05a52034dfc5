import math

import numpy as np
import pytest
import torch
from torch import nn

from model_mamp import MAMP
from model_transformer import ActionTransformer, SkeletonEncoder, make_blocks
from tests import golden_numbers
from tests.golden_numbers import ACTIVATION_ATOL

TINY = {'dim_feat': 16, 'depth': 2, 'num_heads': 2, 'num_frames': 12, 'num_joints': 5, 't_patch_size': 3}

ENCODER_KEYS = {'joints_embed.proj.weight', 'joints_embed.proj.bias', 'pos_embed', 'temp_embed', 'norm.weight',
                'norm.bias'}
BLOCK_KEYS = {'norm1.weight', 'norm1.bias', 'attn.qkv.weight', 'attn.qkv.bias', 'attn.proj.weight', 'attn.proj.bias',
              'norm2.weight', 'norm2.bias', 'mlp.fc1.weight', 'mlp.fc1.bias', 'mlp.fc2.weight', 'mlp.fc2.bias'}
DECODER_KEYS = {'decoder_embed.weight', 'decoder_embed.bias', 'mask_token', 'decoder_norm.weight', 'decoder_norm.bias',
                'decoder_temp_embed', 'decoder_pos_embed', 'decoder_pred.weight', 'decoder_pred.bias'}
HEAD_KEYS = {
    'linprobe': {'head.fc.0.running_mean', 'head.fc.0.running_var', 'head.fc.0.num_batches_tracked',
                 'head.fc.1.weight', 'head.fc.1.bias'},
    'finetune': {'head.bn.weight', 'head.bn.bias', 'head.bn.running_mean', 'head.bn.running_var',
                 'head.bn.num_batches_tracked', 'head.fc1.weight', 'head.fc1.bias', 'head.fc2.weight',
                 'head.fc2.bias'}}


def block_keys(prefix, depth):
    return {f'{prefix}.{i}.{key}' for i in range(depth) for key in BLOCK_KEYS}


def clips(count, bodies=2, seed=0):
    return torch.randn(count, 3, 12, 5, bodies, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize('name', ['linprobe_small', 'finetune_small'])
def test_golden_logits(name):
    golden = golden_numbers.load(name)
    config = dict(golden['config'])
    seed = config.pop('seed')
    model = ActionTransformer(**config)
    if weights := golden_numbers.weights(golden):
        model.load_state_dict(weights)                                              # strict
    else:
        golden_numbers.fill_weights(model, seed)
    with torch.no_grad():
        logits = model.eval()(torch.from_numpy(golden['x']))
    np.testing.assert_allclose(logits.numpy(), golden['logits'], rtol=0, atol=ACTIVATION_ATOL)


def test_number_of_parameters():
    model = ActionTransformer(num_classes=60, protocol='finetune')
    assert sum(parameter.numel() for parameter in model.parameters()) == 19_572_284


# State keys are the authors', so that their weights load

def test_state_keys_of_pretraining():
    model = MAMP(**TINY | {'decoder_dim_feat': 8, 'decoder_depth': 3})
    assert set(model.state_dict()) == (ENCODER_KEYS | block_keys('blocks', 2) | DECODER_KEYS
                                       | block_keys('decoder_blocks', 3))


@pytest.mark.parametrize('protocol', ['linprobe', 'finetune'])
def test_state_keys_of_classification(protocol):
    model = ActionTransformer(7, protocol, **TINY)
    assert set(model.state_dict()) == ENCODER_KEYS | block_keys('blocks', 2) | HEAD_KEYS[protocol]


def test_shapes_of_the_embeddings():
    state = MAMP(**TINY | {'decoder_dim_feat': 8}).state_dict()
    shapes = {name: tuple(state[name].shape) for name in state if name.endswith(('embed', 'token'))}
    assert shapes == {'pos_embed': (1, 1, 5, 16), 'temp_embed': (1, 4, 1, 16), 'mask_token': (1, 1, 8),
                      'decoder_pos_embed': (1, 1, 5, 8), 'decoder_temp_embed': (1, 4, 1, 8)}
    assert state['joints_embed.proj.weight'].shape == (16, 3, 3, 1)


# Initial values

@pytest.fixture(scope='module', params=['MAMP', 'finetune', 'linprobe'])
def fresh(request):
    torch.manual_seed(1)
    size = {'dim_feat': 64, 'depth': 2, 'num_heads': 4}
    if request.param == 'MAMP':
        return MAMP(decoder_dim_feat=48, decoder_depth=1, **size)
    return ActionTransformer(60, request.param, **size)


def test_linear_layers_start_xavier_uniform_with_zero_bias(fresh):
    for name, module in fresh.named_modules():
        if not isinstance(module, nn.Linear):
            continue
        assert not module.bias.any(), name
        if name == 'head.fc.1':                                                     # the probe's, tested below
            continue
        bound = math.sqrt(6 / (module.in_features + module.out_features))           # qkv as one 3D × D matrix
        largest, spread = module.weight.abs().max().item(), module.weight.std().item()
        assert 0.97 * bound < largest <= bound * (1 + 1e-6), name
        assert spread == pytest.approx(bound / math.sqrt(3), rel=0.05), name
    assert fresh.blocks[0].attn.qkv.weight.shape == (192, 64)


def test_norms_embeddings_and_convolution_start_as_they_should(fresh):
    for name, module in fresh.named_modules():
        if isinstance(module, nn.LayerNorm) or name == 'head.bn':
            assert (module.weight == 1).all() and not module.bias.any(), name
    for name, parameter in fresh.named_parameters():
        if name.endswith('_embed'):
            # at least 1,200 normal values: their standard deviation is known to 2 %, the bound is five of these
            assert parameter.std().item() == pytest.approx(0.02, rel=0.1), name
            assert abs(parameter.mean().item()) < 5 * 0.02 / math.sqrt(parameter.numel()), name
    bound = 1 / math.sqrt(3 * 4)                                # PyTorch's default for a convolution: 1 / √fan-in
    for parameter in fresh.joints_embed.proj.parameters():
        assert 0.9 * bound < parameter.abs().max() <= bound
    if hasattr(fresh, 'mask_token'):
        assert fresh.mask_token.std().item() == pytest.approx(0.02, rel=0.5)        # 48 values


def test_probe_head_starts_small():
    torch.manual_seed(2)
    head = ActionTransformer(60, 'linprobe', **TINY | {'dim_feat': 64}).head
    assert head.fc[1].weight.std().item() == pytest.approx(0.01, rel=0.05)


def test_norms_have_their_epsilon(fresh):
    norms = {name: module.eps for name, module in fresh.named_modules() if isinstance(module, nn.LayerNorm)}
    assert {'blocks.0.norm1', 'blocks.1.norm2', 'norm'} <= set(norms) and set(norms.values()) == {1e-5}
    if isinstance(fresh, ActionTransformer):
        expected = {'head.fc.0': (1e-6, False)} if fresh.frozen else {'head.bn': (1e-5, True)}
        assert {name: (module.eps, module.affine) for name, module in fresh.named_modules()
                if isinstance(module, nn.BatchNorm1d)} == expected


def test_small_inputs_show_the_epsilon():
    """Where the variance is as small as eps, the output says which eps it was."""
    encoder = SkeletonEncoder(**TINY | {'depth': 0})
    tokens = torch.randn(1, 20, 16, generator=torch.Generator().manual_seed(3)) * 3e-3
    centred = tokens.double() - tokens.double().mean(dim=2, keepdim=True)
    expected = centred / (centred.square().mean(dim=2, keepdim=True) + 1e-5).sqrt()
    torch.testing.assert_close(encoder.encode(tokens).double(), expected, rtol=1e-4, atol=1e-5)


# Layout

def test_features_keep_bodies_segments_and_joints_apart():
    model = ActionTransformer(7, 'finetune', **TINY | {'depth': 0}).eval()
    golden_numbers.fill_weights(model, seed=4)
    x = clips(2)
    with torch.no_grad():
        features = model.features(x)
        assert features.shape == (2, 2, 4, 5, 16)
        moved = x.clone()
        moved[1, :, 6:9, 3, 0] += 1                                                 # clip 1, body 0, segment 2, joint 3
        changed = (model.features(moved) != features).any(dim=4)
    assert changed.nonzero().tolist() == [[1, 0, 2, 3]]                             # without blocks nothing mixes


def test_heads_pool_what_the_protocol_says():
    features = torch.randn(3, 2, 4, 5, 16, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        probe = ActionTransformer(7, 'linprobe', **TINY).eval().head
        pooled = features.numpy().astype(np.float64).mean(axis=(1, 2, 3)) / math.sqrt(1 + 1e-6)
        expected = pooled @ probe.fc[1].weight.double().numpy().T
        np.testing.assert_allclose(probe(features).numpy(), expected, atol=1e-6)

        tuned = ActionTransformer(7, 'finetune', **TINY).eval().head
        pooled = features.numpy().astype(np.float64).mean(axis=2).reshape(3, 2, 5 * 16).mean(axis=1)
        hidden = np.maximum(pooled @ tuned.fc1.weight.double().numpy().T / math.sqrt(1 + 1e-5), 0)
        assert hidden.shape == (3, 2048)
        np.testing.assert_allclose(tuned(features).numpy(), hidden @ tuned.fc2.weight.double().numpy().T, atol=1e-5)


# Training modes

def test_probe_trains_the_head_alone():
    model = ActionTransformer(7, 'linprobe', **TINY | {'drop_path_rate': 0.5})
    assert {name for name, parameter in model.named_parameters() if parameter.requires_grad} == {'head.fc.1.weight',
                                                                                                  'head.fc.1.bias'}
    assert model.train() is model and model.training and model.head.training and model.head.fc[0].training
    encoder = [module for name, module in model.named_modules() if name and not name.startswith('head')]
    assert len(encoder) > 20 and not any(module.training for module in encoder)

    x = clips(6)
    features = model.features(x)
    assert torch.equal(model.features(x), features) and not features.requires_grad  # no stochastic depth
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model(x).square().sum().backward()
    assert {name for name, parameter in model.named_parameters() if parameter.grad is not None} == {
        'head.fc.1.weight', 'head.fc.1.bias'}
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {'head.fc.0.running_mean', 'head.fc.0.running_var', 'head.fc.0.num_batches_tracked'}

    model.eval()
    assert not model.training and not any(module.training for module in model.modules())


def test_finetuning_trains_everything():
    model = ActionTransformer(7, 'finetune', **TINY)
    assert all(module.training for module in model.train().modules())
    model(clips(6)).square().sum().backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in model.parameters())
    assert not any(module.training for module in model.eval().modules())


def test_head_dropout_is_on_in_training_only():
    model = ActionTransformer(7, 'finetune', **TINY, head_dropout=0.3)
    features = torch.ones(4, 2, 4, 5, 16)
    torch.manual_seed(6)
    dropped = model.head.train().dropout(features)
    assert (dropped == 0).float().mean().item() == pytest.approx(0.3, abs=5 * math.sqrt(0.21 / features.numel()))
    assert torch.equal(model.head.eval().dropout(features), features)


# Stochastic depth

def test_drop_path_rates_are_the_golden_ones():
    golden = golden_numbers.load('optim.json')['drop_path_rates']
    model = ActionTransformer(7, 'finetune', **TINY | {'depth': golden['depth'], 'drop_path_rate': golden['rate']})
    for branch in ('drop_path1', 'drop_path2'):
        rates = [getattr(getattr(block, branch), 'drop_prob', 0.) for block in model.blocks]
        assert rates == golden['per_block']


def test_pretraining_has_no_stochastic_depth():
    model = MAMP(**TINY | {'decoder_dim_feat': 8})
    assert not any(getattr(module, 'drop_prob', 0.) for module in model.modules())


def test_stochastic_depth_is_drawn_per_body():
    """Every body keeps or loses each branch whole; bodies of one clip are drawn apart."""
    model = ActionTransformer(7, 'finetune', **TINY | {'drop_path_rate': 0.5})
    golden_numbers.fill_weights(model, seed=7)
    x = clips(1, bodies=1).expand(32, -1, -1, -1, 2)                                # 64 equal bodies
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


def test_blocks_are_pre_norm_with_exact_gelu():
    """One block against the formulas, in float64 without a fused kernel."""
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
        assert hidden.shape == (2, 6, 32)
        expected = expected + hidden @ block.mlp.fc2.weight.T + block.mlp.fc2.bias
        torch.testing.assert_close(block(tokens), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize('changes, named', [({'num_frames': 13}, 'num_frames 13'), ({'dim_feat': 15}, 'dim_feat 15'),
                                            ({'protocol': 'knn'}, "'knn'")])
def test_impossible_settings_are_refused(changes, named):
    with pytest.raises(ValueError, match=named):
        ActionTransformer(**{'num_classes': 7, 'protocol': 'finetune'} | TINY | changes)
