"""Northwestern-UCLA Multiview Action 3D (the `all_sqe` JSON release) to one interchange file a protocol.

    python data/prepare_nwucla.py --raw nw_ucla.tar.xz --out data/nwucla

`--raw` is a folder or a tar (read in place, nothing is unpacked): the clips of the `all_sqe/` in it at any depth, or,
where it has none, those that lie directly in it. Two protocols:

- `NWUCLA_XView.npz`: views 1 and 2 train, view 3 test; the benchmark's own protocol.
- `NWUCLA_XSub.npz`: odd subjects train, even subjects test; our own split, with no published numbers to compare with.
- `NWUCLA_Validation.npz`: for choosing settings (`--protocol validation`; not written otherwise). Of views 1 and 2,
  subjects 3, 6 and 9 test, the others train; view 3, the test split of the benchmark, is not in it.
- `NWUCLA_ValidationView.npz`: the same across views (`--protocol validation_view`): subjects 3, 6 and 9 test as view 2
  saw them, the others train as view 1 did.

In the release as it circulates the view 3 clips of actions a02 and a03 are copies of their view 2 clips, so that 95
of the 464 XView test clips are seen in training. They stay, or results could not be compared; the summary counts them,
and `NWUCLA_XView_copies.txt` names them (`tools/report.py --scores … --without` leaves them out).
"""

import json
import lzma
import os
import re
import sys
import tarfile
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path, PurePath

import numpy as np
from tqdm import tqdm

if not __package__:  # run by path: the repository's root is not on the search path yet
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from data.common import one_hot, pad, split_members, write_npz
from data.pipeline import LARGEST
from data.pipeline import Source as FileSource
from util.errors import Parser, UserError, run_main
from util.files import atomic_write, check_writable

CLIPS, CLASSES, JOINTS = 1484, 10, 20
CENTRE = 1  # joint 2, the spine
NAME = re.compile(r'a[0-9]{2}_s([0-9]{2})_e[0-9]{2}_v(0[123])')
PROTOCOLS = {  # on the command line: name of the file, whether a subject and view train; None: they are left out
    'xview': ('NWUCLA_XView', lambda subject, view: view in (1, 2)),
    'xsub': ('NWUCLA_XSub', lambda subject, view: subject % 2 == 1),
    'validation': ('NWUCLA_Validation', lambda subject, view: subject % 3 != 0 if view < 3 else None),
    'validation_view': ('NWUCLA_ValidationView', lambda subject, view: {(True, 1): True, (False, 2): False}.get(
        (subject % 3 != 0, view))),
}
AGAIN = 'get this file from the release again'

Source = tuple[PurePath, Callable[[], bytes]]  # a clip's file and what reads it


def sample_facts(name: str) -> tuple[int, int]:
    """Subject and view (both 1-based) of a sample called aAA_sSS_eEE_vVV; raises UserError for any other name."""
    match = NAME.fullmatch(name)
    if match is None:
        raise UserError(f'{name + ".json"!r}: no sample name (aAA_sSS_eEE_vVV, view 01 to 03); rename the file or '
                        f'take it out of the clips')
    return int(match[1]), int(match[2])


def parse_clip(text: str | bytes, name: str) -> tuple[np.ndarray, int]:
    """One clip as it goes into the interchange file.

    All-zero frames are dropped; joint 2 of the first frame that stays is the origin of all joints of all frames.

    Args:
        text: the JSON.
        name: the sample's name, aAA_sSS_eEE_vVV.

    Returns:
        frames (T, 20, 3) float32 in metres, T >= 1, and the release's label, 1..10.

    Raises:
        UserError: the JSON is damaged, belongs to another sample, or does not hold such a clip.
    """
    try:
        clip = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f'{name}.json: damaged JSON ({error}); {AGAIN}') from error
    if not isinstance(clip, dict) or not {'file_name', 'skeletons', 'label'} <= clip.keys():
        raise UserError(f'{name}.json: no NW-UCLA clip (file_name, skeletons or label is missing); {AGAIN}')
    own, label = clip['file_name'], clip['label']
    if own != name:
        raise UserError(f'{name}.json: its file_name says {own!r:.40}; give it that name, or {AGAIN}')
    if type(label) is not int or not 1 <= label <= CLASSES:
        raise UserError(f'{name}.json: the label {label!r:.40} is not one of 1..{CLASSES}; {AGAIN}')
    return _clean(clip['skeletons'], name), label


