"""Reports: tables beside the published figures, accuracy per class, ensembles, figures; against counts by hand."""


import json
import math
import os
from itertools import product
from statistics import mean, stdev

import matplotlib.image
import numpy as np
import pytest

import tools.report
from tests.conftest import ROOT, refusal
from tools.reporting import figures
from tools.reporting import tables as report
from util import predictions as saved
from util.results import Result

MAMP = {'benchmark': 'ntu60_xsub', 'target': 'motion', 'motion_aware_tau': 0.8, 'mask_ratio': 0.9, 'seed': 0,
        'path': 'p.pth', 'epoch': 399}
SEMI = {'fraction': 0.1, 'clips': 4009, 'draw': 'random'}


def read_result(top1: float | None = 50., **fields) -> dict:
    last = None if top1 is None else {'top1': top1, 'top5': 90., 'loss': 1., 'samples': 10, 'epoch': 1}
    return {'benchmark': 'ntu60_xsub', 'protocol': 'linprobe', 'method': 'MAMP', 'seed': 0, 'stream': 'joint',
            'labels': None, 'pretraining': MAMP, 'last': last, 'best': last and last | {'top1': top1 + 1},
            'wall_seconds': 120., 'config': {'stream': 'joint'}} | fields


def write_run(folder, top1: float | None = 50., **fields) -> dict:
    """A run's folder: result.json and log.jsonl of two epochs."""
    folder.mkdir(parents=True)
    result = read_result(top1, **fields)
    (folder / 'result.json').write_text(json.dumps(result))
    (folder / 'log.jsonl').write_text(''.join(json.dumps(
        {'epoch': epoch, 'train_loss': 2. - epoch, **({} if top1 is None else {'test_top1': top1 - 1 + epoch})}) + '\n'
        for epoch in (0, 1)))
    return result


def rows_of(text: str) -> dict[str, dict[str, str]]:
    """{experiment: {column: cell}} of the only table in `text`."""
    lines = [line for line in text.splitlines() if line.startswith('|')]
    head, rule, *rows = [[cell.strip() for cell in line.strip('|').split(' | ')] for line in lines]
    assert all(len(row) == len(head) for row in rows) and set(rule[0]) <= set('-|')
    return {row[0]: dict(zip(head, row, strict=True)) for row in rows}


OWN, BEST = 'this code, last epoch: mean ± std (n)', 'best epoch, chosen on test'


def test_mean_and_deviation_over_seeds_beside_published_figures(tmp_path, capsys):
    values = {0: 60.8, 10: 48.9, 2: 59.5}
    for seed, value in values.items():
        write_run(tmp_path / 'linprobe' / f'seed_{seed}', value, seed=seed)
    write_run(tmp_path / 'random', 41.2, method='random encoder', pretraining=None)
    assert tools.report.main([str(tmp_path)]) == 0
    rows = rows_of(capsys.readouterr().out)
    assert list(rows) == ['linear, MAMP', 'linear, random encoder']
    average, deviation = sum(values.values()) / 3, math.sqrt(sum((v - 56.4) ** 2 for v in values.values()) / 2)
    assert rows['linear, MAMP'] == {
        'experiment': 'linear, MAMP', 'paper': '84.9', "authors' weights": '85.0',
        OWN: f'{average:.1f} ± {deviation:.1f} (3)', 'each seed': '60.8, 59.5, 48.9', BEST: f'57.4 ± {deviation:.1f}',
        'top-5': '90.0 ± 0.0', 'minutes': '2.0'}
    assert rows['linear, random encoder'] == {
        'experiment': 'linear, random encoder', 'paper': '–', "authors' weights": '–', OWN: '41.2 (1)',
        'each seed': '41.2', BEST: '42.2', 'top-5': '90.0', 'minutes': '2.0'}


