"""The parameters of optimizer groups by name, in errors that say which gradient is not finite."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor

from fastclip.ops.grad_norm.backends import Grads
from fastclip.ops.grad_norm.dispatch import NONFINITE
from fastclip.ops.grad_norm.parts import GradParts

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
    raise RuntimeError(NONFINITE.format(p=p) + where)


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
