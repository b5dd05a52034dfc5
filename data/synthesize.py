"""Synthesize recordings (data/exercises.py) as raw text of NTU RGB+D or PKU-MMD, without any licence restrictions.

    python data/synthesize.py --out data/synthetic_raw
    python data/prepare_ntu.py --dataset synth --raw data/synthetic_raw --out data/synthetic

A clip is the same for a given seed, independent of the other clips, the format and the number of workers. The folder
gets its final name when it is complete; a run that was stopped leaves no folder, or one whose name begins with a dot.

T frames.
"""

import argparse
import os
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path

import numpy as np
from tqdm import tqdm

if not __package__:     # run as a file, from any working directory
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from data.datasets import NTU60_SUBJECTS
from data.exercises import ACTIONS, MAX_CLIPS, Track, clip_facts, film, make_clip, make_people, place_camera
from data.kinematics import JOINTS
from data.pipeline import count_processors, parse_all
from util.errors import Parser, UserError, run_main
from util.options import COUNT, WHOLE, Number

MIN_CLIPS = 3           # per class, so that no split has an empty side
CAMERA_LETTERS = 'LMR'  # of PKU-MMD; L is for testing
# Fields that no preparation reads are constant: image positions, orientation and tracking state.
JOINT_TEXT = '%.7g %.7g %.7g 277.4194 191.8218 1036.233 519.1677 -0.2059419 0.05349901 0.9692109 -0.1239193 2\n'
BODY_TEXT = f'%d 0 1 1 1 1 0 0.02764709 0.05745083 2\n{JOINTS}\n' + JOINT_TEXT * JOINTS


def ntu_text(tracks: Sequence[Track], frames: int) -> str:
    """Return the `.skeleton` file of a recording, with seven digits per number."""
    bodies, counts = [''] * frames, [0] * frames
    for track in tracks:
        for frame, joints in zip(track.frames.tolist(), track.joints.reshape(-1, 3 * JOINTS).tolist(), strict=True):
            bodies[frame] += BODY_TEXT % (track.body, *joints)
            counts[frame] += 1
    return f'{frames}\n' + ''.join(f'{count}\n{body}' for count, body in zip(counts, bodies, strict=True))


def make_video(number: int, classes: int, seed: int) -> tuple[np.ndarray, list[tuple[int, int, int]]]:
    """Return a PKU-MMD video: the clips with this number of all classes, in random order, with pauses in between.

    Returns rows (T, 150) float32, in which an absent second body is zero, and (class, start, end) of each action.
    """
    rng = np.random.default_rng([seed, 2, number])
    scenes = [(action, make_people(number, action, seed)[0]) for action in rng.permutation(classes) + 1]
    yaw, position = place_camera(clip_facts(number, 1).camera, rng)
    vectors, labels, end = [], [], 0
    previous = scenes[0][1][0].vectors[0]
    for action, people in scenes:
        pause = int(rng.integers(15, 46))
        vectors += [_interpolate(previous, people[0].vectors[0], pause), people[0].vectors]
        labels.append((int(action), end + pause, end + pause + len(people[0].vectors)))
        end, previous = labels[-1][2], people[0].vectors[-1]
    rows = np.zeros((end, 2, JOINTS, 3), np.float32)
    rows[:, 0] = film(scenes[0][1][0]._replace(vectors=np.concatenate(vectors)), yaw, position, rng)
    for (_, people), (_, first, stop) in zip(scenes, labels, strict=True):
        for person in people[1:]:
            rows[first:stop, 1] = film(person, yaw, position, rng)
    return rows.reshape(end, -1), labels                                                    # (T, 2, 25, 3) -> (T, 150)


def _interpolate(before: np.ndarray, after: np.ndarray, frames: int) -> np.ndarray:
    """Interpolate smoothly between rotations (25, 3): (frames, 25, 3)."""
    weight = (1 - np.cos(np.pi * (np.arange(frames) + 1) / (frames + 1)))[:, None, None] / 2
    return before + weight * (after - before)


def video_name(number: int) -> str:
    return f'{number + 1:04}-{CAMERA_LETTERS[clip_facts(number, 1).camera - 1]}'


def write_clip(folder: Path, seed: int, task: tuple[int, int]) -> int:
    """Write the NTU file of (number, action), and return its number of frames."""
    clip = make_clip(*task, seed)
    (folder / f'{clip.name}.skeleton').write_text(ntu_text(clip.tracks, clip.frames), encoding='utf-8')
    return clip.frames


