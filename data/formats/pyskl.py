"""PYSKL annotation files: pickles of {'split': …, 'annotations': [{'frame_dir', 'label', 'keypoint', …}, …]}."""

import pickle
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy._core import multiarray, numeric

from data.formats.recording import Options, Recording, choose_layout
from feeder.layouts import Layout
from util.errors import UserError, one_line

# The only names that a pickle may refer to: those by which NumPy 1 and 2 store arrays, dtypes and numbers.
ALLOWED = {('numpy', 'ndarray'): np.ndarray, ('numpy', 'dtype'): np.dtype}
for _core in ('numpy.core', 'numpy._core'):
    ALLOWED |= {(f'{_core}.multiarray', '_reconstruct'): multiarray._reconstruct,
                (f'{_core}.multiarray', 'scalar'): multiarray.scalar,
                (f'{_core}.numeric', '_frombuffer'): numeric._frombuffer}


class ArrayUnpickler(pickle.Unpickler):
    """Reads plain values and NumPy arrays; refuses everything else before it is called."""

    def find_class(self, module: str, name: str):
        if (module, name) == ('_codecs', 'encode'):     # how protocols 0 to 2 store bytes
            return _encode_latin1
        if (module, name) not in ALLOWED:
            raise UserError(f'refused, it refers to {module}.{name}; only plain values and NumPy arrays are read')
        return ALLOWED[module, name]


def _encode_latin1(text: str, encoding: str) -> bytes:
    if encoding != 'latin1':
        raise UserError(f'refused, it encodes text as {encoding!r:.20}')
    return text.encode('latin1')


def read_pickle(path: Path):
    """Read a pickle without executing anything in it; raises UserError."""
    try:
        with open(path, 'rb') as file:
            return ArrayUnpickler(file).load()
    except UserError:
        raise
    except OSError as error:
        raise UserError(f'cannot be read ({error.strerror}); correct the path or its permissions') from error
    except Exception as error:      # a damaged pickle can fail in any way
        raise UserError(f'not a complete pickle ({type(error).__name__}: {one_line(error)[:80]}); get the file '
                        'again') from error


def read(path: Path, layout: Layout | None, options: Options) -> Iterator[Recording]:
    content = read_pickle(path)
    annotations = content.get('annotations') if isinstance(content, dict) else content
    if not isinstance(annotations, list) or not annotations:
        raise UserError("has no list of annotations, so it is not a PYSKL file; give another file")
    for number, annotation in enumerate(annotations):
        try:
            name, keypoint, label = _check_annotation(annotation)
            frames = keypoint.swapaxes(0, 1)                                                # (T, M, V, 3)
            own = choose_layout(frames, layout)
            yield Recording(name, options.clean(frames, own), own, label)
        except UserError as error:
            raise UserError(f'annotation {number} (from 0): {error}') from error


def _check_annotation(annotation) -> tuple[str, np.ndarray, int]:
    """Name, keypoints (M, T, V, 3) and label of an annotation; raises UserError for missing or wrong entries."""
    if not isinstance(annotation, dict):
        raise UserError('not a map')
    name, label, keypoint = (annotation.get(key) for key in ('frame_dir', 'label', 'keypoint'))
    if not isinstance(name, str) or not name.isprintable():
        raise UserError('frame_dir is not a name')
    if not isinstance(label, int | np.integer) or isinstance(label, bool) or label < 0:
        raise UserError('label is not an integer from 0')
    if not isinstance(keypoint, np.ndarray) or keypoint.ndim != 4 or keypoint.dtype.kind not in 'fiu' \
            or 0 in keypoint.shape:
        raise UserError('keypoint is not an array of numbers (bodies, frames, joints, 3)')
    if keypoint.shape[3] != 3:
        raise UserError(f'keypoint has {keypoint.shape[3]} numbers per joint, expected 3 (x, y, z); give annotations '
                        'of 3D skeletons')
    if annotation.get('total_frames', keypoint.shape[1]) != keypoint.shape[1]:
        raise UserError(f'keypoint has {keypoint.shape[1]} frames, total_frames is {annotation["total_frames"]}')
    return name, keypoint, int(label)
