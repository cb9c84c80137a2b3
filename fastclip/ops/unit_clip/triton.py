"""`unit_clip` through Triton: pairs of a weight and its gradient on one GPU, in one launch."""

from __future__ import annotations

import functools
from array import array
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fastclip.kernels.unit_clip import launch as kernels
from fastclip.ops.grad_norm.gpu import tables
from fastclip.ops.grad_norm.tensor_list import DTYPES, layers

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)  # whose squares fit float64


def clip_units_(parameters: Sequence[Tensor], clipping: float, eps: float) -> list[Tensor]:
    """Clips what the kernel takes; returns the parameters that it does not."""
    by_device: dict[torch.device, list[Tensor]] = {}
    rest = []
    for p in parameters:
        if p.grad is None:
            continue
        if _takes(p, p.grad):
            by_device.setdefault(p.device, []).append(p)
        else:
            rest.append(p)
    grads = [p.grad for some in by_device.values() for p in some if p.grad is not None]
    if any(layers(grads)):  # scaled at the same time, a product would be lost
        return list(parameters)
    for device, some in by_device.items():
        _clip_on(device, some, (clipping, eps))
    return rest


def _takes(weight: Tensor, grad: Tensor) -> bool:
    return (
        all(type(t) in (Tensor, nn.Parameter) and not t.is_neg() for t in (weight, grad))
        and all(t.layout is torch.strided and _has_whole_units(t) for t in (weight, grad))
        and weight.device == grad.device
        and tables.is_for_triton(grad.device)
        and weight.dtype == grad.dtype
        and grad.dtype in _DTYPES
        and weight.shape == grad.shape
    )


def _has_whole_units(t: Tensor) -> bool:
    """Whether a unit's elements lie together, in any order."""
    return t.is_contiguous() or t.is_contiguous(memory_format=torch.channels_last)


def _clip_on(device: torch.device, parameters: list[Tensor], rule: tuple[float, float]) -> None:
    rows, units, elements, dtypes = array("q", b"unit_clip"[:8]), 0, 0, 0
    for p in parameters:
        count = p.shape[0] if p.ndim > 1 else 1
        if p.grad is None or p.numel() == 0:
            continue
        units, elements = units + count, elements + p.numel()
        dtype = DTYPES.index(p.dtype)
        dtypes |= 1 << dtype
        for t in (p, p.grad):
            rows.extend((t.data_ptr(), p.numel() // count, dtype, units))
    if units == 0:
        return
    shape = kernels.shape_of(elements, units)
    key = rows.tobytes()
    with tables.current(device):
        table = tables.kept(key, device, functools.partial(_made, key))
        programs = tables.programs(device, shape.programs_each)
        kernels.launch(table, units, dtypes, programs, shape, rule)
    torch.autograd.graph.increment_version([p.grad for p in parameters if p.grad is not None])


def _made(key: bytes, staged: tables.Staged) -> Tensor:
    return staged(torch.frombuffer(bytearray(key[8:]), dtype=torch.int64).view(-1, 4))
