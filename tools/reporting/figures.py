"""Figures as PNG files: training curves, confusion matrix, t-SNE of features."""

import math
from collections import defaultdict
from pathlib import Path

import matplotlib

matplotlib.use('Agg')       # works without a display
matplotlib.rcParams['text.parse_math'] = False      # a $ in a name does not start a formula
import matplotlib.pyplot as plt  # noqa: E402
import numpy as np  # noqa: E402
from matplotlib.colors import PowerNorm  # noqa: E402
from matplotlib.patheffects import withStroke  # noqa: E402
from matplotlib.ticker import MaxNLocator  # noqa: E402
from sklearn.manifold import TSNE  # noqa: E402

from tools.reporting.scores import accuracy, class_names, confusion  # noqa: E402
from util.errors import UserError  # noqa: E402
from util.files import atomic_write  # noqa: E402
from util.predictions import Features, Scores, label_names  # noqa: E402
from util.results import Result, distinct_runs, group_runs  # noqa: E402

TRAINED = ('pretrain', 'linprobe', 'finetune')      # the stages that leave a log
FAINT, DARK, GREY = '#e3e6ea', '#2b2f36', '#80868f'
MARKERS, LEGEND_ROWS = 'osD^vX', 40


def save(figure: plt.Figure, path: Path, dpi: int) -> None:
    with atomic_write(path) as partial:
        figure.savefig(partial, dpi=dpi, format='png', facecolor='white', bbox_inches='tight', pad_inches=0.15)
    plt.close(figure)


# ---- training curves -------------------------------------------------------------------------------------------------


def draw_curves(results: list[Result], path: Path) -> None:
    """Draw training loss (top) and test accuracy (bottom): faint lines are runs, strong lines their means.

    Raises UserError if none of the runs was trained, or a run has no log.jsonl.
    """
    columns = defaultdict(dict)         # stage -> {(benchmark, name of the line): curves}
    for benchmark in sorted({result.benchmark for result in results}):
        groups = group_runs([result for result in results if result.benchmark == benchmark])
        for (experiment, note), runs in sorted(groups.items(), key=lambda group: group[0][0].sort_key):
            if runs[0].protocol in TRAINED:
                stage = experiment.stage
                column = 'fine-tune' if stage == 'scratch' else stage      # to compare the two
                name = experiment.name.removeprefix(f'{stage}, ') + (f' ({note})' if note else '')
                columns[column][benchmark, name] = [run.read_curve() for run in distinct_runs(runs)]
    if not columns:
        raise UserError('--figure: these runs have no training curves; omit the option')
    lines = list(dict.fromkeys(key for runs in columns.values() for key in runs))
    many = len({benchmark for benchmark, _ in lines}) > 1
    labels = {key: ', '.join(key if many else key[1:]) for key in lines}
    colours = {label: colour_of(i) for i, label in enumerate(dict.fromkeys(labels.values()))}
    figure, axes = plt.subplots(2, len(columns), figsize=(max(3.6 * len(columns), 4.5), 6), squeeze=False,
                                layout='constrained')
    for (stage, runs), (top, bottom) in zip(columns.items(), axes.T, strict=True):
        top.set_title(stage, fontsize=11, loc='left', fontweight='bold')
        for axis, quantity, ylabel in ((top, 'train_loss', 'training loss'), (bottom, 'test_top1', 'test top-1, %')):
            drawn = [_draw_runs(axis, curves, quantity, labels[key], colours[labels[key]])
                     for key, curves in runs.items()]
            if any(drawn):
                _tidy(axis, 'epoch', ylabel)
            else:
                axis.axis('off')
    handles = {label: line for axis in axes.flat for line, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles.keys(), loc='outside lower center', ncols=min(len(handles), 4),
                  frameon=False)
    save(figure, path, 110)


def _draw_runs(axis: plt.Axes, curves: list[dict], quantity: str, label: str, colour) -> bool:
    """Draw one quantity of the runs of a row; returns False if they do not have it."""
    by_epoch = defaultdict(list)
    for curve in curves:
        points = list(zip(curve['epoch'], curve[quantity], strict=True)) if quantity in curve else []
        for epoch, value in points:
            by_epoch[epoch].append(value)
        if len(curves) > 1 and points:
            axis.plot(*zip(*points, strict=True), color=colour, linewidth=0.7, alpha=0.35)
    means = [(epoch, sum(values) / len(values)) for epoch, values in sorted(by_epoch.items())
             if len(values) == max(map(len, by_epoch.values()))]
    if means:
        axis.plot(*zip(*means, strict=True), color=colour, linewidth=1.7, label=label,
                  marker='o' if len(means) == 1 else None)
    return bool(means)


def _tidy(axis: plt.Axes, xlabel: str, ylabel: str) -> None:
    axis.set(xlabel=xlabel, ylabel=ylabel)
    axis.grid(color=FAINT, linewidth=0.8)
    axis.set_axisbelow(True)
    axis.spines[['top', 'right']].set_visible(False)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))


def colour_of(i: int):
    """Return color number i: ten distinct colors, followed by darker versions of them."""
    red, green, blue = matplotlib.color_sequences['tab10'][i % 10]
    shade = 0.6 if i // 10 % 2 else 1
    return red * shade, green * shade, blue * shade


# ---- confusion matrix ------------------------------------------------------------------------------------------------


