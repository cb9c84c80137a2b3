"""Norm reports, and the clippers that follow the norm."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

import fastclip

pytestmark = pytest.mark.core


@pytest.fixture
def net() -> nn.Module:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2, bias=False))
    net(torch.randn(5, 3)).square().sum().backward()
    return net


@pytest.mark.parametrize("p", [1.0, 2.0, math.inf, 3.0, 0.0])
def test_norms_are_torchs(net, p):
    for report, tensors in (
        (fastclip.grad_norms(net, p), [q.grad for q in net.parameters()]),
        (fastclip.param_norms(net.named_parameters(), p), list(net.parameters())),
    ):
        assert report.names == ("0.weight", "0.bias", "1.weight")
        expected = [torch.linalg.vector_norm(t.detach().double(), p).item() for t in tensors]
        assert list(report.per_parameter.values()) == pytest.approx(expected, rel=1e-6)
        everything = torch.cat([t.detach().double().flatten() for t in tensors])
        assert report.total == pytest.approx(torch.linalg.vector_norm(everything, p).item())


def test_several_orders_at_once(net):
    one, two = fastclip.grad_norms(net, (1.0, 2.0))
    assert torch.equal(one.norms, fastclip.grad_norms(net, 1.0).norms)
    assert torch.equal(two.norms, fastclip.grad_norms(net, 2).norms)


def test_groups_offenders_and_table(net):
    groups = fastclip.param_groups(net, lr=0.1, weight_decay=0.1)
    report = fastclip.grad_norms(net)
    norms = report.per_group(groups)
    assert len(norms) == len(groups) == 2
    assert math.hypot(*norms) == pytest.approx(report.total)
    with pytest.raises(ValueError, match="param_names"):
        report.per_group([{"params": []}])
    net[0].bias.grad[1] = math.nan
    report = fastclip.grad_norms(net)
    assert report.nonfinite() == ["0.bias"]
    assert report.table(2).splitlines()[1].split() == ["0.bias", "nan"]
    assert "3 tensors" in report.table()


def test_parameters_without_gradient_and_empty_models():
    net = nn.Linear(2, 2)
    assert fastclip.grad_norms(net).names == ()
    assert fastclip.grad_norms(net).total == 0.0
    assert fastclip.grad_norms(net).table()
    with pytest.raises(TypeError, match="named_parameters"):
        fastclip.grad_norms(net.parameters())


def with_norm(norm: float) -> list[nn.Parameter]:
    p = nn.Parameter(torch.zeros(2))
    p.grad = torch.tensor([0.6, 0.8]) * norm
    return [p]


def test_autoclip_clips_to_a_percentile_of_history():
    clipper = fastclip.AutoClip(percentile=50)
    for norm in (1.0, 2.0, 3.0):
        assert clipper.clip_(with_norm(norm)).item() == pytest.approx(norm)
    parameters = with_norm(100.0)
    copy = fastclip.AutoClip(percentile=50)
    copy.load_state_dict(clipper.state_dict())
    clipper.clip_(parameters)
    assert parameters[0].grad.norm().item() == pytest.approx(2.5, rel=1e-5)  # of 1 2 3 100
    again = with_norm(100.0)
    copy.clip_(again)
    assert torch.equal(again[0].grad, parameters[0].grad)
    short = fastclip.AutoClip(50, history=2)
    for norm in (1.0, 5.0, 7.0):
        short.clip_(with_norm(norm))
    assert short.state_dict() == {"norms": pytest.approx([5.0, 7.0])}


def test_zclip_clips_outliers_only():
    clipper = fastclip.ZClip(threshold=2.0, alpha=0.9, warmup=4)
    for norm in (0.9, 1.1, 0.9, 1.1):  # mean 1, deviation 0.1
        parameters = with_norm(norm)
        clipper.clip_(parameters)
        assert parameters[0].grad.norm().item() == pytest.approx(norm)
    copy = fastclip.ZClip(threshold=2.0, alpha=0.9, warmup=4)
    copy.load_state_dict(clipper.state_dict())
    inlier, outlier = with_norm(1.15), with_norm(2.0)
    copy.clip_(inlier)
    assert inlier[0].grad.norm().item() == pytest.approx(1.15)
    clipper.clip_(outlier)  # z = 10: 1 + 4 / 10 * 0.1
    assert outlier[0].grad.norm().item() == pytest.approx(1.04, rel=1e-4)
    bad = with_norm(math.nan)
    assert clipper.clip_(bad).isnan()
    assert math.isfinite(clipper.state_dict()["mean"])


@pytest.mark.parametrize("seen", [0, 3, 9], ids=lambda n: f"{n}-steps")
@pytest.mark.parametrize(
    "make",
    [
        lambda: fastclip.AutoClip(30, history=5),
        lambda: fastclip.ZClip(threshold=0.5, warmup=4),
        lambda: fastclip.AGC(0.1),
    ],
    ids=["AutoClip", "ZClip", "AGC"],
)
def test_a_saved_state_continues_as_if_nothing_had_happened(make, seen, tmp_path):
    norms = [1.0, 3.0, 2.0, 5.0, 0.5, 8.0, 1.5, math.nan, 4.0, 9.0, 0.1, 7.0, 2.0, 6.0]
    clipper, copy = make(), make()
    for norm in norms[:seen]:
        clipper.clip_(with_norm(norm))
    torch.save(clipper.state_dict(), tmp_path / "state.pt")
    copy.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    for norm in norms[seen:]:
        one, two = with_norm(norm), with_norm(norm)
        clipper.clip_(one)
        copy.clip_(two)
        torch.testing.assert_close(one[0].grad, two[0].grad, rtol=0, atol=0, equal_nan=True)
    assert copy.state_dict() == clipper.state_dict()


def test_agc_clips_each_unit():
    p = nn.Parameter(torch.tensor([[3.0, 4.0], [0.0, 0.0]]))
    p.grad = torch.tensor([[0.03, 0.04], [3.0, 4.0]])
    bias = nn.Parameter(torch.tensor([1.0, 0.0]))
    bias.grad = torch.tensor([0.0, 0.5])
    clipper = fastclip.AGC(clipping=0.1, eps=0.01)
    clipper.clip_([p, bias, nn.Parameter(torch.zeros(1))])
    assert p.grad[0].tolist() == pytest.approx([0.03, 0.04])  # 0.05 of 0.5 allowed
    assert p.grad[1].norm().item() == pytest.approx(0.001)  # 0.1 * eps
    assert bias.grad.norm().item() == pytest.approx(0.1)


def test_agc_is_timms():
    timm_agc = pytest.importorskip("timm.utils.agc")
    torch.manual_seed(0)
    shapes = [(8, 4, 3, 3), (5, 7), (8,)]
    mine = [nn.Parameter(torch.randn(s)) for s in shapes]
    theirs = [nn.Parameter(p.detach().clone()) for p in mine]
    for p, q in zip(mine, theirs, strict=True):
        p.grad = torch.randn(p.shape)
        q.grad = p.grad.clone()
    fastclip.AGC(0.01).clip_(mine)
    timm_agc.adaptive_clip_grad(theirs, 0.01)
    for p, q in zip(mine, theirs, strict=True):
        torch.testing.assert_close(p.grad, q.grad)


@pytest.mark.parametrize(
    "make",
    [
        lambda: fastclip.AutoClip(0),
        lambda: fastclip.AutoClip(101),
        lambda: fastclip.ZClip(threshold=0),
        lambda: fastclip.ZClip(alpha=1.0),
        lambda: fastclip.ZClip(warmup=1),
        lambda: fastclip.AGC(0),
    ],
)
def test_wrong_settings(make):
    with pytest.raises(ValueError, match="must be"):
        make()
