"""Trained models for other programs, and the authors' checkpoints for this one.

python tools/export.py --checkpoint runs/finetune/checkpoint-last.pth --onnx model.onnx --pt2 model.pt2
python tools/export.py --authors THEIRS.pth --out OURS.pth --config config/finetune.yaml config/ntu60_xsub.yaml

An exported program takes network input (B, 3, T, V, M) float32 of any number B of clips, as feeder/augment.py makes it
(in metres; the middle 95 % of the valid frames, resized linearly to T; bones or velocities for those streams) and gives
logits (B, classes), or an encoder's features (B, D) averaged over bodies, segments and joints. What it is stands in it.
Before a file gets its name it is run beside PyTorch, and dropped when they differ. --authors takes every option of the
stage that the checkpoint is of.
"""

import sys
from argparse import Namespace, RawDescriptionHelpFormatter
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import torch

if __name__ == '__main__':     # run as a file, from any working directory
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from feeder.augment import ClipMaker
from feeder.dataset import SkeletonDataset
from feeder.layouts import Layout
from tools import export_formats as export
from util import checkpoint
from util.authors import convert
from util.errors import Parser, UserError, run_main
from util.files import atomic_write, check_outputs
from util.log import code_version
from util.options import COUNT
from util.weights import Facts, facts_of, load_whole

BATCHES = (1, 5)        # clips, of the batches that files are verified on


def random_walks(num_bodies: int, num_frames: int, num_joints: int) -> torch.Tensor:
    """Six clips (6, 3, T, V, M) in metres, always the same; the second body of every other one is empty."""
    rng = np.random.default_rng(0)
    pose = rng.normal(0, 0.4, (sum(BATCHES), 3, 1, num_joints, num_bodies))
    clips = pose + rng.normal(0, 0.03, (sum(BATCHES), 3, num_frames, num_joints, num_bodies)).cumsum(axis=2)
    clips[::2, ..., 1:] = 0
    return torch.from_numpy(clips.astype(np.float32))


def some_clips(args: Namespace, settings: dict, layout: Layout | None, bodies: int) -> tuple[list[np.ndarray], str]:
    """Network input to verify files on, a batch of each size in BATCHES, and what clips they are.

    Raises UserError when --data_path and --num_bodies contradict each other, or the file is none.
    """
    frames, joints = settings['num_frames'], settings['num_joints']
    maker = ClipMaker(frames, settings['stream'], seed=0, layout=layout)
    if args.data_path:
        dataset = SkeletonDataset(args.data_path, 'test', joints)
        if args.num_bodies not in (None, dataset.num_bodies):
            raise UserError(f'--num_bodies {args.num_bodies}: the clips of {args.data_path} have {dataset.num_bodies}; '
                            'leave it out')
        rows = np.linspace(0, len(dataset) - 1, sum(BATCHES)).round().astype(int)
        batch = dataset[[(row, 0) for row in rows]]
        if isinstance(batch, UserError):
            raise batch
        clips, told = maker.eval_view(batch), f'test clips {", ".join(map(str, rows))} of {args.data_path}'
    else:
        clips = maker.derive_stream(random_walks(args.num_bodies or bodies, frames, joints))
        told = f'{len(clips)} random walks (give --data_path for real clips)'
    return [part.contiguous().numpy() for part in clips.split(BATCHES)], told


