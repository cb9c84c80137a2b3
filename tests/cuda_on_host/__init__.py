"""csrc/cuda's kernels built for the CPU, and called with torch CPU tensors."""

from __future__ import annotations

import ctypes
import math
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

HERE = Path(__file__).parent
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)  # csrc/chunk.h: DType


def build(folder: Path) -> ctypes.CDLL:
    """Compiles the kernels against the stand-in runtime."""
    compiler = shutil.which("g++")
    if compiler is None:
        raise FileNotFoundError("g++")
    library = folder / "grad_norm_on_host.so"
    flags = ["-std=c++17", "-O2", "-fPIC", "-shared", "-Wall", "-Werror", "-Wno-unknown-pragmas"]
    source = HERE / "grad_norm_on_host.cpp"
    subprocess.run([compiler, *flags, f"-I{HERE}", str(source), "-o", str(library)], check=True)
    built = ctypes.CDLL(str(library))
    for name in ("grad_norm", "scale_grads", "run_broken_kernel"):
        getattr(built, name).restype = ctypes.c_char_p
    built.work_size.restype = ctypes.c_int64
    return built


class Kernels:
    """The two launches on a device of `multiprocessors` x `blocks_each` resident blocks."""

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
        table = self._table(tensors)
        size = self.library.work_size(*table, True)
        size = max(size, self.library.work_size(*table, False))
        results = {}
        for per_tensor in (False, True):
            work = torch.full((size,), math.nan, dtype=torch.float64)
            total = torch.full((), math.nan, dtype=total_dtype)
            norms = torch.full((len(tensors),), math.nan, dtype=torch.float64)
            optimizer = torch.full((2,), math.nan)
            self._check(
                self.library.grad_norm(
                    *table,
                    ctypes.c_double(p),
                    ctypes.c_double(max_norm),
                    ctypes.c_void_p(work.data_ptr()),
                    ctypes.c_void_p(total.data_ptr()),
                    DTYPES.index(total_dtype),
                    ctypes.c_void_p(norms.data_ptr() if per_tensor else None),
                    ctypes.c_void_p(optimizer.data_ptr()),
                    device_index,
                )
            )
            found = {"norm": work[1].item(), "factor": work[2].item(), "total": total}
            found |= {"inverse": optimizer[0].item(), "found_inf": optimizer[1].item()}
            results |= {"each_" + k: v for k, v in found.items()} if per_tensor else found
        return results | {"norms": norms}

    def scale_(
        self,
        tensors: Sequence[Tensor],
        max_norm: float,
        norm: Tensor | float,
        device_index: int = 0,
    ) -> None:
        on_device = isinstance(norm, Tensor)
        self._check(
            self.library.scale_grads(
                *self._table(tensors),
                ctypes.c_double(max_norm),
                ctypes.c_void_p(norm.data_ptr() if on_device else None),
                DTYPES.index(norm.dtype) if on_device else 0,
                ctypes.c_double(math.nan if on_device else norm),
                device_index,
            )
        )

    def find(self, numel: Sequence[int], dtypes: Sequence[torch.dtype], chunk: int) -> tuple:
        """(address, elements, chunks in all) of a chunk; tensor t lies at (t + 1) << 40."""
        count = len(numel)
        table = (
            (ctypes.c_void_p * count)(*((t + 1) << 40 for t in range(count))),
            (ctypes.c_int64 * count)(*numel),
            (ctypes.c_int32 * count)(*map(DTYPES.index, dtypes)),
        )
        address, elements, chunks = ctypes.c_uint64(), ctypes.c_int32(), ctypes.c_uint32()
        outputs = map(ctypes.byref, (address, elements, chunks))
        self.library.find_chunk(*table, count, ctypes.c_uint32(chunk), *outputs)
        return address.value, elements.value, chunks.value

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
