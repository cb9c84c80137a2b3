# mypy: allow-untyped-defs
"""Triton kernels of grad_norm, in the order of their launches, and their launchers.

norm    table of tensors -> one partial sum a program, or a chunk where each tensor's norm is asked
each    partial sums of chunks -> the norm of each tensor
finish  partial sums, in a fixed order -> the norm, the factor and what a fused optimizer needs
scale   reads the norm; at a factor of 1 it is over, else the last chunks are scaled first

A row of the table is (address, elements, dtype, chunks up to and with this tensor). Programs find
a chunk's tensor by binary search. Nothing is added atomically and the host reads nothing back.
"""

import struct

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastclip.kernels.grad_norm.chunk import CHUNK, combine, find, largest, load, store, total

KINDS = {1.0: 1, 2.0: 2, float("inf"): 3}
WARPS = 8
FINISH_OPTIONS = {"num_warps": 4, "enable_fp_fusion": True}
WORK_HEADER = 3  # float64 before the partials: sum, norm, factor
PROGRAMS_EACH = 4  # for a multiprocessor

# A float32 sum of squares within these bounds lost nothing that matters to overflow or to squares
# under 2^-126. Outside, the same registers are summed again, scaled by a power of two.
LOW = tl.constexpr(1e-25)
HIGH = tl.constexpr(1e38)
FINISH = tl.constexpr(1024)
EPS = tl.constexpr(1e-6)  # torch's


@triton.jit
def reduce_as(address, numel, ELEMENT: tl.constexpr, KIND: tl.constexpr):
    """A chunk's sum of magnitudes or squares, or its largest magnitude, in float64."""
    x = load(address, numel, ELEMENT)
    if KIND == 3:
        result = largest(x)
    else:
        result = total(x, KIND).to(tl.float64)
        kept = (result >= LOW) & (result <= HIGH)
        if x.dtype != tl.float64 and not kept:
            tiny = result < LOW
            up = tl.where(tiny, 2.0**96, 2.0**-96).to(tl.float32)
            down = tl.where(tiny, 2.0**-96, 2.0**96).to(tl.float64)
            result = total(x * up, KIND) * down
            if KIND == 2:
                result = result * down
    return result


@triton.jit
def reduce_any(address, numel, dtype, KIND: tl.constexpr, DTYPES: tl.constexpr):
    """DTYPES has bit d set where a tensor of dtype d is in the table: only those are compiled."""
    result = tl.full((), 0, tl.float64)
    if DTYPES & 1 != 0 and dtype == 0:
        result = reduce_as(address, numel, tl.float32, KIND)
    if DTYPES & 2 != 0 and dtype == 1:
        result = reduce_as(address, numel, tl.float64, KIND)
    if DTYPES & 4 != 0 and dtype == 2:
        result = reduce_as(address, numel, tl.bfloat16, KIND)
    if DTYPES & 8 != 0 and dtype == 3:
        result = reduce_as(address, numel, tl.float16, KIND)
    return result


@triton.jit(do_not_specialize=["tensors", "chunks"])
def norm(
    table,  # [tensors, 4] int64
    partial,  # [programs], or with PER_TENSOR [chunks]: float64, written
    tensors,
    chunks,
    KIND: tl.constexpr,
    DTYPES: tl.constexpr,
    PER_TENSOR: tl.constexpr,
):
    program = tl.program_id(0)
    mine = tl.full((), 0, tl.float64)
    for chunk in range(program, chunks, tl.num_programs(0)):
        address, numel, dtype = find(table, tensors, chunk)
        value = reduce_any(address, numel, dtype, KIND, DTYPES)
        if PER_TENSOR:
            tl.store(partial + chunk, value)
        else:
            mine = combine(mine, value, KIND)
    if not PER_TENSOR:
        tl.store(partial + program, mine)


@triton.jit
def gather(partial, first, count, KIND: tl.constexpr):
    """The sum, or the largest, of a run of partials; in the same order at every run."""
    lanes = tl.arange(0, FINISH)
    sums = tl.full((FINISH,), 0, tl.float64)
    for start in range(0, count, FINISH):
        inside = start + lanes < count
        sums = combine(sums, tl.load(partial + first + start + lanes, inside, 0.0), KIND)
    if KIND == 3:
        return largest(sums)
    return tl.sum(sums, 0)


@triton.jit
def each(table, partial, norms, KIND: tl.constexpr):
    tensor = tl.program_id(0)
    row = table + tensor * 4
    count = (tl.load(row + 1) + CHUNK - 1) // CHUNK
    value = gather(partial, tl.load(row + 3) - count, count, KIND)
    tl.store(norms + tensor, tl.sqrt(value) if KIND == 2 else value)


