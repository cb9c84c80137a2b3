"""What norms are of: the parameters of a model by name, without what wrappers add to names."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeAlias

from torch import Tensor, nn

from fastclip import names

Named: TypeAlias = nn.Module | Iterable[tuple[str, Tensor]]

HOLDS = "module."  # what wrappers that hold the model as `module` add to names


def named_pairs(source: Named) -> list[tuple[str, Tensor]]:
    """(name without what wrappers add, parameter), each parameter of a module once.

    Args:
        source: a module, or (name, parameter) pairs.

    Raises:
        TypeError: neither a module nor pairs.
        ValueError: a model that FSDP1 has sharded.
    """
    if isinstance(source, nn.Module):
        _refuse_sharded(source)
        first: dict[int, tuple[str, Tensor]] = {}
        for name, _, held in names.named_parameters(source):
            first.setdefault(id(held), (name, held))
        return list(first.values())
    pairs = list(source) if isinstance(source, Iterable) else [source]
    if not all(_is_pair(pair) for pair in pairs):
        raise TypeError(
            "model_or_named_parameters must be a module or (name, parameter) pairs, "
            f"got {type(source).__name__}: pass model.named_parameters(), not model.parameters()"
        )
    bare = [names.strip_wrappers(name) for name, _ in pairs]
    added = HOLDS if all(name.startswith(HOLDS) for name in bare) else ""
    found = [(name.removeprefix(added), pair[1]) for name, pair in zip(bare, pairs, strict=True)]
    for name, parameter in found:
        if getattr(parameter, "_is_flat_param", False):
            raise ValueError(_SHARDED.format(name))
    return found


_SHARDED = (
    "FSDP1 has sharded {!r}: this rank holds a piece, whose norm says nothing of the whole. Use "
    "torch.distributed.fsdp.fully_shard, whose parameters are measured whole."
)


def _is_pair(pair: object) -> bool:
    return (
        isinstance(pair, tuple)
        and len(pair) == 2
        and isinstance(pair[0], str)
        and isinstance(pair[1], Tensor)
    )


def _refuse_sharded(model: nn.Module) -> None:
    for name, module in model.named_modules():
        if "_fsdp_wrapped_module" in module._modules:
            handle = getattr(module, "_handle", None)
            if getattr(handle, "uses_sharded_strategy", False):
                raise ValueError(
                    _SHARDED.format(names.strip_wrappers(name) or type(model).__name__)
                )
