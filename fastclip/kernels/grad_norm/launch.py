# mypy: allow-untyped-defs
"""What grad_norm launches through Triton, with what."""

from __future__ import annotations

import math
import struct
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastclip.kernels.grad_norm.change import clamp, scale
from fastclip.kernels.grad_norm.norm import each, finish, norm
from fastclip.kernels.grad_norm.tile import POWER

KINDS = {1.0: 1, 2.0: 2, math.inf: 3, -math.inf: 4}  # as tile.py's; other orders are POWER
OF_NORM, NUMBER, OF_TENSOR = 0, 1, 2  # as change.py's
FINISH_OPTIONS = {"num_warps": 4, "enable_fp_fusion": True}
WORK_HEADER = 3  # float64 before the partials: sum, norm, factor


class Shape(NamedTuple):
    """How programs are cut: the elements of a chunk, the warps of a program, programs of a
    multiprocessor. All have 32 warps of a multiprocessor, of which a thread loads 64 bytes of
    float32 at a time: see csrc/cuda/numbers.h for what memory wants."""

    chunk: int
    warps: int
    programs_each: int

    def tile(self, per_thread: int) -> int:
        return per_thread * 32 * self.warps


LONG, SHORT = Shape(8192, 8, 4), Shape(1024, 1, 32)
# Elements of a thread's tile: with more the float64 versions take the registers of two programs.
NORM_ITEMS, POWER_ITEMS, CHANGE_ITEMS = 16, 4, 8


class Table(NamedTuple):
    """A list of tensors as kernels read it."""

    rows: Tensor  # [tensors, 4] int64: address, elements, dtype, chunks up to and with this tensor
    chunks: int
    dtypes: int
    programs: int
    shape: Shape

    @property
    def grid(self) -> tuple[int]:
        return (max(1, min(self.programs, self.chunks)),)

    def options(self, per_thread: int) -> dict[str, Any]:
        """The constants that the kernels over all tensors share."""
        sizes = {"CHUNK": self.shape.chunk, "TILE": self.shape.tile(per_thread)}
        kinds = {"DTYPES": self.dtypes, "num_warps": self.shape.warps, "enable_fp_fusion": True}
        return sizes | kinds


def halves(x: float) -> tuple[int, int]:
    """The bits of a double as two int32, low half first."""
    low, high = struct.unpack("<ii", struct.pack("<d", x))
    return low, high


def launch_norm(
    table: Table,
    p: float,
    max_norm: float,
    total_norm: Tensor | None,
    per_tensor: Tensor | None,
    units: Tensor | None = None,
) -> Tensor:
    """Returns the work buffer; its second number is the norm, unrounded, and its third the factor.

    An order of POWER has `per_tensor` alone, and `units` that its elements are divided by before.
    """
    kind, rows, grid = KINDS.get(p, POWER.value), table.rows, table.grid
    count = grid[0] + (0 if per_tensor is None else len(rows))
    work = torch.empty(WORK_HEADER + count, dtype=torch.float64, device=rows.device)
    partial, power = work[WORK_HEADER:], halves(p)
    options = table.options(POWER_ITEMS if kind == POWER.value else NORM_ITEMS)
    divisors = partial if units is None else units
    norm[grid](
        *(rows, partial, len(rows), table.chunks, *power, divisors),
        KIND=kind,
        PER_TENSOR=per_tensor is not None,
        HAS_UNITS=units is not None,
        **options,
    )
    if per_tensor is not None and len(rows):
        each[(len(rows),)](
            *(rows, partial, per_tensor, table.chunks, grid[0], *power, divisors),
            KIND=kind,
            HAS_UNITS=units is not None,
            CHUNK=table.shape.chunk,
            **FINISH_OPTIONS,
        )
    if total_norm is not None:
        if per_tensor is not None:
            raise ValueError("one launch has the total or the norm of each tensor, not both")
        finish[(1,)](work, total_norm, count, *halves(max_norm), KIND=kind, **FINISH_OPTIONS)
    return work


def launch_scale(table: Table, mode: int, number: Tensor, max_norm: float = 1.0) -> None:
    """Multiplies by `number`, by what it is a norm of, or each tensor by its own."""
    limit = halves(max_norm)
    options = table.options(CHANGE_ITEMS)
    lengths = (len(table.rows), table.chunks)
    scale[table.grid](table.rows, number, *lengths, *limit, MODE=mode, **options)


def launch_clamp(table: Table, limit: float) -> None:
    """Clamps every element to [-limit, limit]."""
    options = table.options(CHANGE_ITEMS)
    clamp[table.grid](table.rows, len(table.rows), table.chunks, *halves(limit), **options)
