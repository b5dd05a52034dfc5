"""Numerics of a model on its device: precision, compilation, deterministic sums, and memory of the CPU."""

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from util.errors import UserError

WORKSPACES = ':4096:8', ':16:8'     # settings for which cuBLAS documents a fixed order of sums


class Precision:
    """Precision of matrix products: fp32, tf32 (GPUs only) or bf16 autocast; None chooses bf16 on GPUs that have it.

    Raises UserError for tf32 on a CPU.
    """

    def __init__(self, name: str | None, device: torch.device):
        on_gpu = device.type == 'cuda'
        if name == 'tf32' and not on_gpu:
            raise UserError('--precision tf32 needs a CUDA GPU; use fp32 or bf16')
        self.name = name or ('bf16' if on_gpu and torch.cuda.is_bf16_supported(including_emulation=False) else 'fp32')
        self.dtype = torch.bfloat16 if self.name == 'bf16' else torch.float32
        self.device_type = device.type
        torch.set_float32_matmul_precision('high' if self.name == 'tf32' else 'highest')
        torch.backends.cudnn.allow_tf32 = self.name == 'tf32'

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.device_type, torch.bfloat16, enabled=self.name == 'bf16')


def compile_model(model: nn.Module, requested: str, device: torch.device) -> bool:
    """Compile `forward` and `features` of a model in place, keeping parameter names. Returns True if compiled.

    `requested` is 'on', 'off' or 'auto', which compiles only on a GPU and falls back to eager mode if compilation
    fails. On a GPU each new input shape is compiled separately: half a minute, but faster kernels than dynamic shapes.
    """
    if requested == 'off' or (requested == 'auto' and device.type != 'cuda'):
        return False
    torch._dynamo.config.recompile_limit = 64
    torch._dynamo.config.suppress_errors = requested == 'auto'
    for name in ('forward', 'features'):
        setattr(model, name, torch.compile(getattr(model, name), dynamic=False if device.type == 'cuda' else None))
    return True


@contextmanager
def deterministic(enabled: bool, device: str) -> Iterator[None]:
    """Use kernels with a fixed order of sums on GPUs, for bitwise reproducible runs; CPU runs always are.

    Enter this context before CUDA is initialised, because cuBLAS reads its setting only then; the setting is not
    restored. Raises UserError if CUDA is already initialised, or if PyTorch is too old.
    """
    if not enabled:
        yield
        return
    if device != 'cpu' and os.environ.get('CUBLAS_WORKSPACE_CONFIG') not in WORKSPACES:
        if torch.cuda.is_initialized():
            raise UserError('--deterministic: CUDA was initialised without CUBLAS_WORKSPACE_CONFIG; set it to '
                            f'{WORKSPACES[0]} before starting')
        os.environ['CUBLAS_WORKSPACE_CONFIG'] = WORKSPACES[0]
    cudnn, inductor = torch.backends.cudnn, torch._inductor.config
    if not hasattr(inductor, 'deterministic'):
        raise UserError(f'--deterministic needs PyTorch 2.10 or newer; this is {torch.__version__}')
    before = (torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled(),
              cudnn.deterministic, cudnn.benchmark, inductor.deterministic)
    try:
        torch.use_deterministic_algorithms(True)
        cudnn.deterministic, cudnn.benchmark = True, False
        inductor.deterministic = True       # do not choose compiled kernels by timing them
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        cudnn.deterministic, cudnn.benchmark, inductor.deterministic = before[2:]


def keep_freed_memory() -> None:
    """Let glibc keep freed memory for later tensors instead of returning it to the system.

    On a CPU, page faults of memory that was returned took 4 % of a pre-training step (docs/performance.md).
    """
    mallopt = getattr(ctypes.CDLL(None), 'mallopt', None)       # missing in other C libraries
    for threshold in (-1, -3):      # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD
        if mallopt:
            mallopt(threshold, 1 << 30)
