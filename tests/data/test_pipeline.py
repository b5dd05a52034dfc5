"""What all preparations share: finding raw files, parsing them in several processes, and writing interchange files."""

import os
import shutil
import signal
import time
import tracemalloc
import warnings
import zipfile
from collections import Counter
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from data.dataset_file import npz_writer, one_hot, write_npz
from data.pipeline import (
    Parsed,
    Sample,
    Source,
    Spool,
    Tally,
    chosen_protocols,
    collect,
    convert,
    find_sources,
    open_pool,
    peak_memory,
    settle_damaged,
    write_protocol,
)
from feeder.npz import open_member
from tests.conftest import refusal
from util.errors import UserError

BLOCK = 4096


def folder_of(path):
    return {file.name: file.read_bytes() for file in path.iterdir()} if path.is_dir() else {}


def contents(path):
    with np.load(path, allow_pickle=False) as npz:
        return {key: npz[key] for key in npz.files}


def write_files(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f'this is {name}')
    return folder


def write_zip(path, *names, compression=zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(path, 'w', compression) as archive:
        for name in names:
            archive.writestr(zipfile.ZipInfo(name), f'this is {name}' * 3, compression)
    return path


# ---- sources

def test_sources_are_found_at_any_depth_and_sorted_by_name(tmp_path):
    folder = write_files(tmp_path / 'a', 'z/b.txt', 'c.txt', 'deep/er/d.txt', '._b.txt', 'z/.hidden.txt', 'e.csv')
    (folder / 'folder.txt').mkdir()
    (tmp_path / 'elsewhere').mkdir()
    write_files(tmp_path / 'elsewhere', 'l.txt')
    (folder / 'link').symlink_to(tmp_path / 'elsewhere')
    archive = write_zip(tmp_path / 'b.zip', 'x/y/a.txt', 'x/n.txt', '__MACOSX/x/._n.txt', 'x/q.csv', 'q.txt/', 'aa.txt')
    sources = find_sources([folder, archive], '.txt')
    assert [source.stem for source in sources] == ['a', 'aa', 'b', 'c', 'd', 'l', 'n']
    assert sources == sorted(sources, key=lambda source: source.stem)
    assert [source.read() for source in sources] == [
        b'this is x/y/a.txt' * 3, b'this is aa.txt' * 3, b'this is z/b.txt', b'this is c.txt', b'this is deep/er/d.txt',
        b'this is l.txt', b'this is x/n.txt' * 3]
    assert str(sources[0]) == f'{archive}:x/y/a.txt' and str(sources[3]) == f'{folder}/c.txt'
    assert find_sources([archive, folder], '.txt') == sources


def test_no_source_is_missed_or_doubled(tmp_path):
    folder = write_files(tmp_path / 'a', 'b.txt')
    assert find_sources([folder, folder / '..' / 'a'], '.txt') == [Source(folder / '..' / 'a' / 'b.txt')]  # read once
    write_files(tmp_path / 'a', 'deeper/b.txt')
    refusal(lambda: find_sources([folder], '.txt'), folder / 'b.txt', folder / 'deeper/b.txt')
    archive = write_zip(tmp_path / 'c.zip', 'b.txt', 'x/b.txt')
    refusal(lambda: find_sources([archive], '.txt'), f'{archive}:b.txt', f'{archive}:x/b.txt')
    full, empty = write_files(tmp_path / 'd', 'd.txt'), write_files(tmp_path / 'e', 'e.csv')
    for path in (empty, write_zip(tmp_path / 'f.zip', 'f.csv'), write_zip(tmp_path / 'g.zip')):
        refusal(lambda path=path: find_sources([full, path], '.txt'), path, 'no .txt file')
    (folder / 'loop').symlink_to(folder)
    refusal(lambda: find_sources([folder], '.txt'), 'twice')


@pytest.mark.parametrize('compression', [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA],
                         ids=['stored', 'deflated', 'bzip2', 'lzma'])
def test_damaged_zips(compression, tmp_path):
    """Any byte of a small zip changed, in two ways: its members, or a UserError on opening or reading; nothing else."""
    names = ['données/b.txt', 'c.txt']
    whole = write_zip(tmp_path / 'whole.zip', *names, compression=compression).read_bytes()
    texts = {Path(name).stem: f'this is {name}'.encode() * 3 for name in names}
    refused = 0
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        for at in range(len(whole)):
            for change in (0x08, 0xff):
                path = tmp_path / f'{at}_{change}.zip'
                path.write_bytes(whole[:at] + bytes([whole[at] ^ change]) + whole[at + 1:])
                try:
                    got = [source.read() for source in find_sources([path], '.txt')]
                except UserError as error:
                    assert '\n' not in str(error)
                    refused += 1
                else:
                    assert set(got) <= set(texts.values()), at
                path.unlink()
    assert refused > len(whole) / 2


def test_a_source_that_goes_away(tmp_path):
    for source in (Source(tmp_path / 'gone.txt'), Source(tmp_path / 'gone.zip', 'a.txt'), Source(tmp_path)):
        refusal(source.read, 'cannot be read')


# ---- processes

def tell(number):
    """What a worker does with a source, which here is a number."""
    if number % 10 == 3:
        raise UserError(f'{number} ends in 3')
    return number * number, os.getpid()


class Odd(UserError):
    def __init__(self, one, other):
        super().__init__(f'{one} {other}')


def refuse_oddly(number):
    raise Odd(number, 'odd')


@pytest.mark.parametrize('workers, chunk, ahead', [(1, 4, 1), (1, 1, 3), (2, 3, 2), (3, 1, 9), (2, 100, 6)])
def test_convert_keeps_the_order(workers, chunk, ahead):
    with open_pool(workers) as pool:
        answers = list(convert(pool, range(41), tell, chunk, ahead))
    assert [source for source, _, _ in answers] == list(range(41))
    for source, parsed, (process, peak) in answers:
        if source % 10 == 3:
            assert type(parsed) is UserError and str(parsed) == f'{source} ends in 3'
        else:
            assert parsed == (source * source, process)
        assert (process == os.getpid()) == (workers == 1) and 1e6 < peak < 1e11
    assert convert(None, [], tell, 4, 1) is not None and not list(convert(None, [], tell, 4, 1))


def test_each_process_opens_a_zip_for_itself(tmp_path):
    """Also when the parent has it open already: processes that share a file share where they are in it."""
    texts = {f'{number:03}.txt': os.urandom(30_000) for number in range(120)}
    with zipfile.ZipFile(tmp_path / 'a.zip', 'w') as archive:
        for name, text in texts.items():
            archive.writestr(name, text)
    sources = find_sources([tmp_path / 'a.zip'], '.txt')
    assert [source.read() for source in sources] == list(texts.values())
    with open_pool(3) as pool:
        assert [parsed for _, parsed, _ in convert(pool, sources, Source.read, 1, 9)] == list(texts.values())


def test_errors_of_any_kind_come_back_from_a_worker():
    with open_pool(2) as pool:
        (_, parsed, _), = convert(pool, [7], refuse_oddly, 1, 1)
    assert type(parsed) is UserError and str(parsed) == '7 odd'


class NoPool:
    """Parses where a pool would only take note."""

    def __init__(self):
        self.parsed = 0

    def submit(self, function, parse, sources):
        self.parsed += len(sources)
        return SimpleNamespace(result=partial(function, parse, sources))


def test_no_more_is_parsed_ahead_than_told():
    """However slow the reader is: 3 chunks of 2."""
    pool = NoPool()
    for number, (source, parsed, _) in enumerate(convert(pool, range(1, 21), abs, 2, 3)):
        assert source == parsed == number + 1 and pool.parsed <= number + 1 + 3 * 2
    assert pool.parsed == 20


def kill_yourself(number):
    if number == 5:
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def test_a_worker_that_is_killed_is_a_users_error():
    def go():
        with open_pool(2) as pool:
            list(convert(pool, range(20), kill_yourself, 1, 4))

    refusal(go, 'killed', 'fewer --workers')


def divide(number):
    return 1 // number


def test_bugs_are_not_hidden():
    """Anything but a UserError ends the run, with one worker and with two."""
    for workers in (1, 2):
        with pytest.raises(ZeroDivisionError), open_pool(workers) as pool:
            list(convert(pool, [1, 0], divide, 1, 2))


def test_peak_memory_is_in_bytes():
    assert 10_000_000 < peak_memory() < os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE')


# ---- the spool

def random_samples(seed, count=9):
    rng = np.random.default_rng(seed)
    return [Sample(f'sample{number}', number % 3, rng.normal(size=(rng.integers(1, 60), rng.choice([4, 8])))
                   .astype(np.float32)) for number in range(count)]


def spool_of(folder, samples):
    spool = Spool(folder)
    for sample in samples:
        spool.append(sample)
    return spool


def test_spool(tmp_path):
    """Samples come back in any order, also between two that are added; no file is to be seen."""
    samples, folder = random_samples(0, 200), tmp_path / 'made/for/it'
    spool, rng = Spool(folder), np.random.default_rng(0)
    for number, sample in enumerate(samples):
        assert len(spool) == number
        spool.append(sample)
        for other in rng.integers(0, number + 1, 2):
            np.testing.assert_array_equal(spool[other], samples[other].rows)
    for number in rng.permutation(200):
        assert spool[number].dtype == np.float32 and spool[number].tobytes() == samples[number].rows.tobytes()
    assert spool.names == [sample.name for sample in samples] and spool.labels == [sample.label for sample in samples]
    assert spool.lengths == [len(sample.rows) for sample in samples] and folder.is_dir() and not folder_of(folder)
    spool.append(Sample('turned', 0, np.arange(12, dtype=np.float32).reshape(3, 4).T))
    np.testing.assert_array_equal(spool[200], np.arange(12).reshape(3, 4).T)


def parse_sample(source):
    if source == 2:
        raise UserError('line 2: bad')
    rows = np.full((source + 1, 4), source, dtype=np.float32)
    samples = [Sample(f'{source}{letter}', source % 3, rows) for letter in 'ab']
    return Parsed(samples, 100, Counter({'odd': source % 2, 'even': 0}), ['5b: late'] if source == 5 else [])


@pytest.mark.parametrize('workers', [1, 2])
def test_collect(workers, tmp_path):
    tally = Tally()
    spool = collect(range(6), parse_sample, tmp_path, workers, 2, tally)
    assert spool.names == ['0a', '0b', '1a', '1b', '3a', '3b', '4a', '4b', '5a', '5b']
    assert spool.lengths == [1, 1, 2, 2, 4, 4, 5, 5, 6, 6] and (spool[6] == 4).all()
    assert (tally.files, tally.text, tally.counts['odd']) == (6, 500, 3)
    assert tally.damaged == ['2: line 2: bad', '5b: late']
    assert len(tally.peaks) in range(1, workers + 1) and (os.getpid() in tally.peaks) == (workers == 1)


def test_summary(tmp_path, capsys):
    tally = Tally(began=time.perf_counter() - 2)
    spool = collect(range(6), parse_sample, tmp_path, 1, 2, tally)
    tally.text, tally.counts['things'] = 3_000_000, 1234
    tally.print(spool)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == '10 samples of 3 classes, 36 frames (1 to 6 a sample)'
    assert lines[1:4] == ['3 odd', '1,234 things', '2 damaged and left out']
    assert lines[4].startswith('6 files, 3.0 MB of text in 2.') and lines[4].endswith(' MB in 1 processes')


# ---- damaged samples

def test_settle_damaged(tmp_path, capsys):
    path = tmp_path / 'out/list.txt'
    damaged = [f'file{number}: line {number}: bad' for number in range(25)]
    refusal(lambda: settle_damaged(damaged, False, path), '25 damaged', '--skip_damaged', path)
    lines = capsys.readouterr().err.splitlines()
    assert lines == [f'damaged: {line}' for line in damaged[:20]] + ['… and 5 more'] and not path.exists()
    settle_damaged(damaged, True, path)
    assert path.read_text() == '\n'.join([*damaged, ''])
    assert len(capsys.readouterr().err.splitlines()) == 21
    refusal(lambda: settle_damaged(damaged[:1], False, path), '1 damaged')
    assert path.read_text().count('\n') == 25 and capsys.readouterr().err == f'damaged: {damaged[0]}\n'
    settle_damaged(damaged[:20], True, path)
    assert path.read_text().count('\n') == 20 and '…' not in capsys.readouterr().err
    for skip in (True, False):
        path.write_text('of an earlier run')
        settle_damaged([], skip, path)
        assert not path.exists() and capsys.readouterr() == ('', '')
        settle_damaged([], skip, path)


def test_chosen_protocols():
    protocols = {'xsub': 1, 'xview': 2}
    assert chosen_protocols(None, protocols) == [1, 2] and chosen_protocols(['xview'], protocols) == [2]
    assert chosen_protocols(['xview', 'xsub', 'xview'], protocols) == [2, 1]
    refusal(lambda: chosen_protocols(['xsub', 'x'], protocols), '--protocol x', 'xsub, xview')


# ---- a protocol's file

@pytest.mark.parametrize('second', ['zeros', 'copy'])
def test_write_protocol(second, tmp_path, capsys):
    samples = random_samples(1, 1500)
    spool, rng = spool_of(tmp_path, samples), np.random.default_rng(0)
    chosen = rng.permutation(1500)
    train, test = chosen[:1100].tolist(), chosen[1100:1490].tolist()
    frames = max(spool.lengths) + 7
    write_protocol(tmp_path / 'A.npz', spool, train, test, 3, frames, 8, second)
    assert capsys.readouterr() == (f'{tmp_path}/A.npz: 1,100 train, 390 test\n', '')
    got = contents(tmp_path / 'A.npz')
    assert list(got) == ['x_train', 'y_train', 'x_test', 'y_test', 'name_train', 'name_test']
    for part, indices in (('train', train), ('test', test)):
        expected = np.zeros((len(indices), frames, 8), dtype=np.float32)
        for x, index in zip(expected, indices, strict=True):
            rows = samples[index].rows
            x[:len(rows), :rows.shape[1]] = rows
            if second == 'copy' and rows.shape[1] == 4:
                x[:len(rows), 4:] = rows
        assert got[f'x_{part}'].dtype == np.float32 and got[f'x_{part}'].tobytes() == expected.tobytes()
        np.testing.assert_array_equal(got[f'y_{part}'], one_hot([samples[index].label for index in indices], 3))
        assert got[f'y_{part}'].dtype == np.float64
        assert got[f'name_{part}'].tolist() == [samples[index].name for index in indices]
        np.testing.assert_array_equal(open_member(tmp_path / 'A.npz', f'x_{part}'), expected)


def test_a_split_without_samples(tmp_path):
    """As when somebody tries a few files of one camera."""
    spool = spool_of(tmp_path, random_samples(2))
    write_protocol(tmp_path / 'A.npz', spool, [], list(range(9)), 3, 60, 8)
    got = contents(tmp_path / 'A.npz')
    assert (got['x_train'].shape, got['y_train'].shape, got['name_train'].shape) == ((0, 60, 8), (0, 3), (0,))
    assert got['x_test'].shape == (9, 60, 8) and open_member(tmp_path / 'A.npz', 'x_train').shape == (0, 60, 8)


# ---- the file itself

def members_of(seed):
    """Arrays of every kind that is written, with long and short stretches of zeros, on block borders and off them."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(50, 300, 6)).astype(np.float32)
    for clip in x:
        clip[rng.integers(300):] = 0
    x[10:25] = 0
    return {'x': x, 'zeros': np.zeros((100, 100)), 'y': np.eye(5)[rng.integers(0, 5, 700)],
            'start': np.pad(x[0], ((900, 0), (0, 0))), 'turned': x[:2].T, 'name': np.array(['a', 'bcd', 'ä…']),
            'none': np.zeros((0, 3), dtype=np.float32), 'one': np.float64(3)[None], 'int': np.arange(5),
            'negative': np.full(3000, -0., dtype=np.float32)}


def test_npz_is_what_numpy_reads(tmp_path):
    members = members_of(0)
    write_npz(tmp_path / 'new/a.npz', **members)
    got = contents(tmp_path / 'new/a.npz')
    assert list(got) == list(members) and [path.name for path in (tmp_path / 'new').iterdir()] == ['a.npz']
    for name, array in members.items():
        mapped = open_member(tmp_path / 'new/a.npz', name)
        assert isinstance(mapped, np.memmap) or not mapped.size
        for read in (got[name], mapped):
            assert (read.dtype, read.shape) == (array.dtype, array.shape)
            assert read.tobytes() == np.ascontiguousarray(array).tobytes(), 'also the sign of zeros'
    with zipfile.ZipFile(tmp_path / 'new/a.npz') as archive:
        assert archive.testzip() is None
        for info in archive.infolist():
            assert info.compress_type == zipfile.ZIP_STORED and info.compress_size == info.file_size
            assert info.date_time == (1980, 1, 1, 0, 0, 0)


def test_same_members_same_bytes(tmp_path):
    """Whatever the time, the file's name and the pieces that a member comes in; other members, other bytes."""
    members = members_of(1)
    write_npz(tmp_path / 'a.npz', **members)
    expected = (tmp_path / 'a.npz').read_bytes()
    rng = np.random.default_rng(2)
    for number in range(5):
        os.utime(tmp_path / 'a.npz', (10 ** 9 * number,) * 2)
        with npz_writer(tmp_path / f'other{number}.npz') as add:
            for name, array in members.items():
                at, chunks, flat = 0, [], np.ascontiguousarray(array).reshape(-1)
                while at < flat.size:
                    chunks.append(flat[at:at + rng.choice([1, 7, 100, 1024, 20_000, 10 ** 6])])
                    at += chunks[-1].size
                add(name, array.shape, array.dtype, iter(chunks))
        assert (tmp_path / f'other{number}.npz').read_bytes() == expected
    members['x'][3, 0, 0] += 1
    write_npz(tmp_path / 'b.npz', **members)
    assert (tmp_path / 'b.npz').read_bytes() != expected


def test_a_shorter_file_replaces_a_longer_one(tmp_path):
    """Nothing of the old one shines through the holes of the new one."""
    write_npz(tmp_path / 'a.npz', x=np.ones((1000, 100)))
    write_npz(tmp_path / 'a.npz', x=np.zeros((500, 100)), y=np.ones(3))
    assert not contents(tmp_path / 'a.npz')['x'].any() and contents(tmp_path / 'a.npz')['y'].sum() == 3


def blocks_of(path):
    """Bytes that a file takes on the disk."""
    return path.stat().st_blocks * 512


def needs_holes(folder):
    path = folder / 'hole'
    with open(path, 'wb') as file:
        file.truncate(1 << 24)
    if blocks_of(path) > 1 << 20:
        pytest.skip('this file system leaves no holes')
    path.unlink()


def test_zeros_take_no_room(tmp_path):
    """A file takes what its numbers take, and a few blocks a stretch; zeros less than a block long may be written."""
    needs_holes(tmp_path)
    padding, rows = np.zeros((300, 150), dtype=np.float32), np.ones((20, 150), dtype=np.float32)
    with npz_writer(tmp_path / 'a.npz') as add:
        add('x', (400, 300, 150), np.float32, (chunk for _ in range(400) for chunk in (rows, padding[20:])))
    assert (tmp_path / 'a.npz').stat().st_size > 400 * 300 * 600
    assert blocks_of(tmp_path / 'a.npz') < 400 * (rows.nbytes + 2 * BLOCK) + (1 << 16)
    mapped = open_member(tmp_path / 'a.npz', 'x')
    assert (mapped[:, :20] == 1).all() and not mapped[:, 20:].any()
    rng = np.random.default_rng(0)
    write_npz(tmp_path / 'b.npz', x=rng.normal(size=100_000))
    assert blocks_of(tmp_path / 'b.npz') >= 800_000, 'what is not zero is there'


def test_a_member_past_4_gib(tmp_path):
    """24,000 clips of NTU's size, of which three have numbers: zip64, mapped where it lies, with next to no disk."""
    needs_holes(tmp_path)
    if shutil.disk_usage(tmp_path).free < 1 << 28:
        pytest.skip('little space left on the disk')
    clips, shape = 24_000, (300, 150)
    assert clips * 300 * 600 > 1 << 32
    rng = np.random.default_rng(0)
    shown = {number: rng.normal(size=shape).astype(np.float32) for number in (0, 12_345, clips - 1)}
    zeros = np.zeros((100, *shape), dtype=np.float32)

    def chunks():
        for first in range(0, clips, 100):
            inside = [number for number in shown if first <= number < first + 100]
            if not inside:
                yield zeros
            for number in inside:
                yield zeros[:number - first]
                yield shown[number]
                yield zeros[:first + 99 - number]

    path = tmp_path / 'BIG.npz'
    with npz_writer(path) as add:
        add('x_train', (clips, *shape), np.float32, chunks())
        add('y_train', (3, 2), np.float64, [np.arange(6.).reshape(3, 2)])
    with zipfile.ZipFile(path) as archive:
        big, small = archive.infolist()
        assert big.file_size > 1 << 32 and small.header_offset > 1 << 32 and big.compress_type == zipfile.ZIP_STORED
    assert path.stat().st_size > 1 << 32 and blocks_of(path) < 1 << 21
    mapped = open_member(path, 'x_train')
    assert mapped.shape == (clips, *shape) and isinstance(mapped, np.memmap)
    for number, clip in shown.items():
        np.testing.assert_array_equal(mapped[number], clip)
        assert not mapped[number - 1 if number else 1].any()
    assert not mapped[12_346].any() and not mapped[23_861].any(), 'the clip at 4 GiB'
    np.testing.assert_array_equal(open_member(path, 'y_train'), np.arange(6.).reshape(3, 2))
    with np.load(path) as npz:
        assert npz.files == ['x_train', 'y_train'] and npz['y_train'].sum() == 15
    path.unlink()


class Mishap(Exception):
    pass


@pytest.mark.parametrize('error', [Mishap, UserError, OSError, KeyboardInterrupt, MemoryError, AssertionError])
@pytest.mark.parametrize('good', [0, 1, 50])
def test_a_chunk_that_fails_leaves_nothing_behind(error, good, tmp_path):
    def chunks():
        for _ in range(good):
            yield np.ones(10_000)
        raise error('mishap')

    for there in (b'', b'old'):
        if there:
            (tmp_path / 'a.npz').write_bytes(there)
        with pytest.raises(error, match='mishap'), npz_writer(tmp_path / 'a.npz') as add:
            add('y', (3,), np.float64, [np.ones(3)])
            add('x', (10 ** 6,), np.float64, chunks())
        assert folder_of(tmp_path) == ({'a.npz': b'old'} if there else {})


@pytest.mark.parametrize('shape, dtype, chunks', [
    ((3,), np.float64, [np.ones(2)]), ((3,), np.float64, [np.ones(4)]), ((3,), np.float64, []),
    ((3,), np.float64, [np.ones(3, dtype=np.float32)] * 2), ((1,), object, [np.array([{}])])])
def test_what_a_program_may_not_write(shape, dtype, chunks, tmp_path):
    with pytest.raises(AssertionError, match='x: '), npz_writer(tmp_path / 'a.npz') as add:
        add('x', shape, dtype, chunks)
    assert not folder_of(tmp_path)


def test_a_file_that_cannot_be_written(tmp_path):
    (tmp_path / 'file').write_bytes(b'in the way')
    for path in (tmp_path / 'file/a.npz', tmp_path / ('x' * 300 + '.npz'), tmp_path):
        refusal(lambda path=path: write_npz(path, x=np.ones(3)), path, 'cannot be written')
    assert folder_of(tmp_path) == {'file': b'in the way'}


def test_no_more_than_a_chunk_in_memory(tmp_path):
    """64 MB in pieces of one, not all zeros; and 270 MB of samples of which each is small."""
    piece = np.zeros(1 << 17)
    piece[0] = 1
    spool = spool_of(tmp_path, [Sample('a', 0, np.ones((20, 75), dtype=np.float32))] * 1500)
    tracemalloc.start()
    try:
        with npz_writer(tmp_path / 'a.npz') as add:
            add('x', (1 << 23,), np.float64, (piece for _ in range(1 << 6)))
        write_protocol(tmp_path / 'b.npz', spool, range(1500), [], 60, 300, 150, 'copy')
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 6 << 20
    assert (tmp_path / 'b.npz').stat().st_size > 250 << 20


def test_one_hot():
    np.testing.assert_array_equal(one_hot([2, 0], 3), [[0, 0, 1], [1, 0, 0]])
    assert one_hot([], 3).shape == (0, 3) and one_hot([0], 1).dtype == np.float64
    for labels in ([3], [-1]):
        with pytest.raises(AssertionError, match='outside'):
            one_hot(labels, 3)
