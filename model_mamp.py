"""Masked motion prediction: hide the joint-segments that move, predict their motion (ICCV 2023, section 3).

Axis letters: see model_transformer.py; besides them K tokens kept, D' decoder width.
"""

import torch
from torch import nn

from model_transformer import LayerNorm, SkeletonEncoder, init_linear, make_blocks


def patchify(bodies: torch.Tensor, u: int) -> torch.Tensor:
    """(B, T, V, C) -> (B, P, V, u·C), each token frame-major, then coordinate."""
    return bodies.unflatten(1, (-1, u)).transpose(2, 3).flatten(3)


def motion(bodies: torch.Tensor, stride: int) -> torch.Tensor:
    """x[t + stride] − x[t] along time, the last `stride` frames zero; same shape as `bodies` (B, T, V, C)."""
    moved = torch.zeros_like(bodies)
    moved[:, :-stride] = bodies[:, stride:] - bodies[:, :-stride]
    return moved


def motion_intensity(patches: torch.Tensor) -> torch.Tensor:
    """How much each joint-segment differs from the one before, (B, P, V, u·C) -> (B, P·V), in metres.

    The first segment takes the second one's value (paper, section 3.3).
    """
    if patches.shape[1] == 1:
        return torch.zeros_like(patches[:, 0, :, 0])
    intensity = (patches[:, 1:] - patches[:, :-1]).abs().mean(dim=3)
    return torch.cat([intensity[:, :1], intensity], dim=1).flatten(1)


def masking_order(intensity: torch.Tensor, tau: float, uniform: torch.Tensor) -> torch.Tensor:
    """Tokens of each body in the order in which they are kept, (B, L) -> (B, L) indices.

    Sampling without replacement by Gumbel noise: the more a token moves, the later it comes. `uniform` (B, L) in
    [0, 1) is the only randomness; tau = 0 is plain random masking.
    """
    if tau == 0:
        return uniform.argsort(dim=1)
    scale = intensity.amax(dim=1, keepdim=True) * tau + 1e-10
    log_probability = (intensity / scale).softmax(dim=1).log()
    gumbel = -torch.log(-torch.log(uniform + 1e-10) + 1e-10)
    return (log_probability + gumbel).argsort(dim=1)


def normalise(target: torch.Tensor) -> torch.Tensor:
    """Zero mean and unit variance over each token's own values, (B, L, u·C)."""
    mean = target.mean(dim=-1, keepdim=True)
    variance = target.var(dim=-1, keepdim=True)
    return (target - mean) / (variance + 1e-6).sqrt()


