"""What holds for whatever input: masks, crops, rotations, schedules, orders of clips and checkpoints."""

import argparse
import math
import os
import struct
from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st

from data.common import one_hot, write_npz
from feeder import transforms
from feeder.augment import ClipMaker
from feeder.dataset import EvalBatches, SkeletonDataset, TrainBatches
from feeder.loader import make_loader, read_batches
from model_mamp import MAMP, masking_order, motion_intensity, patchify
from model_transformer import ActionTransformer
from util import checkpoint
from util.checkpoint import LAST, PREVIOUS
from util.errors import UserError
from util.memory import count_weights
from util.optim import learning_rate, param_groups
from util.rng import uniform

ANY = settings(derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck))
SEEDS = st.integers(0, 2**31)
CPU = torch.device('cpu')
BELOW_ONE = 1 - 2**-24      # the largest draw there is


def noise(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


# --- masks ----------------------------------------------------------------------------------------------------------

def blockless(segments: int, joints: int, seed: int) -> MAMP:
    """A model without blocks, so that what it says at a token follows from that token alone, or from the mask token."""
    torch.manual_seed(seed)
    model = MAMP(dim_feat=4, decoder_dim_feat=4, depth=0, decoder_depth=0, num_heads=1, num_frames=2 * segments,
                 num_joints=joints, t_patch_size=2)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter)
    return model


