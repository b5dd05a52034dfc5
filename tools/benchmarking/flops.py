"""How much work a clip is, counted from the model's shapes: matrix products and convolutions, 2 FLOPs a multiply-add.

L tokens a body, K of them kept, D encoder and D' decoder width, u frames a segment, C = 3 coordinates. What is not a
matrix product (norms, softmax, GELU, the mask, the optimiser) is bound by memory: that is what the bytes are for.
"""

from argparse import Namespace


def block_flops(tokens: int, width: int, mlp_ratio: float) -> float:
    """One transformer block on one body: qkv and projection, two attention products, two layers of the MLP."""
    linear = 2 * tokens * width * width * (4 + 2 * mlp_ratio)
    return linear + 2 * 2 * tokens * tokens * width


def encoder_flops(args: Namespace, tokens: int) -> float:
    """The encoder on `tokens` of one body's tokens; all of them are embedded."""
    embed = 2 * (args.num_frames // args.t_patch_size) * args.num_joints * args.t_patch_size * 3 * args.dim_feat
    return embed + args.depth * block_flops(tokens, args.dim_feat, args.mlp_ratio)


def clip_flops(stage: str, args: Namespace, bodies: int = 2) -> float:
    """FLOPs of one clip of `bodies` bodies in a step of the stage ('pretrain', 'finetune', 'linprobe', 'evaluate').

    A backward pass costs twice its forward pass; the probe's frozen encoder has none. Every body counts, also one that
    eval mode passes over. The heads (under 0.1 % of a clip) are left out; 'data' is no matrix product at all.
    """
    tokens = args.num_frames // args.t_patch_size * args.num_joints
    if stage == 'data':
        return 0.
    if stage != 'pretrain':
        return (3 if stage == 'finetune' else 1) * bodies * encoder_flops(args, tokens)
    kept = int(tokens * (1 - args.mask_ratio))
    width, values = args.decoder_dim_feat, args.t_patch_size * 3
    decoder = args.decoder_depth * block_flops(tokens, width, args.mlp_ratio)
    ends = 2 * kept * args.dim_feat * width + 2 * tokens * width * values
    return 3 * bodies * (encoder_flops(args, kept) + decoder + ends)


def block_bytes(tokens: int, width: int, mlp_ratio: float, each: int = 2) -> float:
    """Activations that one block's operations read and write in a forward pass on one body, `each` bytes a number.

    Nothing fused but attention, weights and caches left out. In widths a token: two norms 4, qkv 4, attention 4, its
    projection 2, the MLP's layers and GELU 2 + 4 · ratio, two sums 6.
    """
    return each * tokens * width * (4 + 4 + 4 + 2 + 2 + 4 * mlp_ratio + 6)


def clip_bytes(stage: str, args: Namespace, bodies: int = 2) -> float:
    """Bytes of activations a clip moves in the blocks of a stage in bf16; a backward pass twice a forward pass."""
    tokens = args.num_frames // args.t_patch_size * args.num_joints
    if stage == 'data':
        return 0.
    if stage != 'pretrain':
        return (3 if stage == 'finetune' else 1) * bodies * args.depth * block_bytes(tokens, args.dim_feat,
                                                                                     args.mlp_ratio)
    kept = int(tokens * (1 - args.mask_ratio))
    return 3 * bodies * (args.depth * block_bytes(kept, args.dim_feat, args.mlp_ratio)
                         + args.decoder_depth * block_bytes(tokens, args.decoder_dim_feat, args.mlp_ratio))
