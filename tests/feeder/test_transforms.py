"""Crop, resize, rotate, bone, velocity: against the authors' clips and against references written another way."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from data.common import one_hot, write_npz
from feeder import transforms
from feeder.augment import ClipMaker
from feeder.dataset import SkeletonDataset
from feeder.layouts import parents_of
from tests.golden_numbers import load
from util.errors import UserError

ATOL = 1e-5
# joint and parent, 1-based, as the makers of the sensors count them; the root hangs on itself
KINECT_V2 = [(1, 2), (2, 21), (3, 21), (4, 3), (5, 21), (6, 5), (7, 6), (8, 7), (9, 21), (10, 9), (11, 10), (12, 11),
             (13, 1), (14, 13), (15, 14), (16, 15), (17, 1), (18, 17), (19, 18), (20, 19), (21, 21), (22, 23), (23, 8),
             (24, 25), (25, 12)]
KINECT_V1 = [(1, 2), (2, 3), (3, 3), (4, 3), (5, 3), (6, 5), (7, 6), (8, 7), (9, 3), (10, 9), (11, 10), (12, 11),
             (13, 1), (14, 13), (15, 14), (16, 15), (17, 1), (18, 17), (19, 18), (20, 19)]
LAYOUTS = [KINECT_V2, KINECT_V1]
# joints and bodies: NTU and PKU, NW-UCLA, a COCO skeleton of three people
SHAPES = [(25, 2), (20, 1), (17, 3)]


def clips_like(num_joints, num_bodies, frames=30, clips=3, seed=0):
    """(B, C, W, V, M) network input."""
    return torch.randn(clips, 3, frames, num_joints, num_bodies, generator=torch.Generator().manual_seed(seed))


def raw_like(num_joints, num_bodies, frames, clips=3, seed=0):
    """(B, T, M, V, C) recorded clips, joints that wander some 5 cm a frame (float32 tells places to a millionth)."""
    steps = torch.randn(clips, frames, num_bodies, num_joints, 3, generator=torch.Generator().manual_seed(seed))
    return (steps * 0.05).cumsum(dim=1) + 1


def integers(*values):
    return torch.tensor(values)


# --- the authors' clips ---------------------------------------------------------------------------------------------

def golden_batch(name, folder):
    """The golden clips as the dataset reads them from a file, and the numbers that go with them."""
    golden = load(name)
    labels = golden.get('label', np.zeros(len(golden['frames']), dtype=int))
    one = one_hot(labels, 60)
    write_npz(folder / 'golden.npz', x_train=golden['frames'], y_train=one, x_test=golden['frames'], y_test=one)
    dataset = SkeletonDataset(folder / 'golden.npz', 'test', 25)
    return golden, dataset[[(i, 0) for i in range(len(dataset))]]


def close(clips, expected):
    np.testing.assert_allclose(clips.numpy(), expected, rtol=0, atol=ATOL)


@pytest.mark.parametrize('name', ['feeder_ntu', 'feeder_pku_long', 'feeder_gaps'])
def test_golden_center_crop_and_valid_frames(name, tmp_path):
    golden, batch = golden_batch(name, tmp_path)
    np.testing.assert_array_equal(batch.num_valid, golden['valid_frames'])
    close(ClipMaker(120, 'joint', seed=0).eval_view(batch), golden['center_crop'])
    if 'label' in golden:
        np.testing.assert_array_equal(batch.label, golden['label'])


@pytest.mark.parametrize('stream', ['bone', 'velocity'])
@pytest.mark.parametrize('name', ['feeder_ntu', 'feeder_pku_long'])
def test_golden_streams(name, stream, tmp_path):
    golden, batch = golden_batch(name, tmp_path)
    close(ClipMaker(120, stream, seed=0).eval_view(batch), golden[f'center_crop_{stream}'])


@pytest.mark.parametrize('name', ['feeder_ntu', 'feeder_pku_long'])
def test_golden_train_clip(name, tmp_path):
    golden, batch = golden_batch(name, tmp_path)
    start, length = torch.from_numpy(golden['crop_start_length']).T
    clips = transforms.resize_crops(batch.frames, batch.first + start, length, 120)
    close(transforms.rotate(clips, torch.from_numpy(golden['angles'])), golden['train_clip'])


@pytest.mark.parametrize('name', ['feeder_ntu', 'feeder_pku_long'])
def test_golden_train_crops_are_ones_we_could_draw(name):
    golden = load(name)
    for n, (start, length) in zip(golden['valid_frames'], golden['crop_start_length'], strict=True):
        assert min(64, n) <= length <= n and 0 <= start <= n - length


# --- crops ----------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('p', [0.95, 1., 0.5, 0.9])
def test_center_crop_is_pythons_int_arithmetic(p):
    n = torch.arange(1, 401)
    start, length = transforms.center_crop(n, p)
    for frames, begin, size in zip(n.tolist(), start.tolist(), length.tolist(), strict=True):
        bias = int((1 - p) * frames / 2)
        assert (begin, begin + size) == (bias, frames - bias)
        assert size >= 1


def test_random_crop_lengths():
    share = torch.linspace(0, 1, 257)[:-1]
    for n in (1, 2, 63, 64, 65, 100, 127, 128, 129, 200, 300):
        num_valid = torch.full((len(share),), n)
        _, length = transforms.random_crop(num_valid, 0.5, 1., torch.stack((share, torch.zeros(256)), dim=1))
        expected = [min(max(math.floor(n * (0.5 + 0.5 * s)), 64), n) for s in share.tolist()]
        assert length.tolist() == expected, n


def test_random_crop_rounds_down_at_exact_shares():
    # 0.5 + 0.5 · 0.5 = 0.75 of 130 frames are 97.5
    _, length = transforms.random_crop(integers(130), 0.5, 1., torch.tensor([[0.5, 0.]]))
    assert length.tolist() == [97]


def test_random_crop_reaches_both_ends_and_never_leaves_the_clip():
    largest = 1 - 2**-24                    # of the float32 numbers below 1
    place = torch.cat((torch.linspace(0, 1, 4001)[:-1], torch.tensor([largest])))
    for n in (1, 5, 64, 65, 90, 300):
        for share in (0., 0.37, largest):
            uniform = torch.stack((torch.full_like(place, share), place), dim=1)
            start, length = transforms.random_crop(torch.full((len(place),), n), 0.5, 1., uniform)
            size = length[0].item()
            assert set(length.tolist()) == {size}
            assert set(start.tolist()) == set(range(n - size + 1)), (n, share)


def test_random_crop_start_is_uniform():
    # 128 frames, the shortest crop of 64: 65 places that must be equally likely
    place = (torch.arange(65 * 40) + 0.5) / (65 * 40)
    uniform = torch.stack((torch.zeros_like(place), place), dim=1)
    start, _ = transforms.random_crop(torch.full((len(place),), 128), 0.5, 1., uniform)
    assert start.bincount().tolist() == [40] * 65


@pytest.mark.parametrize('p_min,p_max', [(0.5, 1.), (0.9, 0.95), (1., 1.)])
def test_random_crop_follows_its_interval(p_min, p_max):
    uniform = torch.rand(500, 2, generator=torch.Generator().manual_seed(1))
    _, length = transforms.random_crop(torch.full((500,), 1000), p_min, p_max, uniform)
    assert math.floor(1000 * p_min) <= length.min() and length.max() <= 1000 * p_max
    assert length.max() - length.min() >= 0.9 * 1000 * (p_max - p_min) - 1


# --- resize ---------------------------------------------------------------------------------------------------------

def resized(clips, start, length, window):
    """resize_crops of clips (B, T, M, V, C), or of a list of (T_i, M, V, C), once they are packed."""
    first = torch.tensor([0, *map(len, clips)]).cumsum(0)[:-1]
    return transforms.resize_crops(torch.cat(list(clips)), first + start, length, window)


def interpolated(frames, start, length, window):
    """One clip (T, M, V, C) by PyTorch's own interpolation, in double precision -> (C, W, V, M)."""
    crop = frames[start:start + length].double()
    flat = crop.reshape(length, -1).T[None]                                         # (1, M·V·C, T)
    resized = F.interpolate(flat, size=window, mode='linear', align_corners=False)[0].T
    return resized.reshape(window, *crop.shape[1:]).permute(3, 0, 2, 1)


