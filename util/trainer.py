"""State of one training run: model, optimiser, progress, checkpoints and logs. The loops are in main and engine."""

import argparse
import contextlib
import itertools
import logging
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import nn
from tqdm import tqdm

from feeder.augment import ClipMaker
from feeder.classes import read_class_names, read_metadata
from feeder.dataset import SkeletonDataset, TrainBatches
from feeder.loader import BatchLoader, StoppedWaiting
from util.attention import select_attention
from util.capture import GraphRecorder, make_capturable
from util.card import write_model_card
from util.checkpoint import BEST, LAST, PREVIOUS, Checkpoint
from util.dist import World, init_world
from util.errors import UserError, one_line
from util.files import check_writable
from util.log import NoLog, RunLog, code_version, command_line, describe_machine, set_up_console
from util.options import has_role
from util.precision import Precision, compile_model, deterministic, keep_freed_memory
from util.preempt import MARKER, StopRequest, catch_stop_signals, stopped
from util.results import Result
from util.rng import derive_seed

log = logging.getLogger(__name__)


class NonFiniteLoss(UserError):
    """Training diverged; checkpoints written earlier are intact."""

    exit_code = 1


@contextlib.contextmanager
def start_run(args: argparse.Namespace) -> Iterator[World]:
    """Set up processes, determinism and console of a run; turns running out of memory into a UserError."""
    with deterministic(args.deterministic, args.device), init_world(args.device, args.patience) as world:
        set_up_console(world.is_main)
        if world.device.type == 'cpu':
            keep_freed_memory()
        try:
            yield world
        except (torch.OutOfMemoryError, MemoryError) as error:
            raise UserError(f'out of memory on {world.device} ({one_line(error)[:200]}); lower --batch_size '
                            '(accumulation keeps the effective batch size) or use a smaller model, and continue with '
                            '--resume auto') from error


