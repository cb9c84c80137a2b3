"""Layer ids: stacks of layers derived from the modules, or refused; frozen layers shift nothing."""

import pytest
from test_groups import Block, Net, decisions
from torch import nn

from fastclip import param_groups

pytestmark = pytest.mark.core


def layers(model, **kwargs) -> dict[str, int]:
    groups = param_groups(model, lr=1.0, layer_decay=0.5, **kwargs)
    return {d.name: d.layer for d in groups.decisions}


def test_stem_blocks_and_head():
    ids = layers(Net(depth=3))
    assert ids["embed.weight"] == 0
    assert [ids[f"blocks.{i}.proj.weight"] for i in range(3)] == [1, 2, 3]
    assert ids["head.weight"] == ids["head.bias"] == 4


def test_rates_fall_by_the_factor_and_multiply_with_lr_scale():
    groups = param_groups(Net(depth=3), lr=2.0, layer_decay=0.5, lr_scale={"blocks.2": 10.0})
    rates = {name: rate for name, (rate, _) in decisions(groups).items()}
    assert rates["head.weight"] == 2.0
    assert rates["blocks.2.proj.weight"] == 2.0 * 0.5 * 10.0
    assert rates["blocks.1.norm.bias"] == 2.0 * 0.25
    assert rates["embed.weight"] == 2.0 * 0.5**4


def test_frozen_layers_never_shift_the_ids():
    free = layers(Net())
    assert layers(Net(), frozen=["embed", "blocks.0", "head"]) == free
    model = Net()
    model.blocks[2].requires_grad_(False)
    assert layers(model) == free


def test_plain_sequential_tower():
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2), nn.LayerNorm(2))
    assert layers(model) == {
        "0.weight": 0,
        "0.bias": 0,
        "2.weight": 1,
        "2.bias": 1,
        "3.weight": 2,
        "3.bias": 2,
    }


def test_stages_side_by_side_follow_each_other():
    model = nn.Module()
    model.stem = nn.Conv2d(3, 4, 3)
    model.layer1 = nn.Sequential(Block(), Block())
    model.layer2 = nn.Sequential(Block())
    model.fc = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    ids = layers(model)
    assert [ids["stem.weight"], ids["layer1.0.proj.weight"], ids["layer1.1.proj.weight"]] == [
        0,
        1,
        2,
    ]
    assert ids["layer2.0.proj.weight"] == 3
    assert ids["fc.0.weight"] == ids["fc.2.weight"] == 4


def test_a_backbone_and_a_head_in_a_sequential_are_no_stack_of_two():
    ids = layers(nn.Sequential(Net(depth=2), nn.Sequential(Block(), nn.Linear(4, 2))))
    assert [ids[f"0.blocks.{i}.proj.weight"] for i in range(2)] == [1, 2]
    assert ids["0.head.weight"] == ids["1.0.proj.weight"] == ids["1.1.weight"] == 3


def test_lists_inside_a_block_are_not_layers():
    model = nn.Module()
    model.blocks = nn.ModuleList(
        nn.ModuleDict({"experts": nn.ModuleList([Block(), Block()])}) for _ in range(2)
    )
    ids = layers(model)
    assert set(ids.values()) == {0, 1}
    assert ids["blocks.1.experts.0.proj.weight"] == ids["blocks.1.experts.1.proj.weight"] == 1


def test_encoder_then_decoder():
    ids = layers(
        nn.Transformer(8, 2, num_encoder_layers=2, num_decoder_layers=2, dim_feedforward=8)
    )
    assert [ids[f"encoder.layers.{i}.linear1.weight"] for i in range(2)] == [0, 1]
    assert ids["encoder.norm.weight"] == 1
    assert [ids[f"decoder.layers.{i}.linear1.weight"] for i in range(2)] == [2, 3]
    assert ids["decoder.norm.weight"] == 4


def test_tied_head_has_the_rate_of_the_embedding():
    model = Net()
    model.head.weight = model.embed.weight
    assert layers(model)["embed.weight"] == 0
    assert layers(model, layer_id=lambda name: 7 if "embed" in name else 2)["embed.weight"] == 2


def test_a_function_of_the_name_decides():
    groups = param_groups(
        Net(), lr=1.0, layer_decay=0.5, layer_id=lambda name: 3 if name.startswith("head") else 1
    )
    rates = {name: rate for name, (rate, _) in decisions(groups).items()}
    assert rates["head.bias"] == 1.0
    assert rates["embed.weight"] == rates["blocks.2.proj.weight"] == 0.25


def test_what_cannot_be_told_is_refused():
    clip = nn.ModuleDict({"visual": Net(), "text": Net()})
    with pytest.raises(ValueError, match=r"several towers .*'visual.blocks', 'text.blocks'"):
        layers(clip)
    with pytest.raises(ValueError, match="finds no stack of layers"):
        layers(nn.Linear(2, 2))
    with pytest.raises(ValueError, match=r"cannot see layers in .* pairs"):
        layers(Net().named_parameters())
