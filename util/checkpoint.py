"""Checkpoints: written whole or not at all, read without running anything, the authors' files included."""

import argparse
import errno
import hashlib
import logging
import os
import pickle
import re
import zipfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from util.errors import UserError
from util.files import atomic_write, check_zip, partial_of

log = logging.getLogger(__name__)

LAST, PREVIOUS, BEST = 'checkpoint-last.pth', 'checkpoint-previous.pth', 'checkpoint-best.pth'


def save(path: str | Path, content: dict) -> None:
    """Writes tensors and plain values atomically, and their SHA-256 beside them (PATH.sha256).

    UserError when the disk will not take them. Killed at any moment, it leaves a file whose sum is noted.
    """
    with atomic_write(path) as partial:
        try:
            torch.save(content, partial)
        except RuntimeError as error:       # what PyTorch's writer makes of a full disk
            raise OSError(errno.EIO, f'PyTorch: {_one_line(error)}', str(partial)) from error
        digest = digest_of(partial)
        _note(path, [digest, *noted(path)])     # the old file's too, until the new one has its name
    _note(path, [digest])


def keep(path: str | Path, name: str) -> None:
    """Keeps the file at `path` under another name in its folder too, in place of what had it; nothing is copied."""
    path, kept = Path(path), Path(path).with_name(name)
    if not path.exists():
        return
    _note(kept, [*noted(path), *noted(kept)])
    partial = partial_of(kept)
    try:
        partial.unlink(missing_ok=True)
        os.link(path, partial)
        os.replace(partial, kept)
    except OSError:                             # a file system without links: it moves
        os.replace(path, kept)
    _note(kept, noted(path))


