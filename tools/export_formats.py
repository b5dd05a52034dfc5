"""Export models to ONNX and torch.export files, and verify them.

Axis letters: B clips, C = 3 coordinates, T frames, V joints, M bodies, D feature width.
"""

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
from util.errors import UserError, one_line

OPSET = 20              # the first in which GELU is an operator; needs onnxruntime 1.17
TOLERANCE = 1e-4        # largest error of a clip's outputs relative to their norm
OUTPUTS = {'classifier': 'logits', 'encoder': 'features'}
METADATA = 'mamp.json'      # file in a .pt2 for the metadata of an .onnx

Run = Callable[[np.ndarray], np.ndarray]       # clips (B, C, T, V, M) float32 -> outputs (B, ·)


class ExportError(UserError):
    """An exported file does not compute the same as the model: a bug, not an error of the user."""

    exit_code = 1


class Deployed(nn.Module):
    """A model with a single output: logits of a classifier, or mean features of an encoder."""

    def __init__(self, model: SkeletonEncoder, part: str):
        super().__init__()
        self.model, self.part = model, part

    def forward(self, clips: torch.Tensor) -> torch.Tensor:
        """Map clips (B, C, T, V, M) to logits (B, classes), or features (B, D) averaged over bodies and tokens."""
        return self.model(clips) if self.part == 'classifier' else self.model.features(clips).mean(dim=(1, 2, 3))


@contextmanager
def quiet():
    """Suppress messages and warnings of the exporter that concern itself."""
    logger, level = logging.getLogger('torch'), logging.getLogger('torch').level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            yield
    finally:
        logger.setLevel(level)


def trace(model: SkeletonEncoder, part: str, shape: tuple[int, ...]) -> torch.export.ExportedProgram:
    """Trace a model in eval mode for any number of clips of the shape (C, T, V, M)."""
    with quiet():
        return torch.export.export(Deployed(model, part).eval(), (torch.zeros(2, *shape),),
                                   dynamic_shapes={'clips': {0: torch.export.Dim('batch')}})


def write_onnx(program: torch.export.ExportedProgram, part: str, metadata: dict, path: Path) -> None:
    """Write an .onnx file with weights and metadata (strings or JSON); raises UserError without onnxscript."""
    _require('onnxscript')
    with quiet():
        model = torch.onnx.export(program, dynamo=True, input_names=['clips'], output_names=[OUTPUTS[part]],
                                 dynamic_shapes={'clips': {0: 'batch'}}, opset_version=OPSET, verbose=False)
        model.model.metadata_props.update({name: value if isinstance(value, str) else json.dumps(value)
                                          for name, value in metadata.items()})
        model.save(path, external_data=False)


def write_pt2(program: torch.export.ExportedProgram, metadata: dict, path: Path) -> None:
    """Write a file for torch.export.load that contains the metadata as JSON."""
    with quiet(), open(path, 'wb') as file:
        torch.export.save(program, file, extra_files={METADATA: json.dumps(metadata)})


def read_onnx(path: Path) -> Run:
    """Load an .onnx file in onnxruntime on the CPU; raises UserError if it is not installed."""
    _require('onnxruntime')
    import onnxruntime
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(path, options, providers=['CPUExecutionProvider'])
    return lambda clips: session.run(None, {'clips': clips})[0]


def read_pt2(path: Path) -> Run:
    """Load a file written by torch.export.save."""
    with quiet(), open(path, 'rb') as file:
        module = torch.export.load(file).module()
    return lambda clips: module(torch.from_numpy(clips)).detach().numpy()


def _require(package: str) -> None:
    try:
        __import__(package)
    except ImportError as error:
        raise UserError(f'--onnx needs {package}, which cannot be imported ({error}); run pip '
                        'install -r requirements.txt') from error


@torch.inference_mode()
def compute(model: SkeletonEncoder, part: str, batches: list[np.ndarray]) -> list[np.ndarray]:
    """Compute the outputs of the model in fp32, the reference for exported files."""
    return [Deployed(model, part)(torch.from_numpy(clips)).numpy() for clips in batches]


def verify(path: Path, read: Callable[[Path], Run], part: str, batches: list[np.ndarray],
           expected: list[np.ndarray]) -> float:
    """Compare an exported file with the reference; returns the largest relative error of a clip.

    Raises ExportError if the error exceeds TOLERANCE, the top-1 class differs, or the file does not run.
    """
    try:
        run = read(path)
        outputs = [run(clips) for clips in batches]
    except UserError:
        raise
    except Exception as error:      # a runtime can raise any exception
        raise ExportError(f'the exported model does not run ({one_line(error)[:300]}); no file was written') from error
    worst = 0.
    for clips, output, reference in zip(batches, outputs, expected, strict=True):
        if output.shape != reference.shape or not np.isfinite(output).all():
            raise ExportError(f'the exported model returns {output.shape} for {len(clips)} clips, which is not finite '
                              f'or differs from {reference.shape} of PyTorch; no file was written')
        error = np.linalg.norm(output - reference, axis=1) / np.maximum(np.linalg.norm(reference, axis=1), 1e-30)
        worst = max(worst, float(error.max()))
        if worst > TOLERANCE:
            raise ExportError(f'the exported model differs from PyTorch by {worst:.1e}, more than {TOLERANCE:g}; no '
                              'file was written')
        if part == 'classifier' and (output.argmax(1) != reference.argmax(1)).any():
            raise ExportError('the exported model predicts a different class than PyTorch; no file was written')
    return worst
