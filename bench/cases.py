"""The table of cases that `make bench` and `make gpu` share: op, shapes, dtypes, bytes, baselines.

A case of gradients is a list of shapes; its dtypes go to the tensors in turn. `on_cpu` and `on_gpu`
name the dtypes that each of the two measures. `bytes_moved` is what the work must read and write,
whoever does it, and with it a row's GB/s.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

Shape = tuple[int, ...]
Dtypes = tuple[torch.dtype, ...]
F32, BF16 = torch.float32, torch.bfloat16
STATE_DICT_S = Path(__file__).parents[1] / "tests" / "data" / "state_dict_s.txt"

# What each op is measured against; how each is written stands in baselines.py. Not in a row are
# peers that are not installed, and torch.compile where a case says so.
BASELINES = {
    "clip": ("torch", "rewrite", "torch, compiled", "optax", "read"),
    "clip value": ("torch", "read"),
    "agc": ("torch", "rewrite", "timm", "read"),
    "autoclip": ("plain",),
    "zclip": ("plain",),
    "structure_loss": ("eager", "rewrite", "rewrite, compiled", "copy"),
    "structure_loss, pixel": ("eager", "compiled"),
}
# Passes over the gradients' bytes: a read where nothing is clipped, else a read and a read-write;
# AGC reads the weights too.
PASSES = {
    ("clip", False): 1,
    ("clip", True): 3,
    ("clip value", False): 1,
    ("clip value", True): 1,
    ("agc", False): 2,
    ("agc", True): 4,
}


@dataclass(frozen=True)
class Case:
    """A list of gradients. `ops` measure it on the CPU; a GPU clips it."""

    name: str
    shapes: Callable[[], list[Shape]]
    ops: tuple[str, ...] = ("clip",)
    on_cpu: dict[str, Dtypes] = field(default_factory=dict)
    on_gpu: dict[str, Dtypes] = field(default_factory=dict)
    compiled: bool = False  # torch.compile of thousands of tensors takes minutes

    def parameters(self, dtypes: Dtypes, device: str = "cpu", seed: int = 0) -> list[nn.Parameter]:
        """Parameters and gradients of random numbers, the same ones at every call."""
        torch.manual_seed(seed)
        found = []
        for i, shape in enumerate(self.shapes()):
            dtype = dtypes[i % len(dtypes)]
            p = nn.Parameter(torch.randn(shape, device=device).to(dtype))
            p.grad = torch.randn(shape, device=device).to(dtype)
            found.append(p)
        return found


def bytes_moved(op: str, grads: list[Tensor], clipping: bool) -> int:
    """Bytes that an op on these gradients has to read and write."""
    return PASSES[op, clipping] * sum(g.numel() * g.element_size() for g in grads)


def transfuse_s() -> list[Shape]:
    """The 382 trained tensors, from the list of the published checkpoint's keys and shapes."""
    lines = [line.split("\t") for line in STATE_DICT_S.read_text().splitlines()]
    return [tuple(json.loads(line[1])) for line in lines if line[-1] == "param"]


def resnet50() -> list[Shape]:
    """The 161 tensors of an ImageNet classifier."""
    shapes: list[Shape] = [(64, 3, 7, 7), (64,), (64,)]
    inputs = 64
    for blocks, width in ((3, 64), (4, 128), (6, 256), (3, 512)):
        for block in range(blocks):
            for shape in ((width, inputs, 1, 1), (width, width, 3, 3), (4 * width, width, 1, 1)):
                shapes += [shape, shape[:1], shape[:1]]
            if block == 0:
                shapes += [(4 * width, inputs, 1, 1), (4 * width,), (4 * width,)]
            inputs = 4 * width
    return [*shapes, (1000, 2048), (1000,)]


