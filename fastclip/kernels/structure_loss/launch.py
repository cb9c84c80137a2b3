"""The structure loss through Triton: what is launched, with what.

forward   column_sums  mask -> C: sums of the mask over the rows of each pixel's window
          image_sums   C, mask, logits of all heads -> sums, loss of every head and image, total
backward  gradients    C, mask, logits of all heads, upstream gradient -> gradient of all heads

C, in the dtype of the sums, is the only map beside the gradients; the host reads nothing back.
For 3 heads of 16x1x352x352 in bf16 and a uint8 mask that is 2 + 8 MB, 22 MB and 34 MB of memory
traffic. Logits, mask and gradients lie as they lie, channels last too.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastclip.kernels.structure_loss.columns import column_sums
from fastclip.kernels.structure_loss.kernels import gradients, image_sums

# Heads of one launch: their addresses are its arguments, so that no table of them is copied to the
# device. A longer list takes more launches, each of which reads C and the mask again.
MAX_HEADS = 4
# column_sums: 8 pixels a thread, 4 of float64, of which 8 spill registers on sm_120.
STRIP_BYTES, STRIP_X, STRIP_WARPS = 256, 32, 8
# image_sums, gradients: one warp a program, so no barriers between warps. 4 rows of 16-bit logits,
# 2 of float32 and 1 of float64: 16, 8 and 4 pixels a thread. With twice as many, 4 heads spill
# registers. Where rows are short, so are blocks, and a program has two rows or more.
ROW_BYTES, BLOCK_X, LEAST_X = 8, 128, 64
PIECE = 8  # image_sums: blocks whose sum may be one of float32


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
    total: Tensor | None = None,
    factors: Sequence[float] = (),
) -> None:
    """Writes loss [heads, B, C], sums [heads, B, C, 4] (float64) and columns [B, C, H, W].

    All three are contiguous; columns has the sums' dtype, float64 for float64 logits, else float32.
    With `total`, 0-d, that becomes the sum over heads, images and channels of factors[head] * loss.
    The caller has made the tensors' device the current one.
    """
    if mask.numel() == 0:
        for written in (loss, sums, *([] if total is None else [total])):
            written.zero_()
        return
    images, height, width = mask.shape[0] * mask.shape[1], *mask.shape[2:]
    tickets = sums.new_empty(images + 1, dtype=torch.int32)
    area, kinds = _area(columns, mask, valid)
    read = _alike(heads, heads)
    is_heavy = pixel_iou or pos_weight is not None
    rows, block = _rows(read, width, is_heavy or max(read[0].stride(3), mask.stride(3)) > 1)
    column_sums[(images * -(-width // STRIP_X),)](
        *(columns, tickets, images, *area, min(window // 2, height - 1)),
        **kinds,
        BLOCK_Y=STRIP_BYTES // columns.element_size(),
        BLOCK_X=STRIP_X,
        num_warps=STRIP_WARPS,
    )
    groups, slots = -(-height // rows), 3 * len(heads) + 2
    partial = sums.new_empty(images * groups * slots)
    positive = columns if pos_weight is None else pos_weight.contiguous()
    for first in range(0, len(heads), MAX_HEADS):
        some = tuple(read[first : first + MAX_HEADS])
        image_sums[(images * groups,)](
            # The last two slots, the same for all heads, give way to the next launch's.
            *(_from(partial, 3 * first), slots, _from(loss, first), _from(sums, first)),
            *(loss if total is None else total, tickets, images),
            *(*_padded(factors[first : first + MAX_HEADS]), some, *some[0].stride(), columns),
            *(*area, min(window // 2, width - 1), boundary_weight / window**2, boundary_weight),
            *(smooth, positive),
            **kinds,
            WEIGHTED_BCE=weighted_bce,
            PIXEL_IOU=pixel_iou,
            HAS_POS_WEIGHT=pos_weight is not None,
            SLOTS=triton.next_power_of_2(3 * len(some) + 2),
            HAS_TOTAL=total is not None,
            FIRST=first == 0,
            IS_WIDE=width > PIECE * block,
            PIECE=PIECE,
            ROWS=rows,
            BLOCK_X=block,
            num_warps=1,
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
    """Writes grads, which all lie in one way, from what `forward` wrote.

    The upstream gradient is factors[head] * grad_loss [heads, B, C], of any strides.
    """
    if mask.numel() == 0:
        return
    images, height, width = mask.shape[0] * mask.shape[1], *mask.shape[2:]
    area, kinds = _area(columns, mask, valid)
    read = _alike(heads, grads)
    is_heavy = pixel_iou or pos_weight is not None
    rows, block = _rows(read, width, is_heavy or max(read[0].stride(3), mask.stride(3)) > 1)
    positive = columns if pos_weight is None else pos_weight.contiguous()
    for first in range(0, len(heads), MAX_HEADS):
        some = slice(first, first + MAX_HEADS)
        gradients[(images * -(-height // rows),)](
            *(tuple(grads[some]), tuple(read[some]), *read[0].stride()),
            *(_from(sums, first), images),
            *(_from(grad_loss, first), *grad_loss.stride(), *_padded(factors[some]), columns),
            *(*area, min(window // 2, width - 1), boundary_weight / window**2, boundary_weight),
            *(smooth, positive),
            **kinds,
            WEIGHTED_BCE=weighted_bce,
            PIXEL_IOU=pixel_iou,
            HAS_POS_WEIGHT=pos_weight is not None,
            ROWS=rows,
            BLOCK_X=block,
            num_warps=1,
        )


def _alike(heads: Sequence[Tensor], like: Sequence[Tensor]) -> list[Tensor]:
    """The heads where all lie as the first of `like` does, else copies that do."""
    stride = like[0].stride()
    return [
        head if head.stride() == stride else torch.empty_like(like[0]).copy_(head) for head in heads
    ]


def _padded(factors: Sequence[float]) -> list[float]:
    return [*factors, *[0.0] * (MAX_HEADS - len(factors))]


def _from(tensor: Tensor, first: int) -> Tensor:
    return tensor[first:] if first else tensor  # a view costs the host 2 us


def _rows(heads: Sequence[Tensor], width: int, is_heavy: bool) -> tuple[int, int]:
    """Rows of a program, and the pixels of a block of a row.

    Half the rows where more is kept of each pixel: the IoU's quotient, a weight of positives, or,
    where the pixels of a row lie apart, each one's address.
    """
    block = max(LEAST_X, min(BLOCK_X, triton.next_power_of_2(width)))
    rows = ROW_BYTES // heads[0].element_size()
    rows = rows // 2 if is_heavy else rows
    return max(1 if block == BLOCK_X else 2, rows), block


def _area(
    columns: Tensor, mask: Tensor, valid: Tensor | None
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Arguments that the kernels share: mask to width, and the constants that go with them."""
    kinds: dict[str, Any] = {"HAS_VALID": valid is not None, "enable_fp_fusion": True}
    kinds["REAL"] = tl.float64 if columns.dtype == torch.float64 else tl.float32
    mask = mask if mask.dtype in _READABLE else mask.to(columns.dtype)
    own = (mask, *mask.stride())
    if valid is None:
        return (*own, mask, 0, 0, *mask.shape[1:]), kinds
    if valid.dtype not in _READABLE:
        valid = valid != 0
    if valid.stride()[2:] != (mask.shape[3], 1):  # but one map for all channels is read as it is
        valid = valid.contiguous()
    return (*own, valid, *valid.stride()[:2], *mask.shape[1:]), kinds


_READABLE = frozenset(
    {torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64}
    | {torch.float16, torch.bfloat16, torch.float32, torch.float64}
)