def describe(path: str, what: str, settings: dict, state: dict, told: Facts, num_bodies: int) -> dict:
    """What an exported file says of itself: text, and lists of names; what is not known is left out."""
    layout = told.layout
    facts = {
        'what': what, 'input': 'clips (batch, 3, frames, joints, bodies) float32: the middle 95 % of the valid frames, '
        'resized linearly, in metres; then the stream is derived',
        'output': 'logits (batch, classes)' if what == 'classifier' else
        'features (batch, width), the mean over bodies, segments and joints',
        'classes': told.class_names if what == 'classifier' else None,
        'stream': settings['stream'], 'num_frames': str(settings['num_frames']),
        'num_joints': str(settings['num_joints']), 'num_bodies': str(num_bodies),
        'layout': layout and layout.name, 'joints': layout and list(layout.joints),
        'parents': layout and list(layout.parents), 'centred': 'yes' if told.centre else 'no',
        'benchmark': settings.get('benchmark'), 'method': state.get('method'), 'checkpoint': path,
        'checkpoint_sha256': checkpoint.digest_of(path), 'epoch': str(state.get('epoch')),
        'code_version': code_version(), 'torch': torch.__version__}
    return {name: value for name, value in facts.items() if value is not None}


def export_checkpoint(args: Namespace) -> None:
    """Writes what is asked for, all of it or nothing, and says what was verified."""
    outputs = [(option, path) for option, path in (('--onnx', args.onnx), ('--pt2', args.pt2)) if path]
    check_outputs(outputs, [args.checkpoint, *filter(None, [args.data_path])])
    model, what, settings, state = load_whole(args.checkpoint, args.what)
    told = facts_of(state, settings, args.checkpoint)
    batches, clips_told = some_clips(args, settings, told.layout, told.bodies)
    expected = export.compute(model, what, batches)
    shape = batches[0].shape[1:]
    facts = describe(args.checkpoint, what, settings, state, told, shape[-1])
    program, done = export.trace(model, what, shape), []
    with ExitStack() as files:
        for path, kind in ((args.onnx, 'onnx'), (args.pt2, 'pt2')):
            if path is None:
                continue
            partial = files.enter_context(atomic_write(path))
            if kind == 'onnx':
                export.write_onnx(program, what, facts, partial)
            else:
                export.write_pt2(program, facts, partial)
            read = export.read_onnx if kind == 'onnx' else export.read_pt2
            worst = export.verify(partial, read, what, batches, expected)
            done.append(f'{path}: {what}, (batch, {", ".join(map(str, shape))}) -> {export.OUTPUTS[what]} (batch, '
                        f'{expected[0].shape[1]}), {partial.stat().st_size / 1e6:.1f} MB; relative error {worst:.1e}'
                        + (', same top-1' if what == 'classifier' else ''))
    print(*done, f'verified against PyTorch on {clips_told}, in batches of {" and ".join(map(str, BATCHES))}', sep='\n')


def main(argv: list[str] | None = None) -> int:
    parser = Parser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument('--checkpoint', help='a checkpoint of main_pretrain.py, main_linprobe.py or main_finetune.py')
    source.add_argument('--authors', help="a checkpoint of the authors' program, to make one of ours of")
    parser.add_argument('--onnx', type=Path, help=f'the ONNX file to write (opset {export.OPSET})')
    parser.add_argument('--pt2', type=Path, help='the file to write for torch.export.load')
    parser.add_argument('--what', choices=tuple(export.OUTPUTS), help='(default: the classifier where there is one)')
    parser.add_argument('--data_path', help='npz whose test clips the files are verified on (default: random walks)')
    parser.add_argument('--num_bodies', type=COUNT,
                        help='bodies of a clip (default: those of --data_path, of the training clips, or 2)')
    parser.add_argument('--out', type=Path, help='the checkpoint to write, with --authors')
    args, rest = parser.parse_known_args(argv)
    if args.authors:
        if args.onnx or args.pt2 or args.what or args.num_bodies or args.out is None:
            parser.error('--authors goes with --out and options of a stage; export what it wrote with --checkpoint')
        print(convert(args.authors, args.out, rest + ['--data_path', args.data_path] * bool(args.data_path)))
        return 0
    if rest:
        parser.error(f'unrecognized arguments: {" ".join(rest)}')
    if args.out or not (args.onnx or args.pt2):
        parser.error('--checkpoint goes with --onnx or --pt2, or both, and without --out')
    export_checkpoint(args)
    return 0


if __name__ == '__main__':
    run_main(main)
