"""param_groups refuses bad input by name, and changes nothing when it does."""

import pytest
import torch
from test_groups import Net
from torch import nn

from fastclip import param_groups

pytestmark = pytest.mark.core

BAD = [
    (
        ValueError,
        r"frozen: 'hed.weight' matches no parameter; .*'head.weight'",
        {"frozen": "hed.weight"},
    ),
    (ValueError, r"no_decay: 'blocks.9.\*' matches no parameter", {"no_decay": ["blocks.9.*"]}),
    (
        ValueError,
        r"lr_scale: 're:\^embd' matches no.*'embed'",
        {"lr": 1.0, "lr_scale": {"re:^embd": 0.1}},
    ),
    (ValueError, "no_decay: '' matches no parameter", {"no_decay": [""]}),
    (ValueError, r"no_decay: '\(' is not a regular expression", {"no_decay": ["re:("]}),
    (TypeError, r"no_decay\[1\] must be a pattern", {"no_decay": ["bias", 3]}),
    (ValueError, "frozen is an exhausted generator", {"frozen": (p for p in ())}),
    (TypeError, "frozen must be a list, got int", {"frozen": 3}),
    (ValueError, "rules must be of .* got 'layernorm'", {"rules": ["layernorm"]}),
    (ValueError, "weight_decay must be finite and at least 0, got -0.1", {"weight_decay": -0.1}),
    (ValueError, "weight_decay must be finite", {"weight_decay": float("nan")}),
    (TypeError, "weight_decay must be a number, got '0.1'", {"weight_decay": "0.1"}),
    (TypeError, "weight_decay must be a number, got True", {"weight_decay": True}),
    (ValueError, r"weight_decay\['head'\] must be", {"weight_decay": {"*": 0.1, "head": -1.0}}),
    (ValueError, "lr must be finite", {"lr": float("inf")}),
    (TypeError, "lr must be a number", {"lr": torch.ones(2)}),
    (TypeError, "lr_scale must map patterns to numbers, got 0.1", {"lr": 1.0, "lr_scale": 0.1}),
    (TypeError, "options must map patterns to mappings", {"options": ["head"]}),
    (TypeError, r"options\['head'\] must map keys", {"options": {"head": 0.1}}),
    (
        ValueError,
        r"options\['head'\] must not have 'weight_decay': use weight_decay=",
        {"options": {"head": {"weight_decay": 0.1}}},
    ),
    (ValueError, r"options\['head'\]\['lr'\] must be", {"options": {"head": {"lr": -1.0}}}),
    (ValueError, "options: 'hed' matches no", {"options": {"hed": {"betas": (0.9, 0.9)}}}),
    (ValueError, "split must be 'muon' or None, got 'adam'", {"split": "adam"}),
    (ValueError, r"min_scale must be in \[0, 1\]", {"layer_decay": 0.5, "min_scale": 2.0}),
    (ValueError, "min_scale is given but layer_decay is None", {"min_scale": 0.1}),
    (ValueError, "example_inputs is given but layer_decay is None", {"example_inputs": 1}),
    (ValueError, r"layer_decay must be in \(0, 1\], got 1.5", {"lr": 1.0, "layer_decay": 1.5}),
    (ValueError, r"layer_decay must be in \(0, 1\], got 0", {"lr": 1.0, "layer_decay": 0}),
    (ValueError, "layer_decay is None", {"lr": 1.0, "layer_id": len}),
    (TypeError, "layer_id must be a function", {"lr": 1.0, "layer_decay": 0.5, "layer_id": 3}),
    (
        TypeError,
        r"layer_id\('embed.weight'\) must be an int, got None",
        {"lr": 1.0, "layer_decay": 0.5, "layer_id": lambda name: None},
    ),
    (
        ValueError,
        r"layer_id\('embed.weight'\) must be 0 or more, got -1",
        {"lr": 1.0, "layer_decay": 0.5, "layer_id": lambda name: -1},
    ),
    (ValueError, "nothing is left to train", {"frozen": "*"}),
]


@pytest.mark.parametrize(("error", "text", "kwargs"), BAD, ids=[text for _, text, _ in BAD])
def test_bad_arguments_change_nothing(error, text, kwargs):
    model = Net()
    with pytest.raises(error, match=text):
        param_groups(model, **{"frozen": ["embed"], **kwargs})
    assert all(p.requires_grad for p in model.parameters())


def test_a_parameter_instead_of_its_name():
    model = Net()
    with pytest.raises(TypeError, match=r"frozen\[0\] .*got Parameter: write 'embed.weight'"):
        param_groups(model, frozen=[model.embed.weight])
    with pytest.raises(TypeError, match="it is not a parameter of this model"):
        param_groups(model, frozen=[Net().embed.weight])


def test_models_that_are_none():
    layer = nn.Linear(2, 2)
    with pytest.raises(TypeError, match="model must be a list, got int"):
        param_groups(3)
    with pytest.raises(TypeError, match=r"\(name, parameter\) pairs .*got a Parameter"):
        param_groups(layer.parameters())
    with pytest.raises(TypeError, match="'a' must be a parameter, got int"):
        param_groups([("a", 3)])
    with pytest.raises(ValueError, match="model has no parameters"):
        param_groups(nn.ReLU())
    with pytest.raises(ValueError, match="model has no parameters"):
        param_groups([])
    with pytest.raises(ValueError, match=r"'0.weight' has no shape yet"):
        param_groups(nn.Sequential(nn.LazyLinear(3)))
    with pytest.raises(ValueError, match="'a' is computed from other tensors"):
        param_groups([("a", layer.weight * 2)], frozen="a")


def test_an_exhausted_generator_is_not_an_empty_model():
    named = nn.Linear(2, 2).named_parameters()
    assert len(list(named)) == 2
    with pytest.raises(ValueError, match="model is an exhausted generator"):
        param_groups(named)


def test_a_module_or_a_parameter_given_twice():
    model = Net()
    with pytest.raises(ValueError, match=r"model\[1\] is given twice: it is model\[0\] already"):
        param_groups([model, nn.DataParallel(model)])
    with pytest.raises(ValueError, match=r"model\[1\] is given .* part of model\[0\] \(head\)"):
        param_groups([model, model.head])
    with pytest.raises(ValueError, match=r"model\[0\] is given .* part of model\[1\] \(head\)"):
        param_groups([model.head, model])
    pair = ("head.weight", model.head.weight)
    with pytest.raises(ValueError, match=r"model has the name 'head\.weight' twice"):
        param_groups([pair, pair])


def test_lists_of_modules_and_pairs_are_models_too():
    encoder, head = Block4(), nn.Linear(4, 2)
    groups = param_groups([encoder, head], weight_decay=0.1, frozen="1.weight")
    assert groups[0]["param_names"] == ["0.conv.weight"]
    assert groups[1]["param_names"] == ["0.conv.bias", "0.norm.weight", "0.norm.bias", "1.bias"]
    pairs = param_groups(nn.DataParallel(encoder).named_parameters(), weight_decay=0.1)
    assert [group["param_names"] for group in pairs] == [
        ["conv.weight"],
        ["conv.bias", "norm.weight", "norm.bias"],
    ]


class Block4(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.norm = nn.BatchNorm2d(4)
