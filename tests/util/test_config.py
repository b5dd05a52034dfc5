"""Settings: where each value comes from, what is refused, and that every refusal is one line naming its place."""


import argparse
import itertools
import math

import pytest
import yaml

from tests.conftest import refusal
from util.config import parse_args, read_config, resolve_batch
from util.options import STAGES, build_parser

# what every stage needs before anything else can be wrong
ENOUGH = {'pretrain': ['--data_path', 'd/clips.npz', '--epochs', '100', '--lr', '0.1', '--batch_size', '8']}
ENOUGH['finetune'] = ENOUGH['pretrain']
ENOUGH['linprobe'] = [*ENOUGH['pretrain'], '--random_encoder']
ENOUGH['retrieval'] = ['--data_path', 'd/clips.npz', '--random_encoder', '--batch_size', '8']


@pytest.fixture
def write(tmp_path):
    """Writes the texts, or the settings, as YAML files; returns their paths."""
    numbers = itertools.count()

    def write(*contents):
        paths = [tmp_path / f'{next(numbers)}.yaml' for _ in contents]
        for path, content in zip(paths, contents, strict=True):
            path.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
        return [str(path) for path in paths]

    return write


def parsed(stage='pretrain', *options, files=()):
    return parse_args(stage, [*ENOUGH[stage], *(['--config', *files] if files else []), *map(str, options)])


# settings of the layers from the weakest to the strongest: each case names what it gives and what wins
A_COMMON, A_STAGE, B_COMMON, B_STAGE, COMMAND = range(5)


@pytest.mark.parametrize('given', [layers for n in range(6) for layers in itertools.combinations(range(5), n)], ids=str)
def test_later_layers_win(write, given):
    value = {layer: 101 + layer for layer in given}

    def content(common, stage):
        return {'num_joints': 7,                                    # so that no file is empty
                **({'warmup_epochs': value[common]} if common in given else {}),
                'linprobe': {'warmup_epochs': 999},                 # another stage's
                'pretrain': {'warmup_epochs': value[stage]} if stage in given else {}}

    files = write(content(A_COMMON, A_STAGE), content(B_COMMON, B_STAGE))
    command = ['--warmup_epochs', value[COMMAND]] if COMMAND in given else []
    args = parsed('pretrain', '--epochs', 500, *command, files=files)
    assert args.warmup_epochs == (value[max(given)] if given else 0)


def test_the_stage_map_wins_wherever_it_stands_in_its_file(write):
    for text in ('seed: 1\nfinetune:\n  seed: 2\n', 'finetune:\n  seed: 2\nseed: 1\n'):
        assert parsed('finetune', files=write(text)).seed == 2
        assert parsed('pretrain', files=write(text)).seed == 1


@pytest.mark.parametrize('text,number', [('1e-3', 1e-3), ('1.0e-3', 1e-3), ('5e-4', 5e-4), ('1', 1.), ('2E+1', 20.)])
def test_numbers_as_people_write_them(write, text, number):
    # YAML 1.1 reads 1e-3, which has no point, as text
    args = parsed(files=write(f'weight_decay: {text}\npretrain:\n  min_lr: {text}\n'))
    assert args.weight_decay == args.min_lr == number
    assert type(args.weight_decay) is float and type(args.min_lr) is float


def test_flags_can_be_turned_on_and_off(write):
    off, on = write({'pretrain': {'norm_skes_loss': False}}, {'pretrain': {'norm_skes_loss': True}})
    assert not parsed(files=[off]).norm_skes_loss and parsed(files=[off, on]).norm_skes_loss
    assert parsed('pretrain', '--norm_skes_loss', files=[off]).norm_skes_loss
    assert not parsed('pretrain', '--no-norm_skes_loss', files=[on]).norm_skes_loss


@pytest.mark.parametrize('text', ['a: [1\nb: 2', 'a: b: c', '\tx: 1', 'lr: "0.1', '@', 'a: \x07'],
                         ids=lambda text: repr(text))
def test_not_yaml(write, text):
    (path,) = write(text)
    refusal(lambda: parsed(files=[path]), path, 'not valid YAML')


@pytest.mark.parametrize('key,near', [('wieght_decay', 'weight_decay'), ('Seed', 'seed'), ('epoch', 'epochs'),
                                      ('mask_ration', 'mask_ratio'), ('effective_batchsize', 'effective_batch_size'),
                                      ('layer-decay', 'layer_decay')])
def test_unknown_key_names_the_nearest(write, key, near):
    (path,) = write({key: 1})
    for stage in STAGES:
        refusal(lambda stage=stage: parsed(stage, files=[path]), path, repr(key), f'did you mean {near!r}')


