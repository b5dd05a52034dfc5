"""Custom data sets: the table, the files written, and training on them."""

import json
import re
import shlex

import numpy as np
import pytest
import yaml

from data import prepare_custom
from feeder.layouts import read_layout
from tests.conftest import ROOT, refusal, run, train
from tests.data.raw_files import read_folder, read_npz, write_files
from tests.data.test_formats import ARM, dataset_file
from tests.data.test_keypoints import SMALL
from tools.recognition import Recogniser
from util.predictions import read_scores

CLASSES = ['9', '10', 'sit down']      # sorted by value


@pytest.fixture
def raw(tmp_path):
    """Twelve COCO clips of 5 to 16 frames: three classes in turn, subjects 1 to 4, every other clip in a subfolder."""
    rng, folder = np.random.default_rng(0), tmp_path / 'raw'
    (folder / 'more').mkdir(parents=True)
    rows = []
    for i in range(12):
        name = f'{"more/" * (i % 2)}clip{i:02}.npy'
        np.save(folder / name, rng.normal(2, 1, (5 + i, 17, 3)))
        rows.append({'file': name, 'label': CLASSES[i % 3], 'split': 'test' if i % 4 == 3 else 'train',
                     'subject': f'{1 + i % 4:02}', 'note': 'a, b'})
    return folder, rows


def write_table(path, rows, columns=('file', 'label', 'split')):
    lines = [columns, *([row[column] for column in columns] for row in rows)]
    path.write_text(''.join(','.join(f'"{cell}"' for cell in line) + '\n' for line in lines))
    return path


def prepare(folder, table, out, *more):
    return prepare_custom.main([f'--raw={folder}', f'--labels={table}', f'--out={out}', '--workers=1', *more])


def test_the_files(raw, tmp_path, capsys):
    folder, rows = raw
    table, out = write_table(tmp_path / 'l.csv', rows), tmp_path / 'out'
    assert prepare(folder, table, out) == 0
    assert '12 read with the joints coco-17 (--layout), in units of 1 m (--scale)' in capsys.readouterr().out
    assert sorted(read_folder(out)) == ['custom.npz', 'custom.yaml', 'custom_about.json']
    content = read_npz(out / 'custom.npz')
    assert content['x_train'].shape == (9, 16, 51) and content['y_test'].shape == (3, 3)
    for split in ('train', 'test'):
        rows_of_split = [row for row in rows if row['split'] == split]
        assert content[f'name_{split}'].tolist() == [row['file'] for row in rows_of_split]
        assert [CLASSES[label] for label in content[f'y_{split}'].argmax(1)] == [row['label'] for row in rows_of_split]
        for row, x in zip(rows_of_split, content[f'x_{split}'], strict=True):
            frames = np.load(folder / row['file'])
            np.testing.assert_allclose(x[:len(frames)], (frames - frames[0, 0]).reshape(-1, 51), atol=1e-6)
            assert not x[len(frames):].any()
    assert json.loads((out / 'custom_about.json').read_text()) == {'classes': CLASSES, 'centre': True, 'scale': 1}
    assert yaml.safe_load((out / 'custom.yaml').read_text()) == {
        'benchmark': 'custom', 'data_path': str(out / 'custom.npz'), 'layout': 'coco-17', 'num_joints': 17,
        'num_classes': 3, 'num_frames': 120,
        **{stage: {'effective_batch_size': 8} for stage in ('pretrain', 'linprobe', 'finetune')}}
    prepare(folder, table, tmp_path / 'two', '--workers', '2')
    assert (tmp_path / 'two/custom.npz').read_bytes() == (out / 'custom.npz').read_bytes()


def test_split_by_subject(raw, tmp_path):
    folder, rows = raw
    table = write_table(tmp_path / 'l.csv', rows, ('note', 'subject', 'file', 'label'))
    prepare(folder, table, tmp_path / 'out', '--test_subjects', '3', '01', '--name', 'Mine-2', '--num_frames', '40')
    content = read_npz(tmp_path / 'out/Mine-2.npz')
    assert content['name_test'].tolist() == [row['file'] for row in rows if row['subject'] in ('01', '03')]
    assert content['name_train'].tolist() == [row['file'] for row in rows if row['subject'] in ('02', '04')]
    settings = yaml.safe_load((tmp_path / 'out/Mine-2.yaml').read_text())
    assert (settings['benchmark'], settings['num_frames']) == ('Mine-2', 40)


