"""Lists for several backends: tensors with gaps beside dense ones, and repeats on a GPU."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

import fastclip
from fastclip import native
from fastclip.ops.grad_norm import backends, parts
from fastclip.ops.grad_norm.reference import TorchGrads, norm_of
from fastclip.ops.grad_norm.tensor_list import PythonTensorList

pytestmark = pytest.mark.core

needs_native = pytest.mark.skipif(native.core is None, reason=f"no core: {native.why_missing}")
ORDERS = (0.5, 1.0, 2.0, 3.5, 10.0, math.inf, -1.0, -math.inf)


def parameter(grad: torch.Tensor) -> nn.Parameter:
    p = nn.Parameter(torch.zeros(grad.shape, dtype=grad.dtype))
    p.grad = grad
    return p


def mixed_list(dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    """Dense ones, and two with gaps, of which the first comes first."""
    torch.manual_seed(0)
    sliced = torch.randn(9, 8, dtype=torch.float64).to(dtype)[:, ::2]
    return [sliced, torch.randn(1000).to(dtype), torch.randn(7, 3), torch.randn(40)[::3]]


@needs_native
@pytest.mark.parametrize("p", ORDERS)
def test_gaps_do_not_send_the_others_to_torch(p):
    grads = mixed_list()
    found = backends.collect(grads, take_grads=False)
    assert isinstance(found, parts.GradParts)
    kinds = [type(backend) for part in found._parts for backend, _ in part.backends]
    assert sorted(o.__name__ for o in kinds) == ["CpuGrads", "TorchGrads"]
    exact = [torch.linalg.vector_norm(g.double(), p) for g in grads]
    torch.testing.assert_close(found.norms(p)[0], torch.stack(exact), rtol=1e-6, atol=0)
    total = norm_of(torch.stack(exact), p)
    torch.testing.assert_close(found.exact_norm(p), total, rtol=1e-6, atol=0)
    before = [g.clone() for g in grads]
    norm = fastclip.clip_grad_norm_([parameter(g) for g in grads], total.item() / 2, p)
    assert norm.dtype == torch.float32
    for new, old in zip(grads, before, strict=True):
        factor = total.item() / 2 / (total.item() + 1e-6)
        torch.testing.assert_close(new, old * factor, rtol=1e-5, atol=0)


@needs_native
def test_nothing_is_written_at_factor_one_and_versions_move_otherwise():
    grads = mixed_list()
    before = [g._version for g in grads]
    fastclip.clip_grad_norm_([parameter(g) for g in grads], 1e9)
    fastclip.clip_grads_with_norm_([parameter(g) for g in grads], 1.0, torch.tensor(0.5))
    assert [g._version for g in grads] == before
    fastclip.clip_grad_norm_([parameter(g) for g in grads], 0.1)
    assert all(g._version > v for g, v in zip(grads, before, strict=True))


@needs_native
def test_factor_comes_from_the_unrounded_norm():
    grads = [torch.full((2, 200), 600.0, dtype=torch.float16)[:, ::2] for _ in range(2)]
    grads.append(torch.full((200,), 60000.0, dtype=torch.float16))
    assert fastclip.clip_grad_norm_([parameter(g) for g in grads], 1.0).isinf()
    assert sum(g.double().square().sum() for g in grads).sqrt() == pytest.approx(1, rel=1e-2)


@needs_native
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_error_names_offenders_in_the_order_of_the_list(bad):
    grads = mixed_list()
    grads[2][1, 1] = grads[3][2] = bad
    before = [g.clone() for g in grads]
    with pytest.raises(RuntimeError, match=r"Non-finite: gradients 2, 3 of 4$"):
        fastclip.clip_grad_norm_([parameter(g) for g in grads], 0.1, error_if_nonfinite=True)
    torch.testing.assert_close(grads, before, equal_nan=True, rtol=0, atol=0)


def test_lists_that_torch_keeps_whole():
    overlap = torch.ones(1).expand(4)
    for other in (overlap, torch.ones(2, dtype=torch.complex64), torch.eye(2).to_sparse()):
        assert backends.collect([torch.ones(3), other], take_grads=False) is None
    assert backends.collect([torch.ones(8)[::2]], take_grads=False) is None  # no kernel has a share


class NoRepeats(TorchGrads):
    """A GPU's backend, as far as a CPU can be one: refuses what would race."""

    def __init__(self, tensors):
        super().__init__(PythonTensorList(tensors, False).tensors)


def refusing(tensors):
    try:
        return NoRepeats(tensors)
    except NotImplementedError:
        return None


def test_repeats_on_a_gpu_are_scaled_one_after_the_other():
    x, y = torch.tensor([3.0, 4.0]), torch.tensor([12.0])
    part = parts.Part(torch.device("cuda", 0), (), [0, 1, 2, 3], [x, y, x, x])
    assert refusing(part.locals) is None
    assert part.share(part.locals, refusing)
    assert [rows for _, rows in part.backends] == [[0, 1], [2], [3]]
    assert all(isinstance(backend, NoRepeats) for backend, _ in part.backends)
    assert part.norm(2.0).item() == pytest.approx(math.sqrt(3 * 25 + 144))
    part.write(lambda backend: backend.scale_(torch.tensor(0.5)))
    assert (x.tolist(), y.tolist()) == ([3 / 8, 0.5], [6.0])


@pytest.mark.parametrize("p", ORDERS)
@pytest.mark.parametrize("value", [1e-200, 0.0, 1.0, 1e200, math.inf, math.nan])
def test_norm_of_norms_stays_in_range(p, value):
    norms = torch.tensor([value, value], dtype=torch.float64)
    factor = {math.inf: 1.0, -math.inf: 1.0}.get(p, 2 ** (1 / p))
    expected = value * factor if value else 0.0
    assert norm_of(norms, p).item() == pytest.approx(expected, rel=1e-12, nan_ok=True)


@pytest.mark.parametrize("p", [0.5, 1.0, 2.0, 10.0, -1.0, math.inf])
@pytest.mark.parametrize("value", [1e-200, 1e200])
def test_torchs_owner_stays_in_float64s_range(value, p):
    found = TorchGrads([torch.full((4,), -value, dtype=torch.float64)]).norms(p).item()
    assert found == pytest.approx(value * (1.0 if math.isinf(p) else 4 ** (1 / p)), rel=1e-12)


def test_a_subnormal_factor_keeps_its_bits_beside_gaps():
    dense, gaps = parameter(torch.tensor([1.5e37])), parameter((1000 * torch.randn(9))[::2])
    old = gaps.grad.double()
    norm = fastclip.clip_grad_norm_([dense, gaps], 1e-4)
    expected = old * (1e-4 / norm.double())
    ulp = torch.finfo(torch.float32).smallest_normal * torch.finfo(torch.float32).eps
    assert ((gaps.grad.double() - expected).abs() <= 1e-6 * expected.abs() + ulp).all()
