"""Visualize what a model does with clips: skeleton, mask, true and predicted motion, attention, classes.

python tools/visualize.py --checkpoint runs/nwucla_xview/pretrain/checkpoint-last.pth --clip 250 --html page.html
python tools/visualize.py --checkpoint mamp.pth --compare mae.pth --clip 250 --html page.html
python tools/visualize.py --checkpoint runs/nwucla_xview/pretrain/checkpoint-last.pth --data_path a.json --gif clip.gif
"""

import os
import sys
from argparse import BooleanOptionalAction, Namespace, RawDescriptionHelpFormatter
from collections import Counter
from pathlib import Path

if __name__ == '__main__':     # run as a file, from any working directory
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from data.formats.recording import Recording, assumption_notes
from feeder.dataset import pack_clips
from feeder.layouts import Layout, check_same_joints, checkpoint_layout, default_layout, find_layout
from tools.drawing import pictures
from tools.drawing.analysis import Clip as ModelClip
from tools.drawing.analysis import analyse_clip, load_clip, make_clip, parse_query
from tools.drawing.animation import animate
from tools.drawing.page import OpenModel, clip_scene, write_page
from tools.recognition import Recogniser
from tools.recordings import find_files, read_clips
from util.checkpoint import STAGE_TITLES
from util.errors import Parser, UserError, printable, run_main
from util.files import check_outputs
from util.options import POSITIVE, WHOLE, Number
from util.weights import rebuild_model

INPUTS = {'joint': 'joint positions', 'bone': 'bones', 'velocity': 'velocities'}


def build_parser() -> Parser:
    parser = Parser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument('--checkpoint', required=True, help='checkpoint of any stage; only pre-training predicts '
                                                            'motion')
    parser.add_argument('--data_path', help='dataset file (npz), or recordings of any format that tools/predict.py '
                                            'reads (default: the training data of the model)')
    parser.add_argument('--split', choices=('train', 'test'), default='test')
    parser.add_argument('--clip', type=int, nargs='+', default=[0], metavar='N',
                        help='rows in the split or file (default: 0)')
    parser.add_argument('--layout', metavar='NAME|YAML', help='joint layout, if the checkpoint does not record it')
    parser.add_argument('--scale', type=POSITIVE, help='metres per unit of npy, BVH and PYSKL files (default: that of '
                        'the training data)')
    parser.add_argument('--bodies_first', action=BooleanOptionalAction, help='read .npy arrays as (bodies, '
                        'frames, joints, 3) (default: if they have more bodies than frames otherwise)')
    parser.add_argument('--body', type=WHOLE, default=0, help='body of the clip, numbered from 0')
    parser.add_argument('--seed', type=Number(int, least=0, most=2**62), default=0, help='seed of the mask')
    parser.add_argument('--block', type=WHOLE, help='encoder block for attention, numbered from 0 (default: the last)')
    parser.add_argument('--head', type=WHOLE, help='attention head, numbered from 0 (default: mean of all)')
    parser.add_argument('--query', nargs=2, metavar=('JOINT', 'SEGMENT'),
                        help="query of the attention, for example 'right hand' 5 (default: mean of all)")
    parser.add_argument('--out', type=Path, metavar='PNG', help='everything in one picture (default: clip.png, without '
                        '--gif and --html); with several clips, their numbers are added to the name')
    parser.add_argument('--gif', type=Path, help='animation of true and predicted motion; with several clips, named '
                        'like --out')
    parser.add_argument('--html', type=Path, metavar='PAGE', help='a self-contained web page to explore the clips')
    parser.add_argument('--compare', metavar='FILE', help='beside the clip on the page: another checkpoint (.pth) for '
                        'the same clips, or the first clip of a recording')
    return parser


def output_files(args: Namespace) -> list[tuple[str, Path]]:
    """Return the files to write: option and path."""
    if not (args.out or args.gif or args.html):
        args.out = Path('clip.png')
    files = [(f'--{option}', numbered(path, row, args)) for option, path in (('out', args.out), ('gif', args.gif))
             if path for row in args.clip]
    return files + ([('--html', args.html)] if args.html else [])


def numbered(path: Path, row: int, args: Namespace) -> Path:
    """Return the name of the file for one clip."""
    return path if len(args.clip) == 1 or not path.name else path.with_name(f'{path.stem}-{row}{path.suffix}')


def open_clips(args: Namespace, settings: dict, layout: Layout | None) -> list[ModelClip]:
    """Open the requested clips of a dataset file or of recordings; raises as `load_clip` and `read_clips` do."""
    path = args.data_path or settings.get('data_path')
    if not isinstance(path, str):
        raise UserError(f'{args.checkpoint}: does not record its training data; specify --data_path')
    check_outputs(output_files(args), [path])
    if Path(path).suffix.lower() == '.npz':
        return [load_clip(path, args.split, row, settings, layout) for row in args.clip]
    recogniser, clips, count = Recogniser(args.checkpoint, 'cpu'), {}, 0
    files = find_files([Path(path)], None)
    for row, clip in enumerate(read_clips(files, recogniser, args.layout, None, args.scale, args.split,
                                            args.bodies_first)):
        count = row + 1
        if row in args.clip:
            if not isinstance(clip, Recording):
                raise clip[1]
            print(*assumption_notes(Counter(clip.notes), 1), sep='\n', file=sys.stderr)
            packed = pack_clips([recogniser.fit_bodies(clip.frames)])
            clips[row] = make_clip(packed, settings, layout, clip.short_title, None)
    if missing := [row for row in args.clip if row not in clips]:
        raise UserError(f'--clip {missing[0]}: {path} has clips 0 to {count - 1}; choose one of them')
    return [clips[row] for row in args.clip]