@pytest.mark.parametrize('key,value,owner', [
    ('mask_ratio', 0.5, 'pretrain'), ('decoder_depth', 3, 'pretrain'), ('num_classes', 60, 'linprobe'),
    ('smoothing', 0.1, 'finetune'), ('layer_decay', 0.8, 'finetune'), ('random_encoder', True, 'linprobe')])
def test_a_key_of_another_stage(write, key, value, owner):
    common, own, wrong = write({key: value}, {owner: {key: value}}, {key: 'wrong'})
    strangers = [stage for stage in STAGES if key not in vars(parsed(stage))]
    assert getattr(parsed(owner, files=[common]), key) == getattr(parsed(owner, files=[own]), key) == value
    assert strangers
    for stage in strangers:
        assert not hasattr(parsed(stage, files=[common]), key)                  # at the top: for whom it concerns
        parsed(stage, files=[own])
        (misplaced,) = write({stage: {key: value}})
        for reader in STAGES:                                                   # in a stage's map: an error for all
            refusal(lambda reader=reader, misplaced=misplaced: parsed(reader, files=[misplaced]), misplaced,
                    f'{stage}: unknown setting', repr(key))
        refusal(lambda stage=stage: parsed(stage, files=[wrong]), wrong, key)   # and a wrong value is one for all


WRONG_TYPES = [     # stage, key, what YAML holds, what the message must hold
    ('pretrain', 'epochs', 'true', 'integer'), ('pretrain', 'lr', 'true', 'number'),
    ('pretrain', 'max_angle', 'false', 'number'), ('pretrain', 'seed', 'no', 'integer'),
    ('pretrain', 'epochs', 'many', 'integer'), ('pretrain', 'depth', '"8.5"', 'integer'),
    ('pretrain', 'lr', 'small', 'number'), ('pretrain', 'lr', '1e-3x', 'number'), ('pretrain', 'lr', '1,5', 'number'),
    ('pretrain', 'batch_size', '4.0', 'integer'), ('pretrain', 'batch_size', '4.5', 'integer'),
    ('pretrain', 'epochs', '4e2', 'integer'), ('pretrain', 'epochs', '[4]', 'integer'),
    ('pretrain', 'lr', '[0.1]', 'number'), ('pretrain', 'lr', '{a: 1}', 'number'),
    ('pretrain', 'seed', 'null', 'integer'),
    ('pretrain', 'min_lr', 'null', 'number'), ('pretrain', 'lr', '2020-01-01', 'number'),
    ('pretrain', 'p_interval', '0.5', 'list of 2'), ('pretrain', 'p_interval', '[0.5]', 'list of 2'),
    ('pretrain', 'p_interval', '[0.5, 0.6, 0.7]', 'list of 2'), ('pretrain', 'p_interval', '[0.5, true]', 'True'),
    ('pretrain', 'p_interval', '[0.5, a]', 'number'), ('pretrain', 'p_interval', '"ab"', 'list of 2'),
    ('pretrain', 'p_interval', 'null', 'list of 2'), ('pretrain', 'p_interval', '{0.5: 1, 1: 1}', 'list of 2'),
    ('pretrain', 'data_path', '3', 'text'), ('pretrain', 'data_path', '[a.npz]', 'text'),
    ('pretrain', 'benchmark', '60', 'text'), ('pretrain', 'output_dir', 'true', 'text'),
    ('pretrain', 'device', 'null', 'text'), ('pretrain', 'resume', '1.5', 'text'), ('pretrain', 'log_dir', '0', 'text'),
    ('linprobe', 'finetune', '5', 'text'), ('pretrain', 'stream', 'bones', 'joint, bone, velocity'),
    ('pretrain', 'stream', '1', 'text'), ('pretrain', 'stream', 'null', 'text'),
    ('pretrain', 'precision', 'fp16', 'fp32, tf32, bf16'), ('pretrain', 'target', 'both', 'motion, joint'),
    ('pretrain', 'norm_skes_loss', '1', 'true or false'), ('pretrain', 'norm_skes_loss', '"true"', 'true or false'),
    ('pretrain', 'norm_skes_loss', 'null', 'true or false'), ('finetune', 'eval', '0', 'true or false'),
    ('linprobe', 'random_encoder', '[true]', 'true or false'),
]


