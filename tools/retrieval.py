"""Recognition without training: nearest neighbours, or one exemplar per class, in the features of a frozen encoder.

python tools/retrieval.py --config config/retrieval.yaml config/nwucla_xview.yaml --finetune CHECKPOINT
python tools/retrieval.py --features runs/nwucla_xview/retrieval/features.npz --k 5 --output_dir runs/nwucla_xview/k_5
"""

import argparse
import logging
import sys
import time
from pathlib import Path

import numpy as np
import torch
from sklearn.neighbors import KNeighborsClassifier

if __name__ == '__main__':     # run as a file, from any working directory
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from engine_finetune import predict
from feeder.augment import ClipMaker
from feeder.dataset import EvalBatches, SkeletonDataset
from feeder.loader import BatchLoader
from feeder.subset import novel_classes
from model_transformer import SkeletonEncoder
from util.attention import select_attention
from util.capture import GraphRecorder
from util.config import parse_args
from util.dist import World
from util.errors import UserError, run_main
from util.files import check_writable
from util.log import code_version, describe_machine
from util.options import is_recipe, options_of_stage
from util.precision import Precision, compile_model
from util.predictions import Features, read_features, write_features, write_projector
from util.results import STREAMS, Result
from util.trainer import start_run
from util.weights import create_model, load_pretrained

log = logging.getLogger(__name__)


def extract_features(args: argparse.Namespace, world: World) -> tuple[dict[str, Features], dict]:
    """Compute the features of both splits; returns them and the facts about the encoder for the result."""
    datasets = {split: SkeletonDataset(args.data_path, split, args.num_joints) for split in ('train', 'test')}
    classes = {split: dataset.num_classes for split, dataset in datasets.items()}
    if classes['train'] != classes['test']:
        raise UserError(f'{args.data_path}: y_train has {classes["train"]} classes, but y_test has {classes["test"]}; '
                        'regenerate the file')
    check_protocol(args, len(datasets['train']), classes['train'])
    args.keypoints = datasets['train'].keypoints
    names = {split: dataset.names for split, dataset in datasets.items()}
    torch.manual_seed(args.seed)
    model = create_model(SkeletonEncoder, vars(args)).to(world.device)
    pretrained = load_pretrained(model, args)
    select_attention(model, args.attention, world.device)
    compiled = compile_model(model, args.compile, world.device)
    graphs = GraphRecorder(world.device, compiled and world.device.type == 'cuda')
    precision, clip_maker, splits = Precision(args.precision, world.device), ClipMaker.from_args(args), {}
    for split, dataset in datasets.items():
        batches = EvalBatches(dataset.rows, args.batch_size, world.rank, world.size)
        loader = BatchLoader(dataset, batches, world.device, args.num_workers, args.data_on_device)
        outputs = predict(model, loader, clip_maker, precision, world, len(dataset), graphs)
        splits[split] = Features(outputs['features'], names[split], dataset.label.numpy())
    return splits, pretrained | {'precision': precision.name, 'classes': classes['train']}


def use_features_file(args: argparse.Namespace) -> tuple[dict[str, Features], dict]:
    """Read the features of --features; its metadata set benchmark, stream, seed and recipe in `args`.

    Raises UserError if options contradict the file, or if the output folder is the folder of the file.
    """
    splits, record = read_features(args.features)
    defaults = {'benchmark': Path(args.data_path or args.features).stem, 'stream': 'joint', 'seed': 0}
    for name, default in defaults.items():
        option, recorded = getattr(args, name), record.get(name)
        if None not in (option, recorded) and option != recorded:
            raise UserError(f'--{name} {option}: the features in {args.features} have {name} {recorded}; omit the '
                            'option, or use other features')
        setattr(args, name, next(value for value in (option, recorded, default) if value is not None))
    if args.stream not in STREAMS:
        raise UserError(f'{args.features}: unknown stream {args.stream!r:.80}; regenerate the file')
    for name in recipe_names() & record.get('config', {}).keys():
        setattr(args, name, record['config'][name])
    if args.output_dir is None:
        if Path(args.benchmark).name != args.benchmark:
            raise UserError(f'{args.features}: benchmark {args.benchmark!r:.80} cannot be the name of a folder; set '
                            '--output_dir')
        args.output_dir = str(Path('runs') / args.benchmark / 'retrieval')
    if Path(args.output_dir).resolve() == Path(args.features).resolve().parent:
        raise UserError(f'{args.output_dir}: holds {args.features} and the result of its run; choose another '
                        '--output_dir')
    classes = 1 + int(max(features.label.max() for features in splits.values()))
    check_protocol(args, len(splits['train'].label), classes)
    return splits, {'method': record.get('method', 'features'), 'pretraining': record.get('pretraining'),
                    'classes': classes}


def recipe_names() -> set[str]:
    """Return the names of the settings of the encoder and its clips."""
    return {name for name in options_of_stage('retrieval') if is_recipe(name)}


