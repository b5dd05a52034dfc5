"""Reports: tables beside the published figures, accuracy per class, ensembles, figures; against counts by hand."""

import json
import math
from collections import Counter
from statistics import mean

import matplotlib.image
import numpy as np
import pytest

import tools.report
from feeder.classes import find_class_names
from tests.conftest import read_result, refusal
from tools.reporting import figures
from util.predictions import read_features

MAMP = {'benchmark': 'ntu60_xsub', 'target': 'motion', 'motion_aware_tau': 0.8, 'mask_ratio': 0.9, 'seed': 0,
        'path': 'p.pth', 'epoch': 399}
OTHER_SET = MAMP | {'benchmark': 'pku1_xsub'}
SEMI = {'fraction': 0.1, 'clips': 4009, 'draw': 'random'}


def write_run(folder, top1: float | None = 50., **fields) -> None:
    """A run's folder: result.json and log.jsonl of two epochs."""
    folder.mkdir(parents=True)
    last = None if top1 is None else {'top1': top1, 'top5': 90., 'loss': 1., 'samples': 10, 'epoch': 1}
    (folder / 'result.json').write_text(json.dumps({
        'benchmark': 'ntu60_xsub', 'protocol': 'linprobe', 'method': 'MAMP', 'seed': 0, 'stream': 'joint',
        'labels': None, 'pretraining': MAMP, 'last': last, 'best': last and last | {'top1': top1 + 1},
        'wall_seconds': 120., 'config': {'stream': 'joint'}} | fields))
    accuracy = {} if top1 is None else {'test_top1': top1}
    (folder / 'log.jsonl').write_text(''.join(
        json.dumps({'epoch': epoch, 'train_loss': 2. - epoch} | accuracy) + '\n' for epoch in (0, 1)))


def cells(text: str) -> list[list[str]]:
    """Rows of the Markdown tables in `text`, with their heads."""
    return [[cell.strip() for cell in line.strip('|').split(' | ')] for line in text.splitlines()
            if line.startswith('| ')]


def report(capsys, *options) -> str:
    capsys.readouterr()
    assert tools.report.main([str(option) for option in options]) == 0
    return capsys.readouterr().out


def rows_of(text: str) -> dict[str, dict[str, str]]:
    """{experiment: {column: cell}} of the first table in `text`."""
    head, *rows = cells(text.split("| MAMP's lead")[0])
    return {row[0]: dict(zip(head, row, strict=True)) for row in rows}


EXPERIMENTS = {     # in the order in which the tables have them
    'pre-training, MAMP': {'protocol': 'pretrain', 'pretraining': None},
    'linear, MAMP': {'pretraining': MAMP | {'benchmark': 'NTU60_XSub'}},        # the data file's name, not another set
    'linear, MAMP, bone': {'stream': None, 'config': {'stream': 'bone'}},       # a result from before `stream`
    "linear, authors' weights": {'method': 'authors', 'pretraining': {'benchmark': None}},
    'linear, MAE from pku1_xsub': {'method': 'MAE', 'pretraining': OTHER_SET},
    'fine-tune (auxiliary classes, novel_every 3), MAMP': {'protocol': 'finetune', 'config': {'novel_every': 3}},
    'scratch, velocity': {'protocol': 'finetune', 'method': 'scratch', 'pretraining': None, 'stream': 'velocity'},
    'semi 1 %, MAMP': {'protocol': 'finetune', 'labels': {'fraction': 0.01}},
    'semi 10 % (balanced, auxiliary classes), MAMP': {
        'protocol': 'finetune', 'labels': SEMI | {'draw': 'balanced'}, 'config': {'novel_every': 6}},
    'transfer from pku1_xsub, MAMP': {'protocol': 'finetune', 'pretraining': OTHER_SET},
    'retrieval, MAMP': {'protocol': 'retrieval', 'last': {'top1': 62., 'samples': 9, 'k': 1, 'metric': 'cosine'}},
    'retrieval (k = 5, euclidean), MAMP': {
        'protocol': 'retrieval', 'last': {'top1': 62., 'samples': 9, 'k': 5, 'metric': 'euclidean'}},
    'one-shot, MAMP + supervised': {'protocol': 'oneshot', 'method': 'MAMP + supervised', 'config': {'novel_every': 6}},
    'ensemble of joint + bone, linear, MAMP': {'protocol': 'ensemble', 'of': 'linprobe', 'stream': 'joint + bone'},
}


