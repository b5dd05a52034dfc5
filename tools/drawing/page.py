"""A self-contained web page to explore clips and recordings: player, map of joint-segments, classes over time.

page.html, page.css and page.js are its parts; the data are in it as JSON, with arrays in base64. A scene is what the
player shows: a clip as a model receives it, or a whole recording with the labels of a classifier.

Axis letters: M bodies, T frames, V joints, P segments of u frames, L = P·V tokens, H heads, E width of a head.
"""

import base64
import html
import json
import re
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from feeder.layouts import Layout
from model_mamp import MAMP
from model_transformer import ActionTransformer, SkeletonEncoder
from tools.drawing import captions
from tools.drawing.analysis import (
    Clip,
    Model,
    MotionPrediction,
    classify,
    evaluation_mode,
    intensities,
    predict_motion,
    prediction_metrics,
)
from tools.drawing.animation import arrow_scale
from tools.drawing.pictures import side_view, write
from tools.recordings import Prediction, Segment, timeline, top_classes

RATIOS, SEEDS, TAU = (0.5, 0.75, 0.9), 2, 0.8       # of the masks computed beforehand, besides those of training
RANK = 6        # of the attention scores kept: 1.5 MB for 8 blocks of 8 heads and two bodies of 750 tokens
TOP = 5         # classes listed
RATE = 30       # frames a second, that of the Kinect; also in page.js
MOST_BYTES = 20_000_000     # of a page without a note about its size
# Of the most frequent labels; the last one of all others.
COLOURS = '#e69f00', '#56b4e9', '#009e73', '#f0e442', '#cc79a7', '#d55e00', '#b0b0b0'


@dataclass(frozen=True)
class OpenModel:
    """A rebuilt model and what a page states about it."""

    model: Model
    settings: dict
    class_names: list[str] | None
    facts: list[list[str]]      # rows of a name and a value


def pack(array: np.ndarray, dtype: str) -> dict:
    """Return an array as JSON: dtype (float16, float32, int8 or uint8, little-endian), shape, and base64 data."""
    if dtype == 'float16':
        array = np.clip(array, -65504, 65504)       # so that coordinates in the wrong unit do not become infinite
    content = np.ascontiguousarray(array, dtype=np.dtype(dtype).newbyteorder('<')).tobytes()
    return {'dtype': dtype, 'shape': list(array.shape), 'data': base64.b64encode(content).decode()}


def table(rows: list[list[str]]) -> str:
    """Return rows of text as HTML; the first cell of each is its heading."""
    return ''.join(f'<tr><th>{html.escape(name)}</th>' + ''.join(f'<td>{html.escape(value)}</td>' for value in values)
                   + '</tr>' for name, *values in rows)


def colour_key(labels: list[int], names: list[str]) -> str:
    """Return the key of the timeline as HTML; `labels` in the order of COLOURS."""
    entries = [names[label] for label in labels]
    if len(entries) > len(COLOURS):
        entries[len(COLOURS) - 1:] = [f'{len(entries) - len(COLOURS) + 1} other labels']
    return ''.join(f'<li><i style="background: {colour}"></i>{html.escape(name)}</li>'
                   for colour, name in zip(COLOURS, entries, strict=False))


def label_buttons(segments: list[Segment], frames: int, names: list[str], colours: dict[int, str]) -> str:
    """Return the timeline as HTML: a button for each segment, whose value is its first frame."""
    def clock(frame: int) -> str:
        tenths = 10 * frame // RATE
        return f'{tenths // 600}:{tenths % 600 / 10:04.1f}'
    buttons = []
    for segment in segments:
        left, width = (100 * number / frames for number in (segment.start, segment.end - segment.start))
        name = html.escape(names[segment.label])
        buttons.append(f'<button type="button" tabindex="-1" value="{segment.start}" title="{name}: '
                       f'{clock(segment.start)} to {clock(segment.end)}, probability {segment.probability:.2f}" '
                       f'style="left: {left:.3f}%; width: {width:.3f}%; background: {colours[segment.label]}">'
                       f'{name if width > 3 else ""}</button>')
    return ''.join(buttons)


