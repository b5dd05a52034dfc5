"""Everything of training that is the same in all stages: steps, accounting, checkpoints, resuming."""

import argparse
import contextlib
import itertools
import json
import logging
import math
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import torch
from torch import nn
from tqdm import tqdm

from feeder.augment import ClipMaker
from feeder.classes import read_class_names, read_metadata
from feeder.dataset import SkeletonDataset, TrainBatches
from feeder.layouts import check_same_joints, checkpoint_layout, find_layout
from feeder.loader import make_loader, read_batches
from util import checkpoint
from util.attention import choose_kernel, shape_of
from util.card import write_card
from util.checkpoint import BEST, LAST, PREVIOUS
from util.dist import World, joined
from util.errors import UserError
from util.files import atomic_write, write_json
from util.log import EpochLog, NoLog, code_version, command_line, describe_machine, set_up_console
from util.memory import report_out_of_memory
from util.optim import learning_rate, set_learning_rate
from util.options import SURROUNDINGS
from util.precision import Precision, compile_blocks
from util.preempt import MARKER, Interrupted, Preempted, listening
from util.repeat import repeatable
from util.rng import derive_seed

log = logging.getLogger(__name__)


class NonFiniteLoss(UserError):
    """Training diverged: a failure of the run, not of what was asked for. What was saved before is whole."""

    exit_code = 1


@contextlib.contextmanager
def started(args: argparse.Namespace) -> Iterator[World]:
    """A stage's surroundings: the processes that take part, how they compute, and what they say when it ends badly."""
    with (repeatable(args.deterministic, args.device), joined(args.device, args.patience) as world,
          report_out_of_memory(args, world.device)):
        set_up_console(world.is_main)
        yield world


def _read_result(path: Path) -> dict:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f'{path}: cannot be read ({error}); remove it and go on with --resume auto') from error


