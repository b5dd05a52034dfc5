"""The same numbers from every run: what GPUs would otherwise compute in whatever order is fastest.

On a CPU a run is repeatable as it is: order, crops, masks and dropout follow from the seed.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from util.errors import UserError

WORKSPACE = ':4096:8', ':16:8'      # of cuBLAS: sizes with which its sums have one order (its documentation)


@contextmanager
def repeatable(wanted: bool, device: str) -> Iterator[None]:
    """Inside, if `wanted`, PyTorch computes in an order that is always the same, or raises where it knows none.

    To be entered before CUDA starts: cuBLAS reads its setting then (it stays set); UserError when that is too late.
    What depends on it elsewhere asks `torch.are_deterministic_algorithms_enabled()`.
    """
    if not wanted:
        yield
        return
    if device != 'cpu' and os.environ.get('CUBLAS_WORKSPACE_CONFIG') not in WORKSPACE:
        if torch.cuda.is_initialized():
            raise UserError('--deterministic: CUDA has started without CUBLAS_WORKSPACE_CONFIG; set it to '
                            f'{WORKSPACE[0]} before')
        os.environ['CUBLAS_WORKSPACE_CONFIG'] = WORKSPACE[0]
    cudnn, inductor = torch.backends.cudnn, torch._inductor.config
    before = (torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled(),
              cudnn.deterministic, cudnn.benchmark, inductor.deterministic)
    try:
        torch.use_deterministic_algorithms(True)
        cudnn.deterministic, cudnn.benchmark = True, False
        inductor.deterministic = True       # compiled kernels are not chosen by timing
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        cudnn.deterministic, cudnn.benchmark, inductor.deterministic = before[2:]
