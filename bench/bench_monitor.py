"""What NormMonitor(every=50) costs a training step of TransFuse_S on the CPU: under 1 %.

    pytest bench/bench_monitor.py --benchmark-enable

Two runs of the same step differ by more than that, so a difference of two step times would measure
noise. The monitor works in `observe` and in the optimizer's step hooks and nowhere else. So clocks
are read right before and after these, while a model trains; every other step is a measured one. The
row `step + monitor` is the median step without them, plus a fiftieth of what 50 steps spend in
them: 50 calls of `observe`, the hooks of 49 steps that measure nothing and of one that does. What
the copy of the parameters evicts from caches is not counted.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median

import measure
import pytest
import torch

import fastclip

EVERY, LIMIT = 50, 0.01


class Clock:
    """Readings of the time, in milliseconds; `read` may be an optimizer's hook."""

    def __init__(self) -> None:
        self.readings_ms: list[float] = []

    def read(self, *_: object) -> None:
        self.readings_ms.append(time.perf_counter() * 1e3)

    def spans_ms(self) -> list[float]:
        """From the first reading to the second, from the third to the fourth, ..."""
        pairs = zip(self.readings_ms[::2], self.readings_ms[1::2], strict=True)
        return [end - start for start, end in pairs]


def training() -> tuple[torch.nn.Module, torch.optim.Optimizer, Callable[[], torch.Tensor]]:
    """The model, its optimizer, and all of a training step but `optimizer.step()`."""
    transfuse = pytest.importorskip("fastclip.transfuse", reason="needs fastclip-torch[train]")
    torch.manual_seed(0)
    model = transfuse.create_model("transfuse_s")
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    images, masks = torch.randn(4, 3, 96, 128), (torch.rand(4, 1, 96, 128) > 0.7).float()

    def clipped_gradients() -> torch.Tensor:
        optimizer.zero_grad()
        fastclip.structure_loss(model(images), masks).backward()
        return fastclip.clip_grad_norm_(model.parameters(), 1.0)

    return model, optimizer, clipped_gradients


def bench_monitor(benchmark, tmp_path):
    model, optimizer, clipped_gradients = training()
    steps, hooks_before, hooks_after, observe = Clock(), Clock(), Clock(), Clock()
    optimizer.register_step_pre_hook(hooks_before.read)
    optimizer.register_step_post_hook(hooks_after.read)
    monitor = fastclip.NormMonitor(
        model, optimizer, every=2, max_norm=1.0, csv=tmp_path / "norms.csv", by="depth"
    )
    optimizer.register_step_pre_hook(hooks_before.read)
    optimizer.register_step_post_hook(hooks_after.read)

    def step() -> None:
        steps.read()
        norm = clipped_gradients()
        observe.read()
        for _ in range(EVERY // 2):  # a measurement then finds as many norms as after 50 steps
            monitor.observe(norm)
        observe.read()
        optimizer.step()
        steps.read()

    benchmark.pedantic(step, rounds=26)
    assert len(monitor.history) == len(steps.spans_ms()) // 2
    hooks = [a + b for a, b in zip(hooks_before.spans_ms(), hooks_after.spans_ms(), strict=True)]
    observed = observe.spans_ms()
    plain = [a - b - c for a, b, c in zip(steps.spans_ms(), hooks, observed, strict=True)]
    warm = 6
    times_ms = {
        "step": median(plain[warm:]),
        "hooks of a measured step": median(hooks[warm + 1 :: 2]),
        "hooks of another step": median(hooks[warm::2]),
        "observe": median(observed[warm:]) / (EVERY // 2),
    }
    calls = {"hooks of a measured step": 1, "hooks of another step": EVERY - 1, "observe": EVERY}
    cost_ms = sum(count * times_ms[name] for name, count in calls.items()) / EVERY
    times_ms["step + monitor"] = times_ms["step"] + cost_ms
    print(f"NormMonitor(every={EVERY}) costs {100 * cost_ms / times_ms['step']:.2f} % of a step")
    case = f"transfuse_s 4x3x96x128, AdamW fused, every={EVERY}"
    rows = measure.rows("monitor", case, "float32", times_ms, baseline="step")
    for row in rows[1:-1]:
        row["speedup"] = ""  # parts of a step, which have none
    measure.save("monitor_cpu", rows)
    assert cost_ms < LIMIT * times_ms["step"]
