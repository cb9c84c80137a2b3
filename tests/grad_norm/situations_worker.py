"""Two gloo ranks with different gradients: for each pair of situations, what each call came to.

python situations_worker.py FOLDER     every pair: rank_<r>.json, a list of "ok" or "raised"
python situations_worker.py FOLDER die|hang     rank 1 leaves, or waits, before rank 0's clip
"""

from __future__ import annotations

import datetime
import itertools
import json
import math
import multiprocessing
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist
from distributed_cases import full, parameter
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

import fastclip

TIMEOUT_S = 20  # of a collective: a call that hangs ends with an error, which the test tells apart


def parameters_on(mesh: DeviceMesh) -> list[nn.Parameter]:
    """Rows and vectors over both ranks, one with an empty shard on rank 1, and a plain one."""
    wholes = [torch.ones(6, 4), torch.ones(1, 5), torch.ones(4, 3), torch.ones(8)]
    spread = [distribute_tensor(whole, mesh, [Shard(0)]) for whole in wholes]
    return [*(parameter(grad) for grad in spread), parameter(torch.ones(3))]


def nothing(parameters: list[nn.Parameter]) -> None:
    pass


def no_gradients(parameters: list[nn.Parameter]) -> None:
    for p in parameters:
        p.grad = None


def only_the_plain_one(parameters: list[nn.Parameter]) -> None:
    for p in parameters[:-1]:
        p.grad = None


def one_lacks(parameters: list[nn.Parameter]) -> None:
    parameters[2].grad = None


def odd_strides(parameters: list[nn.Parameter]) -> None:
    local = parameters[2].grad._local_tensor
    apart = torch.empty(local.shape[0], 2 * local.shape[1])[:, ::2].copy_(local)
    parameters[2].grad._local_tensor = apart


def a_nan(parameters: list[nn.Parameter]) -> None:
    parameters[0].grad._local_tensor[0] = math.nan


def freed(parameters: list[nn.Parameter]) -> None:
    parameters[0].grad._local_tensor.untyped_storage().resize_(0)


SITUATIONS = (nothing, no_gradients, only_the_plain_one, one_lacks, odd_strides, a_nan, freed)


def groups_of(parameters: list[nn.Parameter]) -> list[dict]:
    return [{"params": parameters[:2]}, {"params": parameters[2:]}]


CALLS: dict[str, Callable[[list[nn.Parameter]], object]] = {
    "clip, p = 2": lambda q: fastclip.clip_grad_norm_(q, 1.0),
    "clip, p = 1": lambda q: fastclip.clip_grad_norm_(q, 1.0, 1.0),
    "clip, p = 9": lambda q: fastclip.clip_grad_norm_(q, 1.0, 9.0),
    "clip, p = inf": lambda q: fastclip.clip_grad_norm_(q, 1.0, math.inf),
    "clip, finite": lambda q: fastclip.clip_grad_norm_(q, 1.0, 2.0, True),
    "groups": lambda q: fastclip.clip_groups_(groups_of(q), 1.0),
    "each": lambda q: fastclip.clip_groups_(groups_of(q), 1.0, per_parameter=True),
    "report": lambda q: fastclip.grad_norms([(str(i), p) for i, p in enumerate(q)]).total,
    "AutoClip": lambda q: fastclip.AutoClip(10.0).clip_(q),
    "parts": lambda q: fastclip.distributed.clip_grad_norm_(
        q, 1.0, groups=[(q[-1:], dist.group.WORLD)]
    ),
}


def outcome(call: Callable[[list[nn.Parameter]], object], parameters: list[nn.Parameter]) -> str:
    """ "ok" or "raised", and "hung" for an error of the process group's own."""
    try:
        found = call(parameters)
    except dist.DistBackendError as error:
        return f"hung: {error}"
    except (ValueError, RuntimeError) as error:
        ours = ("was freed", "another rank", "non-finite")
        return "raised" if any(text in str(error) for text in ours) else f"hung: {error}"
    assert found is None or full(torch.as_tensor(found)).ndim <= 1
    return "ok"


def every_pair(rank: int, folder: Path) -> None:
    mesh = init_device_mesh("cpu", (2,))
    outcomes = []
    for pair in itertools.product(SITUATIONS, repeat=2):
        for name, call in CALLS.items():
            torch.manual_seed(0)
            parameters = parameters_on(mesh)
            pair[rank](parameters)
            found = outcome(call, parameters)
            outcomes.append([*(s.__name__ for s in pair), name, found])
            if found.startswith("hung"):
                break
    (folder / f"rank_{rank}.json").write_text(json.dumps(outcomes))


def one_is_gone(rank: int, folder: Path, how: str) -> None:
    parameters = parameters_on(init_device_mesh("cpu", (2,)))
    if rank == 1:
        if how == "die":
            os._exit(1)
        time.sleep(3 * TIMEOUT_S)
        return
    start = time.perf_counter()
    try:
        fastclip.clip_grad_norm_(parameters, 1.0)
        error = ""
    except RuntimeError as raised:
        error = f"{type(raised).__name__}: {raised}"
    (folder / "rank_0.json").write_text(json.dumps([error, time.perf_counter() - start]))
    os._exit(0)  # the group is broken: nothing to take down with the other


def run(rank: int, folder: Path, how: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/store",
        rank=rank,
        world_size=2,
        timeout=datetime.timedelta(seconds=TIMEOUT_S if how != "hang" else 3),
    )
    if how:
        one_is_gone(rank, folder, how)
    else:
        every_pair(rank, folder)
        dist.destroy_process_group()


def main(folder: Path, how: str) -> None:
    context = multiprocessing.get_context("fork")
    ranks = [context.Process(target=run, args=(rank, folder, how)) for rank in range(2)]
    for process in ranks:
        process.start()
    ranks[0].join()
    if how:
        ranks[1].kill()
    ranks[1].join()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else "")
