"""Export trained models for use without this code, and convert checkpoints of the authors' code.

python tools/export.py --checkpoint runs/finetune/checkpoint-last.pth --onnx model.onnx --pt2 model.pt2
python tools/export.py --authors AUTHORS.pth --out OWN.pth --config config/finetune.yaml config/ntu60_xsub.yaml

An exported model takes clips (B, 3, T, V, M) float32 as feeder/augment.py makes them for evaluation (in metres; the
middle 95 % of the valid frames, resized linearly to T; bones or velocities for those streams) and returns logits (B,
classes), or for an encoder its mean features (B, D). Metadata in the file describe it. A file is written only after it
has been verified against PyTorch. --authors accepts all options of the checkpoint's stage.
"""

import hashlib
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
from tools import export_formats as formats
from tools.recognition import InputSpec, input_spec
from util.checkpoint import Checkpoint
from util.errors import Parser, UserError, run_main
from util.files import atomic_write, check_outputs
from util.log import code_version
from util.options import COUNT
from util.weights import convert_authors, rebuild_model

BATCH_SIZES = (1, 5)        # sizes of the batches for verification


def random_walks(num_bodies: int, num_frames: int, num_joints: int) -> torch.Tensor:
    """Return six fixed clips (6, 3, T, V, M) in metres; the second body of every other clip is empty."""
    rng = np.random.default_rng(0)
    pose = rng.normal(0, 0.4, (sum(BATCH_SIZES), 3, 1, num_joints, num_bodies))
    clips = pose + rng.normal(0, 0.03, (sum(BATCH_SIZES), 3, num_frames, num_joints, num_bodies)).cumsum(axis=2)
    clips[::2, ..., 1:] = 0
    return torch.from_numpy(clips.astype(np.float32))


def verification_clips(args: Namespace, settings: dict, spec: InputSpec) -> tuple[list[np.ndarray], str]:
    """Return batches of network input for verifying files, and a description of the clips.

    Raises UserError if --num_bodies contradicts --data_path, or if that file is invalid.
    """
    frames, joints = settings['num_frames'], settings['num_joints']
    keypoints = settings.get('keypoints', '3d')
    clip_maker = ClipMaker(frames, settings['stream'], seed=0, layout=spec.layout, keypoints=keypoints)
    if args.data_path:
        dataset = SkeletonDataset(args.data_path, 'test', joints)
        if args.num_bodies not in (None, dataset.num_bodies):
            raise UserError(f'--num_bodies {args.num_bodies}: the clips of {args.data_path} have {dataset.num_bodies}; '
                            'omit it')
        rows = np.linspace(0, len(dataset) - 1, sum(BATCH_SIZES)).round().astype(int)
        clips = clip_maker.eval_view(dataset[[(row, 0) for row in rows]])
        description = f'test clips {", ".join(map(str, rows))} of {args.data_path}'
    else:
        clips = clip_maker.derive_stream(random_walks(args.num_bodies or spec.bodies, frames, joints))
        description = f'{len(clips)} random walks (specify --data_path to use real clips)'
    return [part.contiguous().numpy() for part in clips.split(BATCH_SIZES)], description


def describe(path: str, part: str, checkpoint: Checkpoint, spec: InputSpec, num_bodies: int) -> dict:
    """Return the metadata of an exported file: strings and lists of names, without unknown entries."""
    settings, layout = checkpoint.args, spec.layout
    with open(path, 'rb') as file:
        digest = hashlib.file_digest(file, 'sha256').hexdigest()
    metadata = {
        'what': part, 'input': 'clips (batch, 3, frames, joints, bodies) float32: the middle 95 % of the valid frames, '
        'resized linearly, in metres or as 2D keypoints; then the stream is derived',
        'keypoints': settings.get('keypoints', '3d'),
        'output': 'logits (batch, classes)' if part == 'classifier' else
        'features (batch, width), the mean over bodies, segments and joints',
        'classes': spec.class_names if part == 'classifier' else None,
        'stream': settings['stream'], 'num_frames': str(settings['num_frames']),
        'num_joints': str(settings['num_joints']), 'num_bodies': str(num_bodies),
        'layout': layout and layout.name, 'joints': layout and list(layout.joints),
        'parents': layout and list(layout.parents), 'centred': 'yes' if spec.centre else 'no',
        'benchmark': settings.get('benchmark'), 'method': checkpoint.method, 'checkpoint': path,
        'checkpoint_sha256': digest, 'epoch': str(checkpoint.epoch), 'code_version': code_version(),
        'torch': torch.__version__}
    return {name: value for name, value in metadata.items() if value is not None}


