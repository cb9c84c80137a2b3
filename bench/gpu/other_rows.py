"""Rows of the other ways to clip: by value, and by units (AGC)."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

import fastclip
from fastclip.clipping.adaptive.agc import AGC
from fastclip.ops.unit_clip.reference import clip_units_ref_
from gpu import cases, device, model, supervise
from gpu.table import copy_gb_per_s, rows
from gpu.timing import measured

LARGE = 1e9  # a limit that no gradient is over
AGC_RULE = (1e9, 1e-3)


def _by_value(backend: str, parameters: Sequence[nn.Parameter]) -> None:
    with cases.using(backend):
        fastclip.clip_grad_value_(parameters, LARGE)


def value_rows(on: device.Device, case: str) -> supervise.Entry:
    """A clip by value that finds nothing to clip: torch reads and writes all, twice."""
    parameters = cases.parameters_of(case, on.type, rehearsed=on.type == "cpu")
    tensors, _, size = cases.numbers_of(parameters)
    calls = {"torch": functools.partial(torch.nn.utils.clip_grad_value_, parameters, LARGE)}
    for backend in cases.backends_of(on):
        calls[f"fastclip {backend}"] = functools.partial(_by_value, backend, parameters)
    times = measured(on, calls)
    expected = {
        name: model.passes_ms(4, size, copy_gb_per_s(on), t["launches"])
        if name == "torch"
        else model.passes_ms(1, size, copy_gb_per_s(on), math.ceil(tensors / model.PAGE))
        for name, t in times.items()
    }
    errors = dict.fromkeys(times, 0.0)  # a clamp rounds nothing
    return {"rows": rows(on, "clip by value, nothing outside", case, times, size, errors, expected)}


def unit_rows(on: device.Device, case: str) -> supervise.Entry:
    """Adaptive clipping that finds every unit within its limit: weights and gradients are read."""
    parameters = cases.parameters_of(case, on.type, rehearsed=on.type == "cpu")
    for p in parameters:
        nn.init.normal_(p)
    size = cases.numbers_of(parameters)[2]
    calls = {"torch, by parameter": functools.partial(_by_parameter, parameters)}
    for backend in cases.backends_of(on):
        calls[f"fastclip {backend}"] = functools.partial(_by_units, backend, parameters)
    times = measured(on, calls)
    expected = {
        name: model.passes_ms(2, size, copy_gb_per_s(on), t["launches"] or 1)
        for name, t in times.items()
    }
    errors = dict.fromkeys(times, 0.0)  # none is scaled
    return {"rows": rows(on, "clip by units, all within", case, times, 2 * size, errors, expected)}


def _by_units(backend: str, parameters: Sequence[nn.Parameter]) -> None:
    with cases.using(backend):
        AGC(*AGC_RULE).clip_(parameters)


def _by_parameter(parameters: Sequence[nn.Parameter]) -> None:
    for p in parameters:
        assert isinstance(p.grad, Tensor)
        clip_units_ref_(p, p.grad, *AGC_RULE)
