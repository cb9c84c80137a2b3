"""Whole training steps on the CPU, torch against fastclip, and whether the losses stay the same.

    pytest bench/bench_end_to_end.py --benchmark-enable
    python bench/plot_end_to_end.py     # draws the rows

Each model trains as its users train it; fastclip's variant changes the clip, TransFuse's also the
loss, and BERT's the code that makes the groups. Every step clips. Rows named by a variant are whole
steps, their parts follow as `PART of VARIANT`. `error` is the largest difference of a loss within
50 steps, as a share of the first, from those of a run whose norm is taken in float64: what is
torch's own, fastclip may have. Those steps are of smaller batches than the ones that are timed.
"""

from __future__ import annotations

import copy
import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

import measure
import pytest
import torch
from bench_structure_loss import eager
from torch import Tensor, nn

import fastclip
from fastclip.benchmark.models.builtin import SmallGPT
from fastclip.benchmark.timing import clock_ms, keep_freed_memory

pytestmark = pytest.mark.slow
STEPS, ROUNDS, WARMUP = 50, 9, 2
HEADS = (0.5, 0.3, 0.2)
Loss = Callable[[nn.Module], Tensor]
NO_DECAY = ("bias", "LayerNorm.bias", "LayerNorm.weight")


@dataclass(frozen=True)
class Training:
    """A model with its batch; `torch_loss` and `loss` are the same number."""

    model: nn.Module
    torch_loss: Loss
    loss: Loss
    torch_groups: Callable[[nn.Module], list]
    groups: Callable[[nn.Module], list]


def plainly(model: nn.Module, loss: Loss) -> Training:
    """One loss and one list of parameters for both."""
    return Training(model, loss, loss, _parameters, _parameters)


def _parameters(model: nn.Module) -> list:
    return [p for p in model.parameters() if p.requires_grad]


def transfuse_s(small: bool) -> Training:
    transfuse = pytest.importorskip("fastclip.transfuse", reason="needs fastclip-torch[train]")
    count, size = (2, (32, 48)) if small else (4, (96, 128))
    images, mask = torch.randn(count, 3, *size), (torch.rand(count, 1, *size) > 0.7).float()

    def published(model: nn.Module) -> Tensor:
        return eager(model(images), mask)

    def fused(model: nn.Module) -> Tensor:
        return fastclip.structure_loss(model(images), mask, head_weights=HEADS)

    model = transfuse.create_model("transfuse_s")
    return Training(model, published, fused, _parameters, _parameters)


def resnet50(small: bool) -> Training:
    torchvision = pytest.importorskip("torchvision")
    count, side = (4, 32) if small else (8, 96)
    images, labels = torch.randn(count, 3, side, side), torch.randint(0, 1000, (count,))
    criterion = nn.CrossEntropyLoss()
    model = torchvision.models.resnet50(weights=None)
    return plainly(model, lambda module: criterion(module(images), labels))


def small_gpt(small: bool) -> Training:
    ids = torch.randint(0, 8192, (1, 32) if small else (2, 128))
    return plainly(SmallGPT(), lambda module: module(ids))


def bert(small: bool) -> Training:
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        hidden_size=256, num_hidden_layers=4, num_attention_heads=4, intermediate_size=1024
    )
    ids = torch.randint(0, config.vocab_size, (1, 16) if small else (4, 64))

    def classic(model: nn.Module) -> list:
        named = list(model.named_parameters())
        frees = [p for n, p in named if any(key in n for key in NO_DECAY)]
        decays = [p for n, p in named if not any(key in n for key in NO_DECAY)]
        return [{"params": decays, "weight_decay": 0.01}, {"params": frees, "weight_decay": 0.0}]

    model = transformers.BertForMaskedLM(config)
    loss: Loss = lambda module: module(input_ids=ids, labels=ids).loss  # noqa: E731
    return Training(
        model, loss, loss, classic, lambda module: fastclip.param_groups(module, weight_decay=0.01)
    )


MODELS = {
    "TransFuse_S, 4x3x96x128": transfuse_s,
    "ResNet-50, 8x3x96x96": resnet50,
    "small GPT, 2x128 tokens": small_gpt,
    "BERT (4 layers of 256), 4x64 tokens, param_groups": bert,
}


