# mypy: allow-untyped-defs
"""Triton kernels of norms, in the order of their launches.

norm    table of tensors -> one partial sum a program, or one for each tensor that it has a part of
each    those of each tensor, in a fixed order -> its norm
finish  partial sums, in a fixed order -> the norm and the factor of a clip

Nothing is added atomically and the host reads nothing back.
"""

import triton
import triton.language as tl

from fastclip.kernels.grad_norm.tile import (
    L2,
    MAX,
    MIN,
    POWER,
    ROW,
    combine,
    double,
    extreme,
    gathered,
    load,
    nothing,
    offsets,
    rows_of,
)
from fastclip.kernels.grad_norm.walk import program_of, row_of, share, tensor_at

FINISH = tl.constexpr(1024)
EPS = tl.constexpr(1e-6)  # torch's


@triton.jit
def reduce_run(
    sums,  # [TILE / 8] float64
    address,
    first,
    last,
    numel,
    p,
    unit,
    ELEMENT: tl.constexpr,
    KIND: tl.constexpr,
    TILE: tl.constexpr,
):
    """The sums, and those of elements `first` to `last` of a tensor."""
    for start in range(first, last, TILE):
        x = load(address, start, numel, ELEMENT, TILE)
        if KIND == MAX:
            rows = extreme(x, KIND)
        elif KIND == MIN:
            rows = extreme(tl.where(offsets(TILE) < numel - start, x, float("inf")), KIND)
        elif KIND == POWER:
            powers = tl.exp2(p * tl.log2(tl.abs(x).to(tl.float64) / unit))
            rows = tl.sum(tl.where(offsets(TILE) < numel - start, powers, 0.0), 1)
        else:
            rows = rows_of(x, KIND)
        sums = combine(sums, rows, KIND)
    return sums


@triton.jit
def unit_at(units, row, HAS_UNITS: tl.constexpr):
    """What a tensor's elements are divided by: finite, and over zero."""
    unit = tl.full((), 1, tl.float64)
    if HAS_UNITS:
        given = tl.load(units + row)
        unit = tl.where((given > 0) & (given < float("inf")), given, 1.0)
    return unit


@triton.jit(do_not_specialize=["tensors", "chunks", "p_low", "p_high"])
def norm(
    table,  # [tensors, 4] int64
    partial,  # float64, written: [programs], or with PER_TENSOR at [tensor + program]
    tensors,
    chunks,
    p_low,
    p_high,
    units,  # [tensors] float64
    KIND: tl.constexpr,
    DTYPES: tl.constexpr,  # bit d set where a tensor of dtype d is there: only those are compiled
    PER_TENSOR: tl.constexpr,
    HAS_UNITS: tl.constexpr,
    CHUNK: tl.constexpr,
    TILE: tl.constexpr,
):
    program = tl.program_id(0)
    p = double(p_low, p_high)
    chunk, last = share(chunks, program), share(chunks, program + 1)
    row = row_of(table, tensors, chunk)
    sums = nothing(TILE // ROW, KIND)
    while chunk < last:
        address, numel, dtype, begin, end = tensor_at(table, row, CHUNK)
        stop = tl.minimum(end, last)
        first_item = (chunk - begin).to(tl.int64) * CHUNK
        last_item = tl.minimum(numel, (stop - begin).to(tl.int64) * CHUNK)
        unit = unit_at(units, row, HAS_UNITS)
        if DTYPES & 1 != 0 and dtype == 0:
            sums = reduce_run(
                sums, address, first_item, last_item, numel, p, unit, tl.float32, KIND, TILE
            )
        if DTYPES & 2 != 0 and dtype == 1:
            sums = reduce_run(
                sums, address, first_item, last_item, numel, p, unit, tl.float64, KIND, TILE
            )
        if DTYPES & 4 != 0 and dtype == 2:
            sums = reduce_run(
                sums, address, first_item, last_item, numel, p, unit, tl.bfloat16, KIND, TILE
            )
        if DTYPES & 8 != 0 and dtype == 3:
            sums = reduce_run(
                sums, address, first_item, last_item, numel, p, unit, tl.float16, KIND, TILE
            )
        if PER_TENSOR:
            tl.store(partial + row + program, gathered(sums, KIND))
            sums = nothing(TILE // ROW, KIND)
        chunk = stop
        row += 1
    if not PER_TENSOR:
        tl.store(partial + program, gathered(sums, KIND))


@triton.jit
def gather(partial, first, count, KIND: tl.constexpr):
    """The sum, or the largest, of a run of partials; in the same order at every run."""
    lanes = tl.arange(0, FINISH)
    sums = nothing(FINISH, KIND)
    other: tl.constexpr = float("inf") if KIND == MIN else 0.0
    for start in range(0, count, FINISH):
        inside = start + lanes < count
        sums = combine(sums, tl.load(partial + first + start + lanes, inside, other), KIND)
    return gathered(sums, KIND)


@triton.jit(do_not_specialize=["chunks", "programs", "p_low", "p_high"])
def each(
    table,
    partial,
    norms,  # [tensors] float64, written
    chunks,
    programs,
    p_low,
    p_high,
    units,  # [tensors] float64
    KIND: tl.constexpr,
    HAS_UNITS: tl.constexpr,
    CHUNK: tl.constexpr,
):
    row = tl.program_id(0)
    _, _, _, begin, end = tensor_at(table, row, CHUNK)
    first = tl.full((), 0, tl.int32)
    count = tl.full((), 0, tl.int32)
    if begin < end:
        first = program_of(chunks, begin, programs)
        count = program_of(chunks, end - 1, programs) - first + 1
    value = gather(partial, row + first, count, KIND)
    if KIND == L2:
        value = tl.sqrt(value)
    if KIND == POWER:
        value = unit_at(units, row, HAS_UNITS) * tl.exp2(tl.log2(value) / double(p_low, p_high))
    tl.store(norms + row, value)


@triton.jit
def factor_of(max_norm_low, max_norm_high, value):
    """min(1, max_norm / (value + 1e-6)), NaN kept."""
    factor = double(max_norm_low, max_norm_high) / (value + EPS)
    return tl.where(factor >= 1, 1.0, factor)


@triton.jit(do_not_specialize=["count", "max_norm_low", "max_norm_high"])
def finish(
    work,  # float64: [sum, norm, factor, partials...]
    total_norm,  # 0-d, any dtype, written
    count,
    max_norm_low,
    max_norm_high,
    KIND: tl.constexpr,
):
    value = gather(work, 3, count, KIND)
    tl.store(work, value)
    if KIND == L2:
        value = tl.sqrt(value)
    tl.store(work + 1, value)
    tl.store(work + 2, factor_of(max_norm_low, max_norm_high, value))
    ELEMENT: tl.constexpr = total_norm.dtype.element_ty
    if ELEMENT.primitive_bitwidth == 64:
        tl.store(total_norm, value)
    else:  # float64 to bfloat16 in one step is wrong under the interpreter
        tl.store(total_norm, value.to(tl.float32).to(ELEMENT))
