"""Golden numbers: outputs of the authors' program, and the weights they were computed with."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

ROOT = Path(__file__).resolve().parents[1]
PLACES = (ROOT / 'tests/golden', Path(os.environ.get('MAMP_SHARED', ROOT / '../shared')) / 'golden')

# fp32 on a CPU; correct code agrees to about 2e-7
LOSS_RTOL, ACTIVATION_ATOL, GRADIENT_RTOL = 2e-6, 2e-5, 5e-5


def load(name: str) -> dict:
    """Read a golden file: the arrays of an .npz ('feeder_ntu' or 'feeder_ntu.npz') or the content of a .json.

    Members `config` and `grad_norms`, which are JSON, are parsed. Skips the test if the file is missing.
    """
    name = name if Path(name).suffix else f'{name}.npz'
    path = next((place / name for place in PLACES if (place / name).exists()), None)
    if path is None:
        pytest.skip(f'no golden/{name} in tests/ or MAMP_SHARED')
    if path.suffix == '.json':
        return json.loads(path.read_text())
    with np.load(path, allow_pickle=False) as npz:
        return {key: json.loads(str(npz[key])) if npz[key].dtype.kind == 'U' and key in ('config', 'grad_norms')
                else npz[key] for key in npz.files}


def weights(golden: dict) -> dict[str, torch.Tensor]:
    """The state dict stored in a golden file as `weight/<key>`."""
    return {key.removeprefix('weight/'): torch.from_numpy(np.array(value)) for key, value in golden.items()
            if key.startswith('weight/')}


def load_weights(model: nn.Module, golden: dict, seed: int) -> None:
    """Load the weights of a golden file strictly, or fill them in if it stores none."""
    if stored := weights(golden):
        model.load_state_dict(stored)
    else:
        fill_weights(model, seed)


def fill_weights(model: nn.Module, seed: int) -> None:
    """Fill in the weights of golden files that store none: small normal numbers, one stream a key, norms around 1."""
    state = model.state_dict()
    for i, key in enumerate(sorted(state)):         # i counts every key, the integer counters of BatchNorm included
        if not state[key].is_floating_point():
            continue
        drawn = np.random.default_rng([seed, i]).standard_normal(state[key].shape).astype(np.float32)
        value = np.asarray(drawn * np.float32(0.05))
        if key.endswith('running_var'):
            value = 1 + np.abs(value)
        elif key.endswith('weight') and ('norm' in key or '.bn.' in key):
            value = 1 + value
        state[key].copy_(torch.from_numpy(value))
