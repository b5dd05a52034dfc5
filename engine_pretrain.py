"""One epoch of masked motion prediction.

Axis letters as in model_mamp.py.
"""

import torch

from util.optim import clip_gradients, learning_rate, set_learning_rate
from util.trainer import Trainer


def train_one_epoch(trainer: Trainer, epoch: int) -> dict[str, float]:
    """Train `trainer.model`, a MAMP, to the end of the epoch; returns the means that main logs."""
    args, model, optimizer, clip_maker = trainer.args, trainer.model, trainer.optimizer, trainer.clips
    num_tokens = args.num_frames // args.t_patch_size * args.num_joints
    model.train()
    for step, batches in trainer.steps(epoch):
        lr = learning_rate(epoch + step / trainer.steps_per_epoch, args.lr, args.min_lr, args.warmup_epochs,
                           args.epochs)
        set_learning_rate(optimizer, lr)
        for micro, batch in enumerate(batches):
            clips = clip_maker.train_view(batch, epoch, step)                       # (N, C, T, V, M)
            uniform = clip_maker.mask_uniform(batch, epoch, step, num_tokens)       # (N·M, L)
            if args.skip_empty_bodies:
                clips, uniform = select_bodies(clips, batch.nonempty), uniform[batch.nonempty]
            with trainer.sync_gradients(micro):
                with trainer.precision.autocast():
                    loss, _, _ = model(clips, args.mask_ratio, args.motion_stride, args.motion_aware_tau, uniform)
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


def select_bodies(clips: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """Bodies of clips (N, C, T, V, M) at `index` (E,) into N·M as clips of one body (E, C, T, V, 1).

    Without its empty bodies a batch has another loss: tokens of empty bodies, whose target is zero, no longer count.
    """
    return clips.permute(0, 4, 1, 2, 3).flatten(0, 1)[index].unsqueeze(-1)