def pose_fields(pose: np.ndarray, kept: list[int], layout: Layout, title: str, planar: bool) -> dict:
    """Return the fields that every scene has, for the kept ones of bodies (M, T, V, 3) in metres, 0 where absent."""
    pose = pose[kept]
    present = pose.any(axis=(2, 3))                                                         # (M, T)
    flat = pose[..., [0, 2]].sum(axis=(0, 2)) / np.maximum(present.sum(0) * pose.shape[2], 1)[:, None]      # (T, 2)
    distance = np.linalg.norm(pose[..., [0, 2]] - flat[:, None], axis=-1).max(axis=2)[present]
    heights = pose[..., 1][present]
    across, _, depth = side_view(pose.transpose(1, 0, 2, 3).reshape(pose.shape[1], -1, 3))[:, 0]
    # Quantiles, so that a single wrong joint in a long recording does not shrink the figure.
    low, high, reach = (round(float(np.quantile(values, q)), 3) if present.any() else 1. for values, q in (
        (heights, 0.002), (heights, 0.998), (distance, 0.99)))
    return {'title': title, 'name': title, 'joints': layout.joints, 'parents': layout.parents, 'planar': planar,
            'bodies': len(pose), 'frames': pose.shape[1], 'pose': pack(pose, 'float16'),
            'present': pack(present, 'uint8'), 'centre': pack(flat, 'float32'), 'low': low, 'high': high,
            'reach': reach or 1., 'yaw': float(np.arctan2(depth, across)), 'label': None}


def distinct_bodies(pose: np.ndarray) -> list[int]:
    """Return the bodies of (M, T, V, 3) that are neither empty nor copies, as datasets pad clips of one person."""
    kept = [i for i, body in enumerate(pose)
            if body.any() and not any(np.array_equal(body, other) for other in pose[:i])]
    return kept or [0]


# ---- a clip as a model receives it -----------------------------------------------------------------------------------


def clip_scene(opened: OpenModel, clip: Clip, seed: int = 0) -> dict:
    """Return the scene of a clip: motion intensity, masks with predictions, attention, classes."""
    model, settings = opened.model, opened.settings
    with evaluation_mode(model):
        pose, bodies = model.fold_bodies(clip.joints).cpu().numpy(), model.fold_bodies(clip.stream)
        kept = distinct_bodies(pose)
        intensity = intensities(model, settings, bodies)[kept]
        attention = attention_fields(model, bodies[kept])
        planar = settings.get('keypoints') == '2d'
        scene = pose_fields(pose, kept, clip.layout, clip.title, planar) | {
            'intro': captions.INTRO['encoder'], 'facts': table(opened.facts), 'u': model.t_patch_size,
            'segments': model.num_segments, 'busiest': int(intensity.mean(axis=(0, 2)).argmax()),
            'intensity': pack(100 * intensity, 'float16'), 'attention': attention,
            'blocks': len(model.blocks), 'heads': model.blocks[0].attn.num_heads,
            'maps': captions.maps(settings['stream'], clip.unit), 'kept': captions.kept(RANK, attention['difference'])}
        if isinstance(model, MAMP):
            scene |= {'intro': captions.INTRO['mamp']} | mask_fields(model, settings, bodies, kept, seed, clip.unit)
            scene['maps'] = captions.maps(settings['stream'], clip.unit, model.t_patch_size)
        if isinstance(model, ActionTransformer):
            classes, names = classify(model, settings, clip, opened.class_names)
            end = pose.shape[1]
            whole = {'start': 0, 'end': end, 'begin': 0, 'stop': end, 'top': top_classes(classes, TOP)}
            scene |= {'intro': captions.INTRO['classifier'], 'classes': names, 'label': clip.label, 'windows': [whole]}
    numbers = [[i, i] for i in range(max(scene['blocks'], scene['heads']))]
    scene['choices'] = {
        'map': [[name, entry['title']] for name, entry in scene['maps'].items()], 'body': list(enumerate(kept)),
        'mask': [[mask['name'], mask['name']] for mask in scene.get('masks', [])],
        'block': numbers[:scene['blocks']], 'head': [[-1, 'mean of all'], *numbers[:scene['heads']]]}
    target = 'positions' if getattr(model, 'target', '') == 'joint' else 'motion'
    return scene | {'intro': scene['intro'].format(u=model.t_patch_size, target=target)}


