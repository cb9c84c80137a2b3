"""What this install runs on: versions, and the implementation of each op on each device."""

from __future__ import annotations

import math
import platform
from importlib import metadata

import torch

from fastclip import native
from fastclip.distribution import other_library
from fastclip.ops.clip_value import dispatch as clip_value
from fastclip.ops.grad_norm import backends as grad_norm
from fastclip.ops.structure_loss import dispatch as structure_loss
from fastclip.ops.unit_clip import dispatch as unit_clip
from fastclip.version import __version__


def report() -> str:
    """A printable page: versions, devices, and for each op who runs it and, if a fallback, why."""
    cuda = torch.cuda.get_device_name() if torch.cuda.is_available() else "no CUDA device"
    lines = [
        f"fastclip {__version__}, torch {torch.__version__}, triton {_version('triton')}, "
        f"Python {platform.python_version()}",
        f"cpu: {_core()}",
        f"threads: {_threads()}",
        f"gpu: {cuda}",
        *([f"warning: {other}"] if (other := other_library()) else []),
        "",
    ]
    devices = _devices()
    width = max(map(len, devices)) + 2
    for name, op in (
        ("grad_norm", grad_norm),
        ("structure_loss", structure_loss),
        ("clip_value", clip_value),
        ("unit_clip", unit_clip),
    ):
        for device in devices:
            implementation, reason = op.implementation(device)
            because = f"  (fallback: {reason})" if reason else ""
            lines.append(f"{name:<16}{device:<{width}}{implementation}{because}")
    return "\n".join(lines)


def _devices() -> list[str]:
    """The CPU and every GPU; where there is none, what a CUDA device would have."""
    cuda = [f"cuda:{i}" for i in range(torch.cuda.device_count())]
    return ["cpu", *(cuda or ["cuda"]), *(["xpu"] if torch.xpu.is_available() else [])]


def _core() -> str:
    return f"no native core: {native.why_missing}" if native.core is None else native.name


def _threads() -> str:
    """How many threads the core's loops run on, and which of the limits decided."""
    if native.core is None:
        return f"{torch.get_num_threads()} (torch's)"
    limits = native.core.thread_limits()
    used = int(limits["used"])
    quota = limits["quota"]
    named = {
        f"torch.get_num_threads() is {limits['torch']}": limits["torch"],
        f"this process may run on {limits['affinity']} processors": limits["affinity"],
        f"the container's CPU quota is {quota:g} processors": math.ceil(quota) if quota else 0,
    }
    decided = [text for text, value in named.items() if value == used]
    return f"{used}: {', '.join(decided) or 'there is no fewer'}"


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"
