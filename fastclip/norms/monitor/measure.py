"""One measured step: the gradients that it used, and how far it moved the parameters."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fastclip.norms.monitor.observed import gpu_if_any, send
from fastclip.norms.orders import grad_norms_of, norms_of, total_of
from fastclip.ops.grad_norm.reference import moved


class Watched(NamedTuple):
    """A parameter of the optimizer."""

    name: str
    parameter: Tensor
    bucket: str | None  # under which its norm is charted beside the total


class StepMeasurement:
    """Numbers of one step, on their devices.

    Args:
        number: of the step.
        watched: the parameters, of which it keeps a copy until the step ends.
    """

    @torch.no_grad()
    def __init__(self, number: int, watched: Sequence[Watched]) -> None:
        self.number = number
        self._watched = watched
        self._before = [w.parameter.detach().clone() for w in watched]
        self._rows: list[int] = []
        self._grads = torch.zeros(2, 0, dtype=torch.float64, device="cpu")
        self._weights = self._moved = self._grads[0]

    @property
    def names(self) -> list[str]:
        """The names of the gradients."""
        return [self._watched[row].name for row in self._rows]

    @property
    def buckets(self) -> list[str]:
        """The buckets of the gradients, in the order of :meth:`values`."""
        found = dict.fromkeys(self._watched[row].bucket for row in self._rows)
        return [bucket for bucket in found if bucket is not None]

    @torch.no_grad()
    def read_gradients(self, scale: Tensor | None) -> None:
        """Takes the gradients' norms.

        Args:
            scale: by which the optimizer is to divide them in its step, 0-d.
        """
        grads = [w.parameter.grad for w in self._watched]
        self._rows = [row for row, grad in enumerate(grads) if grad is not None]
        self._grads = grad_norms_of([w.parameter for w in self._watched], 2.0, math.inf)
        if scale is not None:
            self._grads = self._grads / send(scale, self._grads.device)

    @torch.no_grad()
    def read_parameters(self) -> None:
        """Takes the parameters' norms, and those of what the step added to them."""
        after = [w.parameter.detach() for w in self._watched]
        self._weights = norms_of(after, 2.0)[0]
        before, self._before = self._before, []
        _subtract_(before, after)
        self._moved = norms_of(before, 2.0)[0]
        self._watched = [w._replace(parameter=_NOTHING) for w in self._watched]

    @torch.no_grad()
    def values(self, observed: Tensor | None, frequency: Tensor, skipped: Tensor) -> Tensor:
        """Index of the worst gradient, the row's numbers, the buckets' norms: [n], float64."""
        norms, largest = self._grads
        given = [] if observed is None else [observed]
        home = gpu_if_any([norms, self._weights, frequency, skipped, *given])
        numbers = [
            norms.nan_to_num(math.inf).argmax() if len(norms) else norms.new_zeros(()),
            total_of(norms, 2.0) if observed is None else observed,
            total_of(largest, math.inf),
            total_of(self._weights, 2.0),
            self._update_ratio(),
            frequency,
            skipped,
            *self._bucket_norms(norms),
        ]
        return torch.stack([send(number, home) for number in numbers])

    def _update_ratio(self) -> Tensor:
        """The median of |change| / |parameter| over those that had a gradient; NaN for none."""
        ratios = self._moved / self._weights.clamp(min=1e-12)
        if len(self._rows) < len(ratios):
            ratios = ratios[moved(torch.tensor(self._rows, dtype=torch.long), ratios.device)]
        return ratios.median() if len(ratios) else ratios.new_full((), math.nan)

    def _bucket_norms(self, norms: Tensor) -> list[Tensor]:
        rows: dict[str | None, list[int]] = {}
        for i, row in enumerate(self._rows):
            rows.setdefault(self._watched[row].bucket, []).append(i)
        return [
            total_of(norms[moved(torch.tensor(mine), norms.device)], 2.0)
            for bucket, mine in rows.items()
            if bucket is not None
        ]


_NOTHING = torch.empty(0, device="cpu")


def _subtract_(before: list[Tensor], after: list[Tensor]) -> None:
    """In place: one copy of the parameters, not two. torch's foreach takes no DTensors mixed in."""
    plain = [i for i, t in enumerate(after) if type(t) in (Tensor, nn.Parameter)]
    if plain:
        torch._foreach_sub_([before[i] for i in plain], [after[i] for i in plain])
    for i in sorted(set(range(len(after))).difference(plain)):
        before[i].sub_(after[i])


def to_host(values: Tensor) -> tuple[Tensor, Any]:
    """(the values on the host, the event after which they are there; None: they are there now)."""
    if values.device.type == "cpu":
        return values, None
    host = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)  # else the copy waits
    host.copy_(values, non_blocking=True)
    device_module = torch.get_device_module(values.device)
    event = device_module.Event()
    event.record(device_module.current_stream(values.device))
    return host, event
