"""What the CUDA kernels do to gradients in place, without a device: see test_grad_norm_cuda.py."""

from __future__ import annotations

import math

import pytest
import torch
from cuda_on_host import DTYPES
from cuda_on_host.kernels import guarded, randn

PAGE, OLD_PAGE = 2040, 250  # tensors in one launch; where the driver is older than CUDA 12.1


def test_infinite_norm_zeroes_all_but_the_infinite(kernels):
    x = torch.tensor([1.0, math.inf, -2.0])
    kernels.scale_([x], 1.0, kernels.norm([x])["norm"])
    assert x.isnan().tolist() == [False, True, False]
    assert x[0] == x[2] == 0


def test_factor_of_one_writes_nothing(kernels):
    x = torch.full((40_000,), math.nan)  # any write would be seen in its payload
    x.view(torch.int32).fill_(0x7F80_0001)
    kernels.scale_([x], 1.0, 0.5)
    kernels.scale_([x], math.inf, torch.tensor(3.0))
    assert (x.view(torch.int32) == 0x7F80_0001).all()


@pytest.mark.parametrize("max_norm", [0.0, -1.0, 0.5])
def test_max_norm_of_zero_and_below(kernels, max_norm):
    x = randn(100, torch.float32)
    expected = x * (max_norm / (2.0 + 1e-6))
    kernels.scale_([x], max_norm, 2.0)
    torch.testing.assert_close(x, expected)


@pytest.mark.parametrize("dtype", DTYPES)
def test_multiplying_by_a_number_on_the_device_or_on_the_host(kernels, dtype):
    for factor in (torch.tensor(0.37), torch.tensor(-3.0, dtype=torch.float64), 0.125):
        view, memory = guarded(randn(5001, dtype), 1)
        wide = view.double() if dtype == torch.float64 else view.float()
        number = torch.tensor(float(factor), dtype=wide.dtype)
        expected = (wide * number).to(dtype)
        kernels.multiply_([view], factor)
        assert torch.equal(view, expected)
        assert memory.isnan().sum() == memory.numel() - view.numel()


@pytest.mark.parametrize("count", [3, OLD_PAGE + 5, PAGE + 5])
def test_a_factor_for_each_tensor(kernels, count):
    tensors = [randn(1 + 997 * i % 3000, DTYPES[i % 4], seed=i) for i in range(count)]
    factors = torch.linspace(-1, 1, count, dtype=torch.float64)
    factors[1] = 1.0
    tensors[1].view(torch.int64).fill_(0x7FF0_0000_0000_0001)  # a write would be seen
    expected = [
        (t * f.to(torch.float64 if t.dtype == torch.float64 else torch.float32)).to(t.dtype)
        for t, f in zip([t.clone() for t in tensors], factors, strict=True)
    ]
    kernels.scale_each_(tensors, factors)
    assert (tensors[1].view(torch.int64) == 0x7FF0_0000_0000_0001).all()
    for i, (found, wanted) in enumerate(zip(tensors, expected, strict=True)):
        if i != 1:
            torch.testing.assert_close(found, wanted, rtol=torch.finfo(found.dtype).eps, atol=0)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("limit", [0.0, 0.1, 1.5, math.inf])
def test_clamping_of_every_dtype_and_alignment(kernels, dtype, limit):
    for numel in (1, 9, 1025, 9001):
        for offset in (0, 1):
            x = randn(numel, dtype, seed=numel)
            x[0] = math.inf
            x[-1] = math.nan
            view, memory = guarded(x, offset)
            kernels.clamp_([view], limit)
            assert torch.equal(view, x.clamp(-limit, limit)) or view.isnan().sum() == 1
            torch.testing.assert_close(view, x.clamp(-limit, limit), equal_nan=True)
            assert memory.isnan().sum() == memory.numel() - numel + 1


def test_clamping_writes_only_what_holds_an_element_outside(kernels):
    x = torch.empty(40_000)
    x.view(torch.int32).fill_(0x7F80_0001)  # NaNs whose payload a write would change
    x[4000] = 3.0
    x[4001] = -0.5
    kernels.clamp_([x], 1.0)
    assert x[4000:4002].tolist() == [1.0, -0.5]
    x[4000:4002].view(torch.int32).fill_(0x7F80_0001)
    assert (x.view(torch.int32) == 0x7F80_0001).all()
