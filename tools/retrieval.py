"""Recognition without training: nearest neighbours, or one exemplar a class, in a frozen encoder's features.

python tools/retrieval.py --config config/retrieval.yaml config/nwucla_xview.yaml --finetune CHECKPOINT
python tools/retrieval.py --features runs/nwucla_xview/retrieval/features.npz --k 5 --output_dir runs/nwucla_xview/k_5
"""

import argparse
import logging
import sys
import time
from pathlib import Path

import torch
from sklearn.metrics import accuracy_score

if __name__ == '__main__':     # run as a file, from any working directory
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from engine_finetune import predict, start_encoder
from feeder.augment import ClipMaker
from feeder.dataset import EvalBatches, SkeletonDataset
from feeder.layouts import find_layout
from feeder.loader import BatchLoader
from model_transformer import SkeletonEncoder
from tools.neighbours import check_protocol, knn, one_shot
from util.attention import choose_kernel, shape_of
from util.config import parse_args, settings_for
from util.dist import World
from util.errors import UserError, run_main
from util.files import check_writable, write_json
from util.log import code_version, describe_machine
from util.options import NOT_THE_RECIPE, defaults_of
from util.precision import Precision, compile_blocks
from util.predictions import Features, read_features, write_features, write_projector
from util.results import STREAMS
from util.trainer import started

log = logging.getLogger(__name__)
RECIPE = defaults_of('retrieval').keys() - NOT_THE_RECIPE       # of the encoder and its clips


def extract(args: argparse.Namespace, world: World) -> tuple[dict[str, Features], dict]:
    """Features of both splits, and what result.json says of the encoder they come from."""
    datasets = {split: SkeletonDataset(args.data_path, split, args.num_joints) for split in ('train', 'test')}
    num_classes = datasets['train'].num_classes
    if datasets['test'].num_classes != num_classes:
        raise UserError(f'{args.data_path}: y_train has {num_classes} classes, y_test {datasets["test"].num_classes}; '
                        'write the file again')
    check_protocol({split: dataset.label.numpy() for split, dataset in datasets.items()}, num_classes, args.protocol,
                   args.k, args.novel_every)
    names = {split: dataset.names for split, dataset in datasets.items()}
    torch.manual_seed(args.seed)
    model = SkeletonEncoder(**settings_for(SkeletonEncoder, args)).to(world.device)
    facts = start_encoder(model, args)
    compile_blocks(model, args.compile, world.device)
    precision = Precision(args.precision, world.device)
    clips_of = ClipMaker(args.num_frames, args.stream, args.seed, layout=find_layout(args.layout, args.num_joints))
    splits = {}
    for split, dataset in datasets.items():
        choose_kernel(args.attention, world, precision.dtype, shape_of(args, dataset.num_bodies), backward=False)
        batches = EvalBatches(dataset.rows, args.batch_size, world.rank, world.size)
        loader = BatchLoader(dataset, batches, world.device, args.num_workers, args.data_on_device)
        found = predict(model, loader, clips_of, precision, world, len(dataset))
        splits[split] = Features(found['features'], names[split], dataset.label.numpy())
    return splits, facts | {'precision': precision.name, 'num_classes': num_classes}


def settle(args: argparse.Namespace, told: dict) -> None:
    """Fills in what a features file tells of itself; what it does not tell, from its name and the defaults.

    Raises UserError for an option that contradicts the file, for a stream or name in it that cannot be, and for an
    output folder that holds the file itself, with the result of the run that wrote it.
    """
    defaults = {'benchmark': Path(args.data_path or args.features).stem, 'stream': 'joint', 'seed': 0}
    for name, default in defaults.items():
        given, written = getattr(args, name), told.get(name)
        if None not in (given, written) and given != written:
            raise UserError(f'--{name} {given}: {args.features} holds features of {name} {written}; leave the option '
                            'out, or give other features')
        setattr(args, name, next(value for value in (given, written, default) if value is not None))
    if args.stream not in STREAMS:
        raise UserError(f'{args.features}: stream {args.stream!r:.80} is none of {", ".join(STREAMS)}; save it again')
    for name in RECIPE & told.get('config', {}).keys():
        setattr(args, name, told['config'][name])
    if args.output_dir is None:
        if args.benchmark in ('', '..') or Path(args.benchmark).name != args.benchmark:
            raise UserError(f'{args.features}: benchmark {args.benchmark!r:.80} is no name for a folder; give '
                            '--output_dir')
        args.output_dir = str(Path('runs') / args.benchmark / 'retrieval')
    if Path(args.output_dir).resolve() == Path(args.features).resolve().parent:
        raise UserError(f'{args.output_dir}: holds {args.features} and the result of the run that wrote it; give '
                        'another --output_dir')
    check_writable(args.output_dir)


def retrieve(args: argparse.Namespace, world: World) -> dict:
    """Features from the encoder or a file, the protocol on them, and what result.json says."""
    began = time.perf_counter()
    if args.features:
        splits, told = read_features(args.features)
        settle(args, told)
        facts = {'method': told.get('method', 'features'), 'pretraining': told.get('pretraining'),
                 'num_classes': 1 + int(max(held.label.max() for held in splits.values()))}
    else:
        check_writable(args.output_dir)
        splits, facts = extract(args, world)
    num_classes = facts.pop('num_classes')
    if args.protocol == 'knn':
        label, found = splits['test'].label, knn(splits, args.k, args.metric)
    else:
        found, asked = one_shot(splits, num_classes, args.novel_every, args.metric)
        label = asked.label
    scores = {'top1': 100 * accuracy_score(label, found), 'samples': len(label), 'metric': args.metric,
              'k': args.k if args.protocol == 'knn' else 1}
    log.info('%s: top-1 %.2f %%, %d samples', args.protocol, scores['top1'], scores['samples'])
    result = {'benchmark': args.benchmark, 'protocol': 'retrieval' if args.protocol == 'knn' else 'oneshot', **facts,
              'stream': args.stream, 'labels': None, 'seed': args.seed, 'last': scores, 'best': None,
              'wall_seconds': time.perf_counter() - began, 'machine': describe_machine(world.device),
              'processes': world.size, 'code_version': code_version(), 'config': vars(args)}
    if world.is_main:
        if not args.features:
            run = {'seed': args.seed, 'pretraining': facts['pretraining'],
                   'config': {name: getattr(args, name) for name in RECIPE}}
            write_features(Path(args.output_dir) / 'features.npz', splits, run, benchmark=args.benchmark,
                           stream=args.stream, method=facts['method'])
        if args.projector:
            write_projector(args.output_dir, splits['test'], args.benchmark, args.projector, args.seed)
        write_json(Path(args.output_dir) / 'result.json', result)
    return result


def main(argv: list[str] | None = None) -> int:
    args = parse_args('retrieval', argv)
    with started(args) as world:
        retrieve(args, world)
    return 0


if __name__ == '__main__':
    run_main(main)
