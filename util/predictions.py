"""Class scores and features of clips as runs save them, scores.npz and features.npz: writing and reading.

N clips, C classes, D width of a feature.
"""

import json
import tokenize
import zipfile
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np

from data.common import write_npz
from feeder.classes import find_class_names
from util.errors import UserError
from util.files import atomic_write, check_zip

ZIPS = (b'PK\x03\x04', b'PK\x05\x06')     # how a zip archive begins, an empty one the second way
MOST = 1e30     # numbers of a run are below


class Scores(NamedTuple):
    """A run's probabilities of one split's clips, with what names them."""

    name: np.ndarray        # (N,) text
    label: np.ndarray       # (N,) int
    scores: np.ndarray      # (N, C) float32, probabilities
    benchmark: str
    stream: str
    path: Path
    classes: np.ndarray | None = None       # (C,) text: names of a data set of one's own


class Features(NamedTuple):
    """One split's features, the mean over bodies, segments and joints, with what names them."""

    features: np.ndarray    # (N, D) float32
    name: np.ndarray        # (N,) text
    label: np.ndarray       # (N,) int


def write_scores(scores: Scores) -> None:
    """Writes scores.npz to `scores.path`, atomically; UserError when it cannot be written."""
    write_npz(scores.path, **{key: np.asarray(value) for key, value in scores._asdict().items()
                              if key != 'path' and value is not None})


def write_features(path: Path, splits: dict[str, Features], run: dict | None = None, **facts: str) -> None:
    """Splits 'test' and perhaps 'train' as members features_test, name_test, label_test, …, and `facts`, of an npz.

    run: of the run that made them {'seed': …, 'pretraining': as in its result.json, 'config': {setting: number}}; the
    member `run`, as JSON.
    """
    if run is not None:
        facts['run'] = json.dumps(run, allow_nan=False)
    write_npz(path, **{f'{field}_{split}': np.asarray(value) for split, held in splits.items()
                       for field, value in held._asdict().items()},
              **{name: np.array(value) for name, value in facts.items()})


def label_names(benchmark: str | None, label: np.ndarray) -> list[str]:
    """A name for each of the labels (N,): the benchmark's where it has so many, else 'class 0' and so on."""
    names, classes = find_class_names(benchmark, None), int(label.max()) + 1
    return names if names and len(names) >= classes else [f'class {i}' for i in range(classes)]


def write_projector(folder: str | Path, held: Features, benchmark: str | None, most: int, seed: int,
                    class_names: list[str] | None = None) -> None:
    """Up to `most` clips, drawn with `seed`, for the projector of a TensorBoard that looks into `folder`.

    Features as they are, with class and name of each clip to colour and find it by.
    """
    folder = Path(folder)
    rows = np.sort(np.random.default_rng(seed).permutation(len(held.label))[:most])
    names = class_names or label_names(benchmark, held.label)
    told = [('class', 'clip'), *((names[held.label[row]], ' '.join(str(held.name[row]).split())) for row in rows)]
    with atomic_write(folder / 'projector' / 'features.tsv') as partial:
        np.savetxt(partial, held.features[rows], '%.6g', '\t')
    with atomic_write(folder / 'projector' / 'clips.tsv') as partial:
        partial.write_text(''.join('\t'.join(words) + '\n' for words in told))
    with atomic_write(folder / 'projector_config.pbtxt') as partial:       # the name TensorBoard looks for in a run
        partial.write_text('embeddings {\n  tensor_name: "features of test clips"\n'
                           '  tensor_path: "projector/features.tsv"\n  metadata_path: "projector/clips.tsv"\n}\n')


def read_scores(path: str | Path) -> Scores:
    """A run's scores.npz. Raises UserError when it is missing, damaged, or not what it should be."""
    path = Path(path)
    held = _read(path, ('name', 'label', 'scores', 'benchmark', 'stream'), ('classes',))
    name, label, scores = held['name'], held['label'], held['scores']
    _check_clips(path, 'scores', scores, name, label)
    if len(np.unique(name)) < len(name):
        names, counts = np.unique(name, return_counts=True)
        raise UserError(f'{path}: {counts.max()} clips are called {names[counts.argmax()]}; save it again')
    classes = scores.shape[1]
    if classes < 2 or label.max() >= classes:
        raise UserError(f'{path}: label {label.max()} in scores of {classes} classes; save it again')
    if (scores < 0).any() or not np.allclose(scores.sum(1), 1, atol=0.02):      # bf16 rounds to 1 / 256
        raise UserError(f'{path}: the scores are no probabilities (rows that sum to 1); save it again')
    named = held.get('classes')
    if named is not None and (named.shape != (classes,) or named.dtype.kind != 'U'):
        raise UserError(f'{path}: classes is {named.dtype} {named.shape}, not {classes} names; save it again')
    return Scores(name, label.astype(np.int64), scores.astype(np.float32), str(held['benchmark']), str(held['stream']),
                  path, named)


