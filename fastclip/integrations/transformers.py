"""NormMonitor as a callback of transformers' Trainer. Needs `transformers`."""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from fastclip.norms.monitor.monitor import NormMonitor


class NormMonitorCallback(TrainerCallback):
    """Puts norms into the Trainer's logs: a :class:`fastclip.NormMonitor` of its optimizer.

    The Trainer clips before a callback sees the gradients, and tells their norm before only where
    it logs: with ``every`` equal to ``logging_steps`` (the default) every row has that norm. At
    other steps `grad_norm` is of the gradients as the optimizer took them, clipped. The clip
    frequency is the share of the logged norms over `max_grad_norm`.

    Each row goes into ``trainer.state.log_history`` under ``norms/``, and into the logs that later
    callbacks see: reports of TensorBoard and others come before it in the list, so give those
    numbers a `writer`, or a `csv`.

    Args:
        every: steps between two measurements; None for the Trainer's ``logging_steps``.
        **options: further arguments of :class:`fastclip.NormMonitor`: `csv`, `writer`, `by`, ...

    Raises:
        ValueError, TypeError: when training begins, as :class:`fastclip.NormMonitor`.
    """

    def __init__(self, every: int | None = None, **options: Any) -> None:
        self._every, self._options = every, options
        self.monitor: NormMonitor | None = None
        self._logged = 0

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: nn.Module | None = None,
        optimizer: Any = None,
        **_: Any,
    ) -> None:
        every = self._every or max(1, int(args.logging_steps))
        limit = float(args.max_grad_norm) if args.max_grad_norm else None
        if model is None:
            raise ValueError("the Trainer has no model yet: add the callback to its callbacks")
        self.monitor = NormMonitor(model, optimizer, every, **{"max_norm": limit, **self._options})
        self.monitor.load_state_dict({"step": state.global_step})
        self._logged = 0

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **_: Any,
    ) -> None:
        if self.monitor is None or logs is None:
            return
        if "grad_norm" in logs and "loss" in logs:  # of the step that has just been
            self.monitor.observe(logs["grad_norm"])
        self._put_rows(state, logs)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        if self.monitor is not None:
            self.monitor.close()
            self._put_rows(state, {})

    def _put_rows(self, state: TrainerState, logs: dict[str, Any]) -> None:
        assert self.monitor is not None
        rows = self.monitor.log_rows(self._logged)
        self._logged += len(rows)
        for step, values in rows:
            logs.update(values)
            state.log_history.append({**values, "step": step})
