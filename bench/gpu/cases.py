"""What `make gpu` checks and times: gradients of known models, and the ways to clip them."""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable, Iterator, Sequence

import cases as table
import torch
from torch import Tensor, nn

import fastclip
from fastclip.ops.grad_norm import backends
from gpu.device import Device

CASES = table.on_gpu()
# Of each tensor, and of tensors, at most, where there is no device: more than a chunk of 4 KB has,
# and more than the small page.
REHEARSED_ELEMENTS, REHEARSED_TENSORS = 2049, 260


def parameters_of(case: str, on: str, *, rehearsed: bool = False) -> list[nn.Parameter]:
    """Parameters with random gradients on a device type; for a rehearsal a few short ones."""
    shapes, dtypes = CASES[case][0](), CASES[case][1]
    if rehearsed:
        small = [(min(math.prod(shape), REHEARSED_ELEMENTS),) for shape in shapes]
        shapes = list(small[:REHEARSED_TENSORS])
    parameters = []
    for i, shape in enumerate(shapes):
        dtype = dtypes[i % len(dtypes)]
        p = nn.Parameter(torch.empty(shape, device=on, dtype=dtype))
        p.grad = torch.randn(shape, device=on, dtype=dtype)
        parameters.append(p)
    return parameters


def numbers_of(parameters: Sequence[nn.Parameter]) -> tuple[int, int, int]:
    """(tensors, elements, bytes of gradients)"""
    elements = [p.numel() for p in parameters]
    size = sum(p.numel() * p.element_size() for p in parameters)
    return len(parameters), sum(elements), size


def exact_norm(parameters: Sequence[nn.Parameter]) -> float:
    """In float64, a piece at a time."""
    squares = []
    for p in parameters:
        for piece in p.grad.flatten().split(1 << 27):  # type: ignore[union-attr]
            squares.append(piece.double().square().sum())
    return math.sqrt(torch.stack(squares).sum().item())


Clip = Callable[[Sequence[nn.Parameter], float], Tensor]


def rewrite(parameters: Sequence[nn.Parameter], max_norm: float) -> Tensor:
    """The best of plain torch: foreach, and a wait for the norm that saves the scaling."""
    grads = [p.grad for p in parameters if p.grad is not None]
    norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(grads, 2.0)))
    factor = max_norm / (norm.item() + 1e-6)
    if factor < 1:
        torch._foreach_mul_(grads, factor)
    return norm


def foreach(parameters: Sequence[nn.Parameter], max_norm: float) -> Tensor:
    return torch.nn.utils.clip_grad_norm_(parameters, max_norm, foreach=True)


def backends_of(on: Device) -> list[str]:
    """The backends of clipping that the device has."""
    found = [] if backends.cuda_why_not(0) else ["CUDA"]
    return [*found, "Triton"] if on.type == "cuda" and backends.has_triton() else found


@contextlib.contextmanager
def using(backend: str) -> Iterator[None]:
    """fastclip on one of `backends_of`; on Triton as where it was built without nvcc."""
    before = backends.cuda_why_not
    if backend == "Triton":
        backends.cuda_why_not = lambda index: "Triton is measured"  # type: ignore[assignment]
    try:
        yield
    finally:
        backends.cuda_why_not = before


def by(backend: str, parameters: Sequence[nn.Parameter], max_norm: float) -> Tensor:
    """fastclip's clip by one backend."""
    with using(backend):
        return fastclip.clip_grad_norm_(parameters, max_norm)


def clips(on: Device) -> dict[str, Clip]:
    variants: dict[str, Clip] = {"torch foreach": foreach, "torch rewrite": rewrite}
    for backend in backends_of(on):
        variants[f"fastclip {backend}"] = functools.partial(by, backend)
    return variants
