"""What wrappers take away: gradients that DDP waits for, marks that sharding drops."""

import warnings
from collections.abc import Iterable, Iterator

from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from fastclip.groups.names import Entry, Source, read_modules
from fastclip.names import walk

MARK = "_no_weight_decay"


def check_ddp(model: Source, params: Iterable[Tensor], verb: str) -> None:
    """Refuses to change `requires_grad` of parameters that a DDP reducer already watches.

    Raises:
        ValueError: one of them is inside DistributedDataParallel.
    """
    changed = {id(p) for p in params}
    for _, top in (read_modules(model) or []) if changed else []:
        for module in top.modules():
            if not isinstance(module, DistributedDataParallel):
                continue
            tolerant = verb == "freeze" and module.find_unused_parameters
            for name, param in module.module.named_parameters():
                if id(param) in changed and not tolerant:
                    raise ValueError(
                        f"cannot {verb} {name!r}: DistributedDataParallel fixed the gradients that "
                        "it waits for when it was made. Call param_groups on the model first, "
                        "then wrap it in DistributedDataParallel"
                    )


def warn_of_lost_marks(model: Source, entries: list[Entry]) -> None:
    """Warns where `_no_weight_decay` marks were probably set, and no parameter has one now."""
    if any(hasattr(entry.param, MARK) for entry in entries):
        return
    makers = sorted(dict.fromkeys(_makers(model)))
    sharded = [entry.names[0] for entry in entries if hasattr(entry.param, "device_mesh")]
    if not makers and not sharded:
        return
    who = f"{', '.join(makers)} sets" if makers else "if your model sets"
    where = f" ({sharded[0]!r} and {len(sharded) - 1} more are DTensors)" if sharded else ""
    warnings.warn(
        f"param_groups: {who} {MARK} on its parameters, and none carries the mark now: "
        "fully_shard, parallelize_module, to_empty and load_state_dict(assign=True) replace "
        f"parameters{where}. "
        "Set the marks again afterwards, or name the parameters in no_decay",
        stacklevel=3,
    )


def _makers(model: Source) -> Iterator[str]:
    """The classes whose own code writes the mark."""
    seen: dict[type, bool] = {}
    for _, top in read_modules(model) or []:
        for _, module in walk(top):
            kind = type(module)
            if kind not in seen:
                seen[kind] = any(
                    _writes_mark(base) for base in kind.__mro__ if base is not nn.Module
                )
            if seen[kind] and any(p is not None for p in module._parameters.values()):
                yield kind.__name__


def _writes_mark(kind: type) -> bool:
    functions = (getattr(f, "__code__", None) for f in vars(kind).values())
    return any(code is not None and MARK in code.co_names for code in functions)
