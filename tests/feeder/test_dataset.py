"""A split of a dataset file, its batches, which of their bodies are equal, and the order of clips in an epoch."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from data.dataset_file import write_npz
from feeder.augment import ClipMaker
from feeder.dataset import EvalBatches, SkeletonDataset, TrainBatches, pack_clips
from tests.conftest import refusal
from tests.feeder.conftest import ANY, M, T, V, make_members, split_clips, write_splits


def whole(dataset):
    return dataset[[(i, 10 + i) for i in range(len(dataset))]]


@pytest.mark.parametrize('split, count', [('train', 7), ('test', 4)])
def test_clips_labels_and_valid_frames(path, split, count):
    """Rows of a file hold bodies, in these joints, in these coordinates."""
    dataset = SkeletonDataset(path, split, V)
    assert (len(dataset), dataset.num_bodies, dataset.num_classes) == (count, M, 3)
    assert dataset.names.tolist() == [f'{split}_{i}' for i in range(count)]
    batch = whole(dataset)
    for i, *fields in zip(range(count), batch.index, batch.position, batch.label, batch.num_valid, strict=True):
        assert fields == [i, 10 + i, i % 3, 1 + (5 * i + 3) % T]
    for row, clip in zip(make_members()[f'x_{split}'], split_clips(batch), strict=True):
        for body, joint, axis in itertools.product(range(M), range(V), range(3)):
            column = row[:len(clip), (body * V + joint) * 3 + axis]
            np.testing.assert_array_equal(clip[:, body, joint, axis], column)


def test_gaps_and_all_zero_clips(tmp_path):
    """Frames that sum to zero are not counted, but stay where they are; a clip without frames is one zero frame."""
    x = np.zeros((3, T, M * V * 3), np.float32)
    x[0, [0, 1, 4, 5, 7]] = 1.
    x[1, :9] = 2.
    x[1, 3, :2] = (1, -27 * 2 - 3)      # with 28 times 2 a sum of zero
    batch = whole(SkeletonDataset(write_splits(tmp_path / 'f.npz', x), 'train', V))
    assert batch.num_valid.tolist() == [5, 8, 1]
    assert split_clips(batch)[0][:, 0, 0, 0].tolist() == [1, 1, 0, 0, 1] and not split_clips(batch)[2].any()
    assert split_clips(batch)[1][:, 1, 0, 0].tolist() == [2] * 8
    for view in (ClipMaker(16, 'joint', 0).train_view(batch, 0, 0), ClipMaker(16, 'joint', 0).eval_view(batch)):
        assert not view[2].any() and view.isfinite().all()


@pytest.mark.parametrize('dtype, order, label', [('f8', 'C', bool), ('f2', 'F', np.int64), ('>f4', 'C', np.float32)])
def test_other_number_types_and_orders(tmp_path, dtype, order, label):
    members = make_members()
    members['x_train'] = np.asarray(members['x_train'], dtype, order=order)
    members['y_train'] = members['y_train'].astype(label)
    write_npz(tmp_path / 'f.npz', **members)
    batch = whole(SkeletonDataset(tmp_path / 'f.npz', 'train', V))
    assert batch.frames.dtype == torch.float32 and batch.label.tolist() == [i % 3 for i in range(7)]
    for clip, row in zip(split_clips(batch), members['x_train'], strict=True):
        np.testing.assert_array_equal(clip.flatten(1), row[:len(clip)].astype(np.float32))


def test_names_and_digest(path, tmp_path):
    digests = {SkeletonDataset(path, split, V).digest for split in ('train', 'test')}
    write_npz(path, name_train=np.array(list('abcdefg')), **make_members(), name_test=np.array(['b'] * 5))
    train, test = (SkeletonDataset(path, split, V) for split in ('train', 'test'))
    assert ''.join(train.names) == 'abcdefg' and len(digests | {train.digest, test.digest}) == 4
    refusal(lambda: test.names, path, 'name_test', '(5,)', 'each of the 4 clips')


X, Y = make_members()['x_train'], make_members()['y_train']


@pytest.mark.parametrize('changed, parts', [
    ({'x_train': X[0]}, ['x_train', '(12, 30)']), ({'x_train': X.astype(np.int64)}, ['x_train', 'int64']),
    ({'x_train': X[..., :28]}, ['28', f'{V} joints', '--num_joints']), ({'x_train': X[..., :0]}, []),
    ({'x_train': X[:, :0]}, ['split train is empty']), ({'x_train': X[:0], 'y_train': Y[:0]}, ['split train is empty']),
    ({'y_train': Y[:6]}, ['y_train', '(6, 3)', '7']), ({'y_train': Y.argmax(1)}, ['y_train', '(7,)']),
    *(({'y_train': y}, ['y_train is not one-hot']) for y in (Y + Y[::-1], Y / 2, Y * np.nan, Y.astype(str)))])
def test_members_that_do_not_fit(tmp_path, changed, parts):
    write_npz(tmp_path / 'f.npz', **make_members() | changed)
    refusal(lambda: SkeletonDataset(tmp_path / 'f.npz', 'train', V), tmp_path / 'f.npz', *parts)


def test_a_damaged_clip_is_named_whenever_it_is_read(tmp_path):
    members = make_members(clips=20)
    members['x_train'][4, -1, 7] = -np.inf
    write_npz(tmp_path / 'f.npz', **members)
    dataset = SkeletonDataset(tmp_path / 'f.npz', 'train', V)
    for _ in range(2):
        refusal(lambda: dataset[[(3, 0), (4, 1), (5, 2)]], tmp_path / 'f.npz', 'clip 4 of x_train', 'NaN')
    dataset.check_clips(rank=1, world_size=2)
    refusal(lambda: dataset.check_clips(rank=0, world_size=2), 'clip 4')
    dataset.rows = np.array([3, 5])
    dataset.check_clips()       # clips that are not used may be damaged


def find_distinct(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Reference for Batch.distinct and Batch.inverse: compares the bodies of clips (N, C, T, V, M) themselves."""
    body = torch.arange(x.shape[0] * x.shape[4]).view(-1, x.shape[4])                           # (N, M)
    equal = torch.where((x == x[..., :1]).all(dim=(1, 2, 3)), body[:, :1], body)
    empty = (x == 0).all(dim=(1, 2, 3))
    equal = torch.where(empty, torch.where(empty, body, body.numel()).min(), equal).flatten()
    return equal.unique(return_inverse=True)


