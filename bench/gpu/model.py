"""The time that a row of the table should take: bytes over a copy's bandwidth, and launches.

A pass is one read of all gradients, or one write. The norm is one; scaling is two more, which torch
takes always and fastclip where it clips. The loss's traffic is that of the kernels that see pixels.
"""

from __future__ import annotations

import math

LAUNCH_MS = 0.003  # a launch behind another, in a stream that is never empty
LOSS_LAUNCHES = 3  # the window's columns, the sums, the gradients
PAGE = 2040  # tensors of one CUDA launch; the table of Triton's has any number
PASSES = {  # (not clipping, clipping)
    "torch foreach": (3, 3),
    "torch compiled": (3, 3),
    "torch rewrite": (1, 3),
    "fastclip": (1, 3),
}


def clip_ms(
    variant: str, tensors: int, size: int, clipping: bool, copy_gb_per_s: float, launches: float
) -> float:
    """The expected time of a clip of `size` bytes in `tensors` tensors.

    Args:
        launches: as measured, of what is not fastclip's own.
    """
    name = "fastclip" if variant.startswith("fastclip") else variant
    if variant == "fastclip CUDA":
        launches = 2 * math.ceil(tensors / PAGE)
    elif variant == "fastclip Triton":
        launches = 3  # the norm, its sum, the scaling
    return passes_ms(PASSES[name][clipping], size, copy_gb_per_s, launches)


def passes_ms(passes: int, size: int, copy_gb_per_s: float, launches: float) -> float:
    """The time of some passes over `size` bytes."""
    return passes * size / copy_gb_per_s / 1e6 + LAUNCH_MS * launches


def loss_bytes(pixels: int, heads: int, logit_bytes: int, mask_bytes: int) -> int:
    """What the kernels of the loss move, forward and backward.

    column_sums reads the mask and writes a float32 map, image_sums and gradients read both and the
    logits, and gradients writes as much as those.
    """
    maps = 3 * mask_bytes + 3 * 4
    return pixels * (maps + 3 * heads * logit_bytes)


def loss_ms(variant: str, moved: int, own: int, copy_gb_per_s: float, launches: float) -> float:
    """The expected time of the loss: ours moves `own` bytes in three launches.

    Of the others it is a bound: the `moved` bytes that none can do without, and their launches.
    """
    if variant == "fastclip":
        return own / copy_gb_per_s / 1e6 + LAUNCH_MS * LOSS_LAUNCHES
    return moved / copy_gb_per_s / 1e6 + LAUNCH_MS * launches
