"""The names of parameters, without what wrappers add to them, and the modules that hold them."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from fastclip.names import join, named_parameters, strip_wrappers, unwrap, walk

T = TypeVar("T")
Source = nn.Module | Iterable[nn.Module] | Iterable[tuple[str, Tensor]]


@dataclass(slots=True)
class Entry:
    """One parameter and every place where it hangs; several places mean tied weights."""

    param: Tensor
    names: list[str] = field(default_factory=list)
    owners: list[nn.Module | None] = field(default_factory=list)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the whole parameter, also where this rank holds a part or nothing of it."""
        return shape_of(self.param)


def shape_of(param: Tensor) -> tuple[int, ...]:
    """A parameter's shape; DeepSpeed's ZeRO-3 empties the tensor and keeps it in `ds_shape`."""
    return tuple(getattr(param, "ds_shape", param.shape))


def as_list(argument: str, values: Iterable[T]) -> list[T]:
    """`values` read once; an iterator that is already spent is an error, not an empty list."""
    if not isinstance(values, Iterable) or isinstance(values, (str, bytes, Tensor)):
        raise TypeError(f"{argument} must be a list, got {type(values).__name__}")
    listed = list(values)
    if not listed and isinstance(values, Iterator):
        raise ValueError(f"{argument} is an exhausted {type(values).__name__}: pass a list")
    return listed


def read_modules(model: Source) -> list[tuple[str, nn.Module]] | None:
    """The top modules of `model` with their paths; None where it is (name, parameter) pairs."""
    if isinstance(model, nn.Module):
        return [("", model)]
    if not isinstance(model, list) or not all(isinstance(m, nn.Module) for m in model):
        return None
    tops: dict[int, int] = {}
    for i, top in enumerate(model):
        if (first := tops.setdefault(id(unwrap(top)), i)) != i:
            raise ValueError(f"model[{i}] is given twice: it is model[{first}] already")
    for i, top in enumerate(model):
        for path, module in walk(top):
            if (j := tops.get(id(module), i)) != i:
                also = "already" if j > i else "too"
                raise ValueError(
                    f"model[{j}] is given twice: it is part of model[{i}] ({path}) {also}"
                )
    return [(str(i), top) for i, top in enumerate(model)]


def read_entries(model: Source) -> list[Entry]:
    """Every parameter of `model` once, in order, with all its names."""
    entries: dict[int, Entry] = {}
    for name, owner, param in read_slots(model):
        _check_parameter(name, param)
        entry = entries.setdefault(id(param), Entry(param))
        if name not in entry.names:
            entry.names.append(name)
            entry.owners.append(owner)
    if not entries:
        raise ValueError("model has no parameters")
    return list(entries.values())


def read_slots(model: Source) -> Iterator[tuple[str, nn.Module | None, Tensor]]:
    """(name, the module that holds it, parameter) for every place where a parameter hangs."""
    tops = read_modules(model)
    if tops is None:
        yield from _read_pairs(model)  # type: ignore[arg-type]
        return
    for top_path, top in tops:
        _check_modules(top_path, top)
        yield from named_parameters(top, top_path)


def _read_pairs(pairs: list[object]) -> Iterator[tuple[str, None, Tensor]]:
    named: dict[str, Tensor] = {}
    for pair in pairs:
        if not (isinstance(pair, tuple) and len(pair) == 2 and isinstance(pair[0], str)):
            raise TypeError(
                "model must be a module, modules, or (name, parameter) pairs such as "
                "model.named_parameters(), since the rules read names; "
                f"got a {type(pair).__name__}"
            )
        name = strip_wrappers(pair[0])
        if name in named:
            raise ValueError(f"model has the name {name!r} twice")
        named[name] = pair[1]
    wrapped = "module." if all(name.startswith("module.") for name in named) else ""
    for name, param in named.items():
        yield name.removeprefix(wrapped), None, param


def _flattened(name: str) -> str:
    return (
        f"model: FSDP1 has flattened {name!r} to one dimension, and perhaps joined weights, biases "
        "and norms, so that no rule can tell them apart. Use torch.distributed.fsdp.fully_shard, "
        "or make the groups before wrapping, with use_orig_params=True."
    )


def _check_modules(path: str, top: nn.Module) -> None:
    """Refuses a sharded FSDP1 module, whose parameters are pieces, and a scripted one."""
    for name, module in top.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            where = _place(path, name, top)
            raise TypeError(
                f"model: {where!r} is scripted or traced by torch.jit, which hides the types of "
                "its layers and what it lists as free of decay. Make the groups before "
                "torch.jit.script: the parameters stay the same objects"
            )
        if "_fsdp_wrapped_module" in module._modules:
            handle = getattr(module, "_handle", None)
            if getattr(handle, "uses_sharded_strategy", False):
                raise ValueError(_flattened(_place(path, name, top)))


def _place(path: str, name: str, top: nn.Module) -> str:
    return strip_wrappers(join(path, name)) or type(top).__name__


def _check_parameter(name: str, param: object) -> None:
    if not isinstance(param, Tensor):
        raise TypeError(f"model: {name!r} must be a parameter, got {type(param).__name__}")
    if is_lazy(param):
        raise ValueError(f"model: {name!r} has no shape yet: run the lazy module once first")
    if not param.is_leaf:
        raise ValueError(f"model: {name!r} is computed from other tensors and cannot be trained")
    if getattr(param, "_is_flat_param", False):
        raise ValueError(_flattened(name))
    if hasattr(param, "ds_id") and not hasattr(param, "ds_shape"):
        raise ValueError(
            f"model: DeepSpeed has partitioned {name!r} and left no ds_shape, so that its shape is "
            "unknown: make the groups before deepspeed.initialize"
        )
