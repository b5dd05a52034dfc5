"""JSON files: Northwestern-UCLA's `all_sqe` release, one body, centred; or 2D keypoints (keypoints.py)."""

import json
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from data.formats import keypoints
from data.formats.recording import Options, Recording, choose_layout
from data.prepare_nwucla import parse_clip
from data.sources import Source


def read(path: Path, options: Options) -> Iterator[Recording]:
    text, content = Source(path).read(), None
    with suppress(ValueError, RecursionError):      # damaged JSON is reported by parse_clip
        content = json.loads(text)
    if isinstance(content, list) or (isinstance(content, dict) and 'people' in content):
        yield from keypoints.read(path, content, options)
        return
    frames, label = parse_clip(text, path.stem)
    frames = frames[:, None]                                                                # (T, 1, V, 3)
    yield Recording(path, frames, choose_layout(frames, options.layout), label - 1)
