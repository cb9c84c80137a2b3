"""csrc/cuda's kernels, called one by one with torch CPU tensors; and tensors to call them with."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from cuda_on_host import DTYPES

OF_NORM, NUMBER, OF_TENSOR = 0, 1, 2  # as cuda::Factor


def randn(numel: int, dtype: torch.dtype, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(numel, generator=generator, dtype=torch.float64).to(dtype)


def guarded(x: torch.Tensor, offset: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(a copy of x at `offset` elements past a 16-byte boundary, the NaN-filled memory round it)"""
    memory = torch.full((x.numel() + 64,), math.nan, dtype=x.dtype)
    start = -memory.data_ptr() % 16 // x.element_size() + 16 + offset
    view = memory[start : start + x.numel()]
    view.copy_(x)
    return view, memory


def _units_of(grad: Tensor) -> tuple[int, int]:
    """(units, elements of each)"""
    units = grad.shape[0] if grad.ndim > 1 else 1
    return units, grad.numel() // units


class Kernels:
    """The launches on a device of `multiprocessors` x `blocks_each` resident blocks."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self.library = library
        self.device()

    def device(self, multiprocessors: int = 3, blocks_each: int = 2, seed: int = 0) -> None:
        self.library.set_device(multiprocessors, blocks_each, seed, False)

    def norm(
        self,
        tensors: Sequence[Tensor],
        p: float = 2.0,
        max_norm: float = math.inf,
        total_dtype: torch.dtype = torch.float64,
        device_index: int = 0,
    ) -> dict[str, Any]:
        """Every output of one call; the work buffer starts as NaN, as memory from torch may."""
        results: dict[str, Any] = {}
        for per_tensor in (False, True):
            work = self._work(tensors)
            total = torch.full((), math.nan, dtype=total_dtype)
            norms = torch.full((len(tensors),), math.nan, dtype=torch.float64)
            self._norm(
                tensors, p, max_norm, work, total, norms if per_tensor else None, None, device_index
            )
            found = {"norm": work[1].item(), "factor": work[2].item(), "total": total}
            results |= {"each_" + k: v for k, v in found.items()} if per_tensor else found
        return results | {"norms": norms}

    def norms(self, tensors: Sequence[Tensor], p: float, units: Tensor | None = None) -> Tensor:
        """The norm of each tensor, of any order."""
        norms = torch.full((len(tensors),), math.nan, dtype=torch.float64)
        self._norm(tensors, p, math.inf, self._work(tensors), None, norms, units, 0)
        return norms

    def scale_(
        self,
        tensors: Sequence[Tensor],
        max_norm: float,
        norm: Tensor | float,
        device_index: int = 0,
        after_norm: bool = False,
    ) -> None:
        self._scale(OF_NORM, tensors, max_norm, norm, after_norm, device_index)

    def multiply_(self, tensors: Sequence[Tensor], factor: Tensor | float) -> None:
        self._scale(NUMBER, tensors, math.nan, factor, False, 0)

    def scale_each_(self, tensors: Sequence[Tensor], factors: Tensor) -> None:
        self._scale(OF_TENSOR, tensors, math.nan, factors, False, 0)

    def clamp_(self, tensors: Sequence[Tensor], limit: float) -> None:
        self._check(self.library.clamp_grads(*self._table(tensors), ctypes.c_double(limit), 0))

    def clip_units_(
        self,
        pairs: Sequence[tuple[Tensor, Tensor]],
        clipping: float,
        eps: float = 1e-3,
        device_index: int = 0,
    ) -> None:
        """Clips contiguous gradients, a unit for each row, by their weights."""
        rows = [(w.data_ptr(), g.data_ptr(), *_units_of(g), g.dtype) for w, g in pairs]
        self.clip_rows_(rows, clipping, eps, device_index)

    def clip_rows_(
        self,
        rows: Sequence[tuple[int, int, int, int, torch.dtype]],
        clipping: float,
        eps: float = 1e-3,
        device_index: int = 0,
    ) -> None:
        """The same of (address of the weight, of the gradient, units, size, dtype)."""
        rule = ctypes.c_double(clipping), ctypes.c_double(eps)
        self._check(self.library.clip_units(*self._units(rows), *rule, device_index))

    def takes_units(self, units: int, size: int, dtype: torch.dtype) -> bool:
        units_and_size = ctypes.c_int64(units), ctypes.c_int64(size)
        return self.library.takes_units(*units_and_size, DTYPES.index(dtype))

    def walked_units(
        self, pairs: Sequence[tuple[int, int, torch.dtype]], grid: int
    ) -> list[tuple[int, int]]:
        """(address, warp) of every unit that a grid's warps come to, -1 - warp where the block has
        it; of pairs of (units, size, dtype), whose gradients lie at (p + 1) << 44."""
        rows = [(0, (p + 1) << 44, *pair) for p, pair in enumerate(pairs)]
        room = 8 * sum(units for units, *_ in pairs)
        address, by = (ctypes.c_uint64 * room)(), (ctypes.c_int32 * room)()
        found = self.library.walked_units(
            *self._units(rows), grid, address, by, ctypes.c_int64(room)
        )
        assert 0 <= found <= room
        return list(zip(address[:found], by[:found], strict=True))

    def pieces(
        self,
        numel: Sequence[int],
        dtypes: Sequence[torch.dtype],
        grid: int,
        backwards: bool = False,
    ) -> list[tuple[int, int]]:
        """(address, elements) of every piece that a grid walks; tensor t lies at (t + 1) << 40."""
        count, room = len(numel), 100_000
        table = (
            (ctypes.c_void_p * count)(*((t + 1) << 40 for t in range(count))),
            (ctypes.c_int64 * count)(*numel),
            (ctypes.c_int32 * count)(*map(DTYPES.index, dtypes)),
        )
        address, elements = (ctypes.c_uint64 * room)(), (ctypes.c_int64 * room)()
        found = self.library.pieces(*table, count, grid, backwards, address, elements, room)
        assert found <= room
        return list(zip(address[:found], elements[:found], strict=True))

    def _work(self, tensors: Sequence[Tensor]) -> Tensor:
        size = self.library.work_size(*self._table(tensors))
        return torch.full((size,), math.nan, dtype=torch.float64)

    def _norm(
        self,
        tensors: Sequence[Tensor],
        p: float,
        max_norm: float,
        work: Tensor,
        total: Tensor | None,
        norms: Tensor | None,
        units: Tensor | None,
        device_index: int,
    ) -> None:
        pointers = [None if t is None else t.data_ptr() for t in (work, total, norms, units)]
        work_at, total_at, norms_at, units_at = map(ctypes.c_void_p, pointers)
        self._check(
            self.library.grad_norm(
                *self._table(tensors),
                ctypes.c_double(p),
                ctypes.c_double(max_norm),
                work_at,
                total_at,
                0 if total is None else DTYPES.index(total.dtype),
                norms_at,
                units_at,
                device_index,
            )
        )

    def _scale(
        self,
        factor: int,
        tensors: Sequence[Tensor],
        max_norm: float,
        number: Tensor | float,
        after_norm: bool,
        device_index: int,
    ) -> None:
        on_device = isinstance(number, Tensor)
        self._check(
            self.library.scale_grads(
                *self._table(tensors),
                factor,
                ctypes.c_double(max_norm),
                ctypes.c_void_p(number.data_ptr() if on_device else None),
                DTYPES.index(number.dtype) if on_device else 0,
                ctypes.c_double(math.nan if on_device else number),
                after_norm,
                device_index,
            )
        )

    @staticmethod
    def _units(rows: Sequence[tuple[int, int, int, int, torch.dtype]]) -> tuple[Any, ...]:
        """A table of (weight, gradient, units, size, dtype)."""
        count = len(rows)
        weights, grads, units, sizes, dtypes = zip(*rows, strict=True) if rows else [()] * 5
        return (
            (ctypes.c_void_p * count)(*weights),
            (ctypes.c_void_p * count)(*grads),
            (ctypes.c_int64 * count)(*units),
            (ctypes.c_int64 * count)(*sizes),
            (ctypes.c_int32 * count)(*map(DTYPES.index, dtypes)),
            count,
        )

    @staticmethod
    def _table(tensors: Sequence[Tensor]) -> tuple[Any, ...]:
        count = len(tensors)
        return (
            (ctypes.c_void_p * count)(*(t.data_ptr() for t in tensors)),
            (ctypes.c_int64 * count)(*(t.numel() for t in tensors)),
            (ctypes.c_int32 * count)(*(DTYPES.index(t.dtype) for t in tensors)),
            count,
        )

    @staticmethod
    def _check(error: bytes | None) -> None:
        if error is not None:
            raise RuntimeError(error.decode())