def mask_fields(model: MAMP, settings: dict, bodies: torch.Tensor, kept: list[int], seed: int, unit: str) -> dict:
    """Return true motion and, for several masks, the prediction for the kept ones of bodies (M, T, V, C).

    The first mask is that of training; the others differ in seed, ratio, and whether moving joints are preferred.
    """
    ratio, tau = settings['mask_ratio'], settings['motion_aware_tau']
    variants = [(ratio, tau, seed)]
    variants += [variant for strength in (tau or TAU, 0.) for share in sorted({*RATIOS, ratio})
                 for number in range(seed, seed + SEEDS) if (variant := (share, strength, number)) not in variants]
    intensity, masks = intensities(model, settings, bodies)[kept], []
    for share, strength, number in variants:
        changed = settings | {'mask_ratio': share, 'motion_aware_tau': strength}
        predictions = predict_motion(model, changed, bodies, number)
        predictions = [predictions[body] for body in kept]
        masked = np.stack([prediction.masked for prediction in predictions])
        masks.append({'ratio': share, 'aware': strength > 0, 'seed': number,
                      'name': captions.mask_name(share, strength > 0, number),
                      'text': captions.masked(intensity, masked, strength > 0, (share, strength) == (ratio, tau),
                                              settings['stream'], unit),
                      'moving': float(intensity[masked].sum() / max(intensity.sum(), 1e-12))}
                     | prediction_fields(predictions))
        masks[-1]['quality'] = captions.quality(masks[-1]['metrics'], model.target, model.norm_skes_loss)
    is_motion, arrows = model.target == 'motion', min(map(arrow_scale, predictions))
    true = np.stack([prediction.true for prediction in predictions])
    stride = settings['motion_stride'] if is_motion else 0
    # A prediction adds up to a path only if it is for joints; bones and velocities have arrows alone.
    return {'masks': masks, 'isMotion': is_motion, 'true': pack(true if is_motion else 0 * true, 'float16'),
            'lag': stride if settings['stream'] == 'joint' else None, 'enlarged': arrows if is_motion else 1,
            'predicted': captions.predicted(settings['stream'], stride, arrows, model.norm_skes_loss),
            'table': table(captions.mask_table(masks))}


def prediction_fields(predictions: list[MotionPrediction]) -> dict:
    """Return mask, prediction, squared error of each token as in the loss, and metrics over all bodies.

    The prediction is a vector from the joint: motion, or the predicted minus the true position.
    """
    masked = np.stack([prediction.masked for prediction in predictions])                                  # (M, P, V)
    error = np.zeros(masked.shape)
    target, pred = (np.concatenate([getattr(prediction, name) for prediction in predictions])
                    for name in ('target_values', 'pred_values'))                           # (n, u·C)
    error[masked] = np.square(pred - target).mean(axis=1)
    vectors = np.stack([prediction.pred - (0 if prediction.target == 'motion' else prediction.true)
                        for prediction in predictions])
    return {'masked': pack(masked, 'uint8'), 'error': pack(error, 'float16'), 'pred': pack(vectors, 'float16'),
            'metrics': prediction_metrics(target, pred)}


def attention_fields(model: SkeletonEncoder, bodies: torch.Tensor) -> dict:
    """Return the attention of every block and head for bodies (M, T, V, C), with nothing masked.

    Scores q kᵀ / √E are kept as a product of int8 factors of rank RANK, from which the page computes softmax: 8
    blocks of 8 heads have 36 million weights for a body of 750 tokens. `difference` is the share of a query's
    attention that this moves to other keys, mean over queries and heads, for each block.
    """
    tokens, blocks = model.embed(bodies), []
    for block in model.blocks:
        queries, keys = block.attn.queries_and_keys(block.norm1(tokens))                    # (M, H, L, E)
        blocks.append(_score_factors(queries.float() * queries.shape[-1] ** -.5, keys.float()))
        tokens = block(tokens)
    left, right, scale, difference = zip(*blocks, strict=True)
    return {'rank': left[0].shape[-1], 'queries': pack(np.stack(left), 'int8'), 'keys': pack(np.stack(right), 'int8'),
            'scale': pack(np.stack(scale), 'float32'), 'difference': [round(value, 4) for value in difference]}


