"""Pictures of what a model makes of a clip (tools/drawing/inside.py): figures and PNG files.

Each `draw_…` fills a figure, or a part of one. Colours are Okabe and Ito's, apart for the colour-blind as well; what
they say, shapes or names say too. Axis letters: T frames, V joints, P segments of u frames.
"""

import io
from collections.abc import Callable
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure, SubFigure
from matplotlib.patches import Rectangle

from feeder.dataset import SkeletonDataset
from feeder.layouts import default_layout
from tools.drawing.inside import Inside, clip_of, look_inside
from util.errors import UserError
from util.files import atomic_write
from util.trainer import Trainer

matplotlib.rcParams['text.parse_math'] = False      # names of users stand in pictures: text, no formulas

SHOWN, PREDICTED, TRUE = '#0072b2', '#d55e00', '#2b2f36'
HIDDEN, BONE, GREY, FAINT = '#c3c7cd', '#9aa0a8', '#4a4f57', '#e3e6ea'
WIDTH, DPI = 10, 120        # inches and dots an inch of figures
Part = Figure | SubFigure


# ---- the view of a skeleton ------------------------------------------------------------------------------------------


def view_of(pose: np.ndarray) -> np.ndarray:
    """The projection (3, 2) of (T, V, 3) coordinates, y upright, from the side on which most is to be seen.

    That is across the horizontal direction in which a frame's joints spread most, on the camera's side of it.
    """
    flat = (pose - pose.mean(1, keepdims=True))[..., [0, 2]].reshape(-1, 2)
    across = np.linalg.eigh(flat.T @ flat)[1][:, -1]
    across *= -1 if across[0] < 0 else 1
    return np.array([[across[0], 0], [0, 1], [across[1], 0]])


def flatten(pose: np.ndarray) -> np.ndarray:
    """Poses (T, V, 3) as they are drawn, (T, V, 2): the view goes with the body sideways, and stands still upwards."""
    flat = pose @ view_of(pose)
    return flat - np.stack([np.broadcast_to(flat[..., :1].mean(1), flat.shape[:1] + (1,)),
                            np.full(flat.shape[:1] + (1,), flat[..., 1].mean())], axis=-1)


def frame_view(axis: Axes, flat: np.ndarray, margin: float) -> None:
    low, high = flat.min((0, 1)), flat.max((0, 1))
    axis.set(xlim=(low[0] - margin, high[0] + margin), ylim=(low[1] - margin, high[1] + margin), aspect='equal')
    axis.axis('off')


def draw_bones(axis: Axes, points: np.ndarray, parents: tuple[int, ...], **style) -> None:
    lines = [points[[joint, parent]] for joint, parent in enumerate(parents) if joint != parent]
    axis.add_collection(LineCollection(lines, **{'colors': BONE, 'linewidths': 1.2, 'zorder': 1} | style))


