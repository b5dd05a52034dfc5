"""Fine-tune the whole classifier, from a pre-trained encoder (--finetune) or from scratch (without it).

python main_finetune.py --config config/finetune.yaml config/nwucla_xview.yaml --finetune CHECKPOINT
"""

import argparse
import logging
import shlex
from pathlib import Path

import numpy as np
import torch
from torch import nn

from engine_finetune import evaluate, predict, train_one_epoch
from feeder.augment import ClipMaker
from feeder.classes import read_class_names
from feeder.dataset import EvalBatches, SkeletonDataset
from feeder.layouts import check_same_joints, checkpoint_layout
from feeder.loader import BatchLoader
from feeder.subset import open_splits
from main_pretrain import draw_pictures
from model_transformer import ActionTransformer
from util.attention import select_attention
from util.capture import NO_GRAPHS, GraphRecorder
from util.checkpoint import LAST, Checkpoint
from util.config import parse_args, resolve_batch
from util.dist import World
from util.errors import UserError, run_main
from util.files import check_writable, write_json, write_text
from util.log import command_line
from util.optim import adamw
from util.precision import Precision
from util.predictions import Features, Scores, write_features, write_projector, write_scores
from util.resume import resume
from util.trainer import Trainer, finish_run, start_run
from util.weights import create_model, load_checkpoint, load_pretrained, setting_differences

log = logging.getLogger(__name__)


def finetune(args: argparse.Namespace, world: World):
    """Build data, model and optimiser, train all weights, and return the result."""
    resolve_batch(args, world.size)
    train, test = open_splits(args)

    torch.manual_seed(args.seed)
    model = create_model(ActionTransformer, vars(args), protocol='finetune').to(world.device)
    optimizer = adamw(model, betas=(0.9, 0.999), weight_decay=args.weight_decay, layer_decay=args.layer_decay)
    result = train_classifier(args, world, model, optimizer, train, test, protocol='finetune')
    if args.finetune and not args.eval:
        log.info('for the same training from scratch: %s', scratch_command(args))
    return result


def scratch_command(args: argparse.Namespace) -> str | None:
    """Return the command that trains the same encoder from scratch, for comparison, or None in another program.

    It has the settings that suit training from scratch: no layer decay, and the head of two layers.
    """
    parser = argparse.ArgumentParser(allow_abbrev=False, add_help=False)
    for option in ('--finetune', '--layer_decay', '--head', '--output_dir', '--log_dir', '--resume'):
        parser.add_argument(option)
    command = command_line()
    return command and shlex.join(['python', *parser.parse_known_args(shlex.split(command))[1], '--layer_decay', '1',
                                   '--head', 'mlp', '--output_dir', f'{args.output_dir}_scratch'])


def train_classifier(args: argparse.Namespace, world: World, model: ActionTransformer,
                     optimizer: torch.optim.Optimizer, train: SkeletonDataset, test: SkeletonDataset, protocol: str):
    """Train and evaluate a classifier (also called by main_linprobe.py); with --eval, only evaluate a checkpoint."""
    check_batch_norm(args, world)
    pretrained = load_pretrained(model, args)       # method, pretraining
    if args.sync_batchnorm and world.size > 1:
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    if args.save_scores or args.save_features or args.projector:
        _ = test.names      # fails now rather than after training if they are invalid
    test_batches = BatchLoader(test, EvalBatches(test.rows, args.batch_size, world.rank, world.size), world.device,
                               args.num_workers, args.data_on_device)
    if args.eval:
        return evaluate_checkpoint(args, world, model, test, test_batches)

    labels = {'fraction': args.label_fraction, 'clips': len(train.rows), 'draw': args.label_draw} \
        if args.label_fraction < 1 else None
    trainer = Trainer(args, world, model, optimizer, train, protocol=protocol, **pretrained, labels=labels,
                      test_clips=len(test.rows))
    test_batches.stop, test_batches.patience = trainer.loader.stop, args.patience
    resume(trainer)
    for split in (train, test):
        split.check_clips(world.rank, world.size)
    with trainer.running():
        if labels and world.is_main:
            write_text(trainer.output_dir / 'labelled.txt', ''.join(f'{name}\n' for name in train.names[train.rows]))
        for epoch in range(trainer.epoch, args.epochs):
            stats = train_one_epoch(trainer, epoch)
            scores = None
            due = (epoch + 1) % args.eval_epochs == 0 or epoch + 1 == args.epochs
            if due and len(test.rows):      # --novel_every can leave no test clip
                scores = evaluate(model, test_batches, trainer.clips, trainer.precision, world, trainer.graphs)
            trainer.finish_epoch(epoch, stats, scores)      # logs and saves
            trainer.log_pictures(epoch, lambda: draw_pictures(trainer, test if len(test.rows) else train))
            trainer.stop_if_requested(epoch)
        save_predictions(args, world, model, test, test_batches, trainer.precision, trainer.graphs)
        return finish_run(trainer)


