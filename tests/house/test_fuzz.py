"""Hostile tensors through the public functions, at random: an answer or an error, never a crash.

FASTCLIP_FUZZ_S seconds of it, 4 by default; FASTCLIP_FUZZ_SEED another start. Under the sanitizers
it looks for reads and writes outside of what a tensor holds.
"""

from __future__ import annotations

import contextlib
import math
import os
import random
import time
import warnings

import pytest
import torch
from torch import nn

import fastclip

SECONDS = float(os.environ.get("FASTCLIP_FUZZ_S", "4"))
SEED = int(os.environ.get("FASTCLIP_FUZZ_SEED", "0"))
REAL = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
# What a caller may see of bad input; anything else is a fault of fastclip's.
ERRORS = (RuntimeError, ValueError, TypeError, IndexError)


class Tagged(torch.Tensor):
    pass


def plain(draw: random.Random) -> torch.Tensor:
    shape = [draw.choice([0, 1, 2, 3, 17, 129]) for _ in range(draw.randint(0, 3))]
    return torch.randn(shape, dtype=torch.float64).to(draw.choice(REAL))


def freed(draw: random.Random) -> torch.Tensor:
    grad = torch.ones(draw.choice([1, 9, 5000]), dtype=draw.choice(REAL))
    view = grad[draw.randint(0, grad.numel() - 1) :]
    grad.untyped_storage().resize_(0)
    return view


def overlapping(draw: random.Random) -> torch.Tensor:
    size = draw.choice([4, 100, 70_000])
    return torch.randn(2 * size).as_strided((size, 2), (1, 1), draw.randint(0, size - 2))


def quantised(draw: random.Random) -> torch.Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.quantize_per_tensor(torch.ones(5), 0.1, 0, torch.qint8)


def inference(draw: random.Random) -> torch.Tensor:
    with torch.inference_mode():
        return plain(draw)


_flat = torch.ones(300_000)


def shared(draw: random.Random) -> torch.Tensor:
    begin = draw.randint(0, 299_000)
    return _flat[begin : begin + draw.choice([1, 50, 1000])]


HOSTILE = {
    "plain": plain,
    "large": lambda draw: torch.randn(draw.choice([65_535, 65_537, 2_000_003])),
    "zeros without memory": lambda draw: torch._efficientzerotensor(draw.choice([1, 1000])),
    "freed": freed,
    "negative": lambda draw: torch.randn(7, dtype=torch.complex64).conj().imag,
    "negative, dense": lambda draw: torch._neg_view(plain(draw)),
    "conjugate": lambda draw: torch.randn(6, dtype=torch.complex64).conj(),
    "zero stride": lambda draw: torch.ones(1).expand(draw.choice([1, 4, 100_000])),
    "overlapping": overlapping,
    "shared": shared,
    "inference": inference,
    "subclass": lambda draw: plain(draw).as_subclass(Tagged),
    "meta": lambda draw: torch.ones(5, device="meta"),
    "quantised": quantised,
    "huge strides": lambda draw: torch.ones(4).as_strided((1, 2, 1), (2**60, 2, 2**61)),
    "huge strides, empty": lambda draw: torch.ones(1).as_strided((0, 3), (2**62, 2**40)),
    "special values": lambda draw: torch.tensor([math.nan, math.inf, -0.0, 1e-45, 3e38]),
    "gaps": lambda draw: torch.randn(40, dtype=torch.float64).to(draw.choice(REAL))[::3],
    "byte offset": lambda draw: torch.ones(64, dtype=torch.uint8)[2:34].view(torch.float16),
    "integer": lambda draw: torch.arange(5),
    "bool": lambda draw: torch.tensor([True, False]),
    "sparse": lambda draw: torch.eye(3).to_sparse(),
    "0-d": lambda draw: torch.tensor(draw.uniform(-9, 9)),
    "none": lambda draw: None,
}


