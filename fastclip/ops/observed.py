"""Who watches the calls of torch's ops: native code, which makes none, would be missing there.

A tracer (make_fx, torch.jit.trace), a TorchDispatchMode (counters of operations, of memory) and a
TorchFunctionMode see an op's registered form, or torch's own functions. CommDebugMode, which counts
communication, sees all there is of that in native code's surroundings too. A profiler sees one
range for each call.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch.autograd.profiler import record_function

_Result = TypeVar("_Result")

# Looked up once: together they take a third of a microsecond.
_dispatch_modes = torch._C._len_torch_dispatch_stack
_function_modes = torch._C._len_torch_function_stack
_is_traced = torch._C._is_tracing  # by torch.jit.trace, not by others
_is_profiled = torch._C._autograd._profiler_enabled


def is_observed() -> bool:
    """Whether a tracer or a mode is to see what is done to tensors now."""
    return (
        torch.compiler.is_compiling()
        or (_dispatch_modes() > 0 and _a_dispatch_mode_watches())
        or (_function_modes() > 0 and _a_function_mode_watches())
        or _is_traced()
    )


def is_traced_by_jit() -> bool:
    """Whether torch.jit.trace records."""
    return not torch.compiler.is_compiling() and _is_traced()


def call(
    name: str,
    visible: Callable[..., _Result],
    eager: Callable[..., _Result],
    *args: Any,
) -> _Result:
    """Runs `visible`, made of torch's ops, where someone observes, else `eager`: in one range.

    Args:
        name: of the range that a profiler shows, after ``fastclip::``.
        visible, eager: of the same meaning.
        args: of either.
    """
    if torch.compiler.is_compiling():
        return visible(*args)
    function = visible if is_observed() else eager
    if not _is_profiled():
        return function(*args)
    with record_function(f"fastclip::{name}"):
        return function(*args)


def _a_dispatch_mode_watches() -> bool:
    """One that is not CommDebugMode: collectives are torch's functional ones, which it sees."""
    module = sys.modules.get("torch.distributed.tensor.debug")
    counter = getattr(module, "CommDebugMode", None)
    modes = map(torch._C._get_dispatch_stack_at, range(_dispatch_modes()))
    return any(type(mode) is not counter for mode in modes)


def _a_function_mode_watches() -> bool:
    """One that is not torch.set_default_device's, which concerns new tensors alone."""
    modes = map(torch._C._get_function_stack_at, range(_function_modes()))
    return any(type(mode).__module__ != "torch.utils._device" for mode in modes)
