"""The clip as a moving picture (GIF): what the model was shown, beside what was hidden and what it said of that.

Axis letters: T frames, V joints, P segments of u frames; frames of the picture (H, W, 3).
"""

import io

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from PIL import Image

from tools.drawing.inside import Inside
from tools.drawing.pictures import (
    BONE,
    FAINT,
    GREY,
    HIDDEN,
    PREDICTED,
    SHOWN,
    TRUE,
    colours_of,
    draw_bones,
    flatten,
    frame_view,
    pixels,
    view_of,
)


def arrow_scale(inside: Inside) -> float:
    """How many times too long motion is drawn, so that it can be seen: a lively joint's arrow takes 15 cm."""
    lively = np.quantile(np.linalg.norm(inside.prediction.true, axis=-1), 0.85)
    return float(np.clip(round(0.15 / max(lively, 1e-6)), 1, 10))


def animate(inside: Inside, most: int = 60, milliseconds: int = 100) -> bytes:
    """A GIF, at most so many frames of the clip: what the model was shown, beside what was hidden and what it said.

    True and predicted motion are arrows from the joints; where positions are predicted, a line goes from where a
    hidden joint is to where the model puts it.
    """
    flat, arrows = flatten(inside.pose), inside.prediction.target == 'motion'
    step = -(-len(flat) // most)
    figure = Figure((6.4, 4.6), dpi=100, facecolor='white')
    left, right = figure.subplots(1, 2)
    figure.subplots_adjust(0.01, 0.14, 0.99, 0.92, 0.02)
    scale = arrow_scale(inside) if arrows else 1
    view = view_of(inside.pose)
    true, pred = (values @ view * scale for values in (inside.prediction.true, inside.prediction.pred))
    frames = []
    for t in range(0, len(flat), step):
        _draw_moment(left, right, inside, flat, t)
        if arrows:
            _draw_arrows(right, inside, flat[t], true[t], pred[t], t)
        else:
            _draw_misses(right, inside, flat[t], pred[t] - true[t], t)
        _tell(figure, inside, t, scale if arrows else None)
        frames.append(pixels(figure))
        figure.texts.clear()
        for axis in (left, right):
            axis.clear()
    return _gif(frames, milliseconds * step)


def _draw_moment(left: Axes, right: Axes, inside: Inside, flat: np.ndarray, t: int) -> None:
    draw_bones(left, flat[t], inside.clip.layout.parents, linewidths=1.6)
    draw_bones(right, flat[t], inside.clip.layout.parents, colors=FAINT, linewidths=1.6)
    left.scatter(*flat[t].T, c=colours_of(inside, t), edgecolors=GREY, linewidths=0.6, s=46, zorder=2)
    for axis, title in ((left, 'the skeleton'), (right, f'{inside.prediction.target} of hidden joints')):
        frame_view(axis, flat, 0.12)
        axis.set_title(title, fontsize=11)


def _draw_arrows(axis: Axes, inside: Inside, points: np.ndarray, true: np.ndarray, pred: np.ndarray, t: int) -> None:
    hidden = inside.prediction.hidden[t // inside.u]
    axis.scatter(*points[hidden].T, c=HIDDEN, s=16, zorder=2, linewidths=0)
    for moved, colour, width, above in ((true, TRUE, 0.014, 3), (pred, PREDICTED, 0.009, 4)):
        axis.quiver(*points[hidden].T, *moved[hidden].T, color=colour, width=width, angles='xy', scale_units='xy',
                    scale=1, headwidth=3.2, headlength=3.6, headaxislength=3.4, minlength=0.5, zorder=above)


def _draw_misses(axis: Axes, inside: Inside, points: np.ndarray, miss: np.ndarray, t: int) -> None:
    hidden = inside.prediction.hidden[t // inside.u]
    put = points + miss
    misses = np.stack([points, put], axis=1)[hidden]
    axis.add_collection(LineCollection(misses, colors=PREDICTED, linewidths=1, zorder=2))
    axis.scatter(*points[hidden].T, c=TRUE, s=26, zorder=3, linewidths=0)
    axis.scatter(*put[hidden].T, c=PREDICTED, s=30, marker='D', zorder=4, linewidths=0)


def _tell(figure: Figure, inside: Inside, t: int, scale: float | None) -> None:
    """What the colours are, where in the clip this is, and how the prediction was put to scale."""
    left = (('●', SHOWN, 'shown to the model'), ('●', HIDDEN, 'hidden'))
    right = (('➤', TRUE, f'true (×{scale:.0f})'), ('➤', PREDICTED, 'predicted')) if scale else \
        (('●', TRUE, 'true'), ('◆', PREDICTED, 'predicted'))
    for x, entries in ((0.07, left), (0.58, right)):
        for place, (sign, colour, said) in enumerate(entries):
            at = x + place * (0.27 if x < 0.5 else 0.2)
            figure.text(at, 0.1, sign, color=colour, fontsize=11, ha='center', va='center')
            figure.text(at + 0.015, 0.1, said, color=TRUE, fontsize=9.5, va='center')
    note = '; predictions on the scale of the truth in each segment' if inside.prediction.normalised else ''
    figure.text(0.5, 0.035, f'frame {t} of {len(inside.pose)}{note}', color=GREY, fontsize=8.5, ha='center')


def _gif(frames: list[np.ndarray], milliseconds: int) -> bytes:
    """Frames (H, W, 3) in the colours of our pictures, each in shades up to white; it starts again after a pause."""
    shades = [255 - (255 - np.array(to_rgb(colour)) * 255) * part for part in np.linspace(0.3, 1, 8)
              for colour in (SHOWN, HIDDEN, TRUE, PREDICTED, BONE, GREY)]
    palette = Image.new('P', (1, 1))
    palette.putpalette(np.array([[255] * 3, *shades]).round().astype(np.uint8).tobytes())
    images = [Image.fromarray(frame).quantize(palette=palette, dither=Image.Dither.NONE) for frame in frames]
    held = io.BytesIO()
    images[0].save(held, 'GIF', save_all=True, append_images=images[1:], loop=0, optimize=False,
                   duration=[milliseconds] * (len(images) - 1) + [milliseconds + 900])
    return held.getvalue()
