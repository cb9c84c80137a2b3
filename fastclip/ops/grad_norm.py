"""The op `grad_norm`: norms of many tensors, and their scaling, in one pass over memory each.

Owner on the CPU: the native core. Everything else (other devices, sparse, complex, subclasses,
tensors with gaps or overlaps, traced code) goes to torch's own functions, which are the reference.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable

import torch
from torch import Tensor
from torch.nn import utils as _torch_clip

from fastclip import native

# Captured at import, so that patching torch.nn.utils never makes the reference call itself.
total_norm_ref = _torch_clip.get_total_norm
scale_ref_ = _torch_clip.clip_grads_with_norm_
clip_ref_ = _torch_clip.clip_grad_norm_

_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)  # csrc/chunk.h: DType


class GradList:
    """Tensors that the native core reads and writes in place; keeps them alive."""

    def __init__(self, tensors: Iterable[Tensor], *, take_grads: bool) -> None:
        assert native.core is not None  # collect() is the only caller
        self._list = native.core.TensorList(tensors, take_grads)

    def __len__(self) -> int:
        return len(self._list)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of torch's result for these tensors."""
        return _promoted(self._list.dtypes)

    def norm(self, p: float) -> float:
        """The p-norm of all elements, to double precision's rounding of the sum."""
        return native.core.grad_norm(self._list, p, False)[0]  # type: ignore[union-attr]

    def norms(self, p: float) -> list[float]:
        """The p-norm of each tensor."""
        return native.core.grad_norm(self._list, p, True)[1]  # type: ignore[union-attr]

    def scale_(self, factor: float) -> None:
        """Multiplies every element; torch's version counters see it."""
        native.core.scale_grads(self._list, factor)  # type: ignore[union-attr]
        torch.autograd.graph.increment_version(self._list.tensors)

    def has_norm(self, p: float) -> bool:
        """Whether the kernels define this p for these tensors as torch does."""
        return p != 0 and not math.isnan(p) and not (math.isinf(p) and self._list.has_empty)


def collect(tensors: Iterable[Tensor], *, take_grads: bool) -> GradList | None:
    """The tensors (with take_grads their gradients that exist), if the native core owns them."""
    if native.core is None or torch.compiler.is_compiling():
        return None
    try:
        return GradList(tensors, take_grads=take_grads)
    except native.core.Unsupported:
        return None


@functools.cache
def _promoted(dtypes: int) -> torch.dtype:
    present = [dtype for i, dtype in enumerate(_DTYPES) if dtypes >> i & 1]
    return functools.reduce(torch.promote_types, present)


def owner(device: str) -> tuple[str, str]:
    """(implementation, why it is not a kernel) for a device type."""
    if device != "cpu":
        return "torch", f"fastclip has no {device} kernel for it yet"
    if native.core is None:
        return "torch", native.why_missing
    return f"native ({native.core.build_info()['isa']})", ""
