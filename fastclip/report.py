"""What this install runs on: versions, and the implementation of each op on each device."""

from __future__ import annotations

import platform
from importlib import metadata

import torch

from fastclip import native
from fastclip.ops.clip_value import dispatch as clip_value
from fastclip.ops.grad_norm import backends as grad_norm
from fastclip.ops.structure_loss import dispatch as structure_loss
from fastclip.ops.unit_clip import dispatch as unit_clip


def report() -> str:
    """A printable page: versions, devices, and for each op who runs it and, if a fallback, why."""
    cuda = torch.cuda.get_device_name() if torch.cuda.is_available() else "no CUDA device"
    lines = [
        f"fastclip {_version('fastclip')}, torch {torch.__version__}, triton {_version('triton')}, "
        f"Python {platform.python_version()}",
        f"cpu: {_core()}",
        f"gpu: {cuda}",
        "",
    ]
    for name, op in (
        ("grad_norm", grad_norm),
        ("structure_loss", structure_loss),
        ("clip_value", clip_value),
        ("unit_clip", unit_clip),
    ):
        for device in ("cpu", "cuda"):
            implementation, reason = op.implementation(device)
            because = f"  (fallback: {reason})" if reason else ""
            lines.append(f"{name:<16}{device:<6}{implementation}{because}")
    return "\n".join(lines)


def _core() -> str:
    if native.core is None:
        return f"no native core: {native.why_missing}"
    return f"{native.name}, {torch.get_num_threads()} threads"


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"
