"""Warnings that point at the user's line, not at the optimizer's or the trainer's."""

from __future__ import annotations

import sys
import warnings

_INSIDE = {
    *("fastclip", "torch", "contextlib", "functools"),
    *("accelerate", "lightning", "lightning_fabric", "pytorch_lightning", "transformers"),
}


def warn(text: str) -> None:
    """A UserWarning at the nearest line that is neither a library's of these nor fastclip's."""
    level, frame = 2, sys._getframe(1)
    while frame.f_back is not None and _package(frame.f_globals) in _INSIDE:
        level, frame = level + 1, frame.f_back
    warnings.warn(text, UserWarning, stacklevel=level)


def _package(scope: dict[str, object]) -> str:
    return str(scope.get("__name__", "")).partition(".")[0]
