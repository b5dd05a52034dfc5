"""Resuming a run from a checkpoint, so that it ends with the same weights as without the interruption."""

import logging

import torch

from feeder.layouts import check_same_joints, checkpoint_layout
from util.checkpoint import Checkpoint, newest
from util.errors import UserError, one_line
from util.options import has_role
from util.trainer import Trainer
from util.weights import load_checkpoint, setting_differences

log = logging.getLogger(__name__)

# Settings that determine which clips the steps of an epoch see.
CLIP_ORDER = {'data', 'effective_batch_size', 'seed', 'label_fraction', 'label_draw', 'novel_every'}


def resume(trainer: Trainer) -> None:
    """Continue from the checkpoint given with --resume; 'auto' is the latest in the output folder, if there is one.

    Raises UserError if the checkpoint belongs to another model, layout or training split, or has no optimiser state.
    """
    path = trainer.args.resume
    if path is None:
        return
    if path == 'auto':
        if (latest := newest(trainer.output_dir)) is None:
            log.info('%s: no checkpoint to resume from; starting a new run', trainer.output_dir)
            return
        path, checkpoint = latest
    else:
        checkpoint = Checkpoint.read(path)
    if difference := setting_differences(checkpoint.args, trainer.args, ('num_heads', 'stream', 'keypoints')):
        raise UserError(f'{path}: was trained with {difference}; use the same settings')
    check_same_joints(checkpoint_layout(checkpoint, path), trainer.clips.layout, path)
    load_checkpoint(trainer.model, checkpoint, path)
    if checkpoint.optimizer is None or checkpoint.progress is None:
        raise UserError(f'{path}: has no optimizer state; start from it with --finetune instead of --resume')
    _load_optimizer(trainer.optimizer, checkpoint.optimizer, path)
    trainer.epoch, trainer.first_step = checkpoint.epoch + 1, checkpoint.step
    if (trainer.epoch, trainer.first_step) > (trainer.args.epochs, 0) or trainer.first_step >= trainer.steps_per_epoch:
        raise UserError(f'{path}: continues at epoch {trainer.epoch}, step {trainer.first_step}, but this run ends '
                        f'after {trainer.args.epochs} epochs of {trainer.steps_per_epoch} steps; increase --epochs, or '
                        'start another run')
    _compare_settings(trainer, checkpoint, path)
    trainer.progress |= checkpoint.progress | {'data': trainer.progress['data']}
    trainer.loss_sum.fill_(trainer.progress['loss_sum'])
    trainer.resumed = True
    log.info('resumed %s: epoch %d, step %d', path, trainer.epoch, trainer.first_step)


def _load_optimizer(optimizer: torch.optim.Optimizer, state: dict, path) -> None:
    """Load the state of each parameter from a checkpoint; keep the learning rates and weight decay of this run."""
    settings = [{name: value for name, value in group.items() if name != 'params'}
                for group in optimizer.param_groups]
    try:
        optimizer.load_state_dict(state)
        for parameter, values in optimizer.state.items():
            if any(value.ndim and value.shape != parameter.shape for value in values.values()):
                raise ValueError('momenta and weights differ in shape')
    except (ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
        raise UserError(f'{path}: its optimizer state does not fit this run ({one_line(error)}); start from its '
                        'weights with --finetune, or use another checkpoint') from error
    for group, values in zip(optimizer.param_groups, settings, strict=True):
        group.update(values)


def _compare_settings(trainer: Trainer, checkpoint: Checkpoint, path) -> None:
    """Warn about changed settings; in mid-epoch, refuse changes of the clips that the epoch consists of."""
    before, now = checkpoint.args, vars(trainer.args)
    changed = {name: f'{name} {before[name]} -> {value}' for name, value in now.items()
               if name in before and before[name] != value and not has_role(name, 'run')}
    data = checkpoint.progress.get('data', trainer.progress['data'])
    if data != trainer.progress['data']:
        changed['data'] = f'training clips {data} -> {trainer.progress["data"]}'
    if trainer.first_step and (names := sorted(set(changed) & CLIP_ORDER)):
        raise UserError(f'{path}: was saved in mid-epoch, and the data or settings of this epoch have '
                        f'changed ({"; ".join(changed[n] for n in names)}); use the same data and settings')
    if changed:
        log.warning('resuming with other settings: %s', '; '.join(changed.values()))
