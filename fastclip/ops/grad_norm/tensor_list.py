"""csrc/tensors/tensor_list.cpp in Python, for GPU tensors where there is no native core."""

from __future__ import annotations

import functools
import math
from array import array
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from fastclip.ops.grad_norm.sorting import is_dtensor

DTYPES = (
    torch.float32,
    torch.float64,
    torch.bfloat16,
    torch.float16,
)  # as chunk.h's DType
DEVICE_TYPES = ("cpu", "cuda", "xpu")


class PythonTensorList:
    """Plain, contiguous tensors of one device. NotImplementedError where they are not that."""

    def __init__(self, tensors: Iterable[Tensor], take_grads: bool) -> None:
        if take_grads:
            tensors = list(tensors)
            if any(p.grad is None and is_dtensor(p) and p.requires_grad for p in tensors):
                raise NotImplementedError("a gradient that other ranks may have")
            tensors = [p.grad for p in tensors if p.grad is not None]
        self.tensors = list(tensors)
        self.dtypes = 0
        for t in self.tensors:
            if type(t) not in (Tensor, nn.Parameter) or t.layout is not torch.strided:
                raise NotImplementedError(f"a {type(t).__name__}, not a plain tensor")
            if t.dtype not in DTYPES or t.device != self.tensors[0].device or t.is_neg():
                raise NotImplementedError(f"a {t.dtype} tensor on {t.device}")
            if not (t.is_contiguous() or t.is_contiguous(memory_format=torch.channels_last)):
                raise NotImplementedError("a tensor with gaps or overlaps in its memory")
            self.dtypes |= 1 << DTYPES.index(t.dtype)
        if any(layers(self.tensors)):
            raise NotImplementedError("tensors that share memory")
        self._has_empty = any(t.numel() == 0 for t in self.tensors)

    def __len__(self) -> int:
        return len(self.tensors)

    def has_norm(self, p: float) -> bool:
        """Whether kernels may define the norm of order p for these tensors as torch does."""
        has_identity = 0 < p < math.inf  # else torch raises for an empty tensor
        return p != 0 and not math.isnan(p) and (has_identity or not self._has_empty)

    @property
    def device(self) -> tuple[int, int]:
        """DLPack's device type and the index."""
        device = self.tensors[0].device if self.tensors else torch.device("cpu")
        kinds = {"cpu": 1, "cuda": 2 if torch.version.hip is None else 10, "xpu": 14}
        return kinds.get(device.type, 0), device.index or 0

    def addresses(self) -> bytes:
        """(address, elements, index of the dtype) of each tensor, as int64."""
        table = array("q")
        for t in self.tensors:
            table.extend((t.data_ptr(), t.numel(), DTYPES.index(t.dtype)))
        return table.tobytes()


@functools.cache
def promoted(dtypes: int) -> torch.dtype:
    """The dtype that torch promotes to, of a set of DTYPES given as bits."""
    present = [dtype for i, dtype in enumerate(DTYPES) if dtypes >> i & 1]
    return functools.reduce(torch.promote_types, present)


def is_scalar(norm: Tensor) -> bool:
    """Whether kernels read it as torch reads a norm: 0-d and real. Torch has its say on others."""
    return norm.ndim == 0 and norm.layout is torch.strided and norm.dtype in DTYPES


def layers(tensors: Sequence[Tensor]) -> list[int]:
    """A number for each strided tensor: those of one number share no memory, so that they may be
    written at the same time. All are 0 where no two overlap."""
    spans = [_span(t) for t in tensors]
    numbers = [0] * len(spans)
    ends: list[int] = []  # of each layer: where what it holds so far ends
    for row in sorted(range(len(spans)), key=spans.__getitem__):
        begin, end = spans[row]
        layer = next((i for i, used in enumerate(ends) if used <= begin), len(ends))
        ends[layer:] = [end, *ends[layer + 1 :]]
        numbers[row] = layer
    return numbers


def _span(t: Tensor) -> tuple[int, int]:
    if not t.numel():
        return 0, 0
    extent = 1 + sum((n - 1) * stride for n, stride in zip(t.shape, t.stride(), strict=True))
    return t.data_ptr(), t.data_ptr() + extent * t.element_size()


def is_plain(tensor: Tensor) -> bool:
    """Whether torch's and our functions read it as numbers of ours: the same on all ranks."""
    return (
        type(tensor) in (Tensor, nn.Parameter)
        and tensor.layout is torch.strided
        and tensor.dtype in DTYPES
        and tensor.device.type in DEVICE_TYPES
        and not torch._C._functorch.is_functorch_wrapped_tensor(tensor)
    )


def is_writable(tensor: Tensor) -> bool:
    """Whether torch would multiply it in place; it says what is wrong with others."""
    return not tensor._is_zerotensor() and torch._debug_has_internal_overlap(tensor) != 1
