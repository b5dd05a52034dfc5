"""Texts of the page (page.py): what is masked, what is predicted, and how good it is.

Axis letters: M bodies, P segments, V joints.
"""

import numpy as np

MOTION = {      # title and text of the map of motion intensity
    'joint': ('motion', 'How far each joint moves'),
    'bone': ('change of bones', 'How much the bone that ends at each joint changes'),
    'velocity': ('change of velocity', 'How much the velocity of each joint changes'),
}
SEGMENTS = 'A clip is cut into segments of {u} frames; one joint in one segment is a joint-segment.'
VISIBLE = 'All of them are visible to the model.'
INTRO = {
    'mamp': f'The model was trained on skeletons without labels. {SEGMENTS} Most joint-segments are masked, and the '
            'model predicts their {target} from the few visible ones.',
    'classifier': f'The model recognises actions. {SEGMENTS} {VISIBLE}',
    'encoder': f'The model is an encoder of skeletons, without classes. {SEGMENTS} {VISIBLE}',
    'recording': 'A classifier predicts the labels of this recording in windows that slide over it. Each frame has '
                 'the label of the window whose centre is nearest; neighbouring windows with the same label form a '
                 'segment of the timeline.',
    'whole': 'A classifier predicts the label of this recording as a whole.',
    'frames': 'The page keeps every frame of the recording (float16), and the most likely classes of each window. '
              'Times assume 30 frames a second.',
}


def maps(stream: str, unit: str, u: int = 0) -> dict[str, dict[str, str]]:
    """Return title, unit and text of each map; mask and error only with u, the frames of a segment."""
    title, text = MOTION[stream]
    body_unit = ' A body unit is half the diagonal of the box around the body, about a metre.'
    entries = {'intensity': (title, unit, f'{text} from one segment to the next, averaged over coordinates.'
                                          + (body_unit if 'body' in unit else ''))}
    if u:
        entries['mask'] = ('mask', '', f'A joint is masked or visible for a whole segment of {u} frames.')
        entries['error'] = ('squared error of the prediction', '', 'Squared error of the prediction in each masked '
                            'joint-segment.')
    entries['attention'] = ('attention', '× average', 'Attention with nothing masked, as in recognition. It shows '
                            'where the model attends, not why.')
    return {name: dict(zip(('title', 'unit', 'text'), entry, strict=True)) for name, entry in entries.items()}


def kept(rank: int, difference: list[float]) -> str:
    """Return what the page keeps of the numbers; `difference` as in `attention_fields`, for each block."""
    blocks = ', '.join(f'{100 * value:.1f}' for value in difference)
    return ('The page keeps coordinates, motion and predictions in half precision (float16). Of the attention of each '
            f'block and head it keeps a compressed form (scores of rank {rank} in 8 bits). In this clip, that moves '
            f'{blocks} % of the attention of a joint-segment to others, on average over all heads of blocks 0 to '
            f'{len(difference) - 1}. Clips are cropped and resized as for the model.')


def mask_name(ratio: float, is_aware: bool, seed: int) -> str:
    """Name a mask in the list of masks."""
    return f'{"motion-aware" if is_aware else "random"}, {100 * ratio:.0f} %, seed {seed}'


def masked(intensity: np.ndarray, mask: np.ndarray, is_aware: bool, is_trained: bool, stream: str, unit: str) -> str:
    """Describe a mask (M, P, V) of joint-segments with motion intensity (M, P, V) in metres."""
    moves = [100 * float(intensity[part].mean()) if part.any() else 0. for part in (mask, ~mask)]
    how = 'The more a joint-segment moves, the more likely it is masked' if is_aware else \
        'All joint-segments are equally likely to be masked'
    return (f'{mask.sum():,} of {mask.size:,} joint-segments ({100 * mask.mean():.0f} %). On the skeleton they are '
            f'grey; only the {(~mask).sum():,} blue ones are input to the model. {how}. The mean '
            f'{MOTION[stream][0]} from one segment to the next is {moves[0]:.1f} {unit} in masked ones '
            f'and {moves[1]:.1f} {unit} in visible ones.'
            + (' The model was trained with such masks.' if is_trained else ''))


def predicted(stream: str, stride: int, scale: float, is_normalised: bool) -> str:
    """Describe the prediction: of motion over `stride` frames, or of positions if it is 0."""
    what = {'joint': 'each masked joint', 'bone': 'the bone that ends at each masked joint',
            'velocity': 'the velocity of each masked joint'}[stream]
    drawn = ' The model predicts how values change within a segment, not their mean and spread; the drawing uses ' \
        'the true mean and spread.' if is_normalised else ''
    if not stride:
        return (f'The position of {what}, from the visible joint-segments alone.{drawn} Orange arrows lead from true '
                'to predicted positions.')
    frames = 'from frame to frame' if stride == 1 else f'over {stride} frames'
    enlarged = f', {scale:.0f} times enlarged' if scale > 1 else ''
    path = ' The predicted skeleton starts at the true joints where masked frames begin and adds up predictions.'
    return (f'The motion of {what} {frames}, from the visible joint-segments alone.{drawn} Arrows show true (thick) '
            f'and predicted (orange) motion{enlarged}.' + (path if stream == 'joint' else ''))


def quality(metrics: dict[str, float], target: str, is_normalised: bool) -> str:
    """Describe how good a prediction is, from the metrics of `prediction_metrics`."""
    if 'r2' not in metrics:
        return 'Nothing moves in the masked joint-segments, so there is nothing to predict.'
    target, r2 = 'motion' if target == 'motion' else 'positions', f'R² {number(metrics["r2"], 3)}'
    text = 'Each joint-segment is scaled to mean 0 and standard deviation 1, as in training, so that errors have no ' \
        'unit. ' if is_normalised else ''
    if metrics['r2'] > 0:
        text += f'The prediction explains {100 * metrics["r2"]:.0f} % of the variance of the true {target} ({r2}).'
    else:
        text += f'The prediction is worse than the mean of the true {target} ({r2}).'
    text += f' Its mean squared error is {metrics["loss"]:.3g}, that of predicting zero {metrics["loss_zero"]:.3g}.'
    if 'r' in metrics:
        text += f' Predicted and true values have a correlation of {number(metrics["r"], 3)}.'
    return text


def number(value: float, digits: int) -> str:
    """Format a number with a minus sign, not a hyphen."""
    return f'{round(value, digits) + 0.:.{digits}f}'.replace('-', '−')


def mask_table(masks: list[dict]) -> list[list[str]]:
    """Return rows of text, by mask ratio: share of all motion that is masked, and R²."""
    rows = [['', 'motion-aware', 'random']]
    for ratio in sorted({mask['ratio'] for mask in masks}):
        pairs = [[mask for mask in masks if (mask['ratio'], mask['aware']) == (ratio, aware)]
                 for aware in (True, False)]
        cells = []
        for group in pairs:
            r2 = [mask['metrics']['r2'] for mask in group if 'r2' in mask['metrics']]
            cells.append(f'{100 * np.mean([mask["moving"] for mask in group]):.0f} % of motion, '
                         f'R² {number(np.mean(r2), 2) if r2 else "–"}')
        rows.append([f'{100 * ratio:.0f} % masked', *cells])
    return rows
