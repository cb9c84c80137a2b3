"""The Triton kernel of the structure loss that only sees the mask: sums over a window's rows."""

# Triton gives types to the arguments of its functions when it compiles them.
# mypy: ignore-errors

import triton
import triton.language as tl

from fastclip.kernels.structure_loss.tile import read_mask


@triton.jit
def column_sums(
    columns,  # [images, height, width] REAL, written
    tickets,  # [images + 1] int32, written: zeros, for image_sums
    images,
    mask,  # [batch, channels, height, width] with strides for each
    mask_batch_stride,
    mask_channel_stride,
    mask_row_stride,
    mask_pixel_stride,
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
    mask += image // channels * mask_batch_stride + image % channels * mask_channel_stride
    valid += image // channels * valid_batch_stride + image % channels * valid_channel_stride
    tl.store(tickets + image, 0)
    tl.store(tickets + images, 0)
    across = x.to(tl.int64) * mask_pixel_stride

    before = tl.zeros([1, BLOCK_X], REAL)  # the window of the row above the first
    for y0 in range(0, radius, BLOCK_Y):
        y = y0 + rows
        at = y.to(tl.int64) * width + x
        m_at = y.to(tl.int64) * mask_row_stride + across
        m, _ = read_mask(mask, m_at, valid, at, (y < radius) & (x < width), REAL, HAS_VALID)
        before += tl.sum(m, axis=0, keep_dims=True)
    for y0 in range(0, height, BLOCK_Y):
        y = y0 + rows
        at = y.to(tl.int64) * width + x
        below = at + tl.cast(radius, tl.int64) * width
        above = at - tl.cast(radius + 1, tl.int64) * width
        m_below = (y.to(tl.int64) + radius) * mask_row_stride + across
        m_above = (y.to(tl.int64) - radius - 1) * mask_row_stride + across
        inside = (y < height) & (x < width)
        enters, leaves = inside & (y + radius < height), inside & (y > radius)
        entering, _ = read_mask(mask, m_below, valid, below, enters, REAL, HAS_VALID)
        leaving, _ = read_mask(mask, m_above, valid, above, leaves, REAL, HAS_VALID)
        steps = entering - leaving
        tl.store(columns + at, before + tl.cumsum(steps, axis=0), mask=inside)
        before += tl.sum(steps, axis=0, keep_dims=True)