def check_resize(frames, start, length, window):
    ours = resized(frames, start, length, window)
    assert ours.dtype == torch.float32
    for clip, raw, begin, size in zip(ours, frames, start.tolist(), length.tolist(), strict=True):
        torch.testing.assert_close(clip.double(), interpolated(raw, begin, size, window), rtol=0, atol=ATOL)


@pytest.mark.parametrize('num_joints,num_bodies', SHAPES)
@pytest.mark.parametrize('window', [120, 60, 7, 1])
def test_resize_is_half_pixel_interpolation(num_joints, num_bodies, window):
    frames = raw_like(num_joints, num_bodies, 130, clips=6)
    check_resize(frames, integers(0, 3, 129, 65, 10, 0), integers(130, 64, 1, 65, 120, 2), window)


def test_resize_of_every_length():
    frames = raw_like(5, 1, 150, clips=150)
    check_resize(frames, 150 - torch.arange(1, 151), torch.arange(1, 151), 120)     # each crop ends at the last frame


@pytest.mark.parametrize('window', [120, 24, 1])
def test_resize_of_packed_clips_of_different_lengths(window):
    lengths = [1, 2, 90, 3, 300, 65, 1, 30]
    clips = [raw_like(5, 2, n, clips=1, seed=n + i)[0] for i, n in enumerate(lengths)]
    for start in ([0] * 8, [0, 1, 20, 1, 299, 64, 0, 13]):
        start = integers(*start)
        check_resize(clips, start, integers(*lengths) - start, window)               # each to its last frame
        check_resize(clips, start, torch.ones(8, dtype=torch.long), window)
    # clip for clip, bit by bit what each gives alone
    together = resized(clips, torch.zeros(8).long(), integers(*lengths), window)
    for clip, frames in zip(together, clips, strict=True):
        assert torch.equal(clip, resized([frames], integers(0), integers(len(frames)), window)[0])


