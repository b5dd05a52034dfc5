"""The model card: what it says is what the run left, and nothing of the machine's folders."""

import json
import re
import sys

import pytest
import torch

import main_finetune
import main_linprobe
import main_pretrain
from tests.conftest import NUM_TEST, NUM_TRAIN, ROOT, refusal
from util import checkpoint
from util import trainer as loop
from util.card import CARD, exit_checks, write_card
from util.errors import UserError


def card_of(folder) -> str:
    return (folder / CARD).read_text(encoding='utf-8')


def read_result(folder) -> dict:
    return json.loads((folder / 'result.json').read_text())


@pytest.fixture(scope='module')
def place(tiny_npz, tmp_path_factory):
    """A folder to stand in, with the data in it: paths can be given without naming the machine's."""
    folder = tmp_path_factory.mktemp('place')
    (folder / 'TINY.npz').symlink_to(tiny_npz)
    return folder


@pytest.fixture(scope='module')
def runs(place, tiny, tiny_pretrain):
    """A run of each stage, from a command line with relative paths."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        for main, stage, options in (
                (main_pretrain, 'pretrain', [*tiny_pretrain, '--benchmark', 'nwucla_made_up']),
                (main_linprobe, 'linprobe', [*tiny, '--finetune', 'pretrain/checkpoint-last.pth']),
                (main_finetune, 'finetune', [*tiny, '--label_fraction', '0.5'])):
            assert options[0] == '--data_path'
            patch.setattr(sys, 'argv', [f'/some/where/main_{stage}.py', '--data_path', 'TINY.npz', *options[2:],
                                        '--output_dir', stage])
            main.main()
    return place


@pytest.mark.parametrize('stage, title', [('pretrain', 'pre-training, MAMP, nwucla'),
                                          ('linprobe', 'linear probe, MAMP, TINY'),
                                          ('finetune', 'fine-tuning, scratch, TINY')])
def test_a_card_tells_what_result_json_holds(runs, stage, title):
    card, result = card_of(runs / stage), read_result(runs / stage)
    assert card.startswith(f'# Model card: {title}') and card.endswith('\n') and 'None' not in card
    assert [line for line in card.splitlines() if line.startswith('## ')] == [
        '## Data', '## Recipe', '## Result', '## How it was made', '## Intended use and limits', '## Exit checks']
    for fact in (f'- benchmark: `{result["benchmark"]}`', '- file: `TINY.npz`', '- bodies of a clip: 2',
                 '- lr: `0.001`', '- dim_feat: `16`', '- epochs: `2`', '- seed: `0`',
                 f'- code version: `{result["code_version"]}`',
                 'torch 2', f'- wall time: {result["wall_seconds"] / 60:.1f} min', '- resumed: no', 'MIT License',
                 '5 joints (of no layout that is known)', f'- training loss, last epoch: {result["train_loss"]:.5g}',
                 'n = 1', 'licence of these weights: not set'):
        assert fact in card, fact
    assert f'- command: `main_{stage}.py --data_path TINY.npz --num_joints 5 ' in card
    assert f' --output_dir {stage}`' in card
    assert not re.search(r'(^|[\s`\'"(])/\w', card), 'an absolute path'
    assert str(ROOT) not in card and str(runs) not in card


def test_each_stage_tells_what_is_its_own(runs):
    pretrain, probe, tuned = (card_of(runs / stage) for stage in ('pretrain', 'linprobe', 'finetune'))
    assert 'pre-training sees no label' in pretrain and 'top-1' not in pretrain and 'test clips:' not in pretrain
    assert '- classes: not used; 3' in pretrain and '- mask_ratio: `0.5`' in pretrain
    assert 'Northwestern-UCLA is for research' in pretrain and 'whatever terms its owners set' in tuned
    assert f'- training clips: {NUM_TRAIN}\n- test clips: {NUM_TEST}\n' in probe and 'mask_ratio: `' not in probe
    assert '- finetune: `pretrain/checkpoint-last.pth`' in probe and 'target `motion`' in probe
    assert f'- training clips: {NUM_TRAIN // 2}, 50 % of the labelled ones' in tuned
    for stage, card in (('linprobe', probe), ('finetune', tuned)):
        last, best = (read_result(runs / stage)[which] for which in ('last', 'best'))
        assert f'- last epoch, the figure to quote: top-1 {last["top1"]:.2f} %' in card
        assert 'on 13 test clips (epoch 1)' in card
        assert f'- best epoch: top-1 {best["top1"]:.2f} %' in card and 'chosen on the test split' in card


def test_exit_checks_see_what_is_wrong(runs, tmp_path):
    def checks(spoil=None, **changes):
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        folder.mkdir()
        for name in ('checkpoint-last.pth', 'checkpoint-last.pth.sha256', 'log.jsonl', 'result.json'):
            (folder / name).write_bytes((runs / 'linprobe' / name).read_bytes())
        if spoil:
            spoil(folder)
        write_card(folder, read_result(folder))
        told = re.findall(r'^- (yes|\*\*no\*\*|nothing to check): ', card_of(folder), re.MULTILINE)
        found = [holds for holds, _ in exit_checks(folder, read_result(folder) | changes)]
        assert changes or told == [{True: 'yes', False: '**no**', None: 'nothing to check'}[holds] for holds in found]
        return found

    def rewrite(**changes):
        return lambda folder: checkpoint.save(folder / 'checkpoint-last.pth',
                                              checkpoint.load(folder / 'checkpoint-last.pth') | changes)

    def spoilt_weights(folder):
        state = checkpoint.load(folder / 'checkpoint-last.pth')
        state['model']['head.fc.1.bias'][1] = torch.inf
        checkpoint.save(folder / 'checkpoint-last.pth', state)

    def flip(folder):
        data = bytearray((folder / 'checkpoint-last.pth').read_bytes())
        data[len(data) // 2] ^= 1
        (folder / 'checkpoint-last.pth').write_bytes(data)

    assert checks() == [True] * 5
    assert checks(flip) == [False, False, False, True, True]
    assert checks(lambda folder: (folder / 'checkpoint-last.pth').unlink()) == [False, False, False, True, True]
    assert checks(rewrite(epoch=0)) == [True, False, True, True, True]
    assert checks(rewrite(step=3)) == [True, False, True, True, True]
    assert checks(spoilt_weights) == [True, True, False, True, True]
    assert checks(lambda folder: (folder / 'log.jsonl').write_text('{"epoch": 1}\n')) == [True, True, True, False, True]
    assert checks(test_clips=14) == [True, True, True, True, False]
    assert checks(test_clips=0) == [True, True, True, True, None]
    digest = checkpoint.digest_of(runs / 'linprobe/checkpoint-last.pth')
    assert f'- yes: `checkpoint-last.pth` is as it was written: SHA-256 {digest}\n' in card_of(runs / 'linprobe')


def test_a_resumed_run_gets_its_card_anew(runs, tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(runs)
    options = [*tiny, '--data_path', 'TINY.npz', '--output_dir', str(tmp_path / 'run'), '--epochs']
    main_finetune.main([*options, '1'])
    before = card_of(tmp_path / 'run')
    assert 'called from Python' in before and '- resumed: no' in before and '(epoch 0)' in before
    main_finetune.main([*options, '2', '--resume', 'auto'])
    after, result = card_of(tmp_path / 'run'), read_result(tmp_path / 'run')
    assert '- resumed: yes' in after and '- epochs: `2`' in after and '(epoch 1)' in after
    assert f'top-1 {result["last"]["top1"]:.2f} %' in after and '**no**' not in after
    main_finetune.main([*options[:-1], '--epochs', '1', '--resume', 'auto', '--output_dir', str(tmp_path / 'new')])
    assert '- resumed: no' in card_of(tmp_path / 'new')             # told to, but there was nothing to resume


def test_a_result_is_written_when_all_else_is_there(tiny, tmp_path, monkeypatch):
    def full(*_):
        raise UserError('disk full')
    monkeypatch.setattr(loop, 'write_card', full)
    refusal(lambda: main_finetune.main([*tiny, '--output_dir', str(tmp_path)]), 'disk full')
    assert not (tmp_path / 'result.json').exists()
    monkeypatch.undo()
    main_finetune.main([*tiny, '--output_dir', str(tmp_path), '--resume', 'auto'])
    assert (tmp_path / 'result.json').exists() and (tmp_path / CARD).exists()


def test_what_a_user_named_is_no_markup(runs, tmp_path):
    """Names with line breaks, backticks, links and headings stay text in their line."""
    folder = tmp_path / 'run'
    folder.mkdir()
    odd = 'a`b``\n# c [d](e) <b>|*'
    result = read_result(runs / 'finetune') | {'benchmark': odd, 'command': odd}
    result['config'] |= {'data_path': odd}
    write_card(folder, result)
    card = card_of(folder)
    assert sum(line.startswith('#') for line in card.splitlines()) == 7
    assert card.splitlines()[0].endswith(r'a\`b\`\` \# c \[d\](e) \<b\>\|\*')
    assert '- file: ``` a`b`` # c [d](e) <b>|* ```\n' in card and '- command: ``` a`b``' in card
