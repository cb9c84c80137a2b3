"""The CUDA kernels' norms of orders other than 1, 2 and infinity, without a device."""

from __future__ import annotations

import math

import pytest
import torch
from cuda_on_host import DTYPES
from cuda_on_host.kernels import randn

ORDERS = (-math.inf, -1.0, 0.5, 1.5, 3.0, 4.0)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("p", ORDERS)
def test_every_order_has_the_norm_of_each_tensor(kernels, p, dtype):
    tensors = [randn(n, dtype, seed=n) for n in (1, 7, 1025, 9001, 33)]
    found = kernels.norms(tensors, p)
    for norm, tensor in zip(found.tolist(), tensors, strict=True):
        exact = torch.linalg.vector_norm(tensor.double(), p).item()
        assert norm == pytest.approx(exact, rel=1e-12)
    if p == -math.inf:
        assert kernels.norm(tensors, p)["norm"] == found.min()


@pytest.mark.parametrize("p", [-40.0, 20.0, 300.0])
@pytest.mark.parametrize("size", [1e-300, 1.0, 1e300])
def test_powers_past_float64_are_of_quotients(kernels, p, size):
    x = (randn(5000, torch.float64).abs() + 0.1) * size
    units = x.max().view(1) if p > 0 else x.min().view(1)
    exact = torch.linalg.vector_norm(x / units, p).item() * units.item()
    assert kernels.norms([x], p, units).item() == pytest.approx(exact, rel=1e-12)


@pytest.mark.parametrize("p", [3.0, -1.0, -math.inf])
def test_zeros_infinities_and_nan_of_any_order(kernels, p):
    for values in ([0.0, 1.0], [math.inf, 1.0], [math.nan, 1.0], [0.0, 0.0], [-2.0, math.inf]):
        x = torch.tensor(values * 700)
        exact = torch.linalg.vector_norm(x.double(), p).item()
        assert kernels.norms([x], p).item() == pytest.approx(exact, rel=1e-12, nan_ok=True)


def test_other_orders_give_no_total(kernels):
    with pytest.raises(RuntimeError, match="norms of tensors alone"):
        kernels.norm([torch.ones(3)], 3.0)
    with pytest.raises(RuntimeError, match="other than 0"):
        kernels.norm([torch.ones(3)], 0.0)
