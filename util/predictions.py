"""Class scores and features of clips: scores.npz, features.npz and files for TensorBoard's projector.

N clips, C classes, D feature width.
"""

import json
import zipfile
from pathlib import Path
from typing import NamedTuple

import numpy as np

from feeder.classes import find_class_names
from util.errors import UserError, one_line
from util.files import atomic_write, check_zip, has_type, write_text


class Scores(NamedTuple):
    """Class probabilities of the clips of one split."""

    name: np.ndarray        # (N,) text
    label: np.ndarray       # (N,) int
    scores: np.ndarray      # (N, C) float32, rows sum to 1
    benchmark: str
    stream: str
    path: Path
    classes: np.ndarray | None = None       # (C,) class names of a custom data set


class Features(NamedTuple):
    """Features of the clips of one split, averaged over bodies, segments and joints."""

    features: np.ndarray    # (N, D) float32
    name: np.ndarray        # (N,) text
    label: np.ndarray       # (N,) int


def _write(path: Path, members: dict) -> None:
    with atomic_write(path) as partial, open(partial, 'wb') as file:
        np.savez(file, **{name: np.asarray(value) for name, value in members.items()})


def write_scores(scores: Scores) -> None:
    """Write scores.npz to `scores.path`, atomically."""
    _write(scores.path, {name: value for name, value in scores._asdict().items()
                         if name != 'path' and value is not None})


def write_features(path: Path, splits: dict[str, Features], run: dict | None = None, **names: str) -> None:
    """Write features.npz: members features_test, name_test, label_test, … and `names` (benchmark, stream, …).

    `run` describes the run that computed them: {'seed', 'pretraining', 'config'}.
    """
    members = {f'{field}_{split}': value for split, features in splits.items()
               for field, value in features._asdict().items()}
    _write(path, members | names | ({} if run is None else {'run': json.dumps(run, allow_nan=False)}))


def label_names(benchmark: str | None, label: np.ndarray) -> list[str]:
    """Return the names of the classes that occur in labels (N,): those of the benchmark, or 'class 0', …"""
    names, classes = find_class_names(benchmark, None), int(label.max()) + 1
    return names if names and len(names) >= classes else [f'class {i}' for i in range(classes)]


def write_projector(folder: str | Path, features: Features, benchmark: str | None, most: int, seed: int,
                    class_names: list[str] | None = None) -> None:
    """Write features, classes and names of up to `most` clips, drawn with `seed`, for TensorBoard's projector."""
    folder = Path(folder)
    rows = np.sort(np.random.default_rng(seed).permutation(len(features.label))[:most])
    names = class_names or label_names(benchmark, features.label)
    lines = ['class\tclip', *(f'{names[features.label[row]]}\t{" ".join(str(features.name[row]).split())}'
                              for row in rows)]
    with atomic_write(folder / 'projector' / 'features.tsv') as partial:
        np.savetxt(partial, features.features[rows], '%.6g', '\t')
    write_text(folder / 'projector' / 'clips.tsv', '\n'.join(lines) + '\n')
    write_text(folder / 'projector_config.pbtxt',       # the name that TensorBoard looks for
               'embeddings {\n  tensor_name: "features of test clips"\n  tensor_path: "projector/features.tsv"\n'
               '  metadata_path: "projector/clips.tsv"\n}\n')


def read_scores(path: str | Path) -> Scores:
    """Read a scores.npz file; raises UserError if it is missing, damaged or inconsistent."""
    path = Path(path)
    members = _read(path, ('name', 'label', 'scores', 'benchmark', 'stream'), ('classes',))
    name, label, scores, names = members['name'], members['label'], members['scores'], members.get('classes')
    _check_clips(path, 'scores', scores, name, label)
    classes = scores.shape[1]
    if len(np.unique(name)) < len(name):
        raise _inconsistent(path, 'clip names are not unique')
    if classes < 2 or label.max() >= classes:
        raise _inconsistent(path, f'label {label.max()} in scores of {classes} classes')
    if (scores < 0).any() or not np.allclose(scores.sum(1), 1, atol=0.02):      # bf16 rounds to 1 / 256
        raise _inconsistent(path, 'the scores are not probabilities (rows that sum to 1)')
    if names is not None and (names.shape != (classes,) or names.dtype.kind != 'U'):
        raise _inconsistent(path, f'classes is {names.dtype} {names.shape}, expected {classes} names')
    return Scores(name, label.astype(np.int64), scores.astype(np.float32), str(members['benchmark']),
                  str(members['stream']), path, names)


