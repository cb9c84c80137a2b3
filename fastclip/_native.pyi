from collections.abc import Callable, Iterable, Sequence

from torch import Tensor

class Unsupported(NotImplementedError): ...

class TensorList:
    def __init__(self, tensors: Iterable[Tensor], take_grads: bool) -> None: ...
    def __len__(self) -> int: ...
    @property
    def dtypes(self) -> int: ...
    def has_norm(self, p: float) -> bool: ...
    @property
    def tensors(self) -> list[Tensor]: ...
    @property
    def device(self) -> tuple[int, int]: ...
    def addresses(self) -> bytes: ...

def bind_torch(
    tensor: type,
    parameter: type,
    increment_version: Callable[[list[Tensor]], None],
    inference: list[Tensor],
    normal: list[Tensor],
) -> None: ...
def bind_threads(get_num_threads: Callable[[], int]) -> None: ...
def thread_limits(root: str = "") -> dict[str, float]: ...
def require_memory(tensors: Sequence[Tensor], take_grads: bool) -> None: ...
def sort_tensors(
    tensors: Sequence[Tensor], take_grads: bool, dtensor: type | None
) -> tuple[list[tuple[object, ...]], list[int], str | None]: ...
def build_info() -> dict[str, object]: ...
def cuda_why_not(device: int) -> str: ...
def cuda_work_size(tensors: TensorList) -> int: ...
def cuda_grad_norm(
    tensors: TensorList,
    p: float,
    max_norm: float,
    scale: bool,
    work: Tensor,
    total: Tensor | None,
    per_tensor: Tensor | None,
    units: Tensor | None,
) -> None: ...
def cuda_scale_grads(tensors: TensorList, max_norm: float, norm: Tensor | float) -> None: ...
def cuda_multiply(tensors: TensorList, factor: Tensor | float) -> None: ...
def cuda_scale_each(tensors: TensorList, factors: Tensor) -> None: ...
def cuda_clamp(tensors: TensorList, limit: float) -> None: ...
def grad_norm(tensors: TensorList, p: float) -> float: ...
def grad_norms(
    tensors: TensorList, orders: Sequence[float], norms: Tensor, stats: Tensor | None = None
) -> None: ...
def scale_grads(tensors: TensorList, factor: float) -> None: ...
def scale_each(tensors: TensorList, factors: Tensor) -> None: ...
def clip_grads(
    tensors: Iterable[Tensor], take_grads: bool, p: float, max_norm: float | None, finite: bool
) -> Tensor | TensorList: ...
def clip_values(
    tensors: Sequence[Tensor], limit: float, take_grads: bool = True
) -> list[Tensor]: ...
def clip_units(
    parameters: Sequence[Tensor],
    clipping: float,
    eps: float,
    grads: Sequence[Tensor] | None = None,
    check: Callable[[list[Tensor]], None] | None = None,
) -> tuple[list[Tensor], list[Tensor]]: ...
def cuda_clip_units(
    parameters: Sequence[Tensor], clipping: float, eps: float, why_not: Callable[[int], str]
) -> tuple[list[Tensor], list[Tensor]]: ...
def structure_loss_forward(
    logits: Sequence[Tensor],
    mask: Tensor,
    valid: Tensor | None,
    window: int,
    boundary_weight: float,
    smooth: float,
    weighted_bce: bool,
    loss: Tensor,
    sums: Tensor,
    pixel_iou: bool = False,
    pos_weight: Tensor | None = None,
) -> None: ...
def structure_loss_total(
    logits: Sequence[Tensor],
    mask: Tensor,
    valid: Tensor | None,
    window: int,
    boundary_weight: float,
    smooth: float,
    weighted_bce: bool,
    factors: Sequence[float],
    sums: Tensor | None,
    grads: Sequence[Tensor | None],
    pixel_iou: bool = False,
    pos_weight: Tensor | None = None,
) -> Tensor: ...
def structure_loss_backward(
    grad_loss: Tensor,
    logits: Sequence[Tensor],
    mask: Tensor,
    valid: Tensor | None,
    sums: Tensor,
    window: int,
    boundary_weight: float,
    smooth: float,
    weighted_bce: bool,
    grads: Sequence[Tensor],
    pixel_iou: bool = False,
    pos_weight: Tensor | None = None,
) -> None: ...
