"""The names of a model's parameters, without what wrappers add to them."""

import re
from collections.abc import Iterator
from typing import Any

from torch import nn
from torch.optim.swa_utils import AveragedModel

# Attributes of wrappers alone: torch.compile, FSDP1, activation checkpointing, Lightning Fabric.
_RESERVED = (
    "_orig_mod",
    "_fsdp_wrapped_module",
    "_checkpoint_wrapped_module",
    "_forward_module",
)
_RESERVED_PATH = re.compile(rf"(?:(?<=^)|(?<=\.)|(?<=\^))(?:{'|'.join(_RESERVED)})\\?\.")
_HOLDING = frozenset((*_RESERVED, "module"))
_HOLD_MODULE = (nn.DataParallel, nn.parallel.DistributedDataParallel, AveragedModel)
# Wrappers of packages that are not imported here, by class; they hold the model as `module` too.
_HOLD_MODULE_BY_NAME = {
    ("deepspeed", "DeepSpeedEngine"),
    ("deepspeed", "PipelineEngine"),
    ("apex", "DistributedDataParallel"),
    ("timm", "ModelEma"),
    ("timm", "ModelEmaV2"),
    ("timm", "ModelEmaV3"),
}


def strip_wrappers(name: str) -> str:
    """`name` without the path components that wrappers add.

    `module.`, which DataParallel and DDP add, stays: in a name alone it may as well be the user's.
    `named_parameters` sees the modules, and leaves it out where a wrapper put it.
    """
    return _RESERVED_PATH.sub("", name)


def unwrap(module: nn.Module) -> nn.Module:
    """The module inside torch.compile, (Distributed)DataParallel, FSDP, EMA and other wrappers."""
    if _HOLDING.isdisjoint(module._modules):
        return module
    for name in _RESERVED:
        if name in module._modules and isinstance(inner := module._modules[name], nn.Module):
            return unwrap(inner)
    if _holds_module(module) and isinstance(module.module, nn.Module):
        return unwrap(module.module)
    return module


def _holds_module(module: nn.Module) -> bool:
    if "module" not in module._modules:
        return False
    if isinstance(module, _HOLD_MODULE):
        return True
    package = type(module).__module__.partition(".")[0]
    return (package, type(module).__name__) in _HOLD_MODULE_BY_NAME


def walk(module: nn.Module, path: str = "") -> Iterator[tuple[str, nn.Module]]:
    """(path, module), parents first; wrappers leave no trace and shared modules come each time."""
    rest = [(path, module)]  # generators inside each other would cost the depth for every module
    while rest:
        path, module = rest.pop()
        module = unwrap(module)
        yield path, module
        for name, child in reversed(module._modules.items()):
            if child is not None:
                rest.append((join(path, name), child))


def attribute_of(module: nn.Module, name: str) -> Any:
    """`getattr(module, name, None)` for what is no parameter, buffer or child.

    Where there is none, `nn.Module.__getattr__` would build an error text each time.
    """
    kind = type(module)
    plain = kind.__getattr__ is nn.Module.__getattr__
    if plain and name not in module.__dict__ and not hasattr(kind, name):
        return None
    return getattr(module, name, None)


def named_parameters(
    module: nn.Module, path: str = ""
) -> Iterator[tuple[str, nn.Module, nn.Parameter]]:
    """(name, the module that holds it, parameter) for every place where a parameter hangs.

    Tied parameters come once for each of their names; their `id` tells that they are one.
    """
    for where, owner in walk(module, path):
        for name, param in owner._parameters.items():
            if param is not None:
                yield join(where, name), owner, param


def join(path: str, name: str) -> str:
    """The dotted path of `name` inside the module at `path`."""
    return f"{path}.{name}" if path else name
