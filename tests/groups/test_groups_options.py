"""Options by pattern, names of groups, Muon's split, and groups in optimizers that run already."""

import copy
import pprint

import pytest
import torch
from test_groups import Net
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from fastclip import param_groups

pytestmark = pytest.mark.core


def settings(optimizer, key) -> dict[str, object]:
    return {name: g[key] for g in optimizer.param_groups for name in g["param_names"]}


def test_each_option_of_the_longest_pattern_reaches_its_parameters_alone():
    options = {"head": {"betas": (0.5, 0.5), "eps": 1e-3}, "head.bias": {"eps": 1e-2}}
    groups = param_groups(Net(), lr=1.0, weight_decay=0.1, options=options)
    optimizer = torch.optim.AdamW(groups)
    betas, eps = settings(optimizer, "betas"), settings(optimizer, "eps")
    assert betas["head.weight"] == betas["head.bias"] == (0.5, 0.5)
    assert betas["embed.weight"] == (0.9, 0.999)
    assert [eps[n] for n in ("head.weight", "head.bias", "embed.weight")] == [1e-3, 1e-2, 1e-8]
    with pytest.raises(ValueError, match=r"options: 'head.weight' matches 'head' and 'eigh'"):
        param_groups(Net(), options={"head": {"eps": 1.0}, "eigh": {"eps": 2.0}})


def test_options_of_any_type_share_a_group_where_they_are_equal():
    groups = param_groups(Net(), options={"head": {"tags": [1]}, "embed": {"tags": [1]}})
    tagged = [g["param_names"] for g in groups if g.get("tags") == [1]]
    assert sorted(name for names in tagged for name in names) == [
        "embed.weight",
        "head.bias",
        "head.weight",
    ]
    assert len(groups) == 4


def test_an_option_lr_takes_the_place_of_lr_and_is_scaled_by_layer():
    groups = param_groups(
        Net(), lr=1.0, layer_decay=0.5, options={"blocks.0": {"lr": 8.0}, "head": {"lr": 3.0}}
    )
    rates = settings(torch.optim.SGD(groups), "lr")
    assert rates["blocks.0.proj.weight"] == 8.0 * 0.5**3
    assert rates["head.weight"] == 3.0
    assert rates["embed.weight"] == 0.5**4


def test_groups_have_distinct_names_and_may_be_named():
    groups = param_groups(
        Net(), lr=1.0, weight_decay={"*": 0.1, "embed": 0.2}, options={"head": {"name": "top"}}
    )
    names = [group["name"] for group in groups]
    assert len(set(names)) == len(names) == 5
    assert set(names) == {"decay", "decay_2", "no_decay", "top_decay", "top_no_decay"}


@pytest.mark.parametrize("kwargs", [{"layer_decay": 0.5}, {"lr_scale": {"head": 2.0}}])
def test_without_lr_the_factor_is_a_key(kwargs):
    groups = param_groups(Net(), **kwargs)
    told = {d.name: d.lr_factor for d in groups.decisions}
    assert all("lr" not in group for group in groups)
    assert {n: g["lr_scale"] for g in groups for n in g["param_names"]} == told
    assert set(told.values()) != {1.0}
    assert "lr_scale" not in param_groups(Net(), lr=1.0, **kwargs)[0]


def test_min_scale_bounds_the_factor_of_layers():
    groups = param_groups(Net(), lr=1.0, layer_decay=0.1, min_scale=0.05)
    assert {d.lr_factor for d in groups.decisions} == {1.0, 0.1, 0.05}


def test_without_names_plain_groups_may_be_added():
    model = Net()
    optimizer = torch.optim.SGD(param_groups(model, lr=1.0, names=False))
    optimizer.add_param_group({"params": [nn.Parameter(torch.ones(2))]})
    assert all("param_names" not in group for group in optimizer.param_groups)
    described = param_groups(model, lr=1.0, names=False).to_dict()
    assert "embed.weight" in described["groups"][0]["param_names"]


