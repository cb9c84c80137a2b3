"""The op `clip_value`: every element of every gradient clamped to [-limit, limit], in place.

Implementation on the CPU: the native core, in one read and a write only where something is clipped.
Lists with anything else in them (GPUs, DTensors and other subclasses, gaps, sparse and complex
gradients), code that is traced or observed, and limits that are NaN, negative or past a dtype's
range go to torch's own function, which is the reference.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import utils as _torch_clip

from fastclip import native

# Captured at import, so that patching torch.nn.utils never makes the reference call itself.
clip_values_ref_ = _torch_clip.clip_grad_value_


def clip_values_(parameters: Sequence[Tensor], limit: float, foreach: bool | None) -> None:
    """Clamps the parameters' gradients; their versions move where something was clipped."""
    if native.core is None:
        return clip_values_ref_(parameters, limit, foreach)
    try:
        written = native.core.clip_values(parameters, limit)
    except NotImplementedError:
        native.core.require_memory(parameters, True)  # torch would read what was freed
        return clip_values_ref_(parameters, limit, foreach)
    torch.autograd.graph.increment_version(written)


def implementation(device: str) -> tuple[str, str]:
    """(name, why it is not a kernel) of what runs on a device type."""
    if device != "cpu":
        return "torch", f"fastclip has no {device} kernel for it"
    if native.core is None:
        return "torch", native.why_missing
    return native.name, ""
