"""Optimisers and the learning-rate schedule of the recipes."""

import math

import torch
from torch import nn


def learning_rate(epoch: float, lr: float, min_lr: float, warmup_epochs: float, epochs: float) -> float:
    """Return the learning rate: linear warm-up, then half a cosine from lr to min_lr; `epoch` is fractional."""
    if epoch < warmup_epochs:
        return lr * epoch / warmup_epochs
    progress = (epoch - warmup_epochs) / (epochs - warmup_epochs)
    return min_lr + (lr - min_lr) * 0.5 * (1 + math.cos(math.pi * progress))


def layer_index(name: str, depth: int) -> int:
    """Return the layer of a parameter: 0 for embeddings, i + 1 for encoder block i, depth + 1 for the rest."""
    if name in ('pos_embed', 'temp_embed') or name.startswith('joints_embed.'):
        return 0
    if name.startswith('blocks.'):
        return int(name.split('.')[1]) + 1
    return depth + 1


def param_groups(model: nn.Module, weight_decay: float, layer_decay: float = 1.) -> list[dict]:
    """Group parameters by lr_scale = layer_decay^(depth + 1 − layer) and weight decay (0 for 1-D parameters)."""
    depth = len(model.blocks)
    groups = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        scale = layer_decay ** (depth + 1 - layer_index(name, depth))
        decays = parameter.ndim > 1
        group = groups.setdefault((scale, decays), {'params': [], 'lr_scale': scale,
                                                    'weight_decay': weight_decay if decays else 0.})
        group['params'].append(parameter)
    return list(groups.values())


def adamw(model: nn.Module, betas: tuple[float, float], weight_decay: float,
          layer_decay: float = 1.) -> torch.optim.Optimizer:
    """Return AdamW for pre-training and fine-tuning."""
    return torch.optim.AdamW(param_groups(model, weight_decay, layer_decay), lr=0., betas=betas, fused=True)


def sgd(model: nn.Module, weight_decay: float) -> torch.optim.Optimizer:
    """Return SGD with momentum for the linear probe."""
    return torch.optim.SGD(param_groups(model, weight_decay), lr=0., momentum=0.9, fused=True)


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set the learning rate of every group to lr · lr_scale, in place if it is a tensor (see util/capture.py)."""
    for group in optimizer.param_groups:
        if torch.is_tensor(group['lr']):
            group['lr'].fill_(lr * group['lr_scale'])
        else:
            group['lr'] = lr * group['lr_scale']


def clip_gradients(model: nn.Module, max_norm: float | None) -> torch.Tensor:
    """Return the total gradient norm, and clip it to `max_norm` if that is set."""
    if max_norm:
        return nn.utils.clip_grad_norm_(model.parameters(), max_norm)
    return nn.utils.get_total_norm([weight.grad for weight in model.parameters() if weight.grad is not None])