EXPERIMENTS = [     # in the order in which the tables have them
    ('pre-training, MAMP', {'protocol': 'pretrain', 'pretraining': None}),
    ('linear, MAMP', {}),
    ('linear, MAMP, bone', {'stream': 'bone'}),
    ('linear, MAMP, random mask', {'method': 'MAMP, random mask'}),
    ("linear, authors' weights", {'method': 'authors', 'pretraining': {'benchmark': None}}),
    ('linear, MAE', {'method': 'MAE'}),
    ('linear, random encoder', {'method': 'random encoder', 'pretraining': None}),
    ('fine-tune, MAMP', {'protocol': 'finetune'}),
    ('fine-tune (auxiliary classes), MAMP', {'protocol': 'finetune', 'config': {'novel_every': 6}}),
    ('fine-tune (auxiliary classes, novel_every 3), MAMP', {'protocol': 'finetune', 'config': {'novel_every': 3}}),
    ('scratch', {'protocol': 'finetune', 'method': 'scratch', 'pretraining': None}),
    ('scratch, velocity', {'protocol': 'finetune', 'method': 'scratch', 'pretraining': None, 'stream': 'velocity'}),
    ('semi 1 %, MAMP', {'protocol': 'finetune', 'labels': {'fraction': 0.01}}),
    ('semi 10 %, MAMP', {'protocol': 'finetune', 'labels': SEMI}),
    ('semi 10 % (balanced), MAMP', {'protocol': 'finetune', 'labels': SEMI | {'draw': 'balanced'}}),
    ('semi 10 % (balanced, auxiliary classes), MAMP',
     {'protocol': 'finetune', 'labels': SEMI | {'draw': 'balanced'}, 'config': {'novel_every': 6}}),
    ('semi 10 %, scratch', {'protocol': 'finetune', 'labels': SEMI, 'method': 'scratch', 'pretraining': None}),
    ('transfer from pku1_xsub, MAMP', {'protocol': 'finetune', 'pretraining': MAMP | {'benchmark': 'pku1_xsub'}}),
    ('retrieval, MAMP', {'protocol': 'retrieval', 'last': {'top1': 62., 'samples': 9, 'k': 1, 'metric': 'cosine'}}),
    ('retrieval (k = 5, euclidean), MAMP',
     {'protocol': 'retrieval', 'last': {'top1': 62., 'samples': 9, 'k': 5, 'metric': 'euclidean'}}),
    ('one-shot, MAMP', {'protocol': 'oneshot', 'last': {'top1': 62., 'samples': 9, 'k': 1, 'metric': 'cosine'}}),
    ('one-shot, MAMP + supervised', {'protocol': 'oneshot', 'method': 'MAMP + supervised'}),
    ('one-shot (novel_every 3), MAMP', {'protocol': 'oneshot', 'config': {'novel_every': 3}}),
    ('one-shot (novel_every 3, euclidean), MAMP', {'protocol': 'oneshot', 'config': {'novel_every': 3}, 'last': {
        'top1': 62., 'samples': 9, 'k': 1, 'metric': 'euclidean'}}),
    ('ensemble of joint + bone, linear, MAMP', {'protocol': 'ensemble', 'of': 'linprobe', 'stream': 'joint + bone'}),
    ('ensemble of joint + bone, scratch',
     {'protocol': 'ensemble', 'of': 'finetune', 'stream': 'joint + bone', 'method': 'scratch', 'pretraining': None}),
    ('linear, MAMP from pku1_xsub', {'pretraining': MAMP | {'benchmark': 'pku1_xsub'}}),
    ('one-shot, MAMP', {'protocol': 'oneshot', 'config': {'novel_every': 6}}),
    ('linear, MAMP', {'pretraining': MAMP | {'benchmark': 'NTU60_XSub'}}),      # the data file's name, not another set
    ('linear, MAMP, bone', {'stream': None, 'config': {'stream': 'bone'}}),     # a result from before `stream`
]


@pytest.mark.parametrize('name, fields', EXPERIMENTS, ids=[name for name, _ in EXPERIMENTS])
def test_names_of_experiments(name, fields):
    assert Result.from_dict(read_result(**fields), None).experiment.name == name


def test_rows_are_in_the_order_of_the_paper(tmp_path, capsys):
    paper = EXPERIMENTS[:26]
    for i, (_, fields) in enumerate(reversed(paper)):
        write_run(tmp_path / str(i), **fields)
    tools.report.main([str(tmp_path)])
    rows = rows_of(capsys.readouterr().out)
    assert list(rows) == [name for name, _ in paper]
    assert rows['retrieval, MAMP']['top-5'] == '–' and rows["linear, authors' weights"]["authors' weights"] == '85.0'
    assert rows['retrieval (k = 5, euclidean), MAMP']['paper'] == '–' != rows['retrieval, MAMP']['paper']


