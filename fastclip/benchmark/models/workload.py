"""A model and the loss of one batch: what a training step is measured on."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fastclip.benchmark.errors import BenchmarkError

DTYPES = {
    "float32": torch.float32,
    "float64": torch.float64,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "autocast": torch.float32,  # parameters and gradients; the forward pass runs in bfloat16
}


@dataclass(frozen=True)
class Request:
    """What the user asked to measure; sizes are 0 where the model's own are meant."""

    device: str = "cpu"
    dtype: str = "float32"
    batch_size: int = 0
    sequence_length: int = 0
    input_shape: tuple[int, ...] = ()

    def context(self) -> AbstractContextManager[Any]:
        """What the forward pass runs under."""
        if self.dtype == "autocast":
            return torch.autocast(self.device, torch.bfloat16)
        return nullcontext()

    def placed(self, value: Any) -> Any:
        """Tensors, in lists and dicts too, on the device; those of floats in the dtype."""
        if isinstance(value, Tensor):
            dtype = DTYPES[self.dtype] if value.is_floating_point() else None
            return value.to(self.device, dtype)
        if isinstance(value, Mapping):
            return {key: self.placed(entry) for key, entry in value.items()}
        if isinstance(value, (list, tuple)):
            return tuple(self.placed(entry) for entry in value)
        return value


@dataclass(frozen=True)
class Workload:
    """`loss()` is a forward pass over one batch that stays the same; a scalar tensor."""

    name: str
    model: nn.Module
    loss: Callable[[], Tensor]
    batch: str  # in words: "8 x 3x224x224"

    def parameters(self) -> list[nn.Parameter]:
        """Those that train, each once; an error where there are none."""
        found = [p for p in self.model.parameters() if p.requires_grad]
        if not found:
            raise BenchmarkError(f"{self.name}: no parameter requires a gradient")
        return found


def of_model(name: str, model: nn.Module, batch: Any, words: str, request: Request) -> Workload:
    """A workload that calls the model with a batch: a tensor, a sequence or a mapping of inputs."""
    model = model.to(request.device, DTYPES[request.dtype]).train()
    placed = request.placed(batch)

    def loss() -> Tensor:
        with request.context():
            if isinstance(placed, Mapping):
                return loss_of(model(**placed))
            return loss_of(model(*placed) if isinstance(placed, tuple) else model(placed))

    return Workload(name, model, loss, words)


def loss_of(output: Any) -> Tensor:
    """The output's own loss where it has one; else the mean of the squares of all its floats."""
    own = output.get("loss") if isinstance(output, Mapping) else getattr(output, "loss", None)
    if isinstance(own, Tensor):
        return own.mean()
    if isinstance(output, Tensor) and output.ndim == 0:
        return output
    found = [t.float().square().mean() for t in floats_in(output)]
    if not found:
        raise BenchmarkError(
            f"the model returned {type(output).__name__}, in which there is no tensor of floats"
        )
    return torch.stack(found).mean()


def floats_in(output: Any) -> list[Tensor]:
    """All tensors of floats in an output of lists, tuples and mappings."""
    if isinstance(output, Tensor):
        return [output] if output.is_floating_point() else []
    if isinstance(output, Mapping):
        return floats_in(list(output.values()))
    if isinstance(output, Sequence) and not isinstance(output, str):
        return [t for entry in output for t in floats_in(entry)]
    return []


def of_function(spec: str, request: Request) -> Workload:
    """`package.module:build`, whose `build()` returns `(model, batch)` or `(model, loss)`.

    `batch` is what the model is called with: a tensor, a tuple or a dict; `loss(model)` a function
    that returns a scalar. A model alone needs `--input-shape`.
    """
    module, _, name = spec.partition(":")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())  # as `python -m` has it, and an installed command has not
    try:
        source = importlib.import_module(module)
        build = getattr(source, name, None)
        built = build() if callable(build) else None
    except ModuleNotFoundError as error:
        raise BenchmarkError(f"--model {spec}: {error} (looked in {os.getcwd()} too)") from error
    if not callable(build):
        raise BenchmarkError(f"--model {spec}: {source.__file__} has no function {name!r}")
    model, batch = built if isinstance(built, tuple) and len(built) == 2 else (built, None)
    if not isinstance(model, nn.Module):
        raise BenchmarkError(
            f"--model {spec}: {name}() returned {type(model).__name__}; wanted are a model, "
            "(model, batch) or (model, loss)"
        )
    if batch is None:
        return of_shape(spec, model, request)
    if not callable(batch):
        return of_model(spec, model, batch, "its own batch", request)
    model = model.to(request.device, DTYPES[request.dtype]).train()

    def loss() -> Tensor:
        with request.context():
            return batch(model)

    return Workload(spec, model, loss, "its own batch")


def of_shape(name: str, model: nn.Module, request: Request) -> Workload:
    """A model that takes one tensor, fed with random numbers of `--input-shape`."""
    if not request.input_shape:
        raise BenchmarkError(
            f"--model {name} came without a batch: return (model, batch), or say the shape of one "
            "input, as --input-shape 3x224x224"
        )
    batch_size = request.batch_size or 8
    words = f"{batch_size} x {'x'.join(map(str, request.input_shape))}"
    return of_model(name, model, torch.randn(batch_size, *request.input_shape), words, request)