@torch.no_grad()
def said_alone(model: MAMP, bodies: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """What a `blockless` model says at each token (B, L, u·C) when it is visible, and when it is hidden."""
    place = (model.decoder_pos_embed + model.decoder_temp_embed).flatten(1, 2)
    visible = model.decoder_embed(model.norm(model.embed(bodies)))
    return tuple(model.decoder_pred(model.decoder_norm(token + place)).expand(len(bodies), -1, -1)
                 for token in (visible, model.mask_token))


@settings(ANY, max_examples=60)
@given(st.integers(1, 6), st.integers(1, 6), st.integers(1, 3), st.integers(1, 3), st.floats(.01, .99),
       st.one_of(st.just(0.), st.floats(.05, 5)), st.floats(0, 1), SEEDS)
def test_each_token_is_hidden_or_visible_once_and_comes_back_to_its_place(segments, joints, clips, bodies, ratio, tau,
                                                                          empty, seed):
    """With empty bodies among them: they are masked as any."""
    model, tokens = blockless(segments, joints, seed), segments * joints
    x = noise(seed, clips, 3, 2 * segments, joints, bodies)
    x = x * (uniform(seed, torch.arange(clips), bodies) >= empty).view(clips, 1, 1, 1, bodies)
    draw = uniform(seed + 1, torch.arange(clips * bodies), tokens)
    folded, kept = model.fold_bodies(x), int(tokens * (1 - ratio))
    order = model.draw_order(folded, tau, draw)
    assert order.sort(dim=1).values.eq(torch.arange(tokens)).all(), 'an order of all tokens'
    with torch.no_grad():
        _, pred, mask = model(x, ratio, 1, tau, draw)
    assert ((mask == 0) | (mask == 1)).all() and ((mask == 0).sum(dim=1) == kept).all()
    assert all((mask[body, order[body, :kept]] == 0).all() for body in range(len(mask)))
    expected = torch.where(mask[..., None] == 0, *said_alone(model, folded))
    torch.testing.assert_close(pred, expected, rtol=1e-4, atol=1e-4)


@settings(ANY, max_examples=60)
@given(st.integers(1, 40), st.floats(.05, 5), SEEDS, st.floats(0, 1), st.data())
def test_a_token_that_moves_more_never_comes_earlier(tokens, tau, seed, share, data):
    """With the same draws, as long as another one moves most: exactly, draw by draw."""
    intensity = uniform(seed, torch.tensor([0]), tokens + 1)
    intensity[0, -1] = 1.
    raised, token = intensity.clone(), data.draw(st.integers(0, tokens - 1))
    raised[0, token] += share * (1 - raised[0, token])
    draw = uniform(seed + 1, torch.arange(20), tokens + 1)
    before, after = (masking_order(one.expand(20, -1), tau, draw).argsort(dim=1)[:, token]
                     for one in (intensity, raised))
    assert (after >= before).all()


@pytest.mark.parametrize('tau', [.3, .8])
def test_the_more_a_token_moves_the_likelier_it_is_hidden(tau):
    draws, intensity = 20_000, torch.linspace(0, 1, 12)
    hidden = masking_order(intensity.expand(draws, -1), tau, uniform(3, torch.arange(draws), 12))[:, 6:]
    share = hidden.flatten().bincount(minlength=12) / draws
    deviation = math.sqrt(.25 / draws)
    assert (share.diff() > -4 * math.sqrt(2) * deviation).all() and share[-1] - share[0] > 50 * deviation


@settings(ANY, max_examples=40)
@given(st.integers(1, 5), st.integers(1, 30), SEEDS, st.floats(0, 1000))
def test_tau_zero_and_bodies_that_rest_are_masked_by_the_draws_alone(bodies, tokens, seed, motion):
    draw = uniform(seed, torch.arange(bodies), tokens)
    moving = uniform(seed + 1, torch.arange(bodies), tokens) * motion
    assert torch.equal(masking_order(moving, 0, draw), draw.argsort(dim=1))
    for still in (torch.zeros_like(draw), torch.full_like(draw, motion)):
        ranked = draw.gather(1, masking_order(still, .8, draw))
        assert (ranked.diff(dim=1) >= -1e-5).all(), 'as drawn, but for what rounding makes equal'


def test_tau_zero_is_uniform():
    """Every token is as often at every place of the order."""
    draws, tokens = 20_000, 10
    order = masking_order(torch.arange(10.).expand(draws, -1), 0, uniform(5, torch.arange(draws), tokens))
    counts = torch.stack([place.bincount(minlength=tokens) for place in order.T]) / draws
    assert (counts - 1 / tokens).abs().max() < 5 * math.sqrt(.1 * .9 / draws)


@settings(ANY, max_examples=40)
@given(st.integers(2, 12), st.integers(1, 3), st.lists(st.integers(1, 4), min_size=1, max_size=12), st.floats(0, 2),
       SEEDS, st.integers(0, 400), st.integers(0, 5000))
def test_masks_are_the_same_however_the_batch_is_split(clips, bodies, sizes, tau, seed, epoch, step):
    """Into micro-batches and ranks of any sizes, in any order."""
    frames, maker = noise(seed, clips, bodies, 8, 5, 3), ClipMaker(8, 'joint', seed)
    frames[0, -1] = 0.

    def order_of(position: torch.Tensor) -> torch.Tensor:
        batch = SimpleNamespace(frames=torch.empty(0, bodies, 5, 3), position=position)
        draw = maker.mask_uniform(batch, epoch, step, 4 * 5)
        intensity = motion_intensity(patchify(frames[position].flatten(0, 1), 2))
        return masking_order(intensity, tau, draw).unflatten(0, (-1, bodies))

    whole, places = order_of(torch.arange(clips)), torch.randperm(clips, generator=torch.Generator().manual_seed(seed))
    for part in places.split(sizes[0]) if len(sizes) == 1 else places.tensor_split(np.cumsum(sizes).tolist()):
        assert torch.equal(order_of(part), whole[part])


# --- crops, resize, rotation ----------------------------------------------------------------------------------------

DRAWS = st.floats(0, BELOW_ONE, width=32)
LENGTHS = st.one_of(st.integers(1, 5), st.integers(60, 70), st.integers(1, 1000))


@settings(ANY, max_examples=150)
@given(st.lists(st.tuples(LENGTHS, DRAWS, DRAWS), min_size=1, max_size=8), st.floats(.001, 1), st.floats(.001, 1))
def test_random_crops_lie_in_their_clips(clips, one, other):
    low, high = sorted((one, other))
    n, *draws = (torch.tensor(column) for column in zip(*clips, strict=True))
    start, length = transforms.random_crop(n, low, high, torch.stack(draws, dim=1))
    assert (start >= 0).all() and (start + length <= n).all() and start.dtype == length.dtype == torch.int64
    for frames, share, at, size in zip(n.tolist(), draws[0].tolist(), start.tolist(), length.tolist(), strict=True):
        assert size == min(max(math.floor(frames * (low + (high - low) * share)), 64), frames)
        assert size >= 1 and (at == 0 or frames > 64), 'clips of 64 frames and fewer stay whole'


@settings(ANY, max_examples=100)
@given(st.lists(LENGTHS, min_size=1, max_size=8), st.floats(.001, 1))
def test_centre_crops_lie_in_the_middle(clips, p):
    n = torch.tensor(clips)
    start, length = transforms.center_crop(n, p)
    assert (length >= 1).all() and (start >= 0).all() and (n - start - length == start).all()
    assert ((length - p * n) >= -1e-6).all() and ((length - p * n) < 2).all()


def resampled(frames: np.ndarray, window: int) -> np.ndarray:
    """Frames (n, …) at the centres of `window` equal parts of the clip, in double precision, one by one."""
    made = []
    for step in range(window):
        at = min(max((step + .5) * len(frames) / window - .5, 0), len(frames) - 1)
        left = math.floor(at)
        right = min(left + 1, len(frames) - 1)
        made.append(frames[left] * (1 - (at - left)) + frames[right] * (at - left))
    return np.stack(made)


@settings(ANY, max_examples=120)
@given(st.lists(st.tuples(st.integers(0, 3), st.one_of(st.integers(1, 4), st.integers(1, 300)), st.integers(0, 3)),
                min_size=1, max_size=4), st.integers(1, 150), SEEDS)
def test_a_resized_crop_is_what_brute_force_makes_of_its_frames_alone(crops, window, seed):
    """Crops as (frames before, frames, frames after); what lies outside of them is NaN."""
    sizes, inside = [size for _, size, _ in crops], []
    begin = [before + sum(map(sum, crops[:i])) for i, (before, _, _) in enumerate(crops)]
    for before, size, after in crops:
        inside += [False] * before + [True] * size + [False] * after
    raw = noise(seed, len(inside), 1, 2, 3) * 3
    raw[~torch.tensor(inside)] = torch.nan
    made = transforms.resize_crops(raw, torch.tensor(begin), torch.tensor(sizes), window)
    assert made.shape == (len(crops), 3, window, 2, 1) and made.isfinite().all()
    for clip, at, size in zip(made, begin, sizes, strict=True):
        crop = raw[at:at + size]                                                    # (n, M, V, C)
        expected = resampled(crop.double().numpy(), window).transpose(3, 0, 2, 1)
        np.testing.assert_allclose(clip.numpy(), expected, rtol=0, atol=1e-3)
        low, high = crop.amin(dim=0).permute(2, 1, 0)[:, None], crop.amax(dim=0).permute(2, 1, 0)[:, None]
        slack = 1e-6 * crop.abs().max()
        assert ((clip >= low - slack) & (clip <= high + slack)).all(), 'between the least and the largest of its frames'


@settings(ANY, max_examples=60)
@given(st.integers(1, 300), st.integers(1, 150), SEEDS)
def test_a_clip_that_stands_still_does_so_at_any_length(frames, window, seed):
    pose = noise(seed, 1, 2, 4, 3) * 100
    made = transforms.resize_crops(pose.expand(frames, -1, -1, -1), torch.tensor([0]), torch.tensor([frames]), window)
    torch.testing.assert_close(made, pose.permute(0, 3, 2, 1)[:, :, None].expand_as(made), rtol=3e-7, atol=0)


@settings(ANY, max_examples=100)
@given(st.lists(st.tuples(*[st.floats(-10, 10, width=32)] * 3), min_size=1, max_size=6))
def test_rotations_are_orthonormal_and_mirror_nothing(angles):
    axes = torch.eye(3)[None, :, None, :, None].expand(len(angles), -1, -1, -1, -1)     # as joints, (B, C, 1, 3, 1)
    rotation = transforms.rotate(axes, torch.tensor(angles))[:, :, 0, :, 0].double()
    eye = torch.eye(3, dtype=torch.float64).expand_as(rotation)
    torch.testing.assert_close(rotation @ rotation.mT, eye, rtol=0, atol=1e-6)
    torch.testing.assert_close(rotation.det(), torch.ones(len(angles), dtype=torch.float64), rtol=0, atol=1e-6)


# --- schedules and groups -------------------------------------------------------------------------------------------

@settings(ANY, max_examples=150)
@given(st.integers(1, 400), st.floats(0, 1, exclude_max=True), st.floats(1e-6, 10), st.floats(0, 1), st.integers(1, 50))
def test_the_learning_rate_rises_to_its_peak_then_falls_to_its_end(epochs, warm, lr, least, steps):
    warmup, min_lr = warm * epochs, least * lr

    def at(epoch: float) -> float:
        return learning_rate(epoch, lr, min_lr, warmup, epochs)

    slack = 1e-9 * lr
    rates = [(one / steps, at(one / steps)) for one in range(epochs * steps + 1)][::max(1, epochs * steps // 300)]
    rising, falling = ([rate for epoch, rate in rates if (epoch < warmup) == early] for early in (True, False))
    assert all(0 <= rate <= lr + slack for rate in rising) and rising == sorted(rising)
    assert all(min_lr - slack <= rate <= lr + slack for rate in falling)
    assert all(later <= rate + slack for rate, later in zip(falling, falling[1:], strict=False))
    assert at(warmup) == pytest.approx(lr, rel=1e-9) and at(epochs) == pytest.approx(min_lr, rel=1e-9, abs=slack)
    assert at(0) == (0 if warmup else pytest.approx(lr))
    if warmup > 1e-3:
        assert at(warmup * (1 - 1e-7)) == pytest.approx(lr, rel=1e-6), 'without a step at its end'


@settings(ANY, max_examples=15)
@given(st.integers(1, 13), st.floats(.1, 1), st.floats(0, 1))
def test_each_layer_learns_slower_than_the_one_above_it(depth, decay, weight_decay):
    model = ActionTransformer(3, 'finetune', dim_feat=4, depth=depth, num_heads=1, num_frames=4, num_joints=2)
    groups = param_groups(model, weight_decay, decay)
    name_of = {parameter: name for name, parameter in model.named_parameters()}
    found = {name_of[parameter]: group for group in groups for parameter in group['params']}
    assert sum(len(group['params']) for group in groups) == len(found) == len(name_of), 'each in one group, once'
    assert len(groups) <= 2 * (depth + 2)
    for name, group in found.items():
        begins = name.split('.')
        layers = {'joints_embed': 0, 'pos_embed': 0, 'temp_embed': 0, 'norm': depth + 1, 'head': depth + 1}
        layer = int(begins[1]) + 1 if begins[0] == 'blocks' else layers[begins[0]]
        assert group['lr_scale'] == pytest.approx(decay ** (depth + 1 - layer), rel=1e-9), name
        assert group['weight_decay'] == (weight_decay if model.get_parameter(name).ndim > 1 else 0), name


@settings(ANY, max_examples=15)
@given(st.integers(1, 4), st.integers(1, 4), st.integers(1, 3), st.floats(1, 5), st.integers(0, 3), st.integers(0, 3),
       st.integers(1, 4), st.integers(1, 6), st.integers(1, 9))
def test_weights_are_counted_without_building_a_model(width, other, heads, ratio, depth, other_depth, u, segments,
                                                      joints):
    sizes = argparse.Namespace(dim_feat=width * heads, decoder_dim_feat=other * heads, depth=depth, num_heads=heads,
                               decoder_depth=other_depth, mlp_ratio=ratio, num_frames=u * segments, num_joints=joints,
                               t_patch_size=u)
    assert count_weights(sizes) == sum(parameter.numel() for parameter in MAMP(**vars(sizes)).parameters())


# --- which clips, in which order ------------------------------------------------------------------------------------

ROWS = st.lists(st.integers(0, 10**6), unique=True, min_size=1, max_size=60)


def gathered(rows, size: int, accum: int, world: int, seed: int, epoch: int, first_step: int = 0) -> list[dict]:
    """For each step what all processes train on, position in the effective batch -> row; each position once."""
    steps = []
    for rank in range(world):
        batches = TrainBatches(rows, size, accum, rank, world, seed)
        batches.start_at(epoch, first_step)
        for i, places in enumerate(batches):
            if rank == 0 and i % accum == 0:
                steps.append({})
            step = steps[i // accum]
            assert not step.keys() & {position for _, position in places} and len(places) == size
            step.update((position, int(row)) for row, position in places)
    return steps


@settings(ANY, max_examples=150)
@given(ROWS, st.integers(1, 5), st.integers(1, 3), st.integers(1, 4), st.integers(0, 2**62), st.integers(0, 500),
       st.data())
def test_an_epoch_is_the_same_however_shared_out_and_wherever_resumed(rows, size, accum, world, seed, epoch, data):
    effective = size * accum * world
    assume(effective <= len(rows))
    steps = gathered(rows, size, accum, world, seed, epoch)
    seen = [step[position] for step in steps for position in range(effective)]
    assert all(len(step) == effective for step in steps) and len(steps) == len(rows) // effective
    assert len(set(seen)) == len(seen) and set(seen) <= set(rows)
    assert len(rows) - len(seen) == len(rows) % effective, 'all rows, but for an incomplete batch'
    assert steps == gathered(rows, effective, 1, 1, seed, epoch)
    first_step = data.draw(st.integers(0, len(steps)))
    assert gathered(rows, size, accum, world, seed, epoch, first_step) == steps[first_step:]


@settings(ANY, max_examples=80)
@given(st.lists(st.integers(0, 10**6), unique=True, max_size=60), st.integers(1, 20), st.integers(1, 9))
def test_every_row_is_evaluated_once_by_some_process(rows, size, world):
    batches = [list(EvalBatches(rows, size, rank, world)) for rank in range(world)]
    found = [row for share in batches for batch in share for row, _ in batch]
    assert sorted(found) == sorted(rows) and all(0 < len(batch) <= size for share in batches for batch in share)
    counts = [len(share) for share in batches]
    assert counts == [len(EvalBatches(rows, size, rank, world)) for rank in range(world)]
    assert max(counts) - min(counts) <= 1


@pytest.fixture(scope='module')
def clips(tmp_path_factory):
    """24 clips of 1 to 93 frames."""
    rng = np.random.default_rng(2)
    x = rng.standard_normal((24, 100, 2 * 5 * 3)).astype(np.float32)
    for i, clip in enumerate(x):
        clip[1 + 4 * i:] = 0
    y = one_hot(np.arange(24) % 3, 3)
    path = tmp_path_factory.mktemp('clips') / 'clips.npz'
    write_npz(path, x_train=x, y_train=y, x_test=x, y_test=y)
    return path


def seen_by_a_run(path, size: int, accum: int, world: int, workers: int, seed: int, history: list, epoch: int,
                  first_step: int) -> dict:
    """What the processes of a run train on in `epoch`, after the epochs of `history`, each left at some micro-batch.

    (step, position) -> row, label, clip and the draws of its mask.
    """
    maker, found = ClipMaker(12, 'joint', seed), {}
    for rank in range(world):
        dataset = SkeletonDataset(path, 'train', 5)
        batches = TrainBatches(dataset.rows, size, accum, rank, world, seed)
        loader = make_loader(dataset, batches, workers, CPU)
        for earlier, left_at in history:
            batches.start_at(earlier)
            stream = read_batches(loader, CPU)
            for _ in zip(range(left_at), stream, strict=False):
                torch.rand(1), np.random.default_rng()
            stream.close()
        batches.start_at(epoch, first_step)
        for i, batch in enumerate(read_batches(loader, CPU)):
            step = first_step + i // accum
            made = maker.train_view(batch, epoch, step), maker.mask_uniform(batch, epoch, step, 15).view(size, -1)
            for j, position in enumerate(batch.position.tolist()):
                assert (step, position) not in found
                found[step, position] = batch.index[j], batch.label[j], made[0][j], made[1][j]
    return found


def check_the_same(path, size, accum, world, workers, seed, history, epoch, first_step) -> None:
    effective = size * accum * world
    whole = seen_by_a_run(path, effective, 1, 1, 0, seed, [], epoch, 0)
    found = seen_by_a_run(path, size, accum, world, workers, seed, history, epoch, first_step)
    assert found.keys() == {(step, position) for step, position in whole if step >= first_step}
    for place, fields in found.items():
        assert all(torch.equal(one, other) for one, other in zip(fields, whole[place], strict=True)), place


@settings(ANY, max_examples=25)
@given(st.integers(1, 3), st.integers(1, 2), st.integers(1, 3), SEEDS,
       st.lists(st.tuples(st.integers(0, 9), st.integers(0, 4)), max_size=2), st.integers(0, 9), st.integers(0, 1))
def test_clips_depend_on_seed_and_epoch_only(clips, size, accum, world, seed, history, epoch, first_step):
    """Not on processes, accumulation, or what was trained on before."""
    check_the_same(clips, size, accum, world, 0, seed, history, epoch, first_step)


@pytest.mark.parametrize('workers', [1, 2])
def test_clips_do_not_depend_on_workers_nor_on_what_these_did_before(clips, workers):
    check_the_same(clips, 2, 2, 2, workers, 7, [(0, 1), (4, 9)], 5, 1)


# --- checkpoints ----------------------------------------------------------------------------------------------------

DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.uint8,
          torch.int8, torch.bool, torch.complex64]


# Eight bytes: any, or those of NaNs with a payload, quiet and signalling, of infinity and of minus zero.
WORDS = st.one_of(st.binary(min_size=8, max_size=8), st.sampled_from([
    b'\xff' * 8, b'\x01\x00\xa0\x7f' * 2, b'\x37\xc0\xff\x7f' * 2, b'\x00\x00\x80\x7f' * 2, b'\x00\x00\x00\x80' * 2]))


@st.composite
def tensors(draw) -> torch.Tensor:
    """Of any type and few axes, some empty, some not contiguous, of any bytes: NaNs of every payload among them."""
    dtype, shape = draw(st.sampled_from(DTYPES)), draw(st.lists(st.integers(0, 3), max_size=3))
    size = math.prod(shape) * dtype.itemsize
    content = np.frombuffer(draw(WORDS) + b''.join(draw(WORDS) for _ in range(size // 8)), dtype=np.uint8)[:size].copy()
    if dtype == torch.bool:
        content &= 1
    tensor = torch.from_numpy(content).view(dtype).view(shape) if size else torch.empty(shape, dtype=dtype)
    how = draw(st.sampled_from(['as it is', 'transposed', 'every second', 'a part']))
    if how == 'transposed':
        return tensor.permute(list(reversed(range(tensor.ndim))))
    if how == 'every second' and tensor.ndim:
        return tensor[::2]
    return torch.cat([tensor, tensor])[len(tensor):] if how == 'a part' and tensor.ndim else tensor


PLAIN = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8))
NESTED = st.recursive(st.one_of(PLAIN, tensors()), lambda inner: st.one_of(
    st.lists(inner, max_size=3), st.tuples(inner, inner), st.dictionaries(st.one_of(st.text(max_size=5), st.integers()),
                                                                         inner, max_size=3)), max_leaves=8)
STATES = st.builds(lambda model, optimizer: {'model': model, 'optimizer': optimizer},
                   st.dictionaries(st.text(max_size=8), tensors(), min_size=1, max_size=3),
                   st.dictionaries(st.text(max_size=5), NESTED, max_size=4))


def bits(value):
    """A value as something that is equal for equal bits only, types and all."""
    if isinstance(value, torch.Tensor):
        content = value.clone(memory_format=torch.contiguous_format).flatten()      # its strides are those of its shape
        return value.dtype, tuple(value.shape), content.view(torch.uint8).numpy().tobytes() if len(content) else b''
    if isinstance(value, dict):
        return dict, [(bits(key), bits(item)) for key, item in value.items()]
    if isinstance(value, list | tuple):
        return type(value), [bits(item) for item in value]
    return type(value), struct.pack('<d', value) if isinstance(value, float) else value


@contextmanager
def unsynced():
    """Saving does not wait for the disk meanwhile."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, 'fsync', lambda descriptor: None)
        yield


@settings(ANY, max_examples=100)
@given(STATES)
def test_whatever_is_saved_is_loaded_bit_for_bit(tmp_path_factory, state):
    path = tmp_path_factory.getbasetemp() / 'any.pth'
    with unsynced():
        checkpoint.save(path, state)
    assert bits(checkpoint.load(path)) == bits(state | {'args': {}})


@pytest.fixture(scope='module')
def saved(tmp_path_factory):
    """A whole checkpoint: its path, its bytes, those of its note and its content's bits."""
    path = tmp_path_factory.mktemp('saved') / LAST
    checkpoint.save(path, {'model': {'a': noise(0, 40), 'b': torch.zeros(2, 0)}, 'epoch': 3, 'step': 1,
                           'optimizer': {'state': {0: {'exp_avg': noise(1, 40)}}}})
    note = path.with_name(f'{LAST}.sha256')
    return path, path.read_bytes(), note.read_bytes(), bits(checkpoint.load(path))


PLACES = st.one_of(st.floats(0, 1, exclude_max=True), st.sampled_from([0., 1 - 2**-53]))      # as a share of the file


@settings(ANY, max_examples=200)
@given(PLACES, st.integers(1, 255))
def test_any_byte_that_is_changed_is_noticed(saved, place, change):
    path, whole, note, content = saved
    altered = bytearray(whole)
    altered[int(place * len(whole))] ^= change
    path.write_bytes(altered)
    with pytest.raises(UserError):
        checkpoint.load(path)
    path.write_bytes(whole)
    assert bits(checkpoint.load(path)) == content


@settings(ANY, max_examples=100)
@given(PLACES)
def test_a_file_cut_anywhere_is_noticed(saved, place):
    path, whole, *_ = saved
    path.write_bytes(whole[:int(place * len(whole))])
    with pytest.raises(UserError):
        checkpoint.load(path)
    path.write_bytes(whole)


@settings(ANY, max_examples=60)
@given(PLACES, st.integers(0, 255))
def test_a_damaged_note_never_brings_other_content(saved, place, byte):
    """It may be refused; what loads is what was saved."""
    path, whole, note, content = saved
    altered = bytearray(note)
    altered[int(place * len(note))] = byte
    path.with_name(f'{LAST}.sha256').write_bytes(altered)
    try:
        assert bits(checkpoint.load(path)) == content
    except UserError as error:
        assert 'altered since' in str(error)
    path.with_name(f'{LAST}.sha256').write_bytes(note)


def save_as_a_run_does(folder, epoch: int, step: int, numbered: bool) -> None:
    content = {'model': {'a': torch.tensor([float(epoch), float(step)])}, 'epoch': epoch, 'step': step}
    if numbered:
        checkpoint.save(folder / f'checkpoint-{epoch}.pth', content)
    checkpoint.keep(folder / LAST, PREVIOUS)
    checkpoint.save(folder / LAST, content)


def damage(path, how: str) -> None:
    content = path.read_bytes()
    if how == 'removed':
        path.unlink()
    else:
        path.write_bytes({'cut': content[:len(content) // 2], 'empty': b'',
                          'changed': content[:99] + bytes([content[99] ^ 1]) + content[100:]}[how])


HARM = st.sampled_from(['whole', 'whole', 'cut', 'empty', 'changed', 'removed'])


@settings(ANY, max_examples=40)
@example([(0, True), (0, False), (0, False)], ['whole', 'cut', 'whole', 'whole', 'whole', 'whole'])
@given(st.lists(st.tuples(st.integers(0, 2), st.booleans()), min_size=1, max_size=4),
       st.lists(HARM, min_size=6, max_size=6))
def test_newest_is_the_newest_that_is_whole(tmp_path_factory, saves, harm):
    """After any saves, (steps inside an epoch, whether the epoch's own file is written too), and any damage."""
    folder = tmp_path_factory.mktemp('run')
    with unsynced():
        for epoch, (steps, numbered) in enumerate(saves):
            for step in range(1, steps + 1):
                save_as_a_run_does(folder, epoch - 1, step, False)
            save_as_a_run_does(folder, epoch, 0, numbered)
    held = {path: checkpoint.load(path) for path in folder.glob('*.pth')}
    order = sorted(held, reverse=True)      # the previous one, the last, those with numbers
    hit = {path: how for path, how in zip(order, harm, strict=False) if how != 'whole'}
    for path, how in hit.items():
        damage(path, how)
    whole = [(state['epoch'], state['step']) for path, state in held.items() if path not in hit]
    there = [path for path in held if path.exists()]
    if whole:
        path, state = checkpoint.newest(folder)
        assert (state['epoch'], state['step']) == max(whole) and path not in hit
        assert state['model']['a'].tolist() == [state['epoch'], state['step']]
    elif there:
        with pytest.raises(UserError):
            checkpoint.newest(folder)
    else:
        assert checkpoint.newest(folder) is None
