"""Layers by a traced pass, by the model's own method, and what is refused by name."""

import pytest
import torch
from test_groups import Block, Net
from torch import nn

from fastclip import param_groups

pytestmark = pytest.mark.core


def layers(model, **kwargs) -> dict[str, int]:
    decisions = param_groups(model, lr=1.0, layer_decay=0.5, **kwargs).decisions
    return {d.name: d.layer for d in decisions}


class UNet(nn.Module):
    """The decoder is registered before the encoder."""

    def __init__(self) -> None:
        super().__init__()
        self.ups, self.downs = nn.ModuleList(), nn.ModuleList()
        for i, o in ((3, 4), (4, 8)):
            self.downs.append(nn.Sequential(nn.Conv2d(i, o, 3, padding=1), nn.BatchNorm2d(o)))
        for i, o in ((8, 4), (4, 4)):
            self.ups.append(nn.Sequential(nn.Conv2d(i, o, 3, padding=1), nn.BatchNorm2d(o)))
        self.final = nn.Conv2d(4, 1, 1)

    def forward(self, x):
        for layer in (*self.downs, *self.ups, self.final):
            x = layer(x)
        return x


def test_a_pass_orders_an_encoder_that_is_registered_last():
    model = UNet()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    ids = layers(model, example_inputs=torch.randn(2, 3, 8, 8))
    order = ["downs.0.0", "downs.1.0", "ups.0.1", "ups.1.0", "final"]
    assert [ids[f"{name}.weight"] for name in order] == [0, 1, 2, 3, 4]
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert not any(m._forward_pre_hooks for m in model.modules())
    with pytest.raises(ValueError, match=r"several towers .*'ups', 'downs'.*example_inputs"):
        layers(model)


class Towers(nn.Module):
    """Two towers of unequal depth, learned queries, and a head over both."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(4, 2)
        self.b = nn.ModuleList(Block() for _ in range(2))
        self.a = nn.ModuleList(Block() for _ in range(3))
        self.query = nn.Parameter(torch.ones(1, 4))
        self.into_a, self.into_b = nn.Linear(3, 4), nn.Linear(5, 4)
        self.buffer = torch.ones(4)  # neither parameter nor buffer

    def forward(self, x, y):
        x, y = self.into_a(x), self.into_b(y) + self.buffer
        for block in self.a:
            x = x + block.proj(block.norm(x))  # the block itself is never called
        for block in self.b:
            y = y + block.proj(block.norm(y))
        return self.head(torch.cat([x, y, self.query.expand_as(x)]))


def test_towers_side_by_side_are_counted_from_their_own_inputs():
    ids = layers(Towers(), example_inputs={"x": torch.ones(1, 3), "y": torch.ones(1, 5)})
    assert ids == layers(Towers(), example_inputs=(torch.ones(1, 3), torch.ones(1, 5)))
    assert ids["into_a.weight"] == ids["into_b.weight"] == 0
    assert [ids[f"a.{i}.proj.weight"] for i in range(3)] == [1, 2, 3]
    assert [ids[f"b.{i}.norm.weight"] for i in range(2)] == [1, 2]
    assert ids["head.weight"] == ids["query"] == 4


class Pyramid(nn.Module):
    """As PVT: patch embeddings, blocks and norms in lists of their own, used in turns."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.ModuleList(nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4)) for _ in "ab")
        self.blocks = nn.ModuleList(
            nn.ModuleList(nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4)) for _ in "ab")
            for _ in "ab"
        )
        self.norms = nn.ModuleList(nn.LayerNorm(4) for _ in "ab")

    def forward(self, x):
        for patch, blocks, norm in zip(self.patches, self.blocks, self.norms, strict=True):
            x = patch(x)
            for block in blocks:
                x = block(x)
            x = norm(x)
        return x


