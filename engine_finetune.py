"""Classification, fine-tuning and linear probe alike: one epoch, its evaluation, and the run around them."""

import argparse
import logging
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader

from feeder.augment import ClipMaker
from feeder.classes import read_class_names
from feeder.dataset import EvalBatches, SkeletonDataset
from feeder.layouts import check_same_joints, checkpoint_layout, find_layout, match_joints
from feeder.loader import make_loader, read_batches
from feeder.subset import draw_labelled, without_novel
from model_transformer import ActionTransformer, SkeletonEncoder
from util import checkpoint
from util.attention import choose_kernel, shape_of
from util.checkpoint import LAST
from util.dist import World
from util.errors import UserError
from util.files import atomic_write, check_writable, write_json
from util.metrics import count_correct, summarise
from util.precision import Precision
from util.predictions import Features, Scores, write_features, write_projector, write_scores
from util.trainer import Trainer

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
            features = model.features(clips_of.eval_view(batch))
        counts += count_correct(model.head(features.float()), batch.label)      # bf16 logits would tie
    return summarise(world.sum(counts))


@torch.inference_mode()
def predict(model: SkeletonEncoder, loader: DataLoader, clips_of: ClipMaker, precision: Precision, world: World,
            num_clips: int) -> dict[str, np.ndarray]:
    """What the model makes of the loader's clips, by their rows: 'features' (num_clips, D), averaged over bodies,
    segments and joints, and of a classifier 'scores' (num_clips, classes), probabilities; float32, on every process.
    """
    model.eval()
    widths = {'features': model.dim_feat}
    if isinstance(model, ActionTransformer):
        widths['scores'] = model.num_classes
    # Before the first batch: of few clips a process may have none, and still takes part in the sums.
    found = {name: torch.zeros(num_clips, width, device=world.device) for name, width in widths.items()}
    for batch in read_batches(loader, world.device):
        with precision.autocast():
            features = model.features(clips_of.eval_view(batch))
        features = features.float()
        found['features'][batch.index] = features.mean(dim=(1, 2, 3))
        if 'scores' in found:
            found['scores'][batch.index] = model.head(features).softmax(dim=1)
    return {name: world.sum(values).cpu().numpy() for name, values in found.items()}


def open_splits(args: argparse.Namespace) -> tuple[SkeletonDataset, SkeletonDataset]:
    """Training and test split, without what --novel_every and --label_fraction leave out; fills in --num_classes.

    Raises UserError when the splits contradict it or each other, or nothing is left to train on.
    """
    train, test = (SkeletonDataset(args.data_path, split, args.num_joints) for split in ('train', 'test'))
    if train.num_classes != test.num_classes or train.num_classes < 2:
        raise UserError(f'{train.path}: y_train has {train.num_classes} classes, y_test {test.num_classes}; write the '
                        'file again, with the same ones, two or more, in both')
    if args.num_classes is None:
        args.num_classes = train.num_classes
    for split in (train, test):
        if split.num_classes != args.num_classes:
            raise UserError(f'{split.path}: y_{split.split} has {split.num_classes} classes, --num_classes says '
                            f'{args.num_classes}; leave it out or give another --data_path')
    if train.num_bodies != test.num_bodies:
        raise UserError(f'{train.path}: x_train has {train.num_bodies} bodies, x_test {test.num_bodies}; write the '
                        'file again')
    for split in (train, test):
        split.rows = without_novel(split.label.numpy(), args.num_classes, args.novel_every)
    if not len(train.rows):
        raise UserError(f'{train.path}: --novel_every {args.novel_every} leaves no training clip; give another')
    if args.label_fraction < 1:
        drawn = draw_labelled(train.label.numpy()[train.rows], args.label_fraction, args.seed,
                              args.label_draw == 'balanced')
        train.rows = train.rows[drawn]
    return train, test


