"""float64's whole range: what squares and powers cannot hold, against decimals of 60 digits."""

from __future__ import annotations

import decimal
import math

import pytest
import torch
from torch import Tensor

import fastclip
from fastclip import native
from fastclip.ops.unit_clip.dispatch import clip_units_

pytestmark = [
    pytest.mark.core,
    pytest.mark.skipif(native.core is None, reason="no native core"),
]
TINY, HUGE = 5e-324, 1.7e308
EXACT = decimal.Context(prec=60, Emax=10**9, Emin=-(10**9))


def exact_norm(values: list[float], p: float) -> float:
    order = decimal.Decimal(p)
    with decimal.localcontext(EXACT):
        total = sum(decimal.Decimal(abs(v)) ** order for v in values if v or p > 0)
        return float(total ** (1 / order)) if total else 0.0


def norm_of(tensors: list[Tensor], p: float) -> float:
    return fastclip.get_total_norm(tensors, p).item()


VALUES = {
    "huge": [HUGE / 8, -HUGE / 16, 1.0],
    "subnormal": [TINY, 3 * TINY, -200 * TINY],
    "just normal": [2.3e-308, -4e-308, 1e-310],
    "squares underflow": [1e-170, -3e-165, 2e-200],
    "squares overflow": [1e170, -3e165, 2e200],
    "both ends": [1e-300, 1.0, 1e300],
    "around the bounds": [1e-145, 1e-150, 3e149, 1e150, 1e155],
}


@pytest.mark.parametrize("p", [1.0, 2.0, 3.0, 0.5, 16.0, 300.0, -1.0, -2.0, -7.5])
@pytest.mark.parametrize("case", VALUES)
def test_any_values_in_one_tensor_and_in_a_list(case: str, p: float) -> None:
    values = VALUES[case]
    expected = exact_norm(values, p)
    together = [torch.tensor(values, dtype=torch.float64)]
    apart = [torch.tensor([value], dtype=torch.float64) for value in values]
    for tensors in (together, apart, apart[::-1]):
        assert norm_of(tensors, p) == pytest.approx(expected, rel=1e-13, abs=2 * TINY)


@pytest.mark.parametrize("p", [1.0, 2.0, 3.0])
def test_chunks_of_one_tensor_in_units_of_their_own(p: float) -> None:
    x = torch.zeros(300_000, dtype=torch.float64)
    x[0], x[150_000], x[-1] = 1e-200, 1e200, 1.0
    assert norm_of([x], p) == pytest.approx(1e200, rel=1e-14)
    x[150_000] = 0
    assert norm_of([x], p) == pytest.approx(1.0, rel=1e-14)
    x[-1] = 0
    assert norm_of([x], p) == pytest.approx(1e-200, rel=1e-14)


@pytest.mark.parametrize("p", [1.0, 2.0, 3.0, -2.0])
@pytest.mark.parametrize("special", [math.inf, math.nan])
@pytest.mark.parametrize("beside", [TINY, 1.0, HUGE])
def test_infinities_and_nan_beside_any_value(p: float, special: float, beside: float) -> None:
    tensors = [torch.tensor([value], dtype=torch.float64) for value in (beside, special, beside)]
    got = norm_of(tensors, p)
    if math.isnan(special):
        assert math.isnan(got)
    elif p > 0:
        assert got == math.inf
    else:
        assert got == pytest.approx(exact_norm([beside, beside], p), rel=1e-13)


def test_many_chunks_are_summed_as_exactly_as_one() -> None:
    tensors = [torch.full((1,), 0.1, dtype=torch.float64) for _ in range(200_000)]
    assert norm_of(tensors, 1.0) == math.fsum([0.1] * 200_000)


@pytest.mark.parametrize("scale", [1e-320, 1e-200, 1e-160, 1e160, 1e200, 1e300])
@pytest.mark.parametrize("size", [7, 100_000])  # a unit in one piece, and in several
def test_units_of_any_scale_are_clipped(scale: float, size: int) -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.nn.Parameter(torch.randn(2, size, generator=generator, dtype=torch.float64))
    weight.data.mul_(scale)
    weight.grad = torch.ones(2, size, dtype=torch.float64)
    before = (
        weight.data / scale if scale > 1e-310 else weight.data * 2.0**1000 / (scale * 2.0**1000)
    )
    norms = torch.linalg.vector_norm(before, dim=1) * scale
    expected = (0.01 * norms / size**0.5).clamp(max=1)
    clip_units_([weight], 0.01, 0.0)
    assert weight.grad[:, 0].tolist() == pytest.approx(expected.tolist(), rel=1e-12, abs=2 * TINY)


@pytest.mark.parametrize("p", [2.0, 3.0])
def test_numbers_that_are_flushed_give_no_nan(p: float) -> None:
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor does not flush subnormal numbers")
    try:
        norm = norm_of([torch.full((5,), 1, dtype=torch.int64).view(torch.float64)], p)
    finally:
        torch.set_flush_denormal(False)
    assert 0 <= norm <= 20 * TINY
