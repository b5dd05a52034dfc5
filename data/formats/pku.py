"""PKU-MMD text files: whole videos of two bodies, not cut into actions."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from data.formats.recording import Options, Recording, centre_bodies, choose_layout
from data.prepare_pku import parse_skeleton
from data.sources import Source
from util.errors import UserError


def read(path: Path, options: Options) -> Iterator[Recording]:
    frames = parse_skeleton(Source(path).read()).astype(np.float32).reshape(-1, 2, 25, 3)
    if not frames.any():
        raise UserError('has no valid frame: all coordinates are zero')
    layout = choose_layout(frames, options.layout)
    yield Recording(path, centre_bodies(frames, layout) if options.centre else frames, layout)
