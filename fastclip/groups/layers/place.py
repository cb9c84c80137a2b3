"""Where the parameters outside the stacks of layers belong: below, above, or unclear."""

import re
from collections.abc import Iterable, Mapping, Sequence

from torch import nn

from fastclip.groups.layers.recipes import Recipe
from fastclip.groups.layers.stacks import Tower
from fastclip.names import unwrap

# Words that stand for the input side and for the output side wherever they are read.
_START = re.compile(
    r"embed|embd|(^|[._])(stem|patch|patchify|pos|position|positional|cls_token|class_token|dist_token|"
    r"mask_token|register_tokens|reg_token|token_type|wte|wpe|shared|input|project_in|conv_in|"
    r"ln_pre|norm_pre|pre_layrnorm|pre_layernorm)([._]|$)"
)
_END = re.compile(
    r"(^|[._])(head|heads|classifier|classification|decoder|decode|logits?|lm_head|score|fc|fc_out|"
    r"final|post|pooler|project_out|conv_out|predictions?|outputs?|qa_outputs|vocab|"
    r"segmentation|seg|neck|fpn)\d*([._]|$)"
)
# What may be either, and ends a stack only where it was registered behind it.
_WEAK_END = re.compile(
    r"(^|[._])(norm|ln|ln_f|layernorm|layer_norm|bn|out|proj|linear)([._]|$)", re.I
)
_WEAK_START = re.compile(r"^(conv1?|bn1|conv0|norm0|conv_proj)\.")
_INDEX = re.compile(r"(^|\.)\d+(\.|$)")
_LATE = re.compile(r"(embed|patch)\w*?[._]?([2-9]|1\d)(\.|$)|(embed|patch)\w*\.1(\.|$)")


def place(
    modules: Mapping[str, nn.Module],
    names: list[str],
    towers: list[Tower],
    recipe: Recipe | None = None,
) -> dict[str, int]:
    """The id of every name.

    Args:
        modules: path -> module.
        names: every name, in the order of registration.
        towers: the stacks of layers.
        recipe: the order of the towers and what stands outside them, where that is published.

    Raises:
        ValueError: no stack, several without an order, or names that may be on either side.
    """
    if not towers:
        raise ValueError(
            "layer_decay finds no stack of layers (nn.ModuleList, nn.Sequential or a timm model): "
            "pass example_inputs, or layer_id, a function from a parameter's name to its layer"
        )
    stages = _stages(towers, recipe)
    towers = [tower for stage in stages for tower in stage]
    ids: dict[str, int] = {}
    ends: dict[str, int] = {}
    offset = 0
    for stage in stages:
        for tower in stage:
            ids |= {name: offset + layer for name, layer in tower.ids.items()}
            ends[tower.path] = offset + tower.depth
        offset = max(ends[tower.path] for tower in stage)
    last = stages[-1][0] if len(stages[-1]) == 1 else None
    position = {name: i for i, name in enumerate(names)}
    unclear = []
    for name in names:
        if name in ids:
            continue
        home = _home(name, towers)
        side = _side(modules, name, home or towers[0], position, recipe)
        if side is None:
            unclear.append(name)
        elif side == "start":
            ids[name] = 0
        else:
            inner = home is not None and home is not last
            ids[name] = ends[home.path] if home is not None and inner else offset + 1
    if unclear:
        raise ValueError(_unclear(unclear, towers, offset + 1))
    return ids


def _stages(towers: list[Tower], recipe: Recipe | None) -> list[list[Tower]]:
    """The towers in order; those of one stage stand side by side."""
    if recipe is not None:
        left = iter(towers)
        staged = [[t for _ in stage if (t := next(left)).ids] for stage in recipe.stages]
        return [stage for stage in staged if stage]
    if len(towers) == 1:
        return [towers]
    if is_pair(towers):
        return [[t] for t in sorted(towers, key=lambda t: _pair_end(t.path), reverse=True)]
    raise ValueError(ambiguous([tower.path for tower in towers]))


