"""One epoch of masked motion prediction.

Axis letters as in model_mamp.py.
"""

import torch

from feeder.dataset import Batch
from util.capture import pad_rows
from util.optim import clip_gradients, learning_rate, set_learning_rate
from util.trainer import Trainer


def train_one_epoch(trainer: Trainer, epoch: int) -> dict[str, float]:
    """Train `trainer.model`, a MAMP, for the rest of an epoch; returns its mean loss, learning rate and throughput."""
    args, clip_maker = trainer.args, trainer.clips
    num_tokens = args.num_frames // args.t_patch_size * args.num_joints
    backward = trainer.graphs.capture(forward_backward, trainer)
    update = trainer.graphs.capture(update_weights, trainer)
    trainer.model.train()
    for step, batches in trainer.steps(epoch):
        lr = learning_rate(epoch + step / trainer.steps_per_epoch, args.lr, args.min_lr, args.warmup_epochs,
                           args.epochs)
        set_learning_rate(trainer.optimizer, lr)
        for batch in batches:
            clips = clip_maker.train_view(batch, epoch, step)                       # (N, C, T, V, M)
            uniform = clip_maker.mask_uniform(batch, epoch, step, num_tokens)       # (N·M, L)
            if args.skip_empty_bodies:
                backward(*select_bodies(clips, uniform, batch, pad=trainer.graphs.enabled))
            else:
                backward(clips, uniform)
        grad_norm = update()
        if trainer.is_log_step(step):
            trainer.log_step(epoch, step, {'lr': lr, 'grad_norm': grad_norm.item()})
        trainer.save_if_due(epoch, step)
        trainer.stop_if_requested(epoch, step)
    return trainer.epoch_means(epoch)


def forward_backward(trainer: Trainer, clips: torch.Tensor, uniform: torch.Tensor,
                     weight: torch.Tensor | None = None) -> None:
    """Add the gradients of a micro-batch.

    The loss stays on the device, so that the host does not synchronize with it.
    """
    args = trainer.args
    with trainer.precision.autocast():
        loss, _, _ = trainer.model(clips, args.mask_ratio, args.motion_stride, args.motion_aware_tau, uniform, weight)
    loss = loss / args.accum_iter
    loss.backward()
    trainer.loss_sum += loss.detach()


def update_weights(trainer: Trainer) -> torch.Tensor:
    """Update all weights from the gradients of the whole effective batch; returns the gradient norm."""
    trainer.world.average_gradients(trainer.model)
    grad_norm = clip_gradients(trainer.model, trainer.args.clip_grad)
    trainer.optimizer.step()
    trainer.optimizer.zero_grad(set_to_none=not trainer.graphs.enabled)
    return grad_norm


def select_bodies(clips: torch.Tensor, uniform: torch.Tensor, batch: Batch, pad: bool) -> tuple[torch.Tensor, ...]:
    """Return the non-empty bodies of clips (N, C, T, V, M) as clips of one body (E, C, T, V, 1), and their `uniform`.

    This changes the loss: tokens of empty bodies, whose target is zero, no longer count. With `pad`, a body is repeated
    until E is a multiple of N·M / 16, and weights (E,), which are 0 for the repetitions, are returned as well.
    """
    index = batch.nonempty
    clips, uniform = clips.permute(0, 4, 1, 2, 3).flatten(0, 1)[index].unsqueeze(-1), uniform[index]
    if not pad:
        return clips, uniform
    multiple = max(len(batch.inverse) // 16, 1)
    size = -(-len(index) // multiple) * multiple
    weight = (torch.arange(size, device=clips.device) < len(index)).float()
    return pad_rows(clips, size), pad_rows(uniform, size), weight
