"""Faults that a rehearsal puts in on purpose: FASTCLIP_REHEARSE=kernel,hang,loss."""

from __future__ import annotations

import contextlib
import functools
import os
import time
from collections.abc import Callable

import torch
from torch import Tensor

from fastclip.ops.grad_norm.cpu import CpuGrads
from fastclip.ops.grad_norm.gpu.backend import GpuGrads

WANTED = tuple(filter(None, os.environ.get("FASTCLIP_REHEARSE", "").split(",")))


def wrong_kernel() -> dict[str, object]:
    """The check of clipping, with kernels that clip to half of what they are asked for."""
    from gpu import check  # imports this

    with contextlib.ExitStack() as undo:
        for backend in (CpuGrads, GpuGrads):
            right = backend.clip_
            undo.callback(setattr, backend, "clip_", right)
            wrong = functools.partialmethod(_clipped_to_half, right)
            setattr(backend, "clip_", wrong)  # noqa: B010 (mypy wants no method assigned)
        return check.clip_check((torch.float32,), "cuda" if torch.cuda.is_available() else "cpu")


def _clipped_to_half(backend: object, right: Callable, max_norm: float, p: float) -> Tensor:
    return right(backend, max_norm / 2, p)


def hanging() -> dict[str, object]:
    """A check that never ends."""
    time.sleep(3600)
    return {}


def lost_device() -> dict[str, object]:
    """A check after which the device answers no more."""
    os.environ["FASTCLIP_REHEARSED_LOSS"] = "1"
    raise torch.AcceleratorError("rehearsed: an illegal memory access was encountered")


FAULTS = {"kernel": wrong_kernel, "hang": hanging, "loss": lost_device}
CHECKS = {f"rehearsed fault: {name}": FAULTS[name] for name in WANTED}
