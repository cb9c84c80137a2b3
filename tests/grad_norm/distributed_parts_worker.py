"""Checks of test_distributed.py: parts of a whole as plain tensors, FSDP2's policies, ZeRO."""

from __future__ import annotations

import math

import doc_pages
import pytest
import torch
import torch.distributed as dist
from distributed_cases import expected, full, parameter, same_on_all_ranks, spread
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

import fastclip


def meshed(*shapes) -> list[nn.Parameter]:
    """Parameters with gradients of rows divided over all ranks."""
    return [parameter(spread(_world_mesh(), shape, [Shard(0)])) for shape in shapes]


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


def recipes() -> dict:
    """The functions that docs/distributed.md shows."""
    scope: dict = {"fastclip": fastclip}
    for _, _, code in doc_pages.blocks("distributed.md"):
        if code.startswith("def clip_"):
            exec(code, scope)
    return scope


def scaled_alike(found: torch.Tensor, wholes: list, mine: list, before: list) -> None:
    """The norm is that of the whole, and each gradient was scaled as the whole's are."""
    exact, _ = expected(wholes, 1.0, 2.0)
    torch.testing.assert_close(found.double(), exact, rtol=1e-6, atol=0)
    for q, old in zip(mine, before, strict=True):
        torch.testing.assert_close(q.grad, old / exact.float(), rtol=1e-5, atol=0)


def check_the_docs_pipeline():
    rank, world = dist.get_rank(), dist.get_world_size()
    torch.manual_seed(2)
    layers, tied = [torch.randn(3, n + 2) for n in range(world)], torch.randn(6, 2)
    ends = dist.new_group([0, world - 1])
    mine = [layers[rank], tied] if rank in (0, world - 1) else [layers[rank]]
    stage = nn.ParameterList([parameter(g.clone()) for g in mine])
    found = recipes()["clip_pipeline"](
        stage, 1.0, dist.group.WORLD, tied=list(stage)[1:], tie_group=ends
    )
    scaled_alike(found, [*layers, tied], list(stage), mine)


def check_the_docs_experts():
    torch.manual_seed(2)
    experts, dense = [torch.randn(3, 4) for _ in range(dist.get_world_size())], torch.randn(5)
    mine = [dense, experts[dist.get_rank()]]
    model = nn.ModuleDict(
        {
            "dense": nn.ParameterList([parameter(dense.clone())]),
            "experts": nn.ParameterList([parameter(mine[1].clone())]),
        }
    )
    found = recipes()["clip_experts"](model, 1.0, dist.group.WORLD)
    scaled_alike(found, [*experts, dense], list(model.parameters()), mine)


def check_the_docs_tensor_parallel_in_pipeline_stages():
    world = dist.get_world_size()
    mesh = init_device_mesh("cpu", (world // 2, 2), mesh_dim_names=("pp", "tp"))
    stage, part = mesh.get_coordinate()
    torch.manual_seed(2)
    cuts = [torch.randn(4, 3) for _ in range(world // 2)]
    copies = [torch.randn(5) for _ in range(world // 2)]
    mine = [cuts[stage].chunk(2)[part], copies[stage]]
    model = nn.ParameterList([parameter(g.clone()) for g in mine])
    model[0].tensor_model_parallel = True
    groups = mesh.get_group("tp"), mesh.get_group("pp")
    found = recipes()["clip_tensor_parallel"](model, 1.0, *groups)
    scaled_alike(found, [*cuts, *copies], list(model), mine)


def check_pipeline_stages_of_dtensors():
    """Each stage divides its own layers over its own ranks, and the stages add up."""
    rank, world = dist.get_rank(), dist.get_world_size()
    mesh = init_device_mesh("cpu", (2, world // 2), mesh_dim_names=("pp", "dp"))
    torch.manual_seed(3)
    stages = [[torch.randn(6, 4)], [torch.randn(5, 3), torch.randn(9)]]
    stage = rank // (world // 2)
    mine = [distribute_tensor(g, mesh["dp"], [Shard(0)]) for g in stages[stage]]
    parameters = [parameter(g) for g in mine]
    for p in (1.0, 3.0, math.inf):
        exact, _ = expected([*stages[0], *stages[1]], 1.0, p)
        found = fastclip.distributed.get_total_norm(parameters, p, groups=mesh.get_group("pp"))
        torch.testing.assert_close(found.double(), exact, rtol=1e-6, atol=0)
    exact, clipped = expected([*stages[0], *stages[1]], 1.0, 2.0)
    found = fastclip.distributed.clip_grad_norm_(parameters, 1.0, groups=mesh.get_group("pp"))
    torch.testing.assert_close(found.double(), exact, rtol=1e-6, atol=0)
    for q, wanted in zip(parameters, clipped[len(stages[0]) * stage :], strict=False):
        torch.testing.assert_close(q.grad.full_tensor().double(), wanted, rtol=1e-5, atol=0)


def check_ranks_of_different_dtypes():
    """Pipeline stages in float16 and float64: the same norm, and the same decision, on both."""
    even = dist.get_rank() % 2 == 0
    q = parameter(torch.full((4,), 3e4, dtype=torch.float16 if even else torch.float64))
    exact = 3e4 * 2.0 * math.sqrt(dist.get_world_size())
    clip_ = fastclip.distributed.clip_grad_norm_
    total = clip_([q], 1e9, 2.0, True, groups=dist.group.WORLD)
    assert total.dtype == q.dtype
    assert math.isinf(total) if even else total.item() == pytest.approx(exact, rel=1e-9)
    clip_([q], exact / 2, groups=dist.group.WORLD)
    torch.testing.assert_close(q.grad.double(), torch.full_like(q.grad, 1.5e4).double())


def check_an_error_among_dtensors_stops_all():
    plain, (divided,) = parameter(torch.ones(3)), meshed((8, 3))
    if dist.get_rank() == 1:
        divided.grad._local_tensor.untyped_storage().resize_(0)
    kind = ValueError if dist.get_rank() == 1 else RuntimeError
    with pytest.raises(kind, match="was freed" if dist.get_rank() == 1 else "another rank"):
        fastclip.distributed.clip_grad_norm_(
            [plain, divided], 1.0, groups=[([plain], dist.group.WORLD)]
        )
    assert torch.equal(plain.grad, torch.ones(3))


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
        for p in (1.0, 3.0, math.inf):
            exact, _ = expected(grads, 0.1, p)
            found = fastclip.get_total_norm([q.grad for q in model.parameters()], p)
            torch.testing.assert_close(full(found).double(), exact, rtol=1e-6, atol=0)
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
