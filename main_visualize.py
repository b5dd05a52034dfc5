"""What a pre-trained model does with one clip, as a picture: the poses, what was hidden, true and predicted motion.

python main_visualize.py --checkpoint runs/nwucla_xview/pretrain/checkpoint-last.pth --out clip.png
"""

from argparse import RawDescriptionHelpFormatter
from pathlib import Path

import matplotlib

matplotlib.use('Agg')       # figures are files: no screen is needed
import matplotlib.pyplot as plt  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402

from feeder.augment import ClipMaker  # noqa: E402
from feeder.dataset import SkeletonDataset  # noqa: E402
from feeder.layouts import Layout, find_layout, layout_of, told_layout  # noqa: E402
from model_mamp import MAMP, motion, motion_intensity, patchify  # noqa: E402
from util import checkpoint  # noqa: E402
from util.args import settings_for  # noqa: E402
from util.errors import Parser, UserError, run_main  # noqa: E402
from util.files import check_writable, replacing  # noqa: E402
from util.options import Number  # noqa: E402

NEEDED = ('decoder_depth', 'data_path', 'benchmark', 'stream', 'num_joints', 'num_frames', 't_patch_size', 'seed',
          'mask_ratio', 'motion_stride', 'motion_aware_tau', 'target', 'norm_skes_loss')    # of a model's settings
KEPT, HIDDEN, PREDICTED = '#1f4e9c', '#c9ccd1', '#d9541e'


def load_model(path: str) -> tuple[MAMP, dict, Layout | None]:
    """The pre-trained model of a checkpoint, in eval mode, the settings and the layout it was trained with."""
    state = checkpoint.load(path)
    settings = state['args']
    if not set(NEEDED) <= set(settings):
        raise UserError(f'{path}: not a pre-training checkpoint of main_pretrain.py; give one')
    try:
        model = MAMP(**settings_for(MAMP, settings))
    except (ValueError, TypeError, RuntimeError, ZeroDivisionError, OverflowError) as error:
        raise UserError(f'{path}: its settings make no model ({" ".join(str(error).split())}); take another '
                        'checkpoint') from error
    checkpoint.load_model(model, state['model'], path)
    return model.eval(), settings, told_layout(state, path)


@torch.inference_mode()
def look_inside(model: MAMP, settings: dict, clip: torch.Tensor, seed: int) -> dict[str, np.ndarray]:
    """For one clip (1, C, T, V, M), body 0: pose (T, V, 3), intensity and hidden (P, V), motion true and predicted.

    Predictions of a normalised target are put back to the token's true mean and spread, which the model is not asked
    for; motions are (T, V, 3) in metres a frame.
    """
    generator = torch.Generator().manual_seed(seed)
    bodies = model.fold_bodies(clip)
    uniform = torch.rand(len(bodies), model.num_segments * model.num_joints, generator=generator)
    _, pred, mask = model(clip, uniform=uniform, **{name: settings[name] for name in
                                                    ('mask_ratio', 'motion_stride', 'motion_aware_tau')})
    u, grid = model.t_patch_size, (model.num_segments, model.num_joints)
    true = motion(bodies, settings['motion_stride']) if model.target == 'motion' else bodies
    if model.norm_skes_loss:
        tokens = patchify(true, u).flatten(1, 2)
        pred = pred * (tokens.var(dim=-1, keepdim=True) + 1e-6).sqrt() + tokens.mean(dim=-1, keepdim=True)
    pred = pred[0].reshape(*grid, u, 3).transpose(1, 2).flatten(0, 1)                   # (T, V, 3)
    inside = {'pose': bodies[0], 'true': true[0], 'pred': pred, 'hidden': mask[0].view(grid),
              'intensity': motion_intensity(patchify(bodies[:1], u))[0].view(grid)}
    return {name: value.numpy() for name, value in inside.items()}


