"""The norms of many tensors for several orders: from kernels where they take them, in float64."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from fastclip.ops.grad_norm.absent import measured
from fastclip.ops.grad_norm.backends import collect
from fastclip.ops.grad_norm.reference import LARGEST_UNSCALED_ORDER, moved, norm_of
from fastclip.ops.grad_norm.sharded import plain_norm
from fastclip.ops.grad_norm.tensor_list import DTYPES


def has_norm(tensor: Tensor) -> bool:
    """Whether a tensor holds numbers that norms are of: not integers, packed bits or 8-bit floats.

    The elements of quantised tensors mean something only together with scales kept elsewhere.
    """
    return tensor.dtype in DTYPES or tensor.dtype.is_complex


def norms_of(tensors: Sequence[Tensor], *orders: float) -> Tensor:
    """The norm of each tensor for each order: [orders, tensors], float64.

    An empty tensor has the norm 0 (infinity for a negative order), and takes no kernel from the
    others. On the CPU the orders that the kernels have come from one read of memory.
    """
    some = [i for i, tensor in enumerate(tensors) if tensor.numel()]
    full = tensors if len(some) == len(tensors) else [tensors[i] for i in some]
    nothing = torch.empty(0, dtype=torch.float64)
    rows = _of_nonempty(full, orders) if full else [nothing for _ in orders]
    if len(some) < len(tensors):
        rows = [_spread(row, some, len(tensors), p) for row, p in zip(rows, orders, strict=True)]
    return torch.stack(rows) if rows else torch.zeros(0, len(tensors), dtype=torch.float64)


def grad_norms_of(parameters: Sequence[Tensor], *orders: float) -> Tensor:
    """`norms_of` the gradients that exist here. Where a DTensor has none, other ranks may have one
    and wait for a number of this rank's."""
    tensors, present = measured(parameters)
    norms = norms_of(tensors, *orders)
    return norms if present is None else norms[:, present]


def total_of(norms: Tensor, p: float) -> Tensor:
    """The p-norm of all elements of tensors whose p-norms these are: 0-d, float64."""
    if not norms.numel():
        return norms.new_zeros(())
    return norms.sum() if p == 0 else norm_of(norms, p)


def _of_nonempty(tensors: Sequence[Tensor], orders: Sequence[float]) -> list[Tensor]:
    kernels = collect(tensors, take_grads=False)
    by_kernels = [p for p in orders if kernels is not None and kernels.has_norm(p)]
    found = {}
    if kernels is not None and by_kernels:
        found = dict(zip(by_kernels, kernels.norms(*by_kernels), strict=True))
    if len(found) == len(set(orders)):
        return [found[p] for p in orders]
    # On several devices they meet on a GPU: a copy to it is queued, one from it would wait.
    home = next((t.device for t in tensors if t.device.type != "cpu"), tensors[0].device)
    for p in orders:
        if p not in found:
            found[p] = torch.stack([moved(_by_torch(t, p), home) for t in tensors])
    return [found[p] for p in orders]


def _by_torch(tensor: Tensor, p: float) -> Tensor:
    """The p-norm of one tensor that is not empty, by torch's functions, 0-d, float64."""
    if tensor.layout is not torch.strided:
        tensor = tensor.coalesce().values() if p >= 0 and tensor.is_sparse else tensor.to_dense()
        if not tensor.numel():
            return torch.zeros((), dtype=torch.float64, device=tensor.device)
    if tensor.dtype.is_complex:
        tensor = tensor.abs()
    if math.isinf(p):
        norm = torch.linalg.vector_norm(tensor, p).double()
    elif p != 0 and (tensor.dtype == torch.float64 or abs(p) > LARGEST_UNSCALED_ORDER):
        norm = norm_of(tensor.double().abs(), p)
    else:
        norm = torch.linalg.vector_norm(tensor, p, dtype=torch.float64)
    plain = plain_norm(norm)
    return norm if plain is None else plain


def _spread(row: Tensor, some: list[int], count: int, p: float) -> Tensor:
    """A row with the norms of empty tensors put in between."""
    whole = torch.full(
        (count,), 0.0 if p >= 0 else math.inf, dtype=torch.float64, device=row.device
    )
    return whole.index_copy_(0, moved(torch.tensor(some, dtype=torch.long), row.device), row)
