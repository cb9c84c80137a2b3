"""Where the time of a step goes: a trace by torch.profiler, and a table of the step's phases."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from fastclip.transfuse.optimization.phases import Phase, unmeasured
from fastclip.transfuse.storage.files import write_csv

WARM_UP, TIMED, TRACED = 3, 10, 10  # steps
PHASES = ("data", "forward", "loss", "backward", "clip", "optimizer")
# The optimizer's own share of a step that clips, by the names of torch's operators.
FUSED = ("aten::_fused_adam_", "aten::_fused_adamw_", "aten::_fused_sgd_")
PREFIX = "step: "
T = TypeVar("T")


class Profile:
    """Measures steps once, early in a run: some by the clock alone, then some traced.

    In traced steps a GPU is waited for after each phase, so that each is charged with its own
    work: they take longer than other steps do.

    Args:
        device: that computes.
        out: folder of trace.json and profile.csv.
        measure: called with what sees the phases of each step from then on.
        say: called with the lines of the table.
        enabled: whether anything is measured at all.
    """

    def __init__(
        self,
        device: torch.device,
        out: Path,
        measure: Callable[[Phase], None],
        say: Callable[[str], None],
        enabled: bool,
    ) -> None:
        self.device, self.out, self.measure, self.say = device, out, measure, say
        self.active = enabled
        self.steps = 0  # seen so far
        self.timed_ms: list[float] = []
        self.traced_ms: list[float] = []
        self.tracer: profile | None = None

    def fetched(self, batches: Iterator[T]) -> Iterator[T]:
        """The same batches, whose fetching and use is measured while that lasts."""
        try:
            while True:
                started = self._begin()
                with self._phase("data") if self.tracer else unmeasured("data"):
                    batch = next(batches, None)
                if batch is None:
                    return
                yield batch
                self._end(started)
        finally:
            self._finish()

    def _begin(self) -> float:
        if self.active and self.tracer is None and self.steps >= WARM_UP + TIMED:
            activities = [ProfilerActivity.CPU]
            if self.device.type == "cuda":
                activities.append(ProfilerActivity.CUDA)
            self.tracer = profile(activities=activities, acc_events=True)
            self.measure(self._phase)
            self.tracer.start()
        return time.perf_counter()

    def _end(self, started: float) -> None:
        if not self.active:
            return
        self._wait()
        elapsed_ms = (time.perf_counter() - started) * 1e3
        self.steps += 1
        if self.tracer is not None:
            self.traced_ms.append(elapsed_ms)
            if len(self.traced_ms) == TRACED:
                self._finish()
        elif self.steps > WARM_UP:
            self.timed_ms.append(elapsed_ms)

    @contextmanager
    def _phase(self, name: str) -> Iterator[None]:
        with record_function(PREFIX + name):
            yield
            self._wait()

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def _finish(self) -> None:
        """Write and print what was traced, if that has begun."""
        if self.tracer is None:
            return
        tracer, self.tracer, self.active = self.tracer, None, False
        self.measure(unmeasured)
        tracer.stop()
        if not self.traced_ms:
            return
        tracer.export_chrome_trace(str(self.out / "trace.json"))
        phases = phase_times_ms(tracer.key_averages(), len(self.traced_ms), self.device)
        rows = table(phases, self.timed_ms, self.traced_ms)
        write_csv(self.out / "profile.csv", rows)
        self.say(f"{len(self.traced_ms)} steps traced to {self.out / 'trace.json'}; of each:")
        for row in rows:
            self.say(f"  {row['phase']:18}{row['ms']:10.2f} ms{row['share']:8.1%}")


def phase_times_ms(averages: Any, steps: int, device: torch.device) -> dict[str, float]:
    """Mean time of each phase in a step, from `key_averages()` of a traced run."""
    by_name = {event.key: event for event in averages}
    times = dict.fromkeys(PHASES, 0.0)
    for name in (*PHASES, "clip and optimizer"):
        if (event := by_name.get(PREFIX + name)) is not None:
            times[name] = times.get(name, 0.0) + event.cpu_time_total / 1e3 / steps
    if (both := times.pop("clip and optimizer", None)) is not None:
        field = "device_time_total" if device.type == "cuda" else "cpu_time_total"
        fused = [by_name[name] for name in FUSED if name in by_name]
        step_ms = min(both, sum(getattr(event, field) for event in fused) / 1e3 / steps)
        times["optimizer"] += step_ms
        times["clip"] += both - step_ms
    return times


def table(
    phases: dict[str, float], timed_ms: list[float], traced_ms: list[float]
) -> list[dict[str, Any]]:
    """Rows of phases, of what is left of a traced step, and of steps traced and not: means."""
    whole = sum(traced_ms) / len(traced_ms)
    rows = {**phases, "rest": max(0.0, whole - sum(phases.values())), "step, traced": whole}
    if timed_ms:
        rows["step, not traced"] = sum(timed_ms) / len(timed_ms)
    return [{"phase": name, "ms": ms, "share": ms / whole} for name, ms in rows.items()]
