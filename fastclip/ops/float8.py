"""Refuses floats of 8 bits: such numbers mean nothing without a scale, which lies elsewhere.

torch has neither their norm nor their product on the CPU; its error names no gradient.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

_DTYPES = frozenset(
    dtype
    for dtype in vars(torch).values()
    if isinstance(dtype, torch.dtype) and dtype.is_floating_point and dtype.itemsize == 1
)


def refuse(tensors: Iterable[Tensor], what: str = "gradient") -> None:
    """Raises for the first float8 tensor, before anything is read or written.

    Args:
        tensors: of any dtypes.
        what: they are, for the error.

    Raises:
        NotImplementedError: names its place, dtype and shape. As torch raises where it has no norm.
    """
    for i, tensor in enumerate(tensors):
        if tensor.dtype in _DTYPES:
            raise NotImplementedError(
                f"{what} {i} is {tensor.dtype}, of shape {list(tensor.shape)}: float8 numbers have "
                "a scale that lies elsewhere, so neither their norm nor a limit on it means "
                "anything. Clip before gradients are made float8, or give tensors with the scale "
                "multiplied in: tensor.float() * scale"
            )
