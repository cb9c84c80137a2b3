"""Checks of test_distributed.py: ranks that differ in what lies on them, and parts of a whole."""

from __future__ import annotations

import math

import pytest
import torch
import torch.distributed as dist
from distributed_cases import expected, full, parameter, same_on_all_ranks, spread
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor

import fastclip


def meshed(*shapes) -> list[nn.Parameter]:
    """Parameters with gradients of rows divided over all ranks."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    return [parameter(spread(mesh, shape, [Shard(0)])) for shape in shapes]


def agree(parameters: list[nn.Parameter], wanted: float) -> None:
    for p in (2.0, 1.0, math.inf):
        same_on_all_ranks(full(fastclip.clip_grad_norm_(parameters, 1e9, p)).detach().float())
    found = full(fastclip.clip_grad_norm_(parameters, 1e9)).item()
    assert found == pytest.approx(wanted, rel=1e-5)


def check_one_rank_has_no_gradients():
    parameters = meshed((8, 3), (9,))
    shards = [p.grad.to_local().double() for p in parameters]
    mine = sum(s.square().sum() for s in shards) if dist.get_rank() else torch.zeros(())
    mine = mine.double()
    dist.all_reduce(mine)
    if dist.get_rank() == 0:
        for p in parameters:
            p.grad = None
    agree(parameters, mine.sqrt().item())
    optimizer = torch.optim.AdamW(parameters, lr=0.0, fused=True)
    same_on_all_ranks(full(fastclip.clip_grads_in_step_(optimizer, 1e9)).detach().float())


def check_one_rank_has_plain_gradients_only():
    """A backend could take all of its gradients, and would leave the other ranks waiting."""
    plain, (spread_,) = parameter(torch.full((4,), 2.0)), meshed((8, 3))
    mine = spread_.grad.to_local().double().square().sum()
    if dist.get_rank() == 0:
        spread_.grad, mine = None, torch.zeros((), dtype=torch.float64)
    dist.all_reduce(mine)
    agree([plain, spread_], (mine + 16).sqrt().item())


def check_no_rank_has_gradients():
    parameters = meshed((8, 3))
    parameters[0].grad = None
    total = fastclip.clip_grad_norm_(parameters, 1.0)
    assert type(total) is torch.Tensor
    assert total.item() == 0


def check_odd_strides_on_one_rank():
    parameters = meshed((8, 3), (8, 4))
    wanted = torch.stack([p.grad.full_tensor().norm() for p in parameters]).norm().item()
    if dist.get_rank() == 1:
        local = parameters[0].grad.to_local()
        apart = torch.empty(*local.shape[:-1], 2 * local.shape[-1])[..., ::2].copy_(local)
        parameters[0].grad._local_tensor = apart
    agree(parameters, wanted)


def check_a_shard_of_repeated_elements_on_one_rank():
    parameters = meshed((8, 3))
    parameters[0].grad.to_local().fill_(2.0)
    if dist.get_rank() == 1:
        shape = parameters[0].grad.to_local().shape
        parameters[0].grad._local_tensor = torch.tensor(2.0).expand(shape)
    agree(parameters, 2.0 * math.sqrt(24))


def check_freed_memory_on_one_rank_stops_all():
    for shapes in (((8, 3), (9,)), ((8, 3),)):
        parameters = meshed(*shapes)
        before = [p.grad.to_local().clone() for p in parameters]
        if dist.get_rank() == 1:
            parameters[0].grad._local_tensor.untyped_storage().resize_(0)
        mine = dist.get_rank() == 1
        kind, text = (ValueError, "was freed") if mine else (RuntimeError, "another rank")
        for p in (2.0, 9.0, math.inf):
            with pytest.raises(kind, match=text):
                fastclip.clip_grad_norm_(parameters, 1e-3, p)
        with pytest.raises(kind, match=text):
            fastclip.grad_norms([(str(i), p) for i, p in enumerate(parameters)])
        if not mine:
            assert torch.equal(parameters[0].grad.to_local(), before[0])


def check_adaptive_clipping():
    world = dist.get_world_size()
    flat = init_device_mesh("cpu", (world,))
    square = init_device_mesh("cpu", (world // 2, 2))
    layouts = [(flat, [Shard(0)]), (flat, [Shard(1)]), (flat, [Replicate()])]
    layouts += [(square, [Shard(0), Shard(1)]), (square, [Replicate(), Shard(0)])]
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        torch.manual_seed(0)
        parameters, whole = [], []
        for shape in ((9, 5), (3, 2, 4), (7,)):
            for mesh, placements in layouts:
                if len(shape) == 1 and any(getattr(s, "dim", 0) for s in placements):
                    continue
                weight, grad = torch.randn(shape).to(dtype), torch.randn(shape).to(dtype)
                whole.append(nn.Parameter(weight.clone()))
                whole[-1].grad = grad.clone()
                parameters.append(nn.Parameter(distribute_tensor(weight, mesh, placements)))
                parameters[-1].grad = distribute_tensor(grad, mesh, placements)
        versions = [p.grad._version for p in parameters]
        for clipping in (1e9, 0.05):
            fastclip.AGC(clipping).clip_(parameters)
            fastclip.AGC(clipping).clip_(whole)
            for p, q in zip(parameters, whole, strict=True):
                torch.testing.assert_close(p.grad.full_tensor(), q.grad)
            if clipping == 1e9:
                assert versions == [p.grad._version for p in parameters]
        for p, before in zip(parameters, versions, strict=True):
            assert p.grad._version > before or not p.grad.to_local().numel()


def check_clipping_by_value():
    flat = init_device_mesh("cpu", (dist.get_world_size(),))
    parameters = meshed((9, 5), (1, 2), (7,))
    parameters.append(parameter(torch.randn(5, generator=torch.Generator().manual_seed(1))))
    parameters.append(parameter(spread(flat, (4, 3), [Replicate()])))
    before = [full(p.grad).clone() for p in parameters]
    versions = [p.grad._version for p in parameters]
    fastclip.clip_grad_value_(parameters, 1e9)
    assert versions == [p.grad._version for p in parameters]
    fastclip.clip_grad_value_(parameters, 0.01)
    for p, old in zip(parameters, before, strict=True):
        assert torch.equal(full(p.grad), old.clamp(-0.01, 0.01))
    assert parameters[-1].grad._version > versions[-1]
    with pytest.raises(RuntimeError, match="placement"):  # torch's, of summands
        fastclip.clip_grad_value_([parameter(spread(flat, (6,), [Partial()]))], 0.1)


def check_parts_of_a_whole():
    """Experts on every rank, a layer cut in two by hand, a copy on every rank, and one shared."""
    rank, world = dist.get_rank(), dist.get_world_size()
    torch.manual_seed(5)
    experts = [torch.randn(3, rank_ + 2) for rank_ in range(world)]
    cut, copied, tied = torch.randn(4 * world, 3), torch.randn(7), torch.randn(5, 2)
    mine = [experts[rank], cut.chunk(world)[rank], copied, tied]
    for p in (2.0, 1.0, 3.0, math.inf):
        parameters = [parameter(g.clone()) for g in mine]
        groups = [(parameters[:2], dist.group.WORLD), (parameters[3], [dist.group.WORLD])]
        shared = [(parameters[3], dist.group.WORLD)]
        exact, _ = expected([*experts, cut, copied, tied], 1.0, p)
        found = fastclip.distributed.get_total_norm(parameters, p, groups=groups, shared=shared)
        torch.testing.assert_close(found.double(), exact, rtol=1e-6, atol=0)
        limit = exact.item() / 3
        found = fastclip.distributed.clip_grad_norm_(
            parameters, limit, p, groups=groups, shared=shared
        )
        same_on_all_ranks(found)
        for q, old in zip(parameters, mine, strict=True):
            torch.testing.assert_close(q.grad, old / 3, rtol=1e-5, atol=0)


def check_pipeline_stages_of_dtensors():
    """Each stage divides its own layers over its own ranks, and the stages add up."""
    rank, world = dist.get_rank(), dist.get_world_size()
    mesh = init_device_mesh("cpu", (2, world // 2), mesh_dim_names=("pp", "dp"))
    torch.manual_seed(3)
    stages = [[torch.randn(6, 4)], [torch.randn(5, 3), torch.randn(9)]]
    stage = rank // (world // 2)
    mine = [distribute_tensor(g, mesh["dp"], [Shard(0)]) for g in stages[stage]]
    parameters = [parameter(g) for g in mine]
    exact, clipped = expected([*stages[0], *stages[1]], 1.0, 2.0)
    found = fastclip.distributed.clip_grad_norm_(parameters, 1.0, groups=mesh.get_group("pp"))
    torch.testing.assert_close(found.double(), exact, rtol=1e-6, atol=0)
    for q, wanted in zip(parameters, clipped[len(stages[0]) * stage :], strict=False):
        torch.testing.assert_close(q.grad.full_tensor().double(), wanted, rtol=1e-5, atol=0)


def check_an_error_in_one_part_stops_all():
    q = parameter(torch.ones(8))
    if dist.get_rank() == 1:
        q.grad.untyped_storage().resize_(0)
    kind = ValueError if dist.get_rank() == 1 else RuntimeError
    with pytest.raises(kind):
        fastclip.distributed.clip_grad_norm_([q], 1.0, groups=dist.group.WORLD)
    q = parameter(torch.full((3,), math.nan if dist.get_rank() == 1 else 1.0))
    with pytest.raises(RuntimeError, match="non-finite"):
        fastclip.distributed.clip_grad_norm_([q], 1.0, 2.0, True, mesh=_world_mesh())


def _world_mesh():
    return init_device_mesh("cpu", (dist.get_world_size(),))


def check_wrong_arguments_are_named():
    q = parameter(torch.ones(2))
    clip_ = fastclip.distributed.clip_grad_norm_
    with pytest.raises(ValueError, match=r"groups\[0\] names a parameter"):
        clip_([q], 1.0, groups=[([parameter(torch.ones(2))], dist.group.WORLD)])
    with pytest.raises(ValueError, match=r"shared\[0\] names a parameter"):
        clip_([q], 1.0, groups=dist.group.WORLD, shared=[(torch.ones(2), dist.group.WORLD)])
    with pytest.raises(TypeError, match="got a str"):
        clip_([q], 1.0, groups="world")
    with pytest.raises(ValueError, match="not both"):
        clip_([q], 1.0, groups=dist.group.WORLD, mesh=_world_mesh())
    with pytest.raises(ValueError, match="norm_type"):
        clip_([q], 1.0, 0.0, groups=dist.group.WORLD)


def check_layouts_are_compared():
    parameters = meshed((8, 3), (9,))
    fastclip.distributed.check(parameters)
    fastclip.distributed.check([(f"p{i}", p) for i, p in enumerate(parameters)])
    if dist.get_rank() == 1:
        parameters[1].grad = None
    with pytest.raises(ValueError, match=r"rank 1 .* differs from rank 0: p1 .*no gradient"):
        fastclip.distributed.check([(f"p{i}", p) for i, p in enumerate(parameters)])
    if dist.get_rank() == 1:
        parameters.pop()
    with pytest.raises(ValueError, match=r"no parameter where rank 0 has p1"):
        fastclip.distributed.check([(f"p{i}", p) for i, p in enumerate(parameters)])


def check_offloaded_and_mixed_precision_fsdp():
    from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy, fully_shard

    for options in (
        {"offload_policy": CPUOffloadPolicy(pin_memory=False)},
        {"mp_policy": MixedPrecisionPolicy(torch.bfloat16, torch.float32)},
        {"reshard_after_forward": False},
    ):
        torch.manual_seed(0)
        model = fully_shard(nn.Sequential(nn.Linear(5, 7), nn.Linear(7, 3)), **options)
        model(torch.randn(4, 5)).float().square().sum().backward()
        grads = [p.grad.full_tensor().double() for p in model.parameters()]
        exact, wanted = expected(grads, 0.1, 2.0)
        norm = fastclip.clip_grad_norm_(model.parameters(), 0.1)
        assert isinstance(norm, DTensor)
        torch.testing.assert_close(full(norm).double(), exact, rtol=1e-6, atol=0)
        for p, right in zip(model.parameters(), wanted, strict=True):
            torch.testing.assert_close(p.grad.full_tensor().double(), right, rtol=1e-5, atol=0)


def check_zero_redundancy_optimizer():
    from torch.distributed.optim import ZeroRedundancyOptimizer

    results = []
    for ours in (True, False):
        torch.manual_seed(0)
        model = nn.parallel.DistributedDataParallel(nn.Sequential(nn.Linear(5, 7), nn.Linear(7, 3)))
        optimizer = ZeroRedundancyOptimizer(model.parameters(), torch.optim.SGD, lr=0.1)
        model(torch.randn(4, 5)).square().sum().backward()
        clip_ = fastclip.clip_grad_norm_ if ours else nn.utils.clip_grad_norm_
        norm = clip_(model.parameters(), 0.1)
        optimizer.step()
        results.append([norm, *(p.detach().clone() for p in model.parameters())])
    torch.testing.assert_close(*results)
