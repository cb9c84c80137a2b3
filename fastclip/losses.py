"""The structure loss of boundary-aware segmentation: a function and a module."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from fastclip.ops.structure_loss import arguments
from fastclip.ops.structure_loss import dispatch as op


def structure_loss(
    logits: Tensor | Sequence[Tensor],
    mask: Tensor,
    *,
    window: int = 31,
    boundary_weight: float = 5.0,
    smooth: float = 1.0,
    bce: str = "weighted",
    head_weights: Sequence[float] | Sequence[Tensor] | Tensor | None = None,
    valid: Tensor | None = None,
    reduction: str = "mean",
    iou: str = "image",
    pos_weight: float | Sequence[float] | Tensor | None = None,
) -> Tensor:
    """Boundary-weighted BCE + weighted IoU of segmentation logits, forward and backward fused.

    Per image and channel, with ``w = 1 + boundary_weight |avgpool(m, window) - m|`` (zeros outside
    the image are counted), ``s = sigmoid(x)``, ``I = sum(s m w)`` and ``U = sum((s + m) w)``::

        sum(w bce(x, m)) / sum(w) + 1 - (I + smooth) / (U - I + smooth)

    With ``iou="pixel"`` the second term is ``sum(w u) / sum(w)``, the mean of every pixel's
    ``u = 1 - (s m + smooth) / (s + m - s m + smooth)``.

    Args:
        logits: [B, C, H, W] before the sigmoid, float16, bfloat16, float32 or float64;
            differentiable. Or a sequence of them: heads under deep supervision by one mask, whose
            weight map is then computed once.
            B or C may be 0: the mean is then NaN, as torch's of nothing, the gradient empty.
        mask: [B, C, H, W] in [0, 1], any dtype; soft masks are meant as such. Not differentiable.
        window: odd side of the averaging window, in pixels.
        boundary_weight: how much more a pixel weighs whose window is all of the other class; >= 0.
        smooth: added to intersection and union; > 0.
        bce: ``"weighted"`` as in TransFuse; ``"mean"``, the plain mean of F3Net, PraNet,
            Polyp-PVT, HarDNet-MSEG, CaraNet and SINet-V2 as published (their
            ``reduce='none'`` is a legacy boolean argument that averages).
        head_weights: one factor per head; 1 each where not given. Tensors, a [heads] one or a
            sequence of 0-d ones, are differentiable.
        valid: [B, C, H, W] or [B, 1, H, W]; where it is zero a pixel counts nowhere, like the
            outside of the image. An image with no valid pixel has loss 0.
        reduction: ``"mean"`` over batch and channel, summed over heads with their weights; or
            ``"none"``: [B, C], and [heads, B, C] for a sequence of logits, without head weights.
        iou: ``"image"``, one intersection and union per image and channel, of all models above;
            ``"pixel"`` as in UACANet, whose BCE is the weighted one.
        pos_weight: how much a positive weighs in the BCE, as in torch's; >= 0. One number or one
            per channel: a sequence, or a tensor [C] or [C, 1, 1] (on the logits' device; its
            values are not checked, which would wait for the device). Not differentiable.

    Returns:
        float32 (float64 for float64 logits), 0-d for ``"mean"``. Gradients have the logits' dtype.

    Raises:
        TypeError: an argument of the wrong type. ValueError: a wrong shape, dtype, device or value.
        RuntimeError: a second derivative is asked for.

    Source: Wei et al., "F3Net", AAAI 2020 (arXiv 1911.11445); Zhang et al., "TransFuse", MICCAI
    2021 (arXiv 2102.08005); Kim et al., "UACANet", ACM MM 2021 (arXiv 2107.02368).
    """
    heads = arguments.checked_heads(logits)
    mask = arguments.checked_mask(mask, heads[0])
    arguments.check_options(window, boundary_weight, smooth, bce=bce, iou=iou, reduction=reduction)
    valid = arguments.checked_valid(valid, mask)
    positive = arguments.checked_pos_weight(pos_weight, mask, heads)
    numbers = (int(window), float(boundary_weight), float(smooth))
    options = (*numbers, bce == "weighted", iou == "pixel", positive)
    if reduction == "none":
        if head_weights is not None:
            raise ValueError("head_weights has no meaning with reduction='none': weigh the result")
        loss = op.structure_loss(heads, mask, valid, *options)  # [heads, B, C]
        return loss[0] if isinstance(logits, Tensor) else loss
    weights = arguments.checked_head_weights(head_weights, len(heads))
    return op.structure_loss_total(heads, mask, valid, weights, *options)


class StructureLoss(nn.Module):
    """The module of :func:`structure_loss`; its arguments, but for the tensors, are the same.

    A parameter as `head_weights` (or a sequence of parameters) is one of the module's; another
    tensor, and a tensor as `pos_weight`, follows the module to its device, and is no part of its
    state_dict.
    """

    head_weights: Sequence[float] | Sequence[Tensor] | Tensor | None
    pos_weight: float | Sequence[float] | Tensor | None

    def __init__(
        self,
        *,
        window: int = 31,
        boundary_weight: float = 5.0,
        smooth: float = 1.0,
        bce: str = "weighted",
        head_weights: Sequence[float] | Sequence[Tensor] | Tensor | None = None,
        reduction: str = "mean",
        iou: str = "image",
        pos_weight: float | Sequence[float] | Tensor | None = None,
    ) -> None:
        super().__init__()
        arguments.check_options(
            window, boundary_weight, smooth, bce=bce, iou=iou, reduction=reduction
        )
        if head_weights is not None and reduction == "none":
            raise ValueError("head_weights has no meaning with reduction='none': weigh the result")
        self.window = window
        self.boundary_weight = boundary_weight
        self.smooth = smooth
        self.bce = bce
        self.reduction = reduction
        self.iou = iou
        self._keep_head_weights(head_weights)
        if isinstance(pos_weight, Tensor):
            self.register_buffer("pos_weight", pos_weight, persistent=False)
        else:
            if pos_weight is not None:
                arguments.positive_numbers(pos_weight)
            self.pos_weight = pos_weight

    def _keep_head_weights(
        self, head_weights: Sequence[float] | Sequence[Tensor] | Tensor | None
    ) -> None:
        if head_weights is None or isinstance(head_weights, nn.Parameter | nn.ParameterList):
            self.head_weights = head_weights
        elif isinstance(head_weights, Tensor):
            self.register_buffer("head_weights", head_weights, persistent=False)
        else:
            each: Any = tuple(head_weights)
            arguments.checked_head_weights(each, len(each))
            all_parameters = all(isinstance(weight, nn.Parameter) for weight in each)
            kept: Any = nn.ParameterList(each) if each and all_parameters else each
            self.head_weights = kept

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
            iou=self.iou,
            pos_weight=self.pos_weight,
        )

    def extra_repr(self) -> str:
        text = (
            f"window={self.window}, boundary_weight={self.boundary_weight}, "
            f"smooth={self.smooth}, bce={self.bce!r}, iou={self.iou!r}"
        )
        for name in ("head_weights", "pos_weight"):
            value = getattr(self, name)
            if value is not None and not isinstance(value, nn.Module):
                text += f", {name}={value.tolist() if isinstance(value, Tensor) else value}"
        return text if self.reduction == "mean" else f"{text}, reduction={self.reduction!r}"
