"""The rows of a monitor: from devices to the history, its file and its writer, and to warnings."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import Tensor

from fastclip.norms.monitor.caller import warn
from fastclip.norms.monitor.measure import StepMeasurement, to_host
from fastclip.norms.monitor.sinks import CsvFile, ScalarWriter

COLUMNS = (
    *("step", "grad_norm", "grad_max", "param_norm", "update_ratio", "clip_frequency"),
    *("skipped_steps", "worst_parameter"),
)
PART = "grad_norm/"  # before the name of a part of the model, in its column


class _Row(NamedTuple):
    """Numbers on their way to the host, and what they are of."""

    step: int
    names: list[str]  # of the gradients
    buckets: list[str]
    host: Tensor
    event: Any  # after which they are there; None: they are there now


class Record:
    """Rows in the order of their steps.

    Args:
        sinks: what each row is written to; one that fails warns once, and stops no training.
        vanishing, exploding: bounds of the gradient norm outside which a warning is given.
        is_quiet: give no warnings about norms.
    """

    def __init__(
        self,
        sinks: Sequence[CsvFile | ScalarWriter],
        vanishing: float,
        exploding: float,
        is_quiet: bool,
    ) -> None:
        self.rows: list[dict[str, Any]] = []
        self._sinks, self._failed = sinks, set[int]()
        self._vanishing, self._exploding, self._is_quiet = vanishing, exploding, is_quiet
        self._on_the_way: deque[_Row] = deque()

    def add(self, measured: StepMeasurement, observed: Tensor | None, counts: list[Tensor]) -> None:
        """Sends a step's numbers to the host: see :meth:`StepMeasurement.values`."""
        values = measured.values(observed, *counts)
        row = _Row(measured.number, measured.names, measured.buckets, *to_host(values))
        self._on_the_way.append(row)
        self.take_arrived(wait=False)

    def provisional(
        self, measured: StepMeasurement, observed: Tensor | None, counts: list[Tensor]
    ) -> list[dict[str, Any]]:
        """The row as `add` would record it now, if its numbers are on the host."""
        values = measured.values(observed, *counts)
        if self._on_the_way or values.device.type != "cpu":
            return []
        return [_as_dict(_Row(measured.number, measured.names, measured.buckets, values, None))]

    def take_arrived(self, *, wait: bool) -> None:
        """Records, oldest first, what has reached the host; with `wait` all."""
        while self._on_the_way:
            event = self._on_the_way[0].event
            if wait and event is not None:
                event.synchronize()
            elif event is not None and not event.query():
                return
            self._record(_as_dict(self._on_the_way.popleft()))

    def _record(self, row: dict[str, Any]) -> None:
        self.rows.append(row)
        for sink in self._sinks:
            try:
                sink.write(row)
            except Exception as error:  # a full disk or a closed writer stops no training
                if id(sink) not in self._failed:
                    self._failed.add(id(sink))
                    warn(f"step {row['step']}: {sink} takes no row, and may miss more: {error!r}")
        norm, step, worst = row["grad_norm"], row["step"], row["worst_parameter"]
        if self._is_quiet:
            return
        if not norm <= self._exploding:
            warn(f"step {step}: gradient norm {norm:.3g}, most in {worst}")
        elif norm < self._vanishing:
            warn(f"step {step}: gradients vanish, norm {norm:.3g}")


def _as_dict(row: _Row) -> dict[str, Any]:
    worst, *values = row.host.tolist()
    keys = [*COLUMNS[1:-1], *(PART + bucket for bucket in row.buckets)]
    found: dict[str, Any] = {"step": row.step, **dict(zip(keys, values, strict=True))}
    return {**found, "worst_parameter": row.names[int(worst)] if row.names else ""}
