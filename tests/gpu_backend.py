"""The backends of grad_norm on a GPU, as tests meet them, and tensors where each takes them."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fastclip.ops.grad_norm import backends

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
NORMS = (1.0, 2.0, math.inf)
SHAPES = [(3,), (64, 3, 7, 7), (512,), (256, 128, 3, 3), (1000, 512), (1,), (8193,)]
ON_GPU = [pytest.param(name, marks=pytest.mark.gpu) for name in ("cuda", "triton")]
ON_HOST = "cuda on host"
needs_cuda_build = pytest.mark.skipif(
    not torch.backends.cuda.is_built(), reason="fake CUDA tensors need a torch built with CUDA"
)


class Backend:
    """One backend, and the device whose tensors are its own."""

    def __init__(self, device: str) -> None:
        self.device = device

    def collect(self, tensors: Sequence[Tensor]) -> Any:
        return backends.collect(tensors, take_grads=False)

    @contextlib.contextmanager
    def quiet(self) -> Iterator[None]:
        """Any wait for the device is an error."""
        if self.device == "cpu":
            yield
            return
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            yield
        finally:
            torch.cuda.set_sync_debug_mode("default")

    def randn(
        self, shape: int | tuple[int, ...], dtype: torch.dtype = torch.float32, seed: int = 0
    ) -> Tensor:
        generator = torch.Generator(self.device).manual_seed(seed)
        x = torch.randn(shape, generator=generator, device=self.device, dtype=torch.float64)
        return x.to(dtype)

    def parameters(self, dtypes: Sequence[torch.dtype] = DTYPES) -> list[nn.Parameter]:
        found = []
        for i, shape in enumerate(SHAPES):
            dtype = dtypes[i % len(dtypes)]
            p = nn.Parameter(torch.zeros(shape, device=self.device, dtype=dtype))
            p.grad = self.randn(shape, dtype, seed=i)
            found.append(p)
        return found


def exact_norm(tensors: Sequence[Tensor], p: float = 2.0) -> float:
    flat = torch.cat([t.detach().double().flatten() for t in tensors])
    largest = flat.abs().max().item()
    return torch.linalg.vector_norm(flat / largest, p).item() * largest
