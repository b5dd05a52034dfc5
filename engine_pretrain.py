"""One epoch of masked motion prediction."""

from collections.abc import Callable

import numpy as np

from feeder.dataset import SkeletonDataset
from feeder.layouts import layout_of
from util.errors import UserError
from util.loop import Trainer


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


def picture_maker(trainer: Trainer, dataset: SkeletonDataset) -> Callable[[], dict[str, np.ndarray]] | None:
    """What draws the first training clip as the model sees it by then, images (H, W, 3) by name; None: not wanted.

    Of the whole model, not one process's part in it: no other process takes part. Raises UserError where no joint
    layout fits.
    """
    args = trainer.args
    if not args.picture_epochs:
        return None
    try:
        layout = trainer.clips.layout or layout_of(args.num_joints)
    except UserError as error:
        raise UserError(f'--picture_epochs {args.picture_epochs}: {error}, or leave the pictures out') from error
    # Not at the top: matplotlib takes a second to load, and few runs draw.
    from util import inside, pictures
    clip = inside.clip_of(dataset, int(dataset.rows[0]), vars(args), layout)
    clip = clip._replace(joints=clip.joints.to(trainer.world.device), seen=clip.seen.to(trainer.world.device))

    def draw() -> dict[str, np.ndarray]:
        found = inside.look_inside(trainer.raw_model, vars(args), clip, seed=args.seed, compiled=trainer.compiled)
        return {'pictures/clip': pictures.pixels(pictures.overview(found))}
    return draw
