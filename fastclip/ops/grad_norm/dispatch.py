"""The op `grad_norm`: norms of many tensors, and their scaling, in one pass over memory each.

Owner on the CPU: the native core; on a GPU: see grad_norm_gpu. Lists on several devices, DTensors,
tensors with gaps and repeats on a GPU are shared out among owners: see grad_norm_parts. Under
torch.compile the op is one node of the graph: see grad_norm_compiled. Everything else (sparse,
complex, other subclasses, overlaps) goes to torch's own functions, which are the reference.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor
from torch.nn import utils as _torch_clip

from fastclip import native
from fastclip.ops import grad_norm_gpu as gpu
from fastclip.ops import grad_norm_parts as parts
from fastclip.ops.grad_norm_torch import EPS
from fastclip.ops.tensor_list import PythonTensorList

if TYPE_CHECKING:
    from fastclip._native import TensorList

# Captured at import, so that patching torch.nn.utils never makes the reference call itself.
total_norm_ref = _torch_clip.get_total_norm
scale_ref_ = _torch_clip.clip_grads_with_norm_
clip_ref_ = _torch_clip.clip_grad_norm_

_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)  # csrc/chunk.h: DType
_CPU = 1  # DLPack's kDLCPU
_FITS_ALL = 65504.0  # the largest float16
NONFINITE = (
    "The total norm of order {p} for gradients from `parameters` is non-finite, so it cannot be "
    "clipped. To disable this error and scale the gradients by the non-finite norm anyway, set "
    "`error_if_nonfinite=False`"
)
_NAMED = 5  # how many offending gradients an error names


class GradList:
    """Tensors of one owner, kept alive: their norm, and their scaling in place.

    This is the CPU's. Another device's owner has the same methods, and syncs in none of them.
    """

    def __init__(self, tensors: TensorList) -> None:
        self._core = native.require()
        self._list = tensors
        self._known: dict[float, float] = {}  # p: norm

    def __len__(self) -> int:
        return len(self._list)

    def has_norm(self, p: float) -> bool:
        """Whether the kernels define this p for these tensors as torch does."""
        return self._list.has_norm(p)

    def takes(self, total_norm: Tensor) -> bool:
        """Whether `clip_by_` reads this norm as torch would."""
        return total_norm.device.type == "cpu"

    @property
    def dtype(self) -> torch.dtype:
        """The tensors' promoted dtype."""
        return _promoted(self._list.dtypes)

    def exact_norm(self, p: float) -> Tensor:
        """The unrounded p-norm of all elements: 0-d, float64."""
        return _as_tensor(self._norm(p), torch.float64)

    def total_norm(self, p: float) -> Tensor:
        """The p-norm of all elements: 0-d, in the tensors' promoted dtype."""
        return _as_tensor(self._norm(p), self.dtype)

    def norms(self, *orders: float) -> Tensor:
        """The norm of each tensor for each order, from one read: [orders, tensors], float64."""
        norms = torch.empty(len(orders), len(self), dtype=torch.float64, device="cpu")
        self._core.grad_norms(self._list, orders, norms)
        return norms

    def clip_(self, max_norm: float, p: float) -> Tensor:
        """Scales to at most `max_norm`; returns the norm before. Nothing is written at factor 1."""
        norm = self._norm(p)  # the factor comes from the unrounded norm
        self._scale_to(max_norm, norm)
        return _as_tensor(norm, self.dtype)

    def clip_by_(self, max_norm: float, total_norm: Tensor) -> None:
        """Scales by min(1, max_norm / (total_norm + 1e-6)), for a norm known before."""
        self._scale_to(max_norm, float(total_norm))

    def scale_(self, factor: Tensor) -> None:
        """Multiplies every element by a 0-d factor, whatever it is."""
        self._multiply(float(factor))

    def step_factors(self, max_norm: float, p: float) -> tuple[Tensor, Tensor, Tensor]:
        """(the norm, 1 / factor, 1 where the norm is not finite): a fused step's inputs."""
        norm = self._norm(p)
        factor = min(max_norm / (norm + EPS), 1.0)
        inverse = 1 / factor if factor else math.inf
        return (
            self.total_norm(p),
            torch.tensor(inverse, dtype=torch.float32, device="cpu"),
            torch.tensor(float(not math.isfinite(norm)), dtype=torch.float32, device="cpu"),
        )

    def _norm(self, p: float) -> float:
        if p not in self._known:
            self._known[p] = self._core.grad_norm(self._list, p)
        return self._known[p]

    def _scale_to(self, max_norm: float, norm: float) -> None:
        factor = max_norm / (norm + EPS)
        if not factor >= 1:  # a NaN factor scales too, and makes every gradient NaN
            self._multiply(factor)

    def _multiply(self, factor: float) -> None:
        self._known.clear()
        self._core.scale_grads(self._list, factor)


