"""What `make gpu` checks and times: gradients of known models, and the ways to clip them."""

from __future__ import annotations

import contextlib
import functools
import json
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

import fastclip
from fastclip.ops.grad_norm import backends
from gpu.device import Device

Shape = tuple[int, ...]
TRANSFUSE_S = Path(__file__).parents[2] / "tests" / "data" / "state_dict_s.txt"


def transfuse_s() -> list[Shape]:
    """The 382 trained tensors, from the list of the published checkpoint's keys and shapes."""
    lines = [line.split("\t") for line in TRANSFUSE_S.read_text().splitlines()]
    return [tuple(json.loads(line[1])) for line in lines if line[-1] == "param"]


def resnet50() -> list[Shape]:
    shapes: list[Shape] = [(64, 3, 7, 7), (64,), (64,)]
    inputs = 64
    for blocks, width in ((3, 64), (4, 128), (6, 256), (3, 512)):
        for block in range(blocks):
            for shape in ((width, inputs, 1, 1), (width, width, 3, 3), (4 * width, width, 1, 1)):
                shapes += [shape, shape[:1], shape[:1]]
            if block == 0:
                shapes += [(4 * width, inputs, 1, 1), (4 * width,), (4 * width,)]
            inputs = 4 * width
    return [*shapes, (1000, 2048), (1000,)]


def transformer() -> list[Shape]:
    """24 layers of width 2048 with a vocabulary of 50257: 1.3 billion parameters."""
    d = 2048
    shapes: list[Shape] = [(50257, d), (2048, d)]
    for _ in range(24):
        shapes += [(d,), (d,), (3 * d, d), (3 * d,), (d, d), (d,)]
        shapes += [(d,), (d,), (4 * d, d), (4 * d,), (d, 4 * d), (d,)]
    return [*shapes, (d,), (d,)]


F32, BF16 = torch.float32, torch.bfloat16
CASES: dict[str, tuple[Callable[[], list[Shape]], tuple[torch.dtype, ...]]] = {
    "transfuse_s fp32": (transfuse_s, (F32,)),
    "resnet50 fp32": (resnet50, (F32,)),
    "transformer 1.3B bf16": (transformer, (BF16,)),
    "transformer 1.3B bf16/fp32": (transformer, (BF16, BF16, F32, BF16, BF16)),
    "1000 x 1000 fp32": (lambda: [(1000,)] * 1000, (F32,)),
    "10000 x 100 fp32": (lambda: [(100,)] * 10_000, (F32,)),
    "1 x 1 GiB fp32": (lambda: [(1 << 28,)], (F32,)),
    # An open NeMo Automodel proposal: 500 matrices of 10.3e9 elements.
    "500 matrices, 10.3e9 fp32": (lambda: [(4096, 5029)] * 500, (F32,)),
    # TransformerEngine's multi-tensor norm: 225M elements, mixed.
    "225M bf16/fp32": (lambda: [(1500, 1000)] * 150, (BF16, F32)),
}
REHEARSED_ELEMENTS = 4096  # of each tensor, and at most so many tensors, where there is no device
REHEARSED_TENSORS = 300


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
