"""The loss of `objective`, written with torch's own functions: what fastclip is compared with."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def reference_head_losses(maps: tuple[Tensor, Tensor, Tensor], targets: Tensor) -> Tensor:
    """`objective.head_losses`, as the published trainer computes it: once for each map.

    Source: `structure_loss` of PraNet and TransFuse's training scripts, in float32.
    """
    map_x, map_1, map_2 = maps
    return torch.stack([_structure_loss(head, targets) for head in (map_2, map_1, map_x)])


def _structure_loss(logits: Tensor, targets: Tensor) -> Tensor:
    classes = logits.shape[1]
    logits, targets = logits.float(), targets.float() / 255
    masks, ignored = targets[:, :classes], targets[:, classes:]
    exists = (ignored == 0).float() if ignored.shape[1] else torch.ones_like(masks)
    masks = masks * exists
    weights = exists * (1 + 5 * (F.avg_pool2d(masks, 31, stride=1, padding=15) - masks).abs())
    bce = F.binary_cross_entropy_with_logits(logits, masks, reduction="none")
    bce = (weights * bce).sum((2, 3)) / weights.sum((2, 3)).clamp(min=1)
    predicted = logits.sigmoid()
    inter = (predicted * masks * weights).sum((2, 3))
    union = ((predicted + masks) * weights).sum((2, 3))
    return (bce + 1 - (inter + 1) / (union - inter + 1)).mean()