def export_checkpoint(args: Namespace) -> None:
    """Write and verify either all requested files or none, and print a summary."""
    check_outputs([(option, path) for option, path in (('--onnx', args.onnx), ('--pt2', args.pt2)) if path],
                  [args.checkpoint, *filter(None, [args.data_path])])
    is_classifier = Checkpoint.read(args.checkpoint).stage in ('linprobe', 'finetune')
    part = args.what or ('classifier' if is_classifier else 'encoder')
    if part == 'classifier' and not is_classifier:
        raise UserError(f'{args.checkpoint}: has no classes; use --what encoder, or a checkpoint of main_linprobe.py '
                        'or main_finetune.py')
    model, checkpoint = rebuild_model(args.checkpoint, 'encoder' if part == 'encoder' else None)
    spec = input_spec(checkpoint, args.checkpoint)
    batches, description = verification_clips(args, checkpoint.args, spec)
    expected, shape = formats.compute(model, part, batches), batches[0].shape[1:]
    metadata = describe(args.checkpoint, part, checkpoint, spec, shape[-1])
    program, lines = formats.trace(model, part, shape), []
    with ExitStack() as files:
        for path, read in ((args.onnx, formats.read_onnx), (args.pt2, formats.read_pt2)):
            if path is None:
                continue
            partial = files.enter_context(atomic_write(path))
            if read is formats.read_onnx:
                formats.write_onnx(program, part, metadata, partial)
            else:
                formats.write_pt2(program, metadata, partial)
            error = formats.verify(partial, read, part, batches, expected)
            lines.append(f'{path}: {part}, (batch, {", ".join(map(str, shape))}) -> {formats.OUTPUTS[part]} (batch, '
                         f'{expected[0].shape[1]}), {partial.stat().st_size / 1e6:.1f} MB; relative error {error:.1e}'
                         + (', same top-1' if part == 'classifier' else ''))
    print(*lines, f'verified against PyTorch on {description}, in batches of {" and ".join(map(str, BATCH_SIZES))}',
          sep='\n')


def main(argv: list[str] | None = None) -> int:
    parser = Parser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument('--checkpoint', help='checkpoint of main_pretrain.py, main_linprobe.py or main_finetune.py')
    source.add_argument('--authors', help="checkpoint of the authors' code to convert")
    parser.add_argument('--onnx', type=Path, help=f'ONNX file to write (opset {formats.OPSET})')
    parser.add_argument('--pt2', type=Path, help='file to write for torch.export.load')
    parser.add_argument('--what', choices=tuple(formats.OUTPUTS),
                        help='part of the model (default: the classifier, if there is one)')
    parser.add_argument('--data_path', help='dataset file (npz) whose test clips are used for verification (default: '
                                            'random walks)')
    parser.add_argument('--num_bodies', type=COUNT,
                        help='bodies per clip (default: as in --data_path or in the training clips)')
    parser.add_argument('--out', type=Path, help='checkpoint to write, with --authors')
    args, rest = parser.parse_known_args(argv)
    if args.authors:
        if args.onnx or args.pt2 or args.what or args.num_bodies or args.out is None:
            parser.error('--authors needs --out and accepts only the options of a stage; to export the converted '
                         'checkpoint, use --checkpoint in a second call')
        print(convert_authors(args.authors, args.out, rest + ['--data_path', args.data_path] * bool(args.data_path)))
        return 0
    if rest:
        parser.error(f'unrecognized arguments: {" ".join(rest)}')
    if args.out or not (args.onnx or args.pt2):
        parser.error('--checkpoint needs --onnx, --pt2 or both; --out is for --authors only')
    export_checkpoint(args)
    return 0


if __name__ == '__main__':
    run_main(main)
