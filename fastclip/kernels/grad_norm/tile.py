# mypy: allow-untyped-defs
"""Parts of grad_norm's Triton kernels: a tile of a tensor in registers, its sums, and back."""

import triton
import triton.language as tl

ROW = tl.constexpr(8)  # elements that a thread adds in float32 before it goes on in float64

# A float32 sum of squares within these bounds lost nothing that matters to overflow or to squares
# under 2^-126. Outside, the same registers are summed scaled by a power of two.
LOW = tl.constexpr(1e-25)
HIGH = tl.constexpr(1e38)

L1, L2, MAX, MIN, POWER = (tl.constexpr(kind) for kind in (1, 2, 3, 4, 5))


@triton.jit
def offsets(TILE: tl.constexpr):
    return tl.arange(0, TILE // ROW)[:, None] * ROW + tl.arange(0, ROW)[None, :]


@triton.jit
def load(address, start, numel, ELEMENT: tl.constexpr, TILE: tl.constexpr):
    """[TILE / 8, 8] in float32, or float64 for float64; zeros after the end."""
    base = address.to(tl.pointer_type(ELEMENT)) + start
    at = offsets(TILE)
    REAL: tl.constexpr = tl.float64 if ELEMENT.primitive_bitwidth == 64 else tl.float32
    if (start + TILE <= numel) & (address % 16 == 0):  # 16-byte accesses are right for all of it
        x = tl.load(tl.multiple_of(base, 16) + at).to(REAL)
    else:
        x = tl.load(base + at, at < numel - start, 0.0).to(REAL)
    return x


@triton.jit
def store(address, start, numel, x, ELEMENT: tl.constexpr, TILE: tl.constexpr):
    base = address.to(tl.pointer_type(ELEMENT)) + start
    at = offsets(TILE)
    if (start + TILE <= numel) & (address % 16 == 0):
        tl.store(tl.multiple_of(base, 16) + at, x.to(ELEMENT))
    else:
        tl.store(base + at, x.to(ELEMENT), at < numel - start)


@triton.jit
def magnitudes(x, KIND: tl.constexpr):
    return tl.sum(tl.abs(x), 1) if KIND == L1 else tl.sum(x * x, 1)


@triton.jit
def rows_of(x, KIND: tl.constexpr):
    """The sum of |x| or of x^2 of each row, float64. No branch: a program waits for no other."""
    rows = magnitudes(x, KIND)
    if x.dtype == tl.float64:
        return rows
    up = tl.where(rows < LOW, 2.0**96, tl.where(rows > HIGH, 2.0**-96, 1.0)).to(tl.float32)
    scaled = magnitudes(x * up[:, None], KIND).to(tl.float64)
    down = 1 / up.to(tl.float64)
    return scaled * down * down if KIND == L2 else scaled * down


@triton.jit
def extreme(x, KIND: tl.constexpr):
    """The largest magnitude of each row, or the smallest. As integers, NaN is above infinity."""
    if x.dtype == tl.float64:
        bits = x.to(tl.int64, bitcast=True) & 0x7FFFFFFFFFFFFFFF
        rows = tl.max(bits, 1).to(tl.float64, bitcast=True)
        if KIND == MIN:
            rows = tl.where(rows != rows, rows, tl.min(bits, 1).to(tl.float64, bitcast=True))
    else:
        bits = x.to(tl.int32, bitcast=True) & 0x7FFFFFFF
        rows = tl.max(bits, 1).to(tl.float32, bitcast=True)
        if KIND == MIN:
            rows = tl.where(rows != rows, rows, tl.min(bits, 1).to(tl.float32, bitcast=True))
    return rows.to(tl.float64)


@triton.jit
def combine(a, b, KIND: tl.constexpr):
    if KIND == MAX:
        return tl.maximum(a, b, propagate_nan=tl.PropagateNan.ALL)
    elif KIND == MIN:
        return tl.minimum(a, b, propagate_nan=tl.PropagateNan.ALL)
    else:
        return a + b


@triton.jit
def nothing(SHAPE: tl.constexpr, KIND: tl.constexpr):
    """What is nothing beside any other number."""
    return tl.full((SHAPE,), float("inf") if KIND == MIN else 0.0, tl.float64)


@triton.jit
def gathered(sums, KIND: tl.constexpr):
    """One number of many, float64."""
    if KIND == MAX or KIND == MIN:  # noqa: SIM109 (Triton has no `in`)
        bits = sums.to(tl.int64, bitcast=True) & 0x7FFFFFFFFFFFFFFF
        result = tl.max(bits, 0).to(tl.float64, bitcast=True)
        if KIND == MIN:
            smallest = tl.min(bits, 0).to(tl.float64, bitcast=True)
            result = tl.where(result != result, result, smallest)
    else:
        result = tl.sum(sums, 0)
    return result


@triton.jit
def double(low, high):
    """A float64 from its two halves: Triton has no such argument of a changing value."""
    bits = (high.to(tl.int64) << 32) | (low.to(tl.int64) & 0xFFFFFFFF)
    return bits.to(tl.float64, bitcast=True)
