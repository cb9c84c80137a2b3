"""Device functions of the structure loss: one tile of an image, and one logit."""

# Triton gives types to the arguments of its functions when it compiles them.
# mypy: ignore-errors

import triton
import triton.language as tl


@triton.jit
def rows_of_program(height, width, ROWS: tl.constexpr):
    """This program's image, its ROWS rows, which of them exist, and where they begin in a
    contiguous map: [ROWS, 1] each."""
    groups = (height + ROWS - 1) // ROWS
    image = (tl.program_id(0) // groups).to(tl.int64)
    y = (tl.program_id(0) % groups * ROWS + tl.arange(0, ROWS))[:, None]
    return image, y.to(tl.int64), y < height, (image * height + y) * width


@triton.jit
def read_mask(mask, m_at, valid, at, inside, REAL: tl.constexpr, HAS_VALID: tl.constexpr):
    """The mask, zero where a pixel does not exist, and whether it does."""
    m = tl.load(mask + m_at, mask=inside, other=0).to(REAL)
    if HAS_VALID:
        inside = inside & (tl.load(valid + at, mask=inside, other=0) != 0)
        m = tl.where(inside, m, 0.0)  # NaN counts nowhere either
    return m, inside


@triton.jit
def window_before(columns, row, exists, radius, REAL: tl.constexpr, BLOCK_X: tl.constexpr):
    """Sum over the window of the pixel left of a row's first: [rows, 1]."""
    before = tl.zeros(row.shape, REAL)
    for x0 in range(0, radius, BLOCK_X):
        x = x0 + tl.arange(0, BLOCK_X)[None, :]
        first = tl.load(columns + row + x, mask=exists & (x < radius), other=0)
        before += tl.sum(first, axis=1, keep_dims=True)
    return before


@triton.jit
def slide(columns, row, x, inside, before, width, radius):
    """Sums over the windows of a tile [rows, BLOCK_X], and over that of its last pixel."""
    enters, leaves = inside & (x + radius < width), inside & (x > radius)
    steps = tl.load(columns + row + (x + radius), mask=enters, other=0)
    steps -= tl.load(columns + row + (x - radius - 1), mask=leaves, other=0)
    return before + tl.cumsum(steps, axis=1), before + tl.sum(steps, axis=1, keep_dims=True)


@triton.jit
def weigh(box, m, exists, share, boundary_weight, REAL: tl.constexpr):
    """w = 1 + boundary_weight |box / area - m|, where share = boundary_weight / area."""
    if REAL is tl.float32:  # the arguments are float64, and would make all of it so
        share, boundary_weight = tl.cast(share, REAL), tl.cast(boundary_weight, REAL)
    return tl.where(exists, 1 + tl.abs(share * box - boundary_weight * m), 0.0)


@triton.jit
def log1p(e, REAL: tl.constexpr):
    """log(1 + e) for 0 <= e <= 1."""
    if REAL is tl.float64:
        u = 1 + e
        return tl.log(u) - ((u - 1) - e) / u  # less what 1 + e rounded up
    # Relative error 5e-9. The hardware's logarithm of 1 + e would be off by 1e-7 absolute: as much
    # as the whole loss of a pixel that is well learnt.
    q = e * -0.00324402461 + 0.0198514598
    q = q * e - 0.0569595295
    q = q * e + 0.106036544
    q = q * e - 0.153055923
    q = q * e + 0.196759392
    q = q * e - 0.249541336
    q = q * e + 0.333299624
    q = q * e - 0.499999024
    q = q * e + 0.999999995
    return q * e


@triton.jit
def sigmoid(x):
    """exp(-|x|), sigmoid(|x|) and sigmoid(x), without overflow."""
    e = tl.exp(-tl.abs(x))
    r = 1 / (1 + e)
    return e, r, tl.where(x >= 0, r, e * r)


@triton.jit
def pixel_iou_loss(s, other, m, smooth, REAL: tl.constexpr):
    """u = 1 - (s m + smooth) / (s + m - s m + smooth), where other = 1 - s."""
    if REAL is tl.float32:  # the argument is float64
        smooth = tl.cast(smooth, REAL)
    return (s * (1 - m) + m * other) / (s + m - s * m + smooth)


@triton.jit
def pixel_iou_slope(s, m, smooth, REAL: tl.constexpr):
    """du/ds, u as above."""
    if REAL is tl.float32:
        smooth = tl.cast(smooth, REAL)
    either = s + m - s * m + smooth
    return (smooth * (1 - 2 * m) - m * m) / (either * either)


@triton.jit
def pixel_gradient_factors(sums, upstream, REAL: tl.constexpr):
    """(a, b, 0) in d loss / d logit = a (s - m) v + s (1 - s) b du/ds w."""
    v_sum, w_sum = tl.load(sums), tl.load(sums + 3)
    nothing = v_sum == 0  # no valid pixel: loss and gradient are zero
    a = tl.where(nothing, 0.0, upstream / v_sum.to(REAL))
    return a, tl.where(nothing, 0.0, upstream / w_sum.to(REAL)), a * 0


@triton.jit
def image_gradient_factors(sums, upstream, smooth, REAL: tl.constexpr):
    """(a, b, c) in d loss / d logit = a (s - m) v + s (1 - s) (b - c m) w."""
    v_sum, intersection, total = tl.load(sums), tl.load(sums + 2), tl.load(sums + 3)
    nothing = v_sum == 0  # no valid pixel: loss and gradient are zero
    inverse = 1 / (total - intersection + smooth).to(REAL)
    scale = tl.where(nothing, 0.0, upstream * inverse)
    a = tl.where(nothing, 0.0, upstream / v_sum.to(REAL))
    b = scale * ((intersection + smooth).to(REAL) * inverse)
    return a, b, scale * ((total + 2 * smooth).to(REAL) * inverse)
