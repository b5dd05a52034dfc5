"""Checkpoints: their content, written atomically and read without executing anything in them."""

import argparse
import dataclasses
import logging
import os
import pickle
import re
import zipfile
from dataclasses import dataclass, field
from pathlib import Path

import torch

from util.errors import UserError, one_line
from util.files import atomic_write, check_zip, has_type

log = logging.getLogger(__name__)

LAST, PREVIOUS, BEST = 'checkpoint-last.pth', 'checkpoint-previous.pth', 'checkpoint-best.pth'
FORMAT_VERSION = 2
STAGE_TITLES = {'pretrain': 'pre-training', 'linprobe': 'linear probe', 'finetune': 'fine-tuning',
                'encoder': 'an encoder alone'}


@dataclass
class Checkpoint:
    """The content of a checkpoint file; the authors' code writes only `model`, `optimizer`, `epoch` and `args`."""

    model: dict[str, torch.Tensor]
    args: dict = field(default_factory=dict)        # settings of the run
    epoch: int = -1                                 # last completed epoch
    step: int = 0                                   # completed steps of the next epoch
    optimizer: dict | None = None
    progress: dict | None = None                    # sums and best scores so far, see util/trainer.py
    method: str | None = None                       # what pre-trained the encoder: MAMP, MAE, scratch, …
    pretraining: dict | None = None                 # settings of the pre-training that the run started from
    bodies: int | None = None                       # number of bodies in a clip
    class_names: list[str] | None = None            # label 0 first
    layout: dict | None = None                      # {'name': …, 'joints': {name: parent}}, see feeder/layouts.py
    preparation: dict | None = None                 # {'centre': bool, 'scale': metres per unit} of the raw recordings
    code_version: str | None = None                 # git describe
    format_version: int = FORMAT_VERSION

    @property
    def stage(self) -> str:
        """The stage that the weights belong to: pretrain, finetune, linprobe, or encoder (neither decoder nor head)."""
        for stage, prefixes in (('pretrain', ('decoder_', 'mask_token')), ('finetune', ('head.fc1.', 'head.linear.')),
                                ('linprobe', ('head.fc.',))):
            if any(name.startswith(prefixes) for name in self.model):
                return stage
        return 'encoder'

    @property
    def num_joints(self) -> int:
        """Number of joints in the joint embeddings (1, 1, V, D), 0 without embeddings."""
        embedding = self.model.get('pos_embed')
        return embedding.shape[2] if embedding is not None and embedding.ndim == 4 else 0

    @property
    def is_authors(self) -> bool:
        """True if the checkpoint was written by the authors' code."""
        return self.code_version is None and self.progress is None

    def write(self, path: str | Path, previous: str | None = None) -> None:
        """Write the checkpoint atomically; a file that it replaces is kept under the name `previous`, if that is set.

        Raises UserError if the disk is full or the folder is not writable.
        """
        path = Path(path)
        with atomic_write(path) as partial:
            try:
                torch.save({entry.name: getattr(self, entry.name) for entry in dataclasses.fields(self)}, partial)
            except RuntimeError as error:       # PyTorch's writer on a full disk
                raise UserError(f'{path}: cannot be written ({one_line(error)[:200]}); free up disk space') from error
            if previous and path.exists():
                os.replace(path, path.with_name(previous))

    @classmethod
    def read(cls, path: str | Path) -> 'Checkpoint':
        """Read a checkpoint of this project or of the authors' code into CPU memory.

        Only tensors, plain values and argparse.Namespace are accepted. Raises UserError for a missing or damaged file,
        any other class in it, entries of a wrong type, and a file without weights.
        """
        content = _upgrade(_read_content(path), path)
        known = {entry.name: entry.type for entry in dataclasses.fields(cls)}
        values = {name: content[name] for name in known if name in content}
        if wrong := next((name for name, value in values.items() if not has_type(value, known[name])), None):
            raise UserError(f'{path}: not a checkpoint: {wrong!r} has the wrong type; use another file')
        if not values['model'] or not all(map(_is_dense, values['model'].values())) or values.get('step', 0) < 0:
            raise UserError(f'{path}: not a checkpoint: its weights are not dense tensors; use another file')
        return cls(**values)


