"""Project a dataset file of 3D joints to 2D keypoints with errors like those of a pose estimator, for experiments.

    python data/project_2d.py data/nwucla/NWUCLA_XView.npz --out data/nwucla/NWUCLA_XView_2D.npz

A pinhole camera, 4 m in front of the first body's position in the first frame, looks along z. Keypoints have normally
distributed errors; some are missing, and the score decreases with the error. Clips keep their order, names and labels.
"""

import argparse
import sys
from pathlib import Path

import numpy as np

if not __package__:     # run as a file, from any working directory
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from data.dataset_file import write_npz
from data.formats import read_recordings
from data.formats.recording import Recording, clean_keypoints
from feeder.layouts import read_layout
from feeder.npz import open_member
from util.errors import Parser, UserError, run_main
from util.files import check_outputs
from util.options import FRACTION, NOT_NEGATIVE, WHOLE

DISTANCE, NEAREST, FOCAL = 4., 0.5, 1000.      # metres, metres, pixels
CENTRE = 960, 540       # of the image, in pixels


def project(frames: np.ndarray, noise: float, missing: float, rng: np.random.Generator) -> np.ndarray:
    """Project joints (T, M, V, 3) in metres, y upwards, to x, y in pixels, y downwards, and scores (T, M, V, 3)."""
    depth = np.maximum(frames[..., 2:] + DISTANCE, NEAREST)
    error = rng.normal(0, noise, (*frames.shape[:3], 2))
    points = FOCAL * frames[..., :2] * (1, -1) / depth + CENTRE + error
    score = np.exp(-np.linalg.norm(error, axis=-1, keepdims=True) / max(8 * noise, 1e-9))
    keypoints = np.concatenate([points, score], axis=-1)
    keypoints[rng.random(frames.shape[:3]) < missing] = 0
    keypoints[~frames.any(axis=(2, 3))] = 0         # absent bodies
    return keypoints


def project_split(args: argparse.Namespace, split: str, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Return the members of a split; raises UserError for a damaged clip."""
    clips, labels = [], open_member(args.file, f'y_{split}')
    for recording in read_recordings(args.file, args.layout, split=split):
        if not isinstance(recording, Recording):
            raise recording
        if recording.planar:
            raise UserError(f'{args.file}: has 2D keypoints already; use a file of 3D joints')
        keypoints = clean_keypoints(project(recording.frames, args.noise, args.missing, rng), recording.layout)
        clips.append(keypoints.reshape(len(keypoints), -1))
    x = np.zeros((len(clips), open_member(args.file, f'x_{split}').shape[1], clips[0].shape[1]), np.float32)
    for row, clip in zip(x, clips, strict=True):
        row[:len(clip)] = clip
    return {f'x_{split}': x, f'y_{split}': np.asarray(labels), f'name_{split}': np.asarray(
        open_member(args.file, f'name_{split}'))}


def main(argv: list[str] | None = None) -> int:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('file', type=Path, metavar='FILE.npz', help='dataset file of 3D joints')
    parser.add_argument('--out', type=Path, required=True, metavar='FILE.npz', help='dataset file to write')
    parser.add_argument('--layout', type=read_layout, metavar='NAME|YAML', help='joint layout (default: by width)')
    parser.add_argument('--noise', type=NOT_NEGATIVE, default=4., help='standard deviation of x and y, in pixels')
    parser.add_argument('--missing', type=FRACTION, default=.05, help='fraction of joints that are missing')
    parser.add_argument('--seed', type=WHOLE, default=0, help='seed of the errors')
    args = parser.parse_args(argv)
    check_outputs([('--out', args.out)], [args.file])
    rng = np.random.default_rng(args.seed)
    members = {name: array for split in ('train', 'test') for name, array in project_split(args, split, rng).items()}
    write_npz(args.out, **members, keypoints=np.array('2d'))
    print(f'{args.out}: {len(members["x_train"])} train, {len(members["x_test"])} test, 2D keypoints')
    return 0


if __name__ == '__main__':
    run_main(main)
