"""How a model is computed on its device: the precision of matrix products, and compiled blocks."""

import torch
from torch import nn

from util.errors import UserError
from util.repeat import repeatable


class Precision:
    """How matrix products are computed: fp32, tf32 (GPU) or bf16 autocast."""

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


def compile_blocks(model: nn.Module, wanted: str, device: torch.device) -> bool:
    """Compiles the transformer blocks in place, names unchanged; 'auto' does on a GPU, and runs on when it cannot.

    A block is compiled once for all of its likes, and anew for each number of tokens and each drop path rate; the
    number of bodies may change. Returns whether it does.
    """
    if wanted == 'off' or (wanted == 'auto' and device.type != 'cuda'):
        return False
    torch._dynamo.config.recompile_limit = 64
    torch._dynamo.config.suppress_errors = wanted == 'auto'
    for blocks in (module for name, module in model.named_children() if name in ('blocks', 'decoder_blocks')):
        for block in blocks:
            block.forward = _compiled(block.forward)
    return True


def _compiled(forward):
    """`forward` of tokens (B, L, D) through torch.compile, for each L by itself: a kernel for any L would be slower."""
    compiled = torch.compile(forward)

    def call(tokens: torch.Tensor) -> torch.Tensor:
        torch._dynamo.mark_static(tokens, 1)
        return compiled(tokens)
    return call


compile_model = compile_blocks
deterministic = repeatable
