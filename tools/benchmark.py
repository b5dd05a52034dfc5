"""Measure the speed of every stage in several modes, with the real training loops on batches like NTU RGB+D 60's.

python tools/benchmark.py --stages pretrain,evaluate --modes plain,fp32,bf16 --device cpu --json table.json
python tools/benchmark.py --stages prepare --samples 1000

Stages: pretrain, finetune, linprobe and evaluate; data, which only makes clips; prepare, which converts NTU RGB+D text
to a dataset file. Modes: plain, which computes as the authors' code does (benchmarking/plain.py); fp32, tf32 and bf16,
this implementation in that precision; compiled, bf16 with torch.compile and, on a GPU, CUDA graphs, which is the
default for training there; resident, which also keeps the dataset in the GPU's memory; nonempty, the device's default
with --skip_empty_bodies (pretrain only).

Modes take turns. A round consists of --steps steps at a steady rate, after some warm-up steps that are not counted; the
first round, in which models are compiled, counts as start-up. Clips per second are the median of --repeats rounds.
FLOPs count every body.
"""

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import numpy as np
import torch

if __name__ == '__main__':      # run as a file, from any working directory
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import engine_finetune
import engine_pretrain
from feeder.dataset import EvalBatches, SkeletonDataset
from feeder.loader import BatchLoader
from model_mamp import MAMP
from model_transformer import ActionTransformer
from tools.benchmarking import preparation
from tools.benchmarking.measure import TimedLoader, clip_flops, matmul_peak, synchronize, table, write_clips
from tools.benchmarking.plain import PlainLoader, make_plain
from util.config import parse_args, resolve_batch
from util.dist import World, init_world
from util.errors import Parser, UserError, run_main
from util.files import check_outputs, write_json
from util.log import describe_machine
from util.optim import adamw, sgd
from util.options import COUNT, WHOLE
from util.precision import Precision
from util.trainer import Trainer
from util.weights import create_model

CONFIG = Path(__file__).resolve().parents[1] / 'config'
STAGES = 'pretrain', 'finetune', 'linprobe', 'evaluate', 'data', 'prepare'
MODES = {
    'plain': {'precision': 'fp32', 'compile': 'off'},
    'fp32': {'precision': 'fp32', 'compile': 'off'},
    'tf32': {'precision': 'tf32', 'compile': 'off'},
    'bf16': {'precision': 'bf16', 'compile': 'off'},
    'compiled': {'precision': 'bf16', 'compile': 'on'},
    'resident': {'precision': 'bf16', 'compile': 'on', 'data_on_device': True},
    'nonempty': {'precision': None, 'compile': 'auto', 'skip_empty_bodies': True},
}
FORMATS = {'stage': '', 'mode': '', 'batch': 'd', 'clips_per_s': ',.1f', 'ms_per_step': ',.2f', 'ratio_to_plain': '.2f',
           'kernels_ms': ',.2f', 'tflops': '.2f', 'share_of_peak': '.0%', 'waiting_for_data': '.0%',
           'memory_gb': '.1f', 'start_s': '.0f', 'recipe_hours': ',.2f'}
CLIPS = 1024            # clips of the synthetic file, repeated as needed
PROFILED = 4            # steps under the profiler, whose tables take seconds to compute


