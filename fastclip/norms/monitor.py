"""NormMonitor: what the norms of a training run do, at a few reads of memory now and then."""

from __future__ import annotations

import csv as csv_module
import math
import warnings
from collections import deque
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fastclip.norms.report import norms_of

COLUMNS = ("step", "grad_norm", "param_norm", "update_ratio", "clip_frequency", "worst_parameter")


class NormMonitor:
    """Watches gradient norm, parameter norm, update-to-weight ratio and the share of clipped steps.

    Give it the optimizer, and hand each step's norm to :meth:`observe`; every `every` steps it
    measures around ``optimizer.step()`` by itself::

        monitor = NormMonitor(model, optimizer, every=50, max_norm=1.0, csv="norms.csv")
        for batch in data:
            loss(batch).backward()
            monitor.observe(fastclip.clip_grad_norm_(model.parameters(), 1.0))
            optimizer.step()
        monitor.close()

    Nothing here waits for a GPU. What is measured there is recorded (`history`, CSV, TensorBoard,
    warnings) at a later step, once its five numbers have reached the host, and at the latest by
    :meth:`flush` or :meth:`close`; on the CPU at the step itself. Rows name the step they are of.

    A measured step holds a copy of the watched parameters until it ends: as many bytes as they have
    (105 MB for 26.2M in float32), and nothing between measurements.

    Args:
        model: whose parameters are watched, those that require a gradient now.
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
        self._on_the_way: deque[tuple[int, list[str], Tensor, Any]] = deque()
        self._named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        self._csv = None if csv is None else Path(csv)
        self._writer = writer
        self._hooks = [
            optimizer.register_step_pre_hook(self._before_step),
            optimizer.register_step_post_hook(self._after_step),
        ]

    def observe(self, total_norm: Tensor) -> None:
        """Takes the norm that clipping returned at this step, 0-d; it stays on its device."""
        self._observed.append(total_norm.detach())

    def flush(self) -> None:
        """Waits for what was measured and is still on a GPU, and records it."""
        self._record_arrived(wait=True)

    def close(self) -> None:
        """Stops watching, and records what is still on its way. Closing again does nothing."""
        for hook in self._hooks:
            hook.remove()
        self.flush()

    @torch.no_grad()
    def _before_step(self, *_: Any) -> None:
        self._step += 1
        self._before = None  # of a step that raised
        if self._step % self.every == 0:
            grads = [(name, p.grad) for name, p in self._named if p.grad is not None]
            self._grad_names = [name for name, _ in grads]
            self._grad_norms = norms_of([grad for _, grad in grads], 2.0)[0]
            self._before = [p.detach().clone() for _, p in self._named]

    @torch.no_grad()
    def _after_step(self, *_: Any) -> None:
        if self._before is not None:
            host, event = _to_host(self._measured(self._before))
            self._before = None
            self._on_the_way.append((self._step, self._grad_names, host, event))
        self._record_arrived(wait=False)

    def _measured(self, before: list[Tensor]) -> Tensor:
        """Index of the worst gradient, then COLUMNS[1:5]: [5], float64, on the devices' own."""
        weights = [p.detach() for _, p in self._named]
        sizes, grads = norms_of(weights, 2.0)[0], self._grad_norms
        if before:
            torch._foreach_sub_(before, weights)  # in place: one copy of the parameters, not two
        ratios = norms_of(before, 2.0)[0] / sizes.clamp(min=1e-12)
        grad_norm, none = torch.linalg.vector_norm(grads), sizes.new_zeros(())
        home = _gpu_if_any([sizes, grads, *self._observed])
        clipped = none + math.nan
        if self._observed:
            observed = torch.stack([_send(norm, home) for norm in self._observed])
            grad_norm, clipped = observed[-1], (~(observed <= self.max_norm)).double().mean()
            self._observed = []
        values = [
            grads.nan_to_num(math.inf).argmax() if len(grads) else none,
            grad_norm,
            torch.linalg.vector_norm(sizes),
            ratios.median() if len(ratios) else none,
            clipped,
        ]
        return torch.stack([_send(value, home) for value in values])

    def _record_arrived(self, *, wait: bool) -> None:
        """Records, oldest first, the measurements that have reached the host."""
        while self._on_the_way:
            step, names, host, event = self._on_the_way[0]
            if wait and event is not None:
                event.synchronize()
            elif event is not None and not event.query():
                return
            self._on_the_way.popleft()
            worst, *values = host.tolist()
            row = {"step": step, **dict(zip(COLUMNS[1:5], values, strict=True))}
            self._record({**row, "worst_parameter": names[int(worst)] if names else ""})

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


def _gpu_if_any(tensors: Iterable[Tensor]) -> torch.device:
    """Where numbers of several devices meet without waiting: copies to a GPU are only queued."""
    return max((t.device for t in tensors), key=lambda device: device.type != "cpu")


def _send(number: Tensor, home: torch.device) -> Tensor:
    return number.reshape(()).to(home, torch.float64, non_blocking=True)


def _to_host(values: Tensor) -> tuple[Tensor, Any]:
    """(the values on the host, the event after which they are there; None: they are there now)."""
    if values.device.type == "cpu":
        return values, None
    host = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)  # else the copy waits
    host.copy_(values, non_blocking=True)
    device_module = torch.get_device_module(values.device)
    event = device_module.Event()
    event.record(device_module.current_stream(values.device))
    return host, event
