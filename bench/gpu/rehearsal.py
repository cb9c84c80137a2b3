"""Faults that a rehearsal puts in on purpose: FASTCLIP_REHEARSE=kernel,hang,loss."""

from __future__ import annotations

import os
import time

import torch

WANTED = tuple(filter(None, os.environ.get("FASTCLIP_REHEARSE", "").split(",")))


def wrong_kernel() -> dict[str, object]:
    """A check that finds a wrong result."""
    return {"failed": "rehearsed: relative error 5.0e-01, at most 1.0e-06 allowed"}


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