def parameters(draw: random.Random) -> list[nn.Parameter]:
    kinds = draw.choices(list(HOSTILE), k=draw.choice([1, 2, 5, 40]))
    if draw.random() < 0.5:  # else a list without anything odd would be rare
        kinds = [k if draw.random() < 0.2 else "plain" for k in kinds]
    found = []
    for kind in kinds:
        grad = HOSTILE[kind](draw)
        p = nn.Parameter(torch.ones(3))
        if grad is not None:
            try:
                p.data = torch.ones(grad.shape, dtype=grad.dtype, device=grad.device)
                p.grad = grad
            except ERRORS:  # torch does not take it as a gradient
                p = _Holder(grad)
        found.append(p)
    return found


class _Holder:
    requires_grad = True

    def __init__(self, grad: torch.Tensor) -> None:
        self.grad = grad


def limits(draw: random.Random) -> float:
    return draw.choice([0.0, 1.0, 1e-3, -1.0, 1e9, math.inf, math.nan, 1e300, 1e-45])


def orders(draw: random.Random) -> float:
    return draw.choice([2.0, 2.0, 1.0, math.inf, -math.inf, 0.0, 0.5, 3.5, -1.0, math.nan])


def loss(ps: list[nn.Parameter], draw: random.Random) -> None:
    odd = [p.grad for p in ps if isinstance(p.grad, torch.Tensor)][:2]
    x = torch.randn(2, 1, 9, 8, dtype=draw.choice(REAL), requires_grad=True)
    mask = (torch.rand(2, 1, 9, 8) > 0.5).float()
    for value in odd:
        total = fastclip.structure_loss(x, mask, window=draw.choice([1, 3, 31]))
        total.backward()
        fastclip.structure_loss(value, mask)
    fastclip.structure_loss(x, *[value.reshape(2, 1, 9, 8) for value in odd[:1]])


CALLS = {
    "clip_grad_norm_": lambda ps, d: fastclip.clip_grad_norm_(
        ps, limits(d), orders(d), d.random() < 0.3, d.choice([None, False, True])
    ),
    "get_total_norm": lambda ps, d: fastclip.get_total_norm(
        [p.grad for p in ps if p.grad is not None], orders(d), d.random() < 0.3
    ),
    "clip_grads_with_norm_": lambda ps, d: fastclip.clip_grads_with_norm_(
        ps, limits(d), d.choice([torch.tensor(2.0), HOSTILE[d.choice(list(HOSTILE))](d)])
    ),
    "clip_grad_value_": lambda ps, d: fastclip.clip_grad_value_(ps, limits(d)),
    "clip_tensors_": lambda ps, d: fastclip.clip_tensors_(
        [p.grad for p in ps if p.grad is not None], limits(d), orders(d)
    ),
    "grad_norms": lambda ps, d: fastclip.grad_norms(
        [(str(i), p) for i, p in enumerate(ps)], [orders(d) for _ in range(d.randint(1, 3))]
    ),
    "param_norms": lambda ps, d: fastclip.param_norms(
        [(str(i), p.grad) for i, p in enumerate(ps) if p.grad is not None], orders(d)
    ),
    "AGC": lambda ps, d: fastclip.AGC(0.01).clip_([p for p in ps if isinstance(p, nn.Parameter)]),
    "structure_loss": loss,
}


@pytest.mark.parametrize("name", CALLS)
def test_an_answer_or_an_error(name):
    draw = random.Random(f"{name} {SEED}")
    torch.manual_seed(SEED)
    end = time.monotonic() + SECONDS / len(CALLS)
    calls = 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        while calls < 20 or time.monotonic() < end:
            ps = parameters(draw)
            with contextlib.suppress(ERRORS):
                CALLS[name](ps, draw)
            calls += 1


@pytest.mark.parametrize("kind", HOSTILE)
def test_each_kind_beside_plain_gradients_does_as_torch(kind):
    """The norm, where torch has one and lives."""
    if kind == "freed":
        pytest.skip("torch itself dies")
    draw = random.Random(kind)
    for _ in range(5):
        odd = HOSTILE[kind](draw)
        tensors = [torch.full((5,), 2.0)] + ([] if odd is None else [odd])
        try:
            expected = nn.utils.get_total_norm(tensors, foreach=False)
        except ERRORS as error:
            with pytest.raises(type(error)):
                fastclip.get_total_norm(tensors, foreach=False)
            continue
        got = fastclip.get_total_norm(tensors, foreach=False)
        torch.testing.assert_close(got, expected, rtol=1e-2, atol=0, equal_nan=True)