def test_repr_has_no_numbers_of_tensors():
    groups = param_groups(Net(), lr=1.0, weight_decay=0.1)
    for text in (repr(groups), str(groups), pprint.pformat(groups), repr(groups.decisions)):
        assert "tensor(" not in text
        assert "Parameter" not in text
    assert "2 groups" in repr(groups)
    assert "weight_decay 0.1" in repr(groups)


@pytest.mark.parametrize("kind", ["tensor", "pairs", "generator", "list"])
def test_appended_groups_of_every_form_are_described(kind):
    new = nn.Parameter(torch.ones(7))
    params = {"tensor": new, "pairs": [("n", new)], "list": [new], "generator": (p for p in [new])}
    groups = param_groups(nn.Linear(3, 2), lr=1e-3, weight_decay=0.1)
    groups.append({"params": params[kind], "lr": 1e-4})
    assert [group["values"] for group in groups.to_dict()["groups"]] == [6, 2, 7]
    assert "1 tensors, 7 values" in groups.summary()
    assert [group["values"] for group in groups.to_dict()["groups"]] == [6, 2, 7]


class Language(nn.Module):
    def __init__(self, tied: bool = False) -> None:
        super().__init__()
        self.embed = nn.Embedding(10, 4)
        self.pos = nn.Parameter(torch.ones(8, 4))
        self.attn = nn.MultiheadAttention(4, 2)
        self.conv = nn.Conv1d(4, 4, 3)
        self.norm = nn.LayerNorm(4)
        self.lm_head = nn.Linear(4, 10, bias=False)
        if tied:
            self.lm_head.weight = self.embed.weight


@pytest.mark.parametrize("tied", [False, True])
def test_muon_takes_hidden_matrices_and_another_optimizer_the_rest(tied):
    model = Language(tied)
    groups = param_groups(model, lr=0.1, weight_decay=0.1, split="muon")
    hidden, rest = groups.split()
    names = {name for group in hidden for name in group["param_names"]}
    assert names == {"attn.in_proj_weight", "attn.out_proj.weight"}
    assert all("use_muon" not in group for group in (*hidden, *rest))
    muon, adamw = torch.optim.Muon(hidden), torch.optim.AdamW(rest)
    assert groups.check(muon, adamw) == groups.check([muon, adamw]) == ([], [])
    assert groups.check(muon).missing[0] == "pos"
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    muon.step()
    adamw.step()


def test_muon_asks_for_a_head_that_it_cannot_see():
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    with pytest.raises(ValueError, match=r"no output layer .*'2.weight': {'use_muon': False}"):
        param_groups(model, split="muon")
    groups = param_groups(model, split="muon", options={"2.weight": {"use_muon": False}})
    assert [g["param_names"] for g in groups.split()[0]] == [["0.weight"]]
    with pytest.raises(ValueError, match=r"split needs groups made by"):
        param_groups(model).split()


def test_check_tells_what_two_optimizers_hold_twice():
    model = Net()
    groups = param_groups(model, lr=0.1)
    a, b = torch.optim.SGD(groups), torch.optim.SGD([model.head.weight], lr=0.1)
    assert groups.check(a, b).twice == ["head.weight"]
    assert groups.check(a).twice == []
    with pytest.raises(TypeError, match="check needs an optimizer"):
        groups.check()


def test_unfreeze_joins_the_group_of_the_same_settings_under_a_scheduler():
    model = Net()
    groups = param_groups(model, lr=0.1, weight_decay=0.5, frozen=["embed", "blocks.0"])
    optimizer = torch.optim.AdamW(groups)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
    scheduler.step()
    assert groups.unfreeze(optimizer, "blocks.0.proj") == [
        "blocks.0.proj.weight",
        "blocks.0.proj.bias",
    ]
    decay = settings(optimizer, "weight_decay")
    assert (decay["blocks.0.proj.weight"], decay["blocks.0.proj.bias"]) == (0.5, 0.0)
    assert settings(optimizer, "lr")["blocks.0.proj.weight"] == 0.05
    assert groups.check(optimizer) == ([], [])
    assert not model.embed.weight.requires_grad
    for p in model.parameters():
        p.grad = torch.ones_like(p) if p.requires_grad else None
    optimizer.step()
    scheduler.step()
    with pytest.raises(ValueError, match=r"'head' matches no parameter"):
        groups.unfreeze(optimizer, "head")


