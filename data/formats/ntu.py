"""NTU RGB+D text files: actors are selected and centred as in data/prepare_ntu.py."""

from collections.abc import Iterator
from pathlib import Path

from data.formats.recording import Options, Recording, choose_layout
from data.ntu_actors import to_rows
from data.ntu_text import parse_name, parse_skeleton
from data.sources import Source
from util.errors import UserError


def read(path: Path, options: Options) -> Iterator[Recording]:
    rows = to_rows(parse_skeleton(Source(path).read()))                                     # (T, M·25·3)
    frames = rows.reshape(len(rows), -1, 25, 3)
    try:
        label = parse_name(path.stem).action - 1
    except UserError:       # a name without the action
        label = None
    yield Recording(path, frames, choose_layout(frames, options.layout), label)