def test_bodies_units_and_origin(raw, tmp_path):
    """The file is as wide as the most bodies of a clip; a body that is always empty does not count."""
    folder, rows = raw
    two = np.random.default_rng(1).normal(size=(6, 3, 17, 3))
    two[:, 2] = 0
    np.save(folder / rows[0]['file'], two)
    prepare(folder, write_table(tmp_path / 'l.csv', rows), tmp_path / 'out', '--scale', '0.001', '--no-centre')
    x = read_npz(tmp_path / 'out/custom.npz')['x_train']
    assert x.shape == (9, 16, 102)
    np.testing.assert_allclose(x[0, :6], two[:, :2].reshape(6, 102) / 1000, rtol=1e-6)
    assert not x[1:, :, 51:].any()


def test_bvh_and_custom_layouts(tmp_path):
    rows = [{'file': f'{i}.bvh', 'label': 'ab'[i % 2], 'split': ('train', 'train', 'test')[i]} for i in range(3)]
    folder = write_files(tmp_path / 'raw', {row['file']: ARM.encode() for row in rows})
    table = write_table(tmp_path / 'l.csv', rows)
    prepare(folder, table, tmp_path / 'out')
    settings = yaml.safe_load((tmp_path / 'out/custom.yaml').read_text())
    assert settings['layout'] == str(tmp_path / 'out/custom_layout.yaml') and settings['num_joints'] == 4
    layout = read_layout(settings['layout'])
    assert (layout.name, layout.joints, layout.parents) == ('custom', ('Hips', 'Left Arm', 'Hand', 'Leg'), (0, 0, 1, 0))
    (tmp_path / 'four.yaml').write_text('joints: {a: , b: a, c: b, d: a}')
    prepare(folder, table, tmp_path / 'given', '--layout', str(tmp_path / 'four.yaml'))
    assert read_layout(tmp_path / 'given/custom_layout.yaml').joints == ('a', 'b', 'c', 'd')


def test_all_errors_are_reported_with_their_lines(raw, tmp_path, capsys):
    folder, rows = raw
    rows[0] |= {'file': 'missing.npy'}
    rows[1] |= {'label': 'a\nb'}
    rows[2] |= {'split': 'val'}
    rows[4] |= {'file': rows[3]['file']}
    np.save(folder / rows[5]['file'], np.full((3, 17, 3), np.nan))
    np.save(folder / rows[6]['file'], np.ones((3, 25, 3)))
    table = write_table(tmp_path / 'l.csv', rows)
    table.write_text(table.read_text() + 'one,two\na,b,train,d\n')
    expected = [(2, 'missing.npy: no such file'), (4, 'not printable'), (5, "split 'val'"), (7, 'listed in line 6'),
                (15, 'differs from line 1'), (16, 'differs from line 1'), (8, 'not finite'),
                (9, '25 joints differ from the 17')]
    refusal(lambda: prepare(folder, table, tmp_path / 'out'), '8 damaged, nothing written', '--skip_damaged')
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith(f'damaged: {table}: line ')]
    assert not read_folder(tmp_path / 'out') and len(lines) == len(expected)
    for line, (number, part) in zip(lines, expected, strict=True):
        assert f'line {number}: ' in line and part in line
    assert prepare(folder, table, tmp_path / 'out', '--skip_damaged') == 0
    content = read_npz(tmp_path / 'out/custom.npz')
    names = {*content['name_train'].tolist(), *content['name_test'].tolist()}
    assert names == {rows[i]['file'] for i in (3, 7, 8, 9, 10, 11)}
    assert len((tmp_path / 'out/custom_damaged.txt').read_text().splitlines()) == 8


