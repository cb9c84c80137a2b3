"""What several commands check in the same way: numbers in range, sizes, devices."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Literal

import torch

from fastclip.transfuse.network.model import architecture, check_size

Split = Literal["train", "val", "test", "all"]
Device = Literal["auto", "cpu", "cuda", "mps"]


def require(config: object, name: str, valid: bool, expected: str) -> None:
    """Raise ValueError with the flag of field `name`, what it must be, and its value."""
    if not valid:
        flag = name.replace("_", "-")
        raise ValueError(f"--{flag} must be {expected}, got {getattr(config, name)}")


def require_at_least(config: object, least: int, *names: str) -> None:
    """Raise ValueError for a field below `least`; None passes."""
    for name in names:
        value = getattr(config, name)
        expected = "0 or more" if least == 0 else f"at least {least}"
        require(config, name, value is None or value >= least, expected)


def require_positive(config: object, *names: str) -> None:
    """Raise ValueError for a field that is not above 0 (NaN is not); None passes."""
    for name in names:
        value = getattr(config, name)
        require(config, name, value is None or value > 0, "more than 0")


def finite(value: float) -> bool:
    """True for a number that is 0 or more, and finite."""
    return 0 <= value < math.inf


def image_size(text: str | None, model: str) -> tuple[int, int]:
    """(H, W) of 'HxW'; None is the published size of `model`. ValueError for anything else."""
    arch = architecture(model)
    if text is None:
        return arch.size
    match = re.fullmatch(r"(\d+)[xX](\d+)", text.strip())
    if match is None:
        raise ValueError(f"--size must be HxW, for example 192x256, got {text!r}")
    height, width = int(match[1]), int(match[2])
    check_size(height, width)
    return height, width


def uses_bf16(precision: str, device: torch.device) -> bool:
    """True where the network runs under bfloat16 autocast."""
    if precision != "auto":
        return precision == "bf16"
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu":
        # Emulated on other processors, and then slower than float32.
        has: Mapping[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
        return bool(has.get("avx512_bf16") or has.get("amx_bf16"))
    return False


def autocast_dtype(precision: str, device: torch.device) -> torch.dtype | None:
    """The dtype of autocast of a --precision; None where the network runs in float32."""
    if precision == "fp16":
        return torch.float16
    return torch.bfloat16 if uses_bf16(precision, device) else None


def torch_device(name: str) -> torch.device:
    """The device that 'auto', 'cpu', 'cuda' or 'mps' stands for; ValueError where it is absent."""
    present = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    if name == "auto":
        name = next(device for device, there in present.items() if there)
    if not present[name]:
        raise ValueError(f"--device {name}: this torch sees no such device here")
    return torch.device(name)
