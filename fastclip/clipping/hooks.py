"""What goes with one step of an optimizer: attributes for its length, and no trace of a skip."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

Attributes: TypeAlias = dict[str, Tensor]


class StepHooks:
    """Hooks round the steps of an optimizer, wherever they are called from, until removed.

    They see what a trainer's wrapper and GradScaler have set, run before other hooks at the
    beginning and after them at the end, and leave the optimizer's attributes as they were.

    Args:
        optimizer: the innermost one.
        attributes: called as a step begins; gives ``grad_scale`` and ``found_inf`` for its length.
            ``found_inf`` of 1 skips the step, of an optimizer without ``fused=True`` too.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        attributes: Callable[[torch.optim.Optimizer], Attributes],
    ) -> None:
        self._attributes = attributes
        self._undo: list[Callable[[], None]] = []
        self._hidden: Tensor | None = None
        self._fused = getattr(optimizer, "_step_supports_amp_scaling", False)
        at: Any = optimizer  # the dicts of hooks are in no public signature
        self._handles: list[Any] = [optimizer.register_step_pre_hook(self._before)]
        at._optimizer_step_pre_hooks.move_to_end(self._handles[0].id, last=False)
        if not self._fused:
            self._handles.append(optimizer.register_step_post_hook(self._show))
            at._optimizer_step_post_hooks.move_to_end(self._handles[1].id, last=False)
            self._handles.append(optimizer.register_step_pre_hook(self._conceal))
        self._handles.append(optimizer.register_step_post_hook(self._after))

    def remove(self) -> None:
        """Takes the hooks back, and the attributes of a step that did not end."""
        for handle in self._handles:
            handle.remove()
        self._after()

    def _before(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        self._after()  # of a step that raised
        values = self._attributes(optimizer)
        found = values.get("found_inf")
        if not self._fused:
            if found is not None and bool(found):
                self._undo.append(_hide_gradients(optimizer))
                self._hidden = found
                self._show(optimizer)
            return
        if found is not None:
            self._undo += _keep_state(optimizer, found)
        for name, value in values.items():
            self._undo.append(_set(optimizer, name, value))

    def _show(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        """Lets other hooks see a skip that the optimizer itself, not being fused, must not."""
        if self._hidden is not None:
            self._undo.append(_set(optimizer, "found_inf", self._hidden))

    def _conceal(self, *_: Any) -> None:
        if self._hidden is not None:
            self._undo.pop()()

    def _after(self, *_: Any) -> None:
        self._hidden = None
        while self._undo:
            self._undo.pop()()


_waiting: WeakKeyDictionary[torch.optim.Optimizer, StepHooks] = WeakKeyDictionary()


def hook_next_step(
    optimizer: torch.optim.Optimizer, attributes: Callable[[torch.optim.Optimizer], Attributes]
) -> None:
    """StepHooks for the next step alone, in the place of those that wait for it already."""
    forget_next_step(optimizer)
    is_over = False

    def once(optimizer: torch.optim.Optimizer) -> Attributes:
        nonlocal is_over
        # A hook that removes itself would change what the step iterates over.
        is_over, was_over = True, is_over
        return {} if was_over else attributes(optimizer)

    _waiting[optimizer] = StepHooks(optimizer, once)


def forget_next_step(optimizer: torch.optim.Optimizer) -> None:
    """Removes what :func:`hook_next_step` has left."""
    if (hooks := _waiting.pop(optimizer, None)) is not None:
        hooks.remove()


def _set(target: object, name: str, value: Tensor) -> Callable[[], None]:
    """Sets an attribute; returns what puts back the one before, or none."""
    missing = object()
    before = getattr(target, name, missing)
    setattr(target, name, value)

    def put_back() -> None:
        if before is not missing:
            setattr(target, name, before)
        elif hasattr(target, name):
            delattr(target, name)

    return put_back


def _hide_gradients(optimizer: torch.optim.Optimizer) -> Callable[[], None]:
    """Takes the gradients away, so that a step finds nothing to do; returns what restores them."""
    having = [(p, p.grad) for group in optimizer.param_groups for p in group["params"]]
    for p, _ in having:
        p.grad = None

    def put_back() -> None:
        for p, grad in having:
            p.grad = grad

    return put_back


def _keep_state(optimizer: torch.optim.Optimizer, found: Tensor) -> list[Callable[[], None]]:
    """Returns what takes back the state that a skipped step makes: torch's SGD leaves a momentum
    that it has not written, and takes it for one at the next step."""
    if found.device.type == "cpu":
        return [_snapshot(optimizer)] if bool(found) else []
    first = _without_momentum(optimizer)
    if not first:
        return []
    if any(group["dampening"] != 0 for group, _ in first):
        # A first step is not dampened, so whether it was one has to be known: the only wait.
        restore = _snapshot(optimizer)
        return [lambda: restore() if bool(found) else None]
    for _, p in first:
        if p.grad is not None:  # momentum * 0 + gradient is what a first step takes
            optimizer.state[p]["momentum_buffer"] = torch.zeros_like(p.grad)
    return []


def _without_momentum(optimizer: torch.optim.Optimizer) -> list[tuple[dict[str, Any], Tensor]]:
    """The parameters, with their groups, that take their first step with a momentum now."""
    if not isinstance(optimizer, torch.optim.SGD):
        return []
    return [
        (group, p)
        for group in optimizer.param_groups
        if group["momentum"] != 0
        for p in group["params"]
        if p.grad is not None and optimizer.state.get(p, {}).get("momentum_buffer") is None
    ]


def _snapshot(optimizer: torch.optim.Optimizer) -> Callable[[], None]:
    """Returns what puts back which states there were; a skipped step changes no number in them."""
    before = {p: dict(state) for p, state in optimizer.state.items()}

    def put_back() -> None:
        for p in list(optimizer.state):
            if p not in before:
                del optimizer.state[p]
            else:
                optimizer.state[p] = before[p]

    return put_back
