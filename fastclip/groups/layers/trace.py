"""Layers in the order of a forward pass, on a copy of the model without storage.

A layer lies above another where data flows from that one into it, so that towers side by side are
counted each from its own input. Nothing is computed: tensors on the meta device have shapes alone.
"""

import copy
from collections.abc import Callable, Container, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from fastclip.groups.names import Entry, Source
from fastclip.names import join, named_parameters, unwrap, walk


def traced(
    model: Source, entries: list[Entry], example_inputs: Any, frozen: Container[str] = ()
) -> dict[str, int]:
    """The layer of every name, by one forward pass.

    Args:
        model: a module; it is copied, not run.
        entries: its parameters.
        frozen: first names of parameters that may be unused, as those without a gradient may.
        example_inputs: a tensor, a tuple of arguments, or a dict of keyword arguments.

    Raises:
        ValueError: the pass fails without data, or leaves trainable parameters unused.
    """
    assert isinstance(model, nn.Module)
    bare = unwrap(model)
    meta = _without_storage(bare)
    names = {id(p): name for name, _, p in reversed(list(named_parameters(meta)))}
    blocks = _blocks(meta, set(names.values()))
    flow = _Flow(names, blocks, meta)
    args, kwargs = _arguments(example_inputs)
    try:
        with torch.no_grad(), flow, _watched(meta, flow):
            meta(*args, **kwargs)
    except Exception as error:
        raise ValueError(
            "example_inputs: the forward pass fails on tensors without data "
            f"({type(error).__name__}: {str(error)[:200]}); pass layer_id"
        ) from error
    return _numbered(entries, flow, frozen)


def _numbered(entries: list[Entry], flow: "_Flow", frozen: Container[str]) -> dict[str, int]:
    top = max(flow.layers.values(), default=0) + 1
    ids: dict[str, int] = {}
    unused = []
    for entry in entries:
        found = [flow.layer_of(name, top) for name in entry.names]
        used = [layer for layer in found if layer is not None]
        if not used and entry.param.requires_grad and entry.names[0] not in frozen:
            unused.append(entry.names[0])
        if used:
            ids |= dict.fromkeys(entry.names, min(used))
    if unused:
        shown = ", ".join(map(repr, unused[:8])) + (" ..." if unused[8:] else "")
        raise ValueError(
            f"example_inputs: the forward pass does not use {shown}, so that their layer is "
            "unknown; freeze them, or pass layer_id"
        )
    bottom = min(ids.values(), default=0)
    return {name: ids.get(name, bottom) for entry in entries for name in entry.names}


def _without_storage(model: nn.Module) -> nn.Module:
    """A copy whose tensors are all on the meta device; parameters that are tied stay so."""
    memo: dict[int, Any] = {}
    for _, module in walk(model):
        for slot in (module._parameters, module._buffers, vars(module)):
            for value in slot.values():
                if isinstance(value, nn.Parameter):
                    memo[id(value)] = nn.Parameter(value.detach().to("meta"), False)
                elif isinstance(value, Tensor):
                    memo[id(value)] = value.detach().to("meta")
    return copy.deepcopy(model, memo)


