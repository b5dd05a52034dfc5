"""Checkpoints: written whole or not at all, read without running anything, the authors' files included."""

import argparse
import logging
import pickle
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from util.errors import UserError
from util.files import replacing

log = logging.getLogger(__name__)


def save(path: str | Path, content: dict) -> None:
    """Writes tensors and plain values atomically."""
    with replacing(path) as partial:
        torch.save(content, partial)


def load(path: str | Path) -> dict:
    """Reads a checkpoint of ours or of the authors' ({model, optimizer, epoch, args, …}) on the CPU.

    Only tensors, plain values and argparse.Namespace are accepted; a Namespace comes back as a dict. Raises UserError
    for a file that is missing, damaged, holds any other class, or has no weights.
    """
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            content = torch.load(path, map_location='cpu', weights_only=True)
    except FileNotFoundError:
        raise UserError(f'{path}: no such checkpoint') from None
    except pickle.UnpicklingError as error:
        reason = ' '.join(str(error).split('\n')[0].split())
        raise UserError(f'{path}: refused, it is damaged or holds more than tensors and plain values ({reason})'
                        ) from error
    except (OSError, RuntimeError, EOFError, KeyError, ValueError) as error:
        reason = str(error).split('\n')[0]
        raise UserError(f'{path}: not a whole checkpoint ({reason}); take another one') from error
    if not isinstance(content, dict):
        raise UserError(f'{path}: not a checkpoint: it holds a {type(content).__name__}')
    weights = content.get('model', content)
    if not isinstance(weights, dict) or not all(isinstance(value, torch.Tensor) for value in weights.values()):
        raise UserError(f'{path}: not a checkpoint: it has no model weights')
    if weights is content:
        content = {'model': content}
    if isinstance(content.get('args'), argparse.Namespace):
        content['args'] = vars(content['args'])
    return content


def load_model(model: nn.Module, weights: dict, path: str | Path) -> None:
    """Every weight of the model from the checkpoint, none missing and none left over (UserError otherwise)."""
    _load_strictly(model, resize_temp_embed(weights, model), path)


def load_encoder(model: nn.Module, weights: dict, path: str | Path) -> None:
    """The encoder's weights; the decoder's are ignored and the head stays fresh. Any other mismatch is a UserError."""
    encoder = {name: value for name, value in weights.items()
               if not name.startswith(('decoder_', 'mask_token', 'head.'))}
    head = {name: value for name, value in model.state_dict().items() if name.startswith('head.')}
    _load_strictly(model, resize_temp_embed(encoder, model) | head, path)


def resize_temp_embed(weights: dict, model: nn.Module) -> dict:
    """Fits the segment embeddings (1, P, 1, D) to the model's number of segments, bicubically along P."""
    weights = dict(weights)
    for name, own in model.state_dict().items():
        if not name.endswith('temp_embed') or name not in weights:
            continue
        given = weights[name]
        if given.ndim != 4 or given.shape[1] == own.shape[1]:
            continue
        log.info('%s: resized from %d to %d segments', name, given.shape[1], own.shape[1])
        image = given.permute(0, 3, 1, 2)                                               # (1, D, P, 1)
        image = F.interpolate(image, (own.shape[1], 1), mode='bicubic', align_corners=False)
        weights[name] = image.permute(0, 2, 3, 1)
    return weights


def _load_strictly(model: nn.Module, weights: dict, path: str | Path) -> None:
    own = model.state_dict()
    problems = [f'{name} is missing' for name in own if name not in weights]
    problems += [f'{name} is not a weight of this model' for name in weights if name not in own]
    problems += [f'{name} is {tuple(weights[name].shape)}, the model has {tuple(own[name].shape)}' for name in own
                 if name in weights and weights[name].shape != own[name].shape]
    if problems:
        more = f' and {len(problems) - 3} more' if len(problems) > 3 else ''
        raise UserError(f'{path}: does not fit the model: {"; ".join(problems[:3])}{more}; give the settings it was '
                        'trained with (--dim_feat, --depth, --num_joints, …)')
    model.load_state_dict(weights)
