"""The op `clip_value`: every element of every gradient clamped to [-limit, limit], in place.

Implementation on the CPU: the native core; on a GPU CUDA's kernel or Triton's: one read, and a
write only where something is clipped. Of DTensors that are shards or copies the local tensors are
clamped. Lists with anything else in them (several devices, DTensors that are summands, other
subclasses, gaps, sparse and complex gradients), code that is traced or observed, and limits that
are NaN, negative or past a dtype's range go to torch's own function, the reference.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor
from torch.nn import utils as _torch_clip

from fastclip import native
from fastclip.ops import float8
from fastclip.ops.grad_norm import backends
from fastclip.ops.grad_norm.gpu.backend import GpuGrads
from fastclip.ops.grad_norm.sorting import is_dtensor, sort

# Captured at import, so that patching torch.nn.utils never makes the reference call itself.
_clip_values_ = _torch_clip.clip_grad_value_


def clip_values_ref_(parameters: Sequence[Tensor], limit: float, foreach: bool | None) -> None:
    """torch's clip_grad_value_; NotImplementedError for float8, before any is written."""
    float8.refuse(p.grad for p in parameters if p.grad is not None)
    _clip_values_(parameters, limit, foreach)


def clip_values_(parameters: Sequence[Tensor], limit: float, foreach: bool | None) -> None:
    """Clamps the parameters' gradients; their versions move where something was clipped, on a GPU
    always: only the device knows."""
    if _clip_plain_(parameters, limit, take_grads=True) is not None:
        return
    if native.core is not None:
        native.core.require_memory(parameters, True)  # torch would read what was freed
    if not _clip_shards_(parameters, limit):
        clip_values_ref_(parameters, limit, foreach)


def _clip_plain_(tensors: Sequence[Tensor], limit: float, take_grads: bool) -> list[Tensor] | None:
    """Clamps plain tensors of one device, or with `take_grads` their gradients.

    Returns:
        What was written, on a GPU all of `tensors`. None where no kernel takes the list, of which
        nothing is changed then.
    """
    if native.core is not None:
        try:  # not contextlib.suppress, which costs a tenth of a short call
            written = native.core.clip_values(tensors, limit, take_grads)
        except NotImplementedError:
            pass
        else:
            torch.autograd.graph.increment_version(written)
            return written
    grads = backends.collect_whole(tensors, take_grads=take_grads)
    if not isinstance(grads, GpuGrads) or not _fits(limit, grads.dtypes):
        return None
    grads.clamp_(limit)
    return list(tensors)


def _clip_shards_(parameters: Sequence[Tensor], limit: float) -> bool:
    """The same of a list with DTensors, by their local tensors; returns whether it could.

    Raises:
        ValueError: a shard's storage was freed, which torch would read.
    """
    if not any(is_dtensor(p.grad) for p in parameters):
        return False
    found = sort(parameters, take_grads=True)
    if found.error is not None:
        raise ValueError(found.error)
    groups = [group for group in found.groups if group.locals]
    if any(placement.is_partial() for group in groups for placement in group.placements or ()):
        return False  # a sum over ranks, of which no element lies anywhere
    locals = [local for group in groups for local in group.locals]
    wholes = [tensor for group in groups for tensor in group.tensors]
    written = _clip_plain_(locals, limit, take_grads=False)
    if written is None:
        return False
    moved = {id(local) for local in written}
    torch.autograd.graph.increment_version(
        [
            whole
            for whole, local in zip(wholes, locals, strict=True)
            if id(local) in moved and is_dtensor(whole)
        ]
    )
    return True


def _fits(limit: float, dtypes: Iterable[torch.dtype]) -> bool:
    """Whether kernels clamp to it: a limit in the range of every dtype, or infinite."""
    if math.isnan(limit) or math.copysign(1.0, limit) < 0:
        return False
    return math.isinf(limit) or all(limit <= torch.finfo(dtype).max for dtype in dtypes)


def implementation(device: str) -> tuple[str, str]:
    """(name, why it is not a kernel) of what runs on a device, such as "cpu" or "cuda:1"."""
    return backends.implementation(device)
