"""Masked motion prediction: mask the joint-segments that move and predict their motion (paper, section 3).

Axis letters as in model_transformer.py, and K visible tokens, D' decoder width.
"""

import torch
from torch import nn

from model_transformer import LayerNorm, SkeletonEncoder, init_linear, make_blocks


def patchify(bodies: torch.Tensor, u: int) -> torch.Tensor:
    """Split time into segments, (B, T, V, C) -> (B, P, V, u·C); each token is ordered by frame, then coordinate."""
    return bodies.unflatten(1, (-1, u)).transpose(2, 3).flatten(3)


def motion(bodies: torch.Tensor, stride: int) -> torch.Tensor:
    """Compute the difference x[t + stride] − x[t] of (B, T, V, C), same shape; the last `stride` frames are zero."""
    difference = torch.zeros_like(bodies)
    difference[:, :-stride] = bodies[:, stride:] - bodies[:, :-stride]
    return difference


def motion_intensity(patches: torch.Tensor) -> torch.Tensor:
    """Compute the mean absolute change from the previous segment, (B, P, V, u·C) -> (B, P·V) in metres.

    The first segment takes the value of the second (paper, section 3.3).
    """
    if patches.shape[1] == 1:
        return torch.zeros_like(patches[:, 0, :, 0])
    intensity = (patches[:, 1:] - patches[:, :-1]).abs().mean(dim=3)
    return torch.cat([intensity[:, :1], intensity], dim=1).flatten(1)


def masking_order(intensity: torch.Tensor, tau: float, uniform: torch.Tensor) -> torch.Tensor:
    """Rank the tokens of each body, (B, L) -> (B, L) indices; the first ones stay visible.

    This samples without replacement by Gumbel noise (paper, section 3.3): tokens that move more tend to come later.
    `uniform` (B, L) in [0, 1) is the only randomness. tau = 0 is plain random masking.
    """
    if tau == 0:
        return uniform.argsort(dim=1)
    scale = intensity.amax(dim=1, keepdim=True) * tau + 1e-10
    log_probability = (intensity / scale).softmax(dim=1).log()
    gumbel = -torch.log(-torch.log(uniform + 1e-10) + 1e-10)
    return (log_probability + gumbel).argsort(dim=1)


def normalise(target: torch.Tensor) -> torch.Tensor:
    """Normalise each token (B, L, u·C) to zero mean and unit variance over its own values."""
    mean = target.mean(dim=-1, keepdim=True)
    variance = target.var(dim=-1, keepdim=True)
    return (target - mean) / (variance + 1e-6).sqrt()


