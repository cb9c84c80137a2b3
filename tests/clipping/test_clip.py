"""The clipping contract: the same call on torch and on fastclip, line by line."""

from __future__ import annotations

import copy
import inspect
import math
import warnings

import pytest
import torch
from torch import nn

import fastclip

pytestmark = pytest.mark.core

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
ORDERS = (0.1, 0.5, 1, 1.5, 2, 3.5, math.inf, -1, -math.inf, 0)
LIMITS = (0.0, 0.5, 1e9, -1.0, math.inf)
FOUR = ("clip_grad_norm_", "get_total_norm", "clip_grads_with_norm_", "clip_grad_value_")


def parameter(grad: torch.Tensor | None, shape: tuple[int, ...] = (2, 3)) -> nn.Parameter:
    if grad is None:
        return nn.Parameter(torch.zeros(shape))
    p = nn.Parameter(torch.zeros(grad.shape, dtype=grad.dtype, device=grad.device))
    p.grad = grad
    return p


def randn(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.float64).to(dtype)


def twins(grads: list[torch.Tensor | None]) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Parameters for torch and for fastclip, with gradients of equal values and strides."""
    mine = [None if g is None else torch.empty_like(g).copy_(g) for g in grads]
    return [parameter(g) for g in grads], [parameter(g) for g in mine]


def outcome(function, *args, **kwargs):
    """What a call did: its result, or the type and text of its error."""
    try:
        return function(*args, **kwargs), None
    except Exception as error:  # whatever torch raises is the contract
        return None, (type(error), str(error))


def tolerance(dtype: torch.dtype) -> float:
    return {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 4e-3}.get(dtype, 3e-2)


def assert_same(theirs: list[nn.Parameter], ours: list[nn.Parameter], rtol: float = 0.0) -> None:
    for t, o in zip(theirs, ours, strict=True):
        if t.grad is None:
            assert o.grad is None
            continue
        assert (o.grad.dtype, o.grad.stride(), o.grad.device) == (
            t.grad.dtype,
            t.grad.stride(),
            t.grad.device,
        )
        torch.testing.assert_close(
            o.grad, t.grad, rtol=max(rtol, tolerance(t.dtype)), atol=1e-7, equal_nan=True
        )


def check_clip(grads: list[torch.Tensor | None], *args, **kwargs) -> None:
    theirs, ours = twins(grads)
    # torch rounds each tensor's norm to its dtype, which the factor of all the others inherits
    coarsest = max([1e-12, *(tolerance(g.dtype) for g in grads if g is not None)])
    expected, expected_error = outcome(nn.utils.clip_grad_norm_, theirs, *args, **kwargs)
    got, error = outcome(fastclip.clip_grad_norm_, ours, *args, **kwargs)
    assert error == expected_error
    if expected is not None:
        assert (got.dtype, got.device, got.shape) == (
            expected.dtype,
            expected.device,
            expected.shape,
        )
        assert not got.requires_grad
        torch.testing.assert_close(got, expected, rtol=coarsest, atol=0, equal_nan=True)
    assert_same(theirs, ours, coarsest)


@pytest.mark.parametrize("name", FOUR)
def test_signature_is_torchs(name):
    theirs = inspect.signature(getattr(nn.utils, name))
    ours = inspect.signature(getattr(fastclip, name))

    def plain(signature):
        return [(p.name, p.default, p.kind) for p in signature.parameters.values()]

    assert plain(ours) == plain(theirs)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("limit", LIMITS)
def test_every_order_and_limit(order, limit):
    torch.manual_seed(0)
    check_clip([randn(3, 4), None, randn(1000), randn(), randn(1)], limit, order)


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_dtype(dtype):
    torch.manual_seed(1)
    check_clip([randn(5, 7, dtype=dtype), randn(1025, dtype=dtype)], 1.0)


def test_mixed_dtypes_promote():
    torch.manual_seed(2)
    for pair in ((0, 1), (2, 3), (0, 2), (0, 1, 2, 3)):
        check_clip([randn(33, dtype=DTYPES[i]) for i in pair], 1.0)


@pytest.mark.parametrize("order", ["inf", "2", "-inf"])
def test_order_and_limit_go_through_float(order):
    check_clip([torch.tensor([3.0, 4.0])], "1.5", order)
    check_clip([torch.tensor([3.0, 4.0])], torch.tensor(1.5), torch.tensor(2))


@pytest.mark.parametrize(("limit", "order"), [("abc", 2), (None, 2), (1.0, "abc"), ([1.0], 2)])
def test_a_limit_that_is_no_number_changes_nothing(limit, order):
    p = parameter(torch.tensor([3.0, 4.0]))
    kind, text = outcome(nn.utils.clip_grad_norm_, [copy.deepcopy(p)], limit, order)[1]
    with pytest.raises(kind) as error:
        fastclip.clip_grad_norm_([p], limit, order)
    assert str(error.value).startswith(text)
    assert ("norm_type" if order == "abc" else "max_norm") in str(error.value)
    assert p.grad.tolist() == [3.0, 4.0]


@pytest.mark.parametrize("grads", [[], [None], [None, None]])
def test_no_gradients_give_a_float32_cpu_zero(grads):
    check_clip(grads, 1.0)
    assert fastclip.get_total_norm([]).dtype == torch.float32


@pytest.mark.parametrize(
    "make",
    [
        lambda ps: ps[0],
        tuple,
        lambda ps: (p for p in ps),
        lambda ps: iter(ps),
        lambda ps: dict.fromkeys(ps),
        lambda ps: nn.ParameterList(ps),
    ],
    ids=["tensor", "tuple", "generator", "iterator", "dict", "parameter list"],
)
def test_any_iterable(make):
    theirs, ours = twins([torch.tensor([3.0, 4.0]), torch.tensor([12.0])])
    expected = nn.utils.clip_grad_norm_(make(theirs), 1.0)
    assert fastclip.clip_grad_norm_(make(ours), 1.0) == expected
    assert_same(theirs, ours)


@pytest.mark.parametrize("function", [nn.utils.clip_grad_norm_, fastclip.clip_grad_norm_])
def test_only_an_empty_generator_warns_at_the_callers_line(function):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        function([], 1.0)
        function(iter([]), 1.0)
    line = inspect.currentframe().f_lineno + 2
    with pytest.warns(UserWarning, match="^`parameters` is an empty generator") as caught:
        function((p for p in ()), 1.0)
    assert [(w.filename, w.lineno) for w in caught] == [(__file__, line)]


@pytest.mark.parametrize("limit", [1.0, 1e9])
@pytest.mark.parametrize("numel", [2, 1_000_000])
def test_a_parameter_listed_twice_counts_twice_and_is_scaled_twice(limit, numel):
    results = []
    for function in (nn.utils.clip_grad_norm_, fastclip.clip_grad_norm_):
        p = parameter(torch.linspace(1, 1000, numel))
        results.append((function([p, p, p], limit), p.grad))
    torch.testing.assert_close(*results, rtol=1e-4, atol=0)


@pytest.mark.parametrize("order", [1.0, 2.0, math.inf, -1.0, -math.inf])
def test_empty_and_zero_size_gradients(order):
    check_clip([torch.zeros(0), torch.tensor([3.0, 4.0]), torch.zeros(0, 3)], 1.0, order)
    check_clip([torch.zeros(0)], 1.0, order)


STRIDED = {
    "transposed": lambda: randn(5, 7).t(),
    "sliced columns": lambda: randn(5, 8)[:, ::2],
    "sliced rows": lambda: randn(9, 4)[::3],
    "offset": lambda: randn(100)[1:],
    "channels last": lambda: randn(2, 3, 5, 5).to(memory_format=torch.channels_last),
    "permuted": lambda: randn(2, 3, 4, 5).permute(2, 0, 3, 1),
}


@pytest.mark.parametrize("kind", STRIDED)
def test_strides_are_kept(kind):
    torch.manual_seed(3)
    theirs, ours = STRIDED[kind](), STRIDED[kind]()
    ours.copy_(theirs)
    assert not theirs.is_contiguous() or kind in ("offset", "sliced rows")
    a, b = parameter(theirs), parameter(ours)
    torch.testing.assert_close(
        fastclip.clip_grad_norm_([b], 0.5), nn.utils.clip_grad_norm_([a], 0.5)
    )
    assert_same([a], [b])
    assert b.grad is ours


def test_overlapping_gradients_raise_as_torch_does():
    # autograd never makes one; set by hand, on a parameter of the same shape
    errors = []
    for function in (nn.utils.clip_grad_norm_, fastclip.clip_grad_norm_):
        p = parameter(torch.ones(1).expand(4))
        errors.append(outcome(function, [p], 0.5)[1])
    assert errors[0] == errors[1]
    assert errors[0] is not None


def test_complex_gradients():
    for order in (1.0, 2.0, math.inf):
        check_clip([torch.randn(4, dtype=torch.complex64), randn(3)], 0.5, order)


def test_sparse_and_meta_do_as_torch():
    check_clip([torch.eye(3).to_sparse()], 1.0)
    meta = [parameter(torch.ones(3, device="meta")) for _ in range(2)]
    expected = nn.utils.clip_grad_norm_([meta[0]], 1.0)
    got = fastclip.clip_grad_norm_([meta[1]], 1.0)
    assert (got.device, got.dtype, got.shape) == (expected.device, expected.dtype, expected.shape)


def test_integer_gradients_do_as_torch():
    theirs, ours = torch.zeros(3, dtype=torch.int64), torch.zeros(3, dtype=torch.int64)
    assert (
        outcome(fastclip.get_total_norm, [ours])[1] == outcome(nn.utils.get_total_norm, [theirs])[1]
    )


def test_tensor_subclasses_take_the_reference_road():
    class Tagged(torch.Tensor):
        pass

    grads = [torch.tensor([3.0, 4.0]).as_subclass(Tagged) for _ in range(2)]
    a, b = parameter(torch.zeros(2)), parameter(torch.zeros(2))
    a.grad, b.grad = grads
    expected = nn.utils.clip_grad_norm_([a], 1.0)
    got = fastclip.clip_grad_norm_([b], 1.0)
    assert type(got) is type(expected)
    torch.testing.assert_close(b.grad, a.grad)
