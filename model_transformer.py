"""The skeleton transformer: the encoder that every stage shares, and the classifier built on it.

Axis letters, here and in model_mamp.py
    N samples   M bodies (persons)   B = N·M   C coordinates (x, y, z in metres)   T frames   V joints
    u frames per segment   P = T/u segments   L = P·V tokens, segment-major (token = p·V + v)   D width

Parameters have the same names as in the authors' checkpoints, so that those load with strict=True.
"""

from functools import partial

import torch
from timm.layers import PatchDropout
from timm.models.vision_transformer import Block
from torch import nn

from util.attention import Attention

LayerNorm = partial(nn.LayerNorm, eps=1e-5)


def make_blocks(width: int, depth: int, num_heads: int, mlp_ratio: float,
                drop_path_rate: float = 0.) -> nn.ModuleList:
    """Make `depth` pre-norm transformer blocks; stochastic depth grows linearly from 0 to `drop_path_rate`."""
    rates = torch.linspace(0, drop_path_rate, depth, device='cpu').tolist()
    return nn.ModuleList(Block(width, num_heads, mlp_ratio, qkv_bias=True, drop_path=rate, norm_layer=LayerNorm,
                               attn_layer=Attention) for rate in rates)


def init_linear(module: nn.Module) -> None:
    """Initialise a linear layer: Xavier-uniform weights (qkv as one 3D × D matrix), zero biases."""
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        nn.init.zeros_(module.bias)


