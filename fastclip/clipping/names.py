"""The parameters of optimizer groups by name, in errors that say which gradient is not finite."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import SimpleNamespace
from typing import Any, NoReturn, TypeAlias

import torch
from torch import Tensor

from fastclip.ops.grad_norm.backends import Grads, collect
from fastclip.ops.grad_norm.dispatch import NONFINITE
from fastclip.ops.grad_norm.parts import GradParts

Tensors: TypeAlias = Tensor | Iterable[Tensor] | Iterable[tuple[str, Tensor]]
_NAMED = 5  # how many offending gradients an error names


def labels(groups: Sequence[Mapping[str, Any]]) -> list[str]:
    """How an error calls each parameter of the groups, in their order.

    By ``param_names``, which torch's optimizers keep where they were given (name, parameter) pairs
    and :func:`fastclip.param_groups` always; else by place.
    """
    found: list[str] = []
    for g, group in enumerate(groups):
        count = len(group["params"])
        names = list(group.get("param_names") or ())
        places = [f"parameter {i} of group {g}" for i in range(count)]
        found += names if len(names) == count else places
    return found


def raise_nonfinite(p: float, grads: Grads | None, groups: Sequence[Mapping[str, Any]]) -> NoReturn:
    """Raises torch's error for a norm that is not finite, with the first offenders' names.

    All ranks raise; each names what it holds itself, for not all may have come this far.

    Args:
        p: the norm's order.
        grads: the gradients as `collect` gave them, or None where torch does the work.
        groups: whose parameters they are of, in order.
    """
    parameters = [q for group in groups for q in group["params"]]
    bad = _offenders(p, grads, parameters)
    having = [
        name for q, name in zip(parameters, labels(groups), strict=True) if q.grad is not None
    ]
    named = ", ".join(having[i] for i in bad[:_NAMED]) + (", ..." if len(bad) > _NAMED else "")
    where = f". Non-finite: the gradients of {named} ({len(bad)} of {len(having)})" if bad else ""
    if not bad and grads is not None and (exact := grads.exact_norm(p)).isfinite():
        where = f". It is {exact.item():.6g}, past the range of {grads.dtype}"
    raise RuntimeError(NONFINITE.format(p=p) + where)


def split_pairs(
    given: list[Tensor] | list[tuple[str, Tensor]],
) -> tuple[list[str] | None, list[Tensor]]:
    """(names, tensors) of a list of (name, tensor) pairs; (None, the list) of anything else."""
    if not (given and type(given[0]) is tuple):
        return None, given  # type: ignore[return-value]
    for i, pair in enumerate(given):
        if not (type(pair) is tuple and len(pair) == 2 and isinstance(pair[0], str)):
            raise TypeError(f"of (name, tensor) pairs, number {i} is no pair: {pair!r:.80}")
    return [name for name, _ in given], [tensor for _, tensor in given]


def as_tensors(given: Tensors) -> list[Tensor]:
    """A tensor, tensors, or (name, tensor) pairs such as ``named_parameters()``, as tensors."""
    return split_pairs([given] if isinstance(given, Tensor) else list(given))[1]


@contextlib.contextmanager
def named_nonfinite(
    names: list[str], tensors: list[Tensor], norm_type: float, take_grads: bool
) -> Iterator[None]:
    """Has an error for a norm that is not finite, raised inside, say names."""
    try:
        yield
    except RuntimeError as error:
        p = float(norm_type)
        if not str(error).startswith(NONFINITE.format(p=p)):
            raise
        grads = collect(tensors, take_grads=take_grads)
        holders = tensors if take_grads else [SimpleNamespace(grad=t) for t in tensors]
        able = grads if grads and grads.has_norm(p) else None
        raise_nonfinite(p, able, [{"params": holders, "param_names": names}])


@torch.no_grad()
def _offenders(p: float, grads: Grads | None, parameters: list[Tensor]) -> list[int]:
    """Indices among the gradients that exist."""
    if grads is None:
        found = [q.grad for q in parameters if q.grad is not None]
        return [
            i
            for i, grad in enumerate(found)
            if grad.layout is torch.strided and not grad.isfinite().all()
        ]
    norms = grads.local_norms(p) if isinstance(grads, GradParts) else grads.norms(p)
    return (~norms[0].isfinite()).nonzero().flatten().tolist()
