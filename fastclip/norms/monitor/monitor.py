"""NormMonitor: what the norms of a training run do, at a few reads of memory now and then."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, SupportsFloat, TypeAlias

import torch
from torch import Tensor

from fastclip import optimizers
from fastclip.norms.monitor import checks, ranks
from fastclip.norms.monitor.measure import StepMeasurement
from fastclip.norms.monitor.observed import GradMark, Observed, as_scalar
from fastclip.norms.monitor.record import COLUMNS, PART, Record
from fastclip.norms.monitor.sinks import CsvFile, ScalarWriter, scalars
from fastclip.norms.monitor.watch import By, Watch
from fastclip.norms.named import Named

_HookResult: TypeAlias = tuple[tuple[Any, ...], dict[str, Any]] | None


class NormMonitor:
    """Charts gradient norms, parameter norms, the update ratio, and clipped and skipped steps.

    Give it the optimizer, and hand each step's norm to :meth:`observe`; every `every` steps it
    measures around ``optimizer.step()`` by itself::

        with NormMonitor(model, optimizer, every=50, max_norm=1.0, csv="norms.csv") as monitor:
            for batch in data:
                loss(batch).backward()
                monitor.observe(fastclip.clip_grad_norm_(model.parameters(), 1.0))
                optimizer.step()

    A row is of one call of ``optimizer.step()``, of the gradients that this call used, and of the
    parameters that this optimizer holds: `grad_norm` is the norm that was observed for the step, or
    else that of the gradients as the optimizer took them (clipped, unscaled; made by a closure);
    `grad_max` the largest magnitude in those; `param_norm` of the parameters after the step;
    `update_ratio` the median of ``|change| / |parameter|`` over those with a gradient;
    `clip_frequency` the share of observed norms over `max_norm` since the row before, NaN without a
    limit; `skipped_steps` how many steps since then were skipped for gradients that are not finite;
    `worst_parameter` has the largest gradient.

    A norm observed before the step, inside its closure, or after it but before the next backward
    (:func:`fastclip.clip_grads_in_step_`), is of that step. A step without one waits for it, so its
    row is written at the next step, :meth:`flush` or :meth:`close`.

    Nothing here waits for a GPU. What is measured there is recorded (`history`, CSV, TensorBoard,
    warnings) at a later step, once its numbers have reached the host, and at the latest by
    :meth:`flush` or :meth:`close`. A measured step holds a copy of the watched parameters until it
    ends: as many bytes as they have (105 MB for 26.2M in float32).

    With several processes all make a monitor: norms of sharded parameters are reduced over ranks,
    every rank has the `history`, and rank 0 alone writes and warns.

    Args:
        model: a module, or (name, parameter) pairs, which name the optimizer's parameters.
        optimizer: whose steps are measured; one that a trainer has wrapped is found inside.
        every: steps between two measurements.
        max_norm: the limit that clips, for the clip frequency; None where it is not known.
        csv: a file that gets a row each measurement; an existing one of the same columns is
            continued, its folder is made. One that fails later warns once.
        writer: a TensorBoard SummaryWriter (anything with ``add_scalar``).
        vanishing, exploding: bounds of the gradient norm outside which a warning is given.
        by: chart gradient norms of parts of the model too, as ``grad_norm/<part>``: "depth" for
            modules, "group" for the optimizer's groups, or a function of a parameter's name.
        depth: for ``by="depth"``: how many components of a module's path name a part.

    Raises:
        ValueError: `every`, `max_norm`, `by`, `depth` or a bound is out of range; the CSV has other
            columns; the optimizer holds none of the model's parameters, or FSDP1 has sharded them.
        TypeError: an argument is of another type.
        RuntimeError: the parameters are sharded, and other ranks made no monitor within a minute.
    """

    def __init__(
        self,
        model: Named,
        optimizer: Any,
        every: int = 50,
        *,
        max_norm: float | None = None,
        csv: str | Path | None = None,
        writer: Any = None,
        vanishing: float = 1e-7,
        exploding: float = 1e4,
        by: By = None,
        depth: int = 1,
    ) -> None:
        self.every = checks.count("every", every)
        self.max_norm = None if max_norm is None else checks.bound("max_norm", max_norm)
        self.vanishing = checks.bound("vanishing", vanishing)
        self.exploding = checks.bound("exploding", exploding)
        inner = optimizers.unwrap(optimizer)
        self._watch: Watch | None = Watch(model, inner, by, checks.count("depth", depth))
        is_first = ranks.is_first()
        columns = (*COLUMNS, *(PART + bucket for bucket in self._watch.buckets()))
        sinks: list[CsvFile | ScalarWriter] = [] if writer is None else [ScalarWriter(writer)]
        if csv is not None and is_first:
            sinks.append(CsvFile(csv, columns))
        ranks.meet(self._watch.parameters(), self.every)
        sinks = sinks if is_first else []
        self._record = Record(sinks, self.vanishing, self.exploding, not is_first)
        self._step = 0
        self._stepping = False
        self._seen = Observed(self.max_norm)
        self._has_norm = self._next_has_norm = False  # whether one was observed for the step
        self._mark: GradMark | None = None  # of the step that has been
        self._now: StepMeasurement | None = None
        self._waiting: StepMeasurement | None = None  # for a norm that may come after its step
        self._hooks = [
            inner.register_step_pre_hook(self._before_step),
            inner.register_step_post_hook(self._after_step),
        ]

    @property
    def history(self) -> list[dict[str, Any]]:
        """The rows so far, oldest first; the last may still get the norm of its step."""
        return [*self._record.rows, *self._provisional()]

    @property
    def is_measuring(self) -> bool:
        """Whether the step under way is measured; between steps, whether the next one will be."""
        return (self._step + (not self._stepping)) % self.every == 0

    def observe(self, total_norm: Tensor | SupportsFloat) -> None:
        """Takes the norm that clipping returned at this step; a tensor stays on its device.

        Args:
            total_norm: one real number. A DTensor is gathered: every rank must call.

        Raises:
            ValueError, TypeError: it is not one real number; nothing is kept of it.
        """
        norm = as_scalar(total_norm)
        if self._watch is None:
            return  # closed
        if self._stepping:
            self._has_norm = True
        elif not self._has_norm and self._mark is not None and self._mark.is_current():
            self._has_norm = True
            self._seen.add(norm)
            self._settle()
            return
        else:
            self._settle()
            if self._next_has_norm and self._seen.last is not None:  # whose step did not come
                self._seen.skip(~self._seen.last.isfinite())
            self._next_has_norm = True
        self._seen.add(norm)

    def log_dict(self) -> dict[str, float]:
        """The numbers of the newest row, under ``norms/``, its step too: for any logger.

        Empty before the first row. It changes every `every` steps, and names the step it is of.
        """
        rows = self.history
        return {"norms/step": float(rows[-1]["step"]), **scalars(rows[-1])} if rows else {}

    def log_rows(self, start: int = 0) -> list[tuple[int, dict[str, float]]]:
        """(step, its numbers under ``norms/``) of each recorded row from the `start`-th on."""
        return [(row["step"], scalars(row)) for row in self._record.rows[start:]]

    def state_dict(self) -> dict[str, Any]:
        """The step number and what was counted since the last row; waits for a GPU."""
        return {"step": self._step, "counts": self._seen.state()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from the step of a :meth:`state_dict`. Rows of a file are left as they are.

        Raises:
            ValueError: `state` has no step.
        """
        step = state.get("step")
        if not isinstance(step, int) or step < 0:
            raise ValueError(f"state must hold the step, a whole number, got {step!r}")
        self._step = step
        self._seen.load(state.get("counts", (0, 0, 0)))

    def flush(self) -> None:
        """Records all that was measured; waits for what is still on a GPU."""
        self._settle()
        self._record.take_arrived(wait=True)

    def close(self) -> None:
        """Stops watching, and records what is still on its way. Closing again does nothing."""
        for hook in self._hooks:
            hook.remove()
        self.flush()
        self._hooks, self._watch, self._mark, self._now = [], None, None, None

    def __enter__(self) -> NormMonitor:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _before_step(
        self, optimizer: torch.optim.Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> _HookResult:
        self._settle()  # a norm that comes from here on is not of the step before
        self._step += 1
        self._stepping, self._now, self._mark = True, None, None
        self._has_norm, self._next_has_norm = self._next_has_norm, False
        found_inf, scale = (getattr(optimizer, n, None) for n in ("found_inf", "grad_scale"))
        if isinstance(found_inf, Tensor):
            self._seen.skip(found_inf)
        if self._step % self.every or self._watch is None:
            return None
        self._now = now = StepMeasurement(self._step, self._watch.now())

        def then_measured(closure: Callable[[], Any]) -> Any:
            loss = closure()
            now.read_gradients(None)
            return loss

        wrapped = checks.with_closure(args, kwargs, then_measured)
        if wrapped is None:
            now.read_gradients(scale if isinstance(scale, Tensor) else None)
        return wrapped

    def _after_step(self, *_: Any) -> None:
        self._stepping = False
        if self._watch is None:
            return
        self._mark = GradMark(self._watch.parameters())
        if self._now is not None:
            self._now.read_parameters()
            self._waiting, self._now = self._now, None
            if self._has_norm:
                self._settle()
        self._record.take_arrived(wait=False)

    def _settle(self) -> None:
        """No later norm is of the step that has been: its numbers go to the host."""
        measured, self._waiting = self._waiting, None
        if measured is not None:
            counts = self._seen.take()
            self._record.add(measured, self._seen.last if self._has_norm else None, counts)

    def _provisional(self) -> list[dict[str, Any]]:
        """The row of a step that waits for its norm, where its numbers are on the host."""
        if self._waiting is None:
            return []
        return self._record.provisional(self._waiting, None, self._seen.peek())