def read_features(path: str | Path, split_names: tuple[str, ...] = ('train', 'test')
                  ) -> tuple[dict[str, Features], dict]:
    """Read splits of a features.npz file and its metadata: benchmark, stream, method, seed, pretraining, config.

    Raises UserError if the file is missing, damaged or inconsistent.
    """
    path, optional = Path(path), ('benchmark', 'stream', 'method', 'run')
    members = _read(path, tuple(f'{field}_{split}' for split in split_names for field in Features._fields), optional)
    splits = {}
    for split in split_names:
        features = Features(*(members[f'{field}_{split}'] for field in Features._fields))
        _check_clips(path, f'features_{split}', *features)
        splits[split] = features._replace(features=features.features.astype(np.float32),
                                          label=features.label.astype(np.int64))
    if len({features.features.shape[1] for features in splits.values()}) > 1:
        raise _inconsistent(path, 'the features of its splits differ in width')
    record = {name: str(members[name]) for name in optional if name in members}
    if 'run' in record:
        try:
            run = json.loads(record.pop('run'))
        except (ValueError, RecursionError) as error:
            raise _inconsistent(path, 'its member run is not valid JSON') from error
        types = {'seed': int | None, 'pretraining': dict | None, 'config': dict[str, int | float]}
        if not isinstance(run, dict) or not all(has_type(run.get(name), kind) for name, kind in types.items()):
            raise _inconsistent(path, 'its member run has entries of the wrong type')
        record |= {name: run[name] for name in types}
    return splits, record


def _inconsistent(path: Path, problem: str) -> UserError:
    return UserError(f'{path}: {problem}; regenerate it')


def _read(path: Path, names: tuple[str, ...], optional: tuple[str, ...] = ()) -> dict[str, np.ndarray]:
    """Read members of an npz file without executing anything in it."""
    try:
        with zipfile.ZipFile(path) as archive:
            check_zip(path, archive)
        with np.load(path, allow_pickle=False) as archive:
            if missing := set(names) - set(archive.files):
                raise UserError(f'{path}: has no {", ".join(sorted(missing))}; specify a file that --save_scores, '
                                '--save_features or tools/retrieval.py wrote')
            members = {name: archive[name] for name in (*names, *optional) if name in archive.files}
    except UserError:
        raise
    except Exception as error:      # a damaged file can raise any exception
        raise UserError(f'{path}: cannot be read as an npz file ({one_line(error)[:100]}); specify the scores.npz or '
                        'features.npz of a run') from error
    for name in ('benchmark', 'stream', 'method', 'run'):
        if name in members and (members[name].ndim or members[name].dtype.kind != 'U'
                                or not str(members[name]).isprintable()):
            raise _inconsistent(path, f'{name} is not a valid string')
    return members


def _check_clips(path: Path, what: str, values: np.ndarray, name: np.ndarray, label: np.ndarray) -> None:
    """Check values (N, …), names (N,) and labels (N,) against each other."""
    if values.ndim != 2 or values.dtype.kind != 'f' or 0 in values.shape or not np.isfinite(values).all():
        raise _inconsistent(path, f'{what} is {values.dtype} {values.shape}, expected finite numbers (clips, width)')
    if name.shape != (len(values),) or label.shape != (len(values),) or name.dtype.kind != 'U' \
            or label.dtype.kind not in 'iu' or (label < 0).any():
        raise _inconsistent(path, f'names {name.dtype} {name.shape} and labels {label.dtype} {label.shape} do not fit '
                            f'{what} {values.shape}')