def exact_clip_(parameters: list[nn.Parameter], max_norm: float) -> Tensor:
    """torch's clip with a norm in float64."""
    squares = [p.grad.double().square().sum().item() for p in parameters if p.grad is not None]
    norm = torch.tensor(math.sqrt(math.fsum(squares)))
    nn.utils.clip_grads_with_norm_(parameters, max_norm, norm)
    return norm


def losses(training: Training, loss: Loss, groups: Callable, clip_: Callable) -> list[float]:
    """The losses of 50 steps from the same start; dropout draws the same numbers in each run."""
    model = copy.deepcopy(training.model).train()
    optimizer = torch.optim.AdamW(groups(model), lr=1e-4, weight_decay=0.0, fused=True)
    parameters, found = _parameters(model), []
    for step in range(STEPS):
        torch.manual_seed(step)
        optimizer.zero_grad()
        value = loss(model)
        value.backward()
        clip_(parameters, 0.1)
        optimizer.step()
        found.append(value.item())
    return found


def largest_difference(one: list[float], other: list[float]) -> float:
    """As a share of the first loss: a loss that is nearly 0 at the end has no digits to compare."""
    return max(abs(a - b) for a, b in zip(one, other, strict=True)) / other[0]


def differences(training: Training) -> dict[str, float]:
    """Of torch's and fastclip's losses from those of the norm in float64."""
    t = training
    exact = losses(t, t.torch_loss, t.torch_groups, exact_clip_)
    ways = {
        "torch": (t.torch_loss, t.torch_groups, nn.utils.clip_grad_norm_),
        "fastclip": (t.loss, t.groups, fastclip.clip_grad_norm_),
    }
    return {name: largest_difference(losses(t, *way), exact) for name, way in ways.items()}


def parts_ms(training: Training) -> dict[tuple[str, str], float]:
    """Median milliseconds of (part, variant); one step of each variant, interleaved."""
    keep_freed_memory()
    t, parameters = training, _parameters(training.model.train())
    variants: dict[str, tuple[Loss, Callable, Callable | None]] = {
        "torch": (t.torch_loss, t.torch_groups, nn.utils.clip_grad_norm_),
        "fastclip": (t.loss, t.groups, fastclip.clip_grad_norm_),
        "fastclip, in the step": (t.loss, t.groups, None),
    }
    optimizers = {
        name: torch.optim.AdamW(groups(t.model), lr=1e-9, fused=True)
        for name, (_, groups, _) in variants.items()
    }
    samples: dict[tuple[str, str], list[float]] = {}
    order, draw = list(variants), random.Random(0)
    for repeat in range(WARMUP + ROUNDS):
        draw.shuffle(order)
        for name in order:
            loss, _, clip_ = variants[name]
            optimizers[name].zero_grad()
            times = [clock_ms("cpu")]
            loss(t.model).backward()
            times.append(clock_ms("cpu"))
            if clip_ is None:
                fastclip.clip_grads_in_step_(optimizers[name], 1e-3)
                parts = ("forward and backward", "clip in the optimizer")
            else:
                clip_(parameters, 1e-3)
                times.append(clock_ms("cpu"))
                optimizers[name].step()
                parts = ("forward and backward", "clip", "optimizer")
            times.append(clock_ms("cpu"))
            if repeat >= WARMUP:
                for part, start, end in zip(parts, times, times[1:]):  # noqa: B905
                    samples.setdefault((part, name), []).append(end - start)
    return {key: median(values) for key, values in samples.items()}


@pytest.mark.parametrize("name", MODELS)
def bench_end_to_end(name, benchmark):
    torch.manual_seed(0)
    errors = differences(MODELS[name](small=True))
    parts = parts_ms(MODELS[name](small=False))
    whole: dict[str, float] = {}
    for (_, variant), ms in parts.items():
        whole[variant] = whole.get(variant, 0.0) + ms
    rows = measure.rows("end to end", name, "float32", whole, baseline="torch", errors=errors)
    spelled = {f"{part} of {variant}": ms for (part, variant), ms in parts.items()}
    rows += measure.rows("end to end", name, "float32", spelled, baseline="clip of torch")
    for row in rows[len(whole) :]:
        row["speedup"] = ""  # parts of different kinds, which have none
    measure.save("end_to_end_cpu", rows)
    assert errors["fastclip"] < max(10 * errors["torch"], 1e-5)
    benchmark.pedantic(lambda: None, rounds=1)
