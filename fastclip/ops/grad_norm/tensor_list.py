"""csrc/tensors/tensor_list.cpp in Python, for GPU tensors where there is no native core."""

from __future__ import annotations

import functools
import math
from array import array
from collections.abc import Iterable

import torch
from torch import Tensor, nn

DTYPES = (
    torch.float32,
    torch.float64,
    torch.bfloat16,
    torch.float16,
)  # as chunk.h's DType


class PythonTensorList:
    """Plain, contiguous tensors of one device. NotImplementedError where they are not that."""

    def __init__(self, tensors: Iterable[Tensor], take_grads: bool) -> None:
        if take_grads:
            tensors = [p.grad for p in tensors if p.grad is not None]
        self.tensors = list(tensors)
        self.dtypes = 0
        seen: set[int] = set()
        for t in self.tensors:
            if type(t) not in (Tensor, nn.Parameter) or t.layout is not torch.strided:
                raise NotImplementedError(f"a {type(t).__name__}, not a plain tensor")
            if t.dtype not in DTYPES or t.device != self.tensors[0].device or t.is_neg():
                raise NotImplementedError(f"a {t.dtype} tensor on {t.device}")
            if not (t.is_contiguous() or t.is_contiguous(memory_format=torch.channels_last)):
                raise NotImplementedError("a tensor with gaps or overlaps in its memory")
            self.dtypes |= 1 << DTYPES.index(t.dtype)
            seen.add(t.data_ptr() if t.numel() else -1 - len(seen))
        if len(seen) != len(self.tensors):
            raise NotImplementedError("a tensor listed twice")
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