def _arguments(example_inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    made = tree_map(lambda x: x.to("meta") if isinstance(x, Tensor) else x, example_inputs)
    if isinstance(made, Mapping):
        return (), dict(made)
    return (tuple(made), {}) if isinstance(made, (tuple, list)) else ((made,), {})


def _blocks(model: nn.Module, names: set[str]) -> dict[str, str]:
    """Name -> the layer that holds it: an element of a list, or a child where there is no list.

    A list inside a list is looked through; lists inside a layer are part of it.
    """
    paths = [p for p in _elements("", model, False, True) if p]
    paths = paths or [p for p in _elements("", model, False, False) if p]
    if not paths:
        paths = [p for p, m in model.named_children() if any(True for _ in m.children())]
    found = {}
    chosen = set(paths)
    for name in names:
        parts = name.split(".")
        for depth in range(1, len(parts)):
            if (path := ".".join(parts[:depth])) in chosen:
                found[name] = path
                break
    return found


def _elements(path: str, module: nn.Module, listed: bool, of_blocks: bool) -> Iterator[str]:
    """The elements of lists; `of_blocks`, of those alone whose elements hold modules."""
    module = unwrap(module)
    if listed and not isinstance(module, (nn.ModuleList, nn.ModuleDict)):
        yield path
        return
    is_list = isinstance(module, (nn.ModuleList, nn.Sequential))
    counts = is_list and (
        not of_blocks or any(any(True for _ in m.children()) for m in module.children())
    )
    for name, child in module._modules.items():
        if child is not None:
            yield from _elements(join(path, name), child, counts, of_blocks)


class _Flow(TorchDispatchMode):
    """How many layers lie below each tensor, and which layer or depth uses each parameter."""

    def __init__(
        self, names: Mapping[int, str], blocks: Mapping[str, str], model: nn.Module
    ) -> None:
        super().__init__()
        self.blocks = blocks
        self.layers: dict[str, int] = {}  # path of a layer -> its number
        self.depths: dict[str, int] = {}  # name -> the number of layers below its first use
        self._depth: dict[int, int] = {}  # storage -> layers below it
        self._origins: dict[int, frozenset[str]] = {}  # storage made of parameters alone -> which
        self._alive: list[Any] = []  # storages, so that none of their addresses is used again
        for _, _, param in named_parameters(model):
            self._origins[self._key(param)] = frozenset({names[id(param)]})

    def _key(self, tensor: Tensor) -> int:
        storage = tensor.untyped_storage()
        if storage._cdata not in self._depth and storage._cdata not in self._origins:
            self._alive.append(storage)
        return storage._cdata

    def depth_of(self, values: Any) -> int:
        keys = [self._key(x) for x in tree_leaves(values) if isinstance(x, Tensor)]
        return max((self._depth.get(key, 0) for key in keys), default=0)

    def enter(self, layer: str, values: Any) -> None:
        """A layer is called: it lies above all that it is given."""
        self.layers.setdefault(layer, 1 + self.depth_of(values))

    def layer_of(self, name: str, top: int) -> int | None:
        """The number of a name's layer; outside of layers `top` behind the deepest one."""
        if (layer := self.blocks.get(name)) is not None and layer in self.layers:
            return self.layers[layer] if name in self.depths else None
        depth = self.depths.get(name)
        return top if depth == top - 1 and top > 1 else depth

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        given = [self._key(x) for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        origins = frozenset().union(*(self._origins.get(key, frozenset()) for key in given))
        made = [self._key(x) for x in tree_leaves(out) if isinstance(x, Tensor)]
        if given and all(key in self._origins for key in given):
            for key in made:  # a function of parameters alone, such as a cast or a transpose
                if key not in self._depth:
                    self._origins[key] = origins | self._origins.get(key, frozenset())
            return out
        depth = max((self._depth.get(key, 0) for key in given), default=0)
        above = depth
        for name in origins:
            self.depths.setdefault(name, depth)
            if (layer := self.blocks.get(name)) is not None:
                above = max(above, self.layers.setdefault(layer, depth + 1))
        for key in made:
            self._origins.pop(key, None)
            self._depth[key] = max(above, self._depth.get(key, 0))
        return out


class _watched:
    """Tells `flow` of every call of a layer."""

    def __init__(self, model: nn.Module, flow: _Flow) -> None:
        self.layers = {p: m for p, m in walk(model) if p in set(flow.blocks.values())}
        self.flow = flow
        self.handles: list[Any] = []

    def __enter__(self) -> None:
        for path, module in self.layers.items():
            hook = self._hook(path)
            self.handles.append(module.register_forward_pre_hook(hook, with_kwargs=True))

    def _hook(self, path: str) -> Callable[..., None]:
        def enter(module: nn.Module, args: Any, kwargs: Any) -> None:
            self.flow.enter(path, (args, kwargs))

        return enter

    def __exit__(self, *_: object) -> None:
        for handle in self.handles:
            handle.remove()
