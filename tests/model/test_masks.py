"""Properties of the motion-aware mask, for any sizes, draws and motion."""

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from model_mamp import MAMP, masking_order
from util.rng import uniform

ANY = settings(derandomize=True, deadline=None, database=None, max_examples=40,
               suppress_health_check=list(HealthCheck))
SEEDS = st.integers(0, 2**31)


def make_blockless(segments: int, joints: int, seed: int) -> MAMP:
    """A model without blocks: its prediction at a token follows from that token alone, or from the mask token."""
    torch.manual_seed(seed)
    model = MAMP(dim_feat=4, decoder_dim_feat=4, depth=0, decoder_depth=0, num_heads=1, num_frames=2 * segments,
                 num_joints=joints, t_patch_size=2)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter)
    return model


@ANY
@given(st.integers(1, 6), st.integers(1, 6), st.integers(1, 3), st.integers(1, 3), st.floats(.01, .99),
       st.one_of(st.just(0.), st.floats(.05, 5)), st.floats(0, 1), SEEDS)
@torch.no_grad()
def test_each_token_is_masked_or_visible_and_is_restored_to_its_place(segments, joints, clips, bodies, ratio, tau,
                                                                      empty, seed):
    """With empty bodies among them, which are masked like the others."""
    model, tokens = make_blockless(segments, joints, seed), segments * joints
    x = torch.randn(clips, 3, 2 * segments, joints, bodies, generator=torch.Generator().manual_seed(seed))
    x = x * (uniform(seed, torch.arange(clips), bodies) >= empty).view(clips, 1, 1, 1, bodies)
    folded = model.fold_bodies(x)
    _, pred, mask = model(x, ratio, 1, tau, uniform(seed + 1, torch.arange(clips * bodies), tokens))
    assert ((mask == 0) | (mask == 1)).all() and ((mask == 0).sum(dim=1) == int(tokens * (1 - ratio))).all()
    place = (model.decoder_pos_embed + model.decoder_temp_embed).flatten(1, 2)
    visible, masked = (model.decoder_pred(model.decoder_norm(token + place)).expand(len(folded), -1, -1)
                       for token in (model.decoder_embed(model.norm(model.embed(folded))), model.mask_token))
    torch.testing.assert_close(pred, torch.where(mask[..., None] == 0, visible, masked), rtol=1e-4, atol=1e-4)


@ANY
@given(st.integers(1, 40), st.floats(.05, 5), SEEDS, st.floats(0, 1), st.data())
def test_a_token_that_moves_more_never_comes_earlier(tokens, tau, seed, share, data):
    """Draw by draw, as long as another token moves most."""
    intensity = uniform(seed, torch.tensor([0]), tokens + 1)
    intensity[0, -1] = 1.
    raised, token = intensity.clone(), data.draw(st.integers(0, tokens - 1))
    raised[0, token] += share * (1 - raised[0, token])
    draw = uniform(seed + 1, torch.arange(20), tokens + 1)
    before, after = (masking_order(motion.expand(20, -1), tau, draw).argsort(dim=1)[:, token]
                     for motion in (intensity, raised))
    assert (after >= before).all()
