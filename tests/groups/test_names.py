"""The names of parameters: those of the bare model, whatever it is wrapped in."""

import pytest
import torch
from torch import nn

from fastclip.names import named_parameters, strip_wrappers, unwrap

pytestmark = pytest.mark.core


@pytest.mark.parametrize(
    ("wrapped", "bare"),
    [
        ("_orig_mod.0.weight", "0.weight"),
        ("a._fsdp_wrapped_module.b._checkpoint_wrapped_module.w", "a.b.w"),
        ("_forward_module._orig_mod.w", "w"),
        ("module.w", "module.w"),
        ("my_orig_mod.w", "my_orig_mod.w"),
        ("_orig_mod", "_orig_mod"),
    ],
)
def test_reserved_components_are_left_out_of_names(wrapped, bare):
    assert strip_wrappers(wrapped) == bare


class Fabric(nn.Module):
    """As Lightning Fabric wraps a model: the same parameters under two names."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self._forward_module = nn.DataParallel(module)
        self._original_module = module


def engine(package: str, kind: str, module: nn.Module) -> nn.Module:
    made = type(kind, (nn.Module,), {"__module__": f"{package}.runtime"})()
    made.module = module
    return made


@pytest.mark.parametrize(
    "wrap",
    [
        torch.compile,
        nn.DataParallel,
        torch.optim.swa_utils.AveragedModel,
        Fabric,
        lambda m: engine("deepspeed", "DeepSpeedEngine", m),
        lambda m: engine("timm", "ModelEmaV3", torch.compile(m)),
    ],
    ids=["compile", "dp", "ema", "fabric", "deepspeed", "timm-ema"],
)
def test_names_of_a_wrapped_model_are_those_of_the_model(wrap):
    net = nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 4))
    wrapped = wrap(net)
    assert [name for name, _, _ in named_parameters(wrapped)] == [
        n for n, _ in net.named_parameters()
    ]
    assert type(unwrap(wrapped)) is nn.Sequential


def test_an_attribute_called_module_in_a_class_of_ones_own_stays():
    made = engine("mine", "DeepSpeedEngine", nn.Linear(2, 2))
    assert [name for name, _, _ in named_parameters(made)] == ["module.weight", "module.bias"]


def test_every_place_of_a_tied_parameter_comes_with_its_owner():
    net = nn.ModuleDict({"a": nn.Linear(2, 2), "b": nn.Linear(2, 2, bias=False)})
    net["b"].weight = net["a"].weight
    found = [(name, owner) for name, owner, p in named_parameters(net) if p is net["a"].weight]
    assert found == [("a.weight", net["a"]), ("b.weight", net["b"])]