@triton.jit
def factor_of(max_norm_low, max_norm_high, value):
    """min(1, max_norm / (value + 1e-6)), NaN kept; max_norm in two halves: Triton has no double."""
    bits = (max_norm_high.to(tl.int64) << 32) | (max_norm_low.to(tl.int64) & 0xFFFFFFFF)
    factor = bits.to(tl.float64, bitcast=True) / (value + EPS)
    return tl.where(factor >= 1, 1.0, factor)


@triton.jit(do_not_specialize=["count", "max_norm_low", "max_norm_high"])
def finish(
    work,  # float64: [sum, norm, factor, partials...]
    total_norm,  # 0-d, any dtype, written
    optimizer,  # [2] float32, written: 1 / factor, whether the norm is not finite
    count,
    max_norm_low,
    max_norm_high,
    KIND: tl.constexpr,
):
    value = gather(work, 3, count, KIND)
    tl.store(work, value)
    if KIND == 2:
        value = tl.sqrt(value)
    factor = factor_of(max_norm_low, max_norm_high, value)
    tl.store(work + 1, value)
    tl.store(work + 2, factor)
    ELEMENT: tl.constexpr = total_norm.dtype.element_ty
    if ELEMENT.primitive_bitwidth == 64:
        tl.store(total_norm, value)
    else:  # float64 to bfloat16 in one step is wrong under the interpreter
        tl.store(total_norm, value.to(tl.float32).to(ELEMENT))
    tl.store(optimizer, (1 / factor).to(tl.float32))
    tl.store(optimizer + 1, tl.where(tl.abs(value) < float("inf"), 0.0, 1.0))


@triton.jit
def scale_as(address, numel, factor, ELEMENT: tl.constexpr):
    x = load(address, numel, ELEMENT)
    store(address, numel, x * factor.to(x.dtype), ELEMENT)


@triton.jit(do_not_specialize=["tensors", "chunks", "max_norm_low", "max_norm_high"])
def scale(
    table,  # [tensors, 4] int64
    known,  # the norm: 0-d, any dtype
    tensors,
    chunks,
    max_norm_low,
    max_norm_high,
    DTYPES: tl.constexpr,
):
    factor = factor_of(max_norm_low, max_norm_high, tl.load(known).to(tl.float64))
    if factor != 1:
        for i in range(tl.program_id(0), chunks, tl.num_programs(0)):
            address, numel, dtype = find(table, tensors, chunks - 1 - i)
            if DTYPES & 1 != 0 and dtype == 0:
                scale_as(address, numel, factor, tl.float32)
            if DTYPES & 2 != 0 and dtype == 1:
                scale_as(address, numel, factor, tl.float64)
            if DTYPES & 4 != 0 and dtype == 2:
                scale_as(address, numel, factor, tl.bfloat16)
            if DTYPES & 8 != 0 and dtype == 3:
                scale_as(address, numel, factor, tl.float16)


def halves(x: float) -> tuple[int, int]:
    """The bits of a double as two int32, low half first."""
    low, high = struct.unpack("<ii", struct.pack("<d", x))
    return low, high


def launch_norm(
    table: Tensor,
    chunks: int,
    dtypes: int,
    programs: int,
    p: float,
    max_norm: float,
    total_norm: Tensor,
    optimizer: Tensor,
    per_tensor: Tensor | None,
) -> Tensor:
    """Returns the work buffer; its second number is the norm, unrounded."""
    kind = KINDS[p]
    programs = max(1, min(programs, chunks))
    count = chunks if per_tensor is not None else programs
    work = torch.empty(WORK_HEADER + count, dtype=torch.float64, device=table.device)
    partial = work[WORK_HEADER:]
    norm[(programs,)](
        *(table, partial, len(table), chunks),
        KIND=kind,
        DTYPES=dtypes,
        PER_TENSOR=per_tensor is not None,
        num_warps=WARPS,
        enable_fp_fusion=True,
    )
    if per_tensor is not None and len(table):
        each[(len(table),)](table, partial, per_tensor, KIND=kind, **FINISH_OPTIONS)
    limit = halves(max_norm)
    finish[(1,)](work, total_norm, optimizer, count, *limit, KIND=kind, **FINISH_OPTIONS)
    return work


def launch_scale(
    table: Tensor, chunks: int, dtypes: int, programs: int, max_norm: float, known: Tensor
) -> None:
    """Scales by min(1, max_norm / (known + 1e-6))."""
    programs = max(1, min(programs, chunks))
    limit = halves(max_norm)
    scale[(programs,)](
        table,
        known,
        len(table),
        chunks,
        *limit,
        DTYPES=dtypes,
        num_warps=WARPS,
        enable_fp_fusion=True,
    )