def start_encoder(model: SkeletonEncoder, args: argparse.Namespace) -> dict:
    """Loads --finetune's encoder if there is one; returns what result.json says of where the encoder came from."""
    if args.finetune is None or getattr(args, 'eval', False):
        return {'method': 'random encoder' if hasattr(args, 'random_encoder') else 'scratch', 'pretraining': None}
    state = checkpoint.load(args.finetune)
    weights, given = state['model'], checkpoint_layout(state, args.finetune)
    own = find_layout(args.layout, args.num_joints)
    if given and own and given.joints != own.joints:
        weights = checkpoint.map_joints(weights, model, match_joints(given, own, args.finetune))
    checkpoint.load_encoder(model, weights, args.finetune)
    settings, method = state['args'], state.get('method', 'authors')
    if other := checkpoint.differences(settings, args, ('num_heads',)):
        raise UserError(f'{args.finetune}: pre-trained with {other}; give the same')
    if other := checkpoint.differences(settings, args, ('stream', 'num_frames')):
        log.warning('%s: pre-trained with %s', args.finetune, other)
    if 'head.fc1.weight' in state['model']:     # fine-tuned: its encoder has seen labels
        return {'method': f'{method} + supervised', 'pretraining': state.get('pretraining')}
    told = {name: settings.get(name) for name in ('target', 'motion_aware_tau', 'mask_ratio', 'seed', 'benchmark')}
    if odd := [name for name, value in told.items() if not isinstance(value, str | int | float | None)]:
        raise UserError(f'{args.finetune}: its settings are none of a pre-training ({odd[0]}); take another checkpoint')
    return {'method': method, 'pretraining': told | {'path': args.finetune, 'epoch': state.get('epoch')}}


def shared_statistics(args: argparse.Namespace, world: World, model: ActionTransformer) -> ActionTransformer:
    """With --sync_batchnorm, the model with its BatchNorm (the head's, there is no other) over all processes.

    Weights and their names stay the same. UserError on CPUs, where PyTorch has no such layer.
    """
    if not args.sync_batchnorm:
        return model
    if world.size == 1:
        log.info('--sync_batchnorm: one process shares with nobody; nothing changes')
        return model
    if world.device.type != 'cuda':
        raise UserError('--sync_batchnorm: processes on CPUs cannot share statistics, GPUs can; leave it out')
    return nn.SyncBatchNorm.convert_sync_batchnorm(model)


def run_classifier(args: argparse.Namespace, world: World, model: ActionTransformer,
                   optimizer: torch.optim.Optimizer, splits: tuple[SkeletonDataset, SkeletonDataset],
                   facts: dict) -> dict:
    """Trains and evaluates `model`, or with --eval only evaluates it; returns what the result file says."""
    model = shared_statistics(args, world, model)
    if args.batch_size < 2 and not args.eval and not (args.sync_batchnorm and world.size > 1):
        raise UserError('--batch_size 1: the head normalises over a micro-batch (BatchNorm); give a process 2 clips or '
                        'more at once')
    train, test = splits
    check_writable(args.output_dir)
    check_writable(args.log_dir)
    classes = read_class_names(args.data_path, args.num_classes)
    if args.save_scores or args.save_features or args.projector:
        _ = test.names          # raises now what it would at the end
        if args.eval:
            _keep_off_others(args)
    if args.label_fraction < 1:
        _ = train.names
    batches = EvalBatches(test.rows, args.batch_size, world.rank, world.size)
    loader = make_loader(test, batches, args.num_workers, world.device, args.data_on_device)
    if args.eval:
        return evaluate_checkpoint(args, world, model, test, loader, classes)
    trainer = Trainer(args, world, model, optimizer, train, facts | {'labels': labels_of(args, train),
                                                                       'test_clips': len(test.rows)})
    pictures = None
    if args.picture_epochs:     # not imported at the top: matplotlib takes a second to load, and few runs draw
        from tools.drawing.pictures import picture_maker
        pictures = picture_maker(trainer, test if len(test.rows) else train)
    if args.resume:
        trainer.resume(args.resume)
    for split in splits:
        split.check_clips(world.rank, world.size)
    trainer.check_folder()
    if world.is_main and args.label_fraction < 1:
        with atomic_write(Path(args.output_dir) / 'labelled.txt') as partial:
            partial.write_text(''.join(f'{name}\n' for name in train.names[train.rows]))
    if not len(test.rows):
        log.info('%s: no test clip of the classes that train; nothing is evaluated', test.path)
    scored = (lambda: evaluate(model, loader, trainer.clips, trainer.precision, world)) if len(test.rows) else None
    return trainer.fit(train_one_epoch, scored,
                       lambda: keep_predictions(args, world, model, test, loader, trainer.precision, classes), pictures)