class Trainer:
    """State of a training run.

    A checkpoint saved after step s of an epoch and loaded into a Trainer with the same settings continues with step s +
    1 and ends with the same weights: all random numbers are functions of (seed, epoch, step).
    """

    def __init__(self, args: argparse.Namespace, world: World, model: nn.Module, optimizer: torch.optim.Optimizer,
                 dataset: SkeletonDataset, **facts):
        """`facts` (protocol, method, pretraining, labels, test_clips) are stored in the result beside the metrics."""
        self.args, self.world, self.model, self.optimizer, self.facts = args, world, model, optimizer, facts
        self.output_dir = Path(args.output_dir)
        check_writable(args.output_dir)
        check_writable(args.log_dir)
        self.precision = Precision(args.precision, world.device)
        select_attention(model, args.attention, world.device)
        self.compiled = compile_model(model, args.compile, world.device)
        self.graphs = GraphRecorder(world.device, self.compiled and world.device.type == 'cuda')
        if self.graphs.enabled:
            make_capturable(optimizer, world.device)
        self.clips = ClipMaker.from_args(args)
        self.batches = TrainBatches(dataset.rows, args.batch_size, args.accum_iter, world.rank, world.size, args.seed)
        self.loader = BatchLoader(dataset, self.batches, world.device, args.num_workers, args.data_on_device)
        self.loader.stop, self.loader.patience = lambda: self.stop_request.signal is not None, args.patience
        self.steps_per_epoch = self.batches.steps_per_epoch
        self.epoch = self.first_step = 0        # where training starts
        self.loss_sum = torch.zeros((), dtype=torch.float64, device=world.device)       # over the steps of the epoch
        self.progress = {'loss_sum': 0., 'train_seconds': 0., 'seconds': 0., 'clips': 0, 'last': None, 'best': None,
                         'last_loss': None, 'data': dataset.digest}
        self.data = {'train_clips': len(dataset.rows), 'bodies': dataset.num_bodies, 'classes': dataset.num_classes,
                     'class_names': read_class_names(args.data_path, dataset.num_classes)}
        metadata = read_metadata(args.data_path)
        self.preparation = {name: metadata[name] for name in ('centre', 'scale') if name in metadata} or None
        self.code_version = code_version()      # read now, as commits may follow during the run
        self.resumed, self.position, self.log, self.stop_request = False, None, NoLog(), StopRequest()
        self.saved_at = self.epoch_start = self.last_read = time.perf_counter()

    # ---- called from the loops of main and engine ------------------------------------------------------------------

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Open the logs, catch stop signals, and close the logs at the end. Raises UserError if the folder is used."""
        last, resume = self.output_dir / LAST, self.args.resume
        if last.exists() and (resume is None or (resume != 'auto' and
                                                 Path(resume).resolve().parent != self.output_dir.resolve())):
            raise UserError(f'{self.output_dir}: holds {LAST} of an earlier run; continue it with --resume auto, or '
                            'choose another --output_dir')
        if self.world.is_main and not self.is_finished():
            for outdated in (MARKER, 'result.json'):
                (self.output_dir / outdated).unlink(missing_ok=True)
            self.log = RunLog(self.output_dir, Path(self.args.log_dir), self.epoch,
                              self.epoch * self.steps_per_epoch + self.first_step)
            log.info('%s | %s | %s | %d clips, %d steps per epoch of %d × %d × %d clips | %s', self.facts['method'],
                     describe_machine(self.world.device), self.precision.name, self.data['train_clips'],
                     self.steps_per_epoch, self.args.batch_size, self.args.accum_iter, self.world.size,
                     self.output_dir)
        try:
            with catch_stop_signals() as self.stop_request:
                yield
        except StoppedWaiting:
            if self.position and self.world.size == 1 and self.args.accum_iter == 1:
                self.save(*self.position, [LAST])
            folder = self.output_dir if self.world.is_main else None
            raise stopped(self.stop_request.signal, 'while waiting for data', folder) from None
        finally:
            self.log.close()

    def steps(self, epoch: int) -> Iterator[tuple[int, Iterator]]:
        """Yield (step, its micro-batches) for the rest of the epoch; seeds drop path and dropout in each step."""
        self.batches.start_at(epoch, self.first_step)
        batches = iter(self.loader)
        self.epoch_start, self.last_read = time.perf_counter(), (self.first_step, self.loss_sum.clone())
        self.bar = tqdm(range(self.first_step, self.steps_per_epoch), desc=f'epoch {epoch}', initial=self.first_step,
                        total=self.steps_per_epoch, unit='step', disable=None if self.world.is_main else True,
                        leave=False)
        for step in self.bar:
            torch.manual_seed(derive_seed(self.args.seed, epoch, step, self.world.rank))
            self.position = (epoch, step) if step > self.first_step else None       # to save if a batch never arrives
            yield step, itertools.islice(batches, self.args.accum_iter)

    def is_log_step(self, step: int) -> bool:
        return (step + 1) % self.args.log_steps == 0 or step + 1 == self.steps_per_epoch

    def log_step(self, epoch: int, step: int, values: dict[str, float]) -> None:
        """Log the mean loss since the last call, throughput and `values`. Raises NonFiniteLoss."""
        done, (read_step, read_sum) = step + 1, self.last_read
        self.stop_if_non_finite(epoch, done)
        speed = (done - self.first_step) * self.args.effective_batch_size / (time.perf_counter() - self.epoch_start)
        loss = self.world.mean(self.loss_sum - read_sum) / (done - read_step)
        values = {'loss': loss, **values, 'clips_per_s': speed}
        self.last_read = done, self.loss_sum.clone()
        self.bar.set_postfix_str(f'loss {values["loss"]:.4f}, lr {values["lr"]:.2e}, {speed:.0f} clips/s')
        self.log.scalars({f'train/{name}': value for name, value in values.items()},
                         epoch * self.steps_per_epoch + done)

    def save_if_due(self, epoch: int, step: int) -> None:
        """Save in mid-epoch, every --save_steps steps and --save_minutes minutes."""
        done, args = step + 1, self.args
        due = args.save_steps and done % args.save_steps == 0
        if self.is_log_step(step) and args.save_minutes:      # the clock of the main process decides for all processes
            due |= self.world.any(self.world.is_main and time.perf_counter() - self.saved_at > 60 * args.save_minutes)
        if due and done < self.steps_per_epoch:
            self.save(epoch, done, [LAST])

    def stop_if_requested(self, epoch: int, step: int | None = None) -> None:
        """If any process received a stop signal, save and raise Preempted or Interrupted.

        `step` is None after the end of an epoch.
        """
        if not self.world.any(self.stop_request.signal is not None):
            return
        if step is None and epoch + 1 < self.args.epochs:       # finish_epoch has saved
            where = f'after epoch {epoch}'
        elif step is not None and step + 1 < self.steps_per_epoch:
            self.save(epoch, step + 1, [LAST])
            where = f'in epoch {epoch}, after step {step + 1}'
        else:
            return
        signal = self.stop_request.signal
        signal = signal if self.world.any(signal not in (None, 'SIGINT')) else 'SIGINT'
        error = stopped(signal, f'{where}; everything is saved', self.output_dir if self.world.is_main else None)
        self.world.any(False)       # wait until the main process has written
        raise error

    def finish_epoch(self, epoch: int, stats: dict[str, float], scores: dict[str, float] | None = None) -> None:
        """Log the averages of an epoch and its test scores, and save. Raises NonFiniteLoss."""
        progress = self.progress
        stats = stats | {f'test_{name}': value for name, value in (scores or {}).items()}
        names = [f'checkpoint-{epoch}.pth'] if (epoch and epoch % self.args.save_epochs == 0) \
            or epoch + 1 == self.args.epochs else []
        if scores:
            if not math.isfinite(scores['loss']):
                log.warning('epoch %d: the test loss is not finite and is written as null; the training loss and the '
                            'weights are finite', epoch)
            progress['last'] = scores | {'epoch': epoch}
            if progress['best'] is None or scores['top1'] > progress['best']['top1']:
                progress['best'] = progress['last']
                names.insert(0, BEST)
        progress['last_loss'] = stats['train_loss']
        progress['seconds'] += time.perf_counter() - self.epoch_start
        stats['seconds'] = time.perf_counter() - self.epoch_start
        self.log.epoch(epoch, stats, (epoch + 1) * self.steps_per_epoch)
        log.info('epoch %d/%d: %s', epoch, self.args.epochs - 1, ', '.join(f'{k} {v:.5g}' for k, v in stats.items()))
        self.loss_sum.zero_()
        self.first_step = 0
        self.save(epoch + 1, 0, [*names, LAST])     # LAST comes last: after a kill, all are rewritten

    def epoch_means(self, epoch: int) -> dict[str, float]:
        """Return mean training loss, learning rate and throughput of the epoch that has just been trained."""
        self.stop_if_non_finite(epoch, self.steps_per_epoch)        # synchronizes, so that the time is correct
        self.position = None
        seconds = time.perf_counter() - self.epoch_start
        clips = (self.steps_per_epoch - self.first_step) * self.args.effective_batch_size
        self.progress['train_seconds'] += seconds
        self.progress['clips'] += clips
        return {'train_loss': self.world.mean(self.loss_sum) / self.steps_per_epoch,
                'lr': max(float(group['lr']) for group in self.optimizer.param_groups), 'clips_per_s': clips / seconds}

    def log_pictures(self, epoch: int, draw: Callable[[], dict]) -> None:
        """Write the images that `draw()` returns to TensorBoard every --picture_epochs epochs."""
        every, last = self.args.picture_epochs, epoch + 1 == self.args.epochs
        if every and self.world.is_main and ((epoch + 1) % every == 0 or last):
            try:
                self.log.pictures(draw(), (epoch + 1) * self.steps_per_epoch)
            except Exception as error:      # a picture must not end a run
                log.warning('no picture in epoch %d: %s: %s', epoch, type(error).__name__, one_line(error))

    def is_finished(self) -> bool:
        """Return True if the run had already ended before it was resumed."""
        return self.epoch == self.args.epochs and (self.output_dir / 'result.json').exists()

    def stop_if_non_finite(self, epoch: int, step: int) -> None:
        """Raise NonFiniteLoss in every process if the loss was not finite in any process in this epoch."""
        if not math.isfinite(self.world.mean(self.loss_sum)):
            raise NonFiniteLoss(
                f'the loss is not finite in epoch {epoch}, at or before step {step}; no checkpoint was written since. '
                'Lower --lr, add --clip_grad or more --warmup_epochs, and continue with --resume auto')

    def save(self, epoch: int, step: int, names: list[str]) -> None:
        """Write a checkpoint that continues at `step` of `epoch` under each of the names; never non-finite weights."""
        seconds = time.perf_counter() - self.epoch_start
        extra = {'seconds': seconds, 'train_seconds': seconds,      # of an unfinished epoch
                 'clips': (step - self.first_step) * self.args.effective_batch_size} if step else {}
        finite = torch.stack([parameter.detach().isfinite().all() for parameter in self.model.parameters()]).all()
        self.loss_sum += torch.where(finite, 0., math.nan)
        self.stop_if_non_finite(epoch, step)
        self.saved_at = time.perf_counter()
        loss_sum = self.world.mean(self.loss_sum)
        if not self.world.is_main:
            return
        progress = self.progress | {name: self.progress[name] + value for name, value in extra.items()}
        layout = self.clips.layout
        checkpoint = Checkpoint(
            self.model.state_dict(), vars(self.args), epoch - 1, step, self.optimizer.state_dict(),
            progress | {'loss_sum': loss_sum}, self.facts['method'], self.facts.get('pretraining'),
            self.data['bodies'], self.data['class_names'] if hasattr(self.args, 'num_classes') else None,
            {'name': layout.name, 'joints': layout.as_map()} if layout else None, self.preparation, self.code_version)
        for name in names:
            checkpoint.write(self.output_dir / name, previous=PREVIOUS if name == LAST else None)


def finish_run(trainer: Trainer) -> Result:
    """Write result.json and the model card, the last files of a run; returns the result."""
    args, progress = trainer.args, trainer.progress
    if trainer.is_finished():
        log.info('%s: already finished, nothing to train', trainer.output_dir)
        return Result.read(trainer.output_dir / 'result.json')
    layout = trainer.clips.layout
    speed = progress['clips'] / max(progress['train_seconds'], 1e-9)
    result = Result(
        benchmark=args.benchmark, stream=args.stream, seed=args.seed, **trainer.facts, **trainer.data,
        layout=layout and layout.name, resumed=trainer.resumed, train_loss=progress['last_loss'],
        last=progress['last'], best=progress['best'], wall_seconds=progress['seconds'], clips_per_s=speed,
        machine=describe_machine(trainer.world.device), precision=trainer.precision.name, compiled=trainer.compiled,
        processes=trainer.world.size, code_version=trainer.code_version, command=command_line(), config=vars(args))
    if trainer.world.is_main:
        settings = {name: value for name, value in vars(args).items() if value is not None
                    and not has_role(name, 'run')} | {'method': result.method, 'protocol': result.protocol}
        metrics = {'train_loss': progress['last_loss'], 'clips_per_s': speed} | {
            f'test_{name}': (progress['last'] or {}).get(name) for name in ('top1', 'top5', 'loss')}
        trainer.log.hparams(settings, {name: value for name, value in metrics.items() if value is not None},
                         args.epochs * trainer.steps_per_epoch)
        write_model_card(trainer.output_dir, result)
        result.write(trainer.output_dir)        # last, as its presence marks a finished run
    return result
