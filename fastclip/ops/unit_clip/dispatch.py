"""The op `unit_clip`: adaptive gradient clipping, each unit by the ratio of its two norms.

Implementation on the CPU: the native core, for plain tensors and the shards of DTensors
(sharded.py); on a GPU CUDA's kernel or Triton's, one launch for all. Everything else (units with
gaps in their memory, float64 on a GPU, other subclasses, gradients that share memory, code that is
traced or observed) goes to the reference, which waits for no GPU.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from fastclip import native
from fastclip.ops import float8, observed
from fastclip.ops.grad_norm import backends
from fastclip.ops.grad_norm.gpu import tables
from fastclip.ops.unit_clip import cuda, sharded
from fastclip.ops.unit_clip.reference import clip_units_ref_


def clip_units_(parameters: Iterable[Tensor], clipping: float, eps: float) -> None:
    """Scales each unit of each gradient whose norm is over clipping * max(|w|, eps).

    The factor is that limit over max(|g|, 1e-6). NotImplementedError for float8, of which neither
    is known: nothing is written then.
    """
    parameters = list(parameters)
    observed.call("clip_units_", _by_reference_, _by_core_, parameters, clipping, eps)


def _by_core_(parameters: list[Tensor], clipping: float, eps: float) -> None:
    if native.core is None:
        _refuse_float8(parameters)
    else:
        written, parameters = native.core.clip_units(
            parameters, clipping, eps, None, _refuse_float8
        )
        torch.autograd.graph.increment_version(written)
        if not parameters:
            return
    parameters = sharded.clip_units_(parameters, clipping, eps)
    parameters = cuda.clip_units_(parameters, clipping, eps)
    if any(tables.is_for_triton(p.device) for p in parameters) and backends.has_triton():
        from fastclip.ops.unit_clip.triton import clip_units_ as clip_on_gpus_  # imports triton

        parameters = clip_on_gpus_(parameters, clipping, eps)
    _by_reference_(parameters, clipping, eps)


def _refuse_float8(parameters: Sequence[Tensor]) -> None:
    pairs = [(p, p.grad) for p in parameters if p.grad is not None]
    float8.refuse(grad for _, grad in pairs)
    float8.refuse((weight for weight, _ in pairs), "the weight of gradient")


def _by_reference_(parameters: list[Tensor], clipping: float, eps: float) -> None:
    _refuse_float8(parameters)
    for p in parameters:
        if p.grad is not None:
            clip_units_ref_(p, p.grad, clipping, eps)


def implementation(device: str) -> tuple[str, str]:
    """(name, why it is not a kernel) of what runs on a device, such as "cpu" or "cuda:1"."""
    return backends.implementation(device)
