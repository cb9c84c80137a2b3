"""The op `unit_clip`: adaptive gradient clipping, each unit by the ratio of its two norms.

Implementation on the CPU: the native core. Everything else (GPUs, units with gaps in their memory,
subclasses, gradients that share memory, code that is traced or observed) goes to the reference,
which waits for no GPU.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from fastclip import native
from fastclip.ops import observed


def clip_units_(parameters: Iterable[Tensor], clipping: float, eps: float) -> None:
    """Scales each unit of each gradient by min(1, clipping * max(|w|, eps) / max(|g|, 1e-6))."""
    parameters = list(parameters)
    observed.call("clip_units_", _by_reference_, _by_core_, parameters, clipping, eps)


def _by_core_(parameters: list[Tensor], clipping: float, eps: float) -> None:
    if native.core is not None:
        written, parameters = native.core.clip_units(parameters, clipping, eps)
        torch.autograd.graph.increment_version(written)
    _by_reference_(parameters, clipping, eps)


def _by_reference_(parameters: list[Tensor], clipping: float, eps: float) -> None:
    for p in parameters:
        if p.grad is not None:
            clip_units_ref_(p, p.grad, clipping, eps)


@torch.no_grad()
def clip_units_ref_(weight: Tensor, grad: Tensor, clipping: float, eps: float) -> None:
    """The same for one pair, in plain torch; in float32 at least."""
    limit = clipping * _unit_norms(weight).clamp(min=eps)
    factor = (limit / _unit_norms(grad).clamp(min=1e-6)).clamp(max=1.0)
    grad.mul_(factor)


def _unit_norms(x: Tensor) -> Tensor:
    x = x.detach().float() if x.dtype in (torch.float16, torch.bfloat16) else x.detach()
    if x.ndim <= 1:
        return torch.linalg.vector_norm(x)
    return torch.linalg.vector_norm(x, dim=tuple(range(1, x.ndim)), keepdim=True)


def implementation(device: str) -> tuple[str, str]:
    """(name, why it is not a kernel) of what runs on a device type."""
    if device != "cpu":
        return "torch", f"fastclip has no {device} kernel for it"
    if native.core is None:
        return "torch", native.why_missing
    return native.name, ""
