"""What groups tell of themselves: explain, summary, to_dict, check."""

import copy
import json

import pytest
import torch
from test_groups import Net
from torch import nn

from fastclip import param_groups

pytestmark = pytest.mark.core


def test_explain_names_the_rule():
    groups = param_groups(Net(), lr=1.0, weight_decay=0.1, no_decay=["embed"], frozen=["head"])
    text = groups.explain()
    lines = {name: line for line in reversed(text.splitlines()) for name in [_first(line)] if name}
    assert "no_decay 'embed'" in lines["embed.weight"]
    assert "10x4" in lines["embed.weight"]
    assert "norm layer (LayerNorm)" in lines["blocks.0.norm.weight"]
    assert "weight_decay '*'" in lines["blocks.0.proj.weight"]
    assert "frozen 'head'" in lines["head.bias"]


def _first(line: str) -> str:
    words = line.split()
    return words[0] if words else ""


def test_summary_and_to_dict():
    groups = param_groups(Net(depth=1), lr=0.5, weight_decay=0.1, frozen=["head"])
    assert groups.summary().splitlines() == [
        "group 0: lr 0.5, weight_decay 0.1, 2 tensors, 56 values",
        "group 1: lr 0.5, weight_decay 0, 3 tensors, 12 values",
        "frozen: 2 tensors, 50 values",
    ]
    described = json.loads(json.dumps(groups.to_dict()))
    assert described["groups"][1]["param_names"] == groups[1]["param_names"]
    assert [row["name"] for row in described["parameters"]] == [
        n for n, _ in Net(1).named_parameters()
    ]
    assert copy.deepcopy(groups).summary() == groups.summary()


def test_check_finds_a_replaced_head_and_a_foreign_parameter():
    model = Net()
    groups = param_groups(model, lr=1.0, frozen=["embed"])
    optimizer = torch.optim.SGD(groups)
    assert groups.check(optimizer) == ([], [])
    model.head = nn.Linear(4, 3)
    found = groups.check(optimizer)
    assert found.missing == ["head.weight", "head.bias"]
    assert found.foreign == ["head.weight", "head.bias"]
    model.embed.weight.requires_grad_(True)
    assert groups.check(optimizer).missing == ["embed.weight", "head.weight", "head.bias"]
    stranger = torch.optim.SGD([nn.Parameter(torch.ones(2))], lr=1.0)
    assert groups.check(stranger).foreign == ["group 0, params[0]"]
    with pytest.raises(TypeError, match="optimizer must have param_groups, got Net"):
        groups.check(model)