class StageRun:
    """One stage in one mode with one batch size, measured in rounds."""

    def __init__(self, stage: str, mode: str, batch_size: int | None, options: argparse.Namespace, world: World):
        self.stage, self.mode, self.world, self.steps = stage, mode, world, options.steps
        self.args = args = recipe_settings(stage, options)
        vars(args).update(MODES[mode], num_workers=options.num_workers, batch_size=batch_size, accum_iter=1,
                          log_steps=10 ** 9, save_steps=0, save_minutes=0, output_dir=options.scratch,
                          log_dir=options.scratch)
        if batch_size:
            args.effective_batch_size = batch_size * world.size
        resolve_batch(args, world.size)
        warmup = 6 if world.device.type == 'cuda' else 1        # a CUDA graph is recorded in the fourth step
        dataset = SkeletonDataset(options.data_path, 'test' if stage == 'evaluate' else 'train', args.num_joints)
        dataset.rows = np.resize(dataset.rows, (warmup + self.steps) * args.effective_batch_size)
        if stage != 'pretrain':
            args.num_classes = dataset.num_classes
        self.trainer = trainer = Trainer(args, world, *build_model(stage, args, world.device), dataset,
                                         protocol=stage, method=mode)
        if mode == 'plain':
            make_plain(trainer, dataset)
        if stage == 'evaluate':
            batches = EvalBatches(dataset.rows, args.batch_size, world.rank, world.size)
            trainer.loader = PlainLoader(dataset, batches, trainer.clips, False, args.num_workers, world.device) \
                if mode == 'plain' else BatchLoader(dataset, batches, world.device, args.num_workers,
                                                    args.data_on_device)
        trainer.loader = self.loader = TimedLoader(trainer.loader, warmup, world.device)
        self.seconds, self.waited, self.start, self.memory, self.kernels_ms = [], [], None, None, None

    def run(self) -> None:
        """Run one round; the first one is the start-up."""
        trainer, device, began = self.trainer, self.world.device, time.perf_counter()
        trainer.precision = Precision(self.args.precision, device)      # sets the precision of all matrix products
        if device.type == 'cuda':
            torch.cuda.reset_peak_memory_stats(device)
        epoch = len(self.seconds)
        if self.stage == 'pretrain':
            engine_pretrain.train_one_epoch(trainer, epoch)
        elif self.stage == 'evaluate':
            engine_finetune.evaluate(trainer.model, trainer.loader, trainer.clips, trainer.precision, self.world,
                                     trainer.graphs)
        elif self.stage == 'data':
            for step, batches in trainer.steps(epoch):
                for batch in batches:
                    trainer.clips.train_view(batch, epoch, step)
        else:
            engine_finetune.train_one_epoch(trainer, epoch)
        synchronize(device)
        if self.start is None:
            self.start = self.loader.start - began
        else:
            self.seconds.append(time.perf_counter() - self.loader.start)
            self.waited.append(self.loader.waited)
        if device.type == 'cuda':
            self.memory = torch.cuda.max_memory_allocated(device) / 1e9

    def profile(self) -> str:
        """Run a few steps under PyTorch's profiler; returns a table of the longest operations and sets `kernels_ms`."""
        device = 'cuda' if self.world.device.type == 'cuda' else 'cpu'
        activity = getattr(torch.profiler.ProfilerActivity, device.upper())
        self.loader.limit = steps = min(PROFILED, self.steps)
        os.environ.setdefault('KINETO_LOG_LEVEL', '5')      # no message about a missing GPU driver
        with torch.profiler.profile(activities=[activity], acc_events=True) as profiler:
            self.run()
        self.seconds.pop(), self.waited.pop()
        averages = profiler.key_averages()
        if device == 'cuda':
            microseconds = sum(event.self_device_time_total for event in averages)
            self.kernels_ms = microseconds / 1000 / steps
        return averages.table(sort_by=f'self_{device}_time_total', row_limit=25, max_name_column_width=90)

    def row(self, plain: 'StageRun | None', peak: float, train_clips: int, test_clips: int) -> dict:
        """Return a row of the table.

        The recipe of a classifier includes an evaluation of the test split after every epoch.
        """
        args, seconds = self.args, median(self.seconds)
        clips_per_s, flops = self.steps * args.effective_batch_size / seconds, clip_flops(self.stage, args)
        hours = None
        if self.stage not in ('evaluate', 'data'):
            evaluation = 0 if self.stage == 'pretrain' else test_clips * clip_flops('evaluate', args) / flops
            hours = args.epochs * (train_clips + evaluation) / clips_per_s / 3600
        return {'stage': self.stage, 'mode': self.mode, 'batch': args.effective_batch_size, 'clips_per_s': clips_per_s,
                'ms_per_step': 1000 * seconds / self.steps, 'kernels_ms': self.kernels_ms,
                'ratio_to_plain': plain and median(a / b for a, b in zip(plain.seconds, self.seconds, strict=True)),
                'tflops': flops * clips_per_s / 1e12 or None,
                'share_of_peak': flops * clips_per_s / (peak * self.world.size) or None,
                'waiting_for_data': median(self.waited) / seconds, 'memory_gb': self.memory, 'start_s': self.start,
                'recipe_hours': hours}


def build_model(stage: str, args: argparse.Namespace, device: torch.device):
    """Build model and optimiser of a stage, as its main file does."""
    torch.manual_seed(args.seed)
    if stage == 'pretrain':
        model = create_model(MAMP, vars(args)).to(device)
        return model, adamw(model, (0.9, 0.95), args.weight_decay)
    protocol = 'finetune' if stage == 'finetune' else 'linprobe'
    model = create_model(ActionTransformer, vars(args), protocol=protocol).to(device)
    return model, adamw(model, (0.9, 0.999), args.weight_decay, args.layer_decay) if stage == 'finetune' \
        else sgd(model, args.weight_decay)


def recipe_settings(stage: str, options: argparse.Namespace) -> argparse.Namespace:
    recipe = stage if stage in ('pretrain', 'finetune') else 'linprobe'
    command = ['--config', str(CONFIG / f'{recipe}.yaml'), *options.config, '--data_path', options.data_path]
    return parse_args(recipe, command + ['--random_encoder'] * (recipe == 'linprobe'))


