"""Reports: names that wrappers do not change, every order in float64, tensors without a norm."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

import fastclip
from fastclip import native
from fastclip.norms import stats as norm_stats

pytestmark = pytest.mark.core


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 4), nn.Linear(4, 2))


class Engine(nn.Module):
    def __init__(self, module):
        super().__init__()
        self.module = module


def inner_compiled(model):
    model[1] = torch.compile(model[1])
    return model


def checkpointed(model):
    from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

    model[1] = checkpoint_wrapper(model[1])
    return model


WRAPPERS = [
    torch.compile,
    nn.DataParallel,
    lambda model: torch.compile(nn.DataParallel(model)),
    inner_compiled,
    checkpointed,
    lambda model: list(torch.compile(model).named_parameters()),
    lambda model: nn.DataParallel(model).named_parameters(),
]


@pytest.mark.parametrize("wrap", [*WRAPPERS, Engine])
def test_groups_are_found_under_wrappers(wrap):
    model = net()
    groups = fastclip.param_groups(model, lr=1e-3, weight_decay=0.1)
    names = [name for name, _ in model.named_parameters()]
    parameters = dict(model.named_parameters())
    wrapped = wrap(model)
    model[0](torch.randn(3, 4)).square().sum().backward()  # the others have no gradient
    parameters["1.weight"].grad = torch.ones(4, 4)
    report = fastclip.grad_norms(wrapped)
    if wrap is not Engine:
        assert list(report.names) == names[:3]
        assert list(report.without_grad) == names[3:]
    expected = [
        nn.utils.get_total_norm([p.grad for p in group["params"] if p.grad is not None]).item()
        for group in groups
    ]
    assert report.per_group(groups) == pytest.approx(expected)
    assert 0.0 not in expected


def test_names_of_groups_may_be_those_of_the_wrapper():
    model = torch.compile(net())
    group = {"param_names": [name for name, _ in model.named_parameters()]}
    assert "_orig_mod." in group["param_names"][0]
    assert fastclip.param_norms(model).per_group([group]) == [fastclip.param_norms(model).total]


def test_a_name_that_the_model_does_not_have_is_an_error():
    report = fastclip.param_norms(net())
    with pytest.raises(ValueError, match=r"group 1 names '1.wieght'.*near it: '1.weight'"):
        report.per_group([{"param_names": ["0.weight"]}, {"param_names": ["1.wieght"]}])
    with pytest.raises(ValueError, match="param_names"):
        report.per_group([{"param_names": "0.weight"}])


def test_tied_parameters_come_once():
    model = nn.ModuleDict({"first": nn.Linear(3, 3), "second": nn.Linear(3, 3)})
    model["second"].weight = model["first"].weight
    assert fastclip.param_norms(model).names == ("first.weight", "first.bias", "second.bias")


ORDERS = [0.0, 0.5, 1.0, 2.0, 3.0, 10.0, 40.0, math.inf, -1.0, -math.inf]
TENSORS = {
    "float64": lambda x: x.double(),
    "bfloat16": lambda x: x.bfloat16(),
    "gaps": lambda x: x.repeat(2, 1).t()[::2],
    "complex": lambda x: torch.complex(x, x),
    "negative": lambda x: torch.complex(x, x).conj().imag,
    "empty": lambda x: x[:0],
    "sparse": lambda x: x.to_sparse(),
}


def right(tensor, p):
    tensor = tensor.detach()
    tensor = tensor.to_dense() if tensor.layout is not torch.strided else tensor
    tensor = tensor.abs().double().flatten()
    if not tensor.numel():
        return 0.0 if p >= 0 else math.inf
    largest = tensor.max() if p > 0 else tensor.min()
    if p == 0 or math.isinf(p) or largest == 0:
        return torch.linalg.vector_norm(tensor, p).item()
    return (torch.linalg.vector_norm(tensor / largest, p) * largest).item()


@pytest.mark.parametrize("size", [1e30, 1.0, 1e-30])
@pytest.mark.parametrize("odd", TENSORS)
def test_one_odd_tensor_takes_float64_from_no_order(odd, size):
    torch.manual_seed(0)
    plain = (torch.rand(37) + 0.5) * size
    other = TENSORS[odd]((torch.rand(8) + 0.5) * size)
    named = [("plain", plain), ("odd", other)]
    alone = [fastclip.param_norms(named, p) for p in ORDERS]
    for report, one, p in zip(fastclip.param_norms(named, ORDERS), alone, ORDERS, strict=True):
        expected = [right(plain, p), right(other, p)]
        assert report.norms.tolist() == pytest.approx(expected, rel=2e-6, abs=0), p
        assert one.norms.tolist() == pytest.approx(expected, rel=2e-6, abs=0), p
        if odd not in ("empty", "sparse", "bfloat16", "complex") and p != 0:
            whole = torch.cat([plain.double(), other.double().flatten()])
            assert report.total == pytest.approx(right(whole, p), rel=2e-6, abs=0), p


def test_no_tensors_and_no_orders():
    assert fastclip.param_norms([("w", torch.ones(2))], ()) == ()
    assert fastclip.param_norms([], (1.0, 2.0))[1].total == 0.0
    assert fastclip.param_norms([("w", torch.ones(0))], math.inf).total == 0.0


@pytest.mark.parametrize(
    "dtype", [torch.uint8, torch.int32, torch.bool, torch.float8_e4m3fn, torch.float8_e5m2]
)
def test_parameters_without_a_norm_are_listed(dtype):
    model = nn.Linear(3, 2)
    model.packed = nn.Parameter(torch.ones(4).to(dtype), requires_grad=False)
    for report in (fastclip.param_norms(model), *fastclip.param_norms(model, (1.0, math.inf))):
        assert report.names == ("weight", "bias")
        assert report.skipped == ("packed",)
        assert "1 skipped" in report.table()
        assert report.per_group([{"param_names": ["packed"]}]) == [0.0]
    assert fastclip.param_norms(model, stats=True).stats.keys() == {"weight", "bias"}


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
def test_quantised_tensors_are_listed():
    packed = torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8)
    report = fastclip.param_norms([("packed", packed), ("w", torch.ones(4))])
    assert report.skipped == ("packed",)
    assert report.total == 2.0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_stats(dtype):
    torch.manual_seed(0)
    x = (torch.randn(1001) + 30).to(dtype)  # most of the 2-norm is the mean
    named = [("x", x), ("one", x[:1]), ("none", x[:0]), ("gaps", x[::3])]
    report = fastclip.param_norms(named, stats=True)
    for name, tensor in (named[0], named[3]):
        found, exact = report.stats[name], tensor.double()
        assert found.mean == pytest.approx(exact.mean().item(), rel=1e-12)
        assert found.std == pytest.approx(exact.std().item(), rel=1e-9)
        assert (found.min, found.max) == (exact.min().item(), exact.max().item())
        assert found.abs_max == exact.abs().max().item()
    assert report.stats["one"].mean == x[0].item()
    assert math.isnan(report.stats["one"].std)
    assert math.isnan(report.stats["none"].mean)
    assert math.isnan(report.stats["none"].abs_max)
    assert fastclip.param_norms(named).norms.equal(report.norms)


@pytest.mark.skipif(native.core is None, reason=f"no core: {native.why_missing}")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_stats_come_from_the_read_of_the_norms(dtype, monkeypatch):
    """Of tensors over several chunks, beside those that torch computes in float64."""
    torch.manual_seed(0)
    named = [(f"t{n}", (torch.randn(n) * 3 - 7).to(dtype)) for n in (1, 15, 16, 17, 300_001)]
    monkeypatch.setattr(norm_stats, "stats_of", None)  # whoever reads again
    report = fastclip.param_norms(named, stats=True)
    for name, tensor in named:
        found, exact = report.stats[name], tensor.double()
        assert found.mean == pytest.approx(exact.mean().item(), rel=1e-12)
        assert found.std == pytest.approx(exact.std().item(), rel=1e-12, nan_ok=True)
        assert (found.min, found.max) == (exact.min().item(), exact.max().item())
    assert report.norms.equal(fastclip.param_norms(named).norms)


@pytest.mark.parametrize("at", [0, 20, 200_000])
@pytest.mark.parametrize(
    "values", [[math.nan], [math.inf], [-math.inf], [math.inf, -math.inf], [math.inf, math.nan]]
)
def test_stats_of_what_is_not_finite_are_torchs(values, at):
    x = torch.ones(300_000)
    x[at : at + len(values)] = torch.tensor(values)
    found = fastclip.param_norms([("x", x)], stats=True).stats["x"]
    exact = x.double()
    wanted = (exact.mean(), exact.std(), exact.min(), exact.max())
    for value, right in zip(found, wanted, strict=True):
        assert value == pytest.approx(right.item(), nan_ok=True)


def test_stats_must_be_asked_for():
    with pytest.raises(ValueError, match="stats=True"):
        fastclip.param_norms(net()).stats  # noqa: B018
    with pytest.raises(TypeError, match="w is complex"):
        fastclip.param_norms([("w", torch.ones(2, dtype=torch.complex64))], stats=True)


def test_what_is_neither_a_module_nor_pairs():
    for wrong in (net().parameters(), 3, [("a", 1)], [(1, torch.ones(1))]):
        with pytest.raises(TypeError, match="named_parameters"):
            fastclip.param_norms(wrong)


class Sharded(nn.Module):
    """What FSDP1 makes of a module, which it makes on accelerators only."""

    def __init__(self, module):
        super().__init__()
        self._fsdp_wrapped_module = module
        self._handle = type("Handle", (), {"uses_sharded_strategy": True})()


def test_a_model_that_fsdp1_has_sharded_is_refused():
    model = nn.Sequential(Sharded(nn.Linear(2, 2)))
    optimizer = torch.optim.SGD(model.parameters())
    for call in (fastclip.param_norms, lambda model: fastclip.NormMonitor(model, optimizer)):
        with pytest.raises(ValueError, match="FSDP1 has sharded '0'"):
            call(model)
    flat = nn.Parameter(torch.ones(3))
    flat._is_flat_param = True
    with pytest.raises(ValueError, match="FSDP1 has sharded '_flat_param'"):
        fastclip.param_norms([("_fsdp_wrapped_module._flat_param", flat)])
