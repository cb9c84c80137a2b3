# mypy: allow-untyped-defs
"""Parts of grad_norm's Triton kernels: a chunk of a table of tensors, in registers and back."""

import triton
import triton.language as tl

CHUNK = tl.constexpr(8192)  # elements
ROW = tl.constexpr(8)  # elements that a thread adds in float32 before it goes on in float64


@triton.jit
def find(table, tensors, chunk):
    """(address of the chunk, its elements, their dtype), by binary search over the last column."""
    low = tl.full((), 0, tl.int32)
    high = tl.full((), 0, tl.int32) + tensors - 1
    while low < high:
        middle = (low + high) // 2
        below = chunk < tl.load(table + middle * 4 + 3)
        high = tl.where(below, middle, high)
        low = tl.where(below, low, middle + 1)
    row = table + low * 4
    numel = tl.load(row + 1)
    dtype = tl.load(row + 2).to(tl.int32)
    first = tl.load(row + 3) - (numel + CHUNK - 1) // CHUNK
    skipped = (chunk - first) * CHUNK  # int64
    size = tl.where(dtype == 1, 8, tl.where(dtype == 0, 4, 2))
    rest = tl.minimum(numel - skipped, CHUNK).to(tl.int32)
    return tl.load(row) + skipped * size, rest, dtype


@triton.jit
def offsets():
    return tl.arange(0, CHUNK // ROW)[:, None] * ROW + tl.arange(0, ROW)[None, :]


@triton.jit
def whole(address, numel):
    """Whether 16-byte accesses are right for all of the chunk."""
    return (numel == CHUNK) & (address % 16 == 0)


@triton.jit
def load(address, numel, ELEMENT: tl.constexpr):
    """[CHUNK / 8, 8] in float32, or float64 for float64; zeros after the end."""
    base = address.to(tl.pointer_type(ELEMENT))
    REAL: tl.constexpr = tl.float64 if ELEMENT.primitive_bitwidth == 64 else tl.float32
    at = offsets()
    if whole(address, numel):
        x = tl.load(tl.multiple_of(base, 16) + at).to(REAL)
    else:
        x = tl.load(base + at, at < numel, 0.0).to(REAL)
    return x


@triton.jit
def store(address, numel, x, ELEMENT: tl.constexpr):
    base = address.to(tl.pointer_type(ELEMENT))
    at = offsets()
    if whole(address, numel):
        tl.store(tl.multiple_of(base, 16) + at, x.to(ELEMENT))
    else:
        tl.store(base + at, x.to(ELEMENT), at < numel)


@triton.jit
def total(x, KIND: tl.constexpr):
    """The sum of |x| (KIND 1) or of x^2 (KIND 2)."""
    rows = tl.sum(tl.abs(x), 1) if KIND == 1 else tl.sum(x * x, 1)
    return tl.sum(rows.to(tl.float64), 0)


@triton.jit
def largest(x):
    """The largest magnitude. As integers, NaN is above infinity and so never lost."""
    if x.dtype == tl.float64:
        bits = x.to(tl.int64, bitcast=True) & 0x7FFFFFFFFFFFFFFF
        return tl.max(bits.reshape(bits.numel), 0).to(tl.float64, bitcast=True)
    else:
        bits = x.to(tl.int32, bitcast=True) & 0x7FFFFFFF
        found = tl.max(bits.reshape(bits.numel), 0)
        return found.to(tl.float32, bitcast=True).to(tl.float64)


@triton.jit
def combine(a, b, KIND: tl.constexpr):
    if KIND == 3:
        return tl.maximum(a, b, propagate_nan=tl.PropagateNan.ALL)
    else:
        return a + b
