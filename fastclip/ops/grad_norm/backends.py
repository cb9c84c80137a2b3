"""Which backend of `grad_norm` takes a list of tensors: the one place where that is decided.

The native core has the CPU; a GPU has the CUDA kernels or Triton's. Lists on several devices,
DTensors, tensors with gaps and repeats on a GPU are shared out among backends (parts.py). None
means that torch's own functions do the work: sparse, complex, other subclasses, overlaps.
"""

from __future__ import annotations

import functools
import importlib.util
import warnings
from collections.abc import Iterable
from typing import TYPE_CHECKING, TypeAlias

import torch
from torch import Tensor

from fastclip import native
from fastclip.ops import observed
from fastclip.ops.grad_norm import parts
from fastclip.ops.grad_norm.cpu import CpuGrads
from fastclip.ops.grad_norm.gpu.backend import DEVICE_TYPES, GpuGrads
from fastclip.ops.grad_norm.gpu.cuda import CudaGrads
from fastclip.ops.grad_norm.tensor_list import PythonTensorList

if TYPE_CHECKING:
    from fastclip._native import TensorList

_CPU, _CUDA = 1, 2  # DLPack's kDLCPU, kDLCUDA

Grads: TypeAlias = CpuGrads | GpuGrads | parts.GradParts


def collect(tensors: Iterable[Tensor], *, take_grads: bool) -> Grads | None:
    """The tensors (with take_grads their gradients that exist), if kernels have a share in them.

    None too where a tracer or a mode is to see what is done to them.
    """
    return None if observed.is_observed() else collect_in_op(tensors, take_grads=take_grads)


def collect_in_op(tensors: Iterable[Tensor], *, take_grads: bool) -> Grads | None:
    """As `collect`, for a registered op, which whoever observes has seen already."""
    try:
        return _of_one_backend(tensors, take_grads)
    except NotImplementedError:
        return collect_parts(tensors, take_grads)


def collect_whole(tensors: Iterable[Tensor], *, take_grads: bool) -> CpuGrads | GpuGrads | None:
    """As `collect_in_op`, where one backend takes all of them; else None."""
    try:
        return _of_one_backend(tensors, take_grads)
    except NotImplementedError:
        return None


def collect_parts(tensors: Iterable[Tensor], take_grads: bool) -> parts.GradParts | None:
    """As `collect`, for a list that no backend takes whole."""
    return parts.collect(list(tensors), take_grads, _backend_of)


def require_memory(name: str, tensor: object) -> None:
    """ValueError where it is a tensor whose storage was freed: torch would read it all the same."""
    if native.core is None:
        return
    try:
        native.core.require_memory((tensor,), False)
    except ValueError as error:
        raise ValueError(str(error).replace("tensor 0 of the list", name)) from None


def backend(found: TensorList | PythonTensorList) -> CpuGrads | GpuGrads | None:
    """The backend of a list's device, if there is one."""
    kind, index = found.device
    if kind == _CPU and not isinstance(found, PythonTensorList):
        return CpuGrads(found)
    if kind not in DEVICE_TYPES:
        return None
    if kind == _CUDA and not cuda_why_not(index):
        return CudaGrads(found)
    if has_triton():
        from fastclip.ops.grad_norm.gpu.triton import TritonGrads  # imports triton

        return TritonGrads(found)
    return None


def implementation(device: str) -> tuple[str, str]:
    """(name, why it is not a kernel) of what runs on a device, such as "cpu" or "cuda:1"."""
    kind, index = torch.device(device).type, torch.device(device).index or 0
    if kind == "cpu":
        return ("torch", native.why_missing) if native.core is None else (native.name, "")
    if kind not in DEVICE_TYPES.values():
        return "torch", f"fastclip has no {kind} kernel for it"
    is_cuda = kind == "cuda" and torch.version.hip is None
    reason = cuda_why_not(index) if is_cuda else "CUDA's kernels are for CUDA devices"
    if not reason:
        return "CUDA", ""
    if has_triton():
        return f"Triton ({reason})", ""
    return "torch", f"{reason}, and Triton is not installed"


def _of_one_backend(tensors: Iterable[Tensor], take_grads: bool) -> CpuGrads | GpuGrads | None:
    if native.core is None:
        return backend(PythonTensorList(tensors, take_grads))
    return backend(native.core.TensorList(tensors, take_grads))


def _backend_of(tensors: list[Tensor]) -> CpuGrads | GpuGrads | None:
    return collect_whole(tensors, take_grads=False)


@functools.cache
def cuda_why_not(index: int) -> str:
    """Why the CUDA kernels cannot run on this device, or an empty string.

    Warns, once for a device, where a build that has them has no code for it.
    """
    if native.core is None:
        return native.why_missing
    reason = native.core.cuda_why_not(index)
    if reason and native.core.build_info()["cuda"] and torch.cuda.is_available():
        instead = "Triton's kernels run" if has_triton() else "torch's own functions run, slower"
        remedy = "build fastclip on a machine whose nvcc knows this device for CUDA's"
        message = f"fastclip's CUDA kernels cannot run on cuda:{index}: {reason}. {instead} instead"
        warnings.warn(f"{message}; {remedy}", RuntimeWarning, stacklevel=2)
    return reason


@functools.cache
def has_triton() -> bool:
    """Whether Triton is installed; does not import it."""
    return importlib.util.find_spec("triton") is not None
