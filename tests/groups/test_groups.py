"""The rules of param_groups: decay, patterns, frozen, factors, tied weights, bad input."""

import math

import pytest
import torch
from torch import nn

from fastclip import ParamGroups, param_groups

pytestmark = pytest.mark.core


class Block(nn.Module):
    def __init__(self, dim: int = 4) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.proj = nn.Linear(dim, dim)


class Net(nn.Module):
    def __init__(self, depth: int = 3, dim: int = 4) -> None:
        super().__init__()
        self.embed = nn.Embedding(10, dim)
        self.blocks = nn.ModuleList(Block(dim) for _ in range(depth))
        self.head = nn.Linear(dim, 10)


def decisions(groups: ParamGroups) -> dict[str, tuple[float, float]]:
    """name -> (lr, weight_decay), as the groups say."""
    return {
        name: (group.get("lr", math.nan), group.get("weight_decay"))
        for group in groups
        for name in group["param_names"]
    }


def decays(model: nn.Module, **kwargs) -> set[str]:
    """The names that decay."""
    groups = param_groups(model, weight_decay=0.5, **kwargs)
    return {name for name, (_, decay) in decisions(groups).items() if decay == 0.5}


@pytest.mark.parametrize(
    "norm",
    [
        nn.BatchNorm1d(4),
        nn.BatchNorm2d(4),
        nn.SyncBatchNorm(4),
        nn.InstanceNorm2d(4, affine=True),
        nn.GroupNorm(2, 4),
        nn.LayerNorm([4, 3, 3]),
        nn.RMSNorm([4, 3]),
    ],
    ids=lambda norm: type(norm).__name__,
)
def test_norm_layers_do_not_decay_by_type(norm):
    model = nn.ModuleDict({"a": norm, "b": nn.Linear(4, 4)})
    assert decays(model, rules="norm") == {"b.weight", "b.bias"}


def _module(kind: str, shape: tuple[int, ...], **attributes) -> nn.Module:
    module = type(kind, (nn.Module,), {})()
    module.weight = nn.Parameter(torch.ones(shape))
    for key, value in attributes.items():
        setattr(module, key, value)
    return module


