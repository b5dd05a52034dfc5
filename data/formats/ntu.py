"""NTU RGB+D text files: actors are selected as in data/prepare_ntu.py."""

from collections.abc import Iterator
from pathlib import Path

from data.formats.recording import Options, Recording, choose_layout
from data.ntu_actors import to_rows
from data.ntu_text import facts_of, parse_skeleton
from data.pipeline import Source
from feeder.layouts import Layout
from util.errors import UserError


def read(path: Path, layout: Layout | None, _: Options) -> Iterator[Recording]:
    rows = to_rows(parse_skeleton(Source(path).read()))                                     # (T, M·25·3)
    frames = rows.reshape(len(rows), -1, 25, 3)
    try:
        label = facts_of(path.stem).action - 1
    except UserError:       # a name without the action
        label = None
    yield Recording(path.stem, frames, choose_layout(frames, layout), label)
