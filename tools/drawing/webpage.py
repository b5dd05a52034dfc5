"""A self-contained HTML page about clips and a model: pictures are embedded, and there is no script or network access.
"""

import base64
import html
from dataclasses import dataclass
from pathlib import Path

from tools.drawing import pictures
from tools.drawing.analysis import ClipAnalysis
from tools.drawing.animation import animate

STYLE = """
:root { color-scheme: light dark; --paper: #ffffff; --ink: #22262c; --soft: #5b626c; --line: #d9dde2;
  --panel: #f5f6f8; }
@media (prefers-color-scheme: dark) {
  :root { --paper: #16181c; --ink: #e6e8eb; --soft: #a3abb5; --line: #363b43; --panel: #1f2228; }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 16px/1.55 system-ui, sans-serif; }
main { max-width: 62rem; margin: 0 auto; padding: 1.5rem 1rem 4rem; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: 0 0 .5rem; }
h2 { font-size: 1.25rem; margin: 2.5rem 0 .75rem; padding-top: 1.25rem; border-top: 1px solid var(--line); }
p, figcaption { max-width: 48rem; }
figure { margin: 1.5rem 0; }
figure img { display: block; max-width: 100%; height: auto; background: #fff; border: 1px solid var(--line);
  border-radius: 8px; padding: 6px; }
figcaption { margin-top: .5rem; color: var(--soft); font-size: .93rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; background: var(--panel); border-radius: 8px; font-size: .95rem; }
th, td { text-align: left; padding: .35rem .9rem; border-bottom: 1px solid var(--line); vertical-align: top; }
tr:last-child > * { border-bottom: 0; }
th { font-weight: 500; color: var(--soft); }
td { font-variant-numeric: tabular-nums; overflow-wrap: anywhere; }
"""
INTRO = {
    'mamp': 'The model is a transformer pre-trained on skeletons without labels. A clip is cut into short segments; '
            'one joint in one segment is a joint-segment, one token. Most tokens are masked, preferably moving ones, '
            'and the model predicts their motion from the few visible ones.',
    'classifier': 'The model is a transformer that recognises actions. A clip is cut into short segments; one joint in '
                  'one segment is a joint-segment, one token. All of them are visible.',
    'encoder': 'The model is the encoder of a skeleton transformer. A clip is cut into short segments; one joint in '
               'one segment is a joint-segment, one token. All of them are visible; there are no classes.',
}


@dataclass(frozen=True)
class Picture:
    """A picture on the page."""

    content: bytes
    kind: str           # png or gif
    alt: str            # short description for screen readers
    caption: str


def write_page(path: Path, title: str, facts: dict[str, str], clips: list[ClipAnalysis]) -> None:
    """Write the page: facts of the model, then each clip with its figures and pictures."""
    kind = 'mamp' if clips[0].prediction else 'encoder' if clips[0].classes is None else 'classifier'
    parts = [f'<h1>{html.escape(title)}</h1>', f'<p>{INTRO[kind]}</p>', _table(facts)]
    for analysis in clips:
        parts += [f'<h2>{html.escape(analysis.clip.title)}</h2>', _table(figures_table(analysis))]
        parts += [_figure(picture) for picture in clip_pictures(analysis)]
    content = ('<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
               '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
               f'<title>{html.escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>\n'
               + '\n'.join(parts) + '\n</main>\n</body>\n</html>\n')
    pictures.write(path, content.encode())


def _table(rows: dict[str, str]) -> str:
    cells = ''.join(f'<tr><th scope="row">{html.escape(name)}</th><td>{html.escape(value)}</td></tr>\n'
                    for name, value in rows.items())
    return f'<div class="scroll"><table>\n{cells}</table></div>'


def _figure(picture: Picture) -> str:
    data = base64.b64encode(picture.content).decode()
    return (f'<figure><img alt="{html.escape(picture.alt)}" src="data:image/{picture.kind};base64,{data}">\n'
            f'<figcaption>{html.escape(picture.caption)}</figcaption></figure>')


