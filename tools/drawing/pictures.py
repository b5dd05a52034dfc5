"""Figures of the analysis of a clip (analysis.py), and PNG files of them.

Each `draw_…` function fills a figure or a part of one. Colors are those of Okabe and Ito, which color-blind readers can
distinguish; shapes or labels repeat their meaning. Axis letters: T frames, V joints, P segments of u frames.
"""

import io
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure, SubFigure
from matplotlib.patches import Rectangle

from feeder.augment import ClipMaker
from feeder.dataset import SkeletonDataset
from feeder.layouts import default_layout
from tools.drawing.analysis import ClipAnalysis, Model, analyse_clip, read_clip
from util.files import atomic_write

matplotlib.rcParams['text.parse_math'] = False      # a $ in a name does not start a formula

VISIBLE, PREDICTED, TRUE = '#0072b2', '#d55e00', '#2b2f36'
MASKED, BONE, GREY, FAINT = '#c3c7cd', '#9aa0a8', '#4a4f57', '#e3e6ea'
WIDTH, DPI = 10, 120        # inches, and dots per inch, of figures
Part = Figure | SubFigure


# ---- the view of a skeleton ------------------------------------------------------------------------------------------


def side_view(pose: np.ndarray) -> np.ndarray:
    """Return the projection (3, 2) of coordinates (T, V, 3), y upright, that shows the pose from its widest side.

    The horizontal axis is the direction in which the joints of a frame spread most; the view is from the camera's side.
    """
    flat = (pose - pose.mean(1, keepdims=True))[..., [0, 2]].reshape(-1, 2)
    across = np.linalg.eigh(flat.T @ flat)[1][:, -1]
    across *= -1 if across[0] < 0 else 1
    return np.array([[across[0], 0], [0, 1], [across[1], 0]])


def flatten(pose: np.ndarray) -> np.ndarray:
    """Project poses (T, V, 3) to 2D (T, V, 2), centred on the body horizontally in each frame, but not vertically."""
    flat = pose @ side_view(pose)
    return flat - np.stack([np.broadcast_to(flat[..., :1].mean(1), flat.shape[:1] + (1,)),
                            np.full(flat.shape[:1] + (1,), flat[..., 1].mean())], axis=-1)


def frame_view(axis: Axes, flat: np.ndarray, margin: float) -> None:
    low, high = flat.min((0, 1)), flat.max((0, 1))
    axis.set(xlim=(low[0] - margin, high[0] + margin), ylim=(low[1] - margin, high[1] + margin), aspect='equal')
    axis.axis('off')


def draw_bones(axis: Axes, points: np.ndarray, parents: tuple[int, ...], **style) -> None:
    lines = [points[[joint, parent]] for joint, parent in enumerate(parents) if joint != parent]
    axis.add_collection(LineCollection(lines, **{'colors': BONE, 'linewidths': 1.2, 'zorder': 1} | style))


