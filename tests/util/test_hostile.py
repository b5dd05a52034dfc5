"""Files are data: whatever is in them, nothing of it is run, nothing is written elsewhere, and no memory is filled."""

import gzip
import io
import json
import lzma
import os
import pickle
import resource
import stat
import struct
import tarfile
import time
import zipfile
import zlib
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from numpy.lib import format as npy

import main_linprobe
import tools.report
import tools.retrieval
from data import check, prepare_ntu, prepare_nwucla, prepare_pku
from data.pipeline import LARGEST
from feeder.npz import open_member
from tests.conftest import refusal
from tests.tools.test_report import read_result, write_run
from util import checkpoint
from util.config import read_config
from util.files import BOMB_BYTES
from util.predictions import read_scores

BLOCK = 1 << 24         # bytes of zeros that are compressed at once
ENOUGH = 4 << 30        # bytes of address space more than now: what a bomb would go beyond


class Command:
    """Unpickled without care, it leaves a file."""

    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        return os.system, (f'touch {self.trace}',)


@contextmanager
def bounded(seconds: float = 10, room: int = ENOUGH):
    """The body may take neither long nor much memory."""
    now = int(Path('/proc/self/statm').read_text().split()[0]) * resource.getpagesize()
    limits, began = resource.getrlimit(resource.RLIMIT_AS), time.perf_counter()
    resource.setrlimit(resource.RLIMIT_AS, (now + room, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)
    assert time.perf_counter() - began < seconds


def folder_of(path) -> list[str]:
    return sorted(str(file.relative_to(path)) for file in path.rglob('*'))


def refused(call, *naming) -> str:
    with bounded():
        return refusal(call, *naming)


# --- npz ------------------------------------------------------------------------------------------------------------

def npy_of(array, **options) -> bytes:
    file = io.BytesIO()
    npy.write_array(file, array, **options)
    return file.getvalue()


def header_of(shape: str, descr: str = "'<f4'") -> bytes:
    text = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}".encode()
    return b'\x93NUMPY\x01\x00' + struct.pack('<H', len(text)) + text


def write_zip(path, members, compression=zipfile.ZIP_STORED):
    """Members as they are given, whatever their names."""
    with zipfile.ZipFile(path, 'w', compression) as archive:
        for name, content in members:
            member = zipfile.ZipInfo('x')
            member.filename, member.compress_type = name, compression
            archive.writestr(member, content)
    return path


READERS = {
    'training': lambda path: open_member(path, 'x_train'),
    'check': lambda path: check.main([str(path)]),
    'scores': read_scores,
    'features': lambda path: tools.report.main(['--features', str(path), '--tsne', f'{path}.png']),
    'retrieval': lambda path: tools.retrieval.main(['--features', str(path), '--device', 'cpu', '--output_dir',
                                                   f'{path}.out']),
}
MEMBERS = ('x_train', 'features_train', 'features_test', 'name_test', 'label_test', 'scores', 'name', 'label',
           'benchmark', 'stream')