def _read_content(path: str | Path) -> dict:
    if not Path(path).is_file():
        raise UserError(f'{path}: no such checkpoint; specify the path of a checkpoint, for example {LAST} of a run')
    try:
        if zipfile.is_zipfile(path):        # all files except those written before PyTorch 1.6
            with zipfile.ZipFile(path) as archive:
                check_zip(path, archive)
                if damaged := archive.testzip():        # verifies checksums, which torch.load does not
                    raise UserError(f'{path}: damaged: the checksum of its member {damaged} does not match; use '
                                    'another checkpoint')
        with torch.serialization.safe_globals([argparse.Namespace]):
            content = torch.load(path, map_location='cpu', weights_only=True)
    except UserError:
        raise
    except Exception as error:      # a damaged pickle can raise any exception
        foreign = re.search(r'GLOBAL (\S+)', str(error))
        if isinstance(error, pickle.UnpicklingError) and foreign:
            raise UserError(f'{path}: refused, it contains {foreign[1]}; only tensors, plain values and '
                            'argparse.Namespace are loaded') from error
        raise UserError(f'{path}: not a complete checkpoint ({one_line(error).split(". ")[0]}); use another '
                        'file') from error
    if not isinstance(content, dict):
        raise UserError(f'{path}: not a checkpoint: it holds a {type(content).__name__}; use another file')
    return content


def _upgrade(content: dict, path: str | Path) -> dict:
    """Convert the content of older files, files of the authors' code and bare state dicts to the current format."""
    if 'model' not in content:
        content = {'model': content}
    content = dict(content)
    if isinstance(content.get('args'), argparse.Namespace):
        content['args'] = vars(content['args'])
    content['args'] = content.get('args') or {}
    for old, new in (('record', 'progress'), ('classes', 'class_names'), ('prepared', 'preparation'),
                     ('version', 'code_version')):
        if old in content and new not in content:
            content[new] = content.pop(old)
    version = content.get('format_version', 1)
    if isinstance(version, int) and version > FORMAT_VERSION:
        raise UserError(f'{path}: written by a newer version of this project (format {version}); update the code')
    weights = content['model']
    if isinstance(weights, dict) and weights and all(str(name).startswith('module.') for name in weights):
        content['model'] = {name.removeprefix('module.'): value for name, value in weights.items()}  # saved under DDP
    return content


def _is_dense(value: torch.Tensor) -> bool:
    """Return True for a plain CPU tensor that stores all its numbers; an expanded one could claim any size."""
    return (value.layout == torch.strided and not value.is_quantized and value.device.type == 'cpu'
            and value.nbytes <= value.untyped_storage().nbytes())


def newest(folder: str | Path) -> tuple[Path, Checkpoint] | None:
    """Find the latest undamaged checkpoint in the folder of a run; returns None if there is no checkpoint.

    Damaged files are skipped with a warning. Raises UserError if all are damaged.
    """
    names = [LAST, PREVIOUS, *sorted(path.name for path in Path(folder).glob('checkpoint-[0-9]*.pth'))]
    intact, damaged = [], 0
    for path in (Path(folder) / name for name in names if (Path(folder) / name).exists()):
        try:
            intact.append((path, Checkpoint.read(path)))
        except UserError as error:
            damaged += 1
            log.warning('skipped: %s', error)
        if intact and path.name == LAST:
            break
    if damaged and not intact:
        raise UserError(f'{folder}: all of its checkpoints are damaged; start again in another --output_dir')
    return max(intact, key=lambda item: (item[1].epoch, item[1].step), default=None)
