"""One correctness pass: each kernel and dtype once against float64, in under a minute.

python -m gpu.check --device cuda --journal FILE [--list] [ITEM ...]
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import torch
from torch import Tensor

import fastclip
from fastclip.ops.grad_norm import backends
from fastclip.ops.grad_norm.gpu.backend import GpuGrads
from fastclip.ops.structure_loss.dispatch import structure_loss_ref
from fastclip.ops.unit_clip.dispatch import clip_units_
from fastclip.ops.unit_clip.reference import clip_units_ref_
from gpu import cases, device, rehearsal, supervise
from gpu.worker import run

DTYPES = {
    "fp32": (torch.float32,),
    "fp64": (torch.float64,),
    "bf16": (torch.bfloat16,),
    "fp16": (torch.float16,),
    "mixed": (torch.float32, torch.bfloat16, torch.float64, torch.float16),
}
SIZES = (0, 1, 7, 1023, 1025, 8193, 300_001)  # heads and tails, several chunks
NORM_ERROR = 1e-6
LOSS_ERROR = 1e-5


def clip_check(dtypes: tuple[torch.dtype, ...], where: str) -> supervise.Entry:
    """Norms of every kind of order, of the list and of each tensor, and the scaling after them."""
    worst = 0.0
    for p in (1.0, 2.0, math.inf, 3.0, -math.inf, -1.0):
        sizes = [n for n in SIZES if n or 0 < p < math.inf]
        grads = [randn(n, dtypes[i % len(dtypes)], where, i) for i, n in enumerate(sizes)]
        exact = [g.double().clone() for g in grads]
        each = torch.stack([torch.linalg.vector_norm(g, p) for g in exact])
        total = torch.linalg.vector_norm(each, p)
        found = backends.collect(grads, take_grads=False)
        if found is None or not found.has_norm(p):
            return {"failed": f"no kernel takes order {p:g}"}
        worst = max(worst, relative(found.norms(p)[0], each), relative(found.exact_norm(p), total))
        found.clip_(total.item() / 2, p)
        factor = total / 2 / (total + 1e-6)
        for g, e in zip(grads, exact, strict=True):
            worst = max(worst, relative(g, (e * factor).to(g.dtype)))
    return verdict(worst, NORM_ERROR)


def change_check(dtypes: tuple[torch.dtype, ...], where: str) -> supervise.Entry:
    """Clamping, multiplying by a number on the device, and each tensor by its own."""
    worst = 0.0
    for kind in ("clamp", "scale", "each"):
        grads = [randn(n, dtypes[i % len(dtypes)], where, i) for i, n in enumerate(SIZES)]
        factors = torch.linspace(0.25, 1, len(SIZES), dtype=torch.float64, device=where)
        found = backends.collect(grads, take_grads=False)
        if not isinstance(found, GpuGrads):
            return {"failed": "no kernel takes the list"}
        if kind == "clamp":
            wanted = [g.clamp(-0.5, 0.5) for g in grads]
            found.clamp_(0.5)
        elif kind == "scale":
            wanted = [(g.double() * factors[1]).to(g.dtype) for g in grads]
            found.scale_(factors[1])
        else:
            wanted = [(g.double() * f).to(g.dtype) for g, f in zip(grads, factors, strict=True)]
            found.scale_each_(factors)
        for g, w in zip(grads, wanted, strict=True):
            worst = max(worst, relative(g, w) - torch.finfo(g.dtype).eps)
    return verdict(worst, NORM_ERROR)


def unit_check(dtype: torch.dtype, where: str) -> supervise.Entry:
    """Adaptive gradient clipping of rows and filters, short and long."""
    worst = 0.0
    for i, shape in enumerate([(64, 37), (8, 3, 5, 5), (100,), (5, 20_000), (1,)]):
        p = torch.nn.Parameter(randn(math.prod(shape), dtype, where, i).view(shape))
        p.grad = randn(math.prod(shape), dtype, where, i + 50).view(shape)
        weight, grad = p.detach().clone(), p.grad.clone()
        clip_units_ref_(weight, grad, 0.05, 1e-3)
        clip_units_([p], 0.05, 1e-3)
        worst = max(worst, relative(p.grad, grad) - torch.finfo(dtype).eps)
    return verdict(worst, NORM_ERROR)


def loss_check(dtype: torch.dtype, mask_dtype: torch.dtype, where: str) -> supervise.Entry:
    """The loss of three heads and its gradients; rows and columns that fill no block."""
    worst = 0.0
    for shape in ((2, 1, 64, 96), (1, 2, 37, 53)):
        mask = (randn(math.prod(shape), torch.float32, where, 9).view(shape) > 0).to(mask_dtype)
        heads = [randn(math.prod(shape), dtype, where, i).view(shape) for i in range(3)]
        heads = [head.requires_grad_() for head in heads]
        exact = [head.detach().double().requires_grad_() for head in heads]
        loss = fastclip.structure_loss(heads, mask, head_weights=(0.5, 0.3, 0.2))
        parts = structure_loss_ref(exact, mask.double(), None, 31, 5.0, 1.0, True).mean((1, 2))
        true = (parts * parts.new_tensor((0.5, 0.3, 0.2))).sum()
        worst = max(worst, relative(loss, true))
        grads = torch.autograd.grad(loss * 64, heads)
        for grad, wanted in zip(grads, torch.autograd.grad(true * 64, exact), strict=True):
            worst = max(worst, relative(grad, wanted) - torch.finfo(dtype).eps)
    return verdict(worst, LOSS_ERROR)


def randn(numel: int, dtype: torch.dtype, where: str, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(1000 * seed + numel)
    return torch.randn(numel, generator=generator, dtype=torch.float64).to(where, dtype)


def relative(found: Tensor, exact: Tensor) -> float:
    """The distance over the length of what is exact; infinite where anything is not finite."""
    distance = (found.double() - exact.double()).norm().item()
    length = exact.double().norm().item()
    error = distance / length if length else distance
    return error if math.isfinite(error) else math.inf


def verdict(worst: float, most: float) -> supervise.Entry:
    failed = "" if worst <= most else f"relative error {worst:.1e}, at most {most:.0e} allowed"
    return {"error": worst, "failed": failed}


def by(backend: str, call: Callable[[], supervise.Entry]) -> supervise.Entry:
    with cases.using(backend):
        return call()


def of_loss(on: device.Device, call: Callable[[], supervise.Entry]) -> supervise.Entry:
    with on.loss_core():
        return call()


def items(on: device.Device) -> dict[str, Callable[[], supervise.Entry]]:
    found: dict[str, Callable[[], supervise.Entry]] = {}
    for backend in cases.backends_of(on):
        for name, dtypes in DTYPES.items():
            check = functools.partial(clip_check, dtypes, on.type)
            found[f"clip, {backend}, {name}"] = functools.partial(by, backend, check)
            change = functools.partial(change_check, dtypes, on.type)
            found[f"change, {backend}, {name}"] = functools.partial(by, backend, change)
        for name in ("fp32", "bf16", "fp16"):
            unit = functools.partial(unit_check, DTYPES[name][0], on.type)
            found[f"clip by units, {backend}, {name}"] = functools.partial(by, backend, unit)
    for name in ("fp32", "fp64", "bf16", "fp16"):
        for mask in (torch.float32, torch.uint8):
            label = f"structure loss, {name} logits, {str(mask).removeprefix('torch.')} mask"
            check = functools.partial(loss_check, DTYPES[name][0], mask, on.type)
            found[label] = functools.partial(of_loss, on, check)
    return rehearsal.CHECKS | found  # first, so that all others come after a fault


if __name__ == "__main__":
    run(items)