def _clean(skeletons: object, name: str) -> np.ndarray:
    """Nested lists (T, 20, 3), checked, as frames (T, 20, 3) float32: centred, without the all-zero ones."""
    try:
        frames = np.array(skeletons)
    except ValueError as error:
        raise UserError(f'{name}.json: frames or joints of different lengths; {AGAIN}') from error
    except OverflowError as error:
        raise UserError(f'{name}.json: a coordinate is beyond every float; {AGAIN}') from error
    if frames.shape == (0,):
        raise UserError(f'{name}.json: no frame in it; {AGAIN}, or leave it out')
    if frames.shape[1:] != (JOINTS, 3):
        raise UserError(f'{name}.json: shape {frames.shape}, not frames x {JOINTS} joints x 3; {AGAIN}')
    if frames.dtype.kind not in 'if':
        raise UserError(f'{name}.json: a coordinate is not a number; {AGAIN}')
    if not (np.abs(frames) < 1e38).all():
        raise UserError(f'{name}.json: a coordinate is NaN or beyond float32; {AGAIN}')
    frames = frames[(frames != 0).any(axis=(1, 2))]
    if not len(frames):
        raise UserError(f'{name}.json: all its frames are zero; {AGAIN}, or leave it out')
    return (frames - frames[0, CENTRE]).astype(np.float32)


def is_clip(path: PurePath) -> bool:
    """JSON files, but not the hidden ones that some systems put beside each file."""
    return path.suffix == '.json' and not path.name.startswith('.')


def read_file(path: Path) -> bytes:
    try:
        return FileSource(path).read()
    except UserError as error:
        raise UserError(f'{path}: {error}; {AGAIN}') from error


@contextmanager
def open_folder(raw: Path) -> Iterator[list[Source]]:
    """The clips below `raw`, sorted."""
    try:
        folders = [path for path in raw.rglob('all_sqe') if path.is_dir()] or [raw]
        paths = sorted(path for folder in folders for path in folder.iterdir() if is_clip(path))
        yield [(path, partial(read_file, path)) for path in paths]
    except OSError as error:
        raise UserError(f'{error.filename}: cannot be read ({error.strerror}); {AGAIN}') from error


@contextmanager
def open_tar(raw: Path) -> Iterator[list[Source]]:
    """The clips in the archive `raw`, in its order: a compressed one is slow to go back in."""
    try:
        with tarfile.open(raw, tarinfo=_Header) as tar:
            members = [(PurePath(member.name), member) for member in map(_checked, tar) if not member.isdir()]
            _check_end(tar)
            clips = [(path, member) for path, member in members if is_clip(path)]
            chosen = ([source for source in clips if source[0].parent.name == 'all_sqe']
                      or [source for source in clips if len(source[0].parts) == 1])
            yield [(path, lambda member=member: tar.extractfile(member).read()) for path, member in chosen]
    except _Refused as error:
        raise UserError(f'{raw}: refused, {error}; get it from a source you trust') from error
    except (tarfile.TarError, lzma.LZMAError, zlib.error, EOFError, OSError) as error:
        reason = getattr(error, 'strerror', None) or 'it is none, or damaged, or cut short'
        raise UserError(f'{raw}: cannot be read as a tar archive ({reason}); give a .tar, .tar.xz or .tar.gz, '
                        f'downloaded again if need be, or a folder') from error


class _Refused(UserError):
    """What an archive has that none of clips has."""


class _Header(tarfile.TarInfo):
    """A header as it is met: what follows a long one is read at once, whatever it is."""

    @classmethod
    def frombuf(cls, *block):
        header = super().frombuf(*block)
        if header.size > LARGEST:
            raise _Refused(f'{header.name!r:.80} of {header.size:,} bytes is too large for a clip')
        return header


def _checked(member: tarfile.TarInfo) -> tarfile.TarInfo:
    """The member, when it is a file or a folder, in the archive, and of a size that clips have."""
    name = PurePath(member.name)
    if name.is_absolute() or '..' in name.parts:
        raise _Refused(f'{member.name!r:.80} leads out of the archive')
    if not (member.isreg() or member.isdir()):
        raise _Refused(f'{member.name!r:.80} is neither a file nor a folder, but one of links or devices')
    if member.size > LARGEST:
        raise _Refused(f'{member.name!r:.80} of {member.size:,} bytes is too large for a clip')
    return member


