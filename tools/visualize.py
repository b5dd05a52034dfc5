"""What a trained model makes of clips: the skeleton, motion and mask, true and predicted motion, attention, classes.

python tools/visualize.py --checkpoint runs/nwucla_xview/pretrain/checkpoint-last.pth --clip 250 --html clip.html
python tools/visualize.py --checkpoint runs/nwucla_xview/pretrain/checkpoint-last.pth --data_path a.json --gif clip.gif
"""

import argparse
import sys
from argparse import RawDescriptionHelpFormatter
from pathlib import Path

if __name__ == '__main__':     # run as a file, from any working directory
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from feeder.dataset import pack_clips
from feeder.layouts import Layout, check_same_joints, checkpoint_layout, default_layout, find_layout
from tools.drawing import pictures
from tools.drawing.animation import animate
from tools.drawing.inside import Clip, Inside, load_clip, load_model, look_inside, place_of, seen_as
from tools.drawing.page import write_page
from tools.recognition import Recogniser, Recording, find_files, read_files
from util.checkpoint import stage_of
from util.errors import Parser, UserError, printable, run_main
from util.files import check_outputs
from util.options import POSITIVE, WHOLE, Number

INPUTS = {'joint': 'joint positions', 'bone': 'bones', 'velocity': 'velocities'}


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument('--checkpoint', required=True, help='of any stage; only a pre-training one predicts motion')
    parser.add_argument('--data_path', help='the clips: an npz, or recordings of any format that tools/predict.py '
                        'reads (default: what the model was trained on)')
    parser.add_argument('--split', choices=('train', 'test'), default='test')
    parser.add_argument('--clip', type=int, nargs='+', default=[0], metavar='N',
                        help='rows in the split or file (default: 0)')
    parser.add_argument('--layout', metavar='NAME|YAML', help='what the joints are, where the checkpoint does not '
                        'say it')
    parser.add_argument('--scale', type=POSITIVE, help='metres in a unit of npy, BVH and pickled files (default: as in '
                        'the data the model was trained on)')
    parser.add_argument('--body', type=WHOLE, default=0, help='which body of the clip, from 0 like all numbers')
    parser.add_argument('--seed', type=Number(int, least=0, most=2**62), default=0, help='of the mask')
    parser.add_argument('--block', type=WHOLE, help='encoder block whose attention is shown (default: the last)')
    parser.add_argument('--head', type=WHOLE, help='one head of it (default: the mean of all)')
    parser.add_argument('--query', nargs=2, metavar=('JOINT', 'SEGMENT'),
                        help="who looks: 'right hand' 5, say (default: the mean of all joint-segments)")
    parser.add_argument('--out', type=Path, metavar='PNG', help='everything in one picture (default: clip.png, when '
                        'neither --gif nor --html is given); of several clips each gets its number before the ending')
    parser.add_argument('--gif', type=Path, help='the animation of true and predicted motion; numbered likewise')
    parser.add_argument('--html', type=Path, metavar='PAGE', help='all of it as one self-contained page')
    return parser


def outputs_of(args: argparse.Namespace) -> list[tuple[str, Path]]:
    """The pictures to write: option and path."""
    if not (args.out or args.gif or args.html):
        args.out = Path('clip.png')
    found = [(f'--{option}', numbered(path, row, args)) for option, path in (('out', args.out), ('gif', args.gif))
             if path for row in args.clip]
    return found + ([('--html', args.html)] if args.html else [])


def numbered(path: Path, row: int, args: argparse.Namespace) -> Path:
    """Where the picture of one clip goes."""
    return path if len(args.clip) == 1 or not path.name else path.with_name(f'{path.stem}-{row}{path.suffix}')


def open_clips(args: argparse.Namespace, settings: dict, layout: Layout | None) -> list[Clip]:
    """The clips asked for, of an npz or of a file of recordings; UserError as `load_clip` and `read_recordings`."""
    path = args.data_path or settings.get('data_path')
    if not isinstance(path, str):
        raise UserError(f'{args.checkpoint}: does not tell what it was trained on; give --data_path')
    check_outputs(outputs_of(args), [path])
    if Path(path).suffix.lower() == '.npz':
        return [load_clip(path, args.split, row, settings, layout) for row in args.clip]
    recogniser, found = Recogniser(args.checkpoint, 'cpu'), {}
    files = find_files([Path(path)], None)
    for row, recording in enumerate(read_files(files, recogniser, args.layout, None, args.scale, args.split)):
        if not isinstance(recording, Recording):
            raise recording[1]
        if row in args.clip:
            batch = pack_clips([recogniser.fit_bodies(recording.frames)])
            name = recording.file.name + (f', {recording.name}' if recording.several else '')
            found[row] = seen_as(batch, settings, layout, name, None)
    if odd := [clip for clip in args.clip if clip not in found]:
        raise UserError(f'--clip {odd[0]}: {path} has the clips 0 to {row}; give one of them')
    return [found[clip] for clip in args.clip]


def look(args: argparse.Namespace) -> tuple[list[Inside], dict[str, str]]:
    """All clips with what the model makes of them, and what there is to say of the model."""
    model, settings, state = load_model(args.checkpoint)
    stage = stage_of(model.state_dict())
    if args.gif and stage != 'pre-training':
        raise UserError(f'--gif: {args.checkpoint} is of {stage} and predicts no motion; give a pre-training '
                        'checkpoint, or --out or --html')
    layout = checkpoint_layout(state, args.checkpoint)
    if args.layout:
        given = find_layout(args.layout, model.num_joints)
        check_same_joints(layout, given, args.checkpoint)
        layout = layout or given
    clips = open_clips(args, settings, layout)
    bodies = clips[0].joints.shape[4]
    for option, value, count in (('body', args.body, bodies), ('block', args.block, len(model.blocks)),
                                 ('head', args.head, settings['num_heads'])):
        if value is not None and value >= count:
            raise UserError(f'--{option} {value}: there are {count}; give 0 to {count - 1}')
    layout = layout or default_layout(model.num_joints)
    query = args.query and place_of(layout, *args.query, model.num_segments)
    found = [look_inside(model, settings, clip, args.body, args.seed, args.block, args.head, query,
                         class_names=state.get('classes')) for clip in clips]
    facts = {'checkpoint': args.checkpoint, 'trained by': stage, 'on': settings.get('benchmark') or 'not told',
             'input': f'{INPUTS[settings["stream"]]}, {settings["num_frames"]} frames in segments of '
                      f'{model.t_patch_size}, {model.num_joints} joints ({layout.name})',
             'encoder': f'{len(model.blocks)} blocks, width {model.dim_feat}, {settings["num_heads"]} heads',
             'clips from': args.data_path or settings['data_path']}
    return found, {name: printable(fact) for name, fact in facts.items()}


def main(argv: list[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    check_outputs(outputs_of(args), [args.checkpoint])
    found, facts = look(args)
    for row, inside in zip(args.clip, found, strict=True):
        if args.out:
            pictures.write(numbered(args.out, row, args), pictures.png(pictures.overview(inside)))
            print(numbered(args.out, row, args))
        if args.gif:
            pictures.write(numbered(args.gif, row, args), animate(inside))
            print(numbered(args.gif, row, args))
    if args.html:
        write_page(args.html, f'Looking inside: {facts["on"]}', facts, found)
        print(args.html)
    return 0


if __name__ == '__main__':
    run_main(main)
