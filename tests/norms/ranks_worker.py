"""The checks of test_monitor_ranks.py: each runs on both of two ranks."""

from __future__ import annotations

import csv
import datetime
import json
import multiprocessing
import sys
import traceback
import warnings
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard

import fastclip
from fastclip.norms.monitor import ranks

STEPS = 3


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3))


def train(model, optimizer, monitor, clip=fastclip.clip_grad_norm_):
    torch.manual_seed(1)
    for _ in range(STEPS):
        optimizer.zero_grad()
        model(torch.randn(4, 5)).square().sum().backward()
        monitor.observe(clip(model.parameters(), 1.0))
        optimizer.step()
    monitor.close()
    return monitor.history


def rows_of(wrap, path, **kwargs):
    model = wrap(net())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    options = {"every": 1, "max_norm": 1.0, "csv": path, "by": "depth", **kwargs}
    return train(model, optimizer, fastclip.NormMonitor(model, optimizer, **options))


def equal(rows, expected):
    assert len(rows) == len(expected) == STEPS
    for row, right in zip(rows, expected, strict=True):
        assert row.pop("worst_parameter") == right.pop("worst_parameter")
        assert row == pytest.approx(right, rel=1e-5)


def wrote_once(path):
    dist.barrier()
    with path.open() as file:
        assert [row["step"] for row in csv.DictReader(file)] == ["1", "2", "3"]


def alone(folder):
    """What one process alone measures, which no rank writes twice."""
    return rows_of(lambda model: model, folder / f"alone_{dist.get_rank()}.csv")


def check_ddp(folder):
    equal(rows_of(nn.parallel.DistributedDataParallel, folder / "ddp.csv"), alone(folder))
    wrote_once(folder / "ddp.csv")


def check_fsdp2(folder):
    equal(rows_of(fully_shard, folder / "fsdp2.csv"), alone(folder))
    wrote_once(folder / "fsdp2.csv")


def check_fsdp2_with_torchs_norms(folder):
    """Which are DTensors whose parts are still to be summed."""
    model = fully_shard(net())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    monitor = fastclip.NormMonitor(model, optimizer, every=1, max_norm=1.0, by="depth")
    equal(train(model, optimizer, monitor, nn.utils.clip_grad_norm_), alone(folder))


def check_fsdp2_without_observed_norms(folder):
    model = fully_shard(net())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    monitor = fastclip.NormMonitor(model, optimizer, every=1)
    torch.manual_seed(1)
    model(torch.randn(4, 5)).square().sum().backward()
    norm = fastclip.get_total_norm([p.grad for p in model.parameters()]).full_tensor().item()
    report = fastclip.grad_norms(model, stats=True)
    assert list(report.names) == [name for name, _ in net().named_parameters()]
    whole = model[0].weight.grad.full_tensor()
    assert report.stats["0.weight"].std == pytest.approx(whole.std().item(), rel=1e-5)
    optimizer.step()
    monitor.close()
    assert monitor.history[0]["grad_norm"] == pytest.approx(norm, rel=1e-6)
    assert monitor.history[0]["grad_max"] == pytest.approx(
        max(stats.abs_max for stats in report.stats.values()), rel=1e-6
    )


def check_a_monitor_on_rank_0_alone_says_so(folder):
    model = fully_shard(net())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    ranks.WAIT = datetime.timedelta(seconds=3)
    if dist.get_rank() == 0:
        with pytest.raises(RuntimeError, match=r"ranks \[1\] made none within 3 s"):
            fastclip.NormMonitor(model, optimizer)
    else:
        next(ranks._numbers)  # the ranks' counts part where the script is wrong
    dist.barrier()


def check_other_steps_on_another_rank_are_refused(folder):
    model = fully_shard(net())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(ValueError, match="every must be the same on all ranks"):
        fastclip.NormMonitor(model, optimizer, every=5 + dist.get_rank())


def check_only_rank_0_warns(folder):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        rows_of(nn.parallel.DistributedDataParallel, None, exploding=1e-9)
    texts = [str(w.message) for w in caught if "gradient norm" in str(w.message)]
    assert len(texts) == (STEPS if dist.get_rank() == 0 else 0)


CHECKS = {name: f for name, f in globals().items() if name.startswith("check_")}


def work(rank: int, folder: Path) -> None:
    store = dist.FileStore(str(folder / "store"), 2)
    timeout = datetime.timedelta(seconds=60)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2, timeout=timeout)
    torch.set_num_threads(1)
    found = {}
    for name, check in CHECKS.items():
        try:
            check(folder)
            found[name] = ""
        except BaseException:
            found[name] = traceback.format_exc()
            break  # the other rank may be elsewhere now
    (folder / f"{rank}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=work, args=(r, Path(sys.argv[1]))) for r in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(150)
        process.kill()