def test_lead_of_mamp_over_baselines(tmp_path, capsys):
    """By hand: means 61 and 56, deviations 1 and 2 of three and two runs: sqrt(1 / 3 + 4 / 2) = 1.5."""
    semi = {'protocol': 'finetune', 'labels': SEMI}
    runs = {'linear': ({}, (60., 61., 62.)), 'mae': ({'method': 'MAE'}, (56. - 2 ** .5, 56. + 2 ** .5)),
            'random': ({'method': 'random encoder', 'pretraining': None}, (40.,)),      # one run has no deviation
            'bone': ({'stream': 'bone'}, (50., 52.)), 'fine': ({'protocol': 'finetune'}, (80., 82.)),
            'scratch': ({'protocol': 'finetune', 'method': 'scratch', 'pretraining': None}, (83., 83.)),
            'transfer': ({'protocol': 'finetune', 'pretraining': MAMP | {'benchmark': 'pku1_xsub'}}, (85., 87.)),
            'semi': (semi, (30., 30.)), 'bare': (semi | {'method': 'scratch', 'pretraining': None}, (20., 20.))}
    for name, (fields, values) in runs.items():
        for seed, value in enumerate(values):
            write_run(tmp_path / name / str(seed), value, seed=seed, **fields)
    tools.report.main([str(tmp_path)])
    last = capsys.readouterr().out.strip().split('\n\n')[-1].splitlines()
    assert [line.strip('| ').split(' | ')[1:] for line in last[:1] + last[2:]] == [
        ['over MAE', 'over random encoder', 'over scratch'], ['+5.0 ± 1.5', '–', '–'], ['–', '–', '-2.0 ± 1.0'],
        ['–', '–', '+10.0 ± 0.0'], ['–', '–', '+3.0 ± 1.0']]
    assert [line.split(' | ')[0].strip('| ') for line in last[2:]] == ['linear, MAMP', 'fine-tune, MAMP',
                                                                      'semi 10 %, MAMP',
                                                                      'transfer from pku1_xsub, MAMP']


def test_runs_of_different_settings_are_not_averaged(tmp_path, capsys):
    """… and those that differ in where they ran, or from before an option of which they do the default, are."""
    for i, (ratio, path, more) in enumerate([(0.9, 'a', {}), (0.9, 'b', {'max_turn': None}), (0.5, 'c', {})]):
        write_run(tmp_path / path, 50. + i, seed=i, pretraining=MAMP | {'mask_ratio': ratio, 'path': path, 'seed': i},
                  config={'epochs': 100, 'output_dir': path, 'num_workers': i, 'batch_size': i} | more)
    tools.report.main([str(tmp_path)])
    rows = rows_of(capsys.readouterr().out)
    assert {name: row['each seed'] for name, row in rows.items()} == {
        'linear, MAMP (pre-training mask_ratio 0.5)': '52.0',
        'linear, MAMP (pre-training mask_ratio 0.9)': '50.0, 51.0'}


def test_runs_of_one_seed_count_once(tmp_path, caplog, capsys):
    for name, top1, fields in (('a', 50., {}), ('b', 70., {}), ('c', 56., {'pretraining': MAMP | {'seed': 1}}),
                               ('d', 59., {'seed': 1}), ('e', 90., {'seed': 1}),
                               ('f', 57., {'seed': None}), ('g', 58., {'seed': None})):
        write_run(tmp_path / 'mamp' / name, top1, **fields)
    for seed, top1 in ((0, 40.), (1, 50.)):
        write_run(tmp_path / 'mae' / str(seed), top1, seed=seed, method='MAE')
    tools.report.main([str(tmp_path), '--figure', str(tmp_path / 'curves.png')])
    table, lead = capsys.readouterr().out.split('\n\n')[1::2]
    values = [50., 56., 59., 57., 58.]
    row = rows_of(table)['linear, MAMP']
    assert row[OWN] == f'{mean(values):.1f} ± {stdev(values):.1f} (5)'
    assert row['each seed'] == '50.0, 56.0, 59.0, 57.0, 58.0'
    assert f'+{mean(values) - 45:.1f} ± {math.sqrt(stdev(values) ** 2 / 5 + 50 / 2):.1f}' in lead
    warnings = list(dict.fromkeys(message for message in caplog.messages if 'twice' in message))
    assert len(warnings) == 2
    for message, counts, left_out in zip(warnings, 'ad', 'be', strict=True):
        assert all(f'{tmp_path / "mamp" / name}/' in message for name in (counts, left_out))
    assert 'seed 0' in warnings[0] and 'seed 1' in warnings[1]


# The figures once more: linear, SkeletonMAE's linear, fine-tuning; paper and, after a bar, the authors' weights.
PUBLISHED = """
ntu60_xsub   linear 84.9 | 85.0  finetune 93.1 | 93.0  semi 66.0 88.0  knn 62.0  skeletonmae 74.8  mae-semi 54.4 80.6
ntu60_xview  linear 89.1 | 89.0  finetune 97.5 | 97.5  semi 68.7 91.5  knn 70.0  skeletonmae 77.7  mae-semi 54.6 83.5
ntu120_xsub  linear 78.6 | 78.1  finetune 90.0 | 89.8  skeletonmae 72.5
ntu120_xset  linear 79.1 | 79.5  finetune 91.3 | 91.5  skeletonmae 73.5
pku2_xsub    linear 53.8  skeletonmae 36.1
pku1_xsub    later 92.2
"""
KEYS = {'linear': [('linear, MAMP', 'paper'), ('linear, MAMP', 'weights')],
        'finetune': [('fine-tune, MAMP', 'paper'), ('fine-tune, MAMP', 'weights')],
        'skeletonmae': [('linear, MAE', 'SkeletonMAE')], 'later': [('linear, MAMP', 'later work')],
        'semi': [('semi 1 %, MAMP', 'paper'), ('semi 10 %, MAMP', 'paper')],
        'mae-semi': [('semi 1 %, MAE', 'SkeletonMAE'), ('semi 10 %, MAE', 'SkeletonMAE')],
        'knn': [('retrieval, MAMP', 'later work')]}