def test_names_and_order_of_experiments(tmp_path, capsys):
    for i, fields in enumerate(reversed(EXPERIMENTS.values())):
        write_run(tmp_path / str(i), **fields)
    rows = rows_of(report(capsys, tmp_path))
    assert list(rows) == list(EXPERIMENTS)
    assert rows['retrieval, MAMP']['top-5'] == '–' and rows["linear, authors' weights"]["authors' weights"] == '85.0'
    assert rows['retrieval (k = 5, euclidean), MAMP']['paper'] == '–' != rows['retrieval, MAMP']['paper']


def test_mean_deviation_and_lead_beside_published_figures(tmp_path, capsys):
    """By hand: means 61 and 56, deviations 1 and 2 of three and two runs: sqrt(1 / 3 + 4 / 2) = 1.5."""
    scratch = {'protocol': 'finetune', 'method': 'scratch', 'pretraining': None}
    runs = [({}, (60., 61., 62.)), ({'method': 'MAE'}, (56. - 2 ** .5, 56. + 2 ** .5)),
            ({'method': 'random encoder', 'pretraining': None}, (40.,)),      # one run has no deviation
            (scratch, (83., 83.)), (scratch | {'labels': SEMI}, (20., 20.)),
            ({'protocol': 'finetune', 'pretraining': OTHER_SET}, (85., 87.)),
            ({'protocol': 'finetune', 'labels': SEMI}, (30., 30.))]
    for i, (fields, values) in enumerate(runs):
        for seed, value in zip((0, 2, 10), values, strict=False):
            write_run(tmp_path / f'{i}_{seed}', value, seed=seed, **fields)
    _, first, *_, second = report(capsys, tmp_path).split('\n\n')
    assert cells(first)[1] == ['linear, MAMP', '84.9', '85.0', '61.0 ± 1.0 (3)', '60.0, 61.0, 62.0', '62.0 ± 1.0',
                               '90.0 ± 0.0', '2.0']
    assert list(rows_of(first)['linear, random encoder'].values())[1:4] == ['–', '–', '40.0 (1)']
    head, *rows = cells(second)
    assert head[1:] == ['over MAE', 'over random encoder', 'over scratch'] and rows == [
        ['linear, MAMP', '+5.0 ± 1.5', '+21.0 (n = 1)', '–'],
        ['semi 10 %, MAMP', '–', '–', '+10.0 ± 0.0'], ['transfer from pku1_xsub, MAMP', '–', '–', '+3.0 ± 1.0']]


def test_runs_of_different_settings_are_not_averaged(tmp_path, capsys):
    """… and those that differ in where they ran, or from before an option of which they do the default, are."""
    for i, (ratio, path, more) in enumerate([(0.9, 'a', {}), (0.9, 'b', {'max_turn': None}), (0.5, 'c', {})]):
        write_run(tmp_path / path, 50. + i, seed=i, pretraining=MAMP | {'mask_ratio': ratio, 'path': path, 'seed': i},
                  config={'epochs': 100, 'output_dir': path, 'num_workers': i, 'batch_size': i} | more)
    assert {name: row['each seed'] for name, row in rows_of(report(capsys, tmp_path)).items()} == {
        'linear, MAMP (pre-training mask_ratio 0.5)': '52.0',
        'linear, MAMP (pre-training mask_ratio 0.9)': '50.0, 51.0'}


def test_runs_of_one_seed_count_once(tmp_path, caplog, capsys):
    for name, top1, fields in (('a', 50., {}), ('b', 70., {}), ('c', 56., {'pretraining': MAMP | {'seed': 1}}),
                               ('d', 59., {'seed': 1}), ('f', 57., {'seed': None}), ('g', 58., {'seed': None})):
        write_run(tmp_path / name, top1, **fields)
    assert rows_of(report(capsys, tmp_path))['linear, MAMP']['each seed'] == '50.0, 56.0, 59.0, 57.0, 58.0'
    warning, = caplog.messages
    assert 'seed 0' in warning and f'{tmp_path / "b"}/' in warning