def draw_poses(axes: list[plt.Axes], inside: dict, layout: Layout, u: int) -> None:
    """Skeletons at moments spread over the clip; joints hidden in that segment are grey."""
    pose, hidden = inside['pose'] - inside['pose'].mean(1, keepdims=True), inside['hidden']
    low, high = pose.min((0, 1)), pose.max((0, 1))
    for axis, t in zip(axes, np.linspace(u // 2, len(pose) - 1 - u // 2, len(axes)).round().astype(int), strict=True):
        x, y, _ = pose[t].T
        for joint, parent in enumerate(layout.parents):
            axis.plot(x[[joint, parent]], y[[joint, parent]], color='#80868f', linewidth=1, zorder=1)
        colours = [HIDDEN if masked else KEPT for masked in hidden[t // u]]
        axis.scatter(x, y, c=colours, edgecolors='#4a4f57', linewidths=0.5, s=26, zorder=2)
        axis.set(xlim=(low[0] - 0.1, high[0] + 0.1), ylim=(low[1] - 0.1, high[1] + 0.1), aspect='equal',
                 title=f'frame {t}')
        axis.axis('off')


def draw_grid(axis: plt.Axes, inside: dict, layout: Layout) -> plt.cm.ScalarMappable:
    """Motion intensity as a joint × segment map, a blue frame about each token the model was shown."""
    image = axis.imshow(inside['intensity'].T * 100, cmap='magma_r', aspect='auto', interpolation='nearest')
    for segment, joint in np.argwhere(inside['hidden'] == 0):
        axis.add_patch(plt.Rectangle((segment - 0.5, joint - 0.5), 1, 1, fill=False, edgecolor='#1f77ff', linewidth=2))
    shown, total = int((inside['hidden'] == 0).sum()), inside['hidden'].size
    axis.set_yticks(range(len(layout.joints)), layout.joints, fontsize=7)
    axis.set(xlabel='segment', title=f'how much each joint-segment moves; the model was shown {shown} of {total} '
             '(blue frames)')
    return image


def draw_motion(axes: list[plt.Axes], inside: dict, layout: Layout, u: int, quantity: str) -> None:
    """The joints that move most while hidden, each along its own liveliest axis: truth and prediction."""
    hidden = np.repeat(inside['hidden'], u, axis=0) == 1                                # (T, V)
    energy = np.where(hidden[..., None], inside['true'], 0).var(0)                      # (V, 3)
    for axis, joint in zip(axes, energy.max(1).argsort()[::-1][:len(axes)], strict=True):
        c = energy[joint].argmax()
        true, pred = (np.where(hidden[:, joint], inside[name][:, joint, c], np.nan) * 100 for name in ('true', 'pred'))
        axis.axhline(0, color='#d0d3d8', linewidth=0.8)
        axis.plot(true, color='#4a4f57', label='true', linewidth=1.4)
        axis.plot(pred, color=PREDICTED, label='predicted', linewidth=1.4)
        axis.set(title=f'{layout.joints[joint]}, {"xyz"[c]}', xlabel='frame', ylabel=quantity)
    axes[0].legend(fontsize='small')


def draw(inside: dict, layout: Layout, settings: dict, title: str, path: Path) -> None:
    """The whole figure, written to `path` as PNG."""
    figure = plt.figure(figsize=(12, 10.5), layout='constrained')
    poses, grid, curves = figure.subfigures(3, 1, height_ratios=[0.8, 1.35, 1])
    u = settings['t_patch_size']
    poses.suptitle(f'{title}: the clip; joints hidden from the model at that moment are grey')
    draw_poses(list(poses.subplots(1, 8)), inside, layout, u)
    axis = grid.subplots()
    grid.colorbar(draw_grid(axis, inside, layout), ax=axis, label='cm from segment to segment')
    curves.suptitle('what was hidden: true against predicted' + (
        ' (scaled to the mean and spread of the truth in each segment)' if settings['norm_skes_loss'] else ''))
    quantity = 'motion, cm a frame' if settings['target'] == 'motion' else 'position, cm'
    draw_motion(list(curves.subplots(1, 3)), inside, layout, u, quantity)
    with replacing(path) as partial:
        figure.savefig(partial, dpi=100, format='png')
    plt.close(figure)


def main(argv: list[str] | None = None) -> int:
    parser = Parser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument('--checkpoint', required=True, help='a pre-training checkpoint of main_pretrain.py')
    parser.add_argument('--data_path', help='npz of the clip (default: what the model was trained on)')
    parser.add_argument('--split', choices=('train', 'test'), default='test')
    parser.add_argument('--clip', type=int, default=0, help='row in the split')
    parser.add_argument('--layout', metavar='NAME|YAML', help='what the joints are (default: what the checkpoint says)')
    parser.add_argument('--seed', type=Number(int, least=0, most=2**62), default=0, help='of the mask')
    parser.add_argument('--out', type=Path, default=Path('clip.png'), help='the picture')
    args = parser.parse_args(argv)

    check_writable(args.out.parent)
    if args.out.is_dir():
        raise UserError(f'--out {args.out}: is a folder; give the name of a PNG file')
    model, settings, layout = load_model(args.checkpoint)
    if args.layout:
        layout = find_layout(args.layout, model.num_joints)
    dataset = SkeletonDataset(args.data_path or settings['data_path'], args.split, settings['num_joints'])
    if not 0 <= args.clip < len(dataset):
        raise UserError(f'--clip {args.clip}: {args.split} has the clips 0 to {len(dataset) - 1}; give one of them')
    layout = layout or layout_of(model.num_joints)
    batch = dataset[[(args.clip, 0)]]
    if isinstance(batch, UserError):
        raise batch
    clip = ClipMaker(settings['num_frames'], settings['stream'], settings['seed'], layout=layout).eval_view(batch)
    inside = look_inside(model, settings, clip, args.seed)
    draw(inside, layout, settings, f'{settings["benchmark"]}, {args.split} clip {args.clip}', args.out)
    print(args.out)
    return 0


if __name__ == '__main__':
    run_main(main)