@pytest.mark.parametrize('compression', [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize('reader', READERS)
def test_no_pickle_of_an_npz_is_run(reader, compression, tmp_path):
    trace = tmp_path / 'trace'
    evil = npy_of(np.array([Command(trace)], dtype=object), allow_pickle=True)
    path = write_zip(tmp_path / 'f.npz', [(f'{name}.npy', evil) for name in MEMBERS], compression)
    before = folder_of(tmp_path)
    refused(lambda: READERS[reader](path), path)
    assert not trace.exists() and folder_of(tmp_path) == before
    np.load(path, allow_pickle=True)['x_train']                     # that it would have run, read without care
    assert trace.exists()


@pytest.mark.parametrize('reader', READERS)
def test_a_bare_pickle_is_no_npz(reader, tmp_path):
    path, trace = tmp_path / 'f.npz', tmp_path / 'trace'
    path.write_bytes(pickle.dumps(Command(trace)))
    refused(lambda: READERS[reader](path), path)
    assert not trace.exists()


NAMES = ['../escaped', '/tmp/escaped', 'a/../../escaped', '..\\escaped', 'C:\\escaped', '../../../../tmp/escaped']


@pytest.mark.parametrize('compression', [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize('name', NAMES)
@pytest.mark.parametrize('reader', READERS)
def test_names_that_lead_out_of_an_npz_are_refused(reader, name, compression, tmp_path):
    folder = tmp_path / 'in' / 'side'
    folder.mkdir(parents=True)
    array = npy_of(np.ones((2, 3, 30), np.float32))
    path = write_zip(folder / 'f.npz', [*((f'{one}.npy', array) for one in MEMBERS), (f'{name}.npy', array)],
                     compression)
    before = folder_of(tmp_path)
    refused(lambda: READERS[reader](path), path, 'leads out of the archive')
    assert folder_of(tmp_path) == before


def test_a_slash_in_a_name_makes_no_folder(tmp_path):
    path = write_zip(tmp_path / 'f.npz', [('a/b.npy', npy_of(np.arange(3.)))], zipfile.ZIP_DEFLATED)
    assert open_member(path, 'a/b').tolist() == [0, 1, 2]
    assert all((tmp_path / name).is_file() for name in folder_of(tmp_path))


def zeros_deflated(size: int) -> bytes:
    """`size` zero bytes, deflated, in no time: the same compressed block over and over."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    once = packer.compress(bytes(BLOCK)) + packer.flush(zlib.Z_FULL_FLUSH)
    return once * (size // BLOCK) + zlib.compressobj(9, zlib.DEFLATED, -15).flush()


def write_bomb(path, names, head: bytes = b'', size: int = 8 << 30):
    """A zip whose members are each `head` and zeros, `size` bytes in all, in a few megabytes."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    packed = packer.compress(head) + packer.flush(zlib.Z_FULL_FLUSH) + zeros_deflated(size - len(head))
    whole = len(head) + (size - len(head)) // BLOCK * BLOCK
    directory, at = b'', 0
    with open(path, 'wb') as file:
        for name in names:
            # sizes beyond 32 bits stand in the zip64 field
            extra = struct.pack('<HHQQ', 1, 16, whole, len(packed))
            facts = struct.pack('<HHHHHIII', 45, 0, 8, 0, 33, 0, 2**32 - 1, 2**32 - 1)
            file.write(b'PK\3\4' + facts + struct.pack('<HH', len(name), len(extra)) + name.encode() + extra + packed)
            directory += (b'PK\1\2' + struct.pack('<H', 45) + facts + struct.pack('<HHHHHII', len(name), len(extra), 0,
                                                                                  0, 0, 0, at)
                          + name.encode() + extra)
            at = file.tell()
        end = struct.pack('<HHHHIIH', 0, 0, len(names), len(names), len(directory), at, 0)
        file.write(directory + b'PK\5\6' + end)
    return path


def test_the_bomb_is_one(tmp_path):
    size = 1 << 26
    path = write_bomb(tmp_path / 'f.zip', ['a'], b'head', size)
    with zipfile.ZipFile(path) as archive, archive.open('a') as member:
        member._update_crc = lambda data: None
        assert member.read(4) == b'head'
        assert len(member.read()) == archive.getinfo('a').file_size - 4 and path.stat().st_size < size / 500


@pytest.mark.parametrize('reader', READERS)
def test_a_bomb_of_an_npz_is_not_unpacked(reader, tmp_path):
    frames = (8 << 30) // 400
    path = write_bomb(tmp_path / 'f.npz', [f'{name}.npy' for name in MEMBERS], header_of(f'(1, {frames}, 100)'))
    before = folder_of(tmp_path)
    assert path.stat().st_size < 200_000_000
    refused(lambda: READERS[reader](path), path, 'would unpack to')
    assert folder_of(tmp_path) == before


def test_many_members_that_are_a_bomb_together(tmp_path):
    size = BOMB_BYTES // 4
    path = write_bomb(tmp_path / 'f.npz', [f'{i}.npy' for i in range(8)], b'', size)
    refused(lambda: open_member(path, '0'), path, 'would unpack to')


def test_what_unpacks_to_more_than_the_disk_has_is_not_begun(tmp_path, monkeypatch):
    path = tmp_path / 'f.npz'
    np.savez_compressed(path, x_train=np.random.default_rng(0).random((9, 9)))
    monkeypatch.setattr('shutil.disk_usage', lambda folder: SimpleNamespace(free=99))
    refusal(lambda: open_member(path, 'x_train'), path, 'more than', 'free space')


LIES = {
    'more than there is': header_of('(1000000000000, 9)'), 'beyond 64 bits': header_of('(' + '9' * 40 + ',)'),
    'negative': header_of('(-1, -1)'), 'one negative': header_of('(-3, 4)'),
    'no bytes each': header_of('(5,)', "'|V0'"),
    'text': header_of("('a',)"), 'true': header_of('(True, 2)'), 'objects': header_of('(1,)', "'|O'"),
    'inner objects': header_of('(1,)', "[('a', '|O')]"), 'no type': header_of('(1,)', '3.5'),
    'nested': header_of('(' * 4000), 'minus': header_of('-' * 8000 + '1'), 'unhashable': header_of('(1,)', '{[]: 1}'),
    'a call': header_of('(1,)', "__import__('os').system('touch trace')"), 'long': header_of('(1,)' + ' ' * 60000),
    'no header': b'\x93NUMPY\x01\x00\xff\xff', 'nothing': b'', 'another version': b'\x93NUMPY\x09\x00\x00\x00',
}


@pytest.mark.parametrize('compression', [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize('lie', LIES)
@pytest.mark.parametrize('reader', ['training', 'scores', 'check'])
def test_headers_that_lie(reader, lie, compression, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = write_zip(tmp_path / 'f.npz', [(f'{name}.npy', LIES[lie] + bytes(36)) for name in MEMBERS], compression)
    refused(lambda: READERS[reader](path), path)
    assert folder_of(tmp_path) == ['f.npz'], 'neither run nor unpacked'


def test_a_directory_that_lies(tmp_path):
    path = tmp_path / 'f.npz'
    np.savez(path, x_train=np.ones((3, 4)))
    content = bytearray(path.read_bytes())
    at = content.index(b'PK\1\2')
    content[at + 24:at + 28] = struct.pack('<I', 2**31)             # its unpacked size
    path.write_bytes(content)
    refused(lambda: open_member(path, 'x_train'), path)


# --- checkpoints ----------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('zipped', [True, False], ids=['zip', 'legacy'])
@pytest.mark.parametrize('place', ['model', 'args', 'whole'])
def test_no_pickle_of_a_checkpoint_is_run(zipped, place, tiny, tmp_path):
    path, trace = tmp_path / 'c.pth', tmp_path / 'trace'
    content = {'model': {'a': torch.ones(1)}, 'args': {}}
    content = Command(trace) if place == 'whole' else content | {place: {'a': Command(trace)}}
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    message = refused(lambda: main_linprobe.main([*tiny, '--finetune', str(path), '--output_dir',
                                                  str(tmp_path / 'out')]), path)
    assert 'refused' in message and folder_of(tmp_path) == ['c.pth']
    torch.load(path, weights_only=False)
    assert trace.exists()


@pytest.mark.filterwarnings('ignore:Detected pickle')
def test_a_bare_pickle_is_no_checkpoint(tmp_path):
    path, trace = tmp_path / 'c.pth', tmp_path / 'trace'
    for protocol in range(6):
        path.write_bytes(pickle.dumps(Command(trace), protocol))
        refused(lambda: checkpoint.load(path), path)
        assert not trace.exists()


def test_a_script_in_place_of_a_checkpoint(tmp_path):
    """TorchScript archives hold code."""
    path = tmp_path / 'c.pth'
    with zipfile.ZipFile(path, 'w') as archive:
        archive.writestr('c/constants.pkl', pickle.dumps(1))
        archive.writestr('c/data.pkl', pickle.dumps({'a': 1}))
    refused(lambda: checkpoint.load(path), path)


def test_a_bomb_of_a_checkpoint_is_not_unpacked(tmp_path):
    path = write_bomb(tmp_path / 'c.pth', ['c/data.pkl', 'c/data/0'])
    refused(lambda: checkpoint.load(path), path, 'would unpack to')


@pytest.mark.parametrize('name', NAMES)
def test_names_that_lead_out_of_a_checkpoint_are_refused(name, tmp_path):
    path = tmp_path / 'c.pth'
    torch.save({'model': {'a': torch.ones(1)}}, path)
    with zipfile.ZipFile(path, 'a') as archive:
        member = zipfile.ZipInfo('x')
        member.filename = name
        archive.writestr(member, b'')
    refused(lambda: checkpoint.load(path), path, 'leads out of the archive')


ODD = {
    'shown many times': torch.ones(1).expand(10**6, 10**6), 'on no device': torch.ones(2, device='meta'),
    'sparse': torch.ones(2, 2).to_sparse(), 'quantised': torch.quantize_per_tensor(torch.ones(2), .1, 0, torch.qint8)}


@pytest.mark.parametrize('weight', ODD.values(), ids=ODD)
@pytest.mark.filterwarnings('ignore')
def test_weights_that_are_no_plain_numbers(weight, tiny, tmp_path):
    torch.save({'model': {'temp_embed': weight}}, tmp_path / 'c.pth')
    message = refused(lambda: main_linprobe.main([*tiny, '--finetune', str(tmp_path / 'c.pth')]), tmp_path / 'c.pth')
    assert 'no model weights' in message or ': refused' in message or 'not a whole checkpoint' in message


def laughs(levels: int = 40):
    """A list that stands for 10 ** levels values."""
    value = 'ha'
    for _ in range(levels):
        value = [value] * 10
    return value


@pytest.mark.parametrize('change', [{'args': {'seed': laughs()}}, {'args': {'benchmark': laughs()}},
                                    {'method': laughs()}, {'pretraining': {'a': laughs()}},
                                    {'record': {'last': {'top1': laughs()}}}],
                         ids=['seed', 'benchmark', 'method', 'source', 'record'])
def test_settings_that_stand_for_more_than_memory_holds(change, tiny, tmp_path):
    model = main_linprobe.build_model(main_linprobe.parse_args('linprobe', [
        *tiny, '--random_encoder', '--num_classes', '3']), torch.device('cpu'))[0]
    torch.save({'model': model.state_dict(), 'epoch': 0} | change, tmp_path / 'c.pth')
    refused(lambda: main_linprobe.main([*tiny, '--finetune', str(tmp_path / 'c.pth'), '--output_dir',
                                        str(tmp_path / 'out')]), tmp_path / 'c.pth')


# --- YAML -----------------------------------------------------------------------------------------------------------

LAUGHS = 'a: &a [ha, ha]\n' + ''.join(f'{two}: &{two} [{", ".join([f"*{one}"] * 9)}]\n'
                                      for one, two in zip('abcdefghijklm', 'bcdefghijklmn', strict=True))
DOCUMENTS = {
    'a call': '!!python/object/apply:os.system ["touch trace"]', 'new': '!!python/object/new:os.system ["touch trace"]',
    'inside': 'epochs: !!python/object/apply:os.system ["touch trace"]', 'a name': 'lr: !!python/name:os.system',
    'a module': 'lr: !!python/module:os', 'our own tag': 'lr: !touch trace', 'laughs': LAUGHS,
    'laughs as a setting': f'{LAUGHS}epochs: *n\n', 'merged': 'pretrain: &p {seed: 1}\nfinetune: {<<: [*p, *p]}\n',
    'around': 'lr: &a [*a]', 'deep': 'lr: ' + '[' * 100_000, 'deep maps': '{a: ' * 10_000,
    'deep blocks': '- ' * 10_000, 'a long number': 'epochs: ' + '9' * 100_000,
    'a long time': 'epochs: 9' + ':59' * 5000,
    'an odd date': 'lr: 2001-02-30', 'a list as a key': '? [a]\n: 1', 'two documents': 'lr: 1\n---\nlr: 2\n',
    'a control character': 'lr: \x07', 'binary': 'lr: !!binary "a"', 'a set': 'lr: !!set {a, b}'}


@pytest.mark.parametrize('document', DOCUMENTS)
def test_yaml_is_data(document, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'f.yaml').write_text(DOCUMENTS[document])
    message = refused(lambda: read_config('f.yaml', 'pretrain'), 'f.yaml')
    assert folder_of(tmp_path) == ['f.yaml'] and len(message) < 200_000


# --- JSON -----------------------------------------------------------------------------------------------------------

DEEP, HUGE, LONG = '[' * 100_000, '9' * 5000, '1' + '0' * 400
CLIPS = {
    'deep': DEEP, 'deep maps': '{"label":' * 100_000, 'huge label': f'{{"label": {HUGE}}}',
    'long label': '{"file_name": "a01_s01_e00_v01", "skeletons": [], "label": ' + LONG + '}',
    'deep label': '{"file_name": "a01_s01_e00_v01", "skeletons": [], "label": ' + '[' * 700 + ']' * 700 + '}',
    'deep name': '{"file_name": ' + '[' * 700 + ']' * 700 + ', "skeletons": [], "label": 1}',
    'huge number': '{"file_name": "a01_s01_e00_v01", "label": 1, "skeletons": [[[1.5, ' + LONG + ', 0]]]}',
    'long numbers': '{"file_name": "a01_s01_e00_v01", "label": 1, "skeletons": [[' + f'[0, 0, {LONG}],' * 19
                    + '[0, 0, 0]]]}',
    'infinite': '{"file_name": "a01_s01_e00_v01", "label": 1, "skeletons": [[[1e999, 0, 0]]]}',
    'deep frames': '{"file_name": "a01_s01_e00_v01", "label": 1, "skeletons": ' + '[' * 100 + ']' * 100 + '}',
}


@pytest.mark.parametrize('clip', CLIPS)
def test_clips_as_json(clip, tmp_path):
    (tmp_path / 'raw').mkdir()
    (tmp_path / 'raw/a01_s01_e00_v01.json').write_text(CLIPS[clip])
    refused(lambda: prepare_nwucla.main(['--raw', str(tmp_path / 'raw'), '--out', str(tmp_path / 'out')]),
            'a01_s01_e00_v01.json')
    assert not (tmp_path / 'out').exists()


RESULTS = {
    'deep': DEEP, 'deep maps': '{"benchmark":' * 100_000, 'huge': HUGE, 'a list': '[1]', 'empty': '',
    **{what: json.dumps(read_result(**fields)) for what, fields in {
        'long seconds': {'wall_seconds': 10**400}, 'long accuracy': {'last': {'top1': 10**400}},
        'infinite': {'last': {'top1': float('inf')}}, 'a list for a seed': {'seed': [1]}, 'text seed': {'seed': 'a'},
        'a map for a stream': {'stream': {}}, 'a number for a stream': {'config': {'stream': 3}},
        'a list for a source': {'pretraining': {'benchmark': [1]}},
        'a seed of the source': {'pretraining': {'seed': [1]}},
        'an ensemble of itself': {'protocol': 'ensemble', 'of': 'ensemble'}, 'a list for a protocol': {'protocol': [1]},
        'a control character': {'benchmark': 'a\x1b[2J'}, 'a line break': {'method': 'a\nb'},
        'odd k': {'protocol': 'retrieval', 'last': {'top1': 1., 'k': [1]}},
        'odd metric': {'protocol': 'retrieval', 'last': {'top1': 1., 'metric': {}}},
        'odd draw': {'labels': {'fraction': .1, 'draw': 3}},
        'long fraction': {'labels': {'fraction': 10**400}}}.items()}}


@pytest.mark.parametrize('result', RESULTS)
def test_results_as_json(result, tmp_path):
    write_run(tmp_path / 'a', seed=1)
    (tmp_path / 'b').mkdir()
    (tmp_path / 'b/result.json').write_text(RESULTS[result])
    refused(lambda: tools.report.main([str(tmp_path)]), tmp_path / 'b/result.json', 'run that stage again')


@pytest.mark.parametrize('line', [
    DEEP, HUGE, '{}', '3', '{"epoch": "a", "train_loss": 1}', '{"epoch": 1, "train_loss": [1]}',
    '{"epoch": 1, "train_loss": ' + LONG + '}', '{"epoch": 1, "train_loss": NaN}',
    '{"epoch": 1, "train_loss": 1, "test_top1": "a"}'], ids=lambda line: line[:40])
def test_logs_as_json(line, tmp_path):
    write_run(tmp_path / 'a')
    (tmp_path / 'a/log.jsonl').write_text(f'{line}\n')
    refused(lambda: tools.report.main([str(tmp_path), '--figure', str(tmp_path / 'f.png')]), 'log.jsonl')
    assert not (tmp_path / 'f.png').exists()


# --- raw recordings -------------------------------------------------------------------------------------------------

SAMPLE = 'S001C001P001R001A001.skeleton'


def ntu(raw, out):
    return lambda: prepare_ntu.main(['--dataset', 'ntu60', '--workers', '1', '--raw', str(raw), '--out', str(out)])


@pytest.mark.parametrize('name', [*NAMES, f'../{SAMPLE}', f'/etc/{SAMPLE}'])
def test_names_that_lead_out_of_a_raw_zip_are_refused(name, tmp_path):
    path = write_zip(tmp_path / 'raw.zip', [(SAMPLE, b'1\n'), (name, b'1\n')])
    refused(ntu(path, tmp_path / 'out'), path, 'leads out of the archive')
    assert folder_of(tmp_path) == ['raw.zip']


def test_links_in_a_raw_zip_are_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / 'raw.zip', 'w') as archive:
        member = zipfile.ZipInfo(SAMPLE)
        member.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(member, '/etc/passwd')
    refused(ntu(tmp_path / 'raw.zip', tmp_path / 'out'), 'raw.zip', SAMPLE, 'is a link')


def test_a_bomb_in_a_raw_zip_is_not_unpacked(tmp_path, capsys):
    path = write_bomb(tmp_path / 'raw.zip', [SAMPLE])
    refused(ntu(path, tmp_path / 'out'), path, 'would unpack to')
    path = write_bomb(tmp_path / 'raw.zip', [SAMPLE], b'', 4 * LARGEST)     # too small for a bomb, too large for a clip
    refused(ntu(path, tmp_path / 'out'), '1 damaged')
    assert 'too many for a raw file' in capsys.readouterr().err


@pytest.mark.parametrize('kind', ['ntu', 'pku', 'nwucla'])
def test_a_file_without_an_end(kind, tmp_path, capsys):
    raw, out = tmp_path / 'raw', tmp_path / 'out'
    name = {'ntu': SAMPLE, 'pku': 'skeleton/0001-L.txt', 'nwucla': 'a01_s01_e00_v01.json'}[kind]
    (raw / name).parent.mkdir(parents=True)
    (raw / name).symlink_to('/dev/zero')
    if kind == 'pku':
        (raw / 'label').mkdir()
        (raw / 'label/0001-L.txt').write_text('1,0,9,1\n')
        for split in ('subject', 'view'):
            (raw / f'cross-{split}.txt').write_text('Training videos:\n0001-L\n')
    call = {'ntu': ntu(raw, out),
            'pku': lambda: prepare_pku.main(['--phase', '1', '--workers', '1', '--raw', str(raw), '--out', str(out)]),
            'nwucla': lambda: prepare_nwucla.main(['--raw', str(raw), '--out', str(out)])}[kind]
    message = refused(call)
    assert 'without an end' in message + capsys.readouterr().err


CLIP = 'all_sqe/a01_s01_e00_v01.json'


def write_tar(path, *members, mode='w'):
    """Members as (name, changes of its header)."""
    with tarfile.open(path, mode) as tar:
        for name, change in members:
            member = tarfile.TarInfo(name)
            for key, value in change.items():
                setattr(member, key, value)
            tar.addfile(member)
    return path


ENTRIES = {
    'up': ('../a01_s01_e00_v01.json', {}, 'leads out'), 'inside up': ('all_sqe/../../x.json', {}, 'leads out'),
    'absolute': ('/etc/a01_s01_e00_v01.json', {}, 'leads out'),
    'a symbolic link': (CLIP, {'type': tarfile.SYMTYPE, 'linkname': '/etc/passwd'}, 'links or devices'),
    'a hard link': (CLIP, {'type': tarfile.LNKTYPE, 'linkname': '/etc/passwd'}, 'links or devices'),
    'a link to a folder': ('all_sqe', {'type': tarfile.SYMTYPE, 'linkname': '/'}, 'links or devices'),
    'a device': (CLIP, {'type': tarfile.CHRTYPE, 'devmajor': 1, 'devminor': 5}, 'links or devices'),
    'a disk': (CLIP, {'type': tarfile.BLKTYPE}, 'links or devices'),
    'a pipe': (CLIP, {'type': tarfile.FIFOTYPE}, 'links'),
}


@pytest.mark.parametrize('entry', ENTRIES)
def test_tars_that_hold_more_than_files(entry, tmp_path):
    name, change, says = ENTRIES[entry]
    path = write_tar(tmp_path / 'raw.tar', (CLIP, {}), (name, change))
    refused(lambda: prepare_nwucla.main(['--raw', str(path), '--out', str(tmp_path / 'out')]), path, 'refused', says)
    assert folder_of(tmp_path) == ['raw.tar']


@pytest.mark.parametrize('header', [
    {'size': 1 << 40}, {'size': 1 << 40, 'type': tarfile.XHDTYPE}, {'size': 1 << 40, 'type': tarfile.GNUTYPE_LONGNAME},
    {'size': 1 << 40, 'type': tarfile.XGLTYPE}, {'size': 1 << 40, 'type': tarfile.GNUTYPE_SPARSE}], ids=str)
def test_a_tar_whose_header_promises_a_terabyte(header, tmp_path):
    member = tarfile.TarInfo(CLIP)
    for key, value in header.items():
        setattr(member, key, value)
    path = tmp_path / 'raw.tar.xz'
    with lzma.open(path, 'w', preset=0) as file:
        file.write(member.tobuf(tarfile.GNU_FORMAT))
        for _ in range(300):
            file.write(bytes(1 << 20))
    refused(lambda: prepare_nwucla.main(['--raw', str(path), '--out', str(tmp_path / 'out')]), path, 'too large')
    assert folder_of(tmp_path) == ['raw.tar.xz']


def test_a_tar_whose_extended_header_promises_a_terabyte(tmp_path):
    path = tmp_path / 'raw.tar'
    write_tar(path, (CLIP, {'pax_headers': {'size': str(1 << 40)}}))
    refused(lambda: prepare_nwucla.main(['--raw', str(path), '--out', str(tmp_path / 'out')]), path)


def test_a_tar_that_goes_on_after_its_end(tmp_path):
    path = tmp_path / 'raw.tar.gz'
    whole = write_tar(tmp_path / 'raw.tar', (CLIP, {})).read_bytes()
    with gzip.open(path, 'w', compresslevel=1) as file:
        file.write(whole)
        for _ in range(2 * LARGEST >> 20):
            file.write(bytes(1 << 20))
    refused(lambda: prepare_nwucla.main(['--raw', str(path), '--out', str(tmp_path / 'out')]), path, 'follow its last')
