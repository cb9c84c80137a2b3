"""The layer of each parameter: what the model says, its recipe, a traced pass, or its one stack."""

from collections.abc import Callable, Container, Mapping
from typing import Any

from torch import nn

from fastclip.groups.layers.metadata import Numbered, numbered
from fastclip.groups.layers.place import at_bottom, is_pair, on_top, place
from fastclip.groups.layers.stacks import Tower, find_towers, within
from fastclip.groups.layers.trace import traced
from fastclip.groups.names import Entry, Source, read_modules
from fastclip.names import walk


def layer_ids(
    model: Source,
    entries: list[Entry],
    layer_id: Callable[[str], int] | None,
    example_inputs: Any = None,
    frozen: Container[str] = (),
) -> list[int]:
    """The layer of each entry; frozen parameters count, so freezing never shifts an id.

    Tied weights take the id of the alias nearest to the input.

    Args:
        model: as given to `param_groups`.
        entries: its parameters.
        layer_id: name -> layer, or None to ask the model.
        example_inputs: arguments of a forward pass; used where the model says nothing itself.
        frozen: first names of parameters that will be frozen.

    Raises:
        TypeError: `layer_id` returns something else than an int.
        ValueError: no rule gives the layers.
    """
    if layer_id is None:
        ids = _automatic(model, entries, example_inputs, frozen)
    else:
        ids = {name: _checked(name, layer_id(name)) for entry in entries for name in entry.names}
    return [min(ids[name] for name in entry.names) for entry in entries]


def _checked(name: str, value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"layer_id({name!r}) must be an int, got {value!r}")
    if value < 0:
        raise ValueError(f"layer_id({name!r}) must be 0 or more, got {value}")
    return value


def _automatic(
    model: Source, entries: list[Entry], example_inputs: Any, frozen: Container[str]
) -> dict[str, int]:
    tops = read_modules(model)
    if tops is None:
        raise ValueError("layer_decay cannot see layers in (name, parameter) pairs: pass layer_id")
    modules = [pair for path, top in tops for pair in walk(top, path)]
    names = [name for entry in entries for name in entry.names]
    known = _known(modules, names, lenient=example_inputs is not None)
    if len(known) == 1 and len(known[0].ids) == len(names):
        return _dense(known[0].ids)
    if example_inputs is not None:
        if len(tops) != 1 or not isinstance(model, nn.Module):
            raise ValueError("example_inputs needs one module, which is called with them")
        return _dense(traced(model, entries, example_inputs, frozen))
    towers = [Tower(n.path, {k: 1 + v for k, v in n.ids.items()}) for n in known]
    outside = [name for name in names if not any(name in tower.ids for tower in towers)]
    found = find_towers(
        [(p, m) for p, m in modules if not any(within(p, t.path) for t in towers)], outside
    )
    if towers or (len(found) > 1 and not is_pair(found)):
        both = [*towers, *found]
        others = {t.path: [o for o in both if o is not t] for t in found}
        found = [t for t in found if not on_top(t.path, others[t.path])]
        found = [t for t in found if not at_bottom(t.path, others[t.path])]
    return _dense(place(dict(modules), names, [*towers, *found]))


def _known(modules: list[tuple[str, nn.Module]], names: list[str], lenient: bool) -> list[Numbered]:
    """The outermost modules whose layers are known; `lenient` lets a traced pass say the rest."""
    found: list[Numbered] = []
    for path, module in modules:
        if any(within(path, n.path) for n in found):
            continue
        try:
            if n := numbered(path, module, names):
                found.append(n)
        except ValueError:
            if not lenient:
                raise
    return found


def _dense(ids: Mapping[str, int]) -> dict[str, int]:
    rank = {layer: i for i, layer in enumerate(sorted(set(ids.values())))}
    return {name: rank[layer] for name, layer in ids.items()}
