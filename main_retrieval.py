"""Recognition without training: nearest neighbours, or one exemplar a class, in a frozen encoder's features.

python main_retrieval.py --config config/retrieval.yaml config/nwucla_xview.yaml --finetune CHECKPOINT
python main_retrieval.py --benchmark nwucla_xview --features runs/nwucla_xview/retrieval/features.npz --k 5
"""

import argparse
import logging
import time
from pathlib import Path

import torch
from sklearn.metrics import accuracy_score

from engine_finetune import predict, start_encoder
from engine_retrieval import check_protocol, knn, one_shot
from feeder.augment import ClipMaker
from feeder.dataset import EvalBatches, SkeletonDataset
from feeder.loader import make_loader
from model_transformer import SkeletonEncoder
from util.args import parse_args, settings_for
from util.attention import choose_kernel, shape_of
from util.dist import World
from util.errors import UserError, run_main
from util.files import check_writable, write_json
from util.log import code_version, describe_machine
from util.loop import Precision, compile_blocks, started
from util.saved import Features, read_features, write_features, write_projector

log = logging.getLogger(__name__)


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
    precision, clips_of = Precision(args.precision, world.device), ClipMaker(args.num_frames, args.stream, args.seed)
    splits = {}
    for split, dataset in datasets.items():
        choose_kernel(args.attention, world, precision.dtype, shape_of(args, dataset.num_bodies), backward=False)
        batches = EvalBatches(dataset.rows, args.batch_size, world.rank, world.size)
        loader = make_loader(dataset, batches, args.num_workers, world.device, args.data_on_device)
        found = predict(model, loader, clips_of, precision, world, len(dataset))
        splits[split] = Features(found['features'], names[split], dataset.label.numpy())
    return splits, facts | {'precision': precision.name, 'num_classes': num_classes}


def retrieve(args: argparse.Namespace, world: World) -> dict:
    """Features from the encoder or a file, the protocol on them, and what result.json says."""
    began = time.perf_counter()
    check_writable(args.output_dir)
    if args.features:
        splits, told = read_features(args.features)
        facts = {'method': told.get('method', 'features'), 'pretraining': None,
                 'num_classes': 1 + int(max(held.label.max() for held in splits.values()))}
    else:
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
            write_features(Path(args.output_dir) / 'features.npz', splits, benchmark=args.benchmark,
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
