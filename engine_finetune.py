"""Classification, fine-tuning and linear probe alike: one training epoch, evaluation, predictions.

Axis letters as in model_transformer.py.
"""

import logging
from collections.abc import Iterable

import numpy as np
import torch
import torch.nn.functional as F

from feeder.augment import ClipMaker
from feeder.dataset import Batch
from model_transformer import ActionTransformer, SkeletonEncoder
from util.dist import World
from util.metrics import count_correct, summarise
from util.optim import clip_gradients, learning_rate, set_learning_rate
from util.precision import Precision
from util.trainer import Trainer

log = logging.getLogger(__name__)


def train_one_epoch(trainer: Trainer, epoch: int) -> dict[str, float]:
    """Train `trainer.model`, an ActionTransformer, to the end of the epoch; returns the means that main logs."""
    args, model, optimizer, clip_maker = trainer.args, trainer.model, trainer.optimizer, trainer.clips
    frozen = trainer.raw_model.frozen
    model.train()
    for step, batches in trainer.steps(epoch):
        lr = learning_rate(epoch + step / trainer.steps_per_epoch, args.lr, args.min_lr, args.warmup_epochs,
                           args.epochs)
        set_learning_rate(optimizer, lr)
        for micro, batch in enumerate(batches):
            clips = clip_maker.train_view(batch, epoch, step)                       # (N, C, T, V, M)
            with trainer.sync_gradients(micro):
                with trainer.precision.autocast():
                    logits = model(clips, (batch.distinct, batch.inverse) if frozen else None)       # (N, classes)
                loss = F.cross_entropy(logits.float(), batch.label, label_smoothing=args.smoothing)
                loss = loss / args.accum_iter
                loss.backward()
            trainer.loss_sum += loss.detach()       # stays on the device: nothing waits for it
        log_now = trainer.is_log_step(step)
        grad_norm = clip_gradients(model, args.clip_grad, measure=log_now)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if log_now:
            trainer.log_step(epoch, step, {'lr': lr, 'grad_norm': grad_norm.item()})
        trainer.save_if_due(epoch, step)
        trainer.stop_if_requested(epoch, step)
    return trainer.epoch_means(epoch)


@torch.inference_mode()
def evaluate(model: ActionTransformer, batches: Iterable[Batch], clip_maker: ClipMaker, precision: Precision,
             world: World) -> dict[str, float]:
    """Top-1 and top-5 accuracy in percent, mean loss and number of samples of a split; every sample counts once."""
    model.eval()
    world.broadcast_buffers(model)
    counts = torch.zeros(4, dtype=torch.float64, device=world.device)
    for batch in batches:
        with precision.autocast():
            features = model.features(clip_maker.eval_view(batch), (batch.distinct, batch.inverse))
        counts += count_correct(model.head(features.float()), batch.label)      # bf16 logits would tie
    return summarise(world.sum(counts))


@torch.inference_mode()
def predict(model: SkeletonEncoder, batches: Iterable[Batch], clip_maker: ClipMaker, precision: Precision,
            world: World, num_clips: int) -> dict[str, np.ndarray]:
    """Features and class probabilities of clips, in the order of their rows in the file.

    Returns float32 'features' (num_clips, D), averaged over bodies, segments and joints, and, for a classifier,
    'scores' (num_clips, classes); the same in every process.
    """
    model.eval()
    widths = {'features': model.dim_feat}
    if isinstance(model, ActionTransformer):
        widths['scores'] = model.num_classes
    outputs = {name: torch.zeros(num_clips, width, device=world.device) for name, width in widths.items()}
    for batch in batches:
        with precision.autocast():
            features = model.features(clip_maker.eval_view(batch), (batch.distinct, batch.inverse))
        features = features.float()
        outputs['features'][batch.index] = features.mean(dim=(1, 2, 3))
        if 'scores' in outputs:
            outputs['scores'][batch.index] = model.head(features).softmax(dim=1)
    return {name: world.sum(values).cpu().numpy() for name, values in outputs.items()}