def test_invalid_tables(raw, tmp_path):
    np.save(raw[0] / 'nine.npy', np.ones((3, 9, 3)))
    for text, more, part in (
            ('file,label,split\n', [], 'has no rows'), ('file,label\na,b\n', [], "0 columns 'split'"),
            ('file,label,split,subject\na,b,train,1\n', ['--test_subjects', '1'], 'omit one of them'),
            ('file,label,subject\nclip00.npy,b,1\n', ['--test_subjects', '1', '7'], '--test_subjects 7: no line'),
            ('file,label,split\n"a,b,train\n', [], 'line 2: not CSV'), ('file,label\n\udcff,b\n', [], 'not UTF-8'),
            ('file,label,split\nclip00.npy,b,train\n', [], '1 training and 0 test clips'),
            ('file,label,split\nnine.npy,b,train\n', [], 'line 2: nine.npy: the layout of its 9 joints')):
        (tmp_path / 'l.csv').write_text(text, errors='surrogateescape')
        message = refusal(lambda more=more: prepare(raw[0], tmp_path / 'l.csv', tmp_path / 'out', *more), part)
        assert str(tmp_path / 'l.csv') in message and not read_folder(tmp_path / 'out')


@pytest.mark.parametrize('delimiter', [',', ';', '\t'])
def test_a_table_as_spreadsheets_save_it(delimiter, raw, tmp_path):
    """Byte order mark, CR LF, capitals, spaces, empty lines, other columns, other delimiters and backslashes."""
    folder, rows = raw
    lines = [['\ufeff File ', ' LABEL', 'Split', 'note'], *([f' {row["file"]} ', row['label'], row['split'].upper(),
                                                          '"a, b"'] for row in rows), [''] * 4]
    text = '\r\n\r\n'.join(delimiter.join(cells) for cells in lines)
    (tmp_path / 'l.csv').write_bytes(text.replace('more/', 'more\\').encode())
    prepare(folder, tmp_path / 'l.csv', tmp_path / 'a')
    prepare(folder, write_table(tmp_path / 'plain.csv', rows), tmp_path / 'b')
    np.testing.assert_array_equal(read_npz(tmp_path / 'a/custom.npz')['x_train'],
                                  read_npz(tmp_path / 'b/custom.npz')['x_train'])


def test_the_printed_command_trains(raw, tmp_path, capsys):
    """From an encoder pre-trained on Kinect-v2 joints; class names and units reach scores and checkpoint."""
    folder, rows = raw
    dataset_file(tmp_path / 'ntu.npz')
    train('pretrain', [*SMALL, '--data_path', str(tmp_path / 'ntu.npz'), '--decoder_dim_feat', '16',
                       '--decoder_depth', '1'], tmp_path / 'pre')
    done = run('data/prepare_custom.py', '--raw', str(folder), '--labels', str(write_table(tmp_path / 'l.csv', rows)),
               '--out', str(tmp_path / 'out of it'), '--num_frames', '16', '--scale', '0.5')
    assert done.returncode == 0 and not done.stderr, done.stderr
    (command,) = re.findall(r'python main_finetune.py (.* --finetune) runs', done.stdout)
    words = [*shlex.split(command), str(tmp_path / 'pre/checkpoint-last.pth')]
    assert words[1:3] == ['config/finetune.yaml', 'config/small.yaml']
    assert [words[words.index(name) + 1] for name in ('--epochs', '--head')] == ['1777', 'linear']
    words[1:3] = [str(ROOT / word) for word in words[1:3]]
    train('finetune', [*words, *SMALL, '--save_scores', '--stream', 'bone'], tmp_path / 'fine')
    assert 'from the layout kinect-v2 to coco-17: 17 of 17 joints' in capsys.readouterr().err
    scores = read_scores(tmp_path / 'fine/scores.npz')
    assert scores.classes.tolist() == CLASSES and scores.benchmark == 'custom'
    assert scores.name.tolist() == [row['file'] for row in rows if row['split'] == 'test']
    recogniser = Recogniser(tmp_path / 'fine/checkpoint-last.pth', 'cpu')
    assert (recogniser.class_names, recogniser.num_bodies, recogniser.scale) == (CLASSES, 1, 0.5)


def test_one_class_serves_for_pretraining_and_the_table_is_not_overwritten(raw, tmp_path, capsys):
    folder, rows = raw
    table = write_table(tmp_path / 'custom.yaml', [row | {'label': 'unknown'} for row in rows])
    assert prepare(folder, table, tmp_path / 'out') == 0
    assert 'only be used for pre-training' in capsys.readouterr().out
    before = read_folder(tmp_path)
    refusal(lambda: prepare(folder, table, tmp_path), 'custom.yaml', 'is also an input')
    assert read_folder(tmp_path) == before