def colours_of(inside: Inside, t: int) -> list[str]:
    """Of the joints in a frame: whether the model was shown them."""
    if inside.prediction is None:
        return [SHOWN] * len(inside.clip.layout.joints)
    return [HIDDEN if hidden else SHOWN for hidden in inside.prediction.hidden[t // inside.u]]


def draw_poses(part: Part, inside: Inside, moments: int = 8) -> None:
    """The skeleton at moments spread over the clip; joints hidden from the model at that moment are grey."""
    flat, u = flatten(inside.pose), inside.u
    axes = part.subplots(1, moments)
    for axis, t in zip(axes, np.linspace(u // 2, len(flat) - 1 - u // 2, moments).round().astype(int), strict=True):
        draw_bones(axis, flat[t], inside.clip.layout.parents)
        axis.scatter(*flat[t].T, c=colours_of(inside, t), edgecolors=GREY, linewidths=0.5, s=22, zorder=2)
        frame_view(axis, flat, 0.06)
        axis.set_title(f'frame {t}', fontsize=9, color=GREY)
    told = '' if inside.prediction is None else ': blue joints were shown to the model, grey ones hidden'
    part.suptitle(f'The skeleton over time{told}', fontsize=11)


# ---- joint × segment maps --------------------------------------------------------------------------------------------


def _map(part: Part, axis: Axes, inside: Inside, values: np.ndarray, cmap: str, label: str, **limits) -> None:
    """(P, V) values as a map with a row a joint and a column a segment."""
    image = axis.imshow(values.T, cmap=cmap, aspect='auto', interpolation='nearest', **limits)
    size = 8 if len(inside.clip.layout.joints) <= 20 else 7
    axis.set_yticks(range(len(inside.clip.layout.joints)), inside.clip.layout.joints, fontsize=size)
    axis.tick_params(length=2)
    axis.tick_params(axis='x', labelsize=8)
    axis.set_xlabel(f'segment ({inside.u} frames each)', fontsize=9)
    axis.xaxis.get_major_locator().set_params(integer=True)
    bar = part.colorbar(image, ax=axis, pad=0.015, aspect=30)
    bar.set_label(label, fontsize=9)
    bar.ax.tick_params(labelsize=8, length=2)
    bar.outline.set_visible(False)


def draw_intensity(part: Part, inside: Inside) -> None:
    """Motion intensity as a joint × segment map, a blue frame about each token the model was shown."""
    axis = part.subplots()
    _map(part, axis, inside, inside.intensity * 100, 'YlOrBr', 'cm from segment to segment')
    title = 'How much each joint-segment moves'
    if inside.prediction is not None:
        shown = np.argwhere(~inside.prediction.hidden)
        for segment, joint in shown:
            axis.add_patch(Rectangle((segment - 0.42, joint - 0.42), 0.84, 0.84, fill=False, edgecolor=SHOWN,
                                     linewidth=2))
        title += f'\nblue frames: the {len(shown)} of {inside.intensity.size} the model was shown'
    axis.set_title(title, fontsize=10)


def attention_title(inside: Inside) -> str:
    """Who looks, and in which block."""
    found = inside.attention
    who = 'all joint-segments' if found.query is None else \
        f'{inside.clip.layout.joints[found.query[0]]}, segment {found.query[1]}'
    heads = 'mean of all heads' if found.head is None else f'head {found.head}'
    return f'Encoder block {found.block}, {heads}:\nwhere {who} look{"" if found.query is None else "s"}'


def draw_attention(part: Part, inside: Inside) -> None:
    """Where a block looks, as a joint × segment map; the token that looks has a vermilion frame."""
    axis, found = part.subplots(), inside.attention
    _map(part, axis, inside, found.weight, 'cividis', 'attention, 1 = as much as the average', vmin=0)
    if found.query is not None:
        joint, segment = found.query
        axis.add_patch(Rectangle((segment - 0.45, joint - 0.45), 0.9, 0.9, fill=False, edgecolor=PREDICTED,
                                 linewidth=2.5))
    axis.set_title(attention_title(inside), fontsize=10)


def draw_attended(part: Part, inside: Inside, moments: int = 5) -> None:
    """The skeleton in the segment that is looked at most of each part of the clip, joints as large as they are."""
    flat, u, weight = flatten(inside.pose), inside.u, inside.attention.weight
    parts = np.array_split(np.arange(len(weight)), min(moments, len(weight)))
    axes = part.subplots(1, len(parts), squeeze=False)[0]
    for axis, p in zip(axes, (among[weight[among].max(1).argmax()] for among in parts), strict=True):
        points = flat[p * u + u // 2]
        draw_bones(axis, points, inside.clip.layout.parents)
        axis.scatter(*points.T, s=4 + 180 * weight[p] / weight.max(), c=weight[p], cmap='cividis', vmin=0,
                     vmax=weight.max(), edgecolors='white', linewidths=0.5, zorder=2)
        frame_view(axis, flat, 0.12)
        axis.set_title(f'segment {p}', fontsize=9, color=GREY)


# ---- true and predicted motion ---------------------------------------------------------------------------------------


def unit_of(inside: Inside) -> str:
    if inside.prediction.target == 'motion':
        return 'motion, cm a frame'
    return {'joint': 'position, cm', 'bone': 'bone, cm', 'velocity': 'velocity, cm a frame'}[inside.stream]


def draw_curves(part: Part, inside: Inside) -> None:
    """The three joints that move most while hidden, each along its liveliest axis, and all hidden values at once."""
    found, u = inside.prediction, inside.u
    hidden = np.repeat(found.hidden, u, axis=0)                                         # (T, V)
    energy = np.where(hidden[..., None], found.true, 0).var(0)                          # (V, 3)
    axes = part.subplots(1, 4, width_ratios=[1, 1, 1, 0.9])
    for axis, joint in zip(axes, energy.max(1).argsort()[::-1][:3], strict=False):
        c = energy[joint].argmax()
        level = found.true[:, joint, c].reshape(-1, u).mean(1).repeat(u)
        true, pred, level = (np.where(hidden[:, joint], values, np.nan) * 100 for values in
                             (found.true[:, joint, c], found.pred[:, joint, c], level))
        if found.normalised:
            axis.plot(level, color=BONE, label='mean of the truth in each segment (given)', linewidth=1.1)
        axis.plot(true, color=TRUE, label='true', linewidth=1.5)
        axis.plot(pred, color=PREDICTED, label='predicted', linewidth=1.5, linestyle=(0, (4, 1)))
        axis.set_title(f'{inside.clip.layout.joints[joint]}, {"xyz"[c]}', fontsize=9)
        axis.set_xlabel('frame', fontsize=9)
        axis.set_xlim(0, len(true) - 1)
    axes[0].set_ylabel(unit_of(inside), fontsize=9)
    _scatter(axes[3], inside)
    for axis in axes:
        axis.tick_params(labelsize=8, length=2)
        axis.grid(color=FAINT, linewidth=0.7)
        axis.set_axisbelow(True)
        axis.spines[['top', 'right']].set_visible(False)
    part.legend(*axes[0].get_legend_handles_labels(), loc='outside lower center', ncols=3, frameon=False, fontsize=9)
    part.suptitle(f'What was hidden: true against predicted {found.target}', fontsize=11)


def _scatter(axis: Axes, inside: Inside) -> None:
    """Every hidden value as the loss sees it, predicted over true; on the diagonal it is right."""
    found = inside.prediction
    low, high = (float(np.quantile(found.asked, q)) for q in (0.005, 0.995))
    axis.plot([low, high], [low, high], color=TRUE, linewidth=0.8, linestyle='--')
    axis.scatter(found.asked, found.answered, s=3, color=PREDICTED, alpha=0.25, linewidths=0, rasterized=True)
    margin = 0.05 * (high - low) or 1
    axis.set(xlim=(low - margin, high + margin), ylim=(low - margin, high + margin))
    told = f'R² {found.numbers["r2"]:.2f}, r {found.numbers["r"]:.2f}' if 'r' in found.numbers else 'nothing moves'
    axis.set_title(f'all hidden: {told}', fontsize=9)
    scale = ', normalised' if found.normalised else ', m'
    axis.set_xlabel('true' + scale, fontsize=9)
    axis.set_ylabel('predicted', fontsize=9)


# ---- classes ---------------------------------------------------------------------------------------------------------


def draw_classes(part: Part, inside: Inside, most: int = 5) -> None:
    """The most probable classes as bars; the true one, where it is known, is said to be."""
    axis, label = part.subplots(), inside.clip.label
    best = inside.classes.argsort()[::-1][:most]
    if label is not None and label not in best:
        best = np.append(best, label)
    share = 100 * inside.classes[best]
    bars = axis.barh(range(len(best)), share, color=[SHOWN if i == label else BONE for i in best])
    axis.bar_label(bars, [f'{value:.1f} %' for value in share], padding=3, fontsize=9)
    names = [inside.class_names[i] + (' (true)' if i == label else '') for i in best]
    axis.set_yticks(range(len(best)), names, fontsize=9)
    axis.invert_yaxis()
    axis.set(xlim=(0, 112), xticks=[])
    axis.spines[['top', 'right', 'bottom']].set_visible(False)
    axis.set_title('What the action is taken for', fontsize=11)


# ---- whole figures ---------------------------------------------------------------------------------------------------


def figure_of(draw: Callable[[Part, Inside], None], inside: Inside, height: float, width: float = WIDTH) -> Figure:
    """A figure with this one part; sizes in inches."""
    figure = Figure((width, height), dpi=DPI, layout='constrained', facecolor='white')
    draw(figure, inside)
    return figure


def draw_maps(part: Part, inside: Inside) -> None:
    """Intensity and attention beside each other."""
    for half, draw in zip(part.subfigures(1, 2), (draw_intensity, draw_attention), strict=True):
        draw(half, inside)


def overview(inside: Inside) -> Figure:
    """Everything there is to see of a clip, on one page."""
    rows = [(draw_poses, 2.1), (draw_maps, 4.3)]
    if inside.prediction is not None:
        rows.append((draw_curves, 2.6))
    if inside.classes is not None:
        rows.append((draw_classes, 2.))
    heights = [height for _, height in rows]
    figure = Figure((WIDTH, sum(heights) + 0.4), dpi=DPI, layout='constrained', facecolor='white')
    figure.suptitle(inside.clip.title, fontsize=12, fontweight='bold')
    for part, (draw, _) in zip(figure.subfigures(len(rows), 1, height_ratios=heights), rows, strict=True):
        draw(part, inside)
    return figure


def pixels(figure: Figure) -> np.ndarray:
    """(H, W, 3) uint8"""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def picture_maker(trainer: Trainer, dataset: SkeletonDataset) -> Callable[[], dict[str, np.ndarray]]:
    """What draws the split's first clip as the model sees it by then, images (H, W, 3) by name.

    Of the whole model, not one process's part in it: no other process takes part. Raises UserError where no joint
    layout fits.
    """
    args = trainer.args
    try:
        layout = trainer.clips.layout or default_layout(args.num_joints)
    except UserError as error:
        raise UserError(f'--picture_epochs {args.picture_epochs}: {error}, or leave the pictures out') from error
    clip = clip_of(dataset, int(dataset.rows[0]), vars(args), layout)
    clip = clip._replace(joints=clip.joints.to(trainer.world.device), seen=clip.seen.to(trainer.world.device))

    def draw() -> dict[str, np.ndarray]:
        found = look_inside(trainer.raw_model, vars(args), clip, seed=args.seed, compiled=trainer.compiled,
                            class_names=trainer.data['class_names'])
        return {'pictures/clip': pixels(overview(found))}
    return draw


def png(figure: Figure) -> bytes:
    held = io.BytesIO()
    figure.savefig(held, format='png')
    return held.getvalue()


def write(path: Path, content: bytes) -> None:
    """A file of these bytes, whole or not at all."""
    with atomic_write(path) as partial:
        partial.write_bytes(content)
