# mypy: allow-untyped-defs
"""Triton kernels that change gradients in place: a multiplication, or a clamp of every element.

A program walks its run backwards: its end is what the L2 cache still holds of the norm's pass.
"""

import triton
import triton.language as tl

from fastclip.kernels.grad_norm.norm import factor_of
from fastclip.kernels.grad_norm.tile import double, load, offsets, store
from fastclip.kernels.grad_norm.walk import row_of, share, tensor_at

OF_NORM, NUMBER, OF_TENSOR = (tl.constexpr(mode) for mode in (0, 1, 2))


@triton.jit
def scale_run(
    address,
    first,
    last,
    numel,
    factor,
    ELEMENT: tl.constexpr,
    CLAMP: tl.constexpr,
    TILE: tl.constexpr,
):
    """Multiplies elements `first` to `last` by the factor, or clamps them to it."""
    tiles = (last - first + TILE - 1) // TILE
    for i in range(0, tiles):
        start = first + (tiles - 1 - i) * TILE
        x = load(address, start, numel, ELEMENT, TILE)
        number = factor.to(x.dtype)
        if CLAMP:
            limit = number.to(ELEMENT).to(x.dtype)
            outside = (x > limit) | (x < -limit)
            at = offsets(TILE)
            base = address.to(tl.pointer_type(ELEMENT)) + start
            clamped = tl.where(x > 0, limit, -limit).to(ELEMENT)
            tl.store(base + at, clamped, outside & (at < numel - start))
        else:
            store(address, start, numel, x * number, ELEMENT, TILE)


@triton.jit
def change(
    table,
    factors,
    tensors,
    chunks,
    factor,
    OF_EACH: tl.constexpr,
    CLAMP: tl.constexpr,
    DTYPES: tl.constexpr,
    CHUNK: tl.constexpr,
    TILE: tl.constexpr,
):
    program = tl.program_id(0)
    from_chunk, chunk = share(chunks, program), share(chunks, program + 1)
    row = row_of(table, tensors, tl.maximum(chunk - 1, 0))
    while from_chunk < chunk:
        address, numel, dtype, begin, _ = tensor_at(table, row, CHUNK)
        first = tl.maximum(begin, from_chunk)
        first_item = (first - begin).to(tl.int64) * CHUNK
        last_item = tl.minimum(numel, (chunk - begin).to(tl.int64) * CHUNK)
        mine = factor
        if OF_EACH:
            mine = tl.load(factors + row)
        if CLAMP or mine != 1:
            if DTYPES & 1 != 0 and dtype == 0:
                scale_run(address, first_item, last_item, numel, mine, tl.float32, CLAMP, TILE)
            if DTYPES & 2 != 0 and dtype == 1:
                scale_run(address, first_item, last_item, numel, mine, tl.float64, CLAMP, TILE)
            if DTYPES & 4 != 0 and dtype == 2:
                scale_run(address, first_item, last_item, numel, mine, tl.bfloat16, CLAMP, TILE)
            if DTYPES & 8 != 0 and dtype == 3:
                scale_run(address, first_item, last_item, numel, mine, tl.float16, CLAMP, TILE)
        chunk = first
        row -= 1


@triton.jit(do_not_specialize=["tensors", "chunks", "max_norm_low", "max_norm_high"])
def scale(
    table,  # [tensors, 4] int64
    number,  # the norm or the factor, 0-d of any dtype; or a factor for each tensor, float64
    tensors,
    chunks,
    max_norm_low,
    max_norm_high,
    MODE: tl.constexpr,
    DTYPES: tl.constexpr,
    CHUNK: tl.constexpr,
    TILE: tl.constexpr,
):
    factor = tl.full((), 0, tl.float64)  # with OF_TENSOR not 1, and not read
    if MODE != OF_TENSOR:
        factor = tl.load(number).to(tl.float64)
    if MODE == OF_NORM:
        factor = factor_of(max_norm_low, max_norm_high, factor)
    if factor != 1:
        change(
            table, number, tensors, chunks, factor, MODE == OF_TENSOR, False, DTYPES, CHUNK, TILE
        )


@triton.jit(do_not_specialize=["tensors", "chunks", "limit_low", "limit_high"])
def clamp(
    table,  # [tensors, 4] int64
    tensors,
    chunks,
    limit_low,
    limit_high,
    DTYPES: tl.constexpr,
    CHUNK: tl.constexpr,
    TILE: tl.constexpr,
):
    limit = double(limit_low, limit_high)
    change(table, table, tensors, chunks, limit, False, True, DTYPES, CHUNK, TILE)
