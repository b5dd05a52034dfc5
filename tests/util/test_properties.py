"""Properties of checkpoint files, for any content, damage and history."""

import os

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.conftest import read_place
from tests.feeder.conftest import ANY
from util.checkpoint import LAST, PREVIOUS, Checkpoint, newest
from util.errors import UserError


@pytest.fixture(autouse=True, scope='module')
def skip_fsync():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, 'fsync', lambda descriptor: None)
        yield


def bits(value):
    """A value as something that is equal for equal bits and types only."""
    if isinstance(value, torch.Tensor):
        return value.dtype, tuple(value.shape), value.contiguous().flatten().view(torch.uint8).tolist()
    if isinstance(value, dict):
        return dict, [(bits(key), bits(item)) for key, item in value.items()]
    return type(value), value


@pytest.fixture(scope='module')
def saved(tmp_path_factory):
    """Path, bytes and content of a checkpoint."""
    path = tmp_path_factory.mktemp('saved') / LAST
    Checkpoint({'a': torch.randn(40), 'b': torch.zeros(2, 0)}, epoch=3, step=1,
               optimizer={'state': {0: {'exp_avg': torch.randn(40)}}}).write(path)
    return path, path.read_bytes(), bits(vars(Checkpoint.read(path)))


@settings(ANY, max_examples=150)
@given(st.one_of(st.floats(0, 1, exclude_max=True), st.sampled_from([0., 1 - 2**-53])), st.integers(1, 255),
       st.booleans())
def test_damage_never_gives_other_content(saved, place, change, cut):
    """A changed byte, or a cut: a UserError, or the content that was saved if the byte carries nothing."""
    path, whole, content = saved
    at = int(place * len(whole))
    path.write_bytes(whole[:at] if cut else whole[:at] + bytes([whole[at] ^ change]) + whole[at + 1:])
    try:
        read = bits(vars(Checkpoint.read(path)))
    except UserError as error:
        assert str(path) in str(error) and '\n' not in str(error)
    else:
        assert read == content and not cut


@settings(ANY, max_examples=30)
@example([(0, True), (0, False), (0, False)], ['whole', 'cut', 'whole', 'whole', 'whole', 'whole'])
@example([(0, True), (0, True), (0, True)], ['whole', 'changed', 'whole', 'whole', 'whole', 'whole'])
@given(st.lists(st.tuples(st.integers(0, 2), st.booleans()), min_size=1, max_size=4),
       st.lists(st.sampled_from(['whole', 'whole', 'cut', 'empty', 'changed', 'removed']), min_size=6, max_size=6))
def test_auto_takes_the_latest_intact_checkpoint(tmp_path_factory, saves, kinds):
    """After any saves (steps within an epoch, whether the epoch's own file is written too) and any damage."""
    folder = tmp_path_factory.mktemp('run')
    for epoch, (steps, numbered) in enumerate(saves):
        for place in [*((epoch - 1, step + 1) for step in range(steps)), (epoch, 0)]:
            checkpoint = Checkpoint({'a': torch.tensor([*map(float, place)])}, epoch=place[0], step=place[1])
            if numbered and not place[1]:
                checkpoint.write(folder / f'checkpoint-{epoch}.pth')
            checkpoint.write(folder / LAST, previous=PREVIOUS)
    written = {path: Checkpoint.read(path) for path in folder.glob('*.pth')}
    damaged = {path: kind for path, kind in zip(sorted(written, reverse=True), kinds, strict=False) if kind != 'whole'}
    for path, kind in damaged.items():
        content = path.read_bytes()
        left = {'cut': content[:len(content) // 2], 'changed': content.replace(b'PK\1\2', b'PK\0\0')}
        path.write_bytes(left.get(kind, b''))
        if kind == 'removed':
            path.unlink()
    intact = [(checkpoint.epoch + 1, checkpoint.step) for path, checkpoint in written.items() if path not in damaged]
    if intact:
        assert read_place(folder) == max(intact) and newest(folder)[0] not in damaged
    elif any(path.exists() for path in written):
        with pytest.raises(UserError):
            newest(folder)
    else:
        assert newest(folder) is None
