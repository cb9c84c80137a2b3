"""Optimizer parameter groups: which parameter decays, which is frozen, at which learning rate."""

import gc
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from fastclip.groups.arguments import (
    Chosen,
    check_rates,
    numbers,
    read_decay,
    read_options,
    read_rules,
    strings,
)
from fastclip.groups.decisions import Decision, decide, merge
from fastclip.groups.layers.ids import layer_ids
from fastclip.groups.names import Entry, Source, as_list, read_entries
from fastclip.groups.patterns import Patterns
from fastclip.groups.report import ParamGroups
from fastclip.groups.rules import RULES, read_listed
from fastclip.groups.split import mark_muon
from fastclip.groups.wrapped import check_ddp, warn_of_lost_marks

__all__ = ["ParamGroups", "param_groups"]


def param_groups(
    model: Source,
    *,
    lr: float | Tensor | None = None,
    weight_decay: float | Mapping[str, float | None] | None = None,
    no_decay: str | Iterable[str] = (),
    frozen: str | Iterable[str] = (),
    lr_scale: Mapping[str, float] | None = None,
    layer_decay: float | None = None,
    min_scale: float = 0.0,
    layer_id: Callable[[str], int] | None = None,
    example_inputs: Any = None,
    options: Mapping[str, Mapping[str, Any]] | None = None,
    split: str | None = None,
    rules: str | Iterable[str] = RULES,
    names: bool = True,
    missing_ok: bool = False,
) -> ParamGroups:
    """The parameters of `model` in few groups, each with its weight decay and learning rate.

    A parameter does not decay when one of `rules` or a `no_decay` pattern says so, under any of
    its names: tied weights are one parameter. Names are those without wrappers (DDP, FSDP,
    `torch.compile`, checkpoint wrappers). A pattern is a substring of the name that does not begin
    or end inside a number (`blocks.1` is not `blocks.10`), a glob on the whole name if it has any
    of `*?[`, or a regular expression after `re:`. Of several patterns of one argument the longest
    wins.

    Args:
        model: a module, a list of modules, or (name, parameter) pairs; pairs know no layer types.
        lr: the learning rate of every group; None leaves it to the optimizer. Groups with factor 1
            hold a tensor itself, others a product of their own.
        weight_decay: the decay, or pattern -> decay, which must cover every parameter (`'*'`);
            None leaves it to the optimizer, and only what does not decay says 0.
        no_decay: patterns of parameters that do not decay, in addition to `rules`.
        frozen: patterns of parameters to freeze: `requires_grad` becomes False, and no group
            holds them. Nothing else freezes or unfreezes a parameter. Before DDP is made.
        lr_scale: pattern -> factor on `lr`. Without `lr`, the factor of each group is its key
            `lr_scale`, which timm's, BEiT's and MAE's schedulers read; torch's do not.
        layer_decay: factor on `lr` per layer below the top one, times `lr_scale`.
        min_scale: the smallest factor that `layer_decay` gives.
        layer_id: name -> layer, 0 at the input; by default what the model or its published recipe
            says, or its one stack of layers.
        example_inputs: arguments of a forward pass (a tensor, a tuple, or a dict of keywords);
            layers are then numbered by it, on a copy without storage.
        options: pattern -> further keys of a group, as `{"embed*": {"betas": (0.9, 0.95)}}`; each
            key of the longest pattern wins. `lr` here takes the place of `lr`.
        split: `"muon"` sets `use_muon` on each group, True for hidden matrices;
            `ParamGroups.split()` parts them for two optimizers.
        rules: of `norm` (normalisation layers by type, look-alikes included), `bias` (relative
            position biases too), `ndim` (one dimension or none) and `model` (its and its
            sub-modules' `no_weight_decay()` and `no_weight_decay_keywords()`, `_no_weight_decay`
            marks); `()` leaves `no_decay` alone.
        names: whether groups have `param_names`; without, torch takes plain groups beside them.
        missing_ok: whether a pattern may match nothing.

    Returns:
        `ParamGroups`: the groups with factor 1 first, decaying ones first among equals.

    Raises:
        TypeError, ValueError: a bad argument, a pattern that matches nothing, a parameter without
            a shape or flattened by FSDP1, layers that no rule gives, nothing left to train.
            Nothing has been changed then.

    Source: BERT's optimizer (Devlin et al., 2019) for `no_decay`; BEiT (Bao et al., 2021) and
    timm for `layer_decay`; mmengine's `paramwise_cfg` for the factors by pattern.
    """
    with _no_collections():
        if not isinstance(model, nn.Module):
            model = as_list("model", model)  # type: ignore[assignment]
        entries = read_entries(model)
        chosen = Chosen(
            weight_decay=read_decay(weight_decay, entries, missing_ok),
            no_decay=_flags("no_decay", no_decay, entries, missing_ok),
            frozen=_flags("frozen", frozen, entries, missing_ok),
            lr_scale=numbers("lr_scale", {} if lr_scale is None else lr_scale, entries, missing_ok),
            options=read_options(options, entries, missing_ok),
            rules=read_rules(rules),
            listed=read_listed(model),
        )
        check_rates(lr, layer_decay, min_scale, layer_id, example_inputs)
        if layer_decay is None:
            decisions = [decide(entry, chosen) for entry in entries]
        else:
            still = {e.names[0] for e in entries if chosen.frozen.all(e.names)}
            layers = layer_ids(model, entries, layer_id, example_inputs, still)
            scales = _scales(layers, layer_decay, min_scale)
            pairs = zip(entries, layers, strict=True)
            decisions = [decide(entry, chosen, n, scales[n]) for entry, n in pairs]
        if split is not None:
            decisions = mark_muon(model, entries, decisions, split)
        _freeze(model, decisions)
        if "model" in chosen.rules:
            warn_of_lost_marks(model, entries)
        scaled = lr_scale is not None or layer_decay is not None
        taken = [taken for patterns in chosen.patterns() for taken in patterns.taken]
        made = merge(decisions, lr, scaled, names)
        return ParamGroups(made, decisions, model, lr=lr, scaled=scaled, taken=taken)


@contextmanager
def _no_collections() -> Iterator[None]:
    """Without the garbage collector, which would walk a large model's objects time and again."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _freeze(model: Source, decisions: list[Decision]) -> None:
    """Freezes what was decided, the last step that can fail."""
    if all(decision.frozen for decision in decisions):
        raise ValueError("nothing is left to train: every parameter is frozen")
    thawed = [d.param for d in decisions if d.frozen and d.param.requires_grad]
    check_ddp(model, thawed, "freeze")
    for param in thawed:
        param.requires_grad_(False)


def _flags(
    argument: str, values: str | Iterable[str], entries: list[Entry], missing_ok: bool
) -> Patterns[bool]:
    return Patterns(argument, dict.fromkeys(strings(argument, values), True), entries, missing_ok)


def _scales(layers: list[int], layer_decay: float, min_scale: float) -> dict[int, float]:
    """Layer -> factor on the learning rate; 1 at the top."""
    top = max(layers)
    return {layer: max(min_scale, layer_decay ** (top - layer)) for layer in set(layers)}
