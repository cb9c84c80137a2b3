"""What a pattern takes: whole numbers, literal names with brackets, and a report of it."""

import json

import pytest
from test_groups import Net
from torch import nn

from fastclip import param_groups

pytestmark = pytest.mark.core


def numbered(depth: int = 12) -> nn.Module:
    blocks = nn.ModuleList(nn.Linear(2, 2) for _ in range(depth))
    return nn.ModuleDict({"blocks": blocks, "layer1": nn.Linear(2, 2), "layer10": nn.Linear(2, 2)})


@pytest.mark.parametrize(
    ("pattern", "taken"),
    [
        ("blocks.1", {"blocks.1"}),
        ("blocks.11", {"blocks.11"}),
        ("1.weight", {"blocks.1", "layer1"}),
        ("layer1", {"layer1"}),
        ("blocks.1.", {"blocks.1"}),
        ("blocks.1*", {"blocks.1", "blocks.10", "blocks.11"}),
        (r"re:blocks\.1", {"blocks.1", "blocks.10", "blocks.11"}),
    ],
)
def test_a_substring_does_not_begin_or_end_inside_a_number(pattern, taken):
    decisions = param_groups(numbered(), frozen=[pattern]).decisions
    found = {d.name.rpartition(".")[0] for d in decisions if d.frozen}
    assert found == taken


def test_every_argument_with_patterns_keeps_numbers_whole():
    groups = param_groups(
        numbered(),
        lr=1.0,
        lr_scale={"blocks.1": 0.5},
        weight_decay={"*": 0.1, "blocks.1": 0.2},
        options={"blocks.1": {"betas": (0.5, 0.5)}},
        no_decay=["layer1.weight"],
    )
    told = {d.name: d for d in groups.decisions}
    assert [told[f"blocks.{i}.weight"].lr_factor for i in (1, 10, 11)] == [0.5, 1.0, 1.0]
    assert [told[f"blocks.{i}.weight"].weight_decay for i in (1, 10, 11)] == [0.2, 0.1, 0.1]
    assert [bool(told[f"blocks.{i}.weight"].options) for i in (1, 10, 11)] == [True, False, False]
    assert [told[f"layer{i}.weight"].decays for i in (1, 10)] == [False, True]


def test_a_pattern_inside_numbers_alone_says_so():
    model = nn.ModuleDict({"blocks": nn.ModuleDict({"10": nn.Linear(2, 2)})})
    with pytest.raises(ValueError, match=r"'blocks.1' matches no parameter: .*inside a number"):
        param_groups(model, frozen=["blocks.1"])


def test_a_name_with_brackets_is_a_name_and_a_glob_stays_one():
    model = nn.ModuleDict({"a[0]": nn.Linear(2, 2), "a0": nn.Linear(2, 2), "b": nn.Linear(2, 2)})
    names = [d.name for d in param_groups(model, frozen=["a[0].weight"]).decisions if d.frozen]
    assert names == ["a[0].weight"]
    model.requires_grad_()
    names = [d.name for d in param_groups(model, frozen=["[ab]*.bias"]).decisions if d.frozen]
    assert names == ["a[0].bias", "a0.bias", "b.bias"]


def test_missing_ok_lets_a_pattern_match_nothing():
    groups = param_groups(Net(), lr=1.0, frozen=["absent"], lr_scale={"gone": 2}, missing_ok=True)
    assert not any(d.frozen or d.lr_factor != 1 for d in groups.decisions)
    assert [(t.argument, t.pattern) for t in groups.taken if not t.names] == [
        ("frozen", "absent"),
        ("lr_scale", "gone"),
    ]


def test_explain_shows_what_each_pattern_took_and_filters():
    groups = param_groups(
        Net(), lr=0.5, weight_decay=0.1, lr_scale={"blocks.1": 0.1}, no_decay=["norm"]
    )
    text = groups.explain("blocks.1")
    rows = text.splitlines()
    assert "embed.weight" not in rows[2]
    assert [row.split()[0] for row in rows[2:6]] == [
        "blocks.1.norm.weight",
        "blocks.1.norm.bias",
        "blocks.1.proj.weight",
        "blocks.1.proj.bias",
    ]
    assert "0.05" in rows[2]
    assert any(row.split()[:3] == ["lr_scale", "blocks.1", "4"] for row in rows)
    assert any("and 3 more" in row for row in rows if row.startswith("no_decay"))
    with pytest.raises(ValueError, match="pattern: 'absent' matches no parameter"):
        groups.explain("absent")


def test_explain_as_json_and_markdown():
    groups = param_groups(Net(), lr=0.5, weight_decay=0.1, options={"embed": {"f": len}})
    told = json.loads(groups.explain(["embed", "head"], format="json"))
    assert [row["name"] for row in told["parameters"]] == [
        "embed.weight",
        "head.weight",
        "head.bias",
    ]
    assert told["parameters"][0]["lr"] == 0.5
    assert {"argument": "options", "pattern": "embed", "names": ["embed.weight"]} in told[
        "patterns"
    ]
    lines = groups.explain("head", format="markdown").splitlines()
    assert lines[1] == "| " + " | ".join(["---"] * 8) + " |"
    assert lines[2].startswith("| head.weight | 10x4 | 0.1 |")
    with pytest.raises(ValueError, match=r"format must be of .*'html'"):
        groups.explain(format="html")
