"""Wrappers change nothing: the same names, the same groups; flattened parameters are refused."""

import pytest
import torch
import torch.distributed as dist
from test_groups import Block, Net
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import (
    apply_activation_checkpointing,
    checkpoint_wrapper,
)
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.nn.parallel import DistributedDataParallel

from fastclip import param_groups

pytestmark = [
    pytest.mark.core,
    pytest.mark.skipif(not dist.is_available(), reason="torch without distributed"),
]

KWARGS = {
    "lr": 1.0,
    "weight_decay": 0.1,
    "no_decay": ["re:^embed"],
    "lr_scale": {"head.*": 10.0},
    "frozen": ["blocks.0.proj.weight"],
    "layer_decay": 0.5,
}


@pytest.fixture
def gloo():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield dist.device_mesh.init_device_mesh("cpu", (1,))
    dist.destroy_process_group()


@pytest.fixture
def two_ranks():
    """A process group that believes in a second rank: sharding happens, nothing is sent."""
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=2)
    yield
    dist.destroy_process_group()


def described(model, **kwargs) -> dict:
    groups = param_groups(model, **{**KWARGS, **kwargs})
    frozen = [p for p in model.parameters() if not p.requires_grad]
    assert [p.numel() for p in frozen] == [16]
    return groups.to_dict()


def checkpointed() -> nn.Module:
    model = Net()
    apply_activation_checkpointing(model, check_fn=lambda module: isinstance(module, Block))
    return model


@pytest.mark.parametrize(
    "wrap",
    [
        lambda: torch.compile(Net()),
        lambda: nn.DataParallel(Net()),
        lambda: torch.compile(nn.DataParallel(Net())),
        lambda: torch.optim.swa_utils.AveragedModel(Net()),
        lambda: checkpoint_wrapper(Net()),
        checkpointed,
        lambda: torch.compile(checkpointed()),
    ],
    ids=[
        "compile",
        "dp",
        "compile-dp",
        "ema",
        "checkpoint",
        "checkpoint-blocks",
        "compile-checkpoint",
    ],
)
def test_wrappers_change_nothing(wrap):
    assert described(wrap()) == described(Net())


def test_patterns_may_be_written_with_the_prefix():
    written = {
        "no_decay": [r"re:^module\._orig_mod\.embed"],
        "lr_scale": {"_orig_mod.module.head.*": 10.0},
        "frozen": ["module.blocks.0._checkpoint_wrapped_module.proj.weight"],
    }
    plain = described(Net())["groups"]
    assert described(nn.DataParallel(Net()), **written)["groups"] == plain
    assert described(Net(), **written)["groups"] == plain


def test_an_attribute_named_module_is_no_wrapper():
    model = nn.Module()
    model.module, model.other = nn.Linear(2, 2), nn.Linear(2, 2)
    names = param_groups(model, weight_decay=0.1, no_decay="module.weight")[1]["param_names"]
    assert names == ["module.weight", "module.bias", "other.bias"]


def test_ddp(gloo):
    kwargs = {**KWARGS, "frozen": ()}
    wrapped = param_groups(DistributedDataParallel(Net()), **kwargs)
    assert wrapped.to_dict() == param_groups(Net(), **kwargs).to_dict()


def test_freezing_before_ddp_trains_and_after_it_is_refused(gloo):
    model = Net()
    with pytest.raises(ValueError, match=r"cannot freeze 'head\.weight'.*wrap it in Distributed"):
        param_groups(nn.ModuleList([DistributedDataParallel(model)]), frozen="head")
    assert model.head.weight.requires_grad
    groups = param_groups(model, lr=0.1, frozen=["embed"])
    ddp = DistributedDataParallel(nn.Sequential(model.embed, model.head))
    optimizer = torch.optim.SGD(groups)
    for _ in range(3):
        optimizer.zero_grad()
        ddp(torch.tensor([1, 2])).sum().backward()
        optimizer.step()
    param_groups(ddp, frozen=["0.weight"])  # frozen already: nothing that DDP waits for changes


def test_freezing_under_ddp_that_looks_for_unused_parameters_trains(gloo):
    net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    ddp = DistributedDataParallel(net, find_unused_parameters=True)
    optimizer = torch.optim.SGD(param_groups(ddp, lr=0.1, frozen=["0.weight", "0.bias"]))
    for _ in range(3):
        optimizer.zero_grad()
        ddp(torch.randn(2, 4)).sum().backward()
        optimizer.step()


def test_fsdp2_with_an_optimizer_step(gloo):
    model = Net()
    for block in model.blocks:
        fully_shard(block, mesh=gloo)
    fully_shard(model, mesh=gloo)
    with pytest.warns(UserWarning, match="_no_weight_decay"):
        groups = param_groups(model, **KWARGS)
    assert groups.to_dict() == described(Net())
    for p in model.parameters():
        p.grad = torch.ones_like(p) if p.requires_grad else None
    before = model.head.weight.full_tensor().clone()
    torch.optim.AdamW(groups, foreach=True).step()
    assert not torch.equal(model.head.weight.full_tensor(), before)


def test_sharded_and_plain_parameters_get_groups_of_their_own(gloo):
    model = Net()
    for block in model.blocks:
        fully_shard(block, mesh=gloo)
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    groups = param_groups(model, lr=0.1, weight_decay=0.1)
    assert len(groups) == 4
    torch.optim.AdamW(groups, foreach=True).step()
    with pytest.raises(RuntimeError, match=r"mixed torch\.Tensor and DTensor"):
        torch.optim.AdamW(model.parameters(), foreach=True).step()


def test_fsdp1_flat_parameters_are_refused(gloo):
    cpu = torch.device("cpu")
    flat = FullyShardedDataParallel(Net(), use_orig_params=False, device_id=cpu)
    with pytest.raises(ValueError, match=r"FSDP1 has flattened '_flat_param'.*fully_shard"):
        param_groups(flat)
    whole = FullyShardedDataParallel(Net(), use_orig_params=True, device_id=cpu)
    assert described(whole) == described(Net())


def test_fsdp1_shards_are_refused_and_groups_made_before_still_hold(two_ranks):
    model = nn.Sequential(Net())
    groups = param_groups(model)
    kwargs = {"use_orig_params": True, "device_id": torch.device("cpu")}
    model[0] = FullyShardedDataParallel(model[0], **kwargs)
    with pytest.raises(ValueError, match="FSDP1 has flattened '0'"):
        param_groups(model)
    held = {id(p) for group in groups for p in group["params"]}
    assert held == {id(p) for p in model.parameters()}