class Trainer:
    """One run's model, optimiser and place in the schedule.

    A checkpoint made after step s of an epoch, loaded into a Trainer of the same settings, goes on with step s + 1
    and ends with the same weights: whatever is random follows from (seed, epoch, step).
    """

    def __init__(self, args: argparse.Namespace, world: World, model: nn.Module, optimizer: torch.optim.Optimizer,
                 dataset: SkeletonDataset, facts: dict):
        """`facts` go into result.json beside the figures (protocol, method, what it started from)."""
        self.args, self.world, self.facts = args, world, facts
        self.output_dir = Path(args.output_dir)
        self.raw_model = model
        self.resumed = False
        self.compiled = compile_blocks(model, args.compile, world.device)
        self.model = world.wrap(model)
        self.optimizer = optimizer
        self.precision = Precision(args.precision, world.device)
        self.attention = choose_kernel(args.attention, world, self.precision.dtype, shape_of(args, dataset.num_bodies),
                                       backward=next(model.blocks.parameters()).requires_grad)
        self.clips = ClipMaker(args.num_frames, args.stream, args.seed, tuple(args.p_interval), args.max_angle,
                               args.max_turn, layout=find_layout(args.layout, args.num_joints))
        self.batches = TrainBatches(dataset.rows, args.batch_size, args.accum_iter, world.rank, world.size, args.seed)
        self.loader = make_loader(dataset, self.batches, args.num_workers, world.device, args.data_on_device)
        self.steps_per_epoch = self.batches.steps_per_epoch
        self.epoch = self.first_step = 0
        # What a resumed run must know besides weights; plain numbers, so that safe loading works.
        self.record = {'loss_sum': 0., 'train_seconds': 0., 'seconds': 0., 'clips': 0, 'last': None, 'best': None,
                       'data': dataset.digest}
        self.loss_sum = torch.zeros((), dtype=torch.float64, device=world.device)
        self.non_finite = torch.zeros((), dtype=torch.float64, device=world.device)
        self.grad_norm = torch.zeros((), device=world.device)       # of a step that is read
        self.reads = False
        self.log = NoLog()
        told = read_metadata(args.data_path)       # once: the file may change or go while the run goes on
        self.prepared = {name: told[name] for name in ('centre', 'scale') if name in told}
        self.data = {'train_clips': len(dataset.rows), 'bodies': dataset.num_bodies, 'classes': dataset.num_classes,
                     'class_names': read_class_names(args.data_path, dataset.num_classes),
                     'layout': self.clips.layout and self.clips.layout.name}
        self.version = code_version()       # what trains, whatever is committed meanwhile
        self.saved_at = time.perf_counter()
        self.told = SimpleNamespace(signal=None)        # to stop; see `fit`

    # ---- one epoch -------------------------------------------------------------------------------------------------

    def steps(self, epoch: int):
        """Yields (step, its micro-batches) for the rest of the epoch, with the learning rate and generators set."""
        args = self.args
        self.batches.start_at(epoch, self.first_step)
        stream = read_batches(self.loader, self.world.device)
        bar = tqdm(range(self.first_step, self.steps_per_epoch), desc=f'epoch {epoch}', initial=self.first_step,
                   total=self.steps_per_epoch, unit='step', disable=None if self.world.is_main else True, leave=False)
        began, read = time.perf_counter(), (self.first_step, self.loss_sum.clone())
        for step in bar:
            lr = learning_rate(epoch + step / self.steps_per_epoch, args.lr, args.min_lr, args.warmup_epochs,
                               args.epochs)
            set_learning_rate(self.optimizer, lr)
            torch.manual_seed(derive_seed(args.seed, epoch, step, self.world.rank))     # drop path, dropout
            done = step + 1
            self.reads = done % args.log_steps == 0 or done == self.steps_per_epoch
            yield step, itertools.islice(stream, args.accum_iter)
            due = args.save_steps and done % args.save_steps == 0
            if self.reads:
                self.stop_if_non_finite(epoch, done)
                loss = self.mean_over_world(self.loss_sum - read[1]) / (done - read[0])
                read = done, self.loss_sum.clone()
                speed = (done - self.first_step) * args.effective_batch_size / (time.perf_counter() - began)
                bar.set_postfix_str(f'loss {loss:.4f}, lr {lr:.2e}, {speed:.0f} clips/s')
                self.log.scalars({'train/loss': loss, 'train/lr': lr, 'train/clips_per_s': speed,
                                  'train/grad_norm': self.grad_norm.item()}, epoch * self.steps_per_epoch + done)
                due = due or self.save_is_due()
            stop = self.world.any(self.told.signal is not None)
            if (due or stop) and done < self.steps_per_epoch:
                seconds = time.perf_counter() - began
                self.save(epoch, done, [LAST], seconds, (done - self.first_step) * args.effective_batch_size)
                if stop:
                    self.leave(f'in epoch {epoch}, after step {done}')

    def synced_at_last(self, micro: int):
        """Context of a micro-batch: processes exchange gradients in the last one of a step only."""
        if self.world.size > 1 and micro + 1 < self.args.accum_iter:
            return self.model.no_sync()
        return contextlib.nullcontext()

    def backward(self, loss: torch.Tensor) -> None:
        """Adds a micro-batch's gradients. The loss stays on the device: nothing waits for it."""
        share = loss / self.args.accum_iter
        share.backward()
        self.loss_sum += share.detach()
        self.non_finite += ~loss.detach().isfinite()

    def update(self) -> None:
        if self.args.clip_grad:
            self.grad_norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.args.clip_grad)
        elif self.reads:
            self.grad_norm = nn.utils.get_total_norm(
                [weight.grad for weight in self.model.parameters() if weight.grad is not None])
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def mean_over_world(self, value: torch.Tensor) -> float:
        return self.world.sum(value.clone()).item() / self.world.size

    def save_is_due(self) -> bool:
        """Whether --save_minutes have passed since the last checkpoint, by the main process's clock."""
        late = self.args.save_minutes and time.perf_counter() - self.saved_at > 60 * self.args.save_minutes
        told = torch.tensor(float(self.world.is_main and late), device=self.world.device)
        return self.world.sum(told).item() > 0

    def stop_if_non_finite(self, epoch: int, step: int) -> None:
        """Ends the run on every process when any of them saw a loss that is not finite."""
        if self.world.sum(self.non_finite.clone()).item() > 0:
            raise NonFiniteLoss(
                f'the loss is not finite in epoch {epoch}, at or before step {step}; no checkpoint was written since. '
                'Lower --lr, give --clip_grad or more --warmup_epochs, and go on with --resume auto')

    # ---- the whole run ---------------------------------------------------------------------------------------------

    def resume(self, path: str) -> None:
        """Goes on from a checkpoint file; 'auto' takes the output folder's last one, or starts anew without one."""
        if path == 'auto':
            found = checkpoint.newest(self.output_dir)
            if found is None:
                log.info('%s: nothing to resume, starting anew', self.output_dir)
                return
            path, state = found
        else:
            state = checkpoint.load(path)
        if other := checkpoint.differences(state['args'], self.args, ('num_heads', 'stream')):
            raise UserError(f'{path}: trained with {other}; give the same')     # neither shows in the weights' shapes
        check_same_joints(checkpoint_layout(state, path), self.clips.layout, path)           # nor do the joints' names
        checkpoint.load_model(self.raw_model, state['model'], path, resize=False)
        if 'optimizer' not in state or 'epoch' not in state:
            raise UserError(f'{path}: it holds weights only; start from it with --finetune instead of --resume')
        settings = [{name: value for name, value in group.items() if name != 'params'}
                    for group in self.optimizer.param_groups]
        try:
            self.optimizer.load_state_dict(state['optimizer'])
            wrong = [value for weight, state in self.optimizer.state.items() for value in state.values()
                     if torch.is_tensor(value) and value.ndim and value.shape != weight.shape]
            if wrong:
                raise ValueError(f'moments of shape {tuple(wrong[0].shape)} belong to no weight')
        except (ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
            raise UserError(f'{path}: its optimiser state does not fit this run ({" ".join(str(error).split())}); '
                            'start from its weights with --finetune, or take another checkpoint') from error
        for group, own in zip(self.optimizer.param_groups, settings, strict=True):
            group.update(own)       # weight decay and layer decay are this run's; the moments are the checkpoint's
        self.epoch, self.first_step = state['epoch'] + 1, state.get('step', 0)
        if self.epoch > self.args.epochs or self.first_step >= self.steps_per_epoch:
            raise UserError(f'{path}: it stands at epoch {self.epoch}, step {self.first_step}, beyond --epochs '
                            f'{self.args.epochs} of {self.steps_per_epoch} steps; raise --epochs or start another run')
        self._compare_data(state.get('record', {}).get('data', self.record['data']), path)
        self.record.update(state.get('record', {}) | {'data': self.record['data']})
        self.loss_sum.fill_(self.record['loss_sum'])
        self._compare_settings(state['args'], path)
        self.resumed = True
        log.info('resumed %s: epoch %d, step %d', path, self.epoch, self.first_step)

    def _compare_data(self, before: str, path) -> None:
        """The clips of an epoch are drawn from the whole split: inside one, it must be the split it began with."""
        now = self.record['data']
        if before != now and self.first_step:
            raise UserError(f'{path}: made inside an epoch of other training clips ({before}) than those of '
                            f'{self.args.data_path} ({now}); give the same --data_path')
        if before != now:
            log.warning('resuming with other training clips: %s (%s), before %s', self.args.data_path, now, before)

    def _compare_settings(self, before: dict, path) -> None:
        order = ('effective_batch_size', 'seed', 'label_fraction', 'label_draw', 'novel_every')     # of the clips
        changed = [f'{name} {before[name]} -> {value}' for name, value in vars(self.args).items()
                   if name in before and name not in SURROUNDINGS and before[name] != value]
        if self.first_step and any(name in before and before[name] != vars(self.args).get(name) for name in order):
            raise UserError(f'{path}: made inside an epoch with other settings ({"; ".join(changed)}); give the same '
                            f'{", ".join(name for name in order if hasattr(self.args, name))}')
        if changed:
            log.warning('resuming with other settings: %s', '; '.join(changed))

    def check_folder(self) -> None:
        """UserError when the output folder holds another run than the one this goes on with."""
        last = self.output_dir / LAST
        source = None if self.args.resume is None else last if self.args.resume == 'auto' else Path(self.args.resume)
        if last.exists() and (source is None or source.resolve().parent != self.output_dir.resolve()):
            raise UserError(f'{self.output_dir}: holds the {LAST} of an earlier run; go on with --resume auto, or give '
                            'another --output_dir')

    def fit(self, train_one_epoch, evaluate=None, finish=None, pictures=None) -> dict:
        """Trains to the last epoch, evaluating after each one when `evaluate` is given; returns the result.

        train_one_epoch(trainer, epoch) trains; evaluate() returns a dict with top1, top5, loss; finish() writes what
        else the run leaves. result.json comes last of all: where it is, there is the rest too. pictures() returns
        images by name, for TensorBoard; the main process alone calls it, every --picture_epochs.
        """
        self.check_folder()
        result = self.output_dir / 'result.json'
        if self.epoch == self.args.epochs and result.exists():
            log.info('%s: finished before, nothing to train', self.output_dir)
            if finish:
                finish()
            return _read_result(result)
        if self.world.is_main:
            (self.output_dir / MARKER).unlink(missing_ok=True)
            self.log = EpochLog(self.output_dir, Path(self.args.log_dir), self.epoch,
                                self.epoch * self.steps_per_epoch + self.first_step)
            log.info('%s | %s | %s | %d clips, %d steps an epoch of %d × %d × %d clips | %s', self.facts['method'],
                     describe_machine(self.world.device), self.precision.name, len(self.batches.rows),
                     self.steps_per_epoch, self.args.batch_size, self.args.accum_iter, self.world.size,
                     self.output_dir)
        try:
            with listening() as self.told:
                for epoch in range(self.epoch, self.args.epochs):
                    self._run_epoch(epoch, train_one_epoch, evaluate, pictures)
                    if epoch + 1 < self.args.epochs and self.world.any(self.told.signal is not None):
                        self.leave(f'after epoch {epoch}')
                if finish:
                    finish()
                self.log.outcome(*self._outcome(), self.args.epochs * self.steps_per_epoch)
                return self._result()
        finally:
            self.log.close()

    def _run_epoch(self, epoch: int, train_one_epoch, evaluate, pictures) -> None:
        began, first_step = time.perf_counter(), self.first_step
        train_one_epoch(self, epoch)
        self.stop_if_non_finite(epoch, self.steps_per_epoch)     # waits for the device, so the clock is honest
        trained = time.perf_counter() - began
        clips = (self.steps_per_epoch - first_step) * self.args.effective_batch_size
        line = {'train_loss': self.mean_over_world(self.loss_sum) / self.steps_per_epoch,
                'lr': max(group['lr'] for group in self.optimizer.param_groups),
                'clips_per_s': clips / trained}
        names = []
        if evaluate:
            self.world.share_buffers(self.raw_model)
            scores = evaluate()
            line |= {f'test_{name}': value for name, value in scores.items()}
            if not math.isfinite(scores['loss']):
                log.warning('epoch %d: the test loss is not finite and is written as null; the weights and the losses '
                            'of training are finite', epoch)
            self.record['last'] = scores | {'epoch': epoch}
            if self.record['best'] is None or scores['top1'] > self.record['best']['top1']:
                self.record['best'] = self.record['last']
                names.append(BEST)
        self.record['last_loss'] = line['train_loss']
        if (epoch and epoch % self.args.save_epochs == 0) or epoch + 1 == self.args.epochs:
            names.append(f'checkpoint-{epoch}.pth')
        self.loss_sum.zero_()
        self.first_step = 0
        self.record['train_seconds'] += trained
        self.record['seconds'] += time.perf_counter() - began
        self.record['clips'] += clips
        self.log.epoch(epoch, line | {'seconds': time.perf_counter() - began}, (epoch + 1) * self.steps_per_epoch)
        log.info('epoch %d/%d: %s', epoch, self.args.epochs - 1, ', '.join(f'{k} {v:.5g}' for k, v in line.items()))
        if pictures and self.world.is_main and ((epoch + 1) % self.args.picture_epochs == 0
                                                or epoch + 1 == self.args.epochs):
            self._draw(pictures, (epoch + 1) * self.steps_per_epoch)
        self.save(epoch + 1, 0, [*names, LAST])     # the last one last: a run killed before it writes all again

    def _draw(self, pictures, step: int) -> None:
        try:
            self.log.pictures(pictures(), step)
        except Exception as error:      # whatever drawing ends in: no picture is worth a run
            log.warning('no picture at step %d: %s: %s', step, type(error).__name__, ' '.join(str(error).split()))

    def leave(self, where: str) -> None:
        """Ends the run, saved and told to stop, on every process; the marker is what a cluster's script looks for.

        Ctrl-C on any of them, and no cluster's signal, leaves none.
        """
        if not self.world.any(self.told.signal not in (None, 'SIGINT')):
            raise Interrupted(f'{where}; everything is saved, go on with --resume auto')
        if self.world.is_main:
            with atomic_write(self.output_dir / MARKER) as partial:
                partial.write_text(f'{where}\n')
        self.world.any(False)       # nobody leaves before the main process has written
        raise Preempted(f'told to ({self.told.signal or "by another process"}) {where}; everything is saved, go on '
                        'with --resume auto')

    def save(self, epoch: int, step: int, names: list[str], seconds: float = 0., clips: int = 0) -> None:
        """Writes a checkpoint that goes on at `step` of `epoch`, under each of the names; never a poisoned one."""
        for parameter in self.raw_model.parameters():
            self.non_finite += ~parameter.detach().isfinite().all()
        self.stop_if_non_finite(epoch, step)
        self.saved_at = time.perf_counter()
        loss_sum = self.mean_over_world(self.loss_sum)
        if not self.world.is_main:
            return
        record = self.record | {'loss_sum': loss_sum, 'seconds': self.record['seconds'] + seconds,
                                'train_seconds': self.record['train_seconds'] + seconds,
                                'clips': self.record['clips'] + clips}
        content = {'model': self.raw_model.state_dict(), 'optimizer': self.optimizer.state_dict(), 'epoch': epoch - 1,
                   'step': step, 'args': vars(self.args), 'record': record, 'method': self.facts['method'],
                   'pretraining': self.facts.get('pretraining'), 'version': self.version,
                   'bodies': self.data['bodies']}   # from here on what predicting needs and the weights do not say
        if self.data['class_names'] and hasattr(self.args, 'num_classes'):
            content['classes'] = self.data['class_names']
        if self.prepared:
            content['prepared'] = self.prepared
        if layout := self.clips.layout:     # whole: the file that --layout names may be gone by then
            content['layout'] = {'name': layout.name, 'joints': layout.as_map()}
        for name in names:
            if name == LAST:
                checkpoint.keep(self.output_dir / LAST, PREVIOUS)
            checkpoint.save(self.output_dir / name, content)

    def _outcome(self) -> tuple[dict, dict[str, float]]:
        """Settings and final figures, by which runs are compared."""
        settings = {name: value for name, value in vars(self.args).items()
                    if name not in SURROUNDINGS and value is not None}
        figures = {'train_loss': self.record.get('last_loss', math.nan),
                   'clips_per_s': self.record['clips'] / max(self.record['train_seconds'], 1e-9)}
        figures |= {f'test_{name}': value for name, value in (self.record['last'] or {}).items()
                    if name in ('top1', 'top5', 'loss') and value is not None}
        return {'method': self.facts['method'], 'protocol': self.facts['protocol']} | settings, figures

    def _result(self) -> dict:
        """What result.json says of the run, written by the main process, and the model card made of it."""
        record = self.record
        result = {'benchmark': self.args.benchmark, **self.facts, **self.data, 'stream': self.args.stream,
                  'seed': self.args.seed, 'resumed': self.resumed,
                  'train_loss': record.get('last_loss'), 'last': record['last'], 'best': record['best'],
                  'wall_seconds': record['seconds'],
                  'clips_per_s': record['clips'] / max(record['train_seconds'], 1e-9),
                  'machine': describe_machine(self.world.device), 'precision': self.precision.name,
                  'attention': self.attention, 'compiled': self.compiled, 'processes': self.world.size,
                  'code_version': self.version, 'command': command_line(), 'config': vars(self.args)}
        if self.world.is_main:
            write_card(self.output_dir, result)
            write_json(self.output_dir / 'result.json', result)     # last of all: where it is, there is the rest too
        return result
