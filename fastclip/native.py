"""The native core, bound to torch, or the reason why it is not there."""

from __future__ import annotations

import os
from types import ModuleType

import torch


def _load() -> tuple[ModuleType | None, str]:
    if os.environ.get("FASTCLIP_NATIVE") == "0":
        return None, "FASTCLIP_NATIVE=0 is set"
    try:
        from fastclip import _native
    except ImportError as error:
        return None, f"this install has no native core ({error})"
    try:
        _native.bind_torch(torch.Tensor, torch.nn.Parameter, torch.autograd.graph.increment_version)
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
