from collections.abc import Iterable, Sequence

from torch import Tensor

class Unsupported(NotImplementedError): ...

class TensorList:
    def __init__(self, tensors: Iterable[Tensor], take_grads: bool) -> None: ...
    def __len__(self) -> int: ...
    @property
    def dtypes(self) -> int: ...
    @property
    def has_empty(self) -> bool: ...
    @property
    def tensors(self) -> list[Tensor]: ...

def bind_tensor_types(tensor: type, parameter: type) -> None: ...
def build_info() -> dict[str, object]: ...
def grad_norm(tensors: TensorList, p: float, per_tensor: bool) -> tuple[float, list[float]]: ...
def scale_grads(tensors: TensorList, factor: float) -> None: ...
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
) -> None: ...
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
) -> None: ...