def published_by_hand() -> dict:
    numbers = {}
    for line in PUBLISHED.strip().splitlines():
        benchmark, *words = line.replace('|', ' ').split()
        for word in words:
            if word in KEYS:
                keys = iter(KEYS[word])
            else:
                numbers[benchmark, *next(keys)] = float(word)
    return numbers


def test_published_figures_equal_a_second_copy():
    sources, published = report.read_published()
    by_hand = published_by_hand()
    assert len(by_hand) == 33
    assert {(benchmark, row.name, source): figure for benchmark, rows in published.items()
            for row, figures in rows.items() for source, figure in figures.items()} == by_hand
    assert set(sources) == {'paper', 'weights', 'SkeletonMAE', 'later work'}
    assert {row.name for row, figures in published['pku2_xsub'].items() if not figures} == {
        f'transfer from {source}, MAMP' for source in ('ntu60_xsub', 'ntu120_xsub', 'pku1_xsub')}


def test_all_rows_shows_what_is_still_missing(tmp_path, capsys):
    write_run(tmp_path / 'a', 85.)
    write_run(tmp_path / 'b', 80., method='authors')
    tools.report.main([str(tmp_path), '--all_rows', '--benchmark', 'ntu60_xsub'])
    out = capsys.readouterr().out
    rows = rows_of(out)
    assert list(rows) == ['linear, MAMP', "linear, authors' weights", 'linear, MAE', 'fine-tune, MAMP',
                          'semi 1 %, MAMP', 'semi 1 %, MAE', 'semi 10 %, MAMP', 'semi 10 %, MAE', 'retrieval, MAMP']
    assert rows['fine-tune, MAMP'] == dict.fromkeys(rows['fine-tune, MAMP'], '–') | {
        'experiment': 'fine-tune, MAMP', 'paper': '93.1', "authors' weights": '93.0'}
    assert rows['linear, MAMP'][OWN] == '85.0 (1)'
    assert rows['linear, MAE']['paper'] == '74.8 ¹' and rows['retrieval, MAMP']['paper'] == '62.0 ²'
    assert out.splitlines()[-1].startswith('¹ SkeletonMAE, ') and '. ² MAMP as reported by later work' in out
    tools.report.main([str(tmp_path), '--all_rows'])
    out = capsys.readouterr().out
    assert [line for line in out.splitlines() if line.startswith('**')] == [
        f'**{name}**' for name in ('ntu120_xset', 'ntu120_xsub', 'ntu60_xsub', 'ntu60_xview', 'pku1_xsub', 'pku2_xsub')]
    tools.report.main([str(tmp_path)])
    out = capsys.readouterr().out
    assert list(rows_of(out)) == ['linear, MAMP', "linear, authors' weights"] and '¹' not in out
    (tmp_path / 'empty').mkdir()
    assert tools.report.main([str(tmp_path / 'empty'), '--all_rows']) == 0
    refusal(lambda: tools.report.main([str(tmp_path), '--benchmark', 'ntu60']), '--benchmark ntu60', 'ntu60_xsub')


@pytest.mark.parametrize('content, part', [
    ('{', 'not valid JSON'), (b'\xff\xfe', 'cannot be read'), ('[]', 'not a result file'), ('{}', 'benchmark'),
    ({'protocol': 'juggling'}, 'unknown protocol'), ({'protocol': ['linprobe']}, 'protocol'),
    ({'benchmark': None}, 'benchmark'), ({'last': 3}, 'last'),
    ({'last': {'top5': 3.}}, 'top1'),
    ({'last': {'top1': float('nan')}}, 'top1'), ({'pretraining': 'MAMP'}, 'pretraining'), ({'config': [1]}, 'config'),
    ({'pretraining': {'benchmark': 3}}, 'pretraining.benchmark'), ({'labels': {'clips': 3}}, 'labels.fraction'),
    ({'wall_seconds': 'long'}, 'wall_seconds'), ({'protocol': 'ensemble', 'of': 'x'}, 'unknown protocol'),
], ids=str)
def test_a_damaged_result_is_refused_by_name(tmp_path, content, part):
    path = tmp_path / 'run' / 'result.json'
    path.parent.mkdir()
    content = json.dumps(read_result() | content) if isinstance(content, dict) else content
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    refusal(lambda: tools.report.main([str(tmp_path)]), path, part, 'rerun the stage that wrote it')


