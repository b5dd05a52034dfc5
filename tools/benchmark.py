"""How fast each stage is under each mode: the real engines on real batches, modes taking turns in one run.

python tools/benchmark.py --stages pretrain,evaluate --modes plain,fused,bf16 --device cpu --json table.json

Modes: `plain` is the authors' way of computing (plain.py), `fused` ours in fp32, `tf32` and `bf16` ours in that
precision, `nonempty` ours in fp32 with --skip_empty_bodies (pre-training only), `compiled` bf16 with torch.compile,
`resident` that with the data set in the device's memory. A turn is --steps steps of a stage; the first of each is
warm-up. Without --data_path, clips as long and as often of one body as NTU RGB+D 60's are made up. FLOPs count every
body, also one that is passed over. Device memory includes the weights of all modes that take turns.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import torch

if __name__ == '__main__':     # run as a file, from any working directory
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import engine_finetune
import engine_pretrain
import main_finetune
import main_linprobe
import main_pretrain
from feeder.dataset import EvalBatches, SkeletonDataset
from feeder.loader import BatchLoader
from tools.benchmarking.flops import clip_flops
from tools.benchmarking.measure import Watched, attention_rows, matmul_peak, peak_memory, table, write_clips
from tools.benchmarking.plain import make_plain, plain_loader
from util.attention import shape_of, use_kernel
from util.config import parse_args, resolve_batch
from util.dist import World, joined
from util.errors import Parser, UserError, run_main
from util.files import check_writable, write_json
from util.log import describe_machine
from util.memory import report_out_of_memory
from util.options import COUNT, PROCESSES, WHOLE
from util.precision import Precision
from util.trainer import Trainer

CONFIG = Path(__file__).resolve().parents[1] / 'config'
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
            batches = EvalBatches(dataset.rows[:clips_a_turn], args.batch_size, world.rank, world.size)
            self.trainer.loader = (
                plain_loader(dataset, batches, self.trainer.clips, False, args.num_workers, world.device)
                if mode == 'plain' else BatchLoader(dataset, batches, world.device, args.num_workers,
                                                    resident))
        self.trainer.loader = Watched(self.trainer.loader)
        self.clips = clips_a_turn

    def set_up(self) -> None:
        """Sets what is global to what this mode has."""
        self.trainer.precision = Precision(self.args.precision, self.world.device)
        use_kernel(self.trainer.attention)

    def run(self) -> None:
        """One turn; the device's work is over when it returns."""
        self.set_up()
        loader = self.trainer.loader
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

    def profile(self, steps: int = 3) -> str:
        """The operations that took longest in a few steps of their own, as PyTorch's profiler tells."""
        self.set_up()
        trainer, on_gpu = self.trainer, self.world.device.type == 'cuda'
        trainer.steps_per_epoch = trainer.loader.most = min(steps, trainer.steps_per_epoch)
        with torch.profiler.profile(acc_events=True) as profiler:
            self._run_epoch(len(self.seconds))
        return profiler.key_averages().table(sort_by=f'self_{"cuda" if on_gpu else "cpu"}_time_total', row_limit=20)

    def row(self, plain: 'Turns | None', peak: float, train_clips: int, test_clips: int) -> dict:
        """What is printed of it; the first turn was for warming up."""
        seconds, clips_per_s = self.seconds[1:], self.clips / median(self.seconds[1:])
        flops = clip_flops(self.stage, self.args)
        hours = None
        if self.stage not in ('evaluate', 'data'):
            # Classifiers see the test split after every epoch; its clips are taken to cost as their FLOPs say.
            tested = 0 if self.stage == 'pretrain' else test_clips * clip_flops('evaluate', self.args) / flops
            hours = self.args.epochs * (train_clips + tested) / clips_per_s / 3600
        return {'stage': self.stage, 'mode': self.mode, 'clips_per_s': clips_per_s,
                'ms_per_step': 1000 * median(seconds) * self.args.effective_batch_size / self.clips,
                'ratio_to_plain': plain and median(a / b for a, b in zip(plain.seconds[1:], seconds, strict=True)),
                'tflops': flops * clips_per_s / 1e12 or None,
                'share_of_peak': flops * clips_per_s / (peak * self.world.size) or None,
                'waiting_for_data': median(self.waited[1:]) / median(seconds),
                'memory_gb': self.memory and self.memory / 1e9, 'recipe_hours': hours}


FORMATS = {'stage': '', 'mode': '', 'clips_per_s': ',.1f', 'ms_per_step': ',.1f', 'ratio_to_plain': '.2f',
           'tflops': '.2f', 'share_of_peak': '.0%', 'waiting_for_data': '.0%', 'memory_gb': '.1f',
           'recipe_hours': ',.2f'}


