"""How batches reach the device: in order, whole, ahead of time, and the same from a split that is packed there."""

import contextlib
import logging
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from data.common import one_hot, write_npz
from feeder import loader as loader_module
from feeder.augment import ClipMaker
from feeder.dataset import Batch, EvalBatches, SkeletonDataset, TrainBatches
from feeder.loader import PackedDataset, make_loader, read_batches
from tests.conftest import refusal
from util.config import parse_args
from util.errors import UserError
from util.options import STAGES

CPU = torch.device('cpu')
V, M, T, CLIPS = 5, 2, 90, 23
EVALS = EvalBatches(range(CLIPS), 4, 0, 1)


def write_clips(path, dtype=np.float32, order='C', **odd):
    """Clips of 1 to T frames, one all-zero, one with gaps, one that fills its row; odd: row -> its first coordinate."""
    rng = np.random.default_rng(3)
    x = rng.standard_normal((CLIPS, T, M * V * 3)).astype(dtype)
    for i, clip in enumerate(x):
        clip[[1 + 11 * i % T, T][i == 7]:] = 0
    x[4] = 0
    x[9, [0, 3, 4]] = 0
    for row, value in odd.items():
        x[int(row[4:]), 0, 0] = value
    y = one_hot(np.arange(CLIPS) % 3, 3)
    write_npz(path, x_train=np.asarray(x, order=order), y_train=y, x_test=x[:5], y_test=y[:5])
    return path


@pytest.fixture(scope='module')
def path(tmp_path_factory):
    return write_clips(tmp_path_factory.mktemp('clips') / 'clips.npz')


@pytest.fixture
def dataset(path):
    return SkeletonDataset(path, 'train', V)