def test_all_rows_shows_what_is_still_missing(tmp_path, capsys):
    write_run(tmp_path / 'a', 85.)
    out = report(capsys, tmp_path, '--all_rows', '--benchmark', 'ntu60_xsub')
    rows = rows_of(out)
    assert list(rows)[:4] == ['linear, MAMP', 'linear, MAE', 'fine-tune, MAMP', 'semi 1 %, MAMP']
    assert list(rows['fine-tune, MAMP'].values())[1:] == ['93.1', '93.0', '–', '–', '–', '–', '–']
    assert rows['linear, MAE']['paper'] == '74.8 ¹' and out.splitlines()[-1].startswith('¹ SkeletonMAE, ')
    refusal(lambda: tools.report.main([str(tmp_path), '--benchmark', 'ntu60']), '--benchmark ntu60', 'ntu60_xsub')
    (tmp_path / 'empty').mkdir()
    refusal(lambda: tools.report.main([str(tmp_path / 'empty')]), 'no results')


@pytest.mark.parametrize('content, part', [
    ('{', 'not valid JSON'), ('[]', 'not a result file'), ({'protocol': 'juggling'}, 'unknown protocol'),
    ({'last': {'top1': math.nan}}, 'top1'), ({'config': [1]}, 'config')], ids=str)
def test_a_damaged_result_is_refused_by_name(tmp_path, content, part):
    path = tmp_path / 'result.json'
    path.write_text(content if isinstance(content, str) else json.dumps(
        {'benchmark': 'ntu60_xsub', 'protocol': 'linprobe', 'method': 'MAMP'} | content))
    refusal(lambda: tools.report.main([str(tmp_path)]), path, part, 'rerun the stage that wrote it')


@pytest.mark.parametrize('options, part', [
    ([], 'nothing to report'), (['--confusion', 'c.png'], '--scores'), (['--scores', 'a', '--pairs', '-1'], '--pairs'),
    (['--scores', 'a', '--confusion', 'a'], 'also an input')], ids=' '.join)
def test_invalid_options(options, part):
    refusal(lambda: tools.report.main(options), part)


def test_tables_are_written_between_the_markers_only(tmp_path, capsys):
    write_run(tmp_path / 'runs' / 'a', 12.3)
    readme = tmp_path / 'README.md'
    frame = 'above\n<!-- table: runs -->\n{}<!-- end -->\n`<!-- end -->`\n<!-- table: runs/a -->\n{}<!-- end -->\n'
    readme.write_text(frame.format('', 'old\n'))
    assert report(capsys, '--readme', readme) == f'{readme}: updated\n'
    table = f'\n{report(capsys, tmp_path / "runs")}\n'
    assert readme.read_text() == frame.format(table, table)
    assert 'up to date' in report(capsys, '--readme', readme)
    for text, part in (('<!-- table: runs -->\n<!-- table: runs -->\n<!-- end -->\n', '2 lines'),
                       ('<!-- table: nowhere -->\n<!-- end -->\n', 'nowhere')):
        readme.write_text(text)
        refusal(lambda: tools.report.main(['--readme', str(readme)]), part)
        assert readme.read_text() == text


def random_scores(clips: int = 200, classes: int = 10, seed: int = 0) -> dict[str, np.ndarray]:
    """The members of a scores.npz; no class is quite without mistakes, the last has no clip."""
    rng, label = np.random.default_rng(seed), np.random.default_rng(0).integers(0, classes - 1, clips)
    powers = np.exp(rng.normal(size=(clips, classes)) + np.eye(classes)[label])
    return {'name': np.array([f'clip {i}' for i in range(clips)]), 'label': label,
            'scores': (powers / powers.sum(1, keepdims=True)).astype(np.float32),
            'benchmark': np.array('nwucla_xview'), 'stream': np.array('joint')}


def save(path, **members) -> str:
    path.parent.mkdir(exist_ok=True)
    np.savez(path, **members)
    return str(path)


def by_hand(label, scores) -> tuple[Counter, float, float]:
    """{(true, predicted): clips}, top-1, top-5, one clip after the other."""
    orders = [sorted(range(len(row)), key=lambda i, row=row: -row[i]) for row in scores.tolist()]
    top1, top5 = (100 * mean(true in order[:k] for true, order in zip(label, orders, strict=True)) for k in (1, 5))
    return Counter((true, order[0]) for true, order in zip(label.tolist(), orders, strict=True)), top1, top5