@pytest.mark.parametrize(
    ("module", "is_norm"),
    [
        (_module("LlamaRMSNorm", (4,)), True),
        (_module("LayerNorm2d", (1, 4, 1, 1)), True),
        (_module("GRN", (1, 1, 1, 4)), True),
        (_module("ScaleShift", (1, 4, 1, 1), variance_epsilon=1e-6), True),
        (_module("NormedLinear", (4, 4)), False),
        (_module("CosineNormHead", (4, 4), eps=1e-6), False),
        (_module("ScaleShift", (1, 4, 1, 1)), False),
        (_module("Attention", (4, 1, 1), eps=1e-6, qkv=nn.Linear(4, 4)), False),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else str(value),
)
def test_norm_look_alikes_by_duck_type(module, is_norm):
    assert ("0.weight" not in decays(nn.ModuleList([module]), rules="norm")) is is_norm


def test_biases_of_any_rank_and_names_that_only_look_like_one():
    model = nn.Module()
    for name in ("bias", "q_bias", "bias_k", "bias_ih_l0", "bias_table", "unbiased", "rel_bias_w"):
        model.register_parameter(name, nn.Parameter(torch.ones(2, 2)))
    assert decays(model, rules="bias") == {"unbiased", "rel_bias_w"}


def test_one_dimension_or_none_does_not_decay():
    model = nn.Module()
    for rank in range(4):
        model.register_parameter(f"p{rank}", nn.Parameter(torch.ones((2,) * rank)))
    assert decays(model, rules=("ndim",)) == {"p2", "p3"}


def test_no_weight_decay_of_the_model_and_of_sub_modules():
    class Table(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.pos, self.cls, self.mixer = (nn.Parameter(torch.ones(2, 2)) for _ in range(3))
            self.mixer._no_weight_decay = True  # Mamba's mark

        def no_weight_decay(self) -> set[str]:
            return {"pos", "absent"}

    class Outer(Table):
        def __init__(self) -> None:
            super().__init__()
            self.inner = Table()
            self.pos_mlp = nn.Linear(2, 2)

        def no_weight_decay(self) -> set[str]:
            return {"cls", "pos_mlp.*"}

    assert decays(Outer()) == {"pos", "inner.cls"}
    assert "cls" in decays(Outer(), rules=("ndim",))


def test_default_rules_on_a_small_network():
    names = {"embed.weight", "head.weight", *(f"blocks.{i}.proj.weight" for i in range(3))}
    assert decays(Net()) == names


def test_explicit_no_decay_adds_to_the_rules_and_stands_alone_without_them():
    assert "blocks.0.norm.weight" not in decays(Net(), no_decay=["embed"])
    assert "embed.weight" not in decays(Net(), no_decay=["embed"])
    everything = {name for name, _ in Net().named_parameters()}
    assert decays(Net(), no_decay=["embed"], rules=()) == everything - {"embed.weight"}


@pytest.mark.parametrize(
    ("pattern", "hit"),
    [
        ("proj.w", {f"blocks.{i}.proj.weight" for i in range(3)}),
        ("blocks.1.*", {"blocks.1.proj.weight"}),
        ("*.proj.*", {f"blocks.{i}.proj.weight" for i in range(3)}),
        ("*.[02].proj.weight", {"blocks.0.proj.weight", "blocks.2.proj.weight"}),
        ("head.weigh?", {"head.weight"}),
        (r"re:^blocks\.(0|1)\.", {"blocks.0.proj.weight", "blocks.1.proj.weight"}),
    ],
)
def test_patterns(pattern, hit):
    assert decays(Net()) - decays(Net(), no_decay=pattern) == hit


def test_the_longest_pattern_wins():
    groups = param_groups(
        Net(), lr=1.0, lr_scale={"blocks": 0.5, "blocks.1": 0.25, "re:^head": 10.0}
    )
    rates = {name: rate for name, (rate, _) in decisions(groups).items()}
    assert rates["embed.weight"] == 1.0
    assert rates["blocks.0.proj.weight"] == 0.5
    assert rates["blocks.1.proj.weight"] == 0.25
    assert rates["head.weight"] == 10.0


def test_patterns_of_one_length_must_agree():
    with pytest.raises(ValueError, match=r"'head.weight' matches 'head' and 'eigh'.*same length"):
        param_groups(Net(), lr=1.0, lr_scale={"head": 0.5, "eigh": 0.25})
    param_groups(Net(), lr=1.0, lr_scale={"head": 0.5, "eigh": 0.5})


def test_weight_decay_by_pattern_never_overrides_no_decay():
    groups = param_groups(Net(), weight_decay={"*": 0.1, "head": 0.2, "embed": 0.0})
    table = {name: decay for name, (_, decay) in decisions(groups).items()}
    assert table["blocks.0.proj.weight"] == 0.1
    assert table["head.weight"] == 0.2
    assert table["head.bias"] == table["embed.weight"] == 0.0
    with pytest.raises(ValueError, match=r"no pattern matches 'embed.weight'; add '\*'"):
        param_groups(Net(), weight_decay={"head": 0.2, "blocks": 0.1})


def test_frozen_is_set_left_out_and_told_from_what_was_frozen_before():
    model = Net()
    model.head.weight.requires_grad_(False)
    groups = param_groups(model, weight_decay=0.1, frozen=["embed", "blocks.0.*"])
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    assert frozen == {"embed.weight", "head.weight"} | {
        name for name, _ in model.named_parameters() if name.startswith("blocks.0.")
    }
    assert frozen.isdisjoint(decisions(groups))
    assert len(frozen) + len(decisions(groups)) == len(list(model.parameters()))
    rules = {d.name: d.rule for d in groups.decisions}
    assert rules["embed.weight"] == "frozen 'embed'"
    assert rules["head.weight"] == "requires_grad is False"


def test_tied_weights_come_once_and_no_decay_of_any_alias_wins():
    model = Net()
    model.lm_head = nn.Linear(4, 10, bias=False)
    model.lm_head.weight = model.embed.weight
    groups = param_groups(model, lr=1.0, weight_decay=0.1, no_decay=["lm_head"])
    held = [id(p) for group in groups for p in group["params"]]
    assert len(held) == len(set(held)) == len(list(model.parameters()))
    assert decisions(groups)["embed.weight"] == (1.0, 0.0)
    tied = next(d for d in groups.decisions if d.name == "embed.weight")
    assert tied.aliases == ("lm_head.weight",)
    assert "embed.weight = lm_head.weight" in groups.explain()
    by_alias = param_groups(model, weight_decay={"*": 0.1, "lm_head": 0.2})
    assert decisions(by_alias)["embed.weight"][1] == 0.2
    param_groups(model, frozen=["lm_head.weight"])
    assert not model.embed.weight.requires_grad


def test_few_groups_in_a_fixed_order():
    groups = param_groups(Net(), lr=0.1, weight_decay=0.5, lr_scale={"head": 10.0, "embed": 0.1})
    keys = [(group["lr"], group["weight_decay"]) for group in groups]
    assert keys == [(0.1, 0.5), (0.1, 0.0), (1.0, 0.5), (1.0, 0.0), (pytest.approx(0.01), 0.5)]
    assert all(len(group["params"]) == len(group["param_names"]) for group in groups)
    assert len(param_groups(Net(), weight_decay=0.0)) == 1  # nothing tells them apart


@pytest.mark.parametrize("optimizer", ["SGD", "Adam", "AdamW", "Adagrad", "RMSprop", "NAdam"])
def test_torch_optimizers_take_the_groups_step_and_resume(optimizer):
    model = Net()
    groups = param_groups(model, lr=1e-2, weight_decay=0.1, frozen=["embed"])
    assert isinstance(groups, list)
    made = getattr(torch.optim, optimizer)(groups, lr=1.0)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for p in model.parameters():
        p.grad = torch.ones_like(p) if p.requires_grad else None
    made.step()
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert moved == set(before) - {"embed.weight"}
    assert [group["lr"] for group in made.param_groups] == [1e-2, 1e-2]
    state = made.state_dict()
    assert state["param_groups"][0]["param_names"] == groups[0]["param_names"]
    made.load_state_dict(state)


def test_a_step_with_few_groups_equals_one_group_per_parameter():
    few, each = Net(), Net()
    each.load_state_dict(few.state_dict())
    kwargs = {"lr": 0.1, "weight_decay": 0.5, "lr_scale": {"head": 10.0}, "layer_decay": 0.5}
    groups = [
        {**group, "params": [p], "param_names": [name]}
        for group in param_groups(each, **kwargs)
        for p, name in zip(group["params"], group["param_names"], strict=True)
    ]
    for model, made in ((few, param_groups(few, **kwargs)), (each, groups)):
        for p in model.parameters():
            p.grad = p.detach().sin()
        torch.optim.AdamW(made).step()
    assert all(map(torch.equal, few.parameters(), each.parameters()))


def test_a_tensor_learning_rate_is_shared_by_the_groups_of_factor_1():
    lr = torch.tensor(0.5)
    groups = param_groups(Net(), lr=lr, weight_decay=0.1, lr_scale={"head": 2.0})
    assert [float(group["lr"]) for group in groups] == [0.5, 0.5, 1.0, 1.0]
    lr.fill_(0.25)
    assert [float(group["lr"]) for group in groups] == [0.25, 0.25, 1.0, 1.0]
    assert groups[0]["lr"] is lr
    assert groups[2]["lr"] is not groups[3]["lr"]


def test_a_decay_that_is_not_given_is_the_optimizers():
    groups = param_groups(Net(), lr=1e-3)
    assert ["weight_decay" in group for group in groups] == [False, True]
    optimizer = torch.optim.AdamW(groups, weight_decay=0.05)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.05, 0.0]
    assert "optimizer's" in groups.explain("head.weight")
    mixed = torch.optim.AdamW(param_groups(Net(), weight_decay={"*": None, "head": 0.2}))
    table = decisions(mixed.param_groups)
    assert table["head.weight"][1] == 0.2
    assert table["embed.weight"][1] == 0.01
    assert table["head.bias"][1] == 0.0