@pytest.mark.parametrize('stage,key,text,says', WRONG_TYPES, ids=[f'{key}: {text}' for _, key, text, _ in WRONG_TYPES])
def test_wrong_types_in_files(write, stage, key, text, says):
    in_map = write(f'num_joints: 25\n{stage}:\n  {key}: {text}\n')[0]
    for reader in STAGES:
        refusal(lambda reader=reader: read_config(in_map, reader), in_map, f'{stage}: {key}: ', says)
    if key not in STAGES:       # at the top, `finetune:` is the stage
        top = write(f'{key}: {text}\n')[0]
        refusal(lambda: parsed(stage, files=[top]), top, f'{key}: ', says)


def options_of(stage):
    return {action.dest: action for action in build_parser(stage)._actions}


@pytest.mark.parametrize('stage,words,naming', [
    ('pretrain', ['--stream', 'bones'], '--stream'), ('pretrain', ['--target', 'x'], '--target'),
    ('pretrain', ['--precision', 'fp16'], '--precision'), ('pretrain', ['--p_interval', '0.5'], '--p_interval'),
    ('pretrain', ['--p_interval', '0.9', '0.5'], '--p_interval'), ('pretrain', ['--epochs'], '--epochs'),
    ('pretrain', ['stray'], 'stray'), ('pretrain', ['--config'], '--config'),
    ('pretrain', ['--num_frames', '118'], '--num_frames 118'),
    ('pretrain', ['--t_patch_size', '7'], '--t_patch_size 7'),
    ('pretrain', ['--dim_feat', '100'], '--dim_feat 100'), ('finetune', ['--num_heads', '7'], '--num_heads 7'),
    ('pretrain', ['--decoder_dim_feat', '100'], '--decoder_dim_feat 100'),
    ('pretrain', ['--motion_stride', '120'], '--motion_stride 120'),
    ('pretrain', ['--mask_ratio', '0.9999'], '--mask_ratio 0.9999'),
    ('pretrain', ['--num_frames', '4', '--num_joints', '1'], '--mask_ratio'),
    ('pretrain', ['--warmup_epochs', '100'], '--warmup_epochs 100'),
    ('finetune', ['--warmup_epochs', '100.5'], '100.5'),
    ('finetune', ['--mask_ratio', '0.5'], '--mask_ratio'), ('pretrain', ['--layer_decay', '0.5'], '--layer_decay'),
    ('pretrain', ['--num_classes', '5'], '--num_classes'),
    ('linprobe', ['--drop_path_rate', '0.1'], '--drop_path_rate'),
])
def test_options_that_do_not_fit(stage, words, naming):
    refusal(lambda: parsed(stage, *words), naming)


@pytest.mark.parametrize('stage, missing', [
    *itertools.product(('pretrain', 'linprobe', 'finetune'), ('data_path', 'epochs', 'lr')),
    ('retrieval', 'data_path')])
def test_missing_settings(stage, missing):
    words = list(ENOUGH[stage])
    at = words.index(f'--{missing}')
    del words[at:at + 2]
    refusal(lambda: parse_args(stage, words), f'--{missing}')


@pytest.mark.parametrize('stage', ['linprobe', 'finetune'])
def test_eval_needs_a_checkpoint(stage, write):
    refusal(lambda: parsed(stage, '--eval'), '--eval', '--resume')
    refusal(lambda: parsed(stage, files=write({stage: {'eval': True}})), '--eval', '--resume')
    args = parse_args(stage, ['--eval', '--resume', 'auto', '--data_path', 'x.npz'])    # and no epochs, no lr
    assert args.eval and args.resume == 'auto'
    refusal(lambda: parse_args(stage, ['--eval', '--resume', 'auto']), '--data_path')


def test_a_probe_needs_one_encoder():
    enough = [word for word in ENOUGH['linprobe'] if word != '--random_encoder']
    refusal(lambda: parse_args('linprobe', enough), '--finetune', '--random_encoder')
    refusal(lambda: parse_args('linprobe', [*enough, '--finetune', 'a.pth', '--random_encoder']), '--random_encoder')
    assert parse_args('linprobe', [*enough, '--finetune', 'a.pth']).finetune == 'a.pth'
    assert parse_args('linprobe', [*enough, '--random_encoder']).random_encoder
    assert parse_args('linprobe', [*enough, '--eval', '--resume', 'a.pth']).eval
    assert parsed('finetune').finetune is None                      # fine-tuning without one is training from scratch