class MAMP(SkeletonEncoder):
    """Encoder on the kept tokens, light decoder on all, motion of the masked ones as target.

    target 'motion': temporal difference; 'joint': the coordinates themselves (with motion_aware_tau 0 this is the
    SkeletonMAE-style baseline). Raises ValueError for sizes that do not divide or an unknown target.
    """

    def __init__(self, dim_in: int = 3, dim_feat: int = 256, decoder_dim_feat: int = 256, depth: int = 8,
                 decoder_depth: int = 5, num_heads: int = 8, mlp_ratio: float = 4, num_frames: int = 120,
                 num_joints: int = 25, t_patch_size: int = 4, norm_skes_loss: bool = True, target: str = 'motion'):
        super().__init__(dim_in, dim_feat, depth, num_heads, mlp_ratio, num_frames, num_joints, t_patch_size)
        if target not in ('motion', 'joint'):
            raise ValueError(f"target is 'motion' or 'joint', not {target!r}")
        if decoder_dim_feat % num_heads:
            raise ValueError(f'decoder_dim_feat {decoder_dim_feat} is not a multiple of num_heads {num_heads}')
        self.norm_skes_loss = norm_skes_loss
        self.target = target

        self.decoder_embed = nn.Linear(dim_feat, decoder_dim_feat)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, decoder_dim_feat))
        self.decoder_temp_embed = nn.Parameter(torch.zeros(1, self.num_segments, 1, decoder_dim_feat))
        self.decoder_pos_embed = nn.Parameter(torch.zeros(1, 1, num_joints, decoder_dim_feat))
        self.decoder_blocks = make_blocks(decoder_dim_feat, decoder_depth, num_heads, mlp_ratio)
        self.decoder_norm = LayerNorm(decoder_dim_feat)
        self.decoder_pred = nn.Linear(decoder_dim_feat, t_patch_size * dim_in)

        for embedding in (self.mask_token, self.decoder_temp_embed, self.decoder_pos_embed):
            nn.init.trunc_normal_(embedding, std=0.02)
        for part in (self.decoder_embed, self.decoder_blocks, self.decoder_pred):
            part.apply(init_linear)

    def forward(self, x: torch.Tensor, mask_ratio: float = 0.9, motion_stride: int = 1,
                motion_aware_tau: float = 0.8, uniform: torch.Tensor | None = None, skip_empty_bodies: bool = False):
        """Clips (N, C, T, V, M) -> loss (), pred (B, L, u·C), mask (B, L) with 1 = masked.

        `uniform` (B, L) replaces the one random draw of the mask. Mask, target and loss are fp32 under any autocast.
        `skip_empty_bodies` leaves out bodies that are all zeros, unless all are: B is then what remains. The authors
        train on them too, so the loss is another: a mean without those tokens, whose motion is nothing.
        """
        bodies = self.fold_bodies(x)
        if skip_empty_bodies:
            seen = (bodies != 0).flatten(1).any(dim=1)
            seen = (seen | ~seen.any()).nonzero().squeeze(1)        # waits for the device
            bodies, uniform = bodies[seen], uniform if uniform is None else uniform[seen]
        order = self.draw_order(bodies, motion_aware_tau, uniform)
        latent = self.encode_kept(bodies, order, mask_ratio)
        pred = self.decode(latent, order)
        mask = self.mask_of(order, num_kept=latent.shape[1])
        loss = self.masked_loss(bodies, pred, mask, motion_stride)
        return loss, pred, mask

    def draw_order(self, bodies: torch.Tensor, tau: float, uniform: torch.Tensor | None = None) -> torch.Tensor:
        """(B, T, V, C) -> (B, L) token indices, the first of which are kept."""
        if uniform is None:
            uniform = torch.rand(len(bodies), self.num_segments * self.num_joints, device=bodies.device)
        with torch.autocast(bodies.device.type, enabled=False):
            return masking_order(motion_intensity(patchify(bodies.float(), self.t_patch_size)), tau, uniform)

    def encode_kept(self, bodies: torch.Tensor, order: torch.Tensor, mask_ratio: float) -> torch.Tensor:
        """-> latent (B, K, D), in the order of `order`."""
        tokens = self.embed(bodies)
        num_kept = int(tokens.shape[1] * (1 - mask_ratio))      # double arithmetic, truncated: 74 of 750 at 0.9
        kept = order[:, :num_kept, None].expand(-1, -1, tokens.shape[2])
        return self.encode(tokens.gather(1, kept))

    def decode(self, latent: torch.Tensor, order: torch.Tensor) -> torch.Tensor:
        """Puts kept and mask tokens in their places and predicts every token, -> (B, L, u·C)."""
        kept = self.decoder_embed(latent)
        masked = self.mask_token.to(kept.dtype).expand(len(kept), order.shape[1] - kept.shape[1], -1)
        tokens = torch.cat([kept, masked], dim=1)
        place = order.argsort(dim=1)[..., None].expand(-1, -1, tokens.shape[2])
        tokens = tokens.gather(1, place) + (self.decoder_pos_embed + self.decoder_temp_embed).flatten(1, 2)
        for block in self.decoder_blocks:
            tokens = block(tokens)
        return self.decoder_pred(self.decoder_norm(tokens))

    @staticmethod
    def mask_of(order: torch.Tensor, num_kept: int) -> torch.Tensor:
        """(B, L) float, 1 where the token is masked."""
        return torch.ones(order.shape, device=order.device).scatter_(1, order[:, :num_kept], 0.)

    def target_of(self, bodies: torch.Tensor, motion_stride: int) -> torch.Tensor:
        """What the decoder should say, (B, T, V, C) -> (B, L, u·C)."""
        signal = motion(bodies, motion_stride) if self.target == 'motion' else bodies
        target = patchify(signal, self.t_patch_size).flatten(1, 2)
        return normalise(target) if self.norm_skes_loss else target

    def masked_loss(self, bodies: torch.Tensor, pred: torch.Tensor, mask: torch.Tensor,
                    motion_stride: int) -> torch.Tensor:
        """Mean squared error over the masked tokens of the whole batch."""
        with torch.autocast(bodies.device.type, enabled=False):
            error = (pred.float() - self.target_of(bodies.float(), motion_stride)).square().mean(dim=-1)
            return (error * mask).sum() / mask.sum()
