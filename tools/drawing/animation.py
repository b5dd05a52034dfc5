"""Animation (GIF) of a clip: visible and masked joints beside true and predicted motion.

Axis letters: T frames, V joints, P segments of u frames; images are (H, W, 3).
"""

import io

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from PIL import Image

from tools.drawing.analysis import ClipAnalysis, MotionPrediction
from tools.drawing.pictures import (
    BONE,
    FAINT,
    GREY,
    MASKED,
    PREDICTED,
    TRUE,
    VISIBLE,
    draw_bones,
    flatten,
    frame_view,
    joint_colors,
    pixels,
    side_view,
)


def arrow_scale(prediction: MotionPrediction) -> float:
    """Return the scale that makes the arrow of a fast joint (85 % quantile of speed) about 15 cm long."""
    speed = np.quantile(np.linalg.norm(prediction.true, axis=-1), 0.85)
    return float(np.clip(round(0.15 / max(speed, 1e-6)), 1, 10))


def animate(analysis: ClipAnalysis, most: int = 60, milliseconds: int = 100) -> bytes:
    """Draw up to `most` frames of the clip as a GIF.

    True and predicted motion are arrows that start at the joints; predicted positions are connected to the true ones by
    lines.
    """
    flat, arrows = flatten(analysis.pose), analysis.prediction.target == 'motion'
    step = -(-len(flat) // most)
    figure = Figure((6.4, 4.6), dpi=100, facecolor='white')
    left, right = figure.subplots(1, 2)
    figure.subplots_adjust(0.01, 0.14, 0.99, 0.92, 0.02)
    scale = arrow_scale(analysis.prediction) if arrows else 1
    view = side_view(analysis.pose)
    true, pred = (values @ view * scale for values in (analysis.prediction.true, analysis.prediction.pred))
    frames = []
    for t in range(0, len(flat), step):
        _draw_moment(left, right, analysis, flat, t)
        if arrows:
            _draw_arrows(right, analysis, flat[t], true[t], pred[t], t)
        else:
            _draw_errors(right, analysis, flat[t], pred[t] - true[t], t)
        _annotate(figure, analysis, t, scale if arrows else None)
        frames.append(pixels(figure))
        figure.texts.clear()
        for axis in (left, right):
            axis.clear()
    return _gif(frames, milliseconds * step)


def _draw_moment(left: Axes, right: Axes, analysis: ClipAnalysis, flat: np.ndarray, t: int) -> None:
    draw_bones(left, flat[t], analysis.clip.layout.parents, linewidths=1.6)
    draw_bones(right, flat[t], analysis.clip.layout.parents, colors=FAINT, linewidths=1.6)
    left.scatter(*flat[t].T, c=joint_colors(analysis, t), edgecolors=GREY, linewidths=0.6, s=46, zorder=2)
    for axis, title in ((left, 'the skeleton'), (right, f'{analysis.prediction.target} of masked joints')):
        frame_view(axis, flat, 0.12)
        axis.set_title(title, fontsize=11)


def _draw_arrows(axis: Axes, analysis: ClipAnalysis, points: np.ndarray, true: np.ndarray, pred: np.ndarray,
                 t: int) -> None:
    masked = analysis.prediction.masked[t // analysis.u]
    axis.scatter(*points[masked].T, c=MASKED, s=16, zorder=2, linewidths=0)
    for motion, color, width, zorder in ((true, TRUE, 0.014, 3), (pred, PREDICTED, 0.009, 4)):
        axis.quiver(*points[masked].T, *motion[masked].T, color=color, width=width, angles='xy', scale_units='xy',
                    scale=1, headwidth=3.2, headlength=3.6, headaxislength=3.4, minlength=0.5, zorder=zorder)


def _draw_errors(axis: Axes, analysis: ClipAnalysis, points: np.ndarray, error: np.ndarray, t: int) -> None:
    masked = analysis.prediction.masked[t // analysis.u]
    predicted = points + error
    lines = np.stack([points, predicted], axis=1)[masked]
    axis.add_collection(LineCollection(lines, colors=PREDICTED, linewidths=1, zorder=2))
    axis.scatter(*points[masked].T, c=TRUE, s=26, zorder=3, linewidths=0)
    axis.scatter(*predicted[masked].T, c=PREDICTED, s=30, marker='D', zorder=4, linewidths=0)


def _annotate(figure: Figure, analysis: ClipAnalysis, t: int, scale: float | None) -> None:
    """Write the legend, the frame number and the scale of the prediction."""
    left = (('●', VISIBLE, 'visible to the model'), ('●', MASKED, 'masked'))
    right = (('➤', TRUE, f'true (×{scale:.0f})'), ('➤', PREDICTED, 'predicted')) if scale else \
        (('●', TRUE, 'true'), ('◆', PREDICTED, 'predicted'))
    for x, entries in ((0.07, left), (0.58, right)):
        for i, (sign, color, label) in enumerate(entries):
            left_edge = x + i * (0.27 if x < 0.5 else 0.2)
            figure.text(left_edge, 0.1, sign, color=color, fontsize=11, ha='center', va='center')
            figure.text(left_edge + 0.015, 0.1, label, color=TRUE, fontsize=9.5, va='center')
    note = '; predictions rescaled to the truth of each segment' if analysis.prediction.normalised else ''
    figure.text(0.5, 0.035, f'frame {t} of {len(analysis.pose)}{note}', color=GREY, fontsize=8.5, ha='center')


def _gif(frames: list[np.ndarray], milliseconds: int) -> bytes:
    """Encode frames (H, W, 3) with a palette of shades of the figure colors; the animation repeats after a pause."""
    shades = [255 - (255 - np.array(to_rgb(color)) * 255) * shade for shade in np.linspace(0.3, 1, 8)
              for color in (VISIBLE, MASKED, TRUE, PREDICTED, BONE, GREY)]
    palette = Image.new('P', (1, 1))
    palette.putpalette(np.array([[255] * 3, *shades]).round().astype(np.uint8).tobytes())
    images = [Image.fromarray(frame).quantize(palette=palette, dither=Image.Dither.NONE) for frame in frames]
    buffer = io.BytesIO()
    images[0].save(buffer, 'GIF', save_all=True, append_images=images[1:], loop=0, optimize=False,
                   duration=[milliseconds] * (len(images) - 1) + [milliseconds + 900])
    return buffer.getvalue()
