"""Names of the action classes, in the order of their labels."""

import math
from functools import cache
from pathlib import Path

import yaml

from util.errors import UserError
from util.files import read_json

# For each dataset, named by the prefix of its benchmarks: its list in classes.yaml and its number of classes.
DATASETS = {'ntu120': ('ntu', 120), 'ntu60': ('ntu', 60), 'pku': ('pku', 51), 'nwucla': ('nwucla', 10),
            'synth': ('synth', 12)}
BY_NUMBER = {120: 'ntu120', 60: 'ntu60', 51: 'pku'}     # 10 and 12 classes are too common to identify a dataset


@cache
def _read_lists() -> dict[str, list[str]]:
    return yaml.safe_load(Path(__file__).with_suffix('.yaml').read_text(encoding='utf-8'))


def find_class_names(benchmark: str | None, num_classes: int | None) -> list[str] | None:
    """Return the class names of a benchmark, label 0 first, or None if they are not known.

    The dataset is identified by the beginning of the benchmark's name, in lower or upper case ('ntu60_xsub',
    'PKUv1_XSub'), or without a benchmark by the number of classes. The result is also None if `num_classes` differs
    from the dataset's, because labels may have been renumbered; `num_classes` None skips this check.
    """
    prefix = next((prefix for prefix in DATASETS if (benchmark or '').lower().startswith(prefix)), None)
    name, count = DATASETS.get(prefix if benchmark else BY_NUMBER.get(num_classes), (None, None))
    if name is None or num_classes not in (None, count):
        return None
    return _read_lists()[name][:count]


def metadata_path(data_path: str | Path) -> Path:
    """Return the path of the metadata file that data/prepare_custom.py writes beside a dataset file."""
    return Path(data_path).with_name(f'{Path(data_path).stem}_about.json')


def read_metadata(data_path: str | Path) -> dict:
    """Read the metadata beside a dataset file; returns {} if there is no such file.

    'classes' are the names, label 0 first; 'centre' (bool) and 'scale' (metres per unit) describe how recordings were
    prepared. Raises UserError if the file cannot be read or lacks these entries.
    """
    path = metadata_path(data_path)
    if not path.exists():
        return {}
    content = read_json(path, 'correct or remove it')
    names, centre, scale = (content.get(name) for name in ('classes', 'centre', 'scale')) \
        if isinstance(content, dict) else (None,) * 3
    if not isinstance(names, list) or not all(isinstance(name, str) and name.strip() for name in names) \
            or not isinstance(centre, bool) or type(scale) not in (int, float) or not 0 < scale < math.inf:
        raise UserError(f'{path}: classes, centre or scale is missing or invalid; prepare the data again, or remove it')
    return content


def read_class_names(data_path: str | Path, num_classes: int) -> list[str] | None:
    """Return the class names beside a dataset file, or None if their number differs; raises as `read_metadata`."""
    names = read_metadata(data_path).get('classes', ())
    return names if len(names) == num_classes else None
