"""NormMonitor: what the norms of a training run do, at a few reads of memory now and then."""

from __future__ import annotations

import csv as csv_module
import math
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fastclip.norms import norms_of

COLUMNS = ("step", "grad_norm", "param_norm", "update_ratio", "clip_frequency", "worst_parameter")


class NormMonitor:
    """Watches gradient norm, parameter norm, update-to-weight ratio and how often clipping bites.

    Give it the optimizer, and hand each step's norm to :meth:`observe`; every `every` steps it
    measures around ``optimizer.step()`` by itself::

        monitor = NormMonitor(model, optimizer, every=50, max_norm=1.0, csv="norms.csv")
        for batch in data:
            loss(batch).backward()
            monitor.observe(fastclip.clip_grad_norm_(model.parameters(), 1.0))
            optimizer.step()

    Args:
        model: whose parameters are watched.
        optimizer: whose step is measured, through its step hooks.
        every: steps between two measurements.
        max_norm: the limit that clips, for the clip frequency.
        csv: a file that gets a row each measurement; an existing one is continued.
        writer: a TensorBoard SummaryWriter (anything with ``add_scalar``).
        vanishing, exploding: bounds of the gradient norm outside which a warning is given.

    Raises:
        ValueError: `every` is not positive.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        every: int = 50,
        *,
        max_norm: float = math.inf,
        csv: str | Path | None = None,
        writer: Any = None,
        vanishing: float = 1e-7,
        exploding: float = 1e4,
    ) -> None:
        if every < 1:
            raise ValueError(f"every must be at least 1, got {every!r}")
        self.every, self.max_norm = every, max_norm
        self.vanishing, self.exploding = vanishing, exploding
        self.history: list[dict[str, Any]] = []
        self._step = 0
        self._observed: list[Tensor] = []
        self._before: list[Tensor] | None = None
        self._named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        self._csv = None if csv is None else Path(csv)
        self._writer = writer
        self._hooks = [
            optimizer.register_step_pre_hook(self._before_step),
            optimizer.register_step_post_hook(self._after_step),
        ]

    def observe(self, total_norm: Tensor) -> None:
        """Takes the norm that clipping returned at this step; it stays on its device until due."""
        self._observed.append(total_norm.detach())

    def close(self) -> None:
        """Stops watching."""
        for hook in self._hooks:
            hook.remove()

    @torch.no_grad()
    def _before_step(self, *_: Any) -> None:
        self._step += 1
        if self._step % self.every == 0:
            self._grads = [(name, p.grad) for name, p in self._named if p.grad is not None]
            self._grad_norms = norms_of([grad for _, grad in self._grads], 2.0)[0]
            self._before = [p.detach().clone() for _, p in self._named]

    @torch.no_grad()
    def _after_step(self, *_: Any) -> None:
        if self._before is None:
            return
        weights = [p.detach() for _, p in self._named]
        sizes = norms_of(weights, 2.0)[0]
        updates = torch._foreach_sub(weights, self._before)
        self._before = None
        ratios = norms_of(list(updates), 2.0)[0] / sizes.clamp(min=1e-12)
        grad_norms, grads = self._grad_norms, self._grads
        self._grads = []
        norm = torch.linalg.vector_norm(grad_norms).item()
        worst = "" if not grads else grads[int(grad_norms.nan_to_num(math.inf).argmax())][0]
        self._record(
            {
                "step": self._step,
                "grad_norm": self._observed[-1].item() if self._observed else norm,
                "param_norm": torch.linalg.vector_norm(sizes).item(),
                "update_ratio": ratios.median().item() if len(ratios) else 0.0,
                "clip_frequency": self._clip_frequency(),
                "worst_parameter": worst,
            }
        )

    def _clip_frequency(self) -> float:
        if not self._observed:
            return math.nan
        norms = torch.stack([norm.double() for norm in self._observed])
        self._observed = []
        return (~(norms <= self.max_norm)).double().mean().item()

    def _record(self, row: dict[str, Any]) -> None:
        self.history.append(row)
        if self._csv is not None:
            new = not self._csv.exists()
            with self._csv.open("a", newline="") as file:
                writer = csv_module.DictWriter(file, COLUMNS, lineterminator="\n")
                if new:
                    writer.writeheader()
                writer.writerow(row)
        if self._writer is not None:
            for name in COLUMNS[1:5]:
                self._writer.add_scalar(f"norms/{name}", row[name], row["step"])
        norm, step, worst = row["grad_norm"], row["step"], row["worst_parameter"]
        if not norm <= self.exploding:
            warnings.warn(f"step {step}: gradient norm {norm:.3g}, most in {worst}", stacklevel=2)
        elif norm < self.vanishing:
            warnings.warn(f"step {step}: gradients vanish, norm {norm:.3g}", stacklevel=2)
