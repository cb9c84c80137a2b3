"""The native core, bound to torch, or the reason why it is not there."""

from __future__ import annotations

import os
from types import ModuleType

import torch


def bind(module: ModuleType) -> None:
    """Tells a build of the core about this torch, with tensors to try its layout on."""
    with torch.inference_mode():
        inference = [torch.empty(1, device="cpu"), torch.empty(2, 3, device="cpu").t()]
    with torch.inference_mode(False):
        normal = [torch.empty(1, device="cpu"), torch.empty(2, 3, device="cpu").t()]
        normal.append(torch.nn.Parameter(torch.empty(2, device="cpu")))
    increment_version = torch.autograd.graph.increment_version
    module.bind_torch(torch.Tensor, torch.nn.Parameter, increment_version, inference, normal)


def _load() -> tuple[ModuleType | None, str]:
    if os.environ.get("FASTCLIP_NATIVE") == "0":
        return None, "FASTCLIP_NATIVE=0 is set"
    try:
        from fastclip import _native
    except ImportError as error:
        return None, f"this install has no native core ({error})"
    try:
        bind(_native)
    except RuntimeError as error:
        return None, str(error)
    return _native, ""


core, why_missing = _load()
"""The extension module, or None; and why it is None."""

name = f"native ({core.build_info()['isa']})" if core is not None else ""
"""How a report calls the core, with the instruction-set level that it chose."""


def require() -> ModuleType:
    """The extension module, where a caller has made sure that it is there."""
    if core is None:
        raise RuntimeError(f"fastclip's native core is not available: {why_missing}")
    return core
