"""Hostile files: nothing in them is executed or written elsewhere, and no memory is filled."""

import json
import lzma
import os
import pickle
import stat
import struct
import tarfile
import zipfile

import numpy as np
import pytest
import torch

from data import check, prepare_ntu, prepare_nwucla
from data.formats import read_recordings
from data.formats.pyskl import read_pickle
from feeder.npz import open_member
from tests.conftest import refusal
from util.checkpoint import Checkpoint
from util.config import read_config
from util.predictions import read_scores

SAMPLE = 'S001C001P001R001A001.skeleton'
CLIP = 'all_sqe/a01_s01_e00_v01.json'


class Call:
    """An object whose pickle calls a function when it is loaded without care."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def files_in(path):
    return sorted(str(file.relative_to(path)) for file in path.rglob('*'))


MEMBERS = ('x_train', 'y_train', 'scores', 'name', 'label', 'benchmark', 'stream')
READERS = {
    'npz': lambda path: open_member(path, 'x_train'), 'scores': read_scores, 'checkpoint': Checkpoint.read,
    'recordings': lambda path: list(read_recordings(path, name='npz')), 'check': lambda path: check.main([str(path)]),
    'pyskl': lambda path: list(read_recordings(path, name='pyskl')),
    'raw zip': lambda path: prepare_ntu.main(['--dataset=ntu60', f'--raw={path}', f'--out={path.parent}/out']),
}


@pytest.mark.filterwarnings('ignore:Detected pickle')
@pytest.mark.parametrize('reader', READERS)
def test_pickles_are_not_executed(reader, tmp_path):
    path, call = tmp_path / 'file', Call(os.mkdir, str(tmp_path / 'trace'))

    def write_npz():
        with open(path, 'wb') as file:
            np.savez(file, **dict.fromkeys(MEMBERS, np.array([call], dtype=object)))

    for write in (lambda: path.write_bytes(pickle.dumps(call)), write_npz,
                  lambda: torch.save({'model': {'a': call}, 'args': call}, path)):
        write()
        refusal(lambda: READERS[reader](path), path)
        assert files_in(tmp_path) == ['file']


def exploits(trace):
    code = f'__import__("os").mkdir({str(trace)!r})'
    return {
        'eval': {'annotations': [{'keypoint': Call(eval, code)}]}, 'os.system': Call(os.system, f'mkdir {trace}'),
        'in an array': np.array([Call(os.mkdir, str(trace))], dtype=object),
        'np.memmap': Call(np.memmap, str(trace), 'u1', 'w+', 0, (9,)), 'getattr': Call(getattr, 'x', 'upper'),
        'text': {'annotations': [{'keypoint': np.array(['a'])}]}, 'record': np.zeros(2, [('a', 'f4'), ('b', 'O')])}


@pytest.mark.parametrize('kind', exploits('x'))
def test_pyskl_files_hold_plain_values_and_numbers_only(kind, tmp_path):
    trace, path = tmp_path / 'trace', tmp_path / 'a.pkl'
    for protocol in (0, 2, 4, 5):
        path.write_bytes(pickle.dumps(exploits(trace)[kind], protocol))
        refusal(lambda: list(read_recordings(path)), path, 'refused')
    assert not trace.exists()
    if kind not in ('getattr', 'text', 'record'):
        pickle.loads(path.read_bytes())       # the exploit works on a reader without care
        assert trace.exists()


DTYPE = b"cnumpy\ndtype\n(\x8c\x02f8\x89\x88tR"
ARRAY = b'cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00tC\x01btR'
HOSTILE = {     # instructions that no pickler writes
    'objects as numbers': ARRAY + b'(K\x01(K\x01tcnumpy\ndtype\n(\x8c\x02O8\x89\x88tR\x89C\x08' + bytes(8) + b'tb',
    'objects as a byte order': ARRAY + b'(K\x01(K\x01t' + DTYPE + b'(K\x03\x8c\x02O,NNNtb\x89C\x08' + bytes(8) + b'tb',
    'more than its bytes': ARRAY + b'(K\x01(J\xff\xff\xff\x7ft' + DTYPE + b'\x89C\x08' + bytes(8) + b'tb',
    'negative': ARRAY + b'(K\x01(J\xff\xff\xff\xfft' + DTYPE + b'\x89C\x08' + bytes(8) + b'tb',
    'pointers from bytes': b'cnumpy\nndarray\n((K\x01t\x8c\x01OC\x08' + bytes(8) + b'tR',
    'an instance': b'(S"ls"\nios\nsystem\n',
    'an extension': b'\x82\x01', 'a persistent id': b'Pabc\n', 'a long text': b'\x8d\xff\xff\xff\xff\xff\xff\xff\x0f',
    'a part of a module': b'\x8c\x05numpy\x8c\x0elib.npyio.load\x93'}


def test_hostile_instructions_of_pickles(tmp_path):
    for content in HOSTILE.values():
        (tmp_path / 'a.pkl').write_bytes(b'\x80\x04' + content + b'.')
        refusal(lambda: read_pickle(tmp_path / 'a.pkl'))
    (tmp_path / 'a.pkl').write_bytes(b'\x80\x04]' + b'\x85' * 50_000 + b'.')
    refusal(lambda: list(read_recordings(tmp_path / 'a.pkl')), 'no list of annotations')


ARCHIVES = ('npz', 'checkpoint', 'scores', 'raw zip')


@pytest.mark.parametrize('reader', ARCHIVES)
def test_members_outside_of_a_zip_links_and_bombs_are_refused(reader, tmp_path):
    path = tmp_path / 'in' / 'file.npz'
    path.parent.mkdir()
    for name, part in (('../outside', 'outside'), ('/tmp/outside', 'outside'), ('..\\outside', 'outside'),
                       ('C:\\outside', 'outside'), ('link', 'is a link'), ('bomb', 'would unpack to')):
        with zipfile.ZipFile(path, 'w', zipfile.ZIP_DEFLATED) as archive:
            archive.writestr(SAMPLE, b'1\n')
            member = zipfile.ZipInfo('x')
            member.external_attr = (stat.S_IFLNK | 0o777) << 16 if name == 'link' else 0
            member.filename = name if part == 'outside' else 'x_train.npy'
            archive.writestr(member, '/etc/passwd')
            if name == 'bomb':
                member.file_size = 8 << 30
        refusal(lambda: READERS[reader](path), path, 'refused' if name != 'bomb' else '', part)
        assert files_in(tmp_path) == ['in', 'in/file.npz']


@pytest.mark.parametrize('header, part', [
    ({'name': '../a.json'}, 'refused'), ({'name': '/etc/a.json'}, 'refused'), ({'type': tarfile.FIFOTYPE}, 'refused'),
    ({'type': tarfile.SYMTYPE, 'linkname': '/etc/passwd'}, 'refused'), ({'size': 1 << 40}, 'refused'),
    ({'type': tarfile.LNKTYPE, 'linkname': '/etc/passwd'}, 'refused'),
    ({'pax_headers': {'size': str(1 << 40)}}, 'refused'), ({'size': 1 << 40, 'type': tarfile.XHDTYPE}, 'complete')],
    ids=str)
def test_hostile_members_of_a_tar(header, part, tmp_path):
    member = tarfile.TarInfo(CLIP)
    for key, value in header.items():
        setattr(member, key, value)
    with lzma.open(tmp_path / 'raw.tar.xz', 'w', preset=0) as file:
        file.write(member.tobuf(tarfile.PAX_FORMAT if member.pax_headers else tarfile.GNU_FORMAT) + bytes(1 << 20))
    options = [f'--raw={tmp_path}/raw.tar.xz', f'--out={tmp_path}/out']
    refusal(lambda: prepare_nwucla.main(options), 'raw.tar.xz', part)
    assert files_in(tmp_path) == ['raw.tar.xz']


def npy_header(shape, descr="'<f4'"):
    text = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}".encode()
    return b'\x93NUMPY\x01\x00' + struct.pack('<H', len(text)) + text


@pytest.mark.parametrize('header', [
    npy_header('(1000000000000, 9)'), npy_header('(' + '9' * 40 + ',)'), npy_header('(-3, 4)'), npy_header('(' * 4000),
    npy_header('(1,)', "'|O'"), npy_header('(1,)', "[('a', '|O')]"), b'\x93NUMPY\x01\x00\xff\xff',
    npy_header('(1,)', "__import__('os').mkdir('trace')")], ids=range(8))
def test_false_headers_of_arrays(header, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for compression in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        with zipfile.ZipFile('f.npz', 'w', compression) as archive:
            archive.writestr('x_train.npy', header + bytes(36))
        refusal(lambda: open_member('f.npz', 'x_train'), 'f.npz')
    (tmp_path / 'a.npy').write_bytes(header + bytes(36))
    refusal(lambda: list(read_recordings('a.npy')), 'a.npy')
    assert files_in(tmp_path) == ['a.npy', 'f.npz']


def test_hostile_json(tmp_path):
    clips = (json.dumps({'file_name': 'a01_s01_e00_v01', 'skeletons': skeletons, 'label': label})
             for skeletons, label in (([], 10**400), ([[[10**400, 0, 0]] * 20], 1), ([[[float('inf'), 0, 0]] * 20], 1)))
    for content in ('[' * 100_000, '{"label":' * 100_000, f'{{"label": {"9" * 5000}}}', *clips):
        (tmp_path / 'a01_s01_e00_v01.json').write_text(content)
        refusal(lambda: list(read_recordings(tmp_path / 'a01_s01_e00_v01.json')), 'a01_s01_e00_v01.json')


def test_hostile_yaml(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for content in ('!!python/object/apply:os.mkdir [trace]', 'lr: !!python/name:os.system', 'lr: &a [*a]',
                    'lr: ' + '[' * 20_000, 'a: &a [ha, ha]\nb: &b [*a, *a]\nepochs: *b', 'epochs: ' + '9' * 100_000,
                    'lr: \x07', '? [a]\n: 1'):
        (tmp_path / 'f.yaml').write_text(content)
        refusal(lambda: read_config('f.yaml', 'pretrain'), 'f.yaml')
        assert files_in(tmp_path) == ['f.yaml']


def test_a_device_without_end(tmp_path):
    for name in (SAMPLE, '0001-L.txt', 'a01_s01_e00_v01.json', 'a.bvh'):
        (tmp_path / name).symlink_to('/dev/zero')
        refusal(lambda name=name: list(read_recordings(tmp_path / name)), name)
