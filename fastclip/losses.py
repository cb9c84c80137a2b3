"""The structure loss of boundary-aware segmentation: a function and a module."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fastclip.ops.structure_loss import dispatch as op

_BCE = ("weighted", "mean")
_REDUCTIONS = ("mean", "none")
_LOGIT_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def structure_loss(
    logits: Tensor | Sequence[Tensor],
    mask: Tensor,
    *,
    window: int = 31,
    boundary_weight: float = 5.0,
    smooth: float = 1.0,
    bce: str = "weighted",
    head_weights: Sequence[float] | Tensor | None = None,
    valid: Tensor | None = None,
    reduction: str = "mean",
) -> Tensor:
    """Boundary-weighted BCE + weighted IoU of segmentation logits, forward and backward fused.

    Per image and channel, with ``w = 1 + boundary_weight |avgpool(m, window) - m|`` (zeros outside
    the image are counted), ``s = sigmoid(x)``, ``I = sum(s m w)`` and ``U = sum((s + m) w)``::

        sum(w bce(x, m)) / sum(w) + 1 - (I + smooth) / (U - I + smooth)

    Args:
        logits: [B, C, H, W] before the sigmoid, float16, bfloat16, float32 or float64;
            differentiable. Or a sequence of them: heads under deep supervision by one mask, whose
            weight map is then computed once.
        mask: [B, C, H, W] in [0, 1], any dtype; soft masks are meant as such. Not differentiable.
        window: odd side of the averaging window, in pixels.
        boundary_weight: how much more a pixel weighs whose window is all of the other class; >= 0.
        smooth: added to intersection and union; > 0.
        bce: ``"weighted"`` as in TransFuse and UACANet; ``"mean"``, the plain mean of F3Net,
            PraNet, Polyp-PVT, HarDNet-MSEG, CaraNet and SINet-V2 as published (their
            ``reduce='none'`` is a legacy boolean argument that averages).
        head_weights: one factor per head; 1 each where not given.
        valid: [B, C, H, W] or [B, 1, H, W]; where it is zero a pixel counts nowhere, like the
            outside of the image. An image with no valid pixel has loss 0.
        reduction: ``"mean"`` over batch and channel, summed over heads with their weights; or
            ``"none"``: [B, C], and [heads, B, C] for a sequence of logits, without head weights.

    Returns:
        float32 (float64 for float64 logits), 0-d for ``"mean"``. Gradients have the logits' dtype.

    Raises:
        TypeError: an argument of the wrong type. ValueError: a wrong shape, dtype, device or value.
        RuntimeError: a second derivative is asked for.

    Source: Wei et al., "F3Net", AAAI 2020 (arXiv 1911.11445); Zhang et al., "TransFuse", MICCAI
    2021 (arXiv 2102.08005).
    """
    single = isinstance(logits, Tensor)
    heads = [logits] if isinstance(logits, Tensor) else _sequence(logits)
    _check_tensors(heads, mask)
    _check_options(window, boundary_weight, smooth, bce, reduction)
    valid = _checked_valid(valid, mask)
    options = (int(window), float(boundary_weight), float(smooth), bce == "weighted")
    if reduction == "none":
        if head_weights is not None:
            raise ValueError("head_weights has no meaning with reduction='none': weigh the result")
        loss = op.structure_loss(heads, mask, valid, *options)  # [heads, B, C]
        return loss[0] if single else loss
    weights = _checked_weights(head_weights, len(heads))
    return op.structure_loss_total(heads, mask, valid, weights, *options)


class StructureLoss(nn.Module):
    """The module of :func:`structure_loss`; its arguments, but for the tensors, are the same."""

    def __init__(
        self,
        *,
        window: int = 31,
        boundary_weight: float = 5.0,
        smooth: float = 1.0,
        bce: str = "weighted",
        head_weights: Sequence[float] | Tensor | None = None,
        reduction: str = "mean",
    ) -> None:
        super().__init__()
        _check_options(window, boundary_weight, smooth, bce, reduction)
        self.window = window
        self.boundary_weight = boundary_weight
        self.smooth = smooth
        self.bce = bce
        self.head_weights = None if head_weights is None else tuple(head_weights)
        self.reduction = reduction

    def forward(
        self, logits: Tensor | Sequence[Tensor], mask: Tensor, valid: Tensor | None = None
    ) -> Tensor:
        """The loss of `logits` (one tensor or a sequence of heads) against `mask`."""
        return structure_loss(
            logits,
            mask,
            window=self.window,
            boundary_weight=self.boundary_weight,
            smooth=self.smooth,
            bce=self.bce,
            head_weights=self.head_weights,
            valid=valid,
            reduction=self.reduction,
        )

    def extra_repr(self) -> str:
        return (
            f"window={self.window}, boundary_weight={self.boundary_weight}, "
            f"smooth={self.smooth}, bce={self.bce!r}"
        )


def _sequence(logits: Sequence[Tensor]) -> list[Tensor]:
    try:
        heads = list(logits)
    except TypeError:
        heads = []
    if not heads or not all(isinstance(head, Tensor) for head in heads):
        raise TypeError(
            f"logits must be a tensor or a non-empty sequence of tensors, got {type(logits)}"
        )
    return heads


def _check_tensors(heads: list[Tensor], mask: Tensor) -> None:
    if not isinstance(mask, Tensor):
        raise TypeError(f"mask must be a tensor, got {type(mask)}")
    first = heads[0]
    if first.ndim != 4:
        raise ValueError(f"logits must be [B, C, H, W], got shape {tuple(first.shape)}")
    if first.dtype not in _LOGIT_DTYPES:
        raise ValueError(f"logits must be floating point, got {first.dtype}")
    common = (first.shape, first.dtype, first.device)
    for head in heads[1:]:
        if (head.shape, head.dtype, head.device) != common:
            raise ValueError(
                "all heads must share shape, dtype and device, got "
                f"{tuple(first.shape)} {first.dtype} {first.device} and "
                f"{tuple(head.shape)} {head.dtype} {head.device}"
            )
    if mask.shape != first.shape:
        raise ValueError(
            f"mask must have the logits' shape {tuple(first.shape)}, got {tuple(mask.shape)}"
        )
    if mask.device != first.device:
        raise ValueError(f"mask is on {mask.device}, the logits are on {first.device}")
    if mask.is_complex():
        raise ValueError(f"mask must be real, got {mask.dtype}")
    if mask.requires_grad:
        raise ValueError("mask requires grad, but the loss has no gradient for it: detach it")


def _check_options(
    window: int, boundary_weight: float, smooth: float, bce: str, reduction: str
) -> None:
    if isinstance(window, bool) or not isinstance(window, int):
        raise TypeError(f"window must be an int, got {window!r}")
    if window < 1 or window % 2 == 0:
        raise ValueError(f"window must be odd and positive, got {window}")
    if not 0 <= boundary_weight < math.inf:
        raise ValueError(f"boundary_weight must be finite and >= 0, got {boundary_weight!r}")
    if not 0 < smooth < math.inf:
        raise ValueError(f"smooth must be finite and > 0, got {smooth!r}")
    if bce not in _BCE:
        raise ValueError(f"bce must be one of {_BCE}, got {bce!r}")
    if reduction not in _REDUCTIONS:
        raise ValueError(f"reduction must be one of {_REDUCTIONS}, got {reduction!r}")


def _checked_valid(valid: Tensor | None, mask: Tensor) -> Tensor | None:
    if valid is None:
        return None
    if not isinstance(valid, Tensor):
        raise TypeError(f"valid must be a tensor, got {type(valid)}")
    per_image = (mask.shape[0], 1, *mask.shape[2:])
    if tuple(valid.shape) not in (per_image, tuple(mask.shape)) or valid.device != mask.device:
        raise ValueError(
            f"valid must be {per_image} or have the mask's shape, on {mask.device}; got "
            f"{tuple(valid.shape)} on {valid.device}"
        )
    return valid.detach().expand_as(mask)


def _checked_weights(
    head_weights: Sequence[float] | Tensor | None, heads: int
) -> Sequence[float] | Tensor:
    if head_weights is None:
        return [1.0] * heads
    weights = head_weights if isinstance(head_weights, Tensor) else [float(w) for w in head_weights]
    if len(weights) != heads:
        raise ValueError(
            f"head_weights must hold one number per head ({heads}), got {head_weights!r}"
        )
    return weights
