"""Triton kernels of the structure loss that add up what others summed: numbers, and no pixels."""

# Triton gives types to the arguments of its functions when it compiles them.
# mypy: ignore-errors

import triton
import triton.language as tl


@triton.jit
def finish(
    loss,  # [heads, images], written
    sums,  # [heads, images, 4] float64, written: of v, v bce, w s m and w (s + m), or w u and w
    partial,  # [images, groups, slots]
    slots,
    images,
    groups,
    smooth: tl.float64,
    PIXEL_IOU: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """A program adds up the groups of one head and image."""
    head, image = tl.program_id(0) // images, tl.program_id(0) % images
    partial += image.to(tl.int64) * groups * slots
    v, bce = tl.zeros([BLOCK], tl.float64), tl.zeros([BLOCK], tl.float64)
    both, either = tl.zeros([BLOCK], tl.float64), tl.zeros([BLOCK], tl.float64)
    for first in range(0, groups, BLOCK):
        group = first + tl.arange(0, BLOCK)
        at, inside = partial + group.to(tl.int64) * slots, group < groups
        bce += tl.load(at + 3 * head, mask=inside, other=0)
        both += tl.load(at + 3 * head + 1, mask=inside, other=0)
        either += tl.load(at + 3 * head + 2, mask=inside, other=0)
        v += tl.load(at + slots - 2, mask=inside, other=0)
        either += tl.load(at + slots - 1, mask=inside, other=0)
    v_sum, bce_sum, intersection, total = tl.sum(v), tl.sum(bce), tl.sum(both), tl.sum(either)
    sums += tl.program_id(0) * 4
    tl.store(sums, v_sum)
    tl.store(sums + 1, bce_sum)
    tl.store(sums + 2, intersection)
    tl.store(sums + 3, total)
    if PIXEL_IOU:
        iou_loss = intersection / tl.where(total == 0, 1.0, total)
    else:
        iou_loss = 1 - (intersection + smooth) / (total - intersection + smooth)
    value = bce_sum / tl.where(v_sum == 0, 1.0, v_sum) + iou_loss
    tl.store(loss + tl.program_id(0), tl.where(v_sum == 0, 0.0, value))  # nothing to lose


@triton.jit
def weighted_total(
    total,  # one REAL: written by the FIRST launch, added to by the others
    loss,  # [heads, images]
    images,
    factor_0: tl.float64,  # of each head
    factor_1: tl.float64,
    factor_2: tl.float64,
    factor_3: tl.float64,
    HEADS: tl.constexpr,
    FIRST: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One program sums factor * loss over heads and images."""
    factors = (factor_0, factor_1, factor_2, factor_3)
    each = tl.zeros([BLOCK], tl.float64)
    for h in tl.static_range(HEADS):
        for first in range(0, images, BLOCK):
            image = first + tl.arange(0, BLOCK)
            each += factors[h] * tl.load(loss + h * images + image, mask=image < images, other=0)
    value = tl.sum(each)
    if not FIRST:
        value += tl.load(total)
    tl.store(total, value)
