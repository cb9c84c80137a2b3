"""What is known of a model's layers: a method `layer_id`, timm's `group_matcher`, a recipe."""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from fastclip.groups.layers.place import place
from fastclip.groups.layers.recipes import Recipe, recipe_of
from fastclip.groups.layers.stacks import within
from fastclip.names import attribute_of, walk

# timm's `features_only` networks: the children of a model, with `stages_0` for `stages.0`.
_FEATURES = "timm.models"


@dataclass(frozen=True)
class Numbered:
    """Layers that the module at `path` gives the names inside it."""

    path: str
    ids: Mapping[str, int]


def numbered(path: str, module: nn.Module, names: list[str]) -> Numbered | None:
    """The module's own numbering, or None where it has none.

    `layer_id(name) -> int`, as a method of the module, says it directly. timm's `group_matcher`
    is read as timm reads it: the stem, then block by block, then the head. A `features_only`
    network has lost the method; the whole model, made anew without storage, has it.
    """
    if callable(own := attribute_of(module, "layer_id")):
        return Numbered(path, {n: _checked(path, own, n) for n in _inside(path, names)})
    if callable(matcher := attribute_of(module, "group_matcher")):
        inside = _inside(path, names)
        return Numbered(path, _grouped(matcher(coarse=False), inside.values(), inside))
    if recipe := recipe_of(module):
        return _by_recipe(path, module, names, recipe)
    if (architecture := _features_of(module)) is None:
        return None
    import timm

    with torch.device("meta"):
        whole = timm.create_model(architecture, pretrained=False)
    if not callable(matcher := getattr(whole, "group_matcher", None)):
        return None
    originals = _original_names(whole)
    inside = _inside(path, names)
    return Numbered(path, _grouped(matcher(coarse=False), map(originals, inside.values()), inside))


def _by_recipe(path: str, module: nn.Module, names: list[str], recipe: Recipe) -> Numbered | None:
    inside = _inside(path, names)
    below = list(inside.values())
    towers = recipe.towers(below)
    if not any(tower.ids for tower in towers):
        return None
    ids = place(dict(walk(module)), below, towers, recipe)
    return Numbered(path, {name: ids[b] for name, b in inside.items()})


def _inside(path: str, names: list[str]) -> dict[str, str]:
    """Full name -> the name below `path`."""
    start = len(path) + 1 if path else 0
    return {name: name[start:] for name in names if within(name, path)}


def _checked(path: str, own: Callable[[str], Any], name: str) -> int:
    value = own(name[len(path) + 1 if path else 0 :])
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ValueError(f"layer_id({name!r}) of {path or 'the model'!r} gave {value!r}, no layer")
    return value


def _grouped(matcher: Any, below: Iterable[str], full: Iterable[str]) -> dict[str, int]:
    """timm's numbers; `below` are the names that the matcher knows, in the order of `full`."""
    from timm.models import group_parameters

    known = list(below)
    shim: Any = SimpleNamespace(named_parameters=lambda: [(name, None) for name in known])
    ids = group_parameters(shim, matcher, reverse=True)
    return {name: ids[b] for name, b in zip(full, known, strict=True)}


def _features_of(module: nn.Module) -> str | None:
    """The architecture of a timm network that was made with `features_only=True`."""
    if not type(module).__module__.startswith(_FEATURES) or not hasattr(module, "feature_info"):
        return None
    if any(hasattr(child, "group_matcher") for child in module.children()):
        return None  # the whole model is inside, and is asked itself
    config = attribute_of(module, "pretrained_cfg")
    name = config.get("architecture") if isinstance(config, Mapping) else None
    return name or getattr(config, "architecture", None)


def _original_names(whole: nn.Module) -> Callable[[str], str]:
    """`stages_0.blocks...` -> `stages.0.blocks...`, where `stages` is a list of the whole model."""
    children = dict(whole.named_children())
    lists = [n for n, m in children.items() if isinstance(m, (nn.Sequential, nn.ModuleList))]
    flat = re.compile(rf"^({'|'.join(map(re.escape, lists))})_(\w+)\.") if lists else None

    def original(name: str) -> str:
        if flat is None or name.partition(".")[0] in children:
            return name
        return flat.sub(r"\1.\2.", name)

    return original
