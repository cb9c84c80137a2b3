"""Optimizers inside trainers' wrappers: found, and stepped as their wrapper steps them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch

_INSIDE = "optimizer"  # where Accelerate, Lightning and most others keep the optimizer they wrap


class OptimizerWrapper(Protocol):
    """What holds an optimizer: Lightning's is no ``torch.optim.Optimizer`` to a type checker."""

    @property
    def optimizer(self) -> Any: ...


def unwrap(optimizer: Any) -> torch.optim.Optimizer:
    """The torch optimizer inside trainers' wrappers; itself where nothing wraps it.

    Args:
        optimizer: a ``torch.optim.Optimizer``, or a wrapper of one (of any depth) that holds it as
            ``.optimizer``: Accelerate's AcceleratedOptimizer, Lightning's LightningOptimizer, and
            those that forward attributes. A wrapper may itself be an ``Optimizer`` subclass.

    Returns:
        The innermost optimizer, whose hooks, ``grad_scale`` and ``found_inf`` a step reads.

    Raises:
        TypeError: there is no ``torch.optim.Optimizer`` in it.
    """
    found = layers(optimizer)[-1]
    if not isinstance(found, torch.optim.Optimizer):
        raise TypeError(
            "optimizer must be a torch.optim.Optimizer or a wrapper that holds one as "
            f"`.optimizer`, got {_described(optimizer, found)}"
        )
    return found


def layers(optimizer: Any) -> list[Any]:
    """An optimizer with all that wraps it, outermost first; without a check of the innermost."""
    found = [optimizer]
    while (inside := _inside(found[-1])) is not None and all(inside is not o for o in found):
        found.append(inside)
    return found


def step_of(optimizer: Any) -> Callable[[], Any]:
    """The step to call for an optimizer that may be wrapped: its wrapper's, without a closure.

    A wrapper's own step does what its trainer counts on (gradient accumulation, GradScaler, step
    counters), but Lightning's cannot run before a Trainer has taken it.
    """
    if getattr(optimizer, "__dict__", {}).get("_strategy", optimizer) is None:
        return unwrap(optimizer).step
    return optimizer.step


def _inside(optimizer: Any) -> Any:
    """What a wrapper holds: an optimizer, or another wrapper."""
    if isinstance(optimizer, type):
        return None
    inside = getattr(optimizer, _INSIDE, None)
    # A wrapper that forwards attributes answers for those of what it holds: not of itself.
    has_step = hasattr(inside, "step") and hasattr(inside, "param_groups")
    return inside if has_step and inside is not optimizer else None


def _described(optimizer: Any, found: Any) -> str:
    name = type(optimizer).__name__
    if isinstance(optimizer, type):
        return f"the class {optimizer.__name__}, not an instance of it"
    if found is not optimizer:
        return f"a {name} around a {type(found).__name__}"
    return f"a {name}"