class MAMP(SkeletonEncoder):
    """Masked motion predictor: encodes the visible tokens and predicts the motion of the masked ones.

    `target` is 'motion' (temporal difference) or 'joint' (the coordinates; with motion_aware_tau 0 this is the
    SkeletonMAE-style baseline). Raises ValueError if `target` is unknown, num_frames is not a multiple of t_patch_size,
    or a width is not a multiple of num_heads. With `keypoints` '2d', coordinates are x, y and a score, which mask and
    target ignore.
    """

    def __init__(self, dim_in: int = 3, dim_feat: int = 256, decoder_dim_feat: int = 256, depth: int = 8,
                 decoder_depth: int = 5, num_heads: int = 8, mlp_ratio: float = 4, num_frames: int = 120,
                 num_joints: int = 25, t_patch_size: int = 4, norm_skes_loss: bool = True, target: str = 'motion',
                 keypoints: str = '3d'):
        super().__init__(dim_in, dim_feat, depth, num_heads, mlp_ratio, num_frames, num_joints, t_patch_size)
        if target not in ('motion', 'joint'):
            raise ValueError(f"target must be 'motion' or 'joint', not {target!r}")
        if decoder_dim_feat % num_heads:
            raise ValueError(f'decoder_dim_feat {decoder_dim_feat} is not a multiple of num_heads {num_heads}')
        self.norm_skes_loss = norm_skes_loss
        self.target = target
        self.target_dim = 2 if keypoints == '2d' else dim_in        # C'

        self.decoder_embed = nn.Linear(dim_feat, decoder_dim_feat)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, decoder_dim_feat))
        self.decoder_temp_embed = nn.Parameter(torch.zeros(1, self.num_segments, 1, decoder_dim_feat))
        self.decoder_pos_embed = nn.Parameter(torch.zeros(1, 1, num_joints, decoder_dim_feat))
        self.decoder_blocks = make_blocks(decoder_dim_feat, decoder_depth, num_heads, mlp_ratio)
        self.decoder_norm = LayerNorm(decoder_dim_feat)
        self.decoder_pred = nn.Linear(decoder_dim_feat, t_patch_size * self.target_dim)

        for embedding in (self.mask_token, self.decoder_temp_embed, self.decoder_pos_embed):
            nn.init.trunc_normal_(embedding, std=0.02)
        for part in (self.decoder_embed, self.decoder_blocks, self.decoder_pred):
            part.apply(init_linear)

    def forward(self, x: torch.Tensor, mask_ratio: float = 0.9, motion_stride: int = 1,
                motion_aware_tau: float = 0.8, uniform: torch.Tensor | None = None,
                weight: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Predict the masked tokens of clips (N, C, T, V, M) -> loss (), pred (B, L, u·C), mask (B, L), 1 = masked.

        `uniform` (B, L) in [0, 1) replaces the random numbers from which the mask is drawn. `weight` (B,) is 1 for
        bodies that count in the loss and 0 for padding. Mask, target and loss are fp32, even under autocast.
        """
        bodies = self.fold_bodies(x)                                                            # (B, T, V, C)
        ids_keep, ids_restore, mask = self.draw_mask(bodies, mask_ratio, motion_aware_tau, uniform)
        latent = self.forward_encoder(bodies, ids_keep)                                         # (B, K, D)
        pred = self.forward_decoder(latent, ids_restore)                                        # (B, L, u·C)
        counted = mask if weight is None else mask * weight[:, None]                            # (B, L)
        loss = self.forward_loss(bodies, pred, counted, motion_stride)
        return loss, pred, mask

    def draw_mask(self, bodies: torch.Tensor, mask_ratio: float, tau: float,
                  uniform: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Draw the motion-aware mask of bodies (B, T, V, C) (paper, section 3.3).

        Returns ids_keep (B, K), the visible tokens; ids_restore (B, L), the position of each token in the sequence of
        visible, then masked tokens; and mask (B, L) float with 1 = masked.
        """
        num_tokens = self.num_segments * self.num_joints
        num_keep = int(num_tokens * (1 - mask_ratio))      # in double precision, truncated: 74 of 750 at 0.9
        if uniform is None:
            uniform = torch.rand(len(bodies), num_tokens, device=bodies.device)
        with torch.autocast(bodies.device.type, enabled=False):
            intensity = motion_intensity(patchify(bodies[..., :self.target_dim].float(), self.t_patch_size))
            order = masking_order(intensity, tau, uniform)                                      # (B, L)
        ids_keep = order[:, :num_keep]                                                          # (B, K)
        mask = torch.ones(order.shape, device=order.device).scatter_(1, ids_keep, 0.)
        return ids_keep, order.argsort(dim=1), mask

    def forward_encoder(self, bodies: torch.Tensor, ids_keep: torch.Tensor) -> torch.Tensor:
        """Encode the visible tokens of bodies (B, T, V, C) -> (B, K, D), in the order of `ids_keep`."""
        tokens = self.embed(bodies)                                                             # (B, L, D)
        return self.encode(tokens.gather(1, ids_keep[..., None].expand(-1, -1, tokens.shape[2])))

    def forward_decoder(self, latent: torch.Tensor, ids_restore: torch.Tensor) -> torch.Tensor:
        """Put visible and mask tokens back in order and predict every token, (B, K, D) -> (B, L, u·C)."""
        visible = self.decoder_embed(latent)                                                    # (B, K, D')
        masked = self.mask_token.to(visible.dtype).expand(len(visible), ids_restore.shape[1] - visible.shape[1], -1)
        tokens = torch.cat([visible, masked], dim=1)                                            # (B, L, D')
        tokens = tokens.gather(1, ids_restore[..., None].expand(-1, -1, tokens.shape[2]))       # original order
        tokens = tokens + (self.decoder_pos_embed + self.decoder_temp_embed).flatten(1, 2)
        for block in self.decoder_blocks:
            tokens = block(tokens)
        return self.decoder_pred(self.decoder_norm(tokens))

    def prediction_target(self, bodies: torch.Tensor, motion_stride: int) -> torch.Tensor:
        """Compute the target of the decoder, bodies (B, T, V, C) -> (B, L, u·C), normalised if `norm_skes_loss`."""
        bodies = bodies[..., :self.target_dim]
        signal = motion(bodies, motion_stride) if self.target == 'motion' else bodies
        target = patchify(signal, self.t_patch_size).flatten(1, 2)
        return normalise(target) if self.norm_skes_loss else target

    def forward_loss(self, bodies: torch.Tensor, pred: torch.Tensor, mask: torch.Tensor,
                     motion_stride: int) -> torch.Tensor:
        """Compute the mean squared error over the masked tokens of the whole batch (paper, section 3.4)."""
        with torch.autocast(bodies.device.type, enabled=False):
            target = self.prediction_target(bodies.float(), motion_stride)                      # (B, L, u·C)
            error = (pred.float() - target).square().mean(dim=-1)                               # (B, L)
            return (error * mask).sum() / mask.sum()
