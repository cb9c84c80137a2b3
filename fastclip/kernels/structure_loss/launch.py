"""The structure loss through Triton: what is launched, with what.

forward   column_sums   mask -> C: sums of the mask over the rows of each pixel's window
          image_sums    C, mask, logits of all heads -> sums over a few rows of every image
          finish        those -> sums and loss of every head and image
total     weighted_total  the losses -> their sum over images and heads, a factor for each head
backward  gradients     C, mask, logits of all heads, upstream gradient -> gradient of all heads

C, in the dtype of the sums, is the only map beside the gradients; the host reads nothing back.
For 3 heads of 16x1x352x352 in bf16 and a uint8 mask that is 2 + 8 MB, 22 MB and 34 MB of memory
traffic for the three kernels that see pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastclip.kernels.structure_loss.kernels import column_sums, gradients, image_sums
from fastclip.kernels.structure_loss.totals import finish, weighted_total

# Heads of one launch: their addresses are its arguments, so that no table of them is copied to the
# device. A longer list takes more launches, each of which reads C and the mask again.
MAX_HEADS = 4
STRIP_Y, STRIP_X, STRIP_WARPS = 128, 32, 8  # column_sums: 16 pixels a thread
# image_sums, gradients: one warp a program, so no barriers. 4 rows of 16-bit logits, 2 of float32
# and 1 of float64: 16, 8 and 4 pixels a thread. With twice as many, 4 heads spill registers.
ROW_BYTES, BLOCK_X = 8, 128
PIECE = 8  # image_sums: blocks whose sum may be one of float32
GROUPS = 128  # finish
IMAGES = 1024  # weighted_total


def forward(
    loss: Tensor,
    sums: Tensor,
    columns: Tensor,
    heads: Sequence[Tensor],
    mask: Tensor,
    valid: Tensor | None,
    window: int,
    boundary_weight: float,
    smooth: float,
    weighted_bce: bool,
    pixel_iou: bool = False,
    pos_weight: Tensor | None = None,
) -> None:
    """Writes loss [heads, B, C], sums [heads, B, C, 4] (float64) and columns [B, C, H, W].

    All three are contiguous; columns has the sums' dtype, float64 for float64 logits, else float32.
    The caller has made the tensors' device the current one.
    """
    if mask.numel() == 0:
        loss.zero_()
        sums.zero_()
        return
    images, height, width = mask.shape[0] * mask.shape[1], *mask.shape[2:]
    area, kinds = _area(columns, mask, valid)
    rows = _rows(heads, pixel_iou)
    column_sums[(images * -(-width // STRIP_X),)](
        *(*area, min(window // 2, height - 1)),
        **kinds,
        BLOCK_Y=STRIP_Y,
        BLOCK_X=STRIP_X,
        num_warps=STRIP_WARPS,
    )
    groups, slots = -(-height // rows), 3 * len(heads) + 2
    partial = sums.new_empty(images * groups * slots)
    positive = columns if pos_weight is None else pos_weight.contiguous()
    for first in range(0, len(heads), MAX_HEADS):
        some = _contiguous(heads[first : first + MAX_HEADS])
        image_sums[(images * groups,)](
            # The last two slots, the same for all heads, give way to the next launch's.
            *(_from(partial, 3 * first), slots, some),
            *(*area, min(window // 2, width - 1), boundary_weight / window**2, boundary_weight),
            *(smooth, positive),
            **kinds,
            WEIGHTED_BCE=weighted_bce,
            PIXEL_IOU=pixel_iou,
            HAS_POS_WEIGHT=pos_weight is not None,
            SLOTS=triton.next_power_of_2(3 * len(some) + 2),
            IS_WIDE=width > PIECE * BLOCK_X,
            PIECE=PIECE,
            ROWS=rows,
            BLOCK_X=BLOCK_X,
            num_warps=1,
        )
    finish[(len(heads) * images,)](
        *(loss, sums, partial, slots, images, groups, smooth),
        PIXEL_IOU=pixel_iou,
        BLOCK=GROUPS,
        num_warps=1,
        enable_fp_fusion=True,
    )


def total(out: Tensor, loss: Tensor, factors: Sequence[float]) -> None:
    """Writes the sum over heads, images and channels of factors[head] * loss: 0-d."""
    images = loss.shape[1] * loss.shape[2]
    for first in range(0, len(factors), MAX_HEADS):
        some = factors[first : first + MAX_HEADS]
        weighted_total[(1,)](
            *(out, _from(loss, first), images, *_padded(some)),
            HEADS=len(some),
            FIRST=first == 0,
            BLOCK=IMAGES,
            num_warps=4,
            enable_fp_fusion=True,
        )


def backward(
    grads: Sequence[Tensor],
    grad_loss: Tensor,
    factors: Sequence[float],
    sums: Tensor,
    columns: Tensor,
    heads: Sequence[Tensor],
    mask: Tensor,
    valid: Tensor | None,
    window: int,
    boundary_weight: float,
    smooth: float,
    weighted_bce: bool,
    pixel_iou: bool = False,
    pos_weight: Tensor | None = None,
) -> None:
    """Writes grads, contiguous, from what `forward` wrote.

    The upstream gradient is factors[head] * grad_loss [heads, B, C], of any strides.
    """
    if mask.numel() == 0:
        return
    images, height, width = mask.shape[0] * mask.shape[1], *mask.shape[2:]
    area, kinds = _area(columns, mask, valid)
    rows = _rows(heads, pixel_iou)
    positive = columns if pos_weight is None else pos_weight.contiguous()
    for first in range(0, len(heads), MAX_HEADS):
        some = slice(first, first + MAX_HEADS)
        gradients[(images * -(-height // rows),)](
            *(tuple(grads[some]), _contiguous(heads[some]), _from(sums, first), images),
            *(_from(grad_loss, first), *grad_loss.stride(), *_padded(factors[some])),
            *(*area, min(window // 2, width - 1), boundary_weight / window**2, boundary_weight),
            *(smooth, positive),
            **kinds,
            WEIGHTED_BCE=weighted_bce,
            PIXEL_IOU=pixel_iou,
            HAS_POS_WEIGHT=pos_weight is not None,
            ROWS=rows,
            BLOCK_X=BLOCK_X,
            num_warps=1,
        )


def _contiguous(heads: Sequence[Tensor]) -> tuple[Tensor, ...]:
    return tuple(head.contiguous() for head in heads)


def _padded(factors: Sequence[float]) -> list[float]:
    return [*factors, *[0.0] * (MAX_HEADS - len(factors))]


def _from(tensor: Tensor, first: int) -> Tensor:
    return tensor[first:] if first else tensor  # a view costs the host 2 us


def _rows(heads: Sequence[Tensor], pixel_iou: bool) -> int:
    """Rows of a program; half of them where the IoU's quotient of every pixel takes registers."""
    rows = ROW_BYTES // heads[0].element_size()
    return max(1, rows // 2) if pixel_iou else rows


def _area(
    columns: Tensor, mask: Tensor, valid: Tensor | None
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Arguments that the kernels share: columns to width, and the constants that go with them."""
    kinds: dict[str, Any] = {"HAS_VALID": valid is not None, "enable_fp_fusion": True}
    kinds["REAL"] = tl.float64 if columns.dtype == torch.float64 else tl.float32
    mask = mask.contiguous() if mask.dtype in _READABLE else mask.to(columns.dtype).contiguous()
    if valid is None:
        return (columns, mask, mask, 0, 0, *mask.shape[1:]), kinds
    if valid.dtype not in _READABLE:
        valid = valid != 0
    if valid.stride()[2:] != (mask.shape[3], 1):  # but one map for all channels is read as it is
        valid = valid.contiguous()
    return (columns, mask, valid, *valid.stride()[:2], *mask.shape[1:]), kinds


_READABLE = frozenset(
    {torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64}
    | {torch.float16, torch.bfloat16, torch.float32, torch.float64}
)