@pytest.mark.parametrize('options, part', [
    ([], 'nothing to report'), (['--all_rows'], 'folder'), (['--figure', 'f.png'], 'folder'),
    (['--confusion', 'c.png'], '--scores'), (['--ensemble', 'a', 'b'], '--out'), (['--out', 'a'], '--ensemble'),
    (['--tsne', 'a'], '--features'), (['--features', 'a'], '--tsne'), (['runs', '--pairs', '-1'], '--pairs'),
    (['--features', 'a', '--tsne', 'b', '--points', '2'], '--points'), (['--scores', 'a', '--pairs', '-1'], '--pairs'),
    (['--features', 'a', '--tsne', 'b', '--seed', '-1'], '--seed from 0'),
    (['--scores', 'a', '--confusion', 'a'], 'also an input'), (['--features', 'a', '--tsne', 'a'], 'also an input'),
], ids=' '.join)
def test_options_that_need_others(options, part):
    refusal(lambda: tools.report.main(options), part)


def test_tables_of_the_documents_are_up_to_date(tmp_path):
    for path in (ROOT / 'README.md', ROOT / 'docs' / 'experiments.md'):
        copy = tmp_path / path.relative_to(ROOT)
        copy.parent.mkdir(exist_ok=True)
        copy.write_text(path.read_text())
        (copy.parent / 'docs').mkdir(exist_ok=True)
        for place in {'docs/results', 'results'}:
            if not (copy.parent / place).exists():
                (copy.parent / place).symlink_to(ROOT / 'docs' / 'results')
        assert not report.rewrite_tables(copy), f'run: python tools/report.py --readme {path.name}'


def test_tables_are_written_between_the_markers_only(tmp_path, capsys):
    write_run(tmp_path / 'runs' / 'a', 12.3)
    readme = tmp_path / 'README.md'
    frame = ('above\n<!-- table: runs -->\n{}<!-- end -->\nin between `<!-- end -->`\n'
             '<!-- table: runs/a -->\n{}<!-- end -->\n')
    readme.write_text(frame.format('', 'old\n'))
    assert tools.report.main(['--readme', str(readme)]) == 0
    assert capsys.readouterr().out == f'{readme}: updated\n'
    tools.report.main([str(tmp_path / 'runs')])
    table = f'\n{capsys.readouterr().out}\n'
    assert readme.read_text() == frame.format(table, table) and '12.3 (1)' in table
    before = os.stat(readme)
    tools.report.main(['--readme', str(readme)])
    assert 'up to date' in capsys.readouterr().out and os.stat(readme).st_mtime_ns == before.st_mtime_ns


@pytest.mark.parametrize('text, part', [
    ('nothing\n', '0 lines <!-- table'), ('<!-- table: runs -->\n', '0 lines <!-- end'),
    ('<!-- table: runs -->\n<!-- table: runs -->\n<!-- end -->\n', '2 lines'),
    ('<!-- table: nowhere -->\n<!-- end -->\n', 'nowhere')])
def test_damaged_markers_leave_the_file_alone(tmp_path, text, part):
    write_run(tmp_path / 'runs' / 'a')
    readme = tmp_path / 'README.md'
    readme.write_text(text)
    refusal(lambda: tools.report.main(['--readme', str(readme)]), part)
    assert readme.read_text() == text
    refusal(lambda: tools.report.main(['--readme', str(tmp_path / 'NO.md')]), 'NO.md')


def random_scores(clips: int = 200, classes: int = 10, seed: int = 0) -> dict[str, np.ndarray]:
    """The members of a scores.npz; no class is quite without mistakes, the last has no clip."""
    rng = np.random.default_rng(seed)
    label = rng.integers(0, classes - 1, clips)
    logits = rng.normal(size=(clips, classes))
    logits[np.arange(clips), label] += 1
    shares = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    return {'name': np.array([f'clip {i}' for i in range(clips)]), 'label': label, 'scores': shares.astype(np.float32),
            'benchmark': np.array('nwucla_xview'), 'stream': np.array('joint')}


def save(path, **members):
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, **members)
    return path


