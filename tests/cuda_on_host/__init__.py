"""csrc/cuda's kernels built for the CPU, and called with torch CPU tensors.

`build` makes a library of the kernels alone; `extension` all of fastclip._native, bound to a torch
whose CPU tensors lie on CUDA device 0, so that the whole path of a clip runs but for the device.
"""

from __future__ import annotations

import ctypes
import importlib.util
import math
import shutil
import subprocess
import sysconfig
from collections.abc import Sequence
from multiprocessing.pool import ThreadPool
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from fastclip import native

HERE = Path(__file__).parent
CSRC = HERE.parents[1] / "csrc"
DTYPES = (
    torch.float32,
    torch.float64,
    torch.bfloat16,
    torch.float16,
)  # as chunk.h's DType


def build(folder: Path) -> ctypes.CDLL:
    """Compiles the kernels against the stand-in runtime."""
    library = folder / "grad_norm_on_host.so"
    _run(["-Wall", "-Werror", "-shared", HERE / "grad_norm_on_host.cpp", "-o", library])
    return _interface(library)


def extension(folder: Path) -> tuple[ModuleType, ctypes.CDLL]:
    """(fastclip._native with the CUDA backend, the kernels' C interface in the same library)

    Built in `folder`, where it is not there yet.
    """
    library = folder / "_native.so"
    if not library.exists():
        _build_extension(folder, library)
    name = "cuda_on_host._native"
    spec = importlib.util.spec_from_file_location(name, library)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    interface = _interface(library)
    _bind(module, interface)
    return module, interface


def _build_extension(folder: Path, library: Path) -> None:
    import pybind11

    folder.mkdir(parents=True, exist_ok=True)

    includes = [f"-isystem{sysconfig.get_path('include')}", f"-isystem{pybind11.get_include()}"]
    defines = ["-DFASTCLIP_X86_LEVELS=0", "-DFASTCLIP_ISA=baseline", "-DFASTCLIP_CUDA=1"]
    flags = ["-pthread", "-fvisibility=hidden", "-Wno-psabi", *includes, *defines]
    sources = sorted(CSRC.glob("**/*.cpp"))
    compiled = [
        [*flags, "-c", path, "-o", folder / f"{'.'.join(path.relative_to(CSRC).parts)}.o"]
        for path in sources
    ]
    own = [HERE / "grad_norm_on_host.cpp", HERE / "device_on_host.cpp"]
    compiled += [["-c", path, "-o", folder / f"{path.stem}.o"] for path in own]
    with ThreadPool(2) as pool:
        pool.map(_run, compiled)
    _run(["-shared", "-pthread", *(call[-1] for call in compiled), "-o", library])


def install(module: ModuleType, patch: pytest.MonkeyPatch) -> None:
    """Has fastclip clip by this extension: CPU tensors by CUDA's path."""
    from fastclip import native
    from fastclip.ops.grad_norm import backends, gpu

    patch.setattr(native, "core", module)
    patch.setattr(backends, "cuda_why_not", module.cuda_why_not)
    patch.setattr(gpu, "_device", lambda kind, index: torch.device("cpu"))


def _bind(module: ModuleType, interface: ctypes.CDLL) -> None:
    """Binds the module to torch as it is, but for where its tensors lie."""
    api, new = ctypes.pythonapi.PyCapsule_GetPointer, ctypes.pythonapi.PyCapsule_New
    api.restype, api.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
    new.restype, new.argtypes = (
        ctypes.py_object,
        [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p],
    )
    interface.pretend_on_device.restype = ctypes.c_void_p
    interface.pretend_on_device.argtypes = [ctypes.c_void_p]
    true, name = torch.Tensor.__dlpack_c_exchange_api__, b"dlpack_exchange_api"
    torch.Tensor.__dlpack_c_exchange_api__ = new(
        interface.pretend_on_device(api(true, name)), name, None
    )
    try:
        native.bind(module)
    finally:
        torch.Tensor.__dlpack_c_exchange_api__ = true


def _interface(library: Path) -> ctypes.CDLL:
    built = ctypes.CDLL(str(library))
    for name in ("grad_norm", "scale_grads", "run_broken_kernel"):
        getattr(built, name).restype = ctypes.c_char_p
    built.work_size.restype = ctypes.c_int64
    return built


def _run(arguments: Sequence[str | Path]) -> None:
    compiler = shutil.which("g++")
    if compiler is None:
        raise FileNotFoundError("g++")
    flags = ["-std=c++17", "-O2", "-fPIC", "-Wno-unknown-pragmas", f"-I{HERE}", f"-I{CSRC}"]
    subprocess.run([compiler, *flags, *map(str, arguments)], check=True)


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