def test_accuracies_by_class_are_those_counted_by_hand(tmp_path, capsys):
    npz, names = random_scores(), find_class_names('nwucla_xview', 10)
    counts, top1, top5 = by_hand(npz['label'], npz['scores'])
    clips = Counter(npz['label'].tolist())
    shares = {i: 100 * counts[i, i] / clips[i] for i in clips}
    out = report(capsys, '--scores', save(tmp_path / 'scores.npz', **npz), '--pairs', 4)
    line, by_class, pairs = out.strip().split('\n\n')
    assert line == (f'nwucla_xview, joint: 200 clips, top-1 {top1:.1f} %, top-5 {top5:.1f} %, mean over classes '
                    f'{mean(shares.values()):.1f} %')
    expected = []
    for i in sorted(shares, key=lambda i: (shares[i], i)):
        most, other = min((-n, said) for (true, said), n in counts.items() if true == i != said)
        expected.append([str(i), names[i], str(clips[i]), f'{shares[i]:.1f}', f'{names[other]} ({-most})'])
    assert cells(by_class)[1:] == [*expected, ['9', 'carry', '0', '–', '–']]
    worst = sorted((-n, -n / clips[true], true, said) for (true, said), n in counts.items() if true != said)[:4]
    assert cells(pairs)[1:] == [[names[true], names[said], str(-n), f'{-100 * share:.1f}']
                                for n, share, true, said in worst]


def test_clips_can_be_left_out(tmp_path, capsys):
    npz, names = random_scores(), tmp_path / 'names.txt'
    path, kept = save(tmp_path / 'scores.npz', **npz), np.arange(200) % 10 != 7
    names.write_text('\n'.join(npz['name'][~kept]) + '\n')
    _, top1, top5 = by_hand(npz['label'][kept], npz['scores'][kept])
    assert f'180 clips, top-1 {top1:.1f} %, top-5 {top5:.1f} %' in report(capsys, '--scores', path, '--without', names)
    for text, part in (('clip 3\nclip3\n', '1 of the 2'), ('\n'.join(npz['name']), 'every clip')):
        names.write_text(text)
        refusal(lambda: tools.report.main(['--scores', path, '--without', str(names)]), names, part)


@pytest.mark.parametrize('change, part', [
    (lambda npz: {'scores': npz['scores'][:5]}, 'do not fit'),
    (lambda npz: {'scores': npz['scores'] * np.nan}, 'finite'),
    (lambda npz: {'scores': npz['scores'] * 7}, 'probabilities'), (lambda npz: {'label': npz['label'] + 5}, 'label 13'),
    (lambda npz: {'name': np.repeat(npz['name'][:1], 200)}, 'not unique')])
def test_damaged_scores_are_refused(tmp_path, change, part):
    npz = random_scores()
    path = save(tmp_path / 'scores.npz', **npz | change(npz))
    refusal(lambda: tools.report.main(['--scores', path]), path, part)


def test_an_ensemble_adds_the_scores_of_the_same_clips(tmp_path, capsys):
    """The clips of the second run are in another order."""
    paths, total, folder = [], 0, tmp_path / 'all'
    for seed, stream in enumerate(('velocity', 'joint', 'bone')):
        npz = random_scores(seed=seed)
        total = total + npz['scores'].astype(np.float64)
        order = np.random.default_rng(1).permutation(200) if stream == 'joint' else np.arange(200)
        write_run(tmp_path / stream, protocol='finetune', stream=stream, benchmark='nwucla_xview', seed=3)
        paths.append(save(tmp_path / stream / 'scores.npz', **npz | {'stream': np.array(stream)} | {
            name: npz[name][order] for name in ('name', 'label', 'scores')}))
    report(capsys, '--ensemble', *paths, '--out', folder)
    _, top1, top5 = by_hand(npz['label'], total)
    loss, result = -np.log(total[np.arange(200), npz['label']] / 3).mean(), read_result(folder)
    assert result['last'] == pytest.approx({'top1': top1, 'top5': top5, 'samples': 200, 'epoch': None, 'loss': loss})
    assert result['seed'] == 3 and [member['path'] for member in result['members']] == paths
    saved = np.load(folder / 'scores.npz')
    assert saved['name'].tolist() == npz['name'].tolist()
    np.testing.assert_allclose(saved['scores'], total / 3, atol=1e-6)
    assert 'ensemble of joint + bone + velocity, transfer from ntu60_xsub, MAMP' in report(capsys, folder)


