"""Checks of test_distributed.py: ranks that differ in what lies on them; AGC and value limits."""

from __future__ import annotations

import math

import pytest
import torch
import torch.distributed as dist
from distributed_cases import full, parameter, same_on_all_ranks, spread
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Partial, Replicate, Shard, distribute_tensor

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


def check_norms_one_by_one_where_a_rank_lacks_some():
    """Or has a stride of its own in the middle: each number goes to the parameter it belongs to."""
    for lacking in (True, False):
        parameters = meshed((8, 3), (6, 5), (4, 4), (9,))
        whole = [p.grad.full_tensor() for p in parameters]
        rank, last = dist.get_rank(), dist.get_world_size() - 1
        local = parameters[1].grad.to_local()
        if rank == last:
            apart = torch.empty(*local.shape[:-1], 2 * local.shape[-1])[..., ::2].copy_(local)
            parameters[1].grad._local_tensor = apart
        rows = [g.double() for g in whole]
        if lacking:
            mine = torch.zeros((), dtype=torch.float64)
            if rank != last:
                mine = local.double().square().sum()
            else:
                parameters[1].grad = None
            dist.all_reduce(mine)
            rows[1] = mine.sqrt()
        wanted = torch.stack([row.norm() for row in rows])
        kept = [0, 2, 3] if lacking and rank == last else [0, 1, 2, 3]
        report = fastclip.grad_norms([(str(i), p) for i, p in enumerate(parameters)])
        assert report.names == tuple(map(str, kept))
        torch.testing.assert_close(report.norms, wanted[kept], rtol=1e-6, atol=0)
        each = fastclip.clip_groups_([{"params": parameters}], 1e9, per_parameter=True)
        torch.testing.assert_close(each.double(), wanted, rtol=1e-6, atol=0)
        total = fastclip.clip_groups_([{"params": parameters}], 1e9)
        torch.testing.assert_close(total[0].double(), wanted.norm(), rtol=1e-6, atol=0)
        same_on_all_ranks(total)


def check_sums_where_one_rank_has_a_stride_of_its_own():
    flat = init_device_mesh("cpu", (dist.get_world_size(),))
    grads = [spread(flat, (n, 6), [Partial()]) for n in (3, 3, 3)]
    wanted = torch.stack([g.full_tensor().double().norm() for g in grads]).norm()
    if dist.get_rank() == 1:
        local = grads[1].to_local()
        grads[1]._local_tensor = torch.empty(3, 12)[:, ::2].copy_(local)
    torch.testing.assert_close(
        full(fastclip.get_total_norm(grads)).double(), wanted, rtol=1e-6, atol=0
    )


def check_a_float64_gradient_on_some_ranks_only():
    """Which takes one more all_reduce: all ranks must make it."""
    flat = init_device_mesh("cpu", (dist.get_world_size(),))
    parameters = [
        parameter(spread(flat, (8, 2), [Shard(0)], dtype))
        for dtype in (torch.float32, torch.float64, torch.float32)
    ]
    if dist.get_rank() == 0:
        parameters[1].grad = None
    for p in (1.0, 2.0, math.inf):
        total = full(fastclip.clip_grad_norm_(parameters, 1e9, p)).double().float()
        same_on_all_ranks(total)


def check_adaptive_clipping_where_a_rank_lacks_gradients():
    flat = init_device_mesh("cpu", (dist.get_world_size(),))
    parameters = [parameter(spread(flat, s, [Shard(len(s) - 1)])) for s in ((5, 8), (9,), (3, 4))]
    parameters += meshed((8, 2))
    for p in parameters:
        p.grad.to_local().fill_(1.0)
        torch.nn.init.ones_(p.to_local())
    if dist.get_rank() == 0:
        parameters[0].grad = parameters[1].grad = None
    fastclip.AGC(1e-3).clip_(parameters)
    for p in parameters[:2] if dist.get_rank() else ():
        assert (p.grad.to_local() < 1e-2).all()
    for p in parameters[2:]:
        torch.testing.assert_close(
            p.grad.to_local(), torch.full_like(p.grad.to_local(), 1e-3), rtol=1e-5, atol=0
        )


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
