# mypy: allow-untyped-defs
"""Adaptive gradient clipping in Triton: one launch for all units of all gradients.

A pair of tensors has two rows of the table: (address of the weight, elements of a unit, dtype,
units up to and with this pair) and (address of the gradient, and the same). A program has a run of
units, one after another: two reads, and a write only where a unit is over its limit.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from fastclip.kernels.grad_norm.change import scale_run
from fastclip.kernels.grad_norm.launch import LONG, SHORT, Shape, halves
from fastclip.kernels.grad_norm.norm import reduce_run
from fastclip.kernels.grad_norm.tile import L2, ROW, double, gathered, nothing
from fastclip.kernels.grad_norm.walk import share

GRAD_FLOOR = tl.constexpr(1e-6)  # of the norm that divides, as in the published code
ITEMS = 8  # of a thread's tile


@triton.jit
def norm_of(address, size, ELEMENT: tl.constexpr, TILE: tl.constexpr):
    """The norm of a unit, float64."""
    first, one = tl.full((), 0, tl.int64), tl.full((), 1, tl.float64)
    sums = nothing(TILE // ROW, L2)
    sums = reduce_run(sums, address, first, size, size, one, one, ELEMENT, L2, TILE)
    return tl.sqrt(gathered(sums, L2))


@triton.jit
def clip_unit(weight, grad, size, clipping, eps, ELEMENT: tl.constexpr, TILE: tl.constexpr):
    """Scales a unit whose norm is over clipping * max(|w|, eps)."""
    keeps_nan: tl.constexpr = tl.PropagateNan.ALL
    weight_norm = norm_of(weight, size, ELEMENT, TILE)
    norm = norm_of(grad, size, ELEMENT, TILE)
    limit = clipping * tl.maximum(weight_norm, eps, propagate_nan=keeps_nan)
    within = (norm <= limit) & (norm < float("inf"))
    if not within:
        factor = limit / tl.maximum(norm, GRAD_FLOOR, propagate_nan=keeps_nan)
        first = tl.full((), 0, tl.int64)
        scale_run(grad, first, size, size, factor, ELEMENT, False, TILE)


@triton.jit
def pair_of(table, pairs, unit):
    """The pair that has this unit."""
    low = tl.full((), 0, tl.int32)
    high = tl.full((), 0, tl.int32) + pairs - 1
    while low < high:
        middle = (low + high) // 2
        below = unit < tl.load(table + middle * 8 + 3)
        high = tl.where(below, middle, high)
        low = tl.where(below, low, middle + 1)
    return low


@triton.jit(
    do_not_specialize=["pairs", "units", "clipping_low", "clipping_high", "eps_low", "eps_high"]
)
def clip_units(
    table,  # [pairs, 8] int64
    pairs,
    units,
    clipping_low,
    clipping_high,
    eps_low,
    eps_high,
    DTYPES: tl.constexpr,  # as in grad_norm: bits of float32, (float64,) bfloat16, float16
    TILE: tl.constexpr,
):
    clipping, eps = double(clipping_low, clipping_high), double(eps_low, eps_high)
    unit, last = share(units, tl.program_id(0)), share(units, tl.program_id(0) + 1)
    pair = pair_of(table, pairs, unit)
    begin = tl.full((), 0, tl.int32)
    if pair > 0:
        begin = tl.load(table + pair * 8 - 5).to(tl.int32)
    while unit < last:
        row = table + pair * 8
        size, dtype = tl.load(row + 1), tl.load(row + 2).to(tl.int32)
        end = tl.load(row + 3).to(tl.int32)
        stop = tl.minimum(end, last)
        for u in range(unit, stop):
            skipped = (u - begin).to(tl.int64) * size * tl.where(dtype == 0, 4, 2)
            weight, grad = tl.load(row) + skipped, tl.load(row + 4) + skipped
            if DTYPES & 1 != 0 and dtype == 0:
                clip_unit(weight, grad, size, clipping, eps, tl.float32, TILE)
            if DTYPES & 4 != 0 and dtype == 2:
                clip_unit(weight, grad, size, clipping, eps, tl.bfloat16, TILE)
            if DTYPES & 8 != 0 and dtype == 3:
                clip_unit(weight, grad, size, clipping, eps, tl.float16, TILE)
        unit = stop
        begin = end
        pair += 1


def shape_of(elements: int, units: int) -> Shape:
    """How programs are cut for units of this mean size."""
    return SHORT if elements < units * LONG.chunk // 4 else LONG


def launch(
    table: Tensor, units: int, dtypes: int, programs: int, shape: Shape, rule: tuple[float, float]
) -> None:
    """Clips all units in place by (clipping, eps)."""
    grid = (max(1, min(programs, units)),)
    clip_units[grid](
        *(table, len(table) // 2, units, *halves(rule[0]), *halves(rule[1])),
        DTYPES=dtypes,
        TILE=shape.tile(ITEMS),
        num_warps=shape.warps,
        enable_fp_fusion=True,
    )
