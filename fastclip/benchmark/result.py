"""All that one run measured, as text and as JSON."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass

from fastclip.benchmark import verdict
from fastclip.benchmark.machine import Machine
from fastclip.benchmark.operations import Operation
from fastclip.benchmark.step import FASTCLIP, TORCH, Step
from fastclip.benchmark.timing import Time

COLUMNS = f"{'':34}{'torch':>12}{'fastclip':>12}{'':>10}"


@dataclass(frozen=True)
class Result:
    """One run of `fastclip bench`."""

    machine: Machine
    model: str
    batch: str
    dtype: str
    optimizer: str
    step: Step
    operations: list[Operation]

    def sentences(self) -> list[str]:
        """The verdict."""
        return [*verdict.of_step(self.step), *verdict.of_operations(self.operations)]

    def json(self) -> str:
        """Every figure, times in milliseconds, and the verdict."""
        return json.dumps({**dataclasses.asdict(self), "verdict": self.sentences()}, indent=2)

    def text(self) -> str:
        """A page for a terminal of 80 columns."""
        lines = [*self._head(), "", *self._parts(), "", *self._clips()]
        if self.operations:
            lines += ["", f"Single calls{COLUMNS[12:]}"]
            lines += [line for op in self.operations for line in self._operation(op)]
        return "\n".join([*lines, "", "Verdict", *(f"  {s}" for s in self.sentences())])

    def _head(self) -> list[str]:
        machine, step = self.machine, self.step
        threads = f", {machine.threads} threads" if machine.device == "cpu" else ""
        megabytes = step.gradient_bytes / 1e6
        return [
            f"{machine.name}{threads}; torch {machine.torch}, fastclip {machine.fastclip}",
            f"memory: reads {machine.read_gb_per_s:.1f} GB/s, copies {machine.copy_gb_per_s:.1f} "
            "GB/s (read and written)",
            f"{self.model}, {self.batch}, {self.dtype}, {self.optimizer}",
            f"{step.tensors} tensors with gradients, {step.elements / 1e6:.1f} million elements, "
            f"{megabytes:.1f} MB",
        ]

    def _parts(self) -> list[str]:
        whole = verdict.step_ms(self.step, "not clipping", TORCH)
        clip = self.step.modes["not clipping"].alone[TORCH]
        parts = {
            "forward and backward": self.step.forward_backward,
            "clip_grad_norm_ of torch": clip,
            "optimizer": self.step.optimizer,
        }
        lines = [f"{'A training step, nothing to clip':34}{whole:>9.2f} ms"]
        for name, time in parts.items():
            lines.append(
                f"  {name:32}{time.median_ms:>9.2f} ms{verdict.percent(time.median_ms / whole):>9}"
            )
        return lines

    def _clips(self) -> list[str]:
        floor_ms = self.step.gradient_bytes / self.machine.read_gb_per_s / 1e6
        lines = [f"In the step{COLUMNS[11:]}"]
        for mode, times in self.step.modes.items():
            lines.append(_row(f"clip, {mode}", times.alone))
            lines.append(_row("clip and optimizer", times.with_optimizer))
            for name, time in times.with_optimizer.items():
                if name not in (TORCH, FASTCLIP):
                    ratio = times.with_optimizer[TORCH].median_ms / time.median_ms
                    lines.append(
                        f"    {'clip_grads_in_step_':30}{'':>12}{_ms(time.median_ms):>12}"
                        f"{ratio:>9.2f}x"
                    )
        errors = self.step.errors
        lines.append(f"  {'error of the norm':32}{errors[TORCH]:>12.0e}{errors[FASTCLIP]:>12.0e}")
        lines.append(f"  {'one read of the gradients':32}{_ms(floor_ms):>12}  (at that rate)")
        return lines

    def _operation(self, operation: Operation) -> list[str]:
        torch_error, error = operation.errors[TORCH], operation.errors[FASTCLIP]
        ratio = operation.times[TORCH].median_ms / operation.times[FASTCLIP].median_ms
        times = [_ms(operation.times[name].median_ms) for name in (TORCH, FASTCLIP)]
        return [
            f"  {operation.name}",
            f"  {'':32}{times[0]:>12}{times[1]:>12}{ratio:>9.2f}x",
            f"    {'error':30}{torch_error:>12.0e}{error:>12.0e}",
        ]


def _row(name: str, times: dict[str, Time]) -> str:
    ratio = times[TORCH].median_ms / times[FASTCLIP].median_ms
    cells = "".join(f"{_ms(times[key].median_ms):>12}" for key in (TORCH, FASTCLIP))
    return f"  {name:32}{cells}{ratio:>9.2f}x"


def _ms(value: float) -> str:
    return f"{value:.3f} ms" if value < 10 else f"{value:.1f} ms"