@pytest.mark.parametrize('layers,lr,blr', [
    ([{'lr': 0.1}, {'blr': 0.2}], None, 0.2), ([{'blr': 0.2}, {'lr': 0.1}], 0.1, None),
    ([{'lr': 0.1, 'pretrain': {'blr': 0.2}}], None, 0.2), ([{'pretrain': {'blr': 0.2}}, {'lr': 0.3}], 0.3, None),
    ([{'blr': 0.2, 'linprobe': {'lr': 0.5}}], None, 0.2), ([{'lr': 0.1}, {'lr': None, 'blr': 0.2}], None, 0.2),
    ([{'blr': 0.2}, {'epochs': 9}], None, 0.2), ([{'lr': 0.1}, {'blr': 0.2}, {'lr': 0.3}], 0.3, None)])
def test_of_lr_and_blr_the_later_counts(write, layers, lr, blr):
    words = ['--data_path', 'd.npz', '--epochs', '2', '--config', *write(*layers)]
    args = parse_args('pretrain', words)
    assert (args.lr, args.blr) == (lr, blr)
    args = parse_args('pretrain', [*words, '--blr', '0.9'])
    assert (args.lr, args.blr) == (None, 0.9)
    args = parse_args('pretrain', [*words, '--lr', '0.9'])
    assert (args.lr, args.blr) == (0.9, None)


def test_lr_and_blr_at_one_level(write):
    common, stage = write({'lr': 0.1, 'blr': 0.2}, {'pretrain': {'lr': 0.1, 'blr': 0.2}})
    for files in ([common], [stage]):
        refusal(lambda files=files: parsed(files=files), 'lr and blr')
    refusal(lambda: parsed('pretrain', '--blr', 0.1), 'lr and blr')         # ENOUGH holds --lr
    parsed('finetune', files=[stage])                                       # not this stage's


def batch(world=1, lr=0.1, blr=None, min_lr=0., effective=None, size=None, accum=None):
    args = argparse.Namespace(effective_batch_size=effective, batch_size=size, accum_iter=accum, lr=lr, blr=blr,
                              min_lr=min_lr)
    resolve_batch(args, world)
    return args


@pytest.mark.parametrize('world', [1, 2, 3, 4, 8])
@pytest.mark.parametrize('effective,size,accum', list(itertools.product(
    [None, 6, 8, 48, 64], [None, 1, 4, 6, 100], [None, 1, 2, 3])))
def test_batch_size_accumulation_and_processes(world, effective, size, accum):
    given = {'world': world, 'effective': effective, 'size': size, 'accum': accum}
    # by search: what is not given may be anything that makes the product right; accumulation only if it must
    sizes = [size] if size else range(1, 101)
    accums = [accum] if accum else ([1] if size is None or effective is None else range(1, 101))
    fits = [(s, a) for s in sizes for a in accums if effective in (None, s * a * world)]
    if size is None and effective is None:
        refusal(lambda: batch(**given), '--effective_batch_size', '--batch_size')
    elif not fits:
        refusal(lambda: batch(**given), f'--effective_batch_size {effective}')
    else:
        args = batch(**given)
        assert fits == [(args.batch_size, args.accum_iter)]
        assert args.batch_size * args.accum_iter * world == args.effective_batch_size
        assert effective in (None, args.effective_batch_size)


@pytest.mark.parametrize('world,effective,size', [(1, 128, None), (2, 48, None), (4, None, 32), (2, 256, 64)])
def test_base_learning_rate_is_for_256_clips(world, effective, size):
    args = batch(world, lr=None, blr=0.01, effective=effective, size=size)
    assert math.isclose(args.lr, 0.01 * args.effective_batch_size / 256)
    assert batch(world, lr=0.3, effective=effective, size=size).lr == 0.3       # an absolute one is left alone


@pytest.mark.parametrize('stage', STAGES)
def test_every_option_is_explained(stage, capsys):
    with pytest.raises(SystemExit) as end:
        parse_args(stage, ['--help'])
    shown = capsys.readouterr().out
    assert end.value.code == 0
    for key, action in options_of(stage).items():
        assert f'--{key}' in shown and action.help


def test_retrieval_takes_one_source_of_features_and_needs_no_recipe():
    enough = ['--data_path', 'd/clips.npz']
    for sources in ([], ['--random_encoder', '--features', 'f.npz'], ['--finetune', 'c.pth', '--random_encoder']):
        refusal(lambda sources=sources: parse_args('retrieval', [*enough, *sources]), '--finetune', '--features')
    assert parse_args('retrieval', [*enough, '--finetune', 'c.pth']).batch_size == 128
    args = parse_args('retrieval', ['--features', 'x/features.npz'])        # and no data
    assert (args.benchmark, args.stream, args.seed, args.output_dir) == (None,) * 4, 'the file tells'
    args = parse_args('retrieval', ['--features', 'x/features.npz', '--stream', 'joint', '--seed', '0'])
    assert (args.stream, args.seed) == ('joint', 0)
