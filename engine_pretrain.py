"""One epoch of masked motion prediction."""

from util.trainer import Trainer


def train_one_epoch(trainer: Trainer, epoch: int) -> None:
    """Trains `trainer.model`, a MAMP, from the trainer's step in this epoch to the end of it."""
    args, model, clips_of = trainer.args, trainer.model, trainer.clips
    num_tokens = args.num_frames // args.t_patch_size * args.num_joints
    model.train()
    for step, batches in trainer.steps(epoch):
        for micro, batch in enumerate(batches):
            clips = clips_of.train_view(batch, epoch, step)                         # (N, C, T, V, M)
            uniform = clips_of.mask_uniform(batch, epoch, step, num_tokens)         # (N·M, L)
            with trainer.synced_at_last(micro):
                with trainer.precision.autocast():
                    loss, _, _ = model(clips, args.mask_ratio, args.motion_stride, args.motion_aware_tau, uniform,
                                       args.skip_empty_bodies)
                trainer.backward(loss)
        trainer.update()
