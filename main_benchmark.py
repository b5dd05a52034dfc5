"""How fast the model is: clips/s of a stage under each mode, measured in turn in one run, as ratios to `plain`.

python main_benchmark.py --stages pretrain,evaluate --modes plain,fused [--config config/pretrain.yaml FILE.yaml]

Modes: `plain` computes attention step by step (the whole L × L matrix in memory), `fused` in one kernel; `bf16` is
`fused` under bf16 autocast. Stages: `pretrain` is one optimiser step, `evaluate` a forward pass of the probe.
"""

import argparse
import time
from pathlib import Path
from statistics import median

import torch
from torch import nn

from model_mamp import MAMP
from model_transformer import ActionTransformer
from util.args import COUNT, build_parser, read_config, settings_for
from util.dist import joined
from util.errors import UserError, run_main
from util.files import write_json
from util.log import describe_machine
from util.optim import adamw, set_learning_rate

STAGES, MODES = ('pretrain', 'evaluate'), ('plain', 'fused', 'bf16')


def set_fused_attention(model: nn.Module, fused: bool) -> None:
    for module in model.modules():
        if hasattr(module, 'fused_attn'):
            module.fused_attn = fused


def pretrain_step(settings: dict, clips: torch.Tensor):
    """A function that does one optimiser step of pre-training, and its model."""
    model = MAMP(**settings_for(MAMP, settings)).to(clips.device)
    optimizer = adamw(model, betas=(0.9, 0.95), weight_decay=settings['weight_decay'])
    set_learning_rate(optimizer, 1e-4)
    how = {name: settings[name] for name in ('mask_ratio', 'motion_stride', 'motion_aware_tau')}

    def step() -> None:
        loss, _, _ = model(clips, **how)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return model, step


def evaluate_step(settings: dict, clips: torch.Tensor):
    """A function that classifies the clips, and its model."""
    model = ActionTransformer(protocol='linprobe', num_classes=60, **settings_for(ActionTransformer, settings))
    model = model.to(clips.device).eval()

    def step() -> None:
        with torch.inference_mode():
            model(clips)
    return model, step


def time_once(model: nn.Module, step, mode: str, device: torch.device) -> float:
    """Seconds of one step under `mode`, the device's work included."""
    set_fused_attention(model, mode != 'plain')
    began = time.perf_counter()
    with torch.autocast(device.type, torch.bfloat16, enabled=mode == 'bf16'):
        step()
    if device.type == 'cuda':
        torch.cuda.synchronize(device)
    return time.perf_counter() - began


def measure(stage: str, modes: list[str], settings: dict, clips: torch.Tensor, repeats: int) -> list[dict]:
    """Rows of one stage: modes take turns, so that what slows the machine slows them all; the first turn is warm-up."""
    model, step = {'pretrain': pretrain_step, 'evaluate': evaluate_step}[stage](settings, clips)
    turns = [[time_once(model, step, mode, clips.device) for mode in modes] for _ in range(repeats + 1)][1:]
    rows = []
    for index, mode in enumerate(modes):
        seconds = median(turn[index] for turn in turns)
        ratio = median(turn[0] / turn[index] for turn in turns)
        rows.append({'stage': stage, 'mode': mode, 'clips_per_s': len(clips) / seconds, 'ms_per_step': 1000 * seconds,
                     'ratio_to_plain': ratio if modes[0] == 'plain' else None})
    return rows


def names(allowed: tuple[str, ...]):
    """An option's type: names from `allowed`, separated by commas."""
    def parse(value: str) -> list[str]:
        chosen = value.split(',')
        if not set(chosen) <= set(allowed):
            raise argparse.ArgumentTypeError(f'{value!r}: give some of {",".join(allowed)}')
        return sorted(set(chosen), key=allowed.index)
    return parse


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--stages', type=names(STAGES), default=list(STAGES))
    parser.add_argument('--modes', type=names(MODES), default=['plain', 'fused'])
    config = Path(__file__).parent / 'config'
    parser.add_argument('--config', nargs='+', default=[config / 'pretrain.yaml', config / 'ntu60_xsub.yaml'],
                        help='settings of the model; later files win')
    parser.add_argument('--batch_size', type=COUNT, default=8, help='clips of two bodies')
    parser.add_argument('--repeats', type=COUNT, default=7)
    parser.add_argument('--device', default='auto')
    parser.add_argument('--json', type=Path, help='also write the rows into this file')
    args = parser.parse_args(argv)

    settings = {action.dest: action.default for action in build_parser('pretrain')._actions}
    for path in args.config:
        for layer in read_config(path, 'pretrain'):
            settings.update(layer)
    with joined(args.device) as world:
        torch.manual_seed(0)
        clips = torch.randn(args.batch_size, 3, settings['num_frames'], settings['num_joints'], 2, device=world.device)
        print(f'{describe_machine(world.device)}; {args.batch_size} clips of {settings["num_frames"]} frames, '
              f'two bodies of {settings["num_joints"]} joints; median of {args.repeats} turns')
        print('| stage | mode | clips/s | ms/step | ratio to plain |\n|---|---|---|---|---|')
        try:
            rows = [row for stage in args.stages for row in measure(stage, args.modes, settings, clips, args.repeats)]
        except ValueError as error:
            raise UserError(f'--config: {error}') from error
        for row in rows:
            ratio = f'{row["ratio_to_plain"]:.2f}' if row['ratio_to_plain'] else '–'
            print(f'| {row["stage"]} | {row["mode"]} | {row["clips_per_s"]:.2f} | {row["ms_per_step"]:.0f} | {ratio} |')
        if args.json:
            write_json(args.json, rows)
    return 0


if __name__ == '__main__':
    run_main(main)