def test_crops_may_be_taken_in_any_order_and_of_the_same_clip():
    frames, begin, length = raw_like(5, 1, 50, clips=1)[0], integers(40, 0, 0, 13, 40), integers(10, 50, 7, 1, 9)
    ours = transforms.resize_crops(frames, begin, length, 24)
    for clip, at, size in zip(ours, begin.tolist(), length.tolist(), strict=True):
        torch.testing.assert_close(clip.double(), interpolated(frames, at, size, 24), rtol=0, atol=ATOL)


def test_resize_to_the_same_length_changes_nothing():
    frames = raw_like(20, 1, 120)
    clips = resized(frames, integers(0, 0, 0), integers(120, 120, 120), 120)
    torch.testing.assert_close(clips, frames.permute(0, 4, 1, 3, 2), rtol=0, atol=ATOL)


def test_crop_of_one_frame_is_that_frame_repeated():
    frames = raw_like(25, 2, 9)
    clips = resized(frames, integers(0, 4, 8), integers(1, 1, 1), 12)
    for clip, raw, at in zip(clips, frames, (0, 4, 8), strict=True):
        torch.testing.assert_close(clip, raw[at].permute(2, 1, 0)[:, None].expand(-1, 12, -1, -1), rtol=0, atol=1e-6)


def test_resize_looks_at_nothing_outside_the_crop():
    frames = torch.full((2, 20, 1, 20, 3), torch.nan)
    frames[0, 5:9], frames[1, 19:] = 1., 2.
    clips = resized(frames, integers(5, 19), integers(4, 1), 33)
    assert (clips[0] == 1).all() and (clips[1] == 2).all()


def test_one_frame_clips_go_through_every_view():
    frames, one = raw_like(25, 2, 1), integers(1, 1, 1)
    start, length = transforms.center_crop(one, 0.95)
    assert start.tolist() == [0, 0, 0] and length.tolist() == [1, 1, 1]
    assert transforms.random_crop(one, 0.5, 1., torch.rand(3, 2))[1].tolist() == [1, 1, 1]
    clips = resized(frames, start, length, 120)
    torch.testing.assert_close(clips, frames.permute(0, 4, 1, 3, 2).expand_as(clips), rtol=0, atol=1e-6)
    assert transforms.velocity(clips).abs().max() < 1e-6


# --- rotate ---------------------------------------------------------------------------------------------------------

def rotation(ax, ay, az):
    """R = Rz·Ry·Rx, multiplied out by NumPy in double precision."""
    c, s = np.cos(ax), np.sin(ax)
    rx = np.array([[1, 0, 0], [0, c, s], [0, -s, c]])
    c, s = np.cos(ay), np.sin(ay)
    ry = np.array([[c, 0, -s], [0, 1, 0], [s, 0, c]])
    c, s = np.cos(az), np.sin(az)
    rz = np.array([[c, s, 0], [-s, c, 0], [0, 0, 1]])
    return rz @ ry @ rx


