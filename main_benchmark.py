"""How fast each stage is under each mode: the real engines on real batches, modes taking turns in one run.

python main_benchmark.py --stages pretrain,evaluate --modes plain,fused,bf16 --device cpu --json table.json

Modes: `plain` is the authors' way of computing (util/plain.py), `fused` ours in fp32, `tf32` and `bf16` ours in that
precision, `nonempty` ours in fp32 with --skip_empty_bodies, `compiled` bf16 with torch.compile, `resident` that with
the data set in the device's memory. A turn is --steps steps of a stage; the first of each is warm-up. Without
--data_path, clips as long and as often of one body as NTU RGB+D 60's are made up. FLOPs count every body, also one that
is passed over.
"""

import argparse
import tempfile
import time
from pathlib import Path
from statistics import median

import torch

import engine_finetune
import engine_pretrain
import main_finetune
import main_linprobe
import main_pretrain
from feeder.dataset import EvalBatches, SkeletonDataset
from feeder.loader import make_loader
from util.args import parse_args, resolve_batch
from util.attention import shape_of, use_kernel
from util.bench import Watched, attention_rows, matmul_peak, peak_memory, table, write_clips
from util.dist import World, joined
from util.errors import UserError, run_main
from util.files import write_json
from util.flops import clip_flops
from util.log import describe_machine
from util.loop import Precision, Trainer
from util.options import COUNT, WHOLE
from util.plain import make_plain, plain_loader

CONFIG = Path(__file__).parent / 'config'
BUILD = {'pretrain': main_pretrain.build_model, 'finetune': main_finetune.build_model,
         'linprobe': main_linprobe.build_model, 'evaluate': main_linprobe.build_model,
         'data': main_linprobe.build_model}
MODES = {  # settings of each; precision first
    'plain': {'precision': 'fp32', 'compile': 'off'},
    'fused': {'precision': 'fp32', 'compile': 'off'},
    'tf32': {'precision': 'tf32', 'compile': 'off'},
    'bf16': {'precision': 'bf16', 'compile': 'off'},
    'nonempty': {'precision': 'fp32', 'compile': 'off', 'skip_empty_bodies': True},
    'compiled': {'precision': 'bf16', 'compile': 'on'},
    'resident': {'precision': 'bf16', 'compile': 'on', 'data_on_device': True},
}


