"""csrc/cuda's kernels built for the CPU, and called with torch CPU tensors.

`build` makes a library of the kernels alone; `extension` all of fastclip._native, bound to a torch
whose CPU tensors lie on CUDA device 0, so that the whole path of a clip runs but for the device.
"""

from __future__ import annotations

import ctypes
import importlib.util
import shutil
import subprocess
import sysconfig
from collections.abc import Sequence
from multiprocessing.pool import ThreadPool
from pathlib import Path
from types import ModuleType

import pytest
import torch

from fastclip import native

HERE = Path(__file__).parent
CSRC = HERE.parents[1] / "csrc"
SUFFIXES = (".cpp", ".h", ".cu")
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

    Built in `folder`, where it is not there yet or the sources are newer, by one process at a time.
    """
    import fcntl  # Windows has none, and imports this module

    folder.mkdir(parents=True, exist_ok=True)
    library = folder / "_native.so"
    sources = [path for root in (CSRC, HERE) for path in root.rglob("*") if path.suffix in SUFFIXES]
    newest = max(path.stat().st_mtime for path in sources)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not library.exists() or library.stat().st_mtime < newest:
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
    from fastclip.ops.grad_norm import backends
    from fastclip.ops.grad_norm.gpu import backend as gpu

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
    calls = ("grad_norm", "scale_grads", "clamp_grads", "clip_units")
    for name in (*calls, "why_not", "run_broken_kernel"):
        getattr(built, name).restype = ctypes.c_char_p
    built.work_size.restype = built.walked_units.restype = ctypes.c_int64
    built.takes_units.restype = ctypes.c_bool
    return built


def _run(arguments: Sequence[str | Path]) -> None:
    compiler = shutil.which("g++")
    if compiler is None:
        raise FileNotFoundError("g++")
    flags = ["-std=c++17", "-O2", "-fPIC", "-Wno-unknown-pragmas", f"-I{HERE}", f"-I{CSRC}"]
    subprocess.run([compiler, *flags, *map(str, arguments)], check=True)
