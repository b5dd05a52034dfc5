"""A model card beside a run's checkpoints: what the weights were made of, how, how good they are, what they are for.

Made from the run's result and what else it left. Text that a user gave stands in it as it was given, in quotes of
code; no other path does.
"""

import json
from pathlib import Path

from feeder.classes import find_class_names
from util import checkpoint
from util.checkpoint import LAST
from util.errors import UserError
from util.files import atomic_write, to_json

CARD = 'model_card.md'
STAGES = {'pretrain': 'pre-training', 'linprobe': 'linear probe', 'finetune': 'fine-tuning'}
# Settings that make a recipe, in the order in which the card tells them; those of the stage are told.
RECIPE = ('stream', 'num_frames', 't_patch_size', 'dim_feat', 'depth', 'num_heads', 'mlp_ratio', 'decoder_dim_feat',
          'decoder_depth', 'target', 'norm_skes_loss', 'mask_ratio', 'motion_aware_tau', 'motion_stride',
          'skip_empty_bodies', 'finetune', 'epochs', 'effective_batch_size', 'lr', 'min_lr', 'warmup_epochs',
          'weight_decay', 'layer_decay', 'drop_path_rate', 'head_dropout', 'smoothing', 'clip_grad', 'label_fraction',
          'label_draw', 'novel_every', 'p_interval', 'max_angle', 'max_turn', 'seed')
# Beginnings of benchmarks' names, and whose terms hold for their recordings.
RESEARCH = {'ntu': 'NTU RGB+D', 'pku': 'PKU-MMD', 'nwucla': 'Northwestern-UCLA'}


def write_card(folder: str | Path, result: dict) -> None:
    """Writes model_card.md into the folder of a run that ended with `result`; UserError when it cannot be written."""
    folder, result = Path(folder), json.loads(to_json(result))      # as it will stand in result.json
    parts = [f'# Model card: {STAGES[result["protocol"]]}, {_plain(result["method"])}, {_plain(result["benchmark"])}',
             _data(result), _recipe(result), _result(result), _making(result), _use(result),
             _checks(exit_checks(folder, result))]
    with atomic_write(folder / CARD) as partial:
        partial.write_text('\n\n'.join(parts) + '\n', encoding='utf-8')


def _plain(value) -> str:
    """A value in a line of Markdown, where nothing of it is markup."""
    return ' '.join(str(value).split()).translate({ord(sign): f'\\{sign}' for sign in '\\`*_[]<>|#'})


def _code(text) -> str:
    """Text as code, whatever backticks are in it."""
    text = ' '.join(str(text).split())
    fence = '`' * (1 + max((len(run) for run in ''.join(c if c == '`' else ' ' for c in text).split()), default=0))
    space = ' ' if '`' in text else ''
    return f'{fence}{space}{text}{space}{fence}'


def _list(title: str, facts: dict) -> str:
    """A section of facts, those that are not known left out."""
    return '\n'.join([f'## {title}', '', *(f'- {name}: {value}' for name, value in facts.items() if value is not None)])


def _data(result: dict) -> str:
    names = result['class_names'] or find_class_names(result['benchmark'], result['classes'])
    labels = result.get('labels')
    test = result.get('test_clips')
    return _list('Data', {
        'benchmark': _code(result['benchmark']), 'file': _code(result['config']['data_path']),
        'training clips': f'{result["train_clips"]:,}' + (
            f', {100 * labels["fraction"]:g} % of the labelled ones' if labels else ''),
        'test clips': None if test is None else f'{test:,}',
        'bodies of a clip': result['bodies'],
        'classes': ('not used; ' if result['protocol'] == 'pretrain' else '') + str(result['classes'])
        + (f': {_plain(", ".join(names))}' if names else ''),
        'augmentation': 'random crop and rotation in training; in the test the middle 95 % of each clip'})


def _recipe(result: dict) -> str:
    config = result['config']
    return _list('Recipe', {name: _code(config[name]) for name in RECIPE if config.get(name) is not None} | {
        'precision': result['precision'], 'pre-training': _pretraining(result)})


def _pretraining(result: dict) -> str | None:
    told = result.get('pretraining')
    return told and ', '.join(f'{_plain(name)} {_code(value)}' for name, value in told.items() if value is not None)