BODIES = st.lists(st.sampled_from(['own', 'empty', 'copy', 'nearly a copy', 'at the end only']), min_size=3, max_size=3)


@settings(ANY, max_examples=30)
@given(st.lists(st.tuples(st.integers(1, 90), BODIES), min_size=1, max_size=5), st.integers(0, 99))
def test_equal_bodies_by_brute_force(tmp_path_factory, clips, seed):
    rng, x = np.random.default_rng(seed), np.zeros((len(clips), 100, 3, 25, 3), np.float32)     # (N, T, M, V, C)
    for clip, (n, kinds) in zip(x, clips, strict=True):
        for m, kind in enumerate(kinds):
            if kind == 'at the end only':
                clip[n - 1, m] = rng.standard_normal((25, 3))
            elif kind != 'empty':
                clip[:n, m] = clip[:n, 0] if 'copy' in kind and m else rng.standard_normal((n, 25, 3))
            if kind == 'nearly a copy':
                clip[rng.integers(n), m, rng.integers(25), 2] += 1
    path = tmp_path_factory.getbasetemp() / 'bodies.npz'
    batch = whole(SkeletonDataset(write_splits(path, x.reshape(len(x), 100, -1), 2), 'test', 25))
    for clip, n in zip(x, batch.num_valid, strict=True):
        clip[n:] = 0        # a clip with zero frames inside loses as many at its end
    recorded = torch.from_numpy(x).permute(0, 4, 1, 3, 2)
    for field, expected in zip((batch.distinct, batch.inverse), find_distinct(recorded), strict=True):
        assert torch.equal(field, expected)
    nonempty = recorded.permute(0, 4, 1, 2, 3).flatten(0, 1).flatten(1).any(dim=1)
    assert torch.equal(batch.nonempty, (nonempty | ~nonempty.any()).nonzero().squeeze(1))

    for stream in ('joint', 'bone', 'velocity'):
        maker = ClipMaker(24, stream, seed)
        for view in (maker.eval_view(batch), maker.train_view(batch, 0, 0)):
            bodies = view.permute(0, 4, 1, 2, 3).flatten(0, 1)                      # (N·M, C, W, V)
            assert torch.equal(bodies[batch.distinct][batch.inverse], bodies)
    packed = pack_clips([clip[:n] for clip, n in zip(x, batch.num_valid, strict=True)])
    for name in ('frames', 'first', 'num_valid', 'index', 'distinct', 'inverse'):
        assert torch.equal(getattr(packed, name), getattr(batch, name)), name


def gather_steps(rows, size, accum, world, seed, epoch, first_step=0) -> list[list[int]]:
    """Rows of each step in the order of their positions, from the batches of all processes; each position once."""
    steps = []
    for rank in range(world):
        batches = TrainBatches(rows, size, accum, rank, world, seed)
        batches.start_at(epoch, first_step)
        assert len(list(batches)) == len(batches)
        for i, places in enumerate(batches):
            if rank == 0 and i % accum == 0:
                steps.append({})
            assert not steps[i // accum].keys() & set(places[:, 1].tolist()) and len(places) == size
            steps[i // accum].update((position, row) for row, position in places.tolist())
    return [[step[position] for position in range(size * accum * world)] for step in steps]


@settings(ANY, max_examples=120)
@given(st.lists(st.integers(0, 10**6), unique=True, min_size=1, max_size=60), st.integers(1, 5), st.integers(1, 3),
       st.integers(1, 4), st.integers(0, 2**62), st.integers(0, 500), st.data())
def test_an_epoch_is_the_same_however_divided_and_wherever_resumed(rows, size, accum, world, seed, epoch, data):
    effective = size * accum * world
    assume(effective <= len(rows))
    order = np.array(rows)[np.random.default_rng([seed, epoch]).permutation(len(rows))].tolist()
    expected = [order[begin:begin + effective] for begin in range(0, len(rows) - effective + 1, effective)]
    assert gather_steps(rows, size, accum, world, seed, epoch) == expected
    first_step = data.draw(st.integers(0, len(expected)))
    assert gather_steps(rows, size, accum, world, seed, epoch, first_step) == expected[first_step:]
    refusal(lambda: TrainBatches(rows[:effective - 1], size, accum, 0, world, seed), '--effective_batch_size')


@settings(ANY, max_examples=80)
@given(st.lists(st.integers(0, 10**6), unique=True, max_size=60), st.integers(1, 20), st.integers(1, 9))
def test_every_row_is_evaluated_once_by_one_process(rows, size, world):
    shares = [EvalBatches(rows, size, rank, world) for rank in range(world)]
    listed = [np.concatenate([*share, np.zeros((0, 2))])[:, 0].tolist() for share in shares]
    assert listed == [rows[rank::world] for rank in range(world)]
    assert all(0 < len(batch) <= size and not batch[:, 1].any() for share in shares for batch in share)
    assert [len(list(share)) for share in shares] == [len(share) for share in shares]