@pytest.mark.parametrize("names", [True, False])
def test_unfreeze_adds_a_group_where_there_is_none(names):
    model = Net()
    groups = param_groups(
        model, lr=0.1, weight_decay=0.5, frozen=["embed"], lr_scale={"embed": 0.1}, names=names
    )
    optimizer = torch.optim.AdamW(groups)
    groups.unfreeze(optimizer, "embed")
    assert optimizer.param_groups[-1]["lr"] == pytest.approx(0.01)
    assert optimizer.param_groups[-1]["weight_decay"] == 0.5
    assert optimizer.param_groups[-1]["params"] == [model.embed.weight]
    assert ("param_names" in optimizer.param_groups[-1]) is names


def test_unfreeze_inside_ddp_is_refused():
    import torch.distributed as dist

    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        model = Net()
        model.embed.weight.requires_grad_(False)
        groups = param_groups(DistributedDataParallel(model), lr=0.1)
        with pytest.raises(ValueError, match=r"cannot unfreeze 'embed\.weight'"):
            groups.unfreeze(torch.optim.SGD(groups), "embed")
    finally:
        dist.destroy_process_group()


def trained(model, **kwargs):
    groups = param_groups(model, lr=0.1, **kwargs)
    optimizer = torch.optim.AdamW(groups)
    for p in model.parameters():
        p.grad = p.detach().sin() if p.requires_grad else None
    optimizer.step()
    return groups, optimizer


def test_state_goes_by_name_into_groups_of_another_order():
    one, other = Net(), Net()
    other.load_state_dict(one.state_dict())
    _, saved = trained(one, weight_decay=0.5)
    groups = param_groups(other, lr=0.1, weight_decay=0.5, options={"head": {"tag": 1}})
    optimizer = torch.optim.AdamW(groups)
    state = copy.deepcopy(saved.state_dict())
    state["param_groups"][0]["lr"] = 0.025
    state["param_groups"][1]["lr"] = 0.025
    assert groups.load_state_dict(optimizer, state) == ([], [])
    for (name, p), (_, q) in zip(one.named_parameters(), other.named_parameters(), strict=True):
        assert torch.equal(saved.state[p]["exp_avg"], optimizer.state[q]["exp_avg"]), name
    assert {group["lr"] for group in optimizer.param_groups} == {0.025}
    assert [group.get("tag") for group in optimizer.param_groups].count(1) == 2


def test_state_that_does_not_fit_is_an_error_by_name():
    one = Net()
    _, saved = trained(one, weight_decay=0.5)
    model = Net()
    model.extra = nn.Linear(2, 2, bias=False)
    del model.head
    groups = param_groups(model, lr=0.1, weight_decay=0.5)
    optimizer = torch.optim.AdamW(groups)
    with pytest.raises(ValueError, match=r"no saved state for \['extra.weight'\].*'head.bias'"):
        groups.load_state_dict(optimizer, saved.state_dict())
    loaded = groups.load_state_dict(optimizer, saved.state_dict(), strict=False)
    assert loaded == (["extra.weight"], ["head.bias", "head.weight"])
    merged = param_groups(one, lr=0.1, weight_decay=0.0)
    with pytest.raises(ValueError, match=r"saved with weight_decay of 0\.0 and 0\.5"):
        merged.load_state_dict(torch.optim.AdamW(merged), saved.state_dict())
    plain = torch.optim.AdamW(one.parameters()).state_dict()
    with pytest.raises(ValueError, match="saved group 0 has no param_names"):
        groups.load_state_dict(optimizer, plain)
