"""Views of clips: against the authors' clips, and against references written in another way, in double precision."""

import math
from argparse import Namespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from feeder import transforms
from feeder.augment import CROP, ClipMaker
from feeder.dataset import SkeletonDataset, pack_clips
from feeder.layouts import default_layout
from tests.feeder.conftest import ANY, M, V, write_splits
from tests.golden_numbers import load

# parent of each joint, counted from 1, as the makers of the sensors number them
KINECT_V2 = [2, 21, 21, 3, 21, 5, 6, 7, 21, 9, 10, 11, 1, 13, 14, 15, 1, 17, 18, 19, 21, 23, 8, 25, 12]
KINECT_V1 = [2, 3, 3, 3, 3, 5, 6, 7, 3, 9, 10, 11, 1, 13, 14, 15, 1, 17, 18, 19]


def normal(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def close(clips, expected):
    np.testing.assert_allclose(clips.numpy(), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize('name', ['feeder_ntu', 'feeder_pku_long', 'feeder_gaps'])
def test_golden_clips(name, tmp_path):
    """Valid frames, the evaluation view in all streams, and the training view at the authors' crops and angles."""
    numbers = load(name)
    dataset = SkeletonDataset(write_splits(tmp_path / 'golden.npz', numbers['frames'], 60), 'test', 25)
    batch = dataset[[(i, 0) for i in range(len(dataset))]]
    np.testing.assert_array_equal(batch.num_valid, numbers['valid_frames'])
    for stream, key in (('joint', 'center_crop'), ('bone', 'center_crop_bone'), ('velocity', 'center_crop_velocity')):
        if key in numbers:
            close(ClipMaker(120, stream, seed=0).eval_view(batch), numbers[key])
    if 'train_clip' in numbers:
        start, length = torch.from_numpy(numbers['crop_start_length']).T
        clips = transforms.resize_crops(batch.frames, batch.first + start, length, 120)
        close(transforms.rotate(clips, torch.from_numpy(numbers['angles'])), numbers['train_clip'])


DRAWS = st.floats(0, 1 - 2**-24, width=32)          # up to the largest random number there is
LENGTHS = st.one_of(st.integers(1, 5), st.integers(60, 70), st.integers(1, 1000))


@settings(ANY, max_examples=120)
@given(st.lists(st.tuples(LENGTHS, DRAWS, DRAWS), min_size=1, max_size=8), st.floats(.001, 1), st.floats(.001, 1),
       st.sampled_from([1, 16, 64]))
def test_random_crops_start_anywhere_in_their_clips(clips, first, second, least):
    low, high = sorted((first, second))
    n, *draws = (torch.tensor(column) for column in zip(*clips, strict=True))
    start, length = transforms.random_crop(n, low, high, torch.stack(draws, dim=1), least)
    for (frames, share, place), begin, size in zip(clips, start.tolist(), length.tolist(), strict=True):
        assert size == min(max(math.floor(frames * (low + (high - low) * share)), least), frames)
        assert begin == min(int(place * (frames - size + 1)), frames - size)


@pytest.mark.parametrize('p', [0.95, 1., 0.5])
def test_centre_crops_are_pythons_int_arithmetic(p):
    n = torch.arange(1, 401)
    start, length = transforms.center_crop(n, p)
    for frames, begin, size in zip(n.tolist(), start.tolist(), length.tolist(), strict=True):
        bias = int((1 - p) * frames / 2)
        assert (begin, begin + size) == (bias, frames - bias) and size >= 1


@settings(ANY, max_examples=120)
@given(st.lists(st.tuples(st.integers(0, 3), st.one_of(st.integers(1, 4), st.integers(1, 300)), st.integers(0, 3)),
                min_size=1, max_size=4), st.integers(1, 150), st.integers(0, 2**31))
def test_resized_crops_against_pytorchs_interpolation(crops, window, seed):
    """Crops as (frames before, frames, frames after) of packed clips; frames outside of crops are NaN."""
    begin = [before + sum(map(sum, crops[:i])) for i, (before, _, _) in enumerate(crops)]
    sizes = [size for _, size, _ in crops]
    frames = torch.full((sum(map(sum, crops)), 2, 3, 3), torch.nan)
    for at, size in zip(begin, sizes, strict=True):
        frames[at:at + size] = 3 * normal(seed + at, size, 2, 3, 3)
    made = transforms.resize_crops(frames, torch.tensor(begin), torch.tensor(sizes), window)
    assert made.shape == (len(crops), 3, window, 3, 2) and made.dtype == torch.float32
    for clip, at, size in zip(made, begin, sizes, strict=True):
        flat = frames[at:at + size].double().flatten(1).T[None]                                 # (1, M·V·C, T)
        expected = F.interpolate(flat, size=window, mode='linear', align_corners=False)[0].T.view(window, 2, 3, 3)
        torch.testing.assert_close(clip.double(), expected.permute(3, 0, 2, 1), rtol=0, atol=1e-3)
        alone = transforms.resize_crops(frames[at:at + size], torch.tensor([0]), torch.tensor([size]), window)[0]
        assert torch.equal(clip, alone)


@settings(ANY, max_examples=60)
@given(st.lists(st.tuples(*[st.floats(-4, 4, width=32)] * 3), min_size=1, max_size=6))
def test_rotations_are_rz_ry_rx(angles):
    clips = normal(2, len(angles), 3, 4, 5, 2)
    turns = Rotation.from_euler('xyz', -np.array(angles)).as_matrix()      # about fixed axes, x first
    close(transforms.rotate(clips, torch.tensor(angles)), np.einsum('nij,njwvm->niwvm', turns, clips.double().numpy()))
    assert torch.equal(transforms.rotate(clips, torch.zeros(len(angles), 3)), clips)


@pytest.mark.parametrize('parents', [KINECT_V2, KINECT_V1], ids=len)
def test_bone_is_joint_minus_parent_and_velocity_the_next_frame_minus_this(parents):
    clips = normal(0, 3, 3, 30, len(parents), 2)
    bones, moved = transforms.bone(clips, default_layout(len(parents)).parents), transforms.velocity(clips)
    for joint, parent in enumerate(parents):
        assert torch.equal(bones[..., joint, :], clips[..., joint, :] - clips[..., parent - 1, :]), joint
    assert not moved[:, :, -1].any() and torch.equal(moved[:, :, :-1], clips[:, :, 1:] - clips[:, :, :-1])
    assert not transforms.velocity(clips[:, :, :1]).any()


@pytest.fixture(scope='module')
def long_clips(tmp_path_factory):
    """16 clips of 70 to 145 frames, longer than the shortest crop."""
    x = np.random.default_rng(1).standard_normal((16, 150, M * V * 3)).astype(np.float32).cumsum(axis=1)
    for i, clip in enumerate(x):
        clip[70 + 5 * i:] = 0
    return SkeletonDataset(write_splits(tmp_path_factory.mktemp('long') / 'long.npz', x, 4), 'train', V)


def test_views_are_a_function_of_seed_epoch_step_and_position(long_clips):
    def make(epoch=0, step=0, seed=3, position=5):
        maker, batch = ClipMaker(24, 'joint', seed), long_clips[[(7, position)]]
        return maker.train_view(batch, epoch, step), maker.mask_uniform(batch, epoch, step, 30)

    torch.manual_seed(1)
    state, views = torch.get_rng_state(), make()
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    assert all(torch.equal(*pair) for pair in zip(views, make(), strict=True))
    together = ClipMaker(24, 'joint', 3).train_view(long_clips[[(2, 1), (7, 5), (3, 6)]], 0, 0)
    assert torch.equal(together[1:2], views[0])     # whatever else is in the batch
    for changed in ({'epoch': 1}, {'step': 1}, {'seed': 4}, {'position': 6}):
        assert not any(torch.equal(*pair) for pair in zip(views, make(**changed), strict=True)), changed


def test_the_augmentation_settings_of_a_run_are_used():
    settings = {'num_frames': 8, 'stream': 'bone', 'seed': 1, 'p_interval': (0.1, 0.2), 'min_crop': 3, 'max_angle': 0.4,
                'max_turn': 0.5}
    maker = ClipMaker.from_args(Namespace(**settings, layout=None, num_joints=25))
    assert {name: getattr(maker, name) for name in settings} == settings


@pytest.mark.parametrize('max_turn', [None, 0., 1.4])
def test_the_training_view_is_a_crop_and_one_rotation_within_bounds(long_clips, max_turn):
    batch, largest = long_clips[[(i, i) for i in range(16)]], []
    maker = ClipMaker(24, 'joint', 3, (0.6, 0.8), 0.2, max_turn, min_crop=40)
    start, length = transforms.random_crop(batch.num_valid, 0.6, 0.8, maker.uniform(batch, 0, 0, CROP, 2), 40)
    resized = transforms.resize_crops(batch.frames, batch.first + start, length, 24).flatten(2).double()
    for before, after in zip(resized, maker.train_view(batch, 0, 0).flatten(2).double(), strict=True):
        turn = torch.linalg.lstsq(before.T, after.T).solution.T
        torch.testing.assert_close(turn @ before, after, atol=1e-4, rtol=0)
        torch.testing.assert_close(turn @ turn.T, torch.eye(3, dtype=torch.float64), atol=1e-4, rtol=0)
        angles = torch.atan2(-turn[2, 1], turn[2, 2]), torch.asin(turn[2, 0]), torch.atan2(-turn[1, 0], turn[0, 0])
        assert all(abs(angle) <= bound + 1e-4 for angle, bound in zip(angles, maker.max_angles, strict=True))
        largest.append(abs(angles[1]))
    assert max(largest) >= maker.max_angles[1] / 2


def test_crop_rotation_and_mask_have_independent_random_numbers(monkeypatch):
    draws, draw, maker = [], ClipMaker.uniform, ClipMaker(24, 'joint', seed=3)
    monkeypatch.setattr(ClipMaker, 'uniform', lambda *args: draws.append(draw(*args)) or draws[-1])
    batch = pack_clips(np.zeros((2000, 1, M, V, 3), np.float32))._replace(position=torch.arange(2000))
    maker.train_view(batch, 0, 0)
    maker.mask_uniform(batch, 0, 0, 2)
    numbers = torch.cat(draws, dim=1)
    assert [len(draw.T) for draw in draws] == [2, 3, 2 * M] and len(numbers.unique()) > 0.998 * numbers.numel()
    assert (torch.corrcoef(numbers.T) - torch.eye(numbers.shape[1])).abs().max() < 0.1     # 4.5 standard deviations
    assert (numbers.mean(dim=0) - 0.5).abs().max() < 0.03 and (numbers.std(dim=0) - 12**-0.5).abs().max() < 0.02


def test_streams_share_crop_and_rotation_and_evaluation_has_no_randomness(tmp_path):
    dataset = SkeletonDataset(write_splits(tmp_path / 'f.npz', normal(2, 4, 150, 60).numpy(), 2), 'test', 20)
    batch, moved = dataset[[(i, 0) for i in range(4)]], dataset[[(i, 7 - i) for i in range(4)]]
    joint, bone, velocity = (ClipMaker(24, stream, 0).train_view(batch, 1, 2) for stream in
                             ('joint', 'bone', 'velocity'))
    assert torch.equal(bone, transforms.bone(joint, default_layout(20).parents))
    assert torch.equal(velocity, transforms.velocity(joint))
    assert torch.equal(ClipMaker(24, 'joint', 0).eval_view(batch),
                       ClipMaker(24, 'joint', 99, (0.1, 0.2), 3.).eval_view(moved))
