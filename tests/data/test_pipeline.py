"""What all preparations share: raw files in folders and archives, parsing in processes, dataset files."""

import os
import shutil
import signal
import subprocess
import sys
import tracemalloc
import warnings
import zipfile

import numpy as np
import pytest

from data.dataset_file import BLOCK, npz_writer, one_hot, write_npz
from data.pipeline import parse_all, write_protocol
from data.sources import MAX_BYTES, Source, find_sources
from data.spool import Sample, Spool
from feeder.npz import open_member
from tests.conftest import ROOT, refusal
from tests.data.raw_files import MEMBERS, read_npz, write_files
from util.errors import UserError


def write_zip(path, *names, compression=zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(path, 'w', compression) as archive:
        for name in names:
            archive.writestr(zipfile.ZipInfo(name), f'this is {name}' * 3, compression)
    return path


def write_texts(folder, *names):
    return write_files(folder, {name: f'this is {name}'.encode() for name in names})


def test_sources_are_found_at_any_depth_and_sorted_by_name(tmp_path):
    folder = write_texts(tmp_path / 'a', 'z/b.txt', 'c.txt', '._b.txt', 'z/.hidden.txt', 'e.csv')
    (folder / 'folder.txt').mkdir()
    (folder / 'link').symlink_to(write_texts(tmp_path / 'elsewhere', 'l.txt'))
    archive = write_zip(tmp_path / 'b.zip', 'x/y/a.txt', 'x/n.txt', '__MACOSX/x/._n.txt', 'x/q.csv')
    sources = find_sources([folder, archive, folder], '.txt')
    assert [source.stem for source in sources] == ['a', 'b', 'c', 'l', 'n']
    assert [source.read() for source in sources] == [b'this is x/y/a.txt' * 3, b'this is z/b.txt', b'this is c.txt',
                                                     b'this is l.txt', b'this is x/n.txt' * 3]


def test_missing_duplicate_and_unreadable_sources(tmp_path):
    folder = write_texts(tmp_path / 'a', 'b.txt', 'deeper/b.txt')
    refusal(lambda: find_sources([folder], '.txt'), folder / 'b.txt', folder / 'deeper/b.txt', 'twice')
    full = write_texts(tmp_path / 'd', 'd.txt')
    for path in (write_texts(tmp_path / 'e', 'e.csv'), write_zip(tmp_path / 'f.zip', 'f.csv')):
        refusal(lambda path=path: find_sources([full, path], '.txt'), path, 'no .txt file')
    refusal(lambda: find_sources([full, tmp_path / 'absent'], '.txt'), 'absent', 'does not exist')
    refusal(Source(tmp_path / 'gone.txt').read, 'cannot be read (No such file')
    refusal(Source(tmp_path).read, 'not a regular file')
    with open(tmp_path / 'large', 'wb') as file:
        file.truncate(MAX_BYTES + 1)
    refusal(Source(tmp_path / 'large').read, 'a raw file may have')


@pytest.mark.parametrize('compression', [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2,
                                         zipfile.ZIP_LZMA])
def test_any_damaged_byte_of_a_zip(compression, tmp_path):
    """The members, or a UserError when the zip is opened or read; nothing else."""
    names = ['données/b.txt', 'c.txt']
    path = write_zip(tmp_path / 'a.zip', *names, compression=compression)
    whole, texts, refused = path.read_bytes(), {f'this is {name}'.encode() * 3 for name in names}, 0
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        for at in range(len(whole)):
            path = tmp_path / f'{at}.zip'       # open zips are cached by name
            path.write_bytes(whole[:at] + bytes([whole[at] ^ (0x08 if at % 2 else 0xff)]) + whole[at + 1:])
            try:
                assert {source.read() for source in find_sources([path], '.txt')} <= texts, at
            except UserError as error:
                assert '\n' not in str(error)
                refused += 1
    assert refused > len(whole) / 3


def square(number):
    if number % 10 == 3:
        raise UserError(f'{number} ends in 3')
    return number * number, os.getpid()


@pytest.mark.parametrize('workers, chunk', [(1, 4), (3, 1), (2, 100)])
def test_results_keep_their_order(workers, chunk):
    results = list(parse_all(square, range(41), workers, chunk))
    assert [source for source, _ in results] == list(range(41))
    for source, result in results:
        if source % 10 == 3:
            assert type(result) is UserError and str(result) == f'{source} ends in 3'
        else:
            assert result[0] == source * source and (result[1] == os.getpid()) == (workers == 1)


def test_each_process_opens_a_zip_for_itself(tmp_path):
    """Processes that share an open file share its position."""
    texts = {f'{number:03}.txt': os.urandom(30_000) for number in range(120)}
    with zipfile.ZipFile(tmp_path / 'a.zip', 'w') as archive:
        for name, text in texts.items():
            archive.writestr(name, text)
    sources = find_sources([tmp_path / 'a.zip'], '.txt')
    assert sources[0].read() == texts['000.txt']
    assert [text for _, text in parse_all(Source.read, sources, 3, 1)] == list(texts.values())


def kill_process(number):
    if number == 5:
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_killed_worker_ends_the_run():
    refusal(lambda: list(parse_all(kill_process, range(20), 2, 1)), 'killed', 'reduce --workers')


@pytest.mark.parametrize('second_body', ['zeros', 'copy'])
def test_write_protocol(second_body, tmp_path):
    rng, spool = np.random.default_rng(1), Spool(tmp_path)
    samples = [Sample(f'sample{number}', number % 3, rng.normal(size=(rng.integers(1, 60), rng.choice([4, 8])))
                      .astype(np.float32)) for number in range(1500)]
    for sample in samples:
        spool.append(sample)
    order, frames = rng.permutation(1500).tolist(), max(spool.lengths) + 7
    parts = {'train': order[:1100], 'test': order[1100:1490]}
    write_protocol(tmp_path / 'A.npz', spool, *parts.values(), 3, frames, 8, second_body)
    members = read_npz(tmp_path / 'A.npz')
    assert list(members) == MEMBERS
    for split, indices in parts.items():
        expected = np.zeros((len(indices), frames, 8), dtype=np.float32)
        for x, rows in zip(expected, [samples[index].rows for index in indices], strict=True):
            x[:len(rows), :rows.shape[1]] = rows
            if second_body == 'copy':
                x[:len(rows), -rows.shape[1]:] = rows
        assert members[f'x_{split}'].dtype == np.float32 and members[f'x_{split}'].tobytes() == expected.tobytes()
        np.testing.assert_array_equal(members[f'y_{split}'], one_hot([samples[index].label for index in indices], 3))
        assert members[f'name_{split}'].tolist() == [samples[index].name for index in indices]
    write_protocol(tmp_path / 'B.npz', spool, [], [0], 3, 60, 8)
    assert open_member(tmp_path / 'B.npz', 'x_train').shape == (0, 60, 8)


def test_npz_files_are_what_numpy_reads(tmp_path):
    """Arrays with long and short runs of zeros, on block borders and off them."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(50, 300, 6)).astype(np.float32)
    for clip in x:
        clip[rng.integers(300):] = 0
    x[10:25] = 0
    members = {'x': x, 'zeros': np.zeros((100, 100)), 'y': np.eye(5)[rng.integers(0, 5, 700)],
               'start': np.pad(x[0], ((900, 0), (0, 0))), 'transposed': x[:2].T, 'name': np.array(['a', 'bcd', 'ä…']),
               'empty': np.zeros((0, 3), dtype=np.float32), 'negative': np.full(3000, -0., dtype=np.float32)}
    write_npz(tmp_path / 'new/a.npz', **members)
    content = read_npz(tmp_path / 'new/a.npz')
    assert list(content) == list(members) and [path.name for path in (tmp_path / 'new').iterdir()] == ['a.npz']
    for name, array in members.items():
        mapped = open_member(tmp_path / 'new/a.npz', name)
        assert isinstance(mapped, np.memmap) or not mapped.size
        for read in (content[name], mapped):
            assert (read.dtype, read.shape) == (array.dtype, array.shape)
            assert read.tobytes() == np.ascontiguousarray(array).tobytes(), 'the sign of zeros included'


def test_a_member_beyond_4_gib_whose_zeros_take_no_space(tmp_path):
    """24,000 clips of NTU's size, two of which are not zero: zip64, mapped in place."""
    with open(tmp_path / 'hole', 'wb') as file:
        file.truncate(1 << 24)
    if (tmp_path / 'hole').stat().st_blocks * 512 > 1 << 20 or shutil.disk_usage(tmp_path).free < 1 << 28:
        pytest.skip('the file system has no holes, or little space')
    zeros = np.zeros((100, 300, 150), dtype=np.float32)
    chunk = zeros.copy()
    chunk[45] = rows = np.random.default_rng(0).normal(size=(300, 150)).astype(np.float32)
    path = tmp_path / 'BIG.npz'
    with npz_writer(path) as add:
        add('x_train', (24_000, 300, 150), np.float32, [chunk, *[zeros] * 238, chunk])
        add('y_train', (3, 2), np.float64, [np.arange(6.).reshape(3, 2)])
    # a chunk is written whole unless it is zero
    assert path.stat().st_size > 1 << 32 and path.stat().st_blocks * 512 < 2 * zeros.nbytes + 100 * BLOCK
    mapped = open_member(path, 'x_train')
    for clip in (45, 23_945):
        np.testing.assert_array_equal(mapped[clip], rows)
        assert not mapped[clip - 1].any() and not mapped[clip + 1].any()
    np.testing.assert_array_equal(open_member(path, 'y_train'), np.arange(6.).reshape(3, 2))
    path.unlink()


def test_only_a_chunk_is_in_memory(tmp_path):
    """Of 270 MB of padded samples."""
    spool = Spool(tmp_path)
    for _ in range(1500):
        spool.append(Sample('a', 0, np.ones((20, 75), dtype=np.float32)))
    tracemalloc.start()
    write_protocol(tmp_path / 'b.npz', spool, range(1500), [], 60, 300, 150, 'copy')
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 6 << 20 and (tmp_path / 'b.npz').stat().st_size > 250 << 20


def test_scripts_run_from_any_folder(tmp_path):
    for script in ('check', 'prepare_custom', 'prepare_ntu', 'prepare_nwucla', 'prepare_pku', 'synthesize'):
        done = subprocess.run([sys.executable, ROOT / f'data/{script}.py', '--help'], cwd=tmp_path, check=True,
                              capture_output=True, text=True)
        assert 'usage' in done.stdout and done.stderr == ''
