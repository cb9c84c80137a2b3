"""Triton kernels of the structure loss that see logits, in the order of their launches.

Notation: m mask, x logit, s = sigmoid(x), w boundary weight, v weight of the BCE term (w, or 1 for
a plain mean), u a pixel's IoU loss, p weight of a positive; REAL is the dtype of all arithmetic but
that of long sums; an image is one channel of one of the batch.

A window's sum slides: it is the running sum of (pixel that enters - pixel that leaves), so a pixel
costs two loads in each direction at any window, and rounding errors are those of one window, not of
a whole row. All sums have a fixed order: only tickets are counted atomically, which tell the
program that comes last to add up what the others have stored.
"""

# Triton gives types to the arguments of its functions when it compiles them.
# mypy: ignore-errors

import triton
import triton.language as tl

from fastclip.kernels.structure_loss.tile import (
    image_gradient_factors,
    log1p,
    pixel_gradient_factors,
    pixel_iou_loss,
    pixel_iou_slope,
    read_mask,
    rows_of_program,
    sigmoid,
    slide,
    weigh,
    window_before,
)
from fastclip.kernels.structure_loss.totals import finish_image, weighted_total


@triton.jit
def image_sums(
    # [images, groups, slots] float64, written: 3 slots for every head, 2 for all together
    partial,
    slots,
    loss,  # [heads, images], written
    sums,  # [heads, images, 4] float64, written
    total,  # one REAL: written where this is the FIRST launch, added to by the others
    tickets,  # [images + 1] int32: zeros
    images,
    factor_0: tl.float64,  # of each head in the total
    factor_1: tl.float64,
    factor_2: tl.float64,
    factor_3: tl.float64,
    heads,  # tuple of [batch, channels, height, width] with strides for each, of all the same
    head_batch_stride,
    head_channel_stride,
    head_row_stride,
    head_pixel_stride,
    columns,  # [images, height, width] REAL
    mask,  # [batch, channels, height, width] with strides for each
    mask_batch_stride,
    mask_channel_stride,
    mask_row_stride,
    mask_pixel_stride,
    valid,  # as above, with strides for batch and channels
    valid_batch_stride,
    valid_channel_stride,
    channels,
    height,
    width,
    radius,  # < width
    share: tl.float64,  # boundary_weight / window area
    boundary_weight: tl.float64,
    smooth: tl.float64,
    pos_weight,  # [channels] REAL
    WEIGHTED_BCE: tl.constexpr,
    PIXEL_IOU: tl.constexpr,
    HAS_POS_WEIGHT: tl.constexpr,
    REAL: tl.constexpr,
    HAS_VALID: tl.constexpr,
    SLOTS: tl.constexpr,
    HAS_TOTAL: tl.constexpr,
    FIRST: tl.constexpr,
    IS_WIDE: tl.constexpr,  # a float32 sum over so wide a row would lose digits
    PIECE: tl.constexpr,  # blocks that are summed in REAL, then
    ROWS: tl.constexpr,
    BLOCK_X: tl.constexpr,
):
    """A program sums v bce, w s m, w s of every head, and v, w m, over a group of ROWS rows.

    Where the IoU is formed per pixel those of w s m, w s and w m are w u, nothing and w.
    """
    image, y, rows, row = rows_of_program(height, width, ROWS)
    mask_row = image // channels * mask_batch_stride + image % channels * mask_channel_stride
    mask_row += y * mask_row_stride
    head_row = image // channels * head_batch_stride + image % channels * head_channel_stride
    head_row += y * head_row_stride
    valid += image // channels * valid_batch_stride + image % channels * valid_channel_stride
    valid -= image * height * width  # as row counts from the first image
    slot = tl.arange(0, SLOTS)
    common: tl.constexpr = 3 * len(heads)
    p = tl.load(pos_weight + image % channels) if HAS_POS_WEIGHT else 1.0

    before = window_before(columns, row, rows, radius, REAL, BLOCK_X)
    parts = tl.zeros([SLOTS], REAL)
    if IS_WIDE:
        long = partial + tl.program_id(0).to(tl.int64) * slots + slot
        tl.store(long, parts, mask=slot < common + 2)
    for x0 in range(0, width, BLOCK_X):
        x = x0 + tl.arange(0, BLOCK_X)[None, :]
        inside = rows & (x < width)
        box, before = slide(columns, row, x, inside, before, width, radius)
        across = x.to(tl.int64)
        m_at, at = mask_row + across * mask_pixel_stride, head_row + across * head_pixel_stride
        m, exists = read_mask(mask, m_at, valid, row + x, inside, REAL, HAS_VALID)
        w = weigh(box, m, exists, share, boundary_weight, REAL)
        v = w if WEIGHTED_BCE else exists.to(REAL)
        for h in tl.static_range(len(heads)):
            logit = tl.load(heads[h] + at, mask=exists, other=0).to(REAL)
            e, r, s = sigmoid(logit)
            # Torch's terms, so that an infinite logit gives its infinity or its NaN.
            if HAS_POS_WEIGHT:
                below, log = tl.minimum(logit, 0.0), log1p(e, REAL)
                bce = (1 - m) * (logit - below + log) + p * m * (log - below)
            else:
                bce = (1 - m) * logit - tl.minimum(logit, 0.0) + log1p(e, REAL)
            parts += tl.where(slot == 3 * h, tl.sum(v * bce), 0.0)
            if PIXEL_IOU:
                # 1 - s from its own terms keeps its digits near 0.
                u = pixel_iou_loss(s, tl.where(logit >= 0, e * r, r), m, smooth, REAL)
                parts += tl.where(slot == 3 * h + 1, tl.sum(w * u), 0.0)
            else:
                ws = w * s
                parts += tl.where(slot == 3 * h + 1, tl.sum(ws * m), 0.0)
                parts += tl.where(slot == 3 * h + 2, tl.sum(ws), 0.0)
        parts += tl.where(slot == common, tl.sum(v), 0.0)
        parts += tl.where(slot == common + 1, tl.sum(w if PIXEL_IOU else w * m), 0.0)
        if IS_WIDE:  # noqa: SIM102 (this alone is known when it is compiled)
            if (x0 // BLOCK_X) % PIECE == PIECE - 1:
                so_far = tl.load(long, mask=slot < common + 2, other=0)
                tl.store(long, so_far + parts, mask=slot < common + 2)
                parts = tl.zeros([SLOTS], REAL)
    if IS_WIDE:
        parts = parts + tl.load(long, mask=slot < common + 2, other=0)
    mine = partial + tl.program_id(0).to(tl.int64) * slots
    tl.store(mine + slot, parts, mask=slot < common + 2)

    groups = (height + ROWS - 1) // ROWS
    tl.debug_barrier()  # all lanes have stored before one of them says so
    if tl.atomic_add(tickets + image, 1, sem="acq_rel") == groups - 1:
        tl.store(tickets + image, 0)  # for the launch of more heads
        finish_image(
            loss + image,
            sums + image * 4,
            partial + image * groups * slots,
            *(slots, images, groups, smooth),
            HEADS=len(heads),
            PIXEL_IOU=PIXEL_IOU,
            SLOTS=SLOTS,
        )
        if HAS_TOTAL:
            tl.debug_barrier()
            if tl.atomic_add(tickets + images, 1, sem="acq_rel") == images - 1:
                tl.store(tickets + images, 0)
                factors = (factor_0, factor_1, factor_2, factor_3)
                weighted_total(total, loss, images, factors, HEADS=len(heads), FIRST=FIRST)


@triton.jit
def gradients(
    grads,  # tuple of tensors as the heads, written
    heads,  # tuple of [batch, channels, height, width] with strides for each, of all the same
    head_batch_stride,
    head_channel_stride,
    head_row_stride,
    head_pixel_stride,
    sums,  # [heads, images, 4] float64
    images,
    upstream,  # [heads, batch, channels] with strides for each
    upstream_head_stride,
    upstream_batch_stride,
    upstream_channel_stride,
    factor_0: tl.float64,  # of each head's upstream gradient
    factor_1: tl.float64,
    factor_2: tl.float64,
    factor_3: tl.float64,
    columns,  # [images, height, width] REAL
    mask,  # [batch, channels, height, width] with strides for each
    mask_batch_stride,
    mask_channel_stride,
    mask_row_stride,
    mask_pixel_stride,
    valid,  # as above, with strides for batch and channels
    valid_batch_stride,
    valid_channel_stride,
    channels,
    height,
    width,
    radius,  # < width
    share: tl.float64,
    boundary_weight: tl.float64,
    smooth: tl.float64,
    pos_weight,  # [channels] REAL
    WEIGHTED_BCE: tl.constexpr,
    PIXEL_IOU: tl.constexpr,
    HAS_POS_WEIGHT: tl.constexpr,
    REAL: tl.constexpr,
    HAS_VALID: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_X: tl.constexpr,
):
    """A program writes the gradients of every head over a group of ROWS rows."""
    image, y, rows, row = rows_of_program(height, width, ROWS)
    mask_row = image // channels * mask_batch_stride + image % channels * mask_channel_stride
    mask_row += y * mask_row_stride
    head_row = image // channels * head_batch_stride + image % channels * head_channel_stride
    head_row += y * head_row_stride
    valid += image // channels * valid_batch_stride + image % channels * valid_channel_stride
    valid -= image * height * width  # as row counts from the first image
    upstream += image // channels * upstream_batch_stride
    upstream += image % channels * upstream_channel_stride
    head_factors = (factor_0, factor_1, factor_2, factor_3)
    factors = ()
    for h in tl.static_range(len(heads)):
        up = tl.load(upstream + h * upstream_head_stride) * tl.cast(head_factors[h], REAL)
        own = sums + (h * images + image) * 4
        if PIXEL_IOU:
            factors += (pixel_gradient_factors(own, up, REAL),)
        else:
            factors += (image_gradient_factors(own, up, smooth, REAL),)
    p = tl.load(pos_weight + image % channels) if HAS_POS_WEIGHT else 1.0

    before = window_before(columns, row, rows, radius, REAL, BLOCK_X)
    for x0 in range(0, width, BLOCK_X):
        x = x0 + tl.arange(0, BLOCK_X)[None, :]
        inside = rows & (x < width)
        box, before = slide(columns, row, x, inside, before, width, radius)
        across = x.to(tl.int64)
        m_at, at = mask_row + across * mask_pixel_stride, head_row + across * head_pixel_stride
        m, exists = read_mask(mask, m_at, valid, row + x, inside, REAL, HAS_VALID)
        w = weigh(box, m, exists, share, boundary_weight, REAL)
        v = w if WEIGHTED_BCE else exists.to(REAL)
        for h in tl.static_range(len(heads)):
            a, b, c = factors[h]
            e, r, s = sigmoid(tl.load(heads[h] + at, mask=exists, other=0).to(REAL))
            d_bce = (1 - m) * s - p * m * (1 - s) if HAS_POS_WEIGHT else s - m
            d_iou = b * pixel_iou_slope(s, m, smooth, REAL) if PIXEL_IOU else b - c * m
            grad = a * v * d_bce + d_iou * w * (e * r * r)  # s (1 - s) = e r r
            tl.store(grads[h] + at, grad, mask=inside)