def _score_factors(queries: torch.Tensor, keys: torch.Tensor) -> tuple[np.ndarray, np.ndarray, np.ndarray, float]:
    """Return int8 factors (M, H, L, R) of the scores of (M, H, L, E), their scale (M, H, R), and the difference.

    The mean over keys is subtracted, as softmax ignores it. The decomposition is that of the small product of two
    triangular matrices, not of L × L scores.
    """
    weights = (queries @ keys.transpose(-1, -2)).softmax(-1)
    (base, small), (other, narrow) = (torch.linalg.qr(values) for values in (queries, keys - keys.mean(-2, True)))
    u, spread, v = torch.linalg.svd(small @ narrow.transpose(-1, -2))
    root = spread[..., None, :RANK].sqrt()
    factors = (base @ u[..., :RANK] * root, other @ v.transpose(-1, -2)[..., :RANK] * root)
    steps = [factor.abs().amax(-2, keepdim=True).clamp(min=1e-12) / 127 for factor in factors]
    left, right = ((factor / step).round() for factor, step in zip(factors, steps, strict=True))
    scale = steps[0] * steps[1]                                                             # (M, H, 1, R)
    kept = (left * scale @ right.transpose(-1, -2)).softmax(-1)
    difference = float((kept - weights).abs().sum(-1).mean() / 2)
    return left.cpu().numpy(), right.cpu().numpy(), scale[..., 0, :].cpu().numpy(), difference


# ---- a recording with labels -----------------------------------------------------------------------------------------


def recording_scene(prediction: Prediction, names: list[str], layout: Layout, facts: list[list[str]]) -> dict:
    """Return the scene of a recording: its frames, the top classes of each window, and the timeline of labels."""
    recording = prediction.recording
    pose = recording.frames.transpose(1, 0, 2, 3)                                           # (M, T, V, 3)
    if recording.planar:        # the third number is a score; drawn in the plane z = 0
        pose = pose * np.array([1, 1, 0], pose.dtype)
    segments = timeline(prediction.windows, prediction.scores)
    durations = Counter()
    for segment in segments:
        durations[segment.label] += segment.end - segment.start
    labels = [label for label, _ in durations.most_common()]
    windows = [place._asdict() | {'top': top_classes(scores, TOP)}
               for place, scores in zip(prediction.windows, prediction.scores, strict=True)]
    colours = {label: COLOURS[min(i, len(COLOURS) - 1)] for i, label in enumerate(labels)}
    return pose_fields(pose, distinct_bodies(pose), layout, recording.short_title, recording.planar) | {
        'intro': captions.INTRO['recording' if len(windows) > 1 else 'whole'], 'facts': table(facts), 'classes': names,
        'label': recording.label if (recording.label or 0) < len(names) else None,
        'windows': windows, 'kept': captions.INTRO['frames'],
        'timeline': [segment._asdict() for segment in segments],
        'labels': label_buttons(segments, pose.shape[1], names, colours), 'key': colour_key(labels, names),
        'colours': colours}


# ---- the page --------------------------------------------------------------------------------------------------------


def write_page(path: str | Path, title: str, scenes: list[dict], start: dict | None = None) -> None:
    """Write the page of scenes; `start` sets the state of page.js, for example {'beside': 1}."""
    page, style, script = ((Path(__file__).parent / f'page.{suffix}').read_text(encoding='utf-8')
                           for suffix in ('html', 'css', 'js'))
    data = json.dumps({'scenes': scenes, 'start': start or {}}, ensure_ascii=False, allow_nan=False,
                      separators=(',', ':'))
    # Escaping '<' keeps any text in the data from ending the script element.
    values = {'title': html.escape(title), 'style': style, 'script': script, 'data': data.replace('<', '\\u003c')}
    content = re.sub(r'{{(\w+)}}', lambda match: values[match[1]], page).encode()
    write(Path(path), content)
    if len(content) > MOST_BYTES:
        print(f'note: {path} has {len(content) / 1e6:.0f} MB, which a browser may open slowly; use fewer recordings',
              file=sys.stderr)
