"""Accuracy and loss as counts, which are summed over batches and processes, so that every sample has the same weight.
"""

import torch
import torch.nn.functional as F


def count_correct(logits: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
    """Count (B, classes), (B,) -> float64 (4,): samples, top-1 correct, top-5 correct, summed cross-entropy."""
    ranked = logits.topk(min(5, logits.shape[1]), dim=1).indices
    hit = ranked == label[:, None]
    loss = F.cross_entropy(logits.float(), label, reduction='sum')
    return torch.stack([torch.full_like(loss, len(label)), hit[:, 0].sum(), hit.sum(), loss]).double()


def summarise(counts: torch.Tensor) -> dict[str, float]:
    """Convert the sums of `count_correct` to top1 and top5 in percent, mean loss and number of samples."""
    samples, top1, top5, loss = counts.tolist()
    return {'top1': 100 * top1 / samples, 'top5': 100 * top5 / samples, 'loss': loss / samples, 'samples': int(samples)}
