"""The op `clip_value`: every element of every gradient clamped to [-limit, limit], in place.

Implementation on the CPU: the native core; on a GPU CUDA's kernel or Triton's: one read, and a
write only where something is clipped. Lists with anything else in them (several devices, DTensors
and other subclasses, gaps, sparse and complex gradients), code that is traced or observed, and
limits that are NaN, negative or past a dtype's range go to torch's own function, the reference.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor
from torch.nn import utils as _torch_clip

from fastclip import native
from fastclip.ops.grad_norm import backends
from fastclip.ops.grad_norm.gpu.backend import GpuGrads

# Captured at import, so that patching torch.nn.utils never makes the reference call itself.
clip_values_ref_ = _torch_clip.clip_grad_value_


def clip_values_(parameters: Sequence[Tensor], limit: float, foreach: bool | None) -> None:
    """Clamps the parameters' gradients; their versions move where something was clipped, on a GPU
    always: only the device knows."""
    if native.core is not None:
        try:
            written = native.core.clip_values(parameters, limit)
        except NotImplementedError:
            native.core.require_memory(parameters, True)  # torch would read what was freed
        else:
            torch.autograd.graph.increment_version(written)
            return None
    grads = backends.collect_whole(parameters, take_grads=True)
    if isinstance(grads, GpuGrads) and _fits(limit, grads.dtypes):
        return grads.clamp_(limit)
    return clip_values_ref_(parameters, limit, foreach)


def _fits(limit: float, dtypes: Iterable[torch.dtype]) -> bool:
    """Whether kernels clamp to it: a limit in the range of every dtype, or infinite."""
    if math.isnan(limit) or math.copysign(1.0, limit) < 0:
        return False
    return math.isinf(limit) or all(limit <= torch.finfo(dtype).max for dtype in dtypes)


def implementation(device: str) -> tuple[str, str]:
    """(name, why it is not a kernel) of what runs on a device, such as "cpu" or "cuda:1"."""
    return backends.implementation(device)
