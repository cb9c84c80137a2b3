"""Layer ids for layer-wise learning-rate decay: 0 at the input, the largest at the head."""

from collections.abc import Callable, Iterable
from types import SimpleNamespace
from typing import Any

from torch import nn

from fastclip.groups.names import Entry, Source, read_modules, read_slots
from fastclip.names import join, unwrap, walk

_ENDS = ("encoder", "decoder")


def layer_ids(
    model: Source, entries: list[Entry], layer_id: Callable[[str], int] | None
) -> list[int]:
    """The layer of each entry; frozen parameters count, so freezing never shifts an id.

    Tied weights take the id of the alias nearest to the input.

    Raises:
        TypeError: `layer_id` returns something else than an int.
        ValueError: the layers cannot be derived from the model alone.
    """
    if layer_id is None:
        ids = _automatic(model)
    else:
        ids = {name: _checked(name, layer_id(name)) for entry in entries for name in entry.names}
    return [min(ids[name] for name in entry.names) for entry in entries]


def _checked(name: str, value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"layer_id({name!r}) must be an int, got {value!r}")
    if value < 0:
        raise ValueError(f"layer_id({name!r}) must be 0 or more, got {value}")
    return value


def _automatic(model: Source) -> dict[str, int]:
    """Ids from timm's `group_matcher`, or from the stack of layers that the modules show."""
    tops = read_modules(model)
    if tops is None:
        raise ValueError("layer_decay cannot see layers in (name, parameter) pairs: pass layer_id")
    modules = [pair for path, top in tops for pair in walk(top, path)]
    names = [name for name, _, _ in read_slots(model)]
    matched = _outermost(
        (path, module) for path, module in modules if callable(_group_matcher(module))
    )
    towers = _outermost([*matched, *(_block_lists(modules) if matched else ())])
    if len(towers) > 1:
        raise ValueError(_ambiguous([path for path, _ in towers]))
    inside = _by_group_matcher(*matched[0], names) if matched else _by_stacks(modules, names)
    return _dense(_fill(names, inside))


def _group_matcher(module: nn.Module) -> Any:
    return getattr(module, "group_matcher", None)


def _outermost(found: Iterable[tuple[str, nn.Module]]) -> list[tuple[str, nn.Module]]:
    """`found` without what lies inside another of them; parents come first in `found`."""
    kept: list[tuple[str, nn.Module]] = []
    for path, module in found:
        if not any(_within(path, outer) for outer, _ in kept):
            kept.append((path, module))
    return kept


def _within(name: str, path: str) -> bool:
    return not path or name == path or name.startswith(f"{path}.")


def _ambiguous(paths: list[str]) -> str:
    return (
        f"layer_decay: several towers of layers ({', '.join(map(repr, paths))}) and no order "
        "between them: pass layer_id, a function from a parameter's name to its layer"
    )


def _by_group_matcher(path: str, module: nn.Module, names: list[str]) -> dict[str, int]:
    """timm's numbering: the stem, then block by block, then the head."""
    from timm.models import group_parameters

    relative = {name[len(path) :].lstrip("."): name for name in names if _within(name, path)}
    shim: Any = SimpleNamespace(named_parameters=lambda: [(name, None) for name in relative])
    ids = group_parameters(shim, _group_matcher(module)(coarse=False), reverse=True)
    return {relative[name]: 1 + layer for name, layer in ids.items()}


def _by_stacks(modules: list[tuple[str, nn.Module]], names: list[str]) -> dict[str, int]:
    """One id for each element of the outermost stacks, in the order of registration."""
    layers = [join(path, child) for path, stack in _stacks(modules) for child in stack._modules]
    inside: dict[str, int] = {}
    for i, layer in enumerate(layers, start=1):
        inside |= {name: i for name in names if _within(name, layer)}
    return inside


def _block_lists(modules: list[tuple[str, nn.Module]]) -> list[tuple[str, nn.Module]]:
    """The outermost lists that hold at least two blocks of one class."""
    lists = ((p, m) for p, m in modules if isinstance(m, (nn.ModuleList, nn.Sequential)))
    return _outermost((p, m) for p, m in lists if _repeats_blocks(m))


def _stacks(modules: list[tuple[str, nn.Module]]) -> list[tuple[str, nn.Module]]:
    """The lists of layers, one after the other: blocks where there are any, else plain layers.

    Lists follow each other when they hang on one module (`layer1` ... `layer4`), or on the
    `encoder` and the `decoder` of one module.
    """
    lists = [(p, m) for p, m in modules if isinstance(m, (nn.ModuleList, nn.Sequential))]
    if found := _block_lists(modules):
        parents = {_parent(path) for path, _ in found}
        blocks = [(p, m) for p, m in lists if _parent(p) in parents and any(map(_is_block, m))]
        found = _outermost(blocks)
    else:
        found = _outermost((p, m) for p, m in lists if sum(map(_has_parameters, m)) > 1)
    if not found:
        raise ValueError(
            "layer_decay finds no stack of layers (nn.ModuleList, nn.Sequential or a timm model): "
            "pass layer_id, a function from a parameter's name to its layer"
        )
    parents = {_parent(path) for path, _ in found}
    if len(parents) > 1 and {join(_parent(p), e) for p in parents for e in _ENDS} != parents:
        raise ValueError(_ambiguous([path for path, _ in found]))
    return found


def _parent(path: str) -> str:
    return path.rpartition(".")[0]


def _has_parameters(module: nn.Module) -> bool:
    return next(module.parameters(), None) is not None


def _is_block(module: nn.Module) -> bool:
    return any(map(_has_parameters, unwrap(module).children()))


def _repeats_blocks(stack: Iterable[nn.Module]) -> bool:
    kinds = [type(unwrap(module)) for module in stack if _is_block(module)]
    return len(kinds) > len(set(kinds))


def _fill(names: list[str], inside: dict[str, int]) -> dict[str, int]:
    """Names outside: 0 before the layers, the next id after them, in between the previous one."""
    last = max(i for i, name in enumerate(names) if name in inside)
    ids, current = {}, 0
    for i, name in enumerate(names):
        current = inside.get(name, current) if i <= last else max(inside.values()) + 1
        ids[name] = current
    return ids


def _dense(ids: dict[str, int]) -> dict[str, int]:
    rank = {layer: i for i, layer in enumerate(sorted(set(ids.values())))}
    return {name: rank[layer] for name, layer in ids.items()}
