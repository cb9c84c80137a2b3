"""The op `unit_clip`: adaptive gradient clipping, each unit by the ratio of its two norms.

Implementation on the CPU: the native core; on a GPU Triton's kernel, one launch for all. Everything
else (units with gaps in their memory, float64 on a GPU, subclasses, gradients that share memory,
code that is traced or observed) goes to the reference, which waits for no GPU.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from fastclip import native
from fastclip.ops import observed
from fastclip.ops.grad_norm import backends
from fastclip.ops.grad_norm.gpu import tables

_GRAD_FLOOR = 1e-6  # of the norm that divides, as in the published code


def clip_units_(parameters: Iterable[Tensor], clipping: float, eps: float) -> None:
    """Scales each unit of each gradient whose norm is over clipping * max(|w|, eps).

    The factor is that limit over max(|g|, 1e-6).
    """
    parameters = list(parameters)
    observed.call("clip_units_", _by_reference_, _by_core_, parameters, clipping, eps)


def _by_core_(parameters: list[Tensor], clipping: float, eps: float) -> None:
    if native.core is not None:
        written, parameters = native.core.clip_units(parameters, clipping, eps)
        torch.autograd.graph.increment_version(written)
    if any(tables.is_for_triton(p.device) for p in parameters) and backends.has_triton():
        from fastclip.ops.unit_clip.triton import clip_units_ as clip_on_gpus_  # imports triton

        parameters = clip_on_gpus_(parameters, clipping, eps)
    _by_reference_(parameters, clipping, eps)


def _by_reference_(parameters: list[Tensor], clipping: float, eps: float) -> None:
    for p in parameters:
        if p.grad is not None:
            clip_units_ref_(p, p.grad, clipping, eps)


@torch.no_grad()
def clip_units_ref_(weight: Tensor, grad: Tensor, clipping: float, eps: float) -> None:
    """The same for one pair, in plain torch; in float64 where the device has it."""
    limit = clipping * _unit_norms(weight).clamp(min=eps)
    norm = _unit_norms(grad)
    within = (norm <= limit) & ~norm.isinf()
    grad.mul_(torch.where(within, 1.0, limit / norm.clamp(min=_GRAD_FLOOR)))


def _unit_norms(x: Tensor) -> Tensor:
    """The norm of each unit, shaped to broadcast; the square of no float32 leaves float64."""
    x = x.detach()
    dims = tuple(range(1, x.ndim)) if x.ndim > 1 else None
    if x.device.type == "mps":
        return torch.linalg.vector_norm(x.float(), dim=dims, keepdim=x.ndim > 1)
    if x.dtype == torch.float64 and x.numel():
        largest = x.abs().amax(dim=dims, keepdim=x.ndim > 1) if dims else x.abs().amax()
        scale = torch.where(largest.isfinite() & (largest > 0), largest, 1.0)
        return torch.linalg.vector_norm(x / scale, dim=dims, keepdim=x.ndim > 1) * scale
    wide = torch.complex128 if x.is_complex() else torch.float64
    return torch.linalg.vector_norm(x, dim=dims, keepdim=x.ndim > 1, dtype=wide)


def implementation(device: str) -> tuple[str, str]:
    """(name, why it is not a kernel) of what runs on a device, such as "cpu" or "cuda:1"."""
    if device == "cpu":
        return ("torch", native.why_missing) if native.core is None else (native.name, "")
    if not tables.is_for_triton(torch.device(device)):
        return "torch", f"fastclip has no {device} kernel for it"
    return ("Triton", "") if backends.has_triton() else ("torch", "Triton is not installed")