class JointsEmbed(nn.Module):
    """Embed each joint of each segment of u frames as one token (paper, section 3.2)."""

    def __init__(self, dim_in: int, dim_feat: int, t_patch_size: int):
        super().__init__()
        self.proj = nn.Conv2d(dim_in, dim_feat, kernel_size=(t_patch_size, 1), stride=(t_patch_size, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Embed bodies (B, T, V, C) -> (B, P, V, D)."""
        return self.proj(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


class SkeletonEncoder(nn.Module):
    """A plain transformer over the L = P·V joint-segments of one body.

    Raises ValueError if num_frames is not a multiple of t_patch_size, dim_feat not a multiple of num_heads, or
    patch_drop_rate not in [0, 1).
    """

    def __init__(self, dim_in: int = 3, dim_feat: int = 256, depth: int = 8, num_heads: int = 8,
                 mlp_ratio: float = 4, num_frames: int = 120, num_joints: int = 25, t_patch_size: int = 4,
                 drop_path_rate: float = 0., patch_drop_rate: float = 0.):
        super().__init__()
        if num_frames % t_patch_size:
            raise ValueError(f'num_frames {num_frames} is not a multiple of t_patch_size {t_patch_size}')
        if dim_feat % num_heads:
            raise ValueError(f'dim_feat {dim_feat} is not a multiple of num_heads {num_heads}')
        if not 0 <= patch_drop_rate < 1:
            raise ValueError(f'patch_drop_rate {patch_drop_rate} is not in [0, 1)')
        self.dim_feat = dim_feat
        self.num_joints = num_joints
        self.t_patch_size = t_patch_size
        self.num_segments = num_frames // t_patch_size

        self.joints_embed = JointsEmbed(dim_in, dim_feat, t_patch_size)
        self.temp_embed = nn.Parameter(torch.zeros(1, self.num_segments, 1, dim_feat))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1, num_joints, dim_feat))
        self.patch_drop = PatchDropout(patch_drop_rate, num_prefix_tokens=0) if patch_drop_rate else None
        self.blocks = make_blocks(dim_feat, depth, num_heads, mlp_ratio, drop_path_rate)
        self.norm = LayerNorm(dim_feat)

        nn.init.trunc_normal_(self.temp_embed, std=0.02)
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        self.blocks.apply(init_linear)

    @staticmethod
    def fold_bodies(x: torch.Tensor) -> torch.Tensor:
        """Fold bodies into the batch, (N, C, T, V, M) -> (N·M, T, V, C), sample-major: n0m0, n0m1, n1m0, …"""
        return x.permute(0, 4, 2, 3, 1).flatten(0, 1)

    def embed(self, bodies: torch.Tensor) -> torch.Tensor:
        """Embed bodies (B, T, V, C) as tokens with positions (B, L, D)."""
        return (self.joints_embed(bodies) + self.pos_embed + self.temp_embed).flatten(1, 2)

    def drop_patches(self, tokens: torch.Tensor) -> torch.Tensor:
        """Omit the same number of random segments of each joint in training, (B, P·V, D) -> (B, P'·V, D).

        This is PatchDropout (Liu et al., WACV 2023) over the segments of each joint.
        """
        if self.patch_drop is None:
            return tokens
        by_joint = tokens.unflatten(1, (self.num_segments, self.num_joints)).transpose(1, 2)       # (B, V, P, D)
        remaining = self.patch_drop(by_joint.flatten(0, 1)).unflatten(0, by_joint.shape[:2])             # (B, V, P', D)
        return remaining.transpose(1, 2).flatten(1, 2)

    def encode(self, tokens: torch.Tensor) -> torch.Tensor:
        """Encode all tokens of a body, or any subset of them, (B, K, D) -> (B, K, D)."""
        for block in self.blocks:
            tokens = block(tokens)
        return self.norm(tokens)

    def attention(self, bodies: torch.Tensor, block: int) -> torch.Tensor:
        """Compute the attention weights in block `block`, (B, T, V, C) -> (B, heads, L, L); rows sum to 1."""
        tokens = self.embed(bodies)
        for earlier in self.blocks[:block]:
            tokens = earlier(tokens)
        return self.blocks[block].attn.weights(self.blocks[block].norm1(tokens))

    def features(self, x: torch.Tensor, distinct: tuple[torch.Tensor, torch.Tensor] | None = None) -> torch.Tensor:
        """Encode all tokens of clips (N, C, T, V, M) -> features (N, M, P, V, D).

        `distinct` (see feeder/dataset.py) holds the indices of the bodies to encode (B',), and for each body its
        position among them (B,). In eval mode identical bodies have identical features, so that each needs to be
        encoded only once. With patch dropout, training encodes P' < P segments of each joint.
        """
        bodies = self.fold_bodies(x)
        if distinct is None:
            tokens = self.encode(self.drop_patches(self.embed(bodies)))
        else:
            index, inverse = distinct
            tokens = self.encode(self.embed(bodies[index]))[inverse]
        return tokens.reshape(x.shape[0], x.shape[4], -1, self.num_joints, self.dim_feat)


class LinearHead(nn.Module):
    """Linear layer on batch-normalised mean features (linear evaluation protocol)."""

    def __init__(self, dim_feat: int, num_classes: int):
        super().__init__()
        self.fc = nn.Sequential(nn.BatchNorm1d(dim_feat, affine=False, eps=1e-6), nn.Linear(dim_feat, num_classes))
        nn.init.trunc_normal_(self.fc[1].weight, std=0.01)
        nn.init.zeros_(self.fc[1].bias)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Classify features (N, M, P, V, D) -> logits (N, classes)."""
        return self.fc(features.mean(dim=(1, 2, 3)))


class FinetuneHead(nn.Module):
    """Two-layer classifier on features averaged over segments and bodies, not over joints (fine-tuning protocol)."""

    def __init__(self, dim_feat: int, num_joints: int, num_classes: int, dropout: float, hidden: int = 2048):
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.fc1 = nn.Linear(num_joints * dim_feat, hidden)
        self.bn = nn.BatchNorm1d(hidden)
        self.fc2 = nn.Linear(hidden, num_classes)
        self.apply(init_linear)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Classify features (N, M, P, V, D) -> logits (N, classes)."""
        per_joint = self.dropout(features).mean(dim=2).flatten(2)          # (N, M, V·D)
        return self.fc2(self.bn(self.fc1(per_joint.mean(dim=1))).relu())


class LinearFinetuneHead(nn.Module):
    """The head of the probe, after dropout: fine-tuning with few clips, where two layers overfit."""

    def __init__(self, dim_feat: int, num_classes: int, dropout: float):
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.linear = LinearHead(dim_feat, num_classes)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Classify features (N, M, P, V, D) -> logits (N, classes)."""
        return self.linear(self.dropout(features))


class ActionTransformer(SkeletonEncoder):
    """Encoder and classification head.

    With protocol 'linprobe' the encoder is frozen and stays in eval mode, and only the head is trained. With protocol
    'finetune' everything is trained, with stochastic depth and dropout, and `head` is 'mlp' (the paper's) or 'linear'.
    """

    def __init__(self, num_classes: int, protocol: str, dim_in: int = 3, dim_feat: int = 256, depth: int = 8,
                 num_heads: int = 8, mlp_ratio: float = 4, num_frames: int = 120, num_joints: int = 25,
                 t_patch_size: int = 4, drop_path_rate: float = 0., patch_drop_rate: float = 0., head: str = 'mlp',
                 head_dropout: float = 0.3):
        super().__init__(dim_in, dim_feat, depth, num_heads, mlp_ratio, num_frames, num_joints, t_patch_size,
                         drop_path_rate, patch_drop_rate)
        if protocol not in ('linprobe', 'finetune'):
            raise ValueError(f"protocol must be 'linprobe' or 'finetune', not {protocol!r}")
        if head not in ('mlp', 'linear'):
            raise ValueError(f"head must be 'mlp' or 'linear', not {head!r}")
        self.num_classes = num_classes
        self.frozen = protocol == 'linprobe'
        if self.frozen:
            self.requires_grad_(False)
            self.head = LinearHead(dim_feat, num_classes)
        elif head == 'linear':
            self.head = LinearFinetuneHead(dim_feat, num_classes, head_dropout)
        else:
            self.head = FinetuneHead(dim_feat, num_joints, num_classes, head_dropout)

    def train(self, mode: bool = True) -> 'ActionTransformer':
        super().train(mode and not self.frozen)
        self.head.train(mode)
        self.training = mode
        return self

    def forward(self, x: torch.Tensor, distinct: tuple[torch.Tensor, torch.Tensor] | None = None) -> torch.Tensor:
        """Classify clips (N, C, T, V, M) -> logits (N, classes); `distinct` as in `features`."""
        return self.head(self.features(x, distinct))