def figures_table(analysis: ClipAnalysis) -> dict[str, str]:
    """Return the label and value of each metric of a clip."""
    rows = {}
    if analysis.prediction is not None:
        metrics, target = analysis.prediction.metrics, analysis.prediction.target
        rows = {'masked': f'{100 * metrics["masked"]:.1f} % of {analysis.intensity.size} joint-segments',
                'loss on them (mean squared error)': f'{metrics["loss"]:.4f}',
                'loss of predicting zero': f'{metrics["loss_zero"]:.4f}',
                'loss of predicting their mean': f'{metrics["loss_mean"]:.4f}'}
        if 'r' in metrics:
            rows[f'R² of the predicted {target} (1: perfect, 0: no better than the mean)'] = f'{metrics["r2"]:.3f}'
            rows[f'correlation of predicted and true {target}'] = f'{metrics["r"]:.3f}'
        if analysis.prediction.normalised:
            rows['scale of these figures'] = f'{target}, normalised in each joint-segment as in training'
    if analysis.classes is not None:
        best = analysis.classes.argmax()
        rows['predicted class'] = f'{analysis.class_names[best]} ({100 * analysis.classes[best]:.1f} %)'
        if analysis.clip.label is not None:
            rows['true class'] = analysis.class_names[analysis.clip.label]
    return rows


def clip_pictures(analysis: ClipAnalysis) -> list[Picture]:
    """Return all pictures of a clip, with captions that explain them to newcomers."""
    def make(draw, height: float, alt: str, caption: str, width: float = pictures.WIDTH) -> Picture:
        return Picture(pictures.png(pictures.make_figure(draw, analysis, height, width)), 'png', alt, caption)

    parts, masked = [], analysis.prediction is not None
    if analysis.classes is not None:
        parts.append(make(pictures.draw_classes, 2.4, 'bars of the most probable classes',
                           'The most probable classes. The true one is marked and blue.', 7))
    if masked:
        parts.append(_animation(analysis))
    parts.append(make(
        pictures.draw_poses, 2.3, 'the skeleton at eight moments', 'Eight moments of the clip, as cropped and resized '
        'for the model. The skeleton is seen from its widest side; the view follows the body.' + (
            ' A joint is masked or visible for a whole segment.' if masked else '')))
    parts.append(make(
        pictures.draw_intensity, 5.2, 'motion of each joint in each segment as a map', 'How far each joint moves from '
        'one segment to the next, averaged over its coordinates; darker means more.' + (
            ' The mask is drawn from it: the more a joint-segment moves, the more likely it is masked. The draw is '
            'random, so some moving ones stay visible.' if masked else ''), 8.5))
    if masked:
        parts.append(make(pictures.draw_curves, 3., 'true and predicted motion over time', _curves_caption(analysis)))
    parts.append(make(
        pictures.draw_attention, 5.2, 'attention to each joint in each segment as a map', 'Attention that the block '
        'pays to each joint-segment of the whole clip, with nothing masked, as in recognition. 1 is uniform attention. '
        'It shows where the model attends, not why.',
        8.5))
    parts.append(make(pictures.draw_attended, 2.6, 'the skeleton with joints sized by attention',
                       'The same on the body: larger and yellower joints receive more attention.'))
    return parts


def _animation(analysis: ClipAnalysis) -> Picture:
    if analysis.prediction.target == 'motion':
        what = 'Right: true (black) and predicted (vermilion) motion of each masked joint to the next frame, enlarged.'
    else:
        what = 'Right: true (black) and predicted (vermilion) positions of the masked joints.'
    return Picture(animate(analysis), 'gif', 'animation of the skeleton and the motion of its masked joints',
                   f'Left: the skeleton; only the blue joints are visible to the model. {what}' + _scale_note(analysis))


def _scale_note(analysis: ClipAnalysis) -> str:
    if not analysis.prediction.normalised:
        return ''
    return (' The model predicts motion normalised within a segment; for drawing it is rescaled to the true mean and '
            'spread, which are not predictions.')


def _curves_caption(analysis: ClipAnalysis) -> str:
    return ('The three masked joints that move most, along their main axis; gaps are visible segments.'
            f'{_scale_note(analysis)} The grey steps are that mean alone, a baseline for the prediction. '
            if analysis.prediction.normalised else
            'The three masked joints that move most; gaps are visible segments. ') + \
        'Far right: predicted over true values of all masked tokens, as in the loss; the dashed line is a perfect ' \
        'prediction.'
