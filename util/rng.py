"""Counter-based random numbers: a function of where they are used, not of the state of a generator.

Crops, angles and masks depend only on (seed, epoch, step, position in the effective batch), and not on the number of
processes, accumulation, restarts or the device.
"""

import numpy as np
import torch

# SplitMix64 (Steele, Lea and Flood, OOPSLA 2014); 64-bit products wrap around in PyTorch, as required here.
_GAMMA, _MIX1, _MIX2 = (constant - 2**64 for constant in
                        (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))


def _shift_right(z: torch.Tensor, bits: int) -> torch.Tensor:
    """Shift signed 64-bit integers right logically."""
    return (z >> bits) & ((1 << (64 - bits)) - 1)


def derive_seed(*keys: int) -> int:
    """Mix non-negative integers into a seed in [0, 2^63)."""
    return int(np.random.SeedSequence(keys).generate_state(1, np.uint64)[0] >> 1)


def uniform(key: int, position: torch.Tensor, size: int) -> torch.Tensor:
    """Draw row i for position[i]: (B,) integers -> (B, size) float32 in [0, 1), on the device of `position`.

    Reads the SplitMix64 stream of `key` from position · size on; the result is the same on every device.
    """
    counter = position[:, None].long() * size + torch.arange(1, size + 1, device=position.device)
    z = counter * _GAMMA + key
    z = (z ^ _shift_right(z, 30)) * _MIX1
    z = (z ^ _shift_right(z, 27)) * _MIX2
    z = z ^ _shift_right(z, 31)
    return _shift_right(z, 40).float() * 2.**-24