@pytest.mark.parametrize('num_joints,num_bodies', SHAPES)
def test_rotate_is_rz_ry_rx(num_joints, num_bodies):
    clips = clips_like(num_joints, num_bodies, clips=8)
    angles = (torch.rand(8, 3, generator=torch.Generator().manual_seed(2)) * 2 - 1) * 0.3
    expected = [np.einsum('ij,jwvm->iwvm', rotation(*a), clip)
                for a, clip in zip(angles.double().numpy(), clips.double().numpy(), strict=True)]
    close(transforms.rotate(clips, angles), np.stack(expected))


@pytest.mark.parametrize('axis', range(3))
def test_rotate_about_one_axis_leaves_that_axis(axis):
    # a quarter turn: one axis stays, the other two trade places, which a wrong order or sign of the product would not
    clips = clips_like(25, 2)
    angles = torch.zeros(3, 3)
    angles[:, axis] = math.pi / 2
    turned = transforms.rotate(clips, angles)
    close(turned, np.einsum('ij,bjwvm->biwvm', rotation(*angles[0].double().numpy()), clips.double().numpy()))
    torch.testing.assert_close(turned[:, axis], clips[:, axis])


def test_no_angle_no_change():
    clips = clips_like(20, 1)
    torch.testing.assert_close(transforms.rotate(clips, torch.zeros(3, 3)), clips, rtol=0, atol=0)


# --- streams --------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('pairs', LAYOUTS, ids=len)
@pytest.mark.parametrize('num_bodies', [1, 2, 3])
def test_bone_is_joint_minus_parent(pairs, num_bodies):
    clips = clips_like(len(pairs), num_bodies)
    bones = transforms.bone(clips, parents_of(len(pairs)))
    assert sorted(joint for joint, _ in pairs) == list(range(1, len(pairs) + 1))
    for joint, parent in pairs:
        assert torch.equal(bones[..., joint - 1, :], clips[..., joint - 1, :] - clips[..., parent - 1, :]), joint


@pytest.mark.parametrize('num_joints', [1, 16, 24])
def test_bone_of_an_unknown_layout_is_the_users_error(num_joints):
    with pytest.raises(UserError, match=f'no joint layout with {num_joints} joints') as error:
        parents_of(num_joints)
    assert '\n' not in str(error.value)


@pytest.mark.parametrize('num_joints,num_bodies', SHAPES)
@pytest.mark.parametrize('frames', [1, 2, 30])
def test_velocity_is_the_next_frame_minus_this_one(num_joints, num_bodies, frames):
    clips = clips_like(num_joints, num_bodies, frames)
    moved = transforms.velocity(clips)
    assert moved.shape == clips.shape and (moved[:, :, -1] == 0).all()
    for t in range(frames - 1):
        assert torch.equal(moved[:, :, t], clips[:, :, t + 1] - clips[:, :, t])


# --- any memory layout ----------------------------------------------------------------------------------------------

def test_transforms_leave_their_input_alone_and_take_any_memory_layout():
    frames = raw_like(25, 2, 40).flatten(0, 1)
    strided = raw_like(25, 2, 80).mul(0)[:, ::2].flatten(0, 1).permute(0, 2, 1, 3).contiguous().permute(0, 2, 1, 3)
    strided.copy_(frames)
    assert not strided.is_contiguous()
    begin, length, angles = integers(0, 43, 85), integers(40, 20, 1), torch.tensor([[0.1, -0.2, 0.3]] * 3)
    parents = parents_of(25)

    def steps(raw):
        clips = transforms.resize_crops(raw, begin, length, 24)
        return [clips, *(f(clips) for f in (lambda c: transforms.rotate(c, angles), transforms.velocity,
                                            lambda c: transforms.bone(c, parents)))]

    before = strided.clone()
    for plain, other in zip(steps(frames), steps(strided), strict=True):
        assert torch.equal(plain, other)
    assert torch.equal(strided, before)
    clips = transforms.resize_crops(frames, begin, length, 24)
    assert not clips.is_contiguous()        # what rotate, bone and velocity get in training; compare with a packed copy
    for f in (lambda c: transforms.rotate(c, angles), transforms.velocity, lambda c: transforms.bone(c, parents)):
        assert torch.equal(f(clips), f(clips.contiguous()))
