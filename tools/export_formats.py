"""A trained model as a file that needs nothing of this program: ONNX, or what torch.export keeps (.pt2).

Axis letters: B clips, C = 3 coordinates, T frames, V joints, M bodies, D width of a feature.
"""

import copy
import json
import logging
import warnings
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import nn

from model_transformer import SkeletonEncoder
from util.errors import UserError

OPSET = 20              # the first with GELU as one operator; onnxruntime knows it since 1.17
TOLERANCE = 1e-4        # of a clip's outputs, relative to their norm
OUTPUTS = {'classifier': 'logits', 'encoder': 'features'}
FACTS = 'mamp.json'     # in a .pt2: what an .onnx holds as metadata

Run = Callable[[np.ndarray], np.ndarray]       # clips (B, C, T, V, M) float32 -> outputs (B, ·)


class WrongExport(UserError):
    """A file that was written does not compute what the model does: a failure of ours, not of what was asked for."""

    exit_code = 1


class Deployed(nn.Module):
    """The same operations whatever the clips hold, as an exporter needs them: every body is encoded, equal or not."""

    def __init__(self, model: SkeletonEncoder, what: str):
        super().__init__()
        self.model = copy.copy(model)               # shares the weights; `model` itself goes on finding equal bodies
        self.model.equal_bodies_once = False
        self.what = what

    def forward(self, clips: torch.Tensor) -> torch.Tensor:
        """(B, C, T, V, M) -> logits (B, classes), or mean features (B, D)"""
        return outputs_of(self.model, self.what, clips)


def outputs_of(model: SkeletonEncoder, what: str, clips: torch.Tensor) -> torch.Tensor:
    """A classifier's logits, an encoder's features averaged over bodies, segments and joints."""
    return model(clips) if what == 'classifier' else model.features(clips).mean(dim=(1, 2, 3))


@contextmanager
def quiet():
    """Without the exporter's own messages and its warnings about itself."""
    logger, level = logging.getLogger('torch'), logging.getLogger('torch').level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            yield
    finally:
        logger.setLevel(level)


def trace(model: SkeletonEncoder, what: str, shape: tuple[int, ...]) -> torch.export.ExportedProgram:
    """The program of `model`, in eval mode, for any number of clips of this shape (C, T, V, M)."""
    with quiet():
        return torch.export.export(Deployed(model, what).eval(), (torch.zeros(2, *shape),),
                                   dynamic_shapes={'clips': {0: torch.export.Dim('batch')}})


def write_onnx(program: torch.export.ExportedProgram, what: str, facts: dict, path: Path) -> None:
    """One .onnx file with its weights inside and `facts` as metadata, whatever is not text as JSON.

    Raises UserError when the packages for it are missing.
    """
    _need('onnxscript')
    with quiet():
        made = torch.onnx.export(program, dynamo=True, input_names=['clips'], output_names=[OUTPUTS[what]],
                                 dynamic_shapes={'clips': {0: 'batch'}}, opset_version=OPSET, verbose=False)
        made.model.metadata_props.update({name: value if isinstance(value, str) else json.dumps(value)
                                          for name, value in facts.items()})
        made.save(path, external_data=False)


def write_pt2(program: torch.export.ExportedProgram, facts: dict, path: Path) -> None:
    """One file for torch.export.load, with `facts` as JSON in it."""
    with quiet(), open(path, 'wb') as file:
        torch.export.save(program, file, extra_files={FACTS: json.dumps(facts)})


def read_onnx(path: Path) -> Run:
    """What runs an .onnx file in onnxruntime, on the CPU; UserError when that is not installed."""
    _need('onnxruntime')
    import onnxruntime
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(path, options, providers=['CPUExecutionProvider'])
    return lambda clips: session.run(None, {'clips': clips})[0]


def read_pt2(path: Path) -> Run:
    """What runs a file of torch.export.save."""
    with quiet(), open(path, 'rb') as file:
        module = torch.export.load(file).module()
    return lambda clips: module(torch.from_numpy(clips)).detach().numpy()


def _need(package: str) -> None:
    try:
        __import__(package)
    except ImportError as error:
        raise UserError(f'--onnx needs {package}, which cannot be imported ({error}); pip install -r '
                        'requirements.txt') from error


@torch.inference_mode()
def compute(model: SkeletonEncoder, what: str, batches: list[np.ndarray]) -> list[np.ndarray]:
    """What the exported files must give: the model's outputs, fp32, as its own commands compute them."""
    return [outputs_of(model, what, torch.from_numpy(clips)).numpy() for clips in batches]


def verify(path: Path, read: Callable[[Path], Run], what: str, batches: list[np.ndarray],
           expected: list[np.ndarray]) -> float:
    """The largest relative error over clips, |made − expected| / |expected|, of the file at `path`.

    Raises WrongExport when it exceeds TOLERANCE, a classifier's top-1 differs, or the file does not run.
    """
    try:
        run = read(path)
        given = [run(clips) for clips in batches]
    except UserError:
        raise
    except Exception as error:      # whatever a runtime makes of a file that it cannot run
        raise WrongExport(f'the exported program does not run ({" ".join(str(error).split())[:300]}); nothing was '
                          'left') from error
    worst = 0.
    for clips, made, right in zip(batches, given, expected, strict=True):
        if made.shape != right.shape or not np.isfinite(made).all():
            raise WrongExport(f'the exported program makes {made.shape} of {len(clips)} clips, not all finite or not '
                              f'the {right.shape} of PyTorch; nothing was left')
        error = np.linalg.norm(made - right, axis=1) / np.maximum(np.linalg.norm(right, axis=1), 1e-30)
        worst = max(worst, float(error.max()))
        if worst > TOLERANCE:
            raise WrongExport(f'the exported program differs from PyTorch by {worst:.1e} on {len(clips)} clips, where '
                              f'{TOLERANCE:g} is the most; nothing was left')
        if what == 'classifier' and (made.argmax(1) != right.argmax(1)).any():
            raise WrongExport(f'the exported program names another class than PyTorch for one of {len(clips)} clips; '
                              'nothing was left')
    return worst