@pytest.mark.parametrize('change, part', [
    (lambda npz: {key: npz[key][1:] for key in ('name', 'label', 'scores')}, '1 clips are in one'),
    (lambda npz: {'label': np.where(np.arange(200) == 7, 9, npz['label'])}, 'clip 7 has labels 9 and 0'),
    (lambda npz: {'scores': np.hstack([npz['scores'], np.zeros((200, 1), 'f')])}, '11 and 10 classes')])
def test_scores_of_other_clips_are_not_added(tmp_path, change, part):
    npz = random_scores()
    paths = [save(tmp_path / 'a' / 'scores.npz', **npz), save(tmp_path / 'b' / 'scores.npz', **npz | change(npz))]
    refusal(lambda: tools.report.main(['--ensemble', *paths, '--out', str(tmp_path / 'out')]), *paths, part)
    assert not (tmp_path / 'out').exists()


def count_colours(path, alpha: float = 1.) -> int:
    """Count of the first four colours of lines and points that have over 200 pixels of a PNG file."""
    image = matplotlib.image.imread(path)[..., :3]
    colours = [np.array(figures.colour_of(i)) * alpha + 1 - alpha for i in range(4)]
    return sum((np.abs(image - colour).max(-1) < 0.02).sum() > 200 for colour in colours)


def test_curves_show_every_stage_and_method(tmp_path):
    for seed, method in enumerate(('MAMP', 'MAE', 'MAMP', 'MAE')):
        write_run(tmp_path / str(seed), 40. + 10 * (seed // 2), method=method, seed=seed)
    write_run(tmp_path / 'scratch', protocol='finetune', method='scratch', pretraining=None)
    write_run(tmp_path / 'pretrain', None, protocol='pretrain', pretraining=None)
    picture = str(tmp_path / 'curves.png')
    assert tools.report.main([str(tmp_path), '--figure', picture]) == 0
    assert count_colours(picture) == 3
    (tmp_path / 'scratch' / 'log.jsonl').write_text('{"epoch": 0}\n')
    refusal(lambda: tools.report.main([str(tmp_path), '--figure', picture]), 'scratch', 'log.jsonl')


def test_a_confusion_matrix_is_blue_where_right_and_orange_where_wrong(tmp_path):
    npz = random_scores(600, 60)
    for shift, sign in ((0, 1), (1, -1)):
        path = save(tmp_path / 'scores.npz', **npz | {'scores': np.eye(60, dtype=np.float32)[npz['label'] - shift]})
        assert tools.report.main(['--scores', path, '--confusion', str(tmp_path / 'c.png')]) == 0
        image = matplotlib.image.imread(tmp_path / 'c.png')[:, :-264]      # without the colour bars, some 2.4 inches
        blue = sign * (image[..., 2] - image[..., 0])
        assert (blue > 0.15).sum() > 3000 and not (blue < -0.15).any()


def test_clips_of_a_class_lie_together_in_the_plane(tmp_path):
    rng, label = np.random.default_rng(0), np.arange(90) % 3
    path = save(tmp_path / 'features.npz', label_test=label, name_test=np.array([f'clip {i}' for i in range(90)]),
                features_test=(6. * np.eye(3, 16)[label] + rng.normal(size=(90, 16))).astype(np.float32))
    features = read_features(path, ('test',))[0]['test']
    (places, rows), (again, same) = (figures.embed(features, 60, 0) for _ in range(2))
    assert len(set(rows.tolist())) == 60 and rows.tolist() == same.tolist() and (places == again).all()
    gaps = np.linalg.norm(places[:, None] - places[None], axis=2) + 1e9 * np.eye(60)
    assert (label[rows][gaps.argmin(1)] == label[rows]).mean() > 0.95
    picture = str(tmp_path / 'tsne.png')
    assert tools.report.main(['--features', path, '--tsne', picture, '--points', '60']) == 0
    assert count_colours(picture, alpha=0.75) == 3