def is_pair(towers: list[Tower]) -> bool:
    """Whether there is an encoder and a decoder of one module, which run in this order."""
    ends = {_pair_end(tower.path) for tower in towers}
    parents = {parent for parent, _ in ends}
    return len(towers) == 2 and ends == {(p, e) for p in parents for e in ("encoder", "decoder")}


def _pair_end(path: str) -> tuple[str, str]:
    """(parent, name) of the module that holds the stack."""
    parts = path.split(".")
    return ".".join(parts[:-2]), parts[-2] if len(parts) > 1 else ""


def ambiguous(paths: Sequence[str]) -> str:
    known = "|".join(re.escape(path) for path in paths)
    return (
        f"layer_decay: several towers of layers ({', '.join(map(repr, paths))}) and no order "
        "between them: pass example_inputs, or layer_id, a function from a parameter's name to "
        "its layer, such as lambda name: int(m[2]) + 1 if (m := "
        rf"re.match(r'({known})\.(\d+)', name)) else 0, with the top layer for the head"
    )


def _unclear(names: list[str], towers: list[Tower], top: int) -> str:
    shown = ", ".join(map(repr, names[:8])) + (f" and {len(names) - 8} more" if names[8:] else "")
    starts = tuple(dict.fromkeys(f"{name.rpartition('.')[0]}." for name in names))[:8]
    return (
        f"layer_decay cannot tell the layer of {shown}: outside the layers "
        f"({', '.join(repr(t.path) for t in towers)}), and neither name nor place says whether "
        "before or behind them. Pass example_inputs, or layer_id, a function from a parameter's "
        f"name to its layer: 0 if name.startswith({starts}) where they come first, {top} where last"
    )


def _home(name: str, towers: list[Tower]) -> Tower | None:
    """The tower that shares the longest path with `name`; None where all share the same."""
    shared = [_shared(name, tower.path) for tower in towers]
    best = max(shared)
    return towers[shared.index(best)] if shared.count(best) == 1 else None


def _shared(name: str, path: str) -> int:
    count = 0
    for a, b in zip(name.split("."), path.split("."), strict=False):
        if a != b:
            break
        count += 1
    return count


def _side(
    modules: Mapping[str, nn.Module],
    name: str,
    tower: Tower,
    position: Mapping[str, int],
    recipe: Recipe | None,
) -> str | None:
    """`"start"` or `"end"` of the layers; None where that is unclear."""
    if recipe is not None:
        if recipe.start and re.search(recipe.start, name):
            return "start"
        if recipe.end and re.search(recipe.end, name):
            return "end"
    common = _shared(name, tower.path)
    before = position[name] < position[next(iter(tower.ids))]
    above = ".".join(name.split(".")[:common])
    if isinstance(modules.get(above) and unwrap(modules[above]), nn.Sequential):
        return "start" if before else "end"  # a Sequential runs in the order of registration
    below = ".".join(name.split(".")[common:])
    start, end = _START.search(below), _END.search(below)
    if start and not end:
        return "start" if before and not _LATE.search(below) else None
    if end and not start:
        return "end"
    if start and end:
        return None
    if before:
        return "start" if _WEAK_START.search(below) else None
    return "end" if _WEAK_END.search(below) and not _INDEX.search(below) else None


def on_top(path: str, towers: Iterable[Tower]) -> bool:
    """Whether a stack beside `towers` is a head or a decoder by its name."""
    common = max((_shared(path, tower.path) for tower in towers), default=0)
    below = ".".join(path.split(".")[common:])
    return bool(_END.search(f"{below}.")) and not _START.search(below)


def at_bottom(path: str, towers: Iterable[Tower]) -> bool:
    """Whether a stack beside `towers` is a stem by its name."""
    common = max((_shared(path, tower.path) for tower in towers), default=0)
    return ".".join(path.split(".")[common:]) == "stem"