def by_hand(npz: dict) -> tuple[dict, dict, float, float]:
    """{(true, predicted): clips}, {class: clips}, top-1, top-5, one clip after the other."""
    counts, clips, top1, top5 = {}, {}, 0, 0
    for label, row in zip(npz['label'].tolist(), npz['scores'].tolist(), strict=True):
        order = sorted(range(len(row)), key=lambda i: -row[i])
        counts[label, order[0]] = counts.get((label, order[0]), 0) + 1
        clips[label] = clips.get(label, 0) + 1
        top1, top5 = top1 + (label == order[0]), top5 + (label in order[:5])
    return counts, clips, 100 * top1 / len(npz['label']), 100 * top5 / len(npz['label'])


def test_accuracies_by_class_are_those_counted_by_hand(tmp_path, capsys):
    npz = random_scores()
    counts, clips, top1, top5 = by_hand(npz)
    names = ['one hand', 'two hands', 'drop trash', 'walk around', 'sit down', 'stand up', 'donning', 'doffing',
             'throw', 'carry']
    assert tools.report.main(['--scores', str(save(tmp_path / 'scores.npz', **npz)), '--pairs', '4']) == 0
    line, by_class, pairs = capsys.readouterr().out.strip().split('\n\n')
    shares = {i: 100 * counts.get((i, i), 0) / clips[i] for i in clips}
    assert line == (f'nwucla_xview, joint: 200 clips, top-1 {top1:.1f} %, top-5 {top5:.1f} %, mean over classes '
                    f'{mean(shares.values()):.1f} %')
    rows = [[cell.strip() for cell in row.strip('|').split('|')] for row in by_class.splitlines()[2:]]
    assert [int(row[0]) for row in rows] == [*sorted(shares, key=lambda i: (shares[i], i)), 9]
    assert rows[-1] == ['9', 'carry', '0', '–', '–']
    for first, name, count, share, other in rows[:-1]:
        label = int(first)
        assert name.endswith(names[label]) and int(count) == clips[label] and share == f'{shares[label]:.1f}'
        most = max(n for (i, j), n in counts.items() if i == label != j)
        assert other in {f'{full} ({most})' for (i, j), n in counts.items() if i == label != j and n == most
                         for full in [f'pick up with {names[j]}' if j < 2 else names[j]]}
    worst = sorted((n for (i, j), n in counts.items() if i != j), reverse=True)[:4]
    for row, most in zip(pairs.splitlines()[2:], worst, strict=True):
        true, other, count, share = (cell.strip() for cell in row.strip('|').split('|'))
        i, j = (next(k for k, name in enumerate(names) if full.endswith(name)) for full in (true, other))
        assert int(count) == most == counts[i, j] and share == f'{100 * most / clips[i]:.1f}'


def test_clips_can_be_left_out(tmp_path, capsys):
    npz, names = random_scores(), tmp_path / 'names.txt'
    path = save(tmp_path / 'scores.npz', **npz)
    names.write_text('\n'.join(name for name in npz['name'].tolist() if name.endswith('7')) + '\n')
    kept = [not name.endswith('7') for name in npz['name'].tolist()]
    *_, top1, top5 = by_hand(npz | {key: npz[key][kept] for key in ('label', 'scores')})
    tools.report.main(['--scores', str(path), '--without', str(names)])
    assert f'180 clips, top-1 {top1:.1f} %, top-5 {top5:.1f} %' in capsys.readouterr().out
    names.write_text('clip 3\nclip3\n')
    refusal(lambda: tools.report.main(['--scores', str(path), '--without', str(names)]), names, '1 of the 2', 'clip3')
    names.write_text('\n'.join(npz['name'].tolist()))
    refusal(lambda: tools.report.main(['--scores', str(path), '--without', str(names)]), names, 'every clip')
    refusal(lambda: tools.report.main(['--scores', str(path), '--without', str(tmp_path)]), 'cannot be read')
    refusal(lambda: tools.report.main([str(tmp_path), '--without', str(names)]), '--without needs --scores')


def nan_in(array: np.ndarray) -> np.ndarray:
    array = array.copy()
    array[3, 2] = np.nan
    return array


@pytest.mark.parametrize('change, part', [
    (lambda npz: npz.pop('stream'), 'no stream'),
    (lambda npz: npz.update(scores=npz['scores'][:5]), 'do not fit'),
    (lambda npz: npz.update(scores=npz['scores'][0]), 'scores is float32 (10,)'),
    (lambda npz: npz.update(scores=nan_in(npz['scores'])), 'finite'),
    (lambda npz: npz.update(scores=npz['scores'] * 7), 'probabilities'),
    (lambda npz: npz.update(scores=npz['scores'][:, :1]), '1 classes'),
    (lambda npz: npz.update(label=npz['label'] + 5), 'label 13'),
    (lambda npz: npz.update(label=npz['label'] - 5), 'do not fit'),
    (lambda npz: npz.update(label=npz['label'] * 1.), 'float64'),
    (lambda npz: npz.update(name=np.repeat(npz['name'][:1], 200)), 'not unique'),
    (lambda npz: npz.update(name=npz['name'].astype(object)), 'cannot be read'),
    (lambda npz: npz.update({key: npz[key][:0] for key in ('name', 'label', 'scores')}), '(0, 10)'),
])
def test_damaged_scores_are_refused(tmp_path, change, part):
    npz = random_scores()
    change(npz)
    path = save(tmp_path / 'scores.npz', **npz)
    refusal(lambda: tools.report.main(['--scores', str(path)]), path, part)


