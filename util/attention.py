"""Attention by the fastest kernel for each device: Triton's or PyTorch's on a GPU, blocked products for bf16 on a CPU.

Axis letters: B samples, H heads, L tokens, E width of a head.
"""

from importlib.util import find_spec

import timm.layers
import torch
from torch import nn

from util.errors import UserError

SCORE_BYTES = 5 << 20       # of scores in work, so that they stay in the caches; 1.1 MB per head at 750 tokens


class BlockedAttention(torch.autograd.Function):
    """softmax(q kᵀ / √E) v of (B·H, L, E), a few heads at a time, so that their L × L scores stay in the caches.

    The backward pass recomputes the scores instead of storing them. On a CPU with bf16 dot products it takes about half
    the time of PyTorch's fused kernel (docs/performance.md).
    """

    @staticmethod
    def forward(ctx, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(q, k, v)
        out = torch.empty_like(q)
        for part in _split_heads(q):
            out[part] = _attention_weights(q[part], k[part]) @ v[part]
        return out

    @staticmethod
    def backward(ctx, grad: torch.Tensor) -> tuple[torch.Tensor, ...]:
        q, k, v = ctx.saved_tensors
        dq, dk, dv = (torch.empty_like(q) for _ in range(3))
        scale = q.shape[-1] ** -.5
        for part in _split_heads(q):
            weights = _attention_weights(q[part], k[part])
            dweights = grad[part] @ v[part].transpose(1, 2)
            dscores = torch.ops.aten._softmax_backward_data(dweights, weights, -1, weights.dtype).mul_(scale)
            torch.bmm(dscores, k[part], out=dq[part])
            torch.bmm(dscores.transpose(1, 2), q[part], out=dk[part])
            torch.bmm(weights.transpose(1, 2), grad[part], out=dv[part])
        return dq, dk, dv


def _split_heads(q: torch.Tensor) -> list[slice]:
    heads = max(1, SCORE_BYTES // (q.shape[1] ** 2 * q.element_size()))
    return [slice(first, first + heads) for first in range(0, len(q), heads)]


def _attention_weights(q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
    return ((q * q.shape[-1] ** -.5) @ k.transpose(1, 2)).softmax(dim=-1)


@torch.compiler.disable
def blocked_attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Compute the attention of q, k, v (B, H, L, E) -> (B, H, L, E)."""
    with torch.autocast(q.device.type, enabled=False):
        return BlockedAttention.apply(*(part.flatten(0, 1) for part in (q, k, v))).view(q.shape)


class Attention(timm.layers.Attention):
    """timm's attention, with `blocked_attention` for bf16 on a CPU and, if selected, a Triton kernel on a GPU."""

    triton = None       # the kernel, set by `select_attention`

    def forward(self, x: torch.Tensor, attn_mask: torch.Tensor | None = None, is_causal: bool = False) -> torch.Tensor:
        """(B, L, H·E) -> (B, L, H·E)"""
        dtype = torch.get_autocast_dtype(x.device.type) if torch.is_autocast_enabled(x.device.type) else x.dtype
        blocked = x.device.type == 'cpu' and dtype == torch.bfloat16 and self.fused_attn
        triton = self.triton is not None and x.is_cuda and dtype == torch.bfloat16
        if attn_mask is not None or is_causal or not (blocked or triton):
            return super().forward(x, attn_mask, is_causal)
        qkv = self.qkv(x).unflatten(2, (3, self.num_heads, self.head_dim))                  # (B, L, 3, H, E)
        if triton:
            return self.proj(self.triton(qkv).flatten(2))
        return self.proj(blocked_attention(*qkv.permute(2, 0, 3, 1, 4).unbind(0)).transpose(1, 2).flatten(2))

    def weights(self, x: torch.Tensor) -> torch.Tensor:
        """Compute attention weights from each query to all tokens, (B, L, H·E) -> (B, H, L, L); rows sum to 1.

        This is for figures, in eval mode; `forward` multiplies the values by these weights without storing them.
        """
        q, k = self.queries_and_keys(x)
        return _attention_weights(q.flatten(0, 1), k.flatten(0, 1)).unflatten(0, q.shape[:2])

    def queries_and_keys(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Compute queries and keys, (B, L, H·E) -> two of (B, H, L, E); weights are softmax(q kᵀ / √E)."""
        q, k, _ = self.qkv(x).unflatten(2, (3, self.num_heads, self.head_dim)).permute(2, 0, 3, 1, 4).unbind(0)
        return q, k


def select_attention(model: nn.Module, name: str, device: torch.device) -> None:
    """Select the attention kernel of a model on a GPU: 'auto', 'triton' (for bf16), or one of PyTorch's by name.

    'auto' selects Triton where it can run, and PyTorch's choice elsewhere. Raises UserError if a kernel is selected on
    a CPU, or if it is not reproducible and --deterministic is set.
    """
    if device.type != 'cuda':
        if name != 'auto':
            raise UserError(f'--attention {name} selects a kernel of a CUDA GPU; omit it on a CPU')
        return
    if name == 'cudnn' and torch.are_deterministic_algorithms_enabled():
        raise UserError('--attention cudnn has no deterministic backward pass; use auto, triton, flash or math')
    for kernel, enable in (('flash', torch.backends.cuda.enable_flash_sdp),
                           ('cudnn', torch.backends.cuda.enable_cudnn_sdp),
                           ('efficient', torch.backends.cuda.enable_mem_efficient_sdp)):
        enable(name in (kernel, 'auto', 'triton'))
    for layer in model.modules():
        if isinstance(layer, Attention):
            layer.triton = _find_triton(layer.head_dim, device) if name in ('auto', 'triton') else None
            if name == 'triton' and layer.triton is None:
                raise UserError('--attention triton cannot run here (it needs the package triton, a GPU of compute '
                                f'capability 8 or higher, and heads of width 16, 32, 64 or 128, not {layer.head_dim}); '
                                'use auto')


def _find_triton(width: int, device: torch.device):
    if width not in (16, 32, 64, 128) or torch.cuda.get_device_capability(device)[0] < 8 or find_spec('triton') is None:
        return None
    from util.triton_attention import triton_attention
    return triton_attention