def check_batch_norm(args: argparse.Namespace, world: World) -> None:
    """Raise UserError if the batch is too small for the BatchNorm of the head, or it cannot be synchronised."""
    if args.sync_batchnorm and world.size == 1:
        log.info('--sync_batchnorm: has no effect with one process')
    elif args.sync_batchnorm and world.device.type != 'cuda':
        raise UserError('--sync_batchnorm: PyTorch supports synchronized BatchNorm only on GPUs; omit the option')
    if args.batch_size < 2 and not args.eval and not (args.sync_batchnorm and world.size > 1):
        raise UserError('--batch_size 1: the BatchNorm of the head needs at least 2 clips per process; increase '
                        'the batch size')


def evaluate_checkpoint(args: argparse.Namespace, world: World, model: ActionTransformer, test: SkeletonDataset,
                        test_batches) -> dict[str, float]:
    """Evaluate the checkpoint given with --resume; log its scores and write them to eval.json."""
    if not len(test.rows):
        raise UserError(f'{test.path}: --novel_every {args.novel_every} leaves no test clip; choose another value')
    check_writable(args.output_dir)
    folder = Path(args.output_dir)
    path = folder / LAST if args.resume == 'auto' else Path(args.resume)
    saves = args.save_scores or args.save_features or args.projector
    if saves and path.resolve().parent != folder.resolve() and (folder / 'result.json').exists():
        raise UserError(f'{folder}: holds the result of another run, whose predictions would be overwritten; choose '
                        'a different --output_dir')
    checkpoint = Checkpoint.read(path)
    load_checkpoint(model, checkpoint, path)
    if difference := setting_differences(checkpoint.args, args, ('num_heads', 'stream', 'num_frames', 'keypoints')):
        raise UserError(f'{path}: trained with {difference}; use the settings of the checkpoint')
    clip_maker, precision = ClipMaker.from_args(args), Precision(args.precision, world.device)
    select_attention(model, args.attention, world.device)
    check_same_joints(checkpoint_layout(checkpoint, path), clip_maker.layout, path)
    scores = evaluate(model, test_batches, clip_maker, precision, world)
    log.info('%s: top-1 %.2f %%, top-5 %.2f %%, loss %.4f, %d samples', path, scores['top1'], scores['top5'],
             scores['loss'], scores['samples'])
    if world.is_main:
        write_json(folder / 'eval.json', {'checkpoint': str(path), **scores, 'config': vars(args)})
    save_predictions(args, world, model, test, test_batches, precision)
    return scores


def save_predictions(args: argparse.Namespace, world: World, model: ActionTransformer, test: SkeletonDataset,
                     test_batches, precision: Precision, graphs: GraphRecorder = NO_GRAPHS) -> None:
    """Write scores.npz, features.npz and the projector's files for the test clips, if they are requested."""
    if not (args.save_scores or args.save_features or args.projector) or not len(test.rows):
        return
    outputs = predict(model, test_batches, ClipMaker.from_args(args), precision, world, len(test), graphs)
    if not world.is_main:
        return
    folder, rows = Path(args.output_dir), test.rows
    names, labels = test.names[rows], test.label.numpy()[rows]
    class_names = read_class_names(args.data_path, args.num_classes)
    if args.save_scores:
        write_scores(Scores(names, labels, outputs['scores'][rows], args.benchmark, args.stream, folder / 'scores.npz',
                            None if class_names is None else np.array(class_names)))
    features = Features(outputs['features'][rows], names, labels)
    if args.save_features:
        write_features(folder / 'features.npz', {'test': features}, benchmark=args.benchmark, stream=args.stream)
    if args.projector:
        write_projector(args.log_dir, features, args.benchmark, args.projector, args.seed, class_names)


def main(argv: list[str] | None = None) -> int:
    args = parse_args('finetune', argv)
    with start_run(args) as world:
        finetune(args, world)
    return 0


if __name__ == '__main__':
    run_main(main)
