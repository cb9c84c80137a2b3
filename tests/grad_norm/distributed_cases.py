"""What the checks of distributed_worker.py share: models, gradients on meshes, the comparison."""

from __future__ import annotations

import math

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor

import fastclip

ORDERS = (0.5, 1.0, 2.0, 3.0, 3.5, 10.0, math.inf, -1.0, -math.inf)


def full(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def parameter(grad: Tensor) -> nn.Parameter:
    p = nn.Parameter(torch.zeros_like(grad))
    p.grad = grad
    return p


def expected(grads: list[Tensor], max_norm: float, p: float) -> tuple[Tensor, list[Tensor]]:
    """The norm and the clipped gradients of whole tensors, by torch in float64."""
    exact = [parameter(g.detach().double().clone()) for g in grads]
    norm = nn.utils.clip_grad_norm_(exact, max_norm, p)
    return norm, [q.grad for q in exact]


def same_on_all_ranks(value: Tensor) -> None:
    found = [torch.empty_like(value) for _ in range(dist.get_world_size())]
    dist.all_gather(found, value)
    assert all(torch.equal(f.nan_to_num(1e300), value.nan_to_num(1e300)) for f in found), found


def compare_clipping(parameters: list[nn.Parameter], orders=ORDERS, rtol: float = 2e-6) -> None:
    """Every order, and every function, with these gradients, which are left as they were."""
    grads = [p.grad for p in parameters]
    before = [full(g).clone() for g in grads]
    locals_before = [g.to_local().clone() if isinstance(g, DTensor) else g.clone() for g in grads]

    def restore():
        for g, old in zip(grads, locals_before, strict=True):
            (g.to_local() if isinstance(g, DTensor) else g).copy_(old)

    for order in orders:
        exact, _ = expected(before, 1.0, order)
        limit = exact.item() / 2
        _, clipped = expected(before, limit, order)
        total = fastclip.get_total_norm(grads, order)
        norm = fastclip.clip_grad_norm_(parameters, limit, order)
        torch.testing.assert_close(full(norm).double(), exact, rtol=rtol, atol=0)
        assert torch.equal(full(norm), full(total))
        same_on_all_ranks(full(norm))
        for way in ("norm", "with_norm", "with_plain_norm"):
            if way != "norm":
                known = full(total) if way == "with_plain_norm" else total
                fastclip.clip_grads_with_norm_(parameters, limit, known)
            for g, wanted in zip(grads, clipped, strict=True):
                torch.testing.assert_close(full(g).double(), wanted, rtol=rtol, atol=0)
            restore()
        report = fastclip.grad_norms([(str(i), p) for i, p in enumerate(parameters)], order)
        each = [torch.linalg.vector_norm(g.double(), order) for g in before]
        torch.testing.assert_close(report.norms, torch.stack(each), rtol=rtol, atol=0)
    versions = [g._version for g in grads]
    fastclip.clip_grad_norm_(parameters, 1e30)
    assert [g._version for g in grads] == versions
    for g, old in zip(grads, before, strict=True):
        assert torch.equal(full(g), old)


def small_model() -> tuple[nn.Module, Tensor]:
    """Rows that divide by no world size, and fewer than ranks."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.LayerNorm(7), nn.Linear(7, 1))
    return model, torch.randn(11, 5)


def sharded_model(mesh=None) -> nn.Module:
    model, data = small_model()
    for layer in (model[0], model[3]):
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    model(data).square().mean().backward()
    return model


def exact_grads() -> list[Tensor]:
    model, data = small_model()
    model.double()(data.double()).square().mean().backward()
    return [p.grad for p in model.parameters()]


def spread(mesh, shape, placements, dtype=torch.float32) -> Tensor:
    torch.manual_seed(sum(shape))
    whole = torch.randn(shape, dtype=torch.float64).to(dtype)
    if not any(p.is_partial() for p in placements):
        return distribute_tensor(whole, mesh, placements)
    sizes = [mesh.size(i) for i, p in enumerate(placements) if p.is_partial()]
    rest = [Replicate() if p.is_partial() else p for p in placements]
    local = distribute_tensor(whole, mesh, rest).to_local() / math.prod(sizes)
    return DTensor.from_local(
        local, mesh, placements, run_check=False, shape=whole.shape, stride=whole.stride()
    )


def several_meshes() -> list[Tensor]:
    world = dist.get_world_size()
    flat = init_device_mesh("cpu", (world,))
    square = init_device_mesh("cpu", (world // 2, 2), mesh_dim_names=("a", "b"))
    torch.manual_seed(7)
    return [
        torch.randn(3, 4),
        spread(flat, (1, 6), [Shard(0)]),  # empty on all ranks but one
        spread(square, (5, 3), [Shard(0), Shard(1)]),
        spread(square, (9,), [Shard(0), Shard(0)]),
        spread(square, (4, 3), [Replicate(), Shard(1)]),
        spread(square, (3, 2), [Shard(0), Replicate()], torch.float32),
        spread(square["b"], (7, 2), [Shard(0)]),
        spread(square, (2, 3), [Replicate(), Replicate()]),
        spread(square, (6, 2), [Partial(), Shard(0)]),
        spread(flat, (5,), [Partial()]),
        torch.randn(6, 4)[:, ::2],
    ]