def read_features(path: str | Path, wanted: tuple[str, ...] = ('train', 'test')) -> tuple[dict[str, Features], dict]:
    """The splits `wanted` of a features.npz, and what it tells of itself, as far as it does.

    That is benchmark, stream, method, and of the run that made it seed, pretraining, config (see `write_features`).
    Raises UserError when the file is missing, damaged, or not what it should be.
    """
    path, facts = Path(path), ('benchmark', 'stream', 'method', 'run')
    held = _read(path, tuple(f'{field}_{split}' for split in wanted for field in Features._fields), facts)
    splits = {split: Features(*(held[f'{field}_{split}'] for field in Features._fields)) for split in wanted}
    for split, one in splits.items():
        _check_clips(path, f'features_{split}', *one)
        splits[split] = one._replace(features=one.features.astype(np.float32), label=one.label.astype(np.int64))
    if len({one.features.shape[1] for one in splits.values()}) > 1:
        raise UserError(f'{path}: features of the two splits differ in width; save it again')
    told = {fact: str(held[fact]) for fact in facts if fact in held}
    return splits, told | (_run_of(path, told.pop('run')) if 'run' in told else {})


def _run_of(path: Path, text: str) -> dict:
    """The member `run`, which is data and nothing but: maps of words and numbers that are finite."""
    def is_plain(value, kind=str | int | float | None) -> bool:
        return isinstance(value, kind) and (
            value.isprintable() if isinstance(value, str) else value is None or abs(value) < MOST)

    try:
        run = json.loads(text)
        seed, pretraining, config = run['seed'], run['pretraining'], run['config']
        told = pretraining or {}
        sound = (is_plain(seed, int | None) and (seed or 0) >= 0 and isinstance(pretraining, dict | None)
                 and all(map(is_plain, told.values())) and is_plain(told.get('benchmark'), str | None)
                 and is_plain(told.get('seed'), int | None) and all(is_plain(one, int | float)
                                                                     for one in config.values()))
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        sound = False
    if not sound:
        raise UserError(f'{path}: run is not what a run says of itself (seed, pretraining, config); save it again')
    return {'seed': seed, 'pretraining': pretraining, 'config': config}


def _read(path: Path, members: tuple[str, ...], optional: tuple[str, ...] = ()) -> dict[str, np.ndarray]:
    """Members of an npz; nothing in it is run. UserError when the file is missing or damaged, or lacks one."""
    try:
        with open(path, 'rb') as file:
            if file.read(4) not in ZIPS:
                raise UserError(f'{path}: is no npz file; give a scores.npz or features.npz that a run saved')
        with np.load(path, allow_pickle=False) as archive:
            check_zip(path, archive.zip)
            if lacking := set(members) - set(archive.files):
                raise UserError(f'{path}: no {", ".join(sorted(lacking))} in it (it holds {", ".join(archive.files)}); '
                                'give a file that --save_scores, --save_features or tools/retrieval.py wrote')
            held = {name: archive[name] for name in (*members, *optional) if name in archive.files}
        if odd := [name for name, array in held.items() if not isinstance(array, np.ndarray)]:
            raise ValueError(f'{odd[0]} is no array')
    except UserError:
        raise
    except (OSError, EOFError, ValueError, TypeError, ArithmeticError, RuntimeError, SyntaxError, tokenize.TokenError,
            RecursionError, MemoryError, zipfile.BadZipFile, zlib.error) as error:
        # all that a file in pieces can end in
        why = error.strerror if isinstance(error, OSError) and error.strerror else ' '.join(str(error).split())
        if 'allow_pickle' in why:       # NumPy's advice, which nobody should follow
            why = 'it holds Python objects, which are never loaded'
        raise UserError(f'{path}: cannot be read as an npz file ({why}); save it again') from error
    for name in ('benchmark', 'stream', 'method', 'run'):
        if name in held and (held[name].ndim or held[name].dtype.kind != 'U' or not str(held[name]).isprintable()):
            raise UserError(f'{path}: {name} is {held[name].dtype} {held[name].shape}, no name; save it again')
    return held


def _check_clips(path: Path, what: str, values: np.ndarray, name: np.ndarray, label: np.ndarray) -> None:
    """Names and labels (N,) of N clips, each in its own row of `values` (N, …), all finite."""
    fault = None
    if values.ndim != 2 or values.dtype.kind != 'f' or 0 in values.shape:
        fault = f'{what} is {values.dtype} {values.shape}, not a row of numbers for each clip'
    elif name.shape != (len(values),) or label.shape != (len(values),):
        fault = f'{len(values)} rows of {what}, names {name.shape}, labels {label.shape}'
    elif name.dtype.kind != 'U' or label.dtype.kind not in 'iu':
        fault = f'{what}: names are {name.dtype}, labels {label.dtype}; expected are text and whole numbers'
    elif not np.isfinite(values).all():
        fault = f'{what} holds NaN or infinity'
    elif (label < 0).any():
        fault = f'{what}: label {label.min()} is below 0'
    if fault:
        raise UserError(f'{path}: {fault}; save it again')