def test_lists_that_are_used_in_turns_rise_along_the_pass():
    ids = layers(Pyramid(), example_inputs=torch.ones(2, 4))
    order = ["patches.0.0", "blocks.0.0.0", "blocks.0.1.0", "norms.0"]
    order += ["patches.1.0", "blocks.1.0.0", "blocks.1.1.0", "norms.1"]
    found = [ids[f"{name}.weight"] for name in order]
    assert found == sorted(found)
    assert found == [0, 1, 2, 2, 3, 4, 5, 6]
    with pytest.raises(ValueError, match="example_inputs"):
        layers(Pyramid())


def test_what_a_pass_does_not_use_is_an_error_unless_frozen():
    model = Net()
    model.forward = None
    with pytest.raises(ValueError, match=r"forward pass fails .* pass layer_id"):
        layers(UNet(), example_inputs=torch.ones(1, 7, 8, 8))

    class Spare(UNet):
        def __init__(self) -> None:
            super().__init__()
            self.spare = nn.Linear(2, 2)

    inputs = torch.ones(1, 3, 8, 8)
    with pytest.raises(ValueError, match=r"does not use 'spare\.weight', 'spare\.bias'"):
        layers(Spare(), example_inputs=inputs)
    assert layers(Spare(), example_inputs=inputs, frozen=["spare"])["final.weight"] == 4


def test_frozen_and_tied_parameters_shift_nothing_in_a_pass():
    inputs = torch.ones(1, 3, 8, 8)
    assert layers(UNet(), example_inputs=inputs, frozen=["downs"]) == layers(
        UNet(), example_inputs=inputs
    )


class Own(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.late, self.early = nn.Linear(2, 2), nn.Linear(2, 2)

    def layer_id(self, name: str) -> object:
        return 1 if name.startswith("late") else 0


def test_a_models_own_method_says_its_layers():
    ids = layers(nn.DataParallel(Own()))
    assert (ids["early.weight"], ids["late.weight"]) == (0, 1)
    inside = nn.ModuleDict({"stem": nn.Linear(2, 2), "net": Own(), "head": nn.Linear(2, 2)})
    ids = layers(inside)
    assert [ids[f"{n}.weight"] for n in ("stem", "net.early", "net.late", "head")] == [0, 1, 2, 3]

    class Wrong(Own):
        def layer_id(self, name: str) -> object:
            return "2"

    with pytest.raises(ValueError, match=r"layer_id\('late.weight'\) of 'the model' gave '2'"):
        layers(Wrong())


def opt() -> nn.Module:
    model = nn.ModuleDict({"embed_tokens": nn.Embedding(5, 4), "final_layer_norm": nn.LayerNorm(4)})
    model["project_out"], model["project_in"] = nn.Linear(4, 4), nn.Linear(4, 4)
    model["layers"] = nn.ModuleList(Block() for _ in range(3))
    return model


def test_names_tell_the_side_where_the_place_does_not():
    ids = layers(opt())
    order = ["embed_tokens", "project_in", "layers.0.proj", "layers.2.proj"]
    assert [ids[f"{n}.weight"] for n in order] == [0, 0, 1, 3]
    assert ids["final_layer_norm.weight"] == ids["project_out.weight"] == 4


@pytest.mark.parametrize("name", ["norm", "foo", "rel_embeddings", "out_norms.0"])
def test_what_may_be_on_either_side_is_refused_by_name(name):
    model = nn.Module()
    if name != "rel_embeddings":
        model.add_module(name.partition(".")[0], nn.LayerNorm(4))
    model.blocks = nn.ModuleList(Block() for _ in range(2))
    if name == "rel_embeddings":  # an input by its name, behind the layers by its place
        model.rel_embeddings = nn.Embedding(3, 4)
    with pytest.raises(
        ValueError, match=rf"cannot tell the layer of '{name[:5]}.*layer_id.*starts"
    ):
        layers(model)


@pytest.mark.parametrize(
    "names", [("image_blocks", "text_blocks"), ("branch1", "branch2"), ("ups", "downs")]
)
def test_towers_under_one_parent_are_refused(names):
    model = nn.ModuleDict({n: nn.ModuleList(Block() for _ in range(3)) for n in names})
    with pytest.raises(ValueError, match=f"several towers .*{names[0]}.*layer_id"):
        layers(model)