def transformer() -> list[Shape]:
    """24 layers of width 2048 with a vocabulary of 50257: 1.3 billion parameters."""
    d = 2048
    shapes: list[Shape] = [(50257, d), (2048, d)]
    for _ in range(24):
        shapes += [(d,), (d,), (3 * d, d), (3 * d,), (d, d), (d,)]
        shapes += [(d,), (d,), (4 * d, d), (4 * d,), (d, 4 * d), (d,)]
    return [*shapes, (d,), (d,)]


def equal(count: int, *shape: int) -> Callable[[], list[Shape]]:
    """So many tensors of one shape."""
    return lambda: [shape] * count


ALL = {"float32": (F32,), "bfloat16": (BF16,), "mixed": (F32, BF16)}
ONE = {"float32": (F32,)}
GPU = {"fp32": (F32,)}
TRANSFUSE_S = "transfuse_s (382 tensors, 26.2M)"
CASES = [
    Case("1 x 26.2M", equal(1, 26_200_000), ("clip", "agc"), ALL, compiled=True),
    Case("100 x 100k", equal(100, 100_000), ("clip",), ALL, compiled=True),
    Case(TRANSFUSE_S, transfuse_s, ("clip", "clip value", "agc"), ALL, GPU, compiled=True),
    Case("resnet50", resnet50, on_gpu=GPU),
    Case(
        "transformer 1.3B",
        transformer,
        on_gpu={"bf16": (BF16,), "bf16/fp32": (BF16, BF16, F32, BF16, BF16)},
    ),
    Case("1000 x 1000", equal(1000, 10, 100), ("clip", "clip value", "agc"), ALL, GPU),
    Case("10000 x 100", equal(10_000, 100), ("clip",), ALL, GPU),
    Case("10000 x 1", equal(10_000, 1), ("clip",), ALL),
    Case("1 x 1 GiB", equal(1, 1 << 28), on_gpu=GPU, compiled=True),
    # An open NeMo Automodel proposal: 500 matrices of 10.3e9 elements.
    Case("500 matrices, 10.3e9", equal(500, 4096, 5029), on_gpu=GPU),
    # TransformerEngine's multi-tensor norm: 225M elements, mixed.
    Case("225M", equal(150, 1500, 1000), on_gpu={"bf16/fp32": (BF16, F32)}),
]
BY_NAME = {case.name: case for case in CASES}


def on_cpu(op: str) -> list[tuple[str, str]]:
    """(case, dtype) of all rows of an op that `make bench` measures; AGC and value in float32."""
    dtypes = {case.name: case.on_cpu if op == "clip" else ONE for case in CASES}
    return [(c.name, dtype) for c in CASES if op in c.ops and c.on_cpu for dtype in dtypes[c.name]]


def on_gpu() -> dict[str, tuple[Callable[[], list[Shape]], Dtypes]]:
    """The lists that `make gpu` clips: shapes and dtypes, by a name that has both."""
    found = {}
    for case in CASES:
        for dtype, dtypes in case.on_gpu.items():
            name = case.name.partition(" (")[0]
            found[f"{name} {dtype}"] = (case.shapes, dtypes)
    return found


@dataclass(frozen=True)
class LossCase:
    """Heads of one shape, [B, C, H, W], and one mask of float32."""

    name: str
    heads: int
    shape: Shape
    on_cpu: Dtypes = (F32,)
    on_gpu: Dtypes = ()

    def bytes_moved(self, dtype: torch.dtype) -> int:
        """One read of the logits and the mask, one write of the gradients."""
        maps = math.prod(self.shape)
        return maps * (2 * self.heads * dtype.itemsize + F32.itemsize)


LOSSES = {
    case.name: case
    for case in (
        LossCase("3 heads, 16x1x192x256", 3, (16, 1, 192, 256), (F32, BF16, torch.float16)),
        LossCase("1 head, 16x1x192x256", 1, (16, 1, 192, 256)),
        LossCase("3 heads, 16x1x352x352", 3, (16, 1, 352, 352), (F32,), (BF16,)),
        LossCase("3 heads, 2x1x1024x1024", 3, (2, 1, 1024, 1024)),
    )
}
