"""Architectures whose towers have a published order that names and modules do not show."""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn


@dataclass(frozen=True)
class Recipe:
    """Stages in order, each of towers side by side: regular expressions with a layer's number.

    `start` and `end` say which names outside the towers are below and above their own tower.
    """

    stages: tuple[tuple[str, ...], ...]
    start: str = ""
    end: str = ""


_FAMILIES: Mapping[str, Recipe] = {}


def recipe_of(module: nn.Module) -> Recipe | None:
    """The recipe of a transformers model, by its configuration's `model_type`."""
    kind = getattr(getattr(module, "config", None), "model_type", None)
    return _FAMILIES.get(kind) if isinstance(kind, str) else None
