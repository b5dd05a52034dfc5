"""Northwestern-UCLA JSON files of the `all_sqe` release: one body, centred."""

from collections.abc import Iterator
from pathlib import Path

from data.formats.recording import Options, Recording, choose_layout
from data.prepare_nwucla import parse_clip
from data.sources import Source


def read(path: Path, options: Options) -> Iterator[Recording]:
    frames, label = parse_clip(Source(path).read(), path.stem)
    frames = frames[:, None]                                                                # (T, 1, V, 3)
    yield Recording(path, frames, choose_layout(frames, options.layout), label - 1)
