"""Norms and limits at the edge: past a dtype's range, of odd shapes, learned; tensors at large."""

from __future__ import annotations

import math
import warnings

import pytest
import torch
from torch import nn

import fastclip

pytestmark = pytest.mark.core


def parameter(grad: torch.Tensor) -> nn.Parameter:
    p = nn.Parameter(torch.zeros(grad.shape, dtype=grad.dtype))
    p.grad = grad
    return p


PAST = {
    "float16": lambda: [torch.full((4,), 60000.0, dtype=torch.float16)],
    "float16, many": lambda: [torch.full((100_000,), 1000.0, dtype=torch.float16)] * 40,
    "float16, a gap": lambda: [
        torch.full((4,), 60000.0, dtype=torch.float16),
        torch.full((8,), 60000.0, dtype=torch.float16)[::2],
    ],
    "bfloat16": lambda: [torch.full((4,), 3e38, dtype=torch.bfloat16)],
    "float32": lambda: [torch.full((4,), 3e38)],
    "float64": lambda: [torch.full((4,), 1.7e308, dtype=torch.float64)],
}
EAGER = {
    "clip_grad_norm_": lambda ps: fastclip.clip_grad_norm_(ps, 1.0, error_if_nonfinite=True),
    "clip_tensors_": lambda ps: fastclip.clip_tensors_(
        [p.grad for p in ps], 1.0, error_if_nonfinite=True
    ),
    "get_total_norm": lambda ps: fastclip.get_total_norm(
        [p.grad for p in ps], error_if_nonfinite=True
    ),
}


@pytest.mark.parametrize("name", EAGER)
@pytest.mark.parametrize("case", PAST)
def test_a_norm_that_rounds_to_infinity_raises_and_nothing_is_written(case, name):
    ps = [parameter(g) for g in PAST[case]()]
    before = [p.grad.clone() for p in ps]
    with pytest.raises(RuntimeError, match="non-finite, so it cannot be clipped"):
        EAGER[name](ps)
    assert all(torch.equal(p.grad, b) for p, b in zip(ps, before, strict=True))


def test_the_error_says_which_range_was_left():
    p = parameter(torch.full((4,), 60000.0, dtype=torch.float16))
    with pytest.raises(RuntimeError, match=r"It is 120000, past the range of torch.float16$"):
        fastclip.clip_grad_norm_([p], 1.0, error_if_nonfinite=True)


@pytest.mark.parametrize("case", ["float16", "float16, a gap", "bfloat16", "float32"])
def test_without_the_flag_the_unrounded_norm_scales(case):
    """torch's coefficient is max_norm / inf: it makes zeros of good gradients."""
    ps = [parameter(g) for g in PAST[case]()]
    assert fastclip.clip_grad_norm_(ps, 1.0).item() == math.inf
    clipped = torch.cat([p.grad.double() for p in ps]).norm().item()
    assert clipped == pytest.approx(1.0, rel=1e-2)


def test_the_largest_float16_norm_is_returned():
    p = parameter(torch.tensor([65504.0], dtype=torch.float16))
    assert fastclip.clip_grad_norm_([p], 1e6, error_if_nonfinite=True).item() == 65504.0


def test_the_compiled_op_raises_too():
    p = parameter(torch.full((4,), 60000.0, dtype=torch.float16))
    with pytest.raises(RuntimeError, match="non-finite"):
        torch.ops.fastclip.clip_grads_([p.grad], torch.tensor(1.0), 2.0, True)
    assert p.grad.tolist() == [60000.0] * 4


NORMS = {
    "one element": torch.tensor([2.0]),
    "one by one": torch.tensor([[2.0]]),
    "two": torch.tensor([2.0, 3.0]),
    "empty": torch.empty(0),
    "complex": torch.tensor(2.0 + 1j),
    "sparse": torch.eye(2).to_sparse(),
    "0-d sparse": torch.tensor(2.0).to_sparse(),
    "integer": torch.tensor(2),
    "bool": torch.tensor(True),
    "float64": torch.tensor(2.0, dtype=torch.float64),
    "nan": torch.tensor(math.nan),
    "near minus epsilon": torch.tensor(-2e-6),
    "minus epsilon, float64": torch.tensor(-1e-6, dtype=torch.float64),
    "negative": torch.tensor(-3.0),
    "requires grad": torch.tensor(2.0, requires_grad=True),
    "a number": 2.0,
    "none": None,
}


def scaled(module, norm, limit, foreach, make=lambda: torch.ones(4)):
    p = parameter(make())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            module.clip_grads_with_norm_([p], limit, norm, foreach=foreach)
        except Exception as error:  # whatever torch raises is the contract
            return type(error), p.grad.tolist()
    return "scaled", p.grad.tolist()


