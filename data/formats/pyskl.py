"""PYSKL annotation files: pickles of {'annotations': [{'frame_dir', 'label', 'keypoint', …}, …], …}, or of this list.
"""

import pickle
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from data.formats.recording import Options, Recording, make_recording
from util.errors import UserError, one_line, printable

# Array types that are accepted. NumPy would also create arrays of objects, whose bytes are pointers.
NUMBERS = re.compile(r'[<>=|]?(b1|[iu][1248]|f[248])')


class _Type:
    """Replacement for numpy.dtype."""

    def __init__(self, code: str, *_):
        self.code = code

    def __setstate__(self, state: tuple):
        self.code = state[1] + self.code.lstrip('<>=|')         # the byte order

    def check(self) -> np.dtype:
        if not NUMBERS.fullmatch(self.code):
            raise UserError(f'refused: it contains an array of type {self.code!r:.40}; only arrays of numbers are read')
        return np.dtype(self.code)


class _Array(np.ndarray):
    """Replacement for numpy.ndarray."""

    def __setstate__(self, state: tuple):
        version, shape, dtype, is_fortran, content = state
        super().__setstate__((version, shape, dtype.check(), is_fortran, content))


def _from_buffer(content: bytes, dtype: _Type, shape: tuple[int, ...], order: str) -> np.ndarray:
    return np.ndarray(shape, dtype.check(), bytes(content), order=order)


# Names with which NumPy 1 and 2 pickle arrays and numbers, and protocols 0 to 2 bytes, and their replacements.
ALLOWED = {'numpy.ndarray': None, 'numpy.dtype': _Type, '_codecs.encode': lambda text, _: text.encode('latin1')}
for _core in ('numpy.core', 'numpy._core'):
    ALLOWED |= {f'{_core}.multiarray._reconstruct': lambda *_: _Array(0), f'{_core}.numeric._frombuffer': _from_buffer,
                f'{_core}.multiarray.scalar': lambda dtype, content: _from_buffer(content, dtype, (), 'C').item()}


class ArrayUnpickler(pickle.Unpickler):
    """Reads plain values and arrays of numbers; refuses any other name, so that nothing in the file is executed."""

    def find_class(self, module: str, name: str):
        if f'{module}.{name}' not in ALLOWED:
            raise UserError(f'refused: it refers to {module}.{name}; only plain values and NumPy arrays are read')
        return ALLOWED[f'{module}.{name}']


def read_pickle(path: Path):
    """Read a pickle of plain values and arrays without executing anything in it; raises UserError."""
    try:
        with open(path, 'rb') as file:
            return ArrayUnpickler(file, encoding='latin1').load()
    except UserError:
        raise
    except OSError as error:
        raise UserError(f'cannot be read ({error.strerror}); correct the path or its permissions') from error
    except Exception as error:      # a damaged pickle can raise any exception
        raise UserError(f'not a complete pickle ({type(error).__name__}: {one_line(error)[:80]}); download the file '
                        'again') from error


def read(path: Path, options: Options) -> Iterator[Recording | UserError]:
    content = read_pickle(path)
    annotations = content.get('annotations') if isinstance(content, dict) else content
    if not isinstance(annotations, list) or not annotations:
        raise UserError('has no list of annotations, so it is not a PYSKL file; use another file')
    for number, annotation in enumerate(annotations):
        try:
            name, keypoint, label = check_annotation(annotation)
            yield make_recording(path, keypoint.swapaxes(0, 1), options._replace(planar=is_planar(annotation)),
                                 label=label, member=name)
        except UserError as error:
            yield UserError(f'annotation {number} (numbered from 0; {clip_name(annotation):.80}): {error}')


def clip_name(annotation) -> str:
    """Return the name of an annotated clip as text of one line, also if it is invalid."""
    name = annotation.get('frame_dir') if isinstance(annotation, dict) else None
    return printable(name)


def check_annotation(annotation) -> tuple[str, np.ndarray, int]:
    """Return name, joints (M, T, V, 3) and label of an annotation; raises UserError for invalid entries.

    2D keypoints (x, y) are returned with their scores as third number, or 1 without scores.
    """
    if not isinstance(annotation, dict):
        raise UserError('the annotation must be a dict')
    name, label = annotation.get('frame_dir'), annotation.get('label')
    keypoint = annotation.get('keypoint')
    if not isinstance(name, str) or not name.isprintable():
        raise UserError('frame_dir must be a printable string')
    if not isinstance(label, int) or isinstance(label, bool) or label < 0:
        raise UserError('label must be a non-negative integer')
    if not isinstance(keypoint, np.ndarray) or keypoint.ndim != 4 or 0 in keypoint.shape:
        raise UserError('keypoint must be an array (bodies, frames, joints, 2 or 3)')
    if keypoint.shape[3] == 2:
        score = annotation.get('keypoint_score', np.ones(keypoint.shape[:3], np.float32))
        if not isinstance(score, np.ndarray) or score.shape != keypoint.shape[:3]:
            raise UserError(f'keypoint_score must be an array {keypoint.shape[:3]}, as keypoint is {keypoint.shape}')
        keypoint = np.concatenate([keypoint, score[..., None]], axis=3)
    if keypoint.shape[3] != 3:
        raise UserError(f'keypoint has {keypoint.shape[3]} numbers per joint, expected x, y, z, or x, y')
    return name, keypoint, label


def is_planar(annotation: dict) -> bool:
    """Return True if a valid annotation has 2D keypoints."""
    return annotation['keypoint'].shape[3] == 2
