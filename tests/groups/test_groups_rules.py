"""Rules at their edges: relative position biases, keywords, look-alikes, partitioned parameters."""

import warnings

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard

from fastclip import param_groups
from fastclip.groups import rules

pytestmark = pytest.mark.core


def decaying(model, **kwargs) -> set[str]:
    return {d.name for d in param_groups(model, weight_decay=0.1, **kwargs).decisions if d.decays}


def named(*names: str) -> list[tuple[str, nn.Parameter]]:
    return [(name, nn.Parameter(torch.ones(4, 2))) for name in names]


@pytest.mark.parametrize(
    "name",
    [
        "layers.0.attn.relative_position_bias_table",
        "block.0.SelfAttention.relative_attention_bias.weight",
        "encoder.rel_pos_x_bias.weight",
        "blocks.0.attn.attention_biases",
        "layers.0.attn.cpb_mlp.0.weight",
        "attention.self.continuous_position_bias_mlp.2.weight",
        "layers.0.self_attn.pos_bias_u",
        "attention.rel_attn_embed.weight",
    ],
)
def test_relative_position_biases_do_not_decay(name):
    decisions = param_groups(named(name, "proj.weight"), weight_decay=0.1).decisions
    assert next(d.rule for d in decisions) in ("relative position bias", "bias")
    assert [d.decays for d in decisions] == [False, True]
    assert all(
        d.decays for d in param_groups(named(name), weight_decay=0.1, rules="ndim").decisions
    )


@pytest.mark.parametrize(
    "name", ["rel_bias_w", "unbiased.weight", "position.weight", "debias.weight"]
)
def test_names_that_only_look_like_a_position_bias_decay(name):
    assert param_groups(named(name), weight_decay=0.1).decisions[0].decays


class Keywords(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.table = nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)

    def no_weight_decay_keywords(self) -> set[str]:
        return {"tabl"}


def test_keywords_of_a_model_and_of_sub_modules():
    outer = nn.ModuleDict({"net": Keywords(), "table": nn.Linear(4, 4, bias=False)})
    assert decaying(outer) == {"net.qkv.weight", "table.weight"}
    assert decaying(torch.compile(Keywords())) == {"qkv.weight"}
    assert decaying(Keywords(), rules=("norm",)) == {"qkv.weight", "table.weight"}


def matrix(kind: str, base: type, *args, **attributes) -> nn.Module:
    return type(kind, (base,), attributes)(*args)


class Raw(nn.Module):
    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(shape))


@pytest.mark.parametrize(
    "module",
    [
        matrix("CosineHead", nn.Linear, 16, 1, eps=1e-6),
        matrix("NormalizedLinear", nn.Linear, 16, 1),
        matrix("NormedConv", nn.Conv1d, 1, 1, 5, eps=1e-5),
        matrix("NormEmbedding", nn.Embedding, 1, 16),
        matrix("WSConv", Raw, 1, 1, 5, eps=1e-5),
        matrix("CosineClassifier", Raw, 1, 16, eps=1e-5),
        matrix("Similarity", Raw, 1, 16, eps=1e-5),
        matrix("WeightNormed", Raw, 1, 1, 9, kernel_size=9),
    ],
    ids=lambda module: type(module).__name__,
)
def test_matrices_with_an_epsilon_or_norm_in_their_name_decay(module):
    assert decaying(nn.ModuleList([module])) >= {"0.weight"}


def partitioned(model: nn.Module) -> nn.Module:
    """As DeepSpeed's ZeRO-3 leaves parameters: empty, with the true shape in `ds_shape`."""
    for p in model.parameters():
        p.ds_shape, p.ds_id, p.data = p.shape, id(p), torch.empty(0)
    return model


def net() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4), nn.Linear(4, 2))


def test_partitioned_parameters_keep_their_shape():
    plain, empty = param_groups(net(), weight_decay=0.1), param_groups(partitioned(net()))
    assert decaying(partitioned(net())) == decaying(net()) == {"0.weight", "2.weight"}
    assert "4x4" in empty.explain()
    assert [g["values"] for g in empty.to_dict()["groups"]] == [
        g["values"] for g in plain.to_dict()["groups"]
    ]
    lost = partitioned(net())
    del lost[0].weight.ds_shape
    with pytest.raises(ValueError, match=r"DeepSpeed has partitioned '0.weight'"):
        param_groups(lost)


@pytest.mark.parametrize("inside", [False, True])
def test_a_scripted_model_is_refused_by_name(inside):
    scripted = torch.jit.script(net())
    model = nn.ModuleDict({"a": nn.Linear(2, 2), "b": scripted}) if inside else scripted
    with pytest.raises(TypeError, match=r"scripted or traced by torch\.jit"):
        param_groups(model)
    assert len(param_groups(scripted.named_parameters(), weight_decay=0.1)) == 2


@pytest.fixture
def mesh():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield dist.device_mesh.init_device_mesh("cpu", (1,))
    dist.destroy_process_group()


def test_marks_that_sharding_drops_are_asked_for(mesh):
    model = net()
    model[0].weight._no_weight_decay = True
    assert decaying(model) == {"2.weight"}
    fully_shard(model, mesh=mesh)
    with pytest.warns(UserWarning, match=r"_no_weight_decay .*'0.weight' and 5 more are DTensors"):
        assert decaying(model) == {"0.weight", "2.weight"}
    model[0].weight._no_weight_decay = True
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert decaying(model) == {"2.weight"}
        decaying(nn.ModuleList([model]), rules=("norm", "bias", "ndim"))


class StateSpace(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.A_log = nn.Parameter(torch.ones(4, 4))
        self.A_log._no_weight_decay = True


def test_marks_that_a_class_sets_and_loading_drops_are_told_by_its_name():
    model = nn.ModuleDict({"mixer": StateSpace(), "out": nn.Linear(4, 4)})
    assert decaying(model) == {"out.weight"}
    state = {name: value.clone() for name, value in model.state_dict().items()}
    model.load_state_dict(state, assign=True)
    with pytest.warns(UserWarning, match="StateSpace sets _no_weight_decay"):
        decaying(model)


def test_cost_is_linear_in_the_number_of_parameters():
    """Steps of Python, not seconds: the same on a busy machine."""
    import sys

    def lines(blocks: int) -> int:
        model = nn.ModuleDict(
            {
                "layers": nn.ModuleList(
                    nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2)) for _ in range(blocks)
                )
            }
        )
        count = 0

        def trace(frame, event, arg):
            nonlocal count
            count += 1
            return trace

        before = sys.gettrace()
        sys.settrace(trace)
        try:
            param_groups(model, lr=1e-3, layer_decay=0.9).explain()
        finally:
            sys.settrace(before)
        return count

    few, many = lines(20), lines(160)
    assert many < 9 * few


def test_a_module_of_many_parameters_costs_no_more_each(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[object] = []
    shape_of = rules.shape_of
    monkeypatch.setattr(rules, "shape_of", lambda p: seen.append(p) or shape_of(p))
    param_groups(nn.ParameterList(torch.zeros(3) for _ in range(200)), lr=1.0)
    assert len(seen) <= 10 * 200  # not 200 x 200
