"""What a monitor observes between two rows: norms that clipping returned, skipped steps."""

from __future__ import annotations

import math
import weakref
from collections.abc import Iterable, Sequence
from typing import SupportsFloat

import torch
from torch import Tensor

from fastclip.ops.grad_norm.sharded import plain_norm

_KEPT = 256  # numbers kept before they are counted
_SAMPLE = 8  # gradients looked at


class Observed:
    """Counts since the last row, on the norms' own devices: nothing here waits for one.

    Args:
        max_norm: the limit over which a norm was clipped; None where it is not known.
    """

    def __init__(self, max_norm: float | None) -> None:
        self._max_norm = max_norm
        self.last: Tensor | None = None
        self._norms: list[Tensor] = []
        self._skips: list[Tensor] = []
        self._counts = torch.zeros(3, dtype=torch.float64, device="cpu")  # seen, clipped, skipped

    @torch.no_grad()
    def add(self, norm: Tensor) -> None:
        """A step's norm, 0-d."""
        self.last = norm
        self._norms.append(norm)
        if len(self._norms) >= _KEPT:
            self._count()

    @torch.no_grad()
    def skip(self, found_inf: Tensor) -> None:
        """A step that was skipped where `found_inf` is not 0."""
        self._skips.append((found_inf.detach().reshape(()) != 0).double())
        if len(self._skips) >= _KEPT:
            self._count()

    @torch.no_grad()
    def take(self) -> list[Tensor]:
        """What `peek` gives; counting begins anew."""
        found = self.peek()
        self._counts = torch.zeros(3, dtype=torch.float64, device="cpu")
        return found

    @torch.no_grad()
    def peek(self) -> list[Tensor]:
        """[the share of norms that were clipped, NaN where that is not known; skipped steps]."""
        self._count()
        seen, clipped, skipped = self._counts.unbind()
        return [clipped / seen if self._max_norm is not None else seen * math.nan, skipped]

    def state(self) -> list[float]:
        """The counts, on the host."""
        self._count()
        return self._counts.tolist()

    def load(self, counts: Sequence[float]) -> None:
        """Goes on from counts of `state`."""
        self._norms, self._skips, self.last = [], [], None
        self._counts = torch.tensor(counts, dtype=torch.float64, device="cpu").reshape(3)

    def _count(self) -> None:
        norms, skips = self._norms, self._skips
        self._norms, self._skips = [], []
        if not norms and not skips:
            return
        home = gpu_if_any([self._counts, *norms, *skips])
        values = torch.stack([send(norm, home) for norm in norms]) if norms else None
        seen = torch.zeros(3, dtype=torch.float64, device=home)
        if values is not None:
            seen[0] += len(norms)
            if self._max_norm is not None:
                seen[1] += (~(values <= self._max_norm)).sum()
        if skips:
            seen[2] += torch.stack([send(skip, home) for skip in skips]).sum()
        self._counts = self._counts.to(home, non_blocking=True) + seen


class GradMark:
    """The gradients that a step left, to tell whether those of a later step have come."""

    def __init__(self, parameters: Sequence[Tensor]) -> None:
        """Looks at a few gradients, which are not kept alive."""
        some = parameters[:: max(1, len(parameters) // _SAMPLE)]
        marked = [p for p in some if p.grad is not None]
        marked = marked or [p for p in parameters if p.grad is not None][:_SAMPLE]
        self._parameters, self._marks = parameters, [_mark(p) for p in marked]

    def is_current(self) -> bool:
        """Whether the gradients are still those, or gone, and not those of a later step."""
        if any(_is_new(*mark) for mark in self._marks):
            return False
        if any(p.grad is not None for p, *_ in self._marks):
            return True
        return all(p.grad is None for p in self._parameters)


def _mark(parameter: Tensor) -> tuple[Tensor, weakref.ref[Tensor], int]:
    grad = parameter.grad
    assert grad is not None
    return parameter, weakref.ref(grad), _version(grad)


def _is_new(parameter: Tensor, before: weakref.ref[Tensor], version: int) -> bool:
    grad = parameter.grad
    return grad is not None and (before() is not grad or _version(grad) != version)


def _version(grad: Tensor) -> int:
    return 0 if grad.is_inference() else grad._version  # inference tensors do not count


def as_scalar(norm: Tensor | SupportsFloat) -> Tensor:
    """A norm as a 0-d tensor of its own, on its device; a DTensor is gathered, on all ranks.

    Raises:
        ValueError: a tensor of several elements, or of none.
        TypeError: not a real number.
    """
    if not isinstance(norm, Tensor):
        if not isinstance(norm, SupportsFloat) or isinstance(norm, str):
            raise TypeError(f"total_norm must be a tensor or a number, got {type(norm).__name__}")
        return torch.tensor(float(norm), dtype=torch.float64, device="cpu")
    if norm.numel() != 1:
        raise ValueError(
            f"total_norm must be one number, as clip_grad_norm_ returns it, got {norm.numel()} "
            f"(shape {tuple(norm.shape)})"
        )
    if norm.is_complex() or norm.dtype == torch.bool:
        raise TypeError(f"total_norm must be a real number, got {norm.dtype}")
    plain = plain_norm(norm.detach())
    # A copy, since a captured graph writes the next norm into the same memory.
    return (norm.detach().as_subclass(Tensor) if plain is None else plain).reshape(()).clone()


def gpu_if_any(tensors: Iterable[Tensor]) -> torch.device:
    """Where numbers of several devices meet without waiting: copies to a GPU are only queued."""
    return max((t.device for t in tensors), key=lambda device: device.type != "cpu")


def send(number: Tensor, home: torch.device) -> Tensor:
    """A 0-d number in float64, queued to another device."""
    return number.reshape(()).to(home, torch.float64, non_blocking=True)