EVERY = slice(None)


def save_member(folder, draw: int, order=EVERY, **fields) -> dict:
    """A run with scores of the same clips as the others', in an order of its own."""
    npz = random_scores(seed=draw) | {'label': random_scores()['label'],
                                      'stream': np.array(fields.get('stream', 'joint'))}
    write_run(folder, protocol='finetune', **fields)
    save(folder / 'scores.npz', **{key: value[order] if value.ndim else value for key, value in npz.items()})
    return npz


def test_an_ensemble_adds_the_scores_of_the_same_clips(tmp_path, capsys):
    shuffled = np.random.default_rng(1).permutation(200)
    members = [save_member(tmp_path / stream, draw, order, stream=stream, benchmark='nwucla_xview', seed=3)
               for draw, stream, order in ((0, 'velocity', EVERY), (1, 'joint', shuffled), (2, 'bone', EVERY))]
    paths = [str(tmp_path / stream / 'scores.npz') for stream in ('velocity', 'joint', 'bone')]
    assert tools.report.main(['--ensemble', *paths, '--out', str(tmp_path / 'all')]) == 0
    printed = capsys.readouterr().out
    total = {**members[0], 'scores': sum(member['scores'].astype(np.float64) for member in members)}
    *_, top1, top5 = by_hand(total)
    assert top1 not in [by_hand(member)[2] for member in members]
    result = json.loads((tmp_path / 'all' / 'result.json').read_text())
    loss = -np.log(total['scores'][np.arange(200), total['label']] / 3).mean()
    assert result['last'] == {'top1': pytest.approx(top1), 'top5': pytest.approx(top5), 'samples': 200, 'epoch': None,
                              'loss': pytest.approx(loss)}
    assert {key: result[key] for key in ('benchmark', 'protocol', 'of', 'method', 'seed', 'stream', 'best')} == {
        'benchmark': 'nwucla_xview', 'protocol': 'ensemble', 'of': 'finetune', 'method': 'MAMP', 'seed': 3,
        'stream': 'joint + bone + velocity', 'best': None}
    assert [member['path'] for member in result['members']] == paths
    with np.load(tmp_path / 'all' / 'scores.npz') as saved:
        assert saved['name'].tolist() == members[0]['name'].tolist() and str(saved['stream']) == result['stream']
        np.testing.assert_allclose(saved['scores'], total['scores'] / 3, atol=1e-6)
    assert f'| {top1:.1f} | {top5:.1f} |' in printed.splitlines()[-1]
    assert tools.report.main(['--scores', str(tmp_path / 'all' / 'scores.npz'), str(tmp_path / 'all')]) == 0
    row = rows_of(capsys.readouterr().out.split('\n\n')[1])
    name = 'ensemble of joint + bone + velocity, transfer from ntu60_xsub, MAMP'
    assert row[name][OWN] == f'{top1:.1f} (1)' and row[name]['minutes'] == row[name][BEST] == '–'
    assert tools.report.main(['--ensemble', *paths, '--out', str(tmp_path / 'all')]) == 0, \
        'an ensemble may be made anew'


@pytest.mark.parametrize('change, part', [
    (lambda npz: npz.update(name=np.array([f'other {i}' for i in range(200)])), '400 clips are in one of them only'),
    (lambda npz: npz.update({key: npz[key][1:] for key in ('name', 'label', 'scores')}), '1 clips are in one'),
    (lambda npz: npz.update(label=np.where(np.arange(200) == 7, 9, npz['label'])), 'clip 7 has labels 9 and 0'),
    (lambda npz: npz.update(scores=np.hstack([npz['scores'], np.zeros((200, 1), 'f')])), '11 and 10 classes'),
])
def test_scores_of_other_clips_are_not_added(tmp_path, change, part):
    npz = random_scores(seed=1) | {'label': random_scores()['label']}
    change(npz)
    paths = [save(tmp_path / 'a' / 'scores.npz', **random_scores()), save(tmp_path / 'b' / 'scores.npz', **npz)]
    refusal(lambda: tools.report.main(['--ensemble', *map(str, paths), '--out', str(tmp_path / 'out')]), *paths, part)
    assert not (tmp_path / 'out').exists()