Grads: TypeAlias = GradList | gpu.GpuGrads | parts.GradParts


def clip_(
    parameters: list[Tensor], max_norm: float, p: float, error_if_nonfinite: bool, foreach: Any
) -> Tensor:
    """Clips the parameters' gradients, by their owner; returns their norm before."""
    grads = _at_once(parameters, True, p, max_norm, error_if_nonfinite)
    if isinstance(grads, Tensor):
        return grads
    if grads is None or not grads.has_norm(p):
        return clip_ref_(parameters, max_norm, p, error_if_nonfinite, foreach)
    if not len(grads):
        return torch.tensor(0.0)
    if error_if_nonfinite:
        require_finite(grads.total_norm(p), grads, p)
    return grads.clip_(max_norm, p)


def total_norm(tensors: list[Tensor], p: float, error_if_nonfinite: bool, foreach: Any) -> Tensor:
    """The norm of all elements, by the tensors' owner."""
    values = _at_once(tensors, False, p, None, error_if_nonfinite)
    if isinstance(values, Tensor):
        return values
    if values is None or not values.has_norm(p):
        return total_norm_ref(tensors, p, error_if_nonfinite, foreach)
    if not len(values):
        return torch.tensor(0.0)
    total = values.total_norm(p)
    if error_if_nonfinite:
        require_finite(total, values, p)
    return total


def _at_once(
    tensors: list[Tensor], take_grads: bool, p: float, max_norm: float | None, finite: bool
) -> Tensor | Grads | None:
    """The norm, where one native call does all; else as `collect`, and nothing is done yet.

    One call, since Python that ran a training step ago is cold.
    """
    if native.core is None:
        return collect(tensors, take_grads=take_grads)
    try:
        found = native.core.clip_grads(tensors, take_grads, p, max_norm, finite)
    except NotImplementedError:
        return _in_parts(tensors, take_grads)
    return found if isinstance(found, Tensor) else _owner(found)


def collect(tensors: Iterable[Tensor], *, take_grads: bool) -> Grads | None:
    """The tensors (with take_grads their gradients that exist), if kernels have a share in them."""
    if torch.compiler.is_compiling():
        return None
    try:
        return _of_one_owner(tensors, take_grads)
    except NotImplementedError:
        return _in_parts(tensors, take_grads)


def _of_one_owner(tensors: Iterable[Tensor], take_grads: bool) -> GradList | gpu.GpuGrads | None:
    if native.core is None:
        return gpu.collect(PythonTensorList(tensors, take_grads), _promoted)
    return _owner(native.core.TensorList(tensors, take_grads))


def _owner(found: TensorList) -> GradList | gpu.GpuGrads | None:
    return GradList(found) if found.device[0] == _CPU else gpu.collect(found, _promoted)


def _in_parts(tensors: Iterable[Tensor], take_grads: bool) -> parts.GradParts | None:
    if take_grads:
        tensors = [p.grad for p in tensors if p.grad is not None]
    return parts.collect(list(tensors), _owner_of)


def _owner_of(tensors: list[Tensor]) -> GradList | gpu.GpuGrads | None:
    try:
        return _of_one_owner(tensors, take_grads=False)
    except NotImplementedError:
        return None


def require_finite(total: Tensor, grads: Grads, p: float) -> None:
    """Raises torch's error, with the first offenders, where the norm is not finite.

    All ranks raise; each names what it holds itself, for not all may have come this far.
    """
    if total.isfinite():
        return
    norms = grads.local_norms(p) if isinstance(grads, parts.GradParts) else grads.norms(p)
    bad = (~norms[0].isfinite()).nonzero().flatten().tolist()
    named = ", ".join(str(i) for i in bad[:_NAMED]) + (", ..." if len(bad) > _NAMED else "")
    where = f". Non-finite: gradients {named} of {len(grads)}" if bad else ""
    raise RuntimeError(NONFINITE.format(p=p) + where)


def _as_tensor(norm: float, dtype: torch.dtype) -> Tensor:
    if norm < _FITS_ALL:
        return torch.scalar_tensor(norm, dtype=dtype, device="cpu")
    # A norm past the dtype's range is infinite, where a conversion of the number would raise.
    return torch.tensor(norm, dtype=torch.float64, device="cpu").to(dtype)


@functools.cache
def _promoted(dtypes: int) -> torch.dtype:
    present = [dtype for i, dtype in enumerate(_DTYPES) if dtypes >> i & 1]
    return functools.reduce(torch.promote_types, present)


def owner(device: str) -> tuple[str, str]:
    """(implementation, why it is not a kernel) for a device type."""
    if device != "cpu":
        return gpu.owner(device)
    if native.core is None:
        return "torch", native.why_missing
    return native.name, ""