def digest_of(path: str | Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with open(path, 'rb') as file:
        return hashlib.file_digest(file, 'sha256').hexdigest()


def _sum_file(path: str | Path) -> Path:
    return Path(path).with_name(f'{Path(path).name}.sha256')


def noted(path: str | Path) -> list[str]:
    """Sums one of which the file must have; none where nothing is noted."""
    with suppress(OSError, UnicodeDecodeError):
        return _sum_file(path).read_text().split()
    return []


def _note(path: str | Path, digests: list[str]) -> None:
    with atomic_write(_sum_file(path)) as partial:
        partial.write_text('\n'.join(digests) + '\n')


def load(path: str | Path) -> dict:
    """Reads a checkpoint of ours or of the authors' ({model, optimizer, epoch, args, …}) on the CPU.

    Only tensors, plain values and argparse.Namespace are accepted; a Namespace comes back as a dict. Raises UserError
    for a file that is missing, damaged, not what its PATH.sha256 says, holds any other class, or has no weights.
    """
    if Path(path).exists() and not Path(path).is_file():
        raise UserError(f'{path}: is no file; give a checkpoint, {LAST} of a run say')
    sums = noted(path)
    try:
        if sums and digest_of(path) not in sums:
            raise UserError(f'{path}: altered since it was written ({_sum_file(path).name} says otherwise); take '
                            'another one, or remove that note if the change was yours')
        _check_archive(path)
        with torch.serialization.safe_globals([argparse.Namespace]):
            content = torch.load(path, map_location='cpu', weights_only=True)
    except FileNotFoundError:
        raise UserError(f'{path}: no such checkpoint; give the path of one, {LAST} of a run say') from None
    except UserError:
        raise
    except Exception as error:      # a damaged pickle may fail in any way
        foreign = re.search(r'GLOBAL (\S+)', str(error))
        if isinstance(error, pickle.UnpicklingError) and foreign:
            raise UserError(f'{path}: refused, it holds a {foreign[1]}; only tensors, plain values and '
                            'argparse.Namespace are loaded') from error
        raise UserError(f'{path}: not a whole checkpoint ({_one_line(error)}); take another one') from error
    if not isinstance(content, dict):
        raise UserError(f'{path}: not a checkpoint: it holds a {type(content).__name__}; take another one')
    weights = content.get('model', content)
    if not isinstance(weights, dict) or not weights or not all(
            isinstance(name, str) and _is_array(value) for name, value in weights.items()):
        raise UserError(f'{path}: not a checkpoint: it has no model weights; take another one')
    if weights is content:
        content = {'model': content}
    settings = content.get('args')
    content['args'] = vars(settings) if isinstance(settings, argparse.Namespace) else settings or {}
    if fault := next((name for name, fits in FIELDS.items() if name in content and not fits(content[name])), None):
        raise UserError(f'{path}: not a checkpoint: its {fault!r} is none; take another one')
    return content


def _check_archive(path: str | Path) -> None:
    with open(path, 'rb') as file:
        if file.read(2) != b'PK':       # written before PyTorch 1.6
            return
    with zipfile.ZipFile(path) as archive:
        check_zip(path, archive)


def _is_array(value) -> bool:
    """Whether it is a tensor of numbers that are all there: a hostile one shows few of them many times over."""
    return (isinstance(value, torch.Tensor) and value.layout == torch.strided and not value.is_quantized
            and value.device.type == 'cpu' and value.nbytes <= value.untyped_storage().nbytes())


def _is_plain(value) -> bool:
    return isinstance(value, str | int | float | None)


def _is_map(value, deep: bool = False) -> bool:
    """Text to plain values, or `deep` to maps of them."""
    return isinstance(value, dict) and all(isinstance(name, str) and (_is_plain(item) or (deep and _is_map(item)))
                                           for name, item in value.items())


FIELDS = {  # of a checkpoint: what they must be; the weights are looked at for themselves
    'args': lambda value: isinstance(value, dict) and not any(map(torch.is_tensor, value.values())),
    'epoch': lambda value: isinstance(value, int) and value >= -1,
    'step': lambda value: isinstance(value, int) and value >= 0,
    'optimizer': lambda value: isinstance(value, dict),
    'record': lambda value: _is_map(value, deep=True),
    'method': lambda value: isinstance(value, str),
    'pretraining': lambda value: value is None or _is_map(value),
    'layout': lambda value: _is_map(value, deep=True),
    'bodies': lambda value: isinstance(value, int) and 1 <= value <= 1000,
    'classes': lambda value: isinstance(value, list) and all(isinstance(name, str) for name in value),
    'prepared': lambda value: _is_map(value, deep=True),
}


def newest(folder: str | Path) -> tuple[Path, dict] | None:
    """The latest checkpoint in a run's folder that is whole, and its content; others are named in a warning.

    None where there is none at all; UserError when there are some and none is whole.
    """
    names = [LAST, PREVIOUS, *sorted(path.name for path in Path(folder).glob('checkpoint-[0-9]*.pth'))]
    found, bad = [], 0
    for path in (Path(folder) / name for name in names):
        if not path.exists():
            continue
        try:
            found.append((path, load(path)))
        except UserError as error:
            bad += 1
            log.warning('passed over: %s', error)
        if found and path.name == LAST:
            break
    if bad and not found:
        raise UserError(f'{folder}: none of its checkpoints is whole; start anew in another --output_dir')
    # A run's own ones say where they stand; max takes the first of equals.
    return max(found, key=lambda item: (item[1].get('epoch', -1), item[1].get('step', 0)), default=None)


def differences(settings: dict, args: argparse.Namespace, names: tuple[str, ...]) -> str:
    """Those of the settings that a checkpoint was made with and this run has otherwise, as text; '' for none."""
    return ', '.join(f'{name} {settings[name]} (now {getattr(args, name)})' for name in names
                     if settings.get(name) is not None and settings[name] != getattr(args, name))


def _one_line(error: Exception) -> str:
    """The first sentence of an error, without PyTorch's advice."""
    lines = str(error).splitlines() or ['']
    return re.split(r'(?<=\.) ', lines[0])[0] or type(error).__name__


def load_model(model: nn.Module, weights: dict, path: str | Path, resize: bool = True) -> None:
    """Every weight of the model from the checkpoint, none missing and none left over (UserError otherwise).

    `resize` fits the segment embeddings to another number of frames; not for resuming, where moments go with them.
    """
    given, own = stage_of(weights), stage_of(model.state_dict())
    if given != own:
        raise UserError(f'{path}: is a checkpoint of {given}, where one of {own} is needed; give one, or start from '
                        'the encoder of this one with --finetune')
    _load_strictly(model, resize_temp_embed(weights, model) if resize else weights, path)


def stage_of(weights: dict) -> str:
    """What made these weights: 'pre-training', 'fine-tuning', 'a linear probe' or 'an encoder alone'."""
    for stage, begins in (('pre-training', ('decoder_', 'mask_token')), ('fine-tuning', 'head.fc1.'),
                          ('a linear probe', 'head.fc.')):
        if any(name.startswith(begins) for name in weights):
            return stage
    return 'an encoder alone'


def encoder_of(weights: dict) -> dict:
    """The weights without those of a decoder or head."""
    return {name: value for name, value in weights.items()
            if not name.startswith(('decoder_', 'mask_token', 'head.'))}


def load_encoder(model: nn.Module, weights: dict, path: str | Path) -> None:
    """The encoder's weights; the decoder's are ignored and the head stays fresh. Any other mismatch is a UserError."""
    encoder = encoder_of(weights)
    head = {name: value for name, value in model.state_dict().items() if name.startswith('head.')}
    _load_strictly(model, resize_temp_embed(encoder, model) | head, path)


def map_joints(weights: dict, model: nn.Module, sources: Sequence[int | None]) -> dict:
    """The weights with the joint embeddings (1, 1, V, D) of the model's joints: that at `sources`, or the model's own.

    Other weights, the decoder's too, stay: a checkpoint's encoder alone fits a model of another number of joints.
    """
    given, mapped = weights['pos_embed'], model.pos_embed.detach().clone()
    for joint, source in enumerate(sources):
        if source is not None:
            mapped[:, :, joint] = given[:, :, source]
    return weights | {'pos_embed': mapped}


def resize_temp_embed(weights: dict, model: nn.Module) -> dict:
    """Fits the segment embeddings (1, P, 1, D) to the model's number of segments, bicubically along P."""
    weights = dict(weights)
    for name, own in model.state_dict().items():
        if not name.endswith('temp_embed') or name not in weights:
            continue
        given = weights[name]
        if given.shape[1:2] == own.shape[1:2] or 0 in given.shape or not given.is_floating_point() \
                or given.shape[:1] + given.shape[2:] != own.shape[:1] + own.shape[2:]:
            continue        # it fits, or it will be refused
        log.info('%s: resized from %d to %d segments', name, given.shape[1], own.shape[1])
        image = given.permute(0, 3, 1, 2)                                               # (1, D, P, 1)
        image = F.interpolate(image, (own.shape[1], 1), mode='bicubic', align_corners=False)
        weights[name] = image.permute(0, 2, 3, 1)
    return weights


def misfits(model: nn.Module, weights: dict) -> str:
    """Names and shapes in which the weights are not the model's, the first three as text; '' when all are."""
    own = model.state_dict()
    problems = [f'{name} is missing' for name in own if name not in weights]
    problems += [f'{name} is not a weight of this model' for name in weights if name not in own]
    problems += [f'{name} is {tuple(weights[name].shape)}, the model has {tuple(own[name].shape)}' for name in own
                 if name in weights and weights[name].shape != own[name].shape]
    return '; '.join(problems[:3]) + (f' and {len(problems) - 3} more' if len(problems) > 3 else '')


def _load_strictly(model: nn.Module, weights: dict, path: str | Path) -> None:
    if problems := misfits(model, weights):
        raise UserError(f'{path}: does not fit the model: {problems}; give the settings it was '
                        'trained with (--dim_feat, --depth, --num_joints, …), and data of as many classes')
    if wrong := [name for name, value in weights.items() if not value.isfinite().all()]:
        raise UserError(f'{path}: {wrong[0]} holds NaN or infinity; take another checkpoint')
    model.load_state_dict(weights)
