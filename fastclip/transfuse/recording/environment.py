"""What a run ran on: versions, processor, device."""

from __future__ import annotations

import contextlib
import os
import platform
import sys
from importlib import metadata
from pathlib import Path

import torch

import fastclip

PACKAGES = ("torchvision", "timm", "numpy")


def environment(device: torch.device) -> dict[str, str]:
    """Names and values for a reader who wants to run it again; nothing about user or host."""
    found = {
        "fastclip": fastclip.__version__,
        "torch": torch.__version__,
        "Python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "processor": processor(),
        "cores": str(os.cpu_count()),
        "threads": str(torch.get_num_threads()),
        "device": device_name(device),
    }
    for package in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[package] = metadata.version(package)
    if device.type == "cuda":
        found["CUDA"] = str(torch.version.cuda or torch.version.hip)
        found["cuDNN"] = str(torch.backends.cudnn.version())
    return found


def device_name(device: torch.device) -> str:
    """'cpu', or the name of the GPU."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)


def processor() -> str:
    """Its name as the system gives it."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError):
            for line in Path("/proc/cpuinfo").read_text().splitlines():
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
