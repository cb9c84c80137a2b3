"""Which arrays of values are plainly binary masks, and which are not."""

from __future__ import annotations

import numpy as np

SHOWN = 12  # values that an error lists
FLAT_SHARE = 0.01  # of the object: flat gray areas beyond it are classes, not soft edges


class NotBinary(ValueError):
    """Values that could mean several things; the text lists them."""


def binary_map(
    values: np.ndarray, *, white: float | None = None, lossy: bool = False, soft: bool = False
) -> tuple[np.ndarray, str]:
    """Bring stored values to 0..255 where their meaning is plain.

    Args:
        values: [H, W], of any real dtype or bool.
        white: the largest value that the format can hold; that of the dtype where None.
        lossy: the file's compression changes values a little, as JPEG does.
        soft: gray values are shares of the object, without a look at their distribution.

    Returns:
        uint8 [H, W], 0 ground and 255 object, and the name of the rule.

    Raises:
        NotBinary: no rule fits.
    """
    if values.dtype == bool:
        return values.astype(np.uint8) * 255, "1 bit"
    if values.dtype.kind not in "uif":
        raise NotBinary(f"holds {values.dtype}: a mask is 0 and 1, or 0 and 255")
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise NotBinary("holds NaN or infinite values: a mask is 0 and 1, or 0 and 255")
    low, top = float(values.min(initial=0)), float(values.max(initial=0))
    if top == 0 and low == 0:
        return np.zeros(values.shape, np.uint8), "empty"
    if not lossy or top == 1:
        full = white or (1.0 if values.dtype.kind == "f" else float(np.iinfo(values.dtype).max))
        for scale in (1.0, 255.0, full):
            if top == scale and ((values == 0) | (values == scale)).all():
                name = f"0/{scale:g}"
                return (values == scale).astype(np.uint8) * 255, name
    return _gray_map(values, low, top, white, lossy, soft)


def _gray_map(
    values: np.ndarray, low: float, top: float, white: float | None, lossy: bool, soft: bool
) -> tuple[np.ndarray, str]:
    """Shares of the object, where the values are plainly such."""
    if values.dtype.kind == "f" and low >= 0 and top <= 1:
        gray = np.rint(values * 255).astype(np.uint8)
    elif values.dtype == np.uint8:
        gray = values
    elif soft and low >= 0 and values.dtype.kind in "ui":
        full = white or float(np.iinfo(values.dtype).max)
        gray = np.rint(values / full * 255).astype(np.uint8)
    else:
        raise NotBinary(_refusal(values))
    if soft:
        return gray, "soft"
    counts = np.bincount(gray.reshape(-1), minlength=256)
    if lossy and _is_damaged(gray, counts):
        return (gray >= 128).astype(np.uint8) * 255, "damaged by compression, cut at 128"
    if not lossy and np.count_nonzero(counts) == 2 and counts[0] and counts[240:].any():
        return (gray > 0).astype(np.uint8) * 255, f"0/{top:g}"
    if not lossy and _is_soft(gray, counts):
        return gray, "gray, soft edges"
    raise NotBinary(_refusal(values))


def _is_soft(gray: np.ndarray, counts: np.ndarray) -> bool:
    """True for antialiased, resized or blurred masks: mostly black and white, no flat grays."""
    if not counts[240:].any() or counts[192:].sum() < 0.4 * counts[64:].sum():
        return False
    if counts[1:100].any() and not counts[100:240].any():  # class numbers, and 255 for ignore
        return False
    # Few values are numbers or the levels of antialiasing; many near 0 come from compression.
    first = 1 if np.count_nonzero(counts) <= 32 else 16
    return _flat(gray, first, 239) <= FLAT_SHARE * counts[128:].sum()


def _is_damaged(gray: np.ndarray, counts: np.ndarray) -> bool:
    """True for black and white under the noise of a lossy format."""
    if not counts[240:].any() or counts[192:].sum() < 0.4 * counts[64:].sum():
        return False
    flat = FLAT_SHARE * counts[128:].sum()
    return _flat(gray, 16, 239) <= flat and _flat(gray, 1, 15) <= 0.05 * gray.size


def _flat(gray: np.ndarray, first: int, last: int) -> int:
    """Pixels from `first` to `last` whose eight neighbours have the same value."""
    centre = gray[1:-1, 1:-1]
    same = (centre >= first) & (centre <= last)
    height, width = centre.shape
    for y in range(3):
        for x in range(3):
            same &= gray[y : y + height, x : x + width] == centre
    return int(np.count_nonzero(same))


def list_values(values: np.ndarray) -> str:
    """The distinct values, the first few of many."""
    found = np.unique(values)
    text = ", ".join(f"{value:g}" for value in found[:SHOWN].tolist())
    return text if len(found) <= SHOWN else f"{text} and {len(found) - SHOWN} more"


def _refusal(values: np.ndarray) -> str:
    low, top = min(0.0, float(values.min())), float(values.max())
    return (
        f"holds values {low:g}..{top:g}: a mask is 0 and 1, or 0 and 255, and this one has "
        f"{list_values(values)}; say what they mean: --classes N (class numbers), --instances "
        "union (object numbers), --ignore VALUE (pixels that do not count), --soft (shares)"
    )