def steps(accum=1, rank=0, world=1):
    """A process's training batches of 4 clips, or of 2 and 2."""
    return TrainBatches(range(CLIPS), 4 // accum, accum, rank, world, seed=1)


def clips_of(batch):
    return [batch.frames[begin:begin + n] for begin, n in zip(batch.first, batch.num_valid, strict=True)]


def check_same_joints(batch, expected):
    """Equal in every field and in every frame of every clip, wherever these lie."""
    for name in ('num_valid', 'label', 'index', 'position'):
        assert torch.equal(getattr(batch, name), getattr(expected, name)), name
        assert getattr(batch, name).dtype == getattr(expected, name).dtype
    assert batch.first.dtype == torch.int64 and batch.frames.dtype == torch.float32
    for clip, other in zip(clips_of(batch), clips_of(expected), strict=True):
        assert torch.equal(clip, other)


# --- read in order, one batch ahead ---------------------------------------------------------------------------------

@pytest.mark.parametrize('on_device', [False, True])
@pytest.mark.parametrize('workers', [0, 2])
@pytest.mark.parametrize('batches', [steps(), steps(2, 1, 2), EVALS], ids=['steps', 'a share of them', 'evaluation'])
def test_every_batch_arrives_once_and_in_order(dataset, batches, workers, on_device):
    loader = make_loader(dataset, batches, workers, CPU, on_device)
    for epoch, first_step in ((0, 0), (1, 0), (1, 1)):
        if batches is not EVALS:
            batches.start_at(epoch, first_step)
        planned = list(batches)
        read = list(read_batches(loader, CPU))
        assert len(read) == len(planned) > 0
        for batch, places in zip(read, planned, strict=True):
            check_same_joints(batch, dataset[places])


def watch(monkeypatch, dataset):
    """What happens, in order: batches are fetched, streams entered and waited for."""
    happened = []

    class Stream:
        def __init__(self, name):
            self.name = name

        def wait_stream(self, other):
            happened.append(f'{self.name} waits for {other.name}')

    @contextlib.contextmanager
    def stream(entered):
        happened.append(f'on {entered.name}')
        yield
        happened.append(f'off {entered.name}')

    class Fetched(SkeletonDataset):
        def __getitem__(self, places):
            happened.append(f'fetch {places[0][0]}')
            return super().__getitem__(places)

    user = Stream('user')
    streams = SimpleNamespace(stream=stream, current_stream=lambda device: user)
    monkeypatch.setattr(torch, 'get_device_module', lambda device: streams)
    monkeypatch.setattr(loader_module, '_copy_stream', lambda device: Stream('copies'))
    return happened, Fetched(dataset.path, 'train', V)


def test_a_batch_is_in_use_while_the_next_is_fetched_on_another_stream(monkeypatch, dataset):
    happened, dataset = watch(monkeypatch, dataset)
    for batch in read_batches(make_loader(dataset, EvalBatches(range(10), 4, 0, 1), 0, CPU), CPU):
        happened.append(f'use {batch.index[0]}')
    expected = ['on copies', 'fetch 0', 'off copies']
    for used, fetched in ((0, ['fetch 4']), (4, ['fetch 8']), (8, [])):
        # the user waits for what was copied before, and not for what is copied next
        expected += ['user waits for copies', 'on copies', *fetched, 'off copies', f'use {used}']
    assert happened == expected


@pytest.mark.parametrize('workers', [0, 2])
def test_what_comes_before_a_damaged_clip_is_used_before_the_error(tmp_path, workers):
    dataset = SkeletonDataset(write_clips(tmp_path / 'f.npz', clip9=np.nan), 'train', V)
    read = []
    for _ in range(2):      # and it is damaged whenever it is read
        read.clear()
        try:
            for batch in read_batches(make_loader(dataset, EVALS, workers, CPU), CPU):
                read.append(batch.index.tolist())
        except UserError as error:
            assert 'clip 9 of x_train' in str(error) and '\n' not in str(error)
            error.__traceback__ = None      # it holds the loader and its workers
        else:
            pytest.fail('no error')
        assert read == [[0, 1, 2, 3], [4, 5, 6, 7]]


def test_a_reader_that_stops_early_reads_nothing_more(dataset):
    loader = make_loader(dataset, EVALS, 0, CPU)
    some = read_batches(loader, CPU)
    next(some), next(some)
    some.close()
    assert [batch.index[0].item() for batch in read_batches(loader, CPU)] == [0, 4, 8, 12, 16, 20]


def test_padding_is_read_once_and_damage_is_found_again(dataset):
    places = [(i, i) for i in range(CLIPS)]
    before = dataset[places]
    x = np.array(dataset.x)
    for clip, n in zip(x, before.num_valid, strict=True):
        clip[n:] = np.nan
    dataset.x = x
    check_same_joints(dataset[places], before)
    again = SkeletonDataset(dataset.path, 'train', V)
    again.x = x
    for _ in range(2):
        assert isinstance(again[places], UserError)


# --- a split packed in the device's memory --------------------------------------------------------------------------

@pytest.mark.parametrize('block', [1, T * M * V * 3 * 4, 3 * T * M * V * 3 * 4 + 5, 1 << 28],
                         ids=['less than a clip', 'a clip', 'three clips', 'all'])
def test_packed_split_gives_the_batches_of_the_file(monkeypatch, dataset, block):
    monkeypatch.setattr(loader_module, 'BLOCK_BYTES', block)
    packed = PackedDataset(dataset, CPU)
    assert len(packed) == CLIPS
    everything = [(i, 50 + i) for i in range(CLIPS)]
    check_same_joints(packed[everything], dataset[everything])
    for places in [*steps(), *steps(2, 1, 2), *EVALS, [(22, 3), (0, 1), (22, 0), (4, 2)]]:
        batch = packed[places]
        assert batch.frames is packed.frames        # of the whole split: nothing is copied
        check_same_joints(batch, dataset[places])


def test_packed_split_holds_no_padding(dataset):
    packed = PackedDataset(dataset, CPU)
    valid = np.maximum((np.asarray(dataset.x).sum(axis=2) != 0).sum(axis=1), 1)
    assert packed.frames.shape == (valid.sum(), M, V, 3) and packed.frames.is_contiguous()
    assert packed.num_valid.tolist() == valid.tolist() and packed.num_valid[4] == 1 and packed.num_valid[7] == T
    for row, clip in zip(np.asarray(dataset.x), clips_of(packed[[(i, 0) for i in range(CLIPS)]]), strict=True):
        np.testing.assert_array_equal(clip.flatten(1), row[:len(clip)])


@pytest.mark.parametrize('dtype,order', [('f8', 'C'), ('f2', 'C'), ('>f4', 'C'), ('f4', 'F')])
def test_packed_split_of_other_files(tmp_path, dtype, order):
    dataset = SkeletonDataset(write_clips(tmp_path / 'f.npz', dtype, order), 'train', V)
    everything = [(i, i) for i in range(CLIPS)]
    check_same_joints(PackedDataset(dataset, CPU)[everything], dataset[everything])


@pytest.mark.parametrize('stream', ['joint', 'velocity'])
def test_views_of_a_packed_split_are_bit_for_bit_the_same(dataset, stream):
    maker, packed = ClipMaker(24, stream, seed=3), PackedDataset(dataset, CPU)
    for step, places in enumerate(steps()):
        ours, expected = packed[places], dataset[places]
        assert torch.equal(maker.train_view(ours, 2, step), maker.train_view(expected, 2, step))
        assert torch.equal(maker.eval_view(ours), maker.eval_view(expected))
        assert torch.equal(maker.mask_uniform(ours, 2, step, 30), maker.mask_uniform(expected, 2, step, 30))


def test_packing_takes_a_block_of_host_memory_at_a_time(monkeypatch, dataset):
    blocks, pack = [], SkeletonDataset.pack
    monkeypatch.setattr(SkeletonDataset, 'pack', lambda self, index: blocks.append(list(index)) or pack(self, index))
    monkeypatch.setattr(loader_module, 'BLOCK_BYTES', 5 * T * M * V * 3 * 4)
    PackedDataset(dataset, CPU)
    assert blocks == [list(range(begin, min(begin + 5, CLIPS))) for begin in range(0, CLIPS, 5)]


def test_packing_says_what_it_took(dataset, caplog):
    caplog.set_level(logging.INFO)
    packed = PackedDataset(dataset, CPU)
    (line,) = (record.getMessage() for record in caplog.records if record.name == 'feeder.loader')
    assert str(dataset.path) in line and 'x_train' in line and f'{CLIPS} clips' in line and ' s' in line
    assert f'{len(packed.frames) * M * V * 3 * 4 / 1e9:.2f} GB' in line


def test_a_packed_split_has_no_workers(dataset):
    assert make_loader(dataset, steps(), 2, CPU).num_workers == 2
    assert make_loader(dataset, steps(), 2, CPU, on_device=True).num_workers == 0


@pytest.mark.parametrize('value', [np.nan, np.inf])
def test_a_damaged_clip_is_found_while_packing(tmp_path, value):
    dataset = SkeletonDataset(write_clips(tmp_path / 'f.npz', clip9=value), 'train', V)
    said = refusal(lambda: make_loader(dataset, steps(), 0, CPU, on_device=True), 'clip 9 of x_train')
    assert said == str(dataset[[(9, 0)]])


def test_a_split_that_does_not_fit_is_the_users_error(monkeypatch, dataset):
    def full(*shape, **kind):
        raise torch.OutOfMemoryError('CUDA out of memory. Tried to allocate 1.93 GiB.\nAnd a page of advice.')

    frames = PackedDataset(dataset, CPU).frames
    monkeypatch.setattr(torch, 'empty', full)
    refusal(lambda: make_loader(dataset, steps(), 0, CPU, on_device=True), dataset.path, 'x_train', 'cpu',
            f'{frames.nbytes / 1e9:.2f} GB', '--data_on_device')


def test_memory_that_no_machine_has():
    refusal(lambda: loader_module._room_for((1 << 42, M, V, 3), CPU, 'x_train'), 'x_train', '527765.58 GB')


def test_packed_batches_move_as_any(dataset):
    batch = PackedDataset(dataset, CPU)[[(1, 0)]]
    assert isinstance(batch, Batch) and batch.to(CPU).frames is batch.frames


@pytest.mark.parametrize('stage', STAGES)
def test_the_option_stands_on_the_command_line_or_in_a_file(stage, tmp_path):
    words = ['--data_path', 'd.npz', *([] if stage == 'retrieval' else ['--epochs', '2', '--lr', '0.1'])]
    words += ['--random_encoder'] if stage in ('linprobe', 'retrieval') else []
    (tmp_path / 'on.yaml').write_text('data_on_device: true\n')
    on = ['--config', str(tmp_path / 'on.yaml')]
    assert [parse_args(stage, [*words, *more]).data_on_device
            for more in ([], ['--data_on_device'], on, [*on, '--no-data_on_device'])] == [False, True, True, False]
