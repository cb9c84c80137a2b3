"""Triton's kernels of grad_norm without a device: interpreted, and compiled to machine code."""

from __future__ import annotations

import math
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

triton = pytest.importorskip("triton")

TESTS = Path(__file__).parent
MOST_REGISTERS = 128  # of a thread: two programs of 8 warps on a multiprocessor
FLOAT32, ALL_DTYPES = 1, 15  # bits of csrc/tensors/chunk.h: DType
HALVES = {"p_low": "i32", "p_high": "i32"}
LIMIT = {"max_norm_low": "i32", "max_norm_high": "i32"}
TABLE = {"table": "*i64", "tensors": "i32", "chunks": "i32"}
TYPES: dict[str, dict[str, str]] = {
    "norm": {**TABLE, "partial": "*fp64", **HALVES, "units": "*fp64"},
    "each": {"table": "*i64", "partial": "*fp64", "norms": "*fp64", "chunks": "i32"}
    | {"programs": "i32", **HALVES, "units": "*fp64"},
    "finish": {"work": "*fp64", "total_norm": "*bf16", "count": "i32", **LIMIT},
    "scale": {**TABLE, "number": "*fp64", **LIMIT},
    "clamp": {**TABLE, "limit_low": "i32", "limit_high": "i32"},
}
NORMS = [(2, FLOAT32, False), (1, ALL_DTYPES, True), (3, ALL_DTYPES, False), (2, ALL_DTYPES, False)]
NORMS += [(4, ALL_DTYPES, True), (5, ALL_DTYPES, True)]


def variants(shape) -> list[tuple[str, dict[str, Any], int]]:
    """(kernel, its constants, its warps) of every kernel that is launched with a shape."""
    from fastclip.kernels.grad_norm import launch

    found: list[tuple[str, dict[str, Any], int]] = []
    for kind, dtypes, per_tensor in NORMS:
        items = launch.POWER_ITEMS if kind == 5 else launch.NORM_ITEMS
        sizes = {"CHUNK": shape.chunk, "TILE": shape.tile(items)}
        kinds = {"KIND": kind, "DTYPES": dtypes, "PER_TENSOR": per_tensor, "HAS_UNITS": kind == 5}
        found.append(("norm", kinds | sizes, shape.warps))
    sizes = {"CHUNK": shape.chunk, "TILE": shape.tile(launch.CHANGE_ITEMS)}
    for dtypes in (FLOAT32, ALL_DTYPES):
        found += [
            ("scale", {"MODE": mode, "DTYPES": dtypes, **sizes}, shape.warps) for mode in (0, 1, 2)
        ]
        found.append(("clamp", {"DTYPES": dtypes, **sizes}, shape.warps))
    for kind in (2, 5):
        kinds = {"KIND": kind, "HAS_UNITS": kind == 5, "CHUNK": shape.chunk}
        found.append(("each", kinds, 4))
    return [*found, ("finish", {"KIND": 2}, 4)]


def compiled(name: str, constants: dict[str, Any], warps: int, target) -> Any:
    from triton.compiler import ASTSource

    from fastclip.kernels.grad_norm import launch

    kernel = getattr(launch, name)
    types = TYPES[name]
    signature = {
        argument: types.get(argument, "constexpr") for argument in kernel.arg_names
    }  # in the kernel's own order
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants)
    options = {"num_warps": warps, "enable_fp_fusion": True}
    return triton.compile(source, target=target, options=options)


@pytest.mark.slow
def test_under_the_interpreter():
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    command += [str(TESTS / "interpreted_grad_norm.py")]
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    print(result.stdout)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.slow
@pytest.mark.parametrize("shape", ["LONG", "SHORT"])
@pytest.mark.parametrize("capability", [80, 90, 100, 120])
def test_compiles_without_spills(capability, shape, tmp_path):
    from cubin import usage
    from triton.backends.compiler import GPUTarget

    from fastclip.kernels.grad_norm import launch

    target = GPUTarget("cuda", capability, 32)
    for name, constants, warps in variants(getattr(launch, shape)):
        binary = compiled(name, constants, warps, target)
        if constants.get("DTYPES") == FLOAT32 and name != "clamp":
            assert re.search(r"ld\.global.*v4", binary.asm["ptx"])  # 16 bytes a load
        registers, spilled = usage(binary, tmp_path)
        print(f"sm_{capability} {shape} {name} {constants}: {registers} registers")
        assert spilled == 0
        assert "atom" not in binary.asm["ptx"]
        if name in ("norm", "scale", "clamp") and constants.get("KIND") != 5:
            assert registers <= MOST_REGISTERS


@pytest.mark.slow
@pytest.mark.parametrize("shape", ["LONG", "SHORT"])
def test_compiles_for_other_vendors(shape):
    from triton.backends.compiler import GPUTarget

    from fastclip.kernels.grad_norm import launch

    for arch, width in (("gfx942", 64), ("gfx1100", 32)):
        for name, constants, warps in variants(getattr(launch, shape)):
            assert compiled(name, constants, warps, GPUTarget("hip", arch, width)).asm["hsaco"]


def test_a_graph_of_any_number_of_rows():
    from fastclip.ops.grad_norm.gpu.tables import Reserve, in_graph

    reserve = Reserve(pinned=False)
    reserve.grow(4)
    room = len(reserve._free)
    rows = torch.arange(4 * 5000).view(-1, 4) * 10**12
    device = torch.device("cpu")
    for graph in range(room // 5000 + 3):  # past what was set aside
        found = in_graph(rows + graph, str(graph).encode(), device, reserve)
        assert torch.equal(found, rows + graph)
    left = len(reserve._free)
    assert in_graph(rows, b"0", device, reserve) is in_graph(rows, b"0", device, reserve)
    assert len(reserve._free) == left  # once for all graphs of the same tensors
    reserve.grow(100_000)
    assert len(reserve._free) >= 400_000


def test_python_and_native_lists_agree():
    from fastclip import native
    from fastclip.ops.grad_norm.tensor_list import PythonTensorList

    if native.core is None:
        pytest.skip(f"no core: {native.why_missing}")
    tensors = [torch.ones(n, dtype=dtype) for n, dtype in [(5, torch.float16), (70, torch.float64)]]
    ours, theirs = PythonTensorList(tensors, False), native.core.TensorList(tensors, False)
    assert ours.addresses() == theirs.addresses()
    assert (ours.dtypes, ours.device) == (theirs.dtypes, theirs.device)
    empty = [torch.empty(0)]
    ours_empty, theirs_empty = PythonTensorList(empty, False), native.core.TensorList(empty, False)
    for p in (0.0, 1.0, 2.0, math.inf, -math.inf, math.nan, 0.5):
        assert ours.has_norm(p) == theirs.has_norm(p) == (p != 0 and p == p)
        assert ours_empty.has_norm(p) == theirs_empty.has_norm(p) == (p in (0.5, 1.0, 2.0))


def test_python_lists_refuse_what_kernels_cannot_read():
    from fastclip.ops.grad_norm.tensor_list import PythonTensorList

    x = torch.ones(4, 4)
    for bad in ([x[:, 1]], [x, x], [x.int()], [x.to_sparse()], [x, torch.ones(1, device="meta")]):
        with pytest.raises(NotImplementedError):
            PythonTensorList(bad, False)
    parameter = torch.nn.Parameter(x)
    parameter.grad = torch.ones(4, 4).to(memory_format=torch.preserve_format)
    assert len(PythonTensorList([parameter, torch.nn.Parameter(x.clone())], True)) == 1
