"""The backend that is torch's own functions, a list at a time."""

from __future__ import annotations

import pytest
import torch

from fastclip.ops.grad_norm.reference import TorchGrads


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_a_list_is_multiplied_by_a_number_of_its_dtype(monkeypatch, dtype):
    """torch's foreach function takes a launch for each tensor where the two differ."""
    seen = []
    multiply = torch._foreach_mul_

    def noted(tensors, number):
        seen.append((tensors[0].dtype, number.dtype))
        return multiply(tensors, number)

    monkeypatch.setattr(torch, "_foreach_mul_", noted)
    tensors = [torch.arange(1.0, 5.0).to(t) for t in (torch.float32, dtype, torch.float32)]
    expected = [(t.double() * 0.3).to(t.dtype) for t in tensors]
    TorchGrads(tensors).scale_(torch.tensor(0.3, dtype=torch.float64))
    for found, wanted in zip(tensors, expected, strict=True):
        torch.testing.assert_close(found, wanted)
    assert (torch.float32, torch.float32) in seen
    assert len(seen) == len({t.dtype for t in tensors})
