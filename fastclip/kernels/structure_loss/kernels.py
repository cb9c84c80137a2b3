"""Triton kernels of the structure loss that see pixels, in the order of their launches.

Notation: m mask, x logit, s = sigmoid(x), w boundary weight, v weight of the BCE term (w, or 1 for
a plain mean), u a pixel's IoU loss, p weight of a positive; REAL is the dtype of all arithmetic but
that of long sums; an image is one channel of one of the batch.

A window's sum slides: it is the running sum of (pixel that enters - pixel that leaves), so a pixel
costs two loads in each direction at any window, and rounding errors are those of one window, not of
a whole row. All sums have a fixed order: nothing is added atomically.
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


@triton.jit
def column_sums(
    columns,  # [images, height, width] REAL, written
    mask,  # [images, height, width]
    valid,  # [batch, channels, height, width] with strides for batch and channels
    valid_batch_stride,
    valid_channel_stride,
    channels,
    height,
    width,
    radius,  # < height
    REAL: tl.constexpr,
    HAS_VALID: tl.constexpr,
    BLOCK_Y: tl.constexpr,
    BLOCK_X: tl.constexpr,
):
    """A program walks down BLOCK_X columns of an image, BLOCK_Y rows at a time."""
    strips = (width + BLOCK_X - 1) // BLOCK_X
    image = (tl.program_id(0) // strips).to(tl.int64)
    x = (tl.program_id(0) % strips * BLOCK_X + tl.arange(0, BLOCK_X))[None, :]
    rows = tl.arange(0, BLOCK_Y)[:, None]
    columns += image * height * width
    mask += image * height * width
    valid += image // channels * valid_batch_stride + image % channels * valid_channel_stride

    before = tl.zeros([1, BLOCK_X], REAL)  # the window of the row above the first
    for y0 in range(0, radius, BLOCK_Y):
        y = y0 + rows
        at = y.to(tl.int64) * width + x
        m, _ = read_mask(mask, valid, at, (y < radius) & (x < width), REAL, HAS_VALID)
        before += tl.sum(m, axis=0, keep_dims=True)
    for y0 in range(0, height, BLOCK_Y):
        y = y0 + rows
        at = y.to(tl.int64) * width + x
        below = at + tl.cast(radius, tl.int64) * width
        above = at - tl.cast(radius + 1, tl.int64) * width
        inside = (y < height) & (x < width)
        enters, leaves = inside & (y + radius < height), inside & (y > radius)
        entering, _ = read_mask(mask, valid, below, enters, REAL, HAS_VALID)
        leaving, _ = read_mask(mask, valid, above, leaves, REAL, HAS_VALID)
        steps = entering - leaving
        tl.store(columns + at, before + tl.cumsum(steps, axis=0), mask=inside)
        before += tl.sum(steps, axis=0, keep_dims=True)


@triton.jit
def image_sums(
    # [images, groups, slots] float64, written: 3 slots for every head, 2 for all together
    partial,
    slots,
    heads,  # tuple of [images, height, width]
    columns,  # [images, height, width] REAL
    mask,  # [images, height, width]
    valid,  # as above
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
    IS_WIDE: tl.constexpr,  # a float32 sum over so wide a row would lose digits
    PIECE: tl.constexpr,  # blocks that are summed in REAL, then
    ROWS: tl.constexpr,
    BLOCK_X: tl.constexpr,
):
    """A program sums v bce, w s m, w s of every head, and v, w m, over a group of ROWS rows.

    Where the IoU is formed per pixel those of w s m, w s and w m are w u, nothing and w.
    """
    image, rows, row = rows_of_program(height, width, ROWS)
    valid += image // channels * valid_batch_stride + image % channels * valid_channel_stride
    valid -= image * height * width  # as row counts from the first image
    slot = tl.arange(0, SLOTS)
    common: tl.constexpr = 3 * len(heads)
    p = tl.load(pos_weight + image % channels) if HAS_POS_WEIGHT else 1.0

    before = window_before(columns, row, rows, radius, REAL, BLOCK_X)
    sums = tl.zeros([SLOTS], REAL)
    if IS_WIDE:
        at = partial + tl.program_id(0).to(tl.int64) * slots + slot
        tl.store(at, sums, mask=slot < common + 2)
    for x0 in range(0, width, BLOCK_X):
        x = x0 + tl.arange(0, BLOCK_X)[None, :]
        inside = rows & (x < width)
        box, before = slide(columns, row, x, inside, before, width, radius)
        m, exists = read_mask(mask, valid, row + x, inside, REAL, HAS_VALID)
        w = weigh(box, m, exists, share, boundary_weight, REAL)
        v = w if WEIGHTED_BCE else exists.to(REAL)
        for h in tl.static_range(len(heads)):
            logit = tl.load(heads[h] + row + x, mask=exists, other=0).to(REAL)
            e, r, s = sigmoid(logit)
            # Torch's terms, so that an infinite logit gives its infinity or its NaN.
            if HAS_POS_WEIGHT:
                below, log = tl.minimum(logit, 0.0), log1p(e, REAL)
                bce = (1 - m) * (logit - below + log) + p * m * (log - below)
            else:
                bce = (1 - m) * logit - tl.minimum(logit, 0.0) + log1p(e, REAL)
            sums += tl.where(slot == 3 * h, tl.sum(v * bce), 0.0)
            if PIXEL_IOU:
                # 1 - s from its own terms keeps its digits near 0.
                u = pixel_iou_loss(s, tl.where(logit >= 0, e * r, r), m, smooth, REAL)
                sums += tl.where(slot == 3 * h + 1, tl.sum(w * u), 0.0)
            else:
                ws = w * s
                sums += tl.where(slot == 3 * h + 1, tl.sum(ws * m), 0.0)
                sums += tl.where(slot == 3 * h + 2, tl.sum(ws), 0.0)
        sums += tl.where(slot == common, tl.sum(v), 0.0)
        sums += tl.where(slot == common + 1, tl.sum(w if PIXEL_IOU else w * m), 0.0)
        if IS_WIDE:  # noqa: SIM102 (this alone is known when it is compiled)
            if (x0 // BLOCK_X) % PIECE == PIECE - 1:
                so_far = tl.load(at, mask=slot < common + 2, other=0)
                tl.store(at, so_far + sums, mask=slot < common + 2)
                sums = tl.zeros([SLOTS], REAL)
    if IS_WIDE:
        sums = sums + tl.load(at, mask=slot < common + 2, other=0)
    partial += tl.program_id(0).to(tl.int64) * slots
    tl.store(partial + slot, sums, mask=slot < common + 2)


@triton.jit
def gradients(
    grads,  # tuple of [images, height, width], written
    heads,  # tuple of [images, height, width]
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
    mask,  # [images, height, width]
    valid,  # as above
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
    image, rows, row = rows_of_program(height, width, ROWS)
    valid += image // channels * valid_batch_stride + image % channels * valid_channel_stride
    valid -= image * height * width  # as row counts from the first image
    upstream += image // channels * upstream_batch_stride
    upstream += image % channels * upstream_channel_stride
    head_factors = (factor_0, factor_1, factor_2, factor_3)
    factors = ()
    for h in tl.static_range(len(heads)):
        up = tl.load(upstream + h * upstream_head_stride) * tl.cast(head_factors[h], REAL)
        at = sums + (h * images + image) * 4
        if PIXEL_IOU:
            factors += (pixel_gradient_factors(at, up, REAL),)
        else:
            factors += (image_gradient_factors(at, up, smooth, REAL),)
    p = tl.load(pos_weight + image % channels) if HAS_POS_WEIGHT else 1.0

    before = window_before(columns, row, rows, radius, REAL, BLOCK_X)
    for x0 in range(0, width, BLOCK_X):
        x = x0 + tl.arange(0, BLOCK_X)[None, :]
        inside = rows & (x < width)
        box, before = slide(columns, row, x, inside, before, width, radius)
        m, exists = read_mask(mask, valid, row + x, inside, REAL, HAS_VALID)
        w = weigh(box, m, exists, share, boundary_weight, REAL)
        v = w if WEIGHTED_BCE else exists.to(REAL)
        for h in tl.static_range(len(heads)):
            a, b, c = factors[h]
            e, r, s = sigmoid(tl.load(heads[h] + row + x, mask=exists, other=0).to(REAL))
            d_bce = (1 - m) * s - p * m * (1 - s) if HAS_POS_WEIGHT else s - m
            d_iou = b * pixel_iou_slope(s, m, smooth, REAL) if PIXEL_IOU else b - c * m
            grad = a * v * d_bce + d_iou * w * (e * r * r)  # s (1 - s) = e r r
            tl.store(grads[h] + row + x, grad, mask=inside)