class Turns:
    """One stage under one mode, ready to run turn after turn."""

    def __init__(self, stage: str, mode: str, options: argparse.Namespace, data_path: str, world: World):
        recipe = stage if stage in ('pretrain', 'finetune') else 'linprobe'
        self.args = args = settings(recipe, options, data_path)
        vars(args).update(MODES[mode], num_workers=options.num_workers, batch_size=options.batch_size, accum_iter=1,
                          log_steps=10 ** 9, save_steps=0, save_minutes=0)
        args.effective_batch_size = options.batch_size * world.size if options.batch_size else args.effective_batch_size
        resolve_batch(args, world.size)
        self.stage, self.mode, self.world, self.seconds, self.waited, self.memory = stage, mode, world, [], [], 0
        clips_a_turn = options.steps * args.effective_batch_size
        dataset = SkeletonDataset(data_path, 'test' if stage == 'evaluate' else 'train', args.num_joints)
        if len(dataset) < clips_a_turn:
            raise UserError(f'{data_path}: {len(dataset)} clips are fewer than --steps {options.steps} steps of '
                            f'{args.effective_batch_size}')
        if stage != 'pretrain':
            args.num_classes = dataset.num_classes
        model, optimizer = BUILD[stage](args, world.device)
        resident, args.data_on_device = args.data_on_device, args.data_on_device and stage != 'evaluate'
        self.trainer = Trainer(args, world, model, optimizer, dataset, {})
        self.trainer.steps_per_epoch = options.steps
        if mode == 'plain':
            make_plain(self.trainer, dataset)
        if stage == 'evaluate':
            batches = EvalBatches(clips_a_turn, args.batch_size, world.rank, world.size)
            self.trainer.loader = (
                plain_loader(dataset, batches, self.trainer.clips, False, args.num_workers, world.device)
                if mode == 'plain' else make_loader(dataset, batches, args.num_workers, world.device,
                                                    resident))
        self.trainer.loader = Watched(self.trainer.loader)
        self.clips = clips_a_turn

    def run(self) -> None:
        """One turn; the device's work is over when it returns."""
        trainer, loader = self.trainer, self.trainer.loader
        trainer.precision = Precision(self.args.precision, self.world.device)   # sets what is global
        use_kernel(trainer.attention)
        waited, began = loader.waited, time.perf_counter()
        with peak_memory(self.world.device) as peak:
            self._run_epoch(len(self.seconds))
            if self.world.device.type == 'cuda':
                torch.cuda.synchronize(self.world.device)
        self.seconds.append(time.perf_counter() - began)
        self.waited.append(loader.waited - waited)
        self.memory = peak.bytes

    def _run_epoch(self, epoch: int) -> None:
        trainer = self.trainer
        if self.stage == 'pretrain':
            engine_pretrain.train_one_epoch(trainer, epoch)
        elif self.stage == 'evaluate':
            engine_finetune.evaluate(trainer.raw_model, trainer.loader, trainer.clips, trainer.precision, self.world)
        elif self.stage == 'data':
            for step, batches in trainer.steps(epoch):
                for batch in batches:
                    trainer.clips.train_view(batch, epoch, step)
        else:
            engine_finetune.train_one_epoch(trainer, epoch)

    def profile(self) -> str:
        """The operations that took longest in a turn of its own, as PyTorch's profiler tells."""
        with torch.profiler.profile() as profiler:
            self._run_epoch(len(self.seconds))
        on_gpu = self.world.device.type == 'cuda'
        return profiler.key_averages().table(sort_by=f'self_{"cuda" if on_gpu else "cpu"}_time_total', row_limit=20)

    def row(self, plain: 'Turns | None', peak: float, train_clips: int) -> dict:
        """What is printed of it; the first turn was for warming up."""
        seconds, clips_per_s = self.seconds[1:], self.clips / median(self.seconds[1:])
        flops = clip_flops(self.stage, self.args) * clips_per_s
        recipe = self.stage not in ('evaluate', 'data')
        return {'stage': self.stage, 'mode': self.mode, 'clips_per_s': clips_per_s,
                'ms_per_step': 1000 * median(seconds) * self.args.effective_batch_size / self.clips,
                'ratio_to_plain': plain and median(a / b for a, b in zip(plain.seconds[1:], seconds, strict=True)),
                'tflops': flops / 1e12 or None, 'share_of_peak': flops / (peak * self.world.size) or None,
                'waiting_for_data': median(self.waited[1:]) / median(seconds),
                'memory_gb': self.memory and self.memory / 1e9,
                'recipe_hours': self.args.epochs * train_clips / clips_per_s / 3600 if recipe else None}


FORMATS = {'stage': '', 'mode': '', 'clips_per_s': ',.1f', 'ms_per_step': ',.1f', 'ratio_to_plain': '.2f',
           'tflops': '.2f', 'share_of_peak': '.0%', 'waiting_for_data': '.0%', 'memory_gb': '.1f',
           'recipe_hours': ',.2f'}


def measure(stage: str, options: argparse.Namespace, data_path: str, world: World) -> list[dict]:
    """Rows of one stage. Its modes take turns, so that what slows the machine slows them all."""
    turns = {mode: Turns(stage, mode, options, data_path, world) for mode in options.modes}
    peaks = {precision: matmul_peak(world.device, precision)
             for precision in {turn.args.precision for turn in turns.values()}}
    for _ in range(options.repeats + 1):
        for turn in turns.values():
            turn.run()
    if options.profile:
        with open(options.profile, 'a') as file:
            for turn in turns.values():
                file.write(f'{stage} {turn.mode}\n{turn.profile()}\n')
    return [turn.row(turns.get('plain'), peaks[turn.args.precision], options.train_clips) for turn in turns.values()]


