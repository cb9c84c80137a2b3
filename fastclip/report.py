"""What this install runs on: versions, and the implementation of each op on each device."""

from __future__ import annotations

import platform
from importlib import metadata
from pathlib import Path

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
        f"openmp: {_openmp()}",
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
    if native.core is None:
        return f"no native core: {native.why_missing}"
    threads = torch.get_num_threads() if native.core.build_info()["openmp"] else 1
    return f"{native.name}, {threads} thread{'s' if threads != 1 else ''}"


def _openmp() -> str:
    """The pool of threads that the core's loops run on, which should be torch's."""
    if native.core is not None and not native.core.build_info()["openmp"]:
        return "not in the core, which was built for one thread"
    libraries = openmp_libraries()
    shown = ", ".join(str(path) for path in libraries) or "the library is not known on this system"
    if len(libraries) > 1:
        return f"{len(libraries)} pools; torch.set_num_threads may not reach all: {shown}"
    return f"{shown}, shared with torch" if libraries and native.core is not None else shown


def openmp_libraries() -> list[Path]:
    """The OpenMP libraries in this process, where the system lists what it has loaded."""
    maps = Path("/proc/self/maps")
    if not maps.exists():
        return []
    loaded = {line.split(maxsplit=5)[-1] for line in maps.read_text().splitlines() if "/" in line}
    names = ("libgomp", "libomp", "libiomp")
    return sorted(Path(path) for path in loaded if Path(path).name.startswith(names))


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"