def _keep_off_others(args: argparse.Namespace) -> None:
    """UserError where predictions of --resume's checkpoint would take the place of another finished run's."""
    folder = Path(args.output_dir)
    own = args.resume == 'auto' or Path(args.resume).resolve().parent == folder.resolve()
    if not own and (folder / 'result.json').exists():
        raise UserError(f'{folder}: holds the result of another run than {args.resume}, whose scores would replace '
                        'those of it; give another --output_dir')


def labels_of(args: argparse.Namespace, train: SkeletonDataset) -> dict | None:
    """What result.json says where only a share of the labels is used."""
    if args.label_fraction == 1:
        return None
    return {'fraction': args.label_fraction, 'clips': len(train.rows), 'draw': args.label_draw}


def keep_predictions(args: argparse.Namespace, world: World, model: ActionTransformer, test: SkeletonDataset,
                     loader: DataLoader, precision: Precision, classes: list[str] | None) -> None:
    """Writes scores.npz, features.npz and the projector's files of the test clips, those of them that are wanted."""
    if not (args.save_scores or args.save_features or args.projector) or not len(test.rows):
        return
    clips_of = ClipMaker(args.num_frames, args.stream, args.seed,
                         layout=find_layout(args.layout, args.num_joints))
    found = predict(model, loader, clips_of, precision, world, len(test))
    if not world.is_main:
        return
    folder, rows = Path(args.output_dir), test.rows
    name, label = test.names[rows], test.label.numpy()[rows]
    if args.save_scores:
        write_scores(Scores(name, label, found['scores'][rows], args.benchmark, args.stream, folder / 'scores.npz',
                            None if classes is None else np.array(classes)))
    features = Features(found['features'][rows], name, label)
    if args.save_features:
        write_features(folder / 'features.npz', {'test': features}, benchmark=args.benchmark, stream=args.stream)
    if args.projector:
        write_projector(args.log_dir, features, args.benchmark, args.projector, args.seed, classes)


def evaluate_checkpoint(args: argparse.Namespace, world: World, model: ActionTransformer, test: SkeletonDataset,
                        loader: DataLoader, classes: list[str] | None) -> dict:
    """The scores of --resume's checkpoint, logged and written to eval.json."""
    if not len(test.rows):
        raise UserError(f'{test.path}: --novel_every {args.novel_every} leaves no test clip; give another')
    path = Path(args.output_dir) / LAST if args.resume == 'auto' else args.resume
    state = checkpoint.load(path)
    checkpoint.load_model(model, state['model'], path, resize=False)
    if other := checkpoint.differences(state['args'], args, ('num_heads', 'stream', 'num_frames')):
        raise UserError(f'{path}: trained with {other}; give the same')
    layout = find_layout(args.layout, args.num_joints)
    check_same_joints(checkpoint_layout(state, path), layout, path)
    clips_of = ClipMaker(args.num_frames, args.stream, args.seed, layout=layout)
    precision = Precision(args.precision, world.device)
    choose_kernel(args.attention, world, precision.dtype, shape_of(args, test.num_bodies), backward=False)
    scores = evaluate(model, loader, clips_of, precision, world)
    log.info('%s: top-1 %.2f %%, top-5 %.2f %%, loss %.4f, %d samples', path, scores['top1'], scores['top5'],
             scores['loss'], scores['samples'])
    if world.is_main:
        write_json(Path(args.output_dir) / 'eval.json', {'checkpoint': str(path), **scores, 'config': vars(args)})
    keep_predictions(args, world, model, test, loader, precision, classes)
    return scores