def write_video(folder: Path, seed: int, task: tuple[int, int]) -> int:
    """Write the PKU video of (number, classes) and its labels, and return its number of frames."""
    rows, labels = make_video(*task, seed)
    row_text = ' '.join(['%.6f'] * rows.shape[1]) + '\n'
    for kind, text in (('skeleton', row_text * len(rows) % tuple(rows.ravel().tolist())),
                       ('label', ''.join(f'{action},{start},{end},2\n' for action, start, end in labels))):
        (folder / kind / f'{video_name(task[0])}.txt').write_text(text, encoding='utf-8')
    return len(rows)


def write_splits(folder: Path, videos: int) -> None:
    """Write the two split files of PKU-MMD; cross-view trains on M and R."""
    facts = [clip_facts(number, 1) for number in range(videos)]
    for kind, train in (('subject', [fact.performer in NTU60_SUBJECTS for fact in facts]),
                        ('view', [fact.camera > 1 for fact in facts])):
        names = [', '.join(video_name(number) for number in range(videos) if train[number] == side)
                 for side in (True, False)]
        (folder / f'cross-{kind}.txt').write_text(
            f'Training videos:\n{names[0]}\nValidation videos:\n{names[1]}\n', encoding='utf-8')


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Yield a hidden folder beside `path`, which is renamed to `path` at the end, or removed if the block raises.

    Raises:
        UserError: `path` exists and is not empty, or cannot be written.
    """
    path = path.resolve()
    if path == Path.cwd():
        raise UserError(f'{path}: is the working directory; set --out to a new folder')
    partial_path = path.with_name(f'.{path.name}.partial')      # a fixed name: the next run replaces it after a kill
    try:
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise UserError(f'{path}: not empty; set --out to a new folder, so that datasets are not mixed')
        shutil.rmtree(partial_path, ignore_errors=True)
        partial_path.mkdir(parents=True)
        yield partial_path
        os.replace(partial_path, path)
    except OSError as error:
        raise UserError(f'{path}: cannot be written ({error.strerror or error}); free up disk space or correct the '
                        'permissions') from error
    finally:
        shutil.rmtree(partial_path, ignore_errors=True)


def write_all(args: argparse.Namespace, folder: Path) -> int:
    """Write all files; returns their total number of frames."""
    if args.format == 'ntu':
        write, tasks = write_clip, [(number, action) for number in range(args.clips_per_class)
                                    for action in range(1, args.classes + 1)]
    else:
        write, tasks = write_video, [(number, args.classes) for number in range(args.clips_per_class)]
        for name in ('skeleton', 'label'):
            (folder / name).mkdir()
        write_splits(folder, args.clips_per_class)
    frames = 0
    with closing(parse_all(partial(write, folder, args.seed), tasks, args.workers, 8)) as results, \
            tqdm(results, args.format, len(tasks), unit=' files', disable=None) as bar:
        for _, written in bar:
            frames += written
    return frames


def main(argv: list[str] | None = None) -> int:
    parser = Parser(description='Synthesize recordings in the raw text of NTU RGB+D or PKU-MMD.')
    parser.add_argument('--out', type=Path, required=True, help='output folder, new or empty')
    parser.add_argument('--format', choices=('ntu', 'pku'), default='ntu',
                        help='ntu: one file per clip; pku: videos with one clip of each class')
    parser.add_argument('--seed', type=WHOLE, default=0, help='seed, 0 or more')
    parser.add_argument('--clips_per_class', type=Number(int, least=MIN_CLIPS, most=MAX_CLIPS), default=100,
                        help=f'{MIN_CLIPS} to {MAX_CLIPS}')
    parser.add_argument('--classes', type=Number(int, least=2, most=len(ACTIONS)), default=len(ACTIONS),
                        help=f'2 to {len(ACTIONS)}')
    parser.add_argument('--workers', type=COUNT, default=min(8, count_processors()), help='number of processes')
    args = parser.parse_args(argv)

    start = time.perf_counter()
    with new_folder(args.out) as folder:
        frames = write_all(args, folder)
    files = args.clips_per_class * (args.classes if args.format == 'ntu' else 1)
    print(f'{args.out}: {files:,} {"clips" if args.format == "ntu" else "videos"}, {args.classes} classes, '
          f'{frames:,} frames, {time.perf_counter() - start:.1f} s')
    return 0


if __name__ == '__main__':
    run_main(main)
