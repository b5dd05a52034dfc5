"""What the actions of each benchmark are called, in the order of their labels."""

import json
import math
from functools import cache
from pathlib import Path

import yaml

from util.errors import UserError

# Beginning of a benchmark's name: its list in classes.yaml, and how many names of it there are.
SETS = {'ntu120': ('ntu', 120), 'ntu60': ('ntu', 60), 'pku': ('pku', 51), 'nwucla': ('nwucla', 10),
        'synth': ('synth', 12)}
TELLING = {120: 'ntu120', 60: 'ntu60', 51: 'pku'}     # any data set may have 10 or 12 classes


@cache
def _lists() -> dict[str, list[str]]:
    return yaml.safe_load(Path(__file__).with_suffix('.yaml').read_text(encoding='utf-8'))


def find_class_names(benchmark: str | None, num_classes: int | None) -> list[str] | None:
    """The class names of a benchmark, label 0 first; None where they are not known.

    The benchmark is told by the beginning of its name, in capitals or not ('ntu60_xsub', 'PKUv1_XSub'); only when that
    says nothing, by the number of classes, and only by one that no other set is likely to have. A known benchmark with
    another number of classes than it should have is no longer known: its labels may have been counted anew.
    `num_classes` None: as many as the benchmark has.
    """
    name, count = SETS.get(set_of(benchmark, num_classes), (None, None))
    if name is None or num_classes not in (None, count):
        return None
    return _lists()[name][:count]


def set_of(benchmark: str | None, num_classes: int | None) -> str | None:
    """Which of SETS a benchmark is of, told as `names_of` says; None where that is not known."""
    start = next((start for start in SETS if (benchmark or '').lower().startswith(start)), None)
    return start or TELLING.get(num_classes)


def metadata_path(data_path: str | Path) -> Path:
    """Where data/prepare_custom.py leaves what is to be known of an npz file of one's own."""
    return Path(data_path).with_name(f'{Path(data_path).stem}_about.json')


def read_metadata(data_path: str | Path) -> dict:
    """What lies beside an npz file: 'classes' (names, label 0 first), 'centre' and 'scale' of its preparation.

    Empty where there is no such file. Raises UserError when it cannot be read or is none.
    """
    path = metadata_path(data_path)
    try:
        content = json.loads(path.read_text(encoding='utf-8'))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f'{path}: cannot be read ({error}); correct or remove it') from error
    names = content.get('classes') if isinstance(content, dict) else None
    if not isinstance(names, list) or not all(isinstance(name, str) and name.strip() for name in names) \
            or not is_preparation(content):
        raise UserError(f'{path}: does not tell classes, centre and scale; prepare the data again, or remove it')
    return content


def is_preparation(value) -> bool:
    """Whether it is a map that tells how recordings became clips: 'centre' and 'scale', see data/recordings.py."""
    return isinstance(value, dict) and isinstance(value.get('centre'), bool) \
        and type(value.get('scale')) in (int, float) and 0 < value['scale'] < math.inf


def read_class_names(data_path: str | Path, num_classes: int) -> list[str] | None:
    """The class names that lie beside an npz file; None where there are none, or not so many. Raises as `about`."""
    names = read_metadata(data_path).get('classes', ())
    return names if len(names) == num_classes else None