def measure(stage: str, batch_size: int | None, options: argparse.Namespace, world: World) -> list[dict]:
    """Measure the modes of a stage in turns, so that slow phases of the machine affect all of them; returns rows."""
    runs = {mode: StageRun(stage, mode, batch_size, options, world) for mode in options.modes
            if mode != 'nonempty' or stage == 'pretrain'}
    for _ in range(options.repeats + 1):
        for run in runs.values():
            run.run()
    if options.profile or world.device.type == 'cuda':
        for run in runs.values():
            operations = run.profile()
            if options.profile and world.is_main:
                with open(options.profile, 'a', encoding='utf-8') as file:
                    file.write(f'{stage} {run.mode}, batch {run.args.effective_batch_size}\n{operations}\n')
    rows = []
    for run in runs.values():
        precision = Precision(run.args.precision, world.device)
        peak = matmul_peak(world.device, precision.name)
        rows.append(run.row(runs.get('plain'), peak, options.train_clips, options.test_clips))
    return rows


def subset(allowed):
    """Return an option type that accepts names from `allowed`, separated by commas."""
    def parse(value: str) -> list[str]:
        if not set(value.split(',')) <= set(allowed):
            raise argparse.ArgumentTypeError(f'{value!r}: choose from {",".join(allowed)}')
        return [name for name in allowed if name in value.split(',')]
    return parse


def build_parser() -> Parser:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add('--stages', type=subset(STAGES), default=['pretrain', 'evaluate'], help=','.join(STAGES))
    add('--modes', type=subset(MODES), default=['plain', 'fp32', 'bf16'], help=','.join(MODES))
    add('--config', nargs='+', default=[str(CONFIG / 'ntu60_xsub.yaml')], help='benchmark files, which override '
        'the recipe')
    add('--data_path', help='a dataset file (default: synthetic clips)')
    add('--batch_size', type=COUNT, nargs='+', help='clips per process, one or several sizes '
        '(default: 8 on a CPU, those of the recipe on a GPU)')
    add('--steps', type=COUNT, help='steps per round (default: 40 on a GPU, 2 on a CPU)')
    add('--repeats', type=COUNT, default=3, help='number of rounds after the first, which is the start-up')
    add('--num_workers', type=WHOLE, help='reading threads, or worker processes of `plain` '
        '(default: 8 on a GPU, else 0)')
    add('--train_clips', type=COUNT, default=40091, help='training clips per epoch, to compute the hours of the '
        'recipe (default: NTU-60 XSub)')
    add('--test_clips', type=WHOLE, default=16487, help='clips in the evaluation after every epoch')
    add('--device', default='auto', help='auto, cpu, cuda or cuda:N')
    add('--raw', type=Path, help='folder of .skeleton files for `prepare` (default: synthetic ones)')
    add('--samples', type=COUNT, default=1000, help='synthetic files for `prepare`')
    add('--profile', type=Path, help="append the profiler's table of each stage and mode to this file")
    add('--json', type=Path, help='write the rows to this file too')
    return parser


def check(options: argparse.Namespace, device: torch.device) -> None:
    """Fill in the defaults of the device; raise UserError for combinations that cannot be measured."""
    on_gpu = device.type == 'cuda'
    options.steps = options.steps or (40 if on_gpu else 2)
    options.batch_size = options.batch_size or [None if on_gpu else 8]
    options.num_workers = (8 if on_gpu else 0) if options.num_workers is None else options.num_workers
    if 'tf32' in options.modes and not on_gpu:
        raise UserError('--modes tf32 needs a CUDA GPU; omit it')
    if 1 in options.batch_size and {'finetune', 'linprobe'} & set(options.stages):
        raise UserError('--batch_size 1 is too small: the heads normalise over the batch; use 2 or more')
    if options.modes == ['nonempty'] and 'pretrain' not in options.stages:
        raise UserError('--modes nonempty measures pre-training only; add pretrain to --stages')
    outputs = ('--json', options.json), ('--profile', options.profile)
    check_outputs([(name, path) for name, path in outputs if path])
    if options.data_path is None:
        options.data_path = f'{options.scratch}/clips.npz'
        args = recipe_settings('finetune', options)
        write_clips(Path(options.data_path), min(CLIPS, options.steps * 64), args.num_joints, args.num_classes or 60)


def main(argv: list[str] | None = None) -> int:
    options = build_parser().parse_args(argv)
    with init_world(options.device) as world, tempfile.TemporaryDirectory() as scratch:
        options.scratch = scratch
        check(options, world.device)
        if world.is_main:
            print(f'{describe_machine(world.device)}, {world.size} processes; rounds of {options.steps} steps, median '
                  f'of {options.repeats}', flush=True)
        rows = []
        for stage in options.stages:
            for batch_size in options.batch_size if stage != 'prepare' else [None]:
                if stage == 'prepare':
                    new = preparation.compare_preparation(options.raw, options.samples, options.repeats, Path(scratch))
                else:
                    new = measure(stage, batch_size, options, world)
                rows += new
                if world.is_main:
                    print(f'\n{table(new, preparation.FORMATS if stage == "prepare" else FORMATS)}', flush=True)
                if options.json and world.is_main:
                    write_json(options.json, rows)
    return 0


if __name__ == '__main__':
    run_main(main)
