"""The clipping contract beyond values: what is not finite, what is written, what is returned."""

from __future__ import annotations

import copy
import math
import pickle

import pytest
import torch
from test_clip import (
    DTYPES,
    assert_same,
    check_clip,
    outcome,
    parameter,
    randn,
    twins,
)
from torch import nn

import fastclip

pytestmark = pytest.mark.core


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("order", [1.0, 2.0, math.inf, 0.5])
def test_nonfinite_norms(bad, order):
    check_clip([torch.tensor([1.0, bad, 2.0]), torch.tensor([3.0])], 1.0, order)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_error_if_nonfinite_names_the_offenders_and_changes_nothing(bad):
    theirs, ours = twins([torch.ones(2), torch.tensor([1.0, bad]), torch.ones(1)])
    _, (kind, text) = outcome(nn.utils.clip_grad_norm_, theirs, 0.1, error_if_nonfinite=True)
    with pytest.raises(kind) as error:
        fastclip.clip_grad_norm_(ours, 0.1, error_if_nonfinite=True)
    assert str(error.value).startswith(text)
    assert str(error.value).endswith("Non-finite: gradients 1 of 3")
    assert ours[0].grad.tolist() == [1.0, 1.0]
    assert fastclip.clip_grad_norm_([ours[0]], 0.1, error_if_nonfinite=True) == math.sqrt(2)


def test_version_counters_bump_when_gradients_are_written_and_only_then():
    p = parameter(torch.tensor([3.0, 4.0]))
    before = p.grad._version
    fastclip.clip_grad_norm_([p], 10.0)
    assert p.grad._version == before
    fastclip.clip_grad_norm_([p], 1.0)
    assert p.grad._version > before


def test_autograd_sees_that_a_saved_gradient_was_written():
    x = torch.ones(2, requires_grad=True)
    p = parameter(torch.tensor([3.0, 4.0]))
    product = (x * p.grad).sum()
    fastclip.clip_grad_norm_([p], 1.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        product.backward()


def test_nothing_is_written_at_factor_one():
    grad = torch.tensor([3.0, -0.0, 1e-45])
    p = parameter(grad)
    bits = grad.view(torch.int32).clone()
    fastclip.clip_grad_norm_([p], 10.0)
    assert torch.equal(grad.view(torch.int32), bits)


def test_negative_zero_and_denormals_scale_as_in_torch():
    check_clip([torch.tensor([-0.0, 1e-45, -1e-40, 3.0])], 1.0)
    theirs, ours = twins([torch.tensor([-0.0, 3.0])])
    nn.utils.clip_grad_norm_(theirs, 1.0)
    fastclip.clip_grad_norm_(ours, 1.0)
    assert math.copysign(1, ours[0].grad[0]) == math.copysign(1, theirs[0].grad[0]) == -1


def test_get_total_norm_and_clip_grads_with_norm():
    torch.manual_seed(4)
    theirs, ours = twins([randn(100), randn(7, 7), None])
    norms = [
        f([p.grad for p in ps if p.grad is not None])
        for f, ps in ((nn.utils.get_total_norm, theirs), (fastclip.get_total_norm, ours))
    ]
    torch.testing.assert_close(norms[1], norms[0])
    nn.utils.clip_grads_with_norm_(theirs, 1.0, norms[0])
    assert fastclip.clip_grads_with_norm_(ours, 1.0, norms[1]) is None
    assert_same(theirs, ours)
    fastclip.clip_grads_with_norm_((p for p in ours), 0.5, torch.tensor(1.0))
    nn.utils.clip_grads_with_norm_(theirs, 0.5, torch.tensor(1.0))
    assert_same(theirs, ours)


def test_clip_grad_value():
    theirs, ours = twins([torch.tensor([-3.0, 0.5, 2.0])])
    nn.utils.clip_grad_value_(theirs, 1.0)
    fastclip.clip_grad_value_(ours, 1.0)
    assert_same(theirs, ours)
    with pytest.raises(ValueError, match="clip_value"):
        fastclip.clip_grad_value_(ours, "abc")


def test_foreach_is_accepted():
    for foreach in (True, False, None):
        check_clip([randn(10)], 1.0, foreach=foreach)


def test_under_no_grad_and_inference_mode():
    for mode in (torch.no_grad, torch.inference_mode, torch.enable_grad):
        with mode():
            check_clip([torch.tensor([3.0, 4.0])], 1.0)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_norm_can_be_used_as_torchs(dtype):
    def uses(module):
        p = parameter(torch.full((4,), 2.0, dtype=dtype))
        norm = module.clip_grad_norm_([p], 1e9)
        assert torch.equal(pickle.loads(pickle.dumps(norm)), copy.deepcopy(norm))
        weight = torch.ones((), dtype=dtype, requires_grad=True)
        (weight * norm).backward()
        with torch.inference_mode():
            inference = module.clip_grad_norm_([p], 1e9)
        norm.add_(1).share_memory_()
        facts = (norm.dtype, norm.is_leaf, norm._version, norm.stride(), inference.is_inference())
        return weight.grad.item(), norm.resize_(1).tolist(), facts

    assert uses(fastclip) == uses(nn.utils) == (4.0, [5.0], (dtype, True, 1, (), True))


def test_the_norm_is_on_the_cpu_whatever_the_default_device():
    with torch.device("meta"):
        assert fastclip.get_total_norm([torch.ones(4, device="cpu")]).item() == 2


def test_a_gradient_with_history_is_written_in_place():
    x = torch.ones(2, requires_grad=True)
    (y,) = torch.autograd.grad((x**3).sum(), x, create_graph=True)
    p = parameter(torch.zeros(2))
    p.grad = y
    assert fastclip.clip_grad_norm_([p], 1.0) == pytest.approx(math.sqrt(18))
    assert p.grad.norm().item() == pytest.approx(1.0, rel=1e-5)


@pytest.mark.parametrize("limit", [1.0, 1e9])
def test_compiles_without_a_graph_break(limit):
    theirs, ours = twins([torch.tensor([3.0, 4.0]), torch.tensor([12.0])])
    compiled = torch.compile(
        lambda ps: fastclip.clip_grad_norm_(ps, limit), fullgraph=True, backend="aot_eager"
    )
    torch.testing.assert_close(compiled(ours), nn.utils.clip_grad_norm_(theirs, limit))
    assert_same(theirs, ours)
