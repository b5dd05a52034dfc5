"""Classification, fine-tuning and linear probe alike: one epoch, its evaluation, and the run around them."""

import argparse
import logging
from pathlib import Path

import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader

from feeder.augment import ClipMaker
from feeder.dataset import EvalBatches, SkeletonDataset
from feeder.loader import make_loader, read_batches
from model_transformer import ActionTransformer
from util import checkpoint
from util.attention import choose_kernel, shape_of
from util.dist import World
from util.errors import UserError
from util.files import write_json
from util.loop import LAST, Precision, Trainer
from util.metrics import count_correct, summarise

log = logging.getLogger(__name__)


def train_one_epoch(trainer: Trainer, epoch: int) -> None:
    """Trains `trainer.model`, an ActionTransformer (what of it is frozen stays so), to the end of this epoch."""
    args, model, clips_of = trainer.args, trainer.model, trainer.clips
    model.train()
    for step, batches in trainer.steps(epoch):
        for micro, batch in enumerate(batches):
            clips = clips_of.train_view(batch, epoch, step)                         # (N, C, T, V, M)
            with trainer.synced_at_last(micro):
                with trainer.precision.autocast():
                    logits = model(clips)
                loss = F.cross_entropy(logits.float(), batch.label, label_smoothing=args.smoothing)
                trainer.backward(loss)
        trainer.update()


@torch.inference_mode()
def evaluate(model: ActionTransformer, loader: DataLoader, clips_of: ClipMaker, precision: Precision,
             world: World) -> dict[str, float]:
    """top1 and top5 in percent, mean loss and number of samples over the whole split, every sample counted once."""
    model.eval()
    counts = torch.zeros(4, dtype=torch.float64, device=world.device)
    for batch in read_batches(loader, world.device):
        with precision.autocast():
            logits = model(clips_of.eval_view(batch))
        counts += count_correct(logits.float(), batch.label)
    return summarise(world.sum(counts))


def open_splits(args: argparse.Namespace) -> tuple[SkeletonDataset, SkeletonDataset]:
    """Training and test split; fills in --num_classes. Raises UserError when they contradict it or each other."""
    train, test = (SkeletonDataset(args.data_path, split, args.num_joints) for split in ('train', 'test'))
    if args.num_classes is None:
        args.num_classes = train.num_classes
    for split in (train, test):
        if split.num_classes != args.num_classes:
            raise UserError(f'{split.path}: y_{split.split} has {split.num_classes} classes, --num_classes says '
                            f'{args.num_classes}')
    if train.num_bodies != test.num_bodies:
        raise UserError(f'{train.path}: x_train has {train.num_bodies} bodies, x_test {test.num_bodies}')
    return train, test


def start_encoder(model: ActionTransformer, args: argparse.Namespace) -> dict:
    """Loads --finetune's encoder if there is one; returns what result.json says of where the encoder came from."""
    if args.finetune is None or args.eval:
        return {'method': 'random encoder' if model.frozen else 'scratch', 'pretraining': None}
    state = checkpoint.load(args.finetune)
    checkpoint.load_encoder(model, state['model'], args.finetune)
    settings = state['args']
    if other := checkpoint.differences(settings, args, ('num_heads',)):
        raise UserError(f'{args.finetune}: pre-trained with {other}; give the same')
    if other := checkpoint.differences(settings, args, ('stream', 'num_frames')):
        log.warning('%s: pre-trained with %s', args.finetune, other)
    told = {name: settings.get(name) for name in ('target', 'motion_aware_tau', 'mask_ratio', 'seed', 'benchmark')}
    return {'method': state.get('method', 'authors'),
            'pretraining': told | {'path': args.finetune, 'epoch': state.get('epoch')}}


def run_classifier(args: argparse.Namespace, world: World, model: ActionTransformer,
                   optimizer: torch.optim.Optimizer, splits: tuple[SkeletonDataset, SkeletonDataset],
                   facts: dict) -> dict:
    """Trains and evaluates `model`, or with --eval only evaluates it; returns what the result file says."""
    if args.batch_size < 2 and not args.eval:
        raise UserError('--batch_size 1: the head normalises over a micro-batch (BatchNorm); give a process 2 clips or '
                        'more at once')
    train, test = splits
    batches = EvalBatches(len(test), args.batch_size, world.rank, world.size)
    loader = make_loader(test, batches, args.num_workers, world.device, args.data_on_device)
    if args.eval:
        return evaluate_checkpoint(args, world, model, loader)
    trainer = Trainer(args, world, model, optimizer, train, facts)
    if args.resume:
        trainer.resume(args.resume)
    return trainer.fit(train_one_epoch, lambda: evaluate(model, loader, trainer.clips, trainer.precision, world))


def evaluate_checkpoint(args: argparse.Namespace, world: World, model: ActionTransformer, loader: DataLoader) -> dict:
    """The scores of --resume's checkpoint, logged and written to eval.json."""
    path = Path(args.output_dir) / LAST if args.resume == 'auto' else args.resume
    state = checkpoint.load(path)
    checkpoint.load_model(model, state['model'], path, resize=False)
    if other := checkpoint.differences(state['args'], args, ('num_heads', 'stream', 'num_frames')):
        raise UserError(f'{path}: trained with {other}; give the same')
    clips_of, precision = ClipMaker(args.num_frames, args.stream, args.seed), Precision(args.precision, world.device)
    choose_kernel(args.attention, world, precision.dtype, shape_of(args, loader.dataset.num_bodies), backward=False)
    scores = evaluate(model, loader, clips_of, precision, world)
    log.info('%s: top-1 %.2f %%, top-5 %.2f %%, loss %.4f, %d samples', path, scores['top1'], scores['top5'],
             scores['loss'], scores['samples'])
    if world.is_main:
        write_json(Path(args.output_dir) / 'eval.json', {'checkpoint': str(path), **scores, 'config': vars(args)})
    return scores