def measure(stage: str, options: argparse.Namespace, data_path: str, world: World) -> list[dict]:
    """Rows of one stage. Its modes take turns, so that what slows the machine slows them all."""
    modes = [mode for mode in options.modes if mode != 'nonempty' or stage == 'pretrain']
    turns = {mode: Turns(stage, mode, options, data_path, world) for mode in modes}
    peaks = {}
    for turn in turns.values():
        if turn.args.precision not in peaks:
            turn.set_up()
            peaks[turn.args.precision] = matmul_peak(world.device, turn.args.precision)
    for _ in range(options.repeats + 1):
        for turn in turns.values():
            turn.run()
    if options.profile:
        for turn in turns.values():
            told = turn.profile()
            if world.is_main:
                with open(options.profile, 'a') as file:
                    file.write(f'{stage} {turn.mode}\n{told}\n')
    return [turn.row(turns.get('plain'), peaks[turn.args.precision], options.train_clips, options.test_clips)
            for turn in turns.values()]


def report_attention(options: argparse.Namespace, data_path: str, device: torch.device) -> None:
    """Prints what each attention kernel takes at the shape pre-training has most of."""
    args = settings('pretrain', options, data_path)
    args.batch_size = options.batch_size or args.effective_batch_size
    shape = shape_of(args, num_bodies=2)
    Precision('fp32', device)
    print(f'Attention of {" × ".join(map(str, shape))} (bodies, heads, tokens, width), forward and backward:\n')
    print(table(attention_rows(device, shape), {'kernel': '', 'fp32_ms': '.2f', 'bf16_ms': '.2f'}))


def names(allowed):
    """An option's type: names from `allowed`, separated by commas."""
    def parse(value: str) -> list[str]:
        chosen = value.split(',')
        if not set(chosen) <= set(allowed):
            raise argparse.ArgumentTypeError(f'{value!r}: give some of {",".join(allowed)}')
        return sorted(set(chosen), key=list(allowed).index)
    return parse


def main(argv: list[str] | None = None) -> int:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add('--stages', type=names(BUILD), default=['pretrain', 'evaluate'], help=','.join(BUILD))
    add('--modes', type=names(MODES), default=['plain', 'fused', 'bf16'], help=','.join(MODES))
    add('--config', nargs='+', default=[str(CONFIG / 'ntu60_xsub.yaml')], help='benchmark files, after the recipe')
    add('--data_path', help='an npz file; default: clips are made up')
    add('--batch_size', type=COUNT, help="clips a process at once; default: the recipe's on a GPU, 8 on a CPU")
    add('--steps', type=COUNT, help='a turn; default: 70 on a GPU, 2 on a CPU')
    add('--repeats', type=COUNT, default=3, help='turns that count')
    add('--num_workers', type=PROCESSES, help='default: 8 on a GPU, 0 on a CPU')
    add('--train_clips', type=COUNT, default=40091, help="training clips of the recipe's projection; NTU-60 XSub's")
    add('--test_clips', type=WHOLE, default=16487, help='test clips, of which classifiers see all after every epoch')
    add('--device', default='auto')
    add('--profile', type=Path, help="append what PyTorch's profiler says of one more turn of each to this file")
    add('--json', type=Path, help='also write the rows into this file')
    options = parser.parse_args(argv)

    with (joined(options.device) as world, report_out_of_memory(options, world.device),
          tempfile.TemporaryDirectory() as scratch):
        on_gpu = world.device.type == 'cuda'
        options.steps = options.steps or (70 if on_gpu else 2)
        options.batch_size = options.batch_size or (None if on_gpu else 8)
        options.num_workers = options.num_workers if options.num_workers is not None else (8 if on_gpu else 0)
        check(options, on_gpu)
        data_path = options.data_path or str(make_data(options, Path(scratch), world.size))
        if world.is_main:
            print(f'{describe_machine(world.device)}, {world.size} processes; a turn is {options.steps} steps, median '
                  f'of {options.repeats} turns', flush=True)
        rows = []
        for stage in options.stages:        # each is told as soon as it is known
            found = measure(stage, options, data_path, world)
            rows += found
            if world.is_main:
                print(f'\n{table(found, FORMATS)}\n', flush=True)
            if options.json and world.is_main:
                write_json(options.json, rows)
        if world.is_main:
            report_attention(options, data_path, world.device)
    return 0


def check(options: argparse.Namespace, on_gpu: bool) -> None:
    """Before anything is measured: raises UserError for what cannot be."""
    if 'tf32' in options.modes and not on_gpu:
        raise UserError('--modes tf32 needs a CUDA GPU; leave it out')
    if options.batch_size == 1 and {'finetune', 'linprobe'} & set(options.stages):
        raise UserError('--batch_size 1: the heads normalise over a batch; give 2 clips or more')
    if options.modes == ['nonempty'] and 'pretrain' not in options.stages:
        raise UserError('--modes nonempty is one of pre-training only; give another, or --stages pretrain')
    for path in filter(None, (options.profile, options.json)):
        if path.is_dir() or not path.parent.is_dir():
            raise UserError(f'{path}: cannot be written (it is a folder, or in none); give another')
        check_writable(path.parent)
    if options.data_path:
        for recipe in ('pretrain', 'finetune', 'linprobe'):
            num_joints = settings(recipe, options, options.data_path).num_joints
        for split in ('train', 'test'):
            SkeletonDataset(options.data_path, split, num_joints)


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