def joint_colors(analysis: ClipAnalysis, t: int) -> list[str]:
    """Return the colors of the joints in a frame: visible or masked."""
    if analysis.prediction is None:
        return [VISIBLE] * len(analysis.clip.layout.joints)
    return [MASKED if masked else VISIBLE for masked in analysis.prediction.masked[t // analysis.u]]


def draw_poses(part: Part, analysis: ClipAnalysis, moments: int = 8) -> None:
    """Draw the skeleton at several moments of the clip; masked joints are grey."""
    flat, u = flatten(analysis.pose), analysis.u
    axes = part.subplots(1, moments)
    for axis, t in zip(axes, np.linspace(u // 2, len(flat) - 1 - u // 2, moments).round().astype(int), strict=True):
        draw_bones(axis, flat[t], analysis.clip.layout.parents)
        axis.scatter(*flat[t].T, c=joint_colors(analysis, t), edgecolors=GREY, linewidths=0.5, s=22, zorder=2)
        frame_view(axis, flat, 0.06)
        axis.set_title(f'frame {t}', fontsize=9, color=GREY)
    legend = '' if analysis.prediction is None else ': blue joints are visible to the model, grey ones masked'
    part.suptitle(f'The skeleton over time{legend}', fontsize=11)


# ---- joint × segment maps --------------------------------------------------------------------------------------------


def _map(part: Part, axis: Axes, analysis: ClipAnalysis, values: np.ndarray, cmap: str, label: str, **limits) -> None:
    """Draw values (P, V) as a map with a row per joint and a column per segment."""
    image = axis.imshow(values.T, cmap=cmap, aspect='auto', interpolation='nearest', **limits)
    size = 8 if len(analysis.clip.layout.joints) <= 20 else 7
    axis.set_yticks(range(len(analysis.clip.layout.joints)), analysis.clip.layout.joints, fontsize=size)
    axis.tick_params(length=2)
    axis.tick_params(axis='x', labelsize=8)
    axis.set_xlabel(f'segment ({analysis.u} frames each)', fontsize=9)
    axis.xaxis.get_major_locator().set_params(integer=True)
    bar = part.colorbar(image, ax=axis, pad=0.015, aspect=30)
    bar.set_label(label, fontsize=9)
    bar.ax.tick_params(labelsize=8, length=2)
    bar.outline.set_visible(False)


def draw_intensity(part: Part, analysis: ClipAnalysis) -> None:
    """Draw motion intensity as a joint × segment map, with a blue frame around each visible token."""
    axis = part.subplots()
    _map(part, axis, analysis, analysis.intensity * 100, 'YlOrBr', f'{analysis.clip.unit} from segment to segment')
    title = 'Motion intensity of each joint-segment'
    if analysis.prediction is not None:
        visible = np.argwhere(~analysis.prediction.masked)
        for segment, joint in visible:
            axis.add_patch(Rectangle((segment - 0.42, joint - 0.42), 0.84, 0.84, fill=False, edgecolor=VISIBLE,
                                     linewidth=2))
        title += f'\nblue frames: the {len(visible)} of {analysis.intensity.size} visible to the model'
    axis.set_title(title, fontsize=10)


def attention_title(analysis: ClipAnalysis) -> str:
    """Return the title of the attention map: block, head and query."""
    attention = analysis.attention
    query = 'mean over all queries' if attention.query is None else \
        f'query {analysis.clip.layout.joints[attention.query[0]]}, segment {attention.query[1]}'
    heads = 'mean of all heads' if attention.head is None else f'head {attention.head}'
    return f'Attention of encoder block {attention.block}, {heads}:\n{query}'


def draw_attention(part: Part, analysis: ClipAnalysis) -> None:
    """Draw attention as a joint × segment map; the query token has a vermilion frame."""
    axis, attention = part.subplots(), analysis.attention
    _map(part, axis, analysis, attention.weight, 'cividis', 'attention, 1 = uniform', vmin=0)
    if attention.query is not None:
        joint, segment = attention.query
        axis.add_patch(Rectangle((segment - 0.45, joint - 0.45), 0.9, 0.9, fill=False, edgecolor=PREDICTED,
                                 linewidth=2.5))
    axis.set_title(attention_title(analysis), fontsize=10)


def draw_attended(part: Part, analysis: ClipAnalysis, moments: int = 5) -> None:
    """Draw the skeleton in the segments with the most attention; the size of joints shows their attention."""
    flat, u, weight = flatten(analysis.pose), analysis.u, analysis.attention.weight
    parts = np.array_split(np.arange(len(weight)), min(moments, len(weight)))
    axes = part.subplots(1, len(parts), squeeze=False)[0]
    for axis, p in zip(axes, (segments[weight[segments].max(1).argmax()] for segments in parts), strict=True):
        points = flat[p * u + u // 2]
        draw_bones(axis, points, analysis.clip.layout.parents)
        axis.scatter(*points.T, s=4 + 180 * weight[p] / weight.max(), c=weight[p], cmap='cividis', vmin=0,
                     vmax=weight.max(), edgecolors='white', linewidths=0.5, zorder=2)
        frame_view(axis, flat, 0.12)
        axis.set_title(f'segment {p}', fontsize=9, color=GREY)


# ---- true and predicted motion ---------------------------------------------------------------------------------------


def value_label(analysis: ClipAnalysis) -> str:
    """Return the quantity and unit of the predicted values."""
    quantity = 'motion' if analysis.prediction.target == 'motion' else analysis.stream.replace('joint', 'position')
    return f'{quantity}, {analysis.clip.unit}{" per frame" if quantity in ("motion", "velocity") else ""}'


def draw_curves(part: Part, analysis: ClipAnalysis) -> None:
    """Draw the three masked joints with the most motion, each along its main axis, and all masked values together."""
    prediction, u = analysis.prediction, analysis.u
    masked = np.repeat(prediction.masked, u, axis=0)                                    # (T, V)
    energy = np.where(masked[..., None], prediction.true, 0).var(0)                     # (V, 3)
    axes = part.subplots(1, 4, width_ratios=[1, 1, 1, 0.9])
    for axis, joint in zip(axes, energy.max(1).argsort()[::-1][:3], strict=False):
        c = energy[joint].argmax()
        level = prediction.true[:, joint, c].reshape(-1, u).mean(1).repeat(u)
        true, pred, level = (np.where(masked[:, joint], values, np.nan) * 100 for values in
                             (prediction.true[:, joint, c], prediction.pred[:, joint, c], level))
        if prediction.normalised:
            axis.plot(level, color=BONE, label='true mean of each segment (not predicted)', linewidth=1.1)
        axis.plot(true, color=TRUE, label='true', linewidth=1.5)
        axis.plot(pred, color=PREDICTED, label='predicted', linewidth=1.5, linestyle=(0, (4, 1)))
        axis.set_title(f'{analysis.clip.layout.joints[joint]}, {"xyz"[c]}', fontsize=9)
        axis.set_xlabel('frame', fontsize=9)
        axis.set_xlim(0, len(true) - 1)
    axes[0].set_ylabel(value_label(analysis), fontsize=9)
    _scatter(axes[3], analysis)
    for axis in axes:
        axis.tick_params(labelsize=8, length=2)
        axis.grid(color=FAINT, linewidth=0.7)
        axis.set_axisbelow(True)
        axis.spines[['top', 'right']].set_visible(False)
    part.legend(*axes[0].get_legend_handles_labels(), loc='outside lower center', ncols=3, frameon=False, fontsize=9)
    part.suptitle(f'Masked joints: true and predicted {prediction.target}', fontsize=11)


def _scatter(axis: Axes, analysis: ClipAnalysis) -> None:
    """Draw predicted over true values of all masked tokens, as in the loss; the diagonal is a perfect prediction."""
    prediction, metrics = analysis.prediction, analysis.prediction.metrics
    low, high = (float(np.quantile(prediction.target_values, q)) for q in (0.005, 0.995))
    axis.plot([low, high], [low, high], color=TRUE, linewidth=0.8, linestyle='--')
    axis.scatter(prediction.target_values, prediction.pred_values, s=3, color=PREDICTED, alpha=0.25, linewidths=0,
                 rasterized=True)
    margin = 0.05 * (high - low) or 1
    axis.set(xlim=(low - margin, high + margin), ylim=(low - margin, high + margin))
    quality = f'R² {metrics["r2"]:.2f}, r {metrics["r"]:.2f}' if 'r' in metrics else 'no motion'
    axis.set_title(f'all masked: {quality}', fontsize=9)
    scale = ', normalised' if prediction.normalised else ', not normalised'
    axis.set_xlabel('true' + scale, fontsize=9)
    axis.set_ylabel('predicted', fontsize=9)


# ---- classes ---------------------------------------------------------------------------------------------------------


def draw_classes(part: Part, analysis: ClipAnalysis, most: int = 5) -> None:
    """Draw the most probable classes as bars; the true one, if known, is marked."""
    axis, label = part.subplots(), analysis.clip.label
    best = analysis.classes.argsort()[::-1][:most]
    if label is not None and label not in best:
        best = np.append(best, label)
    percent = 100 * analysis.classes[best]
    bars = axis.barh(range(len(best)), percent, color=[VISIBLE if i == label else BONE for i in best])
    axis.bar_label(bars, [f'{value:.1f} %' for value in percent], padding=3, fontsize=9)
    names = [analysis.class_names[i] + (' (true)' if i == label else '') for i in best]
    axis.set_yticks(range(len(best)), names, fontsize=9)
    axis.invert_yaxis()
    axis.set(xlim=(0, 112), xticks=[])
    axis.spines[['top', 'right', 'bottom']].set_visible(False)
    axis.set_title('Predicted classes', fontsize=11)


# ---- whole figures ---------------------------------------------------------------------------------------------------


def make_figure(draw: Callable[[Part, ClipAnalysis], None], analysis: ClipAnalysis, height: float,
                width: float = WIDTH) -> Figure:
    """Create a figure with a single part; sizes are in inches."""
    figure = Figure((width, height), dpi=DPI, layout='constrained', facecolor='white')
    draw(figure, analysis)
    return figure


def draw_maps(part: Part, analysis: ClipAnalysis) -> None:
    """Draw intensity and attention side by side."""
    for half, draw in zip(part.subfigures(1, 2), (draw_intensity, draw_attention), strict=True):
        draw(half, analysis)


def overview(analysis: ClipAnalysis) -> Figure:
    """Draw the whole analysis of a clip in one figure."""
    rows = [(draw_poses, 2.1), (draw_maps, 4.3)]
    if analysis.prediction is not None:
        rows.append((draw_curves, 2.6))
    if analysis.classes is not None:
        rows.append((draw_classes, 2.))
    heights = [height for _, height in rows]
    figure = Figure((WIDTH, sum(heights) + 0.4), dpi=DPI, layout='constrained', facecolor='white')
    figure.suptitle(analysis.clip.title, fontsize=12, fontweight='bold')
    for part, (draw, _) in zip(figure.subfigures(len(rows), 1, height_ratios=heights), rows, strict=True):
        draw(part, analysis)
    return figure


def pixels(figure: Figure) -> np.ndarray:
    """Return the figure as an image (H, W, 3) uint8."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def make_training_pictures(model: Model, clips: ClipMaker, dataset: SkeletonDataset, args: Namespace,
                           class_names: list[str] | None = None) -> dict[str, np.ndarray]:
    """Draw the first clip of a split during training; returns images (H, W, 3) by name.

    Raises UserError if the joint layout is unknown.
    """
    layout = clips.layout or default_layout(args.num_joints)
    clip, device = read_clip(dataset, int(dataset.rows[0]), vars(args), layout), model.pos_embed.device
    clip = clip._replace(joints=clip.joints.to(device), stream=clip.stream.to(device))
    analysis = analyse_clip(model, vars(args), clip, seed=args.seed, class_names=class_names)
    return {'pictures/clip': pixels(overview(analysis))}


def png(figure: Figure) -> bytes:
    """Return the figure as a PNG file."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format='png')
    return buffer.getvalue()


def write(path: Path, content: bytes) -> None:
    """Write a file atomically."""
    with atomic_write(path) as partial:
        partial.write_bytes(content)
