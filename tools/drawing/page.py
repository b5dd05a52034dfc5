"""One HTML file that shows what a model makes of some clips: pictures inside it, no script, nothing from a network."""

import base64
import html
from dataclasses import dataclass
from pathlib import Path

from tools.drawing import pictures
from tools.drawing.animation import animate
from tools.drawing.inside import Inside

STYLE = """
:root { color-scheme: light dark; --paper: #ffffff; --ink: #22262c; --soft: #5b626c; --line: #d9dde2; --card: #f5f6f8; }
@media (prefers-color-scheme: dark) {
  :root { --paper: #16181c; --ink: #e6e8eb; --soft: #a3abb5; --line: #363b43; --card: #1f2228; }
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
table { border-collapse: collapse; background: var(--card); border-radius: 8px; font-size: .95rem; }
th, td { text-align: left; padding: .35rem .9rem; border-bottom: 1px solid var(--line); vertical-align: top; }
tr:last-child > * { border-bottom: 0; }
th { font-weight: 500; color: var(--soft); }
td { font-variant-numeric: tabular-nums; overflow-wrap: anywhere; }
"""
INTRO = {
    'mamp': 'The model is a transformer that learns from skeletons without labels. A clip is cut into short segments; '
            'one joint in one segment is a joint-segment, one token. Most tokens are hidden, those that move rather '
            'than others, and the model is to predict how the hidden ones move from the few it was shown.',
    'classifier': 'The model is a transformer that names actions. A clip is cut into short segments; one joint in one '
                  'segment is a joint-segment, one token. It sees all of them.',
    'encoder': 'The model is the encoder of a transformer for skeletons. A clip is cut into short segments; one joint '
               'in one segment is a joint-segment, one token. It sees all of them, and names nothing.',
}


@dataclass(frozen=True)
class Picture:
    content: bytes
    kind: str           # png or gif
    shows: str          # in few words, for those who do not see it
    caption: str


def write_page(path: Path, title: str, facts: dict[str, str], clips: list[Inside]) -> None:
    """Writes the page: facts of the model on top, then every clip with its numbers and pictures."""
    kind = 'mamp' if clips[0].prediction else 'encoder' if clips[0].classes is None else 'classifier'
    parts = [f'<h1>{html.escape(title)}</h1>', f'<p>{INTRO[kind]}</p>', _table(facts)]
    for inside in clips:
        parts += [f'<h2>{html.escape(inside.clip.title)}</h2>', _table(numbers_of(inside))]
        parts += [_figure(picture) for picture in pictures_of(inside)]
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
    return (f'<figure><img alt="{html.escape(picture.shows)}" src="data:image/{picture.kind};base64,{data}">\n'
            f'<figcaption>{html.escape(picture.caption)}</figcaption></figure>')


def numbers_of(inside: Inside) -> dict[str, str]:
    """What can be said of the clip in figures."""
    rows = {}
    if inside.prediction is not None:
        found, what = inside.prediction.numbers, inside.prediction.target
        rows = {'hidden from the model': f'{100 * found["hidden"]:.1f} % of {inside.intensity.size} joint-segments',
                'loss on them (mean squared error)': f'{found["loss"]:.4f}',
                'the loss of predicting zero': f'{found["loss_zero"]:.4f}',
                'the loss of predicting their mean': f'{found["loss_mean"]:.4f}'}
        if 'r' in found:
            rows[f'R² of the predicted {what} (1: right, 0: no better than the mean)'] = f'{found["r2"]:.3f}'
            rows[f'correlation of predicted and true {what}'] = f'{found["r"]:.3f}'
        if inside.prediction.normalised:
            rows['these figures are of'] = f'{what}, put to mean 0 and spread 1 in each joint-segment as in training'
    if inside.classes is not None:
        best = inside.classes.argmax()
        rows['taken for'] = f'{inside.class_names[best]} ({100 * inside.classes[best]:.1f} %)'
        if inside.clip.label is not None:
            rows['is'] = inside.class_names[inside.clip.label]
    return rows


def pictures_of(inside: Inside) -> list[Picture]:
    """All pictures of a clip, each with what a newcomer should know."""
    def drawn(draw, height: float, shows: str, caption: str, width: float = pictures.WIDTH) -> Picture:
        return Picture(pictures.png(pictures.figure_of(draw, inside, height, width)), 'png', shows, caption)

    found, masked = [], inside.prediction is not None
    if inside.classes is not None:
        found.append(drawn(pictures.draw_classes, 2.4, 'bars of the most probable classes',
                           'The classes the model finds most probable. The true one is named and blue.', 7))
    if masked:
        found.append(_animation(inside))
    found.append(drawn(
        pictures.draw_poses, 2.3, 'the skeleton at eight moments', 'Eight moments of the clip, after its middle was '
        'cut out and resized to the frames the model takes. The view turns to the side on which most is to be seen, '
        'and goes with the body.' + (' A joint is hidden or shown for a whole segment.' if masked else '')))
    found.append(drawn(
        pictures.draw_intensity, 5.2, 'motion of each joint in each segment as a map', 'How far each joint moves from '
        'one segment to the next, on average over its coordinates; the darker, the more.' + (
            ' The mask is drawn from this: the more a joint-segment moves, the likelier it is hidden. Chance has its '
            'part, so some lively ones are shown.' if masked else ''), 8.5))
    if masked:
        found.append(drawn(pictures.draw_curves, 3., 'true and predicted motion over time', _curves_caption(inside)))
    found.append(drawn(
        pictures.draw_attention, 5.2, 'attention to each joint in each segment as a map', 'Attention says how much of '
        'each joint-segment the block takes in, here on the whole clip with nothing hidden, as when actions are '
        'recognised. 1 is what each would get if all were looked at alike. It says where the model looks, not why.',
        8.5))
    found.append(drawn(pictures.draw_attended, 2.6, 'the skeleton, joints as large as they are looked at',
                       'The same on the body: the larger and yellower a joint, the more it is looked at then.'))
    return found


def _animation(inside: Inside) -> Picture:
    if inside.prediction.target == 'motion':
        what = 'Right, arrows: where each hidden joint really goes from one frame to the next (black), and where the ' \
               'model, which does not see it, says it goes (vermilion), both made longer.'
    else:
        what = 'Right: where each hidden joint really is (black), and where the model puts it (vermilion).'
    return Picture(animate(inside), 'gif', 'the moving skeleton and the motion of its hidden joints',
                   f'Left: the skeleton; the model was shown the blue joints only. {what}' + _scale_note(inside))


def _scale_note(inside: Inside) -> str:
    if not inside.prediction.normalised:
        return ''
    return (' The model is asked for the course within a segment only, not for its mean and size: predictions are '
            'drawn with those of the truth. So what lies in the mean is no merit of the model.')


def _curves_caption(inside: Inside) -> str:
    return ('The three joints that move most while hidden, along the axis on which they do; gaps are segments '
            f'that were shown.{_scale_note(inside)} The grey steps are that mean alone: the prediction is worth what '
            'it comes closer to the truth than those. ' if inside.prediction.normalised else
            'The three joints that move most while hidden; gaps are segments that were shown. ') + \
        'Far right: all hidden values, predicted over true, as the loss sees them; on the dashed line they are equal.'