def draw_confusion(scores: Scores, path: Path) -> None:
    """Draw the fraction of each true class (rows) predicted as each class: correct in blue, confused in orange.

    The two have separate scales; with up to 20 classes the fractions are also written as numbers.
    """
    counts, names = confusion(scores), class_names(scores)
    classes, shares = len(names), 100 * counts / np.maximum(counts.sum(1, keepdims=True), 1)
    right = np.eye(classes, dtype=bool)
    side = max(0.5, 0.62 - 0.006 * classes) * classes if classes <= 20 else 0.155 * classes
    font = 9 if classes <= 20 else 7
    margin = 0.6 * font / 72 * max(map(len, names))         # inches for the longest name
    figure, axis = plt.subplots(figsize=(side + margin + 2.8, side + margin + 1.2), layout='constrained')
    most = max(shares[~right].max(), 1)
    wrong = axis.imshow(np.ma.masked_where(right | (counts == 0), shares), cmap='Oranges',
                        norm=PowerNorm(0.6, 0, most))
    correct = axis.imshow(np.ma.masked_where(~right, shares), cmap='Blues', vmin=0, vmax=100)
    axis.set_xticks(range(classes), names, rotation=90, fontsize=font)
    axis.set_yticks(range(classes), names, fontsize=font)
    axis.set_xticks(np.arange(classes + 1) - 0.5, minor=True)
    axis.set_yticks(np.arange(classes + 1) - 0.5, minor=True)
    axis.grid(which='minor', color=FAINT, linewidth=0.6)
    axis.tick_params(which='both', length=0)
    axis.spines[:].set_color(GREY)
    if classes <= 20:
        for i, j in np.argwhere(shares >= 0.5):
            strong = shares[i, j] > (55 if i == j else 0.55 * most)
            axis.text(j, i, f'{shares[i, j]:.0f}', ha='center', va='center', fontsize=font,
                      color='white' if strong else DARK)
    large = max(font + 2, 0.9 * side)
    axis.set_xlabel('predicted as', fontsize=large)
    axis.set_ylabel('class', fontsize=large)
    axis.set_title(f'{scores.benchmark}, {scores.stream}: top-1 {accuracy(scores)["top1"]:.1f} % of '
                   f'{len(scores.label)} clips', fontsize=1.15 * large, loc='left', pad=12)
    height = {'shrink': min(1, 4 / side), 'aspect': 18, 'pad': 0.015}
    for image, what in ((wrong, 'confused, % of the class'), (correct, 'correct, % of the class')):
        bar = figure.colorbar(image, ax=axis, **height)
        bar.set_label(what, fontsize=0.9 * large)
        bar.ax.tick_params(labelsize=0.85 * large)
        bar.outline.set_visible(False)
    save(figure, path, 110)


# ---- features in the plane -------------------------------------------------------------------------------------------


def embed(features: Features, most: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Embed up to `most` clips, sampled with `seed`, by t-SNE: positions (n, 2) and rows (n,) in ascending order.

    Raises UserError for fewer than five clips, or identical ones.
    """
    count = len(features.label)
    rows = np.arange(count) if count <= most else np.sort(np.random.default_rng(seed).permutation(count)[:most])
    values = features.features[rows]
    if len(rows) < 5 or not values.std(0).any():
        raise UserError(f'--tsne needs at least five clips with different features; the file has {len(rows)} '
                        f'{"clips" if len(rows) < 5 else "identical ones"}')
    tsne = TSNE(perplexity=min(30, (len(rows) - 1) / 3), init='pca' if values.shape[1] > 1 else 'random',
                random_state=seed)
    return tsne.fit_transform(values), rows


def draw_tsne(features: Features, path: Path, benchmark: str | None = None, most: int = 2000, seed: int = 0) -> None:
    """Draw clips as points, with a color and marker per class and its number at the center; raises as `embed` does."""
    places, rows = embed(features, most, seed)
    label, names = features.label[rows], label_names(benchmark, features.label)
    present = np.unique(label)
    columns = math.ceil(len(present) / LEGEND_ROWS)
    longest = [max(len(names[i]) for i in present[column * LEGEND_ROWS:][:LEGEND_ROWS]) for column in range(columns)]
    legend_width = sum(0.8 + 0.074 * length for length in longest)              # inches, at 9 points
    figure, axis = plt.subplots(figsize=(8.2 + legend_width, 8.6), layout='constrained')
    size = float(np.clip(12000 / len(rows), 14, 45))
    for i in present:
        x, y = places[label == i].T
        axis.scatter(x, y, s=size, color=colour_of(i), marker=MARKERS[i // 20 % len(MARKERS)], alpha=0.75,
                     linewidths=0.3, edgecolors='white', label=f'{i}  {names[i]}')
    for i in present:
        own = places[label == i]
        # at the clip nearest to the median: the median itself may lie among other classes
        x, y = own[np.linalg.norm(own - np.median(own, axis=0), axis=1).argmin()]
        axis.text(x, y, str(i), fontsize=11 if columns == 1 else 9, fontweight='bold', ha='center', va='center',
                  color=DARK, path_effects=[withStroke(linewidth=2.5, foreground='white')])
    axis.set(xticks=[], yticks=[], box_aspect=1)
    axis.spines[:].set_color(FAINT)
    clips = f'{len(rows)} test clips' if len(rows) == len(features.label) else \
        f'{len(rows)} of {len(features.label)} test clips'
    axis.set_title(', '.join(filter(None, (benchmark, f't-SNE of the features of {clips}'))), loc='left',
                   fontsize=13)
    figure.legend(*axis.get_legend_handles_labels(), loc='outside right upper', ncols=columns, frameon=False,
                  fontsize=9, markerscale=max(1, math.sqrt(30 / size)))
    save(figure, path, 110)