def _check_end(tar: tarfile.TarFile) -> None:
    """Looks for the block that ends an archive: tarfile takes one that was cut between two members for whole."""
    tar.fileobj.seek(tar.offset)
    if tar.fileobj.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
        raise tarfile.ReadError('no end-of-archive block')
    for _ in range(LARGEST >> 20):  # on to where the decompressor compares its checksum
        if not tar.fileobj.read(1 << 20):
            return
    raise _Refused(f'more than {LARGEST:,} bytes follow its last member')


def read_clips(raw: Path) -> dict[str, tuple[np.ndarray, int]]:
    """All clips of a folder or a tar: name to (frames (T, 20, 3), label 1..10), sorted by name.

    Raises:
        UserError: there is nothing to read, or something in it is not a clip.
    """
    if not os.path.exists(raw):
        raise UserError(f"{raw}: does not exist; give --raw the folder or the tar of NW-UCLA's all_sqe release")
    clips = {}
    with open_folder(raw) if raw.is_dir() else open_tar(raw) as sources:
        if not sources:
            raise UserError(f'{raw}: no clip in it; give --raw the tar or the folder that has all_sqe/')
        with tqdm(sources, desc='NW-UCLA', unit=' clips', disable=None) as bar:
            for path, read in bar:
                sample_facts(path.stem)
                if path.stem in clips:
                    raise UserError(f'{raw}: {path.name} is there twice; keep one of them')
                clips[path.stem] = parse_clip(read(), path.stem)
    return dict(sorted(clips.items()))


def build(clips: dict[str, tuple[np.ndarray, int]], protocol: str) -> dict[str, np.ndarray]:
    """The members of one protocol's file; T is the longest clip in it.

    Raises:
        UserError: nothing to train or nothing to test on.
    """
    stem, trains = PROTOCOLS[protocol]
    clips = {name: clip for name, clip in clips.items() if trains(*sample_facts(name)) is not None}
    train = [trains(*sample_facts(name)) for name in clips]
    if all(train) or not any(train):
        raise UserError(f'{stem}: none of the {len(clips)} clips found is for {"testing" if all(train) else "training"}'
                        f'; give --raw the whole release')
    frames, labels = zip(*clips.values(), strict=True)
    x = pad(frames, JOINTS * 3)
    y = one_hot(np.array(labels) - 1, CLASSES)
    return split_members(x, y, list(clips), train)


def copies_in(members: dict[str, np.ndarray]) -> list[str]:
    """The names of the test clips that equal a training clip in every number."""
    seen = {clip.tobytes() for clip in members['x_train']}
    return [name for name, clip in zip(members['name_test'].tolist(), members['x_test'], strict=True)
            if clip.tobytes() in seen]


def main(argv: list[str] | None = None) -> int:
    parser = Parser(description='Northwestern-UCLA (all_sqe JSON) to NWUCLA_*.npz')
    parser.add_argument('--raw', type=Path, required=True, help='folder, .tar, .tar.xz or .tar.gz')
    parser.add_argument('--out', type=Path, required=True, help='folder for the files; made when missing')
    parser.add_argument('--protocol', nargs='+', choices=PROTOCOLS, default=['xview', 'xsub'],
                        help='default: xview and xsub')
    args = parser.parse_args(argv)
    check_writable(args.out)

    start = time.perf_counter()
    clips = read_clips(args.raw)
    files = {args.out / f'{PROTOCOLS[protocol][0]}.npz': build(clips, protocol) for protocol in args.protocol}
    for path, members in files.items():
        write_npz(path, **members)

    lengths = [len(frames) for frames, _ in clips.values()]
    print(f'{len(clips):,} clips, {len({label for _, label in clips.values()})} classes, {sum(lengths):,} frames '
          f'({min(lengths)} to {max(lengths)} a clip), {time.perf_counter() - start:.1f} s')
    if len(clips) != CLIPS:
        print(f'note: the whole release has {CLIPS:,} clips')
    for path, members in files.items():
        copies, told = copies_in(members), path.with_name(f'{path.stem}_copies.txt')
        if copies:
            with atomic_write(told) as partial:
                partial.write_text('\n'.join(copies) + '\n')
        print(f'{path}: {len(members["x_train"]):,} train, {len(members["x_test"]):,} test '
              f'({len(copies)} of them copies of a training clip{f", named in {told}" if copies else ""})')
    return 0


if __name__ == '__main__':
    run_main(main)