def pixels(path) -> np.ndarray:
    """(height, width, 3) in 0 … 1 of a PNG file."""
    assert path.read_bytes().startswith(b'\x89PNG\r\n\x1a\n')
    return matplotlib.image.imread(path)[..., :3]


def count_near(image: np.ndarray, colour, within: float = 0.02) -> int:
    return int((np.abs(image - np.asarray(colour)).max(-1) < within).sum())


def test_curves_show_every_stage_and_method(tmp_path):
    for seed, (top1, method) in enumerate(product((40., 60.), ('MAMP', 'MAE'))):
        write_run(tmp_path / f'{method}{seed}', top1, method=method, seed=seed)
    write_run(tmp_path / 'scratch', protocol='finetune', method='scratch', pretraining=None)
    write_run(tmp_path / 'pretrain', None, protocol='pretrain', pretraining=None)
    write_run(tmp_path / 'retrieval', protocol='retrieval')
    (tmp_path / 'retrieval' / 'log.jsonl').unlink()            # nothing is trained there
    picture = tmp_path / 'curves.png'
    assert tools.report.main([str(tmp_path), '--figure', str(picture)]) == 0
    image = pixels(picture)
    assert [count_near(image, figures.colour_of(i)) > 200 for i in range(4)] == [True, True, True, False]
    (tmp_path / 'scratch' / 'log.jsonl').write_text('{"epoch": 0}\n')
    refusal(lambda: tools.report.main([str(tmp_path), '--figure', str(picture)]), 'scratch', 'log.jsonl')
    refusal(lambda: tools.report.main([str(tmp_path / 'retrieval'), '--figure', str(picture)]), 'no training curves')


@pytest.mark.parametrize('classes, benchmark', [(10, 'nwucla_xview'), (120, 'ntu120_xsub')])
def test_a_confusion_matrix_is_blue_where_right_and_orange_where_wrong(tmp_path, classes, benchmark):
    npz = random_scores(600, classes) | {'benchmark': np.array(benchmark)}
    perfect = npz | {'scores': np.eye(classes, dtype=np.float32)[npz['label']]}
    orange = {}
    for name, members in (('random_scores', npz), ('perfect', perfect)):
        path = save(tmp_path / name / 'scores.npz', **members)
        assert tools.report.main(['--scores', str(path), '--confusion', str(tmp_path / f'{name}.png')]) == 0
        image = pixels(tmp_path / f'{name}.png')
        height, width, _ = image.shape
        image = image[:, :int(width * (1 - 2.4 * 110 / width))]    # without the colour bars, some 2.4 inches
        red, _, blue = np.moveaxis(image, -1, 0)
        orange[name], right = int((red - blue > 0.15).sum()), int((blue - red > 0.3).sum())
        assert min(height, width) >= 13 * classes, 'a row is at least 13 pixels high: its name can be read'
    assert right > 50 * classes and orange['perfect'] == 0 and orange['random_scores'] > 50 * classes


def test_clips_of_a_class_lie_together_in_the_plane(tmp_path):
    rng = np.random.default_rng(0)
    label = np.arange(90) % 3
    members = {'features_test': (6. * np.eye(3, 16)[label] + rng.normal(size=(90, 16))).astype(np.float32),
               'label_test': label, 'name_test': np.array([f'clip {i}' for i in range(90)])}
    path = save(tmp_path / 'run' / 'features.npz', **members)
    splits, facts = saved.read_features(path, ('test',))
    features = splits['test']
    assert not facts and list(splits) == ['test']
    places, rows = figures.embed(features, 60, 0)
    again, same = figures.embed(features, 60, 0)
    assert len(set(rows.tolist())) == 60 and rows.tolist() == same.tolist() and (places == again).all()
    assert rows.tolist() != figures.embed(features, 60, 1)[1].tolist()
    assert figures.embed(features, 90, 0)[1].tolist() == list(range(90))
    gaps = np.linalg.norm(places[:, None] - places[None], axis=2) + 1e9 * np.eye(60)
    assert (label[rows][gaps.argmin(1)] == label[rows]).mean() > 0.95
    assert figures.label_names('synth_xsub', label)[9] == 'flap the arms'
    assert figures.label_names('nwucla_xview', label + 9) == [f'class {i}' for i in range(12)]
    assert figures.label_names(None, label) == ['class 0', 'class 1', 'class 2']
    picture = tmp_path / 'tsne.png'
    assert tools.report.main(['--features', str(path), '--tsne', str(picture), '--points', '60']) == 0
    colours = [np.asarray(figures.colour_of(i)) * 0.75 + 0.25 for i in range(4)]       # drawn at alpha 0.75 on white
    assert [count_near(pixels(picture), colour) > 500 for colour in colours] == [True, True, True, False]