def check_protocol(args: argparse.Namespace, train_clips: int, classes: int) -> None:
    """Raise UserError if there are too few clips or classes for the protocol."""
    if args.protocol == 'knn' and args.k > train_clips:
        raise UserError(f'--k {args.k} exceeds the {train_clips} training clips; choose a smaller number')
    if args.protocol == 'oneshot' and (not args.novel_every or len(novel_classes(classes, args.novel_every)) < 2):
        raise UserError(f'--novel_every {args.novel_every}: fewer than 2 of {classes} classes are novel; choose a '
                        'smaller number')


def knn(train: Features, test: Features, k: int, metric: str) -> np.ndarray:
    """Return labels (N,) of the test clips: the majority of the k nearest training clips, in a tie the lowest label."""
    classifier = KNeighborsClassifier(k, metric=metric, algorithm='brute').fit(train.features, train.label)
    return classifier.predict(test.features)


def select_exemplars(splits: dict[str, Features], novel: np.ndarray, published: bool) -> Features:
    """Select one exemplar per novel class; the remaining clips of these classes are recognised.

    `published` selects the exemplars of NTU RGB+D 120 (S001C003P008R001Axxx, from A061 on S018C003P008R001Axxx) if they
    exist; otherwise the exemplar is the first clip by name of the training split, or else of the test split. Raises
    UserError for a class without clips.
    """
    rows = []
    for novel_class in novel:
        name = f'S{1 if novel_class < 60 else 18:03}C003P008R001A{novel_class + 1:03}' if published else None
        candidates = [(features.name[i] != name, split == 'test', features.name[i], split, i)
                      for split, features in splits.items() for i in np.flatnonzero(features.label == novel_class)]
        if not candidates:
            raise UserError(f'class {novel_class} (numbered from 0) is novel but has no clips; change --novel_every')
        rows.append(min(candidates)[-2:])
    return Features(*(np.array([getattr(splits[split], field)[i] for split, i in rows]) for field in Features._fields))


def one_shot(splits: dict[str, Features], classes: int, every: int, metric: str) -> tuple[np.ndarray, Features]:
    """Predict the novel classes' test clips from their nearest exemplars; returns labels and these clips.

    This is the one-shot protocol of NTU RGB+D 120 on NTU120_OneShot.npz, and its analogue on other data: every
    `every`-th class is novel, starting with the first.
    """
    novel, test = novel_classes(classes, every), splits['test']
    exemplars = select_exemplars(splits, novel, published=classes == 120)
    keep = np.isin(test.label, novel) & ~np.isin(test.name, exemplars.name)
    if not keep.any():
        raise UserError(f'--novel_every {every}: the novel classes have no test clips other than the exemplars; '
                        'choose a different number')
    queries = Features(*(field[keep] for field in test))
    return knn(exemplars, queries, 1, metric), queries


def retrieve(args: argparse.Namespace, world: World) -> Result:
    """Compute or read features, apply the protocol, and write the result; returns it."""
    start = time.perf_counter()
    if args.features:
        splits, record = use_features_file(args)
        check_writable(args.output_dir)
    else:
        check_writable(args.output_dir)
        splits, record = extract_features(args, world)
    if args.protocol == 'knn':
        queries = splits['test']
        predicted = knn(splits['train'], queries, args.k, args.metric)
    else:
        predicted, queries = one_shot(splits, record['classes'], args.novel_every, args.metric)
    scores = {'top1': 100 * float((predicted == queries.label).mean()), 'samples': len(predicted),
              'metric': args.metric, 'k': args.k if args.protocol == 'knn' else 1}
    log.info('%s: top-1 %.2f %%, %d samples', args.protocol, scores['top1'], scores['samples'])
    result = Result(args.benchmark, 'retrieval' if args.protocol == 'knn' else 'oneshot', record['method'], args.stream,
                    args.seed, pretraining=record['pretraining'], classes=record['classes'],
                    precision=record.get('precision'), last=scores, wall_seconds=time.perf_counter() - start,
                    machine=describe_machine(world.device), processes=world.size, code_version=code_version(),
                    config=vars(args))
    if world.is_main:
        if not args.features:
            run = {'seed': args.seed, 'pretraining': record['pretraining'],
                   'config': {name: getattr(args, name) for name in recipe_names()}}
            write_features(Path(args.output_dir) / 'features.npz', splits, run, benchmark=args.benchmark,
                           stream=args.stream, method=record['method'])
        if args.projector:
            write_projector(args.output_dir, splits['test'], args.benchmark, args.projector, args.seed)
        result.write(args.output_dir)
    return result


def main(argv: list[str] | None = None) -> int:
    args = parse_args('retrieval', argv)
    with start_run(args) as world:
        retrieve(args, world)
    return 0


if __name__ == '__main__':
    run_main(main)
