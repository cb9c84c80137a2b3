"""Norms of each layer during a run, by fastclip.NormMonitor: for a CSV file and for loggers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

import fastclip

DEPTH = 2  # components of a module's name: resnet.layer1, transformer.blocks, up_c.residual


class LayerNorms:
    """Every so many steps the norms of gradients, by part of the network, and of the update.

    Args:
        model: the network.
        optimizer: whose steps are measured.
        every: steps between two measurements.
        max_norm: the limit of clipping, for the share of clipped steps; None without one.
        state: of the run that is resumed, as `state` gave it.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        every: int,
        max_norm: float | None,
        state: Mapping[str, Any] | None = None,
    ) -> None:
        self.monitor = fastclip.NormMonitor(
            model, optimizer, every, max_norm=max_norm, by="depth", depth=DEPTH
        )
        self.rows: list[dict[str, Any]] = []
        self._taken = 0  # rows of the monitor
        self._made = 0  # steps of the optimizer
        self._step_of: dict[int, int] = {}  # the run's step of a measured one of the optimizer
        if state is not None:
            self.rows, self._made = list(state["rows"]), state["made"]
            self.monitor.load_state_dict(state["monitor"])

    def observe(self, norm: Tensor, step: int) -> None:
        """After an optimizer step: its gradient norm before clipping, and the run's step."""
        self._made += 1
        if self._made % self.monitor.every == 0:
            self._step_of[self._made] = step
        self.monitor.observe(norm)

    def take(self) -> list[dict[str, Any]]:
        """The rows since the last call that have reached the host; they are in `rows` too."""
        new = self.monitor.history[self._taken :]
        self._taken += len(new)
        # A step that the run left out is none of the optimizer's: the two counts may differ.
        found = [{**row, "step": self._step_of.pop(row["step"], row["step"])} for row in new]
        self.rows += found
        return found

    def state(self) -> dict[str, Any]:
        """For the checkpoint."""
        self.monitor.flush()
        self.take()
        return {"rows": self.rows, "made": self._made, "monitor": self.monitor.state_dict()}

    def close(self) -> None:
        """Measure no more."""
        self.monitor.close()
        self.take()


def named(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row under names that loggers group by, such as norms/grad_norm/resnet.layer1."""
    return {f"norms/{name}": value for name, value in row.items() if name != "step"}