@pytest.mark.parametrize("foreach", [None, False])
@pytest.mark.parametrize("limit", [1.0, 0.0])
@pytest.mark.parametrize("name", NORMS)
def test_a_norm_is_taken_or_refused_as_by_torch(name, limit, foreach):
    kind, expected = scaled(nn.utils, NORMS[name], limit, foreach)
    got = scaled(fastclip, NORMS[name], limit, foreach)
    assert got == (kind, pytest.approx(expected, rel=1e-5, nan_ok=True))


def test_limits_that_require_grad_are_silent_as_in_torch():
    limit = nn.Parameter(torch.tensor(1.0))
    p = parameter(torch.full((4,), 2.0))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fastclip.clip_grad_norm_([p], limit, nn.Parameter(torch.tensor(2.0)))
        assert p.grad.norm().item() == pytest.approx(1.0)
        fastclip.clip_grads_with_norm_([p], limit * 0.5, torch.tensor(1.0))
        assert p.grad.norm().item() == pytest.approx(0.5, rel=1e-5)
        fastclip.clip_grad_value_([p], limit * 0.1)
        assert p.grad.max().item() == pytest.approx(0.1)


def negated() -> torch.Tensor:
    grad = torch.tensor([1 + 2j, 3 - 4j, 5 + 6j]).conj().imag
    assert grad.is_neg()
    return grad


@pytest.mark.parametrize("foreach", [None, False, True])
@pytest.mark.parametrize("others", [[], [torch.ones(2)], [torch.ones(6)[::2]]])
def test_gradients_with_the_negative_bit(others, foreach):
    theirs = [parameter(g.clone()) for g in others]
    expected = negated()
    theirs.append(parameter(expected))
    norm = nn.utils.clip_grad_norm_(theirs, 0.5, foreach=False)
    ours = [parameter(g.clone()) for g in others]
    got = negated()
    ours.append(parameter(got))
    if not others and foreach is not False:  # alone it is torch's, which refuses it
        with pytest.raises(RuntimeError, match="negation"):
            fastclip.clip_grad_norm_(ours, 0.5, foreach=foreach)
        return
    assert fastclip.clip_grad_norm_(ours, 0.5, foreach=foreach).item() == pytest.approx(norm.item())
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a.grad.resolve_neg(), b.grad.resolve_neg())


@pytest.mark.parametrize("limit", [0.5, 1e9, 0.0, -1.0, math.inf])
@pytest.mark.parametrize("p", [2.0, 1.0, math.inf, 0.0, -1.0, "inf"])
def test_tensors_that_are_no_gradients(p, limit):
    torch.manual_seed(0)
    tensors = [torch.randn(3, 4), torch.randn(7, dtype=torch.float64), torch.randn(8)[::2]]
    holders = [parameter(t.clone()) for t in tensors]
    expected = nn.utils.clip_grad_norm_(holders, limit, p)
    got = fastclip.clip_tensors_(iter(tensors), limit, p)
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=0)
    for tensor, holder in zip(tensors, holders, strict=True):
        torch.testing.assert_close(tensor, holder.grad, rtol=1e-4, atol=1e-7)


def test_tensors_in_odd_company():
    weight = nn.Parameter(torch.full((4,), 2.0))
    weight.grad = torch.full((4,), 7.0)
    version = weight._version
    assert fastclip.clip_tensors_(weight, 1.0).item() == 4.0
    assert weight.detach().norm().item() == pytest.approx(1.0)
    assert weight.grad.tolist() == [7.0] * 4
    assert weight._version > version
    assert weight.requires_grad
    assert weight.is_leaf
    assert fastclip.clip_tensors_([], 1.0).item() == 0.0
    complex_ = torch.full((2,), 3 + 4j)
    assert fastclip.clip_tensors_([complex_], 1.0).item() == pytest.approx(5 * math.sqrt(2))
    assert complex_.abs().square().sum().item() == pytest.approx(1.0, rel=1e-5)
    with pytest.raises(TypeError, match="tensors must hold tensors, got a NoneType at 1"):
        fastclip.clip_tensors_([torch.ones(2), None], 1.0)
    with pytest.raises(ValueError, match="max_norm must be a number"):
        fastclip.clip_tensors_([torch.ones(2)], "abc")


def test_tensors_compile_to_one_node():
    tensors = [torch.full((4,), 2.0), torch.full((3,), 1.0)]
    compiled = torch.compile(
        lambda ts: fastclip.clip_tensors_(ts, 1.0), fullgraph=True, backend="aot_eager"
    )
    assert compiled(tensors).item() == pytest.approx(math.sqrt(19))
    assert torch.cat(tensors).norm().item() == pytest.approx(1.0)
