"""One epoch of classification, for fine-tuning and the linear probe: training, evaluation, predictions.

Axis letters as in model_transformer.py.
"""

import logging
from collections.abc import Iterable, Iterator

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from engine_pretrain import update_weights
from feeder.augment import ClipMaker
from feeder.dataset import Batch
from model_transformer import ActionTransformer, SkeletonEncoder
from util.capture import NO_GRAPHS, GraphRecorder, pad_rows
from util.dist import World
from util.optim import learning_rate, set_learning_rate
from util.precision import Precision
from util.trainer import Trainer

log = logging.getLogger(__name__)


def train_one_epoch(trainer: Trainer, epoch: int) -> dict[str, float]:
    """Train `trainer.model`, an ActionTransformer, to the end of the epoch; returns the averages that main logs."""
    args, model, clip_maker, graphs = trainer.args, trainer.model, trainer.clips, trainer.graphs
    backward = graphs.capture(forward_backward, trainer, model)
    update = graphs.capture(update_weights, trainer)
    model.train()
    for step, batches in trainer.steps(epoch):
        lr = learning_rate(epoch + step / trainer.steps_per_epoch, args.lr, args.min_lr, args.warmup_epochs,
                           args.epochs)
        set_learning_rate(trainer.optimizer, lr)
        for batch in batches:
            clips = clip_maker.train_view(batch, epoch, step)                       # (N, C, T, V, M)
            if model.frozen:
                features = encode(model, trainer.precision, graphs, clips, batch)   # (N, M, P, V, D)
                forward_backward(trainer, model.head, features, batch.label)
            else:
                backward(clips, batch.label)
        grad_norm = update()
        if trainer.is_log_step(step):
            trainer.log_step(epoch, step, {'lr': lr, 'grad_norm': grad_norm.item()})
        trainer.save_if_due(epoch, step)
        trainer.stop_if_requested(epoch, step)
    return trainer.epoch_means(epoch)


def forward_backward(trainer: Trainer, model: nn.Module, inputs: torch.Tensor, label: torch.Tensor) -> None:
    """Add the gradients of a micro-batch with labels (N,); `inputs` are clips for a whole model, features for a head.

    The loss stays on the device, so that the host does not synchronize with it.
    """
    with trainer.precision.autocast():
        logits = model(inputs)                                                      # (N, classes)
    loss = F.cross_entropy(logits.float(), label, label_smoothing=trainer.args.smoothing) / trainer.args.accum_iter
    loss.backward()
    trainer.loss_sum += loss.detach()


@torch.no_grad()
def encode(model: SkeletonEncoder, precision: Precision, graphs: GraphRecorder, clips: torch.Tensor,
           batch: Batch) -> torch.Tensor:
    """Encode clips (N, C, T, V, M) into features (N, M, P, V, D); identical bodies are encoded only once.

    The model must be in eval mode. If `graphs` is enabled, the number of bodies is padded to a multiple of 32 to limit
    the number of shapes that are captured.
    """
    distinct = pad_rows(batch.distinct, -(-len(batch.distinct) // 32) * 32) if graphs.enabled else batch.distinct
    return graphs.capture(encode_bodies, model, precision)(clips, distinct, batch.inverse)


def encode_bodies(model: SkeletonEncoder, precision: Precision, clips: torch.Tensor, distinct: torch.Tensor,
                  inverse: torch.Tensor) -> torch.Tensor:
    """Encode clips as `encode` does, from tensors only, so that the work can be captured as a graph."""
    with precision.autocast():
        return model.features(clips, (distinct, inverse))


@torch.no_grad()
def encode_split(model: SkeletonEncoder, batches: Iterable[Batch], clip_maker: ClipMaker, precision: Precision,
                 graphs: GraphRecorder) -> Iterator[tuple[torch.Tensor, Batch]]:
    """Yield the float32 features (N, M, P, V, D) of each batch, and the batch.

    If `graphs` is enabled, the last batch is padded to full size.
    """
    model.eval()
    size = 0
    for batch in batches:
        clips, num_clips = clip_maker.eval_view(batch), len(batch.label)
        size, padded = max(size, num_clips), batch
        if graphs.enabled and num_clips < size:
            clips = pad_rows(clips, size)
            padded = batch._replace(inverse=F.pad(batch.inverse, (0, (size - num_clips) * clips.shape[4])))
        yield encode(model, precision, graphs, clips, padded)[:num_clips].float(), batch


@torch.no_grad()
def evaluate(model: ActionTransformer, batches: Iterable[Batch], clip_maker: ClipMaker, precision: Precision,
             world: World, graphs: GraphRecorder = NO_GRAPHS) -> dict[str, float]:
    """Return top-1 and top-5 accuracy in percent, mean loss and number of samples; every sample counts once."""
    world.broadcast_buffers(model)
    counts = torch.zeros(4, dtype=torch.float64, device=world.device)
    for features, batch in encode_split(model, batches, clip_maker, precision, graphs):
        counts += count_correct(model.head(features), batch.label)      # in fp32: in bf16 some logits would be equal
    return summarise(world.sum(counts))


def count_correct(logits: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
    """Count (B, classes), (B,) -> float64 (4,): samples, top-1 correct, top-5 correct, summed cross-entropy."""
    hit = logits.topk(min(5, logits.shape[1]), dim=1).indices == label[:, None]
    loss = F.cross_entropy(logits.float(), label, reduction='sum')
    return torch.stack([torch.full_like(loss, len(label)), hit[:, 0].sum(), hit.sum(), loss]).double()


def summarise(counts: torch.Tensor) -> dict[str, float]:
    """Convert the sums of `count_correct` to top1 and top5 in percent, mean loss and number of samples."""
    samples, top1, top5, loss = counts.tolist()
    return {'top1': 100 * top1 / samples, 'top5': 100 * top5 / samples, 'loss': loss / samples, 'samples': int(samples)}


@torch.no_grad()
def predict(model: SkeletonEncoder, batches: Iterable[Batch], clip_maker: ClipMaker, precision: Precision,
            world: World, num_clips: int, graphs: GraphRecorder = NO_GRAPHS) -> dict[str, np.ndarray]:
    """Return features and class probabilities of clips, in the order of their rows in the file.

    The result has float32 'features' (num_clips, D), averaged over bodies, segments and joints, and for a classifier
    'scores' (num_clips, classes). It is the same in every process.
    """
    widths = {'features': model.dim_feat}
    if isinstance(model, ActionTransformer):
        widths['scores'] = model.num_classes
    outputs = {name: torch.zeros(num_clips, width, device=world.device) for name, width in widths.items()}
    for features, batch in encode_split(model, batches, clip_maker, precision, graphs):
        outputs['features'][batch.index] = features.mean(dim=(1, 2, 3))
        if 'scores' in outputs:
            outputs['scores'][batch.index] = model.head(features).softmax(dim=1)
    return {name: world.sum(values).cpu().numpy() for name, values in outputs.items()}
