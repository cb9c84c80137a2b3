"""The stacks of layers that the modules show: lists of blocks."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TypeVar

from torch import nn

from fastclip.names import join, unwrap

T = TypeVar("T")

# `layer1` to `layer4` follow each other; `branch1` and `branch2` need not.
_STAGE = re.compile(r"^(layer|stage|res|level)s?_?(\d+)$")


@dataclass(frozen=True)
class Tower:
    """A stack of layers: `ids` counts them from 1 at its own input."""

    path: str
    ids: Mapping[str, int]

    @property
    def depth(self) -> int:
        return max(self.ids.values())


def within(name: str, path: str) -> bool:
    """Whether `name` is that of the module at `path` or of something inside it."""
    return not path or name == path or name.startswith(f"{path}.")


def outermost(found: Iterable[tuple[str, T]]) -> list[tuple[str, T]]:
    """`found` without what lies inside another of them; parents come first in `found`."""
    kept: dict[str, T] = {}
    for path, thing in found:
        parts = path.split(".")
        if "" not in kept and not any(
            ".".join(parts[:i]) in kept for i in range(1, len(parts) + 1)
        ):
            kept[path] = thing
    return list(kept.items())


def find_towers(modules: list[tuple[str, nn.Module]], names: list[str]) -> list[Tower]:
    """The outermost lists that hold at least two blocks of one class; else lists of plain layers.

    Numbered lists of one module (`layer1` to `layer4`) are one tower.
    """
    lists = [(p, m) for p, m in modules if isinstance(m, (nn.ModuleList, nn.Sequential))]
    found = outermost((p, m) for p, m in lists if _repeats_blocks(m))
    if found:
        stages = {_stage(p) for p, _ in found} - {None}
        also = [(p, m) for p, m in lists if _stage(p) in stages and any(map(_is_block, m))]
        paths = dict(found) | dict(also)
        found = outermost((p, m) for p, m in lists if p in paths)
    else:
        found = outermost((p, m) for p, m in lists if sum(map(_has_parameters, m)) > 1)
    groups: dict[tuple[str, str] | str, list[tuple[str, nn.Module]]] = {}
    for path, stack in found:
        groups.setdefault(_stage(path) or path, []).append((path, stack))
    return [_tower(stacks, names) for stacks in groups.values()]


def _stage(path: str) -> tuple[str, str] | None:
    """(parent, stem) of a numbered stage."""
    parent, _, last = path.rpartition(".")
    match = _STAGE.match(last)
    return (parent, match[1]) if match else None


def _tower(stacks: list[tuple[str, nn.Module]], names: list[str]) -> Tower:
    if len(stacks) > 1:
        stacks = sorted(stacks, key=lambda s: int(re.findall(r"\d+", s[0])[-1]))
    layers = [join(path, child) for path, stack in stacks for child in stack._modules]
    number = {layer: i for i, layer in enumerate(layers, start=1)}
    depths = {layer.count(".") + 1 for layer in layers}
    ids = {}
    for name in names:
        parts = name.split(".")
        for depth in depths:
            if (layer := ".".join(parts[:depth])) in number and len(parts) > depth:
                ids[name] = number[layer]
    return Tower(stacks[0][0], ids)


def _has_parameters(module: nn.Module) -> bool:
    return next(module.parameters(), None) is not None


def _is_block(module: nn.Module) -> bool:
    return any(map(_has_parameters, unwrap(module).children()))


def _repeats_blocks(stack: Iterable[nn.Module]) -> bool:
    kinds = [type(unwrap(module)) for module in stack if _is_block(module)]
    return len(kinds) > len(set(kinds))