def _result(result: dict) -> str:
    def scores(held: dict) -> str:
        loss = 'not finite' if held['loss'] is None else f'{held["loss"]:.4f}'
        return (f'top-1 {held["top1"]:.2f} %, top-5 {held["top5"]:.2f} %, loss {loss} on {held["samples"]:,} test '
                f'clips (epoch {held["epoch"]})')
    last, best, loss = result['last'], result['best'], result['train_loss']
    facts = {'training loss, last epoch': None if loss is None else f'{loss:.5g}'}
    if last:
        facts |= {'last epoch, the figure to quote': scores(last),
                  'best epoch': f'{scores(best)}; it was chosen on the test split, so it is too high'}
    else:
        facts['accuracy'] = 'not measured' + (': pre-training sees no label' * (result['protocol'] == 'pretrain'))
    return _list('Result', facts | {'runs': f'n = 1, seed {result["seed"]}: it says nothing of how much seeds differ'})


def _making(result: dict) -> str:
    command = result.get('command')
    return _list('How it was made', {
        'code version': _code(result['code_version']), 'machine': _plain(result['machine']),
        'processes': result['processes'],
        'wall time': f'{result["wall_seconds"] / 60:.1f} min, with evaluations',
        'command': _code(command) if command else 'called from Python, not by a command',
        'resumed': 'yes; the command is the one that ended the run' if result['resumed'] else 'no'})


def _use(result: dict) -> str:
    config, name = result['config'], result['benchmark'].lower()
    owner = next((owner for start, owner in RESEARCH.items() if name.startswith(start)), None)
    data = 'made-up recordings, of nobody' if name.startswith('synth') else (
        f'{owner} is for research; its owners\' terms hold' if owner else 'whatever terms its owners set')
    use = {'pretrain': 'the encoder, as a start for probes and fine-tuning, or for features of clips; research',
           'linprobe': 'naming the action of a clip, to compare encoders; research',
           'finetune': 'naming the action of a clip; research'}[result['protocol']]
    known = '' if result['protocol'] == 'pretrain' else ' It knows no action but its classes, and always names one.'
    return _list('Intended use and limits', {
        'use': use,
        'input': f'3D joints in metres, stream {_code(config["stream"])}, {config["num_joints"]} joints '
        f'({_plain(result["layout"] or "of no layout that is known")}), resized to {config["num_frames"]} frames; '
        'another layout or unit gives nonsense without an error',
        'limits': 'measured on the test split of its benchmark only: not on other cameras, sensors, people or actions.'
        + known, 'licence of the data': data, 'licence of the code': 'MIT License',
        'licence of these weights': 'not set; who releases them decides, within the terms of the data'})


def exit_checks(folder: Path, result: dict) -> list[tuple[bool | None, str]]:
    """What was looked at when the run ended: whether it holds (None: there is nothing to look at), and what."""
    epochs, tested = result['config']['epochs'], result.get('test_clips')
    try:
        state = checkpoint.load(folder / LAST)
        whole = state.get('epoch') == epochs - 1 and state.get('step', 0) == 0
        finite = all(bool(value.isfinite().all()) for value in state['model'].values())
        digest = checkpoint.digest_of(folder / LAST)
        noted = digest in checkpoint.noted(folder / LAST)
    except UserError:
        whole = finite = noted = False
        digest = 'cannot be read'
    try:
        lines = [json.loads(line)['epoch'] for line in (folder / 'log.jsonl').read_text().splitlines()]
    except (OSError, ValueError, KeyError, TypeError):
        lines = []
    return [(noted, f'`{LAST}` is as it was written: SHA-256 {digest}'), (whole, f'it stands at the end of epoch '
            f'{epochs - 1}, the last'), (finite, 'its weights are all finite'),
            (lines == list(range(epochs)), f'`log.jsonl` has each of the {epochs} epochs once'),
            ((result['last'] or {}).get('samples') == tested if tested else None, 'each test clip was counted once')]


def _checks(checks: list[tuple[bool | None, str]]) -> str:
    words = {True: 'yes', False: '**no**', None: 'nothing to check'}
    return '\n'.join(['## Exit checks', '', *(f'- {words[holds]}: {what}' for holds, what in checks)])
