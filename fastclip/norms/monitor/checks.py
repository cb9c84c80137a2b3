"""Arguments of a monitor, and of the step that it looks into."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any


def count(name: str, value: int) -> int:
    """A whole number from 1 on.

    Raises:
        TypeError: not a whole number.
        ValueError: less than 1.
    """
    try:
        whole = operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be a whole number, got {value!r}") from None
    if isinstance(value, bool) or whole < 1:
        raise ValueError(f"{name} must be at least 1, got {value!r}")
    return whole


def bound(name: str, value: float) -> float:
    """A number of 0 or more, infinity too.

    Raises:
        TypeError: not a number.
        ValueError: negative or NaN.
    """
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise TypeError(f"{name} must be a number, got {value!r}") from None
    if not number >= 0:
        raise ValueError(f"{name} must be at least 0, got {value!r}")
    return number


def with_closure(
    args: tuple[Any, ...], kwargs: dict[str, Any], around: Callable[[Callable[[], Any]], Any]
) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    """The arguments of ``Optimizer.step``, itself the first, with `around` its closure.

    None where it has no closure.
    """
    if len(args) > 1 and callable(closure := args[1]):
        return (args[0], lambda: around(closure), *args[2:]), kwargs
    if callable(closure := kwargs.get("closure")):
        return args, {**kwargs, "closure": lambda: around(closure)}
    return None
