"""Attention by the fastest way the device has: which kernel runs on a GPU, and one of our own for bf16 on a CPU.

Axis letters: B samples, H heads, L tokens, E width of a head.
"""

import argparse
import contextlib
import logging
import math
import time
from collections.abc import Sequence

import timm.layers
import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from util.dist import World
from util.errors import UserError

log = logging.getLogger(__name__)

KERNELS = {'flash': SDPBackend.FLASH_ATTENTION, 'cudnn': SDPBackend.CUDNN_ATTENTION,      # the first wins a tie
           'efficient': SDPBackend.EFFICIENT_ATTENTION, 'math': SDPBackend.MATH}
# With torch.use_deterministic_algorithms PyTorch's flash and efficient kernels sum gradients in one order, and it lets
# the cuDNN one not run (aten/src/ATen/native/transformers/cuda). Flash is for half precision only; bf16 GPUs have it.
REPEATABLE = {torch.bfloat16: 'flash', torch.float32: 'efficient'}
TIE = 1.05
SCORE_BYTES = 5 << 20       # of scores at once, to stay in the caches; 1.1 MB a head at 750 tokens


class BlockedAttention(torch.autograd.Function):
    """softmax(q kᵀ / √E) v of (B·H, L, E), some heads after the others, their L × L scores never out of the cache.

    Nothing of the scores is kept for the backward pass, which computes them again. On a CPU with bf16 dot products
    it takes about half the time of PyTorch's fused kernel (docs/performance.md).
    """

    @staticmethod
    def forward(ctx, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(q, k, v)
        out = torch.empty_like(q)
        for part in _parts(q):
            out[part] = _weights(q[part], k[part]) @ v[part]
        return out

    @staticmethod
    def backward(ctx, grad: torch.Tensor) -> tuple[torch.Tensor, ...]:
        q, k, v = ctx.saved_tensors
        grads, scale = tuple(torch.empty_like(q) for _ in range(3)), q.shape[-1] ** -.5
        for part in _parts(q):
            weights = _weights(q[part], k[part])
            wanted = grad[part] @ v[part].transpose(1, 2)
            scores = torch.ops.aten._softmax_backward_data(wanted, weights, -1, weights.dtype).mul_(scale)
            torch.bmm(scores, k[part], out=grads[0][part])
            torch.bmm(scores.transpose(1, 2), q[part], out=grads[1][part])
            torch.bmm(weights.transpose(1, 2), grad[part], out=grads[2][part])
        return grads


def _parts(q: torch.Tensor) -> list[slice]:
    heads = max(1, SCORE_BYTES // (q.shape[1] ** 2 * q.element_size()))
    return [slice(first, first + heads) for first in range(0, len(q), heads)]


def _weights(q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
    return ((q * q.shape[-1] ** -.5) @ k.transpose(1, 2)).softmax(dim=-1)


@torch.compiler.disable
def blocked_attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """(B, H, L, E) three times -> (B, H, L, E)"""
    with torch.autocast(q.device.type, enabled=False):
        return BlockedAttention.apply(*(part.flatten(0, 1) for part in (q, k, v))).view(q.shape)


class Attention(timm.layers.Attention):
    """timm's, with `blocked_attention` where that is faster: bf16 on a CPU."""

    def forward(self, x: torch.Tensor, attn_mask: torch.Tensor | None = None, is_causal: bool = False) -> torch.Tensor:
        """(B, L, H·E) -> (B, L, H·E)"""
        half = torch.get_autocast_dtype('cpu') if torch.is_autocast_enabled('cpu') else x.dtype
        masked = attn_mask is not None or is_causal
        if x.device.type != 'cpu' or half != torch.bfloat16 or masked or not self.fused_attn:
            return super().forward(x, attn_mask, is_causal)
        q, k, v = self.qkv(x).unflatten(2, (3, self.num_heads, self.head_dim)).permute(2, 0, 3, 1, 4).unbind(0)
        return self.proj(blocked_attention(q, k, v).transpose(1, 2).flatten(2))

    def weights(self, x: torch.Tensor) -> torch.Tensor:
        """How much each token takes from each, (B, L, H·E) -> (B, H, L, L): a row for who looks, it sums to 1.

        What `forward` multiplies the values with and never shows; for looking at, in evaluation (without dropout).
        """
        q, k, _ = self.qkv(x).unflatten(2, (3, self.num_heads, self.head_dim)).permute(2, 0, 3, 1, 4).unbind(0)
        return _weights(q.flatten(0, 1), k.flatten(0, 1)).unflatten(0, q.shape[:2])


def shape_of(args: argparse.Namespace, num_bodies: int) -> tuple[int, int, int, int]:
    """The attention that takes most of a stage's time, (B, H, L, E): all tokens, at most 64 bodies."""
    tokens = args.num_frames // args.t_patch_size * args.num_joints
    width = getattr(args, 'decoder_dim_feat', args.dim_feat)
    return min(args.batch_size * num_bodies, 64), args.num_heads, tokens, width // args.num_heads


def choose_kernel(wanted: str, world: World, dtype: torch.dtype, shape: tuple[int, int, int, int],
                  backward: bool = True) -> str:
    """Which of PyTorch's attention kernels a GPU runs from now on: the one wanted, or for 'auto' the fastest.

    The fastest is found by timing them at `shape` (B, H, L, E) in `dtype`, some milliseconds; all processes take the
    same. On a CPU there is nothing to choose. With deterministic algorithms the type alone decides (see REPEATABLE).
    Raises UserError for a kernel that does not run here.
    """
    if world.device.type != 'cuda':
        if wanted != 'auto':
            raise UserError(f'--attention {wanted} chooses a kernel of a CUDA GPU; leave it out on a CPU')
        return wanted
    if torch.are_deterministic_algorithms_enabled():
        if wanted == 'cudnn':
            raise UserError('--attention cudnn has no backward pass that is --deterministic; use flash, efficient or '
                            'math')
        if wanted == 'auto':
            return use_kernel(REPEATABLE[dtype])
    tried = [name for name in KERNELS if name != 'math'] if wanted == 'auto' else [wanted]
    found = time_kernels(tried, world.device, dtype, shape, backward)
    seconds = world.sum(torch.tensor([found[name] for name in tried], dtype=torch.float64,
                                     device=world.device)).tolist()
    if not math.isfinite(min(seconds)):
        if wanted != 'auto':
            raise UserError(f'--attention {wanted} does not run on this GPU in {dtype}; use auto')
        return use_kernel('math')
    log.info('attention: %s', ', '.join(f'{name} {1000 * took / world.size:.3f} ms' for name, took in
                                        zip(tried, seconds, strict=True)))
    return use_kernel(next(name for name, took in zip(tried, seconds, strict=True) if took <= TIE * min(seconds)))


def time_kernels(names: Sequence[str], device: torch.device, dtype: torch.dtype, shape: tuple[int, int, int, int],
                 backward: bool = True, rounds: int = 5) -> dict[str, float]:
    """Seconds of a forward (and backward) pass by each kernel, the best of some rounds that they take in turns, after
    others that warm the device up; infinity for one that cannot do it."""
    q, k, v = torch.randn(shape[0], shape[2], 3, shape[1], shape[3], device=device, dtype=dtype,
                          requires_grad=backward).permute(2, 0, 3, 1, 4).unbind(0)
    best, streams = dict.fromkeys(names, math.inf), torch.get_device_module(device)

    def run(name: str) -> None:
        attend = blocked_attention if name == 'blocked' else F.scaled_dot_product_attention
        with sdpa_kernel(KERNELS[name]) if name in KERNELS else contextlib.nullcontext():
            out = attend(q, k, v)
            if backward:
                torch.autograd.grad(out, (q, k, v), torch.ones_like(out))
        streams.synchronize(device)

    for turn in range(-2 if device.type == 'cuda' else -1, rounds):
        for name in list(names):
            began = time.perf_counter()
            try:
                run(name)
            except torch.OutOfMemoryError:
                raise
            except RuntimeError:            # no such kernel for this device, type or width
                names = [other for other in names if other != name]
            else:
                best[name] = min(best[name], time.perf_counter() - began) if turn >= 0 else best[name]
    return best


def use_kernel(name: str) -> str:
    """Lets GPUs run this kernel only, and the plain products where it cannot; 'auto': what PyTorch prefers."""
    torch.backends.cuda.enable_flash_sdp(name in ('flash', 'auto'))
    torch.backends.cuda.enable_cudnn_sdp(name in ('cudnn', 'auto'))
    torch.backends.cuda.enable_mem_efficient_sdp(name in ('efficient', 'auto'))
    torch.backends.cuda.enable_math_sdp(True)
    return name
