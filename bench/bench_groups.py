"""What few parameter groups save in AdamW's step, and what it costs to make and to explain them.

    pytest bench/bench_groups.py --benchmark-enable

Both optimizers hold the same parameters and gradients. `loop` is torch's default on the CPU.
"""

from __future__ import annotations

from collections.abc import Callable

import measure
import pytest
import torch
from torch import nn

from fastclip import ParamGroups, param_groups

IMPLEMENTATIONS = {
    "loop": {"foreach": False},
    "foreach": {"foreach": True},
    "fused": {"fused": True},
}


def transfuse_l() -> nn.Module:
    from fastclip.transfuse import create_model

    return create_model("transfuse_l")


def bert_large() -> nn.Module:
    from transformers import BertConfig, BertModel

    size = {"hidden_size": 1024, "num_attention_heads": 16, "intermediate_size": 4096}
    return BertModel(BertConfig(num_hidden_layers=24, **size))


def vit_tiny() -> nn.Module:
    import timm

    return timm.create_model("vit_tiny_patch16_224")


def tiny_tensors() -> nn.Module:
    return nn.Sequential(*(nn.Linear(31, 31) for _ in range(500)))  # 1000 tensors, 0.5M values


CASES: dict[str, Callable[[], nn.Module]] = {
    "transfuse_l": transfuse_l,
    "bert_large": bert_large,
    "vit_tiny": vit_tiny,
    "tiny_tensors": tiny_tensors,
}


def one_group_each(groups: ParamGroups) -> list[dict]:
    """The same decisions, with a group for every parameter."""
    return [
        {**group, "params": [param], "param_names": [name]}
        for group in groups
        for param, name in zip(group["params"], group["param_names"], strict=True)
    ]


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("case", CASES)
def bench_adamw_step(case, implementation, benchmark):
    try:
        model = CASES[case]()
    except ImportError as error:
        pytest.skip(str(error))
    for p in model.parameters():
        p.grad = torch.full_like(p, 1e-3)
    groups = param_groups(model, lr=1e-6, weight_decay=0.01)
    each = one_group_each(groups)
    assert len(groups) < len(each) == sum(len(group["params"]) for group in groups)
    values = sum(p.numel() for group in groups for p in group["params"])
    kwargs = IMPLEMENTATIONS[implementation]
    steps = {
        f"one group each, {implementation}": torch.optim.AdamW(each, **kwargs).step,
        f"{len(groups)} groups, {implementation}": torch.optim.AdamW(groups, **kwargs).step,
    }
    medians = measure.interleaved_ms(steps, repeats=9, warmup=1)
    size = f"{case} ({len(each)} tensors, {values / 1e6:.1f}M)"
    rows = measure.rows("adamw step", size, "float32", medians, baseline=next(iter(steps)))
    measure.save("groups_cpu", rows)
    benchmark.pedantic(list(steps.values())[1], rounds=1)


def many_layers(blocks: int) -> nn.Module:
    """Eight tensors a block."""
    kinds = (nn.Linear, nn.Linear, nn.LayerNorm, nn.Linear)
    args = ((2, 2), (2, 2), (2,), (2, 2))
    stack = (
        nn.Sequential(*(k(*a) for k, a in zip(kinds, args, strict=True))) for _ in range(blocks)
    )
    return nn.ModuleDict({"layers": nn.ModuleList(stack)})


@pytest.mark.parametrize("tensors", [12_500, 100_000])
def bench_making_and_explaining(tensors, benchmark):
    """The cost is linear: eight times the tensors take eight times as long."""
    model = many_layers(tensors // 8)
    kwargs = {"lr": 1e-3, "weight_decay": 0.1}
    groups = param_groups(model, **kwargs)
    steps = {
        "param_groups": lambda: param_groups(model, **kwargs),
        "param_groups, layer_decay": lambda: param_groups(model, layer_decay=0.999, **kwargs),
        "explain": groups.explain,
    }
    medians = measure.interleaved_ms(steps, repeats=3, warmup=1)
    rows = measure.rows(
        "param_groups", f"{tensors} tensors", "float32", medians, baseline=next(iter(steps))
    )
    measure.save("groups_cpu", rows)
    benchmark.pedantic(next(iter(steps.values())), rounds=1)