def open_model(args: Namespace) -> tuple[OpenModel, Layout | None]:
    """Rebuild the model of --checkpoint; its layout is None if neither the checkpoint nor --layout specifies it."""
    model, checkpoint = rebuild_model(args.checkpoint)
    settings, stage = checkpoint.args, STAGE_TITLES[checkpoint.stage]
    if checkpoint.stage == 'pretrain' and not {'mask_ratio', 'motion_stride', 'motion_aware_tau'} <= settings.keys():
        raise UserError(f'{args.checkpoint}: does not record its mask settings; use another checkpoint')
    if args.gif and checkpoint.stage != 'pretrain':
        raise UserError(f'--gif: {args.checkpoint} is a checkpoint of {stage} and predicts no motion; use a '
                        'pre-training checkpoint, or --out or --html')
    layout = checkpoint_layout(checkpoint, args.checkpoint)
    if args.layout:
        requested = find_layout(args.layout, model.num_joints)
        check_same_joints(layout, requested, args.checkpoint)
        layout = layout or requested
    facts = {'checkpoint': args.checkpoint, 'stage': stage, 'benchmark': settings.get('benchmark') or 'not recorded',
             'input': f'{INPUTS[settings["stream"]]}, {settings["num_frames"]} frames in segments of '
                      f'{model.t_patch_size}, {model.num_joints} joints',
             'encoder': f'{len(model.blocks)} blocks, width {model.dim_feat}, {settings["num_heads"]} heads',
             'clips from': args.data_path or settings.get('data_path', '')}
    rows = [[name, printable(fact)] for name, fact in facts.items()]
    return OpenModel(model, settings, checkpoint.class_names, rows), layout


def open_all(args: Namespace) -> tuple[OpenModel, list[ModelClip]]:
    """Return the model and the clips; raises UserError if they do not fit, or --body, --block or --head is too high."""
    opened, layout = open_model(args)
    clips, model = open_clips(args, opened.settings, layout), opened.model
    for option, value, count in (('body', args.body, clips[0].joints.shape[4]),
                                 ('block', args.block, len(model.blocks)),
                                 ('head', args.head, opened.settings['num_heads'])):
        if value is not None and value >= count:
            raise UserError(f'--{option} {value} does not exist; choose a number from 0 to {count - 1}')
    layout = layout or default_layout(model.num_joints)
    return opened, [clip._replace(layout=layout) for clip in clips]


def is_checkpoint(path: str) -> bool:
    """Return True if --compare is a checkpoint, by its suffix."""
    return Path(path).suffix.lower() == '.pth'


def compared_scenes(args: Namespace) -> list[dict]:
    """Return the scenes of --compare: the same clips with another checkpoint, or the first clip of a recording."""
    if not args.compare:
        return []
    changes = {'checkpoint': args.compare} if is_checkpoint(args.compare) else {'data_path': args.compare, 'clip': [0]}
    opened, clips = open_all(Namespace(**vars(args) | {'gif': None, 'block': None, 'head': None} | changes))
    return [clip_scene(opened, clip, args.seed) for clip in clips]


def make_page(args: Namespace, opened: OpenModel, clips: list[ModelClip], query: tuple[int, int] | None) -> None:
    """Write the page of --html, with the clip, block, head and query of the options selected."""
    scenes = [clip_scene(opened, clip, args.seed) for clip in clips]
    others = compared_scenes(args)
    if args.compare and is_checkpoint(args.compare):      # the same clips: the paths tell them apart
        folder = os.path.commonpath([Path(path).absolute().parent for path in (args.checkpoint, args.compare)])
        for group, path in ((scenes, args.checkpoint), (others, args.compare)):
            for scene in group:
                name = printable(os.path.relpath(path, folder))
                scene['name'] = name + (f': {scene["title"]}' if len(scenes) > 1 else '')
    start = {name: value for name, value in (('block', args.block), ('head', args.head)) if value is not None}
    if others:
        start['beside'] = len(scenes)
    start['frame'] = scenes[0]['u'] * (query[1] if query else scenes[0]['busiest']) + scenes[0]['u'] // 2
    if query:
        start |= {'query': dict(zip(('joint', 'segment'), query, strict=True)), 'map': 'attention'}
    write_page(args.html, f'MAMP: {scenes[0]["title"]}', scenes + others, start | {'body': args.body})


def main(argv: list[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    if args.compare and not args.html:
        raise UserError('--compare needs a page; add --html')
    check_outputs(output_files(args), [args.checkpoint, *([args.compare] if args.compare else [])])
    opened, clips = open_all(args)
    query = args.query and parse_query(clips[0].layout, *args.query, opened.model.num_segments)
    for row, clip in zip(args.clip, clips, strict=True) if args.out or args.gif else ():
        analysis = analyse_clip(opened.model, opened.settings, clip, args.body, args.seed, args.block, args.head, query,
                                opened.class_names)
        if args.out:
            pictures.write(numbered(args.out, row, args), pictures.png(pictures.overview(analysis)))
            print(numbered(args.out, row, args))
        if args.gif:
            pictures.write(numbered(args.gif, row, args), animate(analysis))
            print(numbered(args.gif, row, args))
    if args.html:
        make_page(args, opened, clips, query)
        print(args.html)
    return 0


if __name__ == '__main__':
    run_main(main)
