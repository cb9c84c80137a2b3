"""NormMonitor as a callback of Lightning's Trainer. Needs `lightning`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch

from fastclip import optimizers
from fastclip.clipping.clip import get_total_norm
from fastclip.norms.monitor.monitor import NormMonitor


class NormMonitorCallback(pl.Callback):
    """Charts norms in the Trainer's loggers: a :class:`fastclip.NormMonitor` for each optimizer.

    The gradient norm is that before the Trainer's clipping, and is taken at the steps that are
    measured. The clip frequency is the share of those over `gradient_clip_val`, unless the Trainer
    clips by value. A checkpoint keeps the step numbers.

    Args:
        every: steps between two measurements.
        csv: a file that gets each row too; with several optimizers one file each, ``name.1.csv``
            for the second.
        **options: further arguments of :class:`fastclip.NormMonitor`: `by`, `depth`, `vanishing`,
            `exploding`, `max_norm` where clipping is not the Trainer's.

    Raises:
        ValueError, TypeError: when training begins, as :class:`fastclip.NormMonitor`.
    """

    def __init__(self, every: int = 50, *, csv: str | Path | None = None, **options: Any) -> None:
        self._every, self._csv, self._options = every, csv, options
        self.monitors: list[NormMonitor] = []
        self._of: dict[int, NormMonitor] = {}  # by the optimizer's id
        self._logged: list[int] = []
        self._states: list[dict[str, Any]] = []

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        options = {"max_norm": _limit(trainer), **self._options}
        inner = [optimizers.unwrap(optimizer) for optimizer in trainer.optimizers]
        self.monitors = [
            NormMonitor(pl_module, optimizer, self._every, csv=self._path(i), **options)
            for i, optimizer in enumerate(inner)
        ]
        self._of = {id(o): monitor for o, monitor in zip(inner, self.monitors, strict=True)}
        self._logged = [0] * len(inner)
        for monitor, state in zip(self.monitors, self._states, strict=False):
            monitor.load_state_dict(state)

    def on_before_optimizer_step(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        optimizer: torch.optim.Optimizer,
    ) -> None:
        inner = optimizers.unwrap(optimizer)
        monitor = self._of.get(id(inner))
        scaled = (
            getattr(inner, "_step_supports_amp_scaling", False) and _scaler(trainer) is not None
        )
        if monitor is None or not monitor.is_measuring or scaled:
            return  # a fused optimizer unscales in its step, and the monitor with it
        parameters = [p for group in inner.param_groups for p in group["params"]]
        monitor.observe(get_total_norm([p.grad for p in parameters if p.grad is not None]))

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        self._log(trainer)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._close()
        self._log(trainer)

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        self._close()

    def state_dict(self) -> dict[str, Any]:
        return {"monitors": [monitor.state_dict() for monitor in self.monitors]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._states = state_dict["monitors"]

    def _log(self, trainer: pl.Trainer) -> None:
        for number, monitor in enumerate(self.monitors):
            rows = monitor.log_rows(self._logged[number])
            self._logged[number] += len(rows)
            added = f"optimizer_{number}/" if len(self.monitors) > 1 else ""
            for step, values in rows:
                for logger in trainer.loggers:
                    named = {added + name: value for name, value in values.items()}
                    logger.log_metrics(named, step=step)

    def _path(self, number: int) -> Path | None:
        path = None if self._csv is None else Path(self._csv)
        return path if path is None or not number else path.with_suffix(f".{number}{path.suffix}")

    def _close(self) -> None:
        for monitor in self.monitors:
            monitor.close()


def _limit(trainer: pl.Trainer) -> float | None:
    algorithm = trainer.gradient_clip_algorithm
    by_norm = algorithm is None or str(getattr(algorithm, "value", algorithm)) == "norm"
    return float(trainer.gradient_clip_val) if trainer.gradient_clip_val and by_norm else None


def _scaler(trainer: pl.Trainer) -> Any:
    return getattr(trainer.precision_plugin, "scaler", None)
