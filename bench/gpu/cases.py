"""What bench_gpu.py times: gradients of known models, and the ways to clip them."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

import fastclip
from fastclip.ops.grad_norm import backends

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
}


def numbers_of(case: str) -> tuple[int, int, int]:
    """(tensors, elements, bytes of gradients)"""
    shapes, dtypes = CASES[case][0](), CASES[case][1]
    elements = [math.prod(shape) for shape in shapes]
    sizes = [n * dtypes[i % len(dtypes)].itemsize for i, n in enumerate(elements)]
    return len(shapes), sum(elements), sum(sizes)


def parameters_of(case: str, device: str = "cuda") -> list[nn.Parameter]:
    shapes, dtypes = CASES[case][0](), CASES[case][1]
    parameters = []
    for i, shape in enumerate(shapes):
        dtype = dtypes[i % len(dtypes)]
        p = nn.Parameter(torch.empty(shape, device=device, dtype=dtype))
        p.grad = torch.randn(shape, device=device, dtype=dtype)
        parameters.append(p)
    return parameters


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


_cuda_why_not = backends.cuda_why_not


def by_triton(parameters: Sequence[nn.Parameter], max_norm: float) -> Tensor:
    """fastclip as where it was built without nvcc."""
    backends.cuda_why_not = lambda index: "Triton is timed"  # type: ignore[assignment]
    try:
        return fastclip.clip_grad_norm_(parameters, max_norm)
    finally:
        backends.cuda_why_not = _cuda_why_not


def clips() -> dict[str, Clip]:
    variants: dict[str, Clip] = {"torch foreach": foreach, "torch rewrite": rewrite}
    if not _cuda_why_not(0):
        variants["fastclip CUDA"] = fastclip.clip_grad_norm_
    if backends.has_triton():
        variants["fastclip Triton"] = by_triton
    return variants
