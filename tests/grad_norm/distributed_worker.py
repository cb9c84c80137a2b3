"""The checks of test_distributed.py: each runs on every rank, in worlds of 2 and 4.

Each compares with the same gradients, whole, clipped by torch in float64 in one process.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import math
import multiprocessing
import sys
import traceback
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1]))  # doc_pages

import distributed_local_worker
import distributed_parts_worker
import distributed_training_worker
import torch
import torch.distributed as dist
from distributed_cases import (
    compare_clipping,
    exact_grads,
    expected,
    full,
    parameter,
    several_meshes,
    sharded_model,
    spread,
)
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Partial, Shard, distribute_tensor
from torch.distributed.tensor.debug import CommDebugMode
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    RowwiseParallel,
    parallelize_module,
)

import fastclip

WORLDS = (2, 4)


def check_fsdp2():
    parameters = list(sharded_model().parameters())
    for p, exact in zip(parameters, exact_grads(), strict=True):
        torch.testing.assert_close(p.grad.full_tensor().double(), exact, rtol=1e-4, atol=1e-6)
    norm = fastclip.clip_grad_norm_(parameters, 1e9)
    theirs = nn.utils.clip_grad_norm_(parameters, 1e9)
    assert type(norm) is type(theirs) is DTensor
    assert norm.dtype == theirs.dtype == torch.float32
    assert norm.to_local().item() == norm.full_tensor().item() == norm.item()
    compare_clipping(parameters)


def check_hsdp():
    mesh = init_device_mesh("cpu", (dist.get_world_size() // 2, 2), mesh_dim_names=("r", "s"))
    compare_clipping(list(sharded_model(mesh).parameters()))


def check_tensor_parallel_beside_plain():
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    torch.manual_seed(0)
    width = 4 * dist.get_world_size()
    model = nn.Sequential(nn.LayerNorm(5), nn.Linear(5, width), nn.ReLU(), nn.Linear(width, 3))
    plan = {"1": ColwiseParallel(), "3": RowwiseParallel()}
    model = parallelize_module(model, mesh, plan)
    model(torch.randn(6, 5)).square().sum().backward()
    parameters = list(model.parameters())
    assert len({type(p.grad) for p in parameters}) == 2
    assert type(fastclip.clip_grad_norm_(parameters, 1e9)) is Tensor
    compare_clipping(parameters)


def check_fsdp2_over_tensor_parallel():
    mesh = init_device_mesh("cpu", (dist.get_world_size() // 2, 2), mesh_dim_names=("dp", "tp"))
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 12), nn.ReLU(), nn.Linear(12, 3))
    plan = {"0": ColwiseParallel(), "2": RowwiseParallel()}
    model = fully_shard(parallelize_module(model, mesh["tp"], plan), mesh=mesh["dp"])
    model(torch.randn(6, 5)).square().sum().backward()
    compare_clipping(list(model.parameters()))


def check_several_meshes_and_placements_at_once():
    compare_clipping([parameter(g) for g in several_meshes()])


def check_mixed_dtypes():
    flat = init_device_mesh("cpu", (dist.get_world_size(),))
    dtypes = (torch.bfloat16, torch.float32, torch.float64, torch.float16)
    grads = [spread(flat, (7, 3), [Shard(0)], dtype) for dtype in dtypes]
    assert fastclip.get_total_norm(grads).dtype == torch.float64
    assert fastclip.get_total_norm(grads[:1]).dtype == torch.bfloat16
    exact = torch.cat([g.full_tensor().double().flatten() for g in grads]).norm()
    found = fastclip.get_total_norm(grads).full_tensor()
    torch.testing.assert_close(found, exact, rtol=1e-6, atol=0)


def check_powers_that_leave_float64():
    flat = init_device_mesh("cpu", (dist.get_world_size(),))
    for value, dtype in ((1e200, torch.float64), (1e-200, torch.float64), (1e38, torch.float32)):
        whole = torch.full((6,), value, dtype=dtype)
        for order in (2.0, 9.0, -3.0):
            grad = distribute_tensor(whole, flat, [Shard(0)])
            found = fastclip.get_total_norm([grad.clone()], order).full_tensor().item()
            wanted = value * 6 ** (1 / order)
            assert math.isclose(found, wanted, rel_tol=1e-6) or wanted > 3.4e38, (found, wanted)


def check_nonfinite_on_one_rank():
    flat = init_device_mesh("cpu", (dist.get_world_size(),))
    for bad in (math.nan, math.inf):
        for order in (1.0, 2.0, 9.0, math.inf):
            whole = torch.arange(1.0, 9.0)
            whole[-1] = bad
            clean = parameter(distribute_tensor(torch.ones(9), flat, [Shard(0)]))
            p = parameter(distribute_tensor(whole, flat, [Shard(0)]))
            norm = fastclip.get_total_norm([clean.grad, p.grad], order).full_tensor()
            assert math.isnan(norm) if math.isnan(bad) else math.isinf(norm)
            raised = None
            with contextlib.suppress(RuntimeError):
                raised = True
                fastclip.clip_grad_norm_([clean, p], 0.1, order, error_if_nonfinite=True)
                raised = False
            assert raised
            assert torch.equal(clean.grad.full_tensor(), torch.ones(9))
            fastclip.clip_grad_norm_([clean, p], 0.1, order)
            _, wanted = expected([torch.ones(9), whole], 0.1, order)
            found = [q.grad.full_tensor().double() for q in (clean, p)]
            torch.testing.assert_close(found, wanted, equal_nan=True, rtol=1e-6, atol=0)


def all_reduces(call) -> int:
    """How many all_reduces CommDebugMode counts, and that there is no other communication."""
    counter = CommDebugMode()
    with counter:
        call()
    counts = counter.get_comm_counts()
    assert set(counts) <= {torch.ops.c10d_functional.all_reduce}, counts
    return counter.get_total_counts()


def check_one_all_reduce_for_each_mesh_dimension():
    groups = 1 if dist.get_world_size() == 2 else 3  # of two ranks: the same group
    grads = several_meshes()[:8]
    parameters = [parameter(g) for g in grads]
    assert all_reduces(lambda: fastclip.get_total_norm(grads)) == groups
    assert all_reduces(lambda: fastclip.clip_grad_norm_(parameters, 0.1)) == groups
    assert all_reduces(lambda: fastclip.clip_grad_norm_(parameters, 0.1, math.inf)) == groups
    named = [(str(i), p) for i, p in enumerate(parameters)]
    assert all_reduces(lambda: fastclip.grad_norms(named)) == groups
    model = sharded_model()
    assert all_reduces(lambda: fastclip.clip_grad_norm_(model.parameters(), 0.1)) == 1


def check_one_all_reduce_for_all_summands():
    flat = init_device_mesh("cpu", (dist.get_world_size(),))
    grads = [spread(flat, (n,), [Partial()]) for n in (5, 7, 1)]
    exact = torch.cat([g.full_tensor() for g in grads]).norm()
    assert all_reduces(lambda: fastclip.get_total_norm(grads)) == 1
    torch.testing.assert_close(fastclip.get_total_norm(grads).full_tensor(), exact)
    mean = DTensor.from_local(grads[0].to_local(), flat, [Partial("avg")], run_check=False)
    wanted = grads[0].full_tensor().norm() / dist.get_world_size()
    torch.testing.assert_close(full(fastclip.get_total_norm([mean])), wanted)


def check_versions_move_when_gradients_are_written():
    flat = init_device_mesh("cpu", (dist.get_world_size(),))
    p = parameter(distribute_tensor(torch.ones(8), flat, [Shard(0)]))
    before = p.grad._version, p.grad.to_local()._version
    fastclip.clip_grad_norm_([p], 0.1)
    assert p.grad._version > before[0]
    assert p.grad.to_local()._version > before[1]


def check_torchs_norm_is_taken():
    parameters = list(sharded_model().parameters())
    grads = [p.grad for p in parameters]
    wanted = [g.full_tensor() * 0.5 for g in grads]
    norm = nn.utils.get_total_norm(grads)
    fastclip.clip_grads_with_norm_(parameters, norm.full_tensor().item() / 2, norm)
    for g, half in zip(grads, wanted, strict=True):
        torch.testing.assert_close(g.full_tensor(), half, rtol=1e-4, atol=0)


def check_order_0_and_other_placements_are_torchs():
    flat = init_device_mesh("cpu", (dist.get_world_size(),))
    grad = DTensor.from_local(torch.arange(1.0, 4.0), flat, [Partial("max")], run_check=False)
    assert math.isclose(full(fastclip.get_total_norm([grad])).item(), math.sqrt(14), rel_tol=1e-6)
    sharded = distribute_tensor(torch.tensor([3.0, 0.0, 4.0]), flat, [Shard(0)])
    theirs = full(nn.utils.get_total_norm([sharded], 0.0))
    assert torch.equal(full(fastclip.get_total_norm([sharded], 0.0)), theirs)


FUNCTIONS = {
    name: function
    for module in (distributed_local_worker, distributed_parts_worker, distributed_training_worker)
    for name, function in {**globals(), **vars(module)}.items()
    if name.startswith("check_")
}
CHECKS = sorted(FUNCTIONS)


def run(rank: int, world: int, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/store_{world}",
        rank=rank,
        world_size=world,
        timeout=datetime.timedelta(seconds=60),
    )
    errors = {}
    for name in CHECKS:
        try:
            FUNCTIONS[name]()
            errors[name] = ""
        except Exception:  # whatever a check raises is what the test shows
            errors[name] = traceback.format_exc()
            break  # the ranks may no longer be at one
    (folder / f"{world}_{rank}.json").write_text(json.dumps(errors))
    dist.destroy_process_group()


def main(folder: Path) -> None:
    """All worlds at the same time, forked from one process: torch is imported once."""
    context = multiprocessing.get_context("fork")
    ranks = [
        context.Process(target=run, args=(rank, world, folder))
        for world in WORLDS
        for rank in range(world)
    ]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