def report(rows: list[dict], options: argparse.Namespace, data_path: str, world: World) -> None:
    """Prints the machine, the table, and what each attention kernel takes at the shape pre-training has most of."""
    args = settings('pretrain', options, data_path)
    args.batch_size = options.batch_size or args.effective_batch_size
    shape = shape_of(args, num_bodies=2)
    print(f'{describe_machine(world.device)}, {world.size} processes; a turn is {options.steps} steps, median of '
          f'{options.repeats} turns\n')
    print(table(rows, FORMATS))
    print(f'\nAttention of {" × ".join(map(str, shape))} (bodies, heads, tokens, width), forward and backward:\n')
    print(table(attention_rows(world.device, shape), {'kernel': '', 'fp32_ms': '.2f', 'bf16_ms': '.2f'}))


def names(allowed):
    """An option's type: names from `allowed`, separated by commas."""
    def parse(value: str) -> list[str]:
        chosen = value.split(',')
        if not set(chosen) <= set(allowed):
            raise argparse.ArgumentTypeError(f'{value!r}: give some of {",".join(allowed)}')
        return sorted(set(chosen), key=list(allowed).index)
    return parse


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add('--stages', type=names(BUILD), default=['pretrain', 'evaluate'], help=','.join(BUILD))
    add('--modes', type=names(MODES), default=['plain', 'fused', 'bf16'], help=','.join(MODES))
    add('--config', nargs='+', default=[str(CONFIG / 'ntu60_xsub.yaml')], help='benchmark files, after the recipe')
    add('--data_path', help='an npz file; default: clips are made up')
    add('--batch_size', type=COUNT, help="clips a process at once; default: the recipe's on a GPU, 8 on a CPU")
    add('--steps', type=COUNT, help='a turn; default: 200 on a GPU, 2 on a CPU')
    add('--repeats', type=COUNT, default=5, help='turns that count')
    add('--num_workers', type=WHOLE, help='default: 8 on a GPU, 0 on a CPU')
    add('--train_clips', type=COUNT, default=40091, help="training clips of the recipe's projection; NTU-60 XSub's")
    add('--device', default='auto')
    add('--profile', type=Path, help="append what PyTorch's profiler says of one more turn of each to this file")
    add('--json', type=Path, help='also write the rows into this file')
    options = parser.parse_args(argv)

    with joined(options.device) as world, tempfile.TemporaryDirectory() as scratch:
        on_gpu = world.device.type == 'cuda'
        options.steps = options.steps or (200 if on_gpu else 2)
        options.batch_size = options.batch_size or (None if on_gpu else 8)
        options.num_workers = options.num_workers if options.num_workers is not None else (8 if on_gpu else 0)
        data_path = options.data_path or str(make_data(options, Path(scratch), world.size))
        rows = [row for stage in options.stages for row in measure(stage, options, data_path, world)]
        if world.is_main:
            report(rows, options, data_path, world)
        if options.json and world.is_main:
            write_json(options.json, rows)
    return 0


def settings(recipe: str, options: argparse.Namespace, data_path: str) -> argparse.Namespace:
    given = ['--config', str(CONFIG / f'{recipe}.yaml'), *options.config, '--data_path', data_path]
    return parse_args(recipe, given + ['--random_encoder'] * (recipe == 'linprobe'))


def make_data(options: argparse.Namespace, folder: Path, processes: int) -> Path:
    """A file with clips enough for a turn of any stage."""
    path, most = folder / 'clips.npz', 0
    for recipe in ('pretrain', 'finetune', 'linprobe'):
        args = settings(recipe, options, str(path))
        clips_a_step = options.batch_size * processes if options.batch_size else args.effective_batch_size
        most = max(most, options.steps * clips_a_step)
    write_clips(path, most, args.num_joints, args.num_classes or 60)
    return path


if __name__ == '__main__':
    run_main(main)
