"""Device functions of the structure loss that add up what programs have stored: no pixels.

They run in the program that comes last, and read past the first cache, which may be older.
"""

# Triton gives types to the arguments of its functions when it compiles them.
# mypy: ignore-errors

import triton
import triton.language as tl

GROUPS = tl.constexpr(16)  # that are read at a time
IMAGES = tl.constexpr(128)


@triton.jit
def finish_image(
    loss,  # [heads, images] from this image on, written
    sums,  # [heads, images, 4] float64, likewise: of v, v bce, w s m and w (s + m), or w u and w
    partial,  # [groups, slots] of the image
    slots,
    images,
    groups,
    smooth,
    HEADS: tl.constexpr,
    PIXEL_IOU: tl.constexpr,
    SLOTS: tl.constexpr,
):
    """Adds up the groups of one image, for every head."""
    slot = tl.arange(0, SLOTS)
    each = tl.zeros([GROUPS, SLOTS], tl.float64)
    for first in range(0, groups, GROUPS):
        group = (first + tl.arange(0, GROUPS))[:, None]
        inside = (group < groups) & (slot < 3 * HEADS + 2)[None, :]
        at = partial + group.to(tl.int64) * slots + slot[None, :]
        each += tl.load(at, mask=inside, other=0, cache_modifier=".cg")
    of_image = tl.sum(each, axis=0)
    v_sum = tl.sum(tl.where(slot == 3 * HEADS, of_image, 0.0))
    common = tl.sum(tl.where(slot == 3 * HEADS + 1, of_image, 0.0))
    for h in tl.static_range(HEADS):
        bce_sum = tl.sum(tl.where(slot == 3 * h, of_image, 0.0))
        intersection = tl.sum(tl.where(slot == 3 * h + 1, of_image, 0.0))
        total = tl.sum(tl.where(slot == 3 * h + 2, of_image, 0.0)) + common
        at = sums + h * images * 4
        tl.store(at, v_sum)
        tl.store(at + 1, bce_sum)
        tl.store(at + 2, intersection)
        tl.store(at + 3, total)
        if PIXEL_IOU:
            iou_loss = intersection / tl.where(total == 0, 1.0, total)
        else:
            iou_loss = 1 - (intersection + smooth) / (total - intersection + smooth)
        value = bce_sum / tl.where(v_sum == 0, 1.0, v_sum) + iou_loss
        tl.store(loss + h * images, tl.where(v_sum == 0, 0.0, value))  # nothing to lose


@triton.jit
def weighted_total(
    total,  # one REAL, written or, but for the FIRST, added to
    loss,  # [heads, images]
    images,
    factors,  # of each head
    HEADS: tl.constexpr,
    FIRST: tl.constexpr,
):
    """The sum of factor * loss over heads and images."""
    each = tl.zeros([IMAGES], tl.float64)
    for h in tl.static_range(HEADS):
        for first in range(0, images, IMAGES):
            image = first + tl.arange(0, IMAGES)
            at = loss + h * images + image
            each += factors[h] * tl.load(at, mask=image < images, other=0, cache_modifier=".cg")
    value = tl.sum(each)
    if not FIRST:
        value += tl.load(total)
    tl.store(total, value)
