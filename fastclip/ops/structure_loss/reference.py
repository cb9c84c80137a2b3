"""The structure loss in plain torch: fallback, oracle and baseline."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from fastclip.ops.structure_loss.shared import real_dtype


def structure_loss_ref(
    logits: Sequence[Tensor],
    mask: Tensor,
    valid: Tensor | None,
    window: int,
    boundary_weight: float,
    smooth: float,
    weighted_bce: bool,
    pixel_iou: bool = False,
    pos_weight: Tensor | None = None,
) -> Tensor:
    """The loss of every head, image and channel: [heads, B, C].

    pos_weight is [C].
    """
    real = real_dtype(logits)
    exists = torch.ones_like(mask, dtype=real) if valid is None else (valid != 0).to(real)
    m = torch.where(exists != 0, mask.to(real), 0)
    w = exists * (1 + boundary_weight * (_pooled(m, window) - m).abs())  # [B, C, H, W]
    v = w if weighted_bce else exists
    positive = None if pos_weight is None else pos_weight.to(real).view(-1, 1, 1)
    pixels = (2, 3)
    v_sum, w_sum = v.sum(pixels), w.sum(pixels)
    empty = v_sum == 0  # no valid pixel: nothing to lose
    losses = []
    for head in logits:
        x = torch.where(exists != 0, head.to(real), 0)
        bce = F.binary_cross_entropy_with_logits(x, m, reduction="none", pos_weight=positive)
        s = x.sigmoid()
        bce_mean = (v * bce).sum(pixels) / v_sum.masked_fill(empty, 1)
        if pixel_iou:
            intersection = s * m
            each = 1 - (intersection + smooth) / (s + m - intersection + smooth)
            iou_loss = (w * each).sum(pixels) / w_sum.masked_fill(empty, 1)
        else:
            intersection = (s * m * w).sum(pixels)
            denominator = ((s + m) * w).sum(pixels) - intersection + smooth
            iou_loss = 1 - (intersection + smooth) / denominator.masked_fill(empty, 1)
        losses.append((bce_mean + iou_loss).masked_fill(empty, 0))
    return torch.stack(losses)


def _pooled(m: Tensor, window: int) -> Tensor:
    """Means over the windows, of whose area the outside of the image is a part."""
    seen = min(window, 2 * max(m.shape[2:]) - 1)  # a wider one sees no more
    pooled = F.avg_pool2d(m, seen, stride=1, padding=seen // 2)
    return pooled if seen == window else pooled * (seen / window) ** 2
