"""Triton's kernels of grad_norm without a device: interpreted, and compiled to machine code."""

from __future__ import annotations

import math
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

triton = pytest.importorskip("triton")

TESTS = Path(__file__).parent
FLOAT32, ALL_DTYPES = 1, 15  # bits of csrc/tensors/chunk.h: DType
SOURCES = {
    "norm": {"table": "*i64", "partial": "*fp64", "tensors": "i32", "chunks": "i32"},
    "each": {"table": "*i64", "partial": "*fp64", "norms": "*fp64"},
    "finish": {"work": "*fp64", "total_norm": "*bf16", "optimizer": "*fp32", "count": "i32"},
    "scale": {"table": "*i64", "known": "*fp64", "tensors": "i32", "chunks": "i32"},
}
HALVES = {"max_norm_low": "i32", "max_norm_high": "i32"}
VARIANTS = [
    ("norm", {"KIND": kind, "DTYPES": dtypes, "PER_TENSOR": per_tensor})
    for kind, dtypes, per_tensor in [(2, FLOAT32, False), (1, ALL_DTYPES, True), (3, 15, False)]
]
VARIANTS += [("each", {"KIND": 2}), ("finish", {"KIND": 2})]
VARIANTS += [("scale", {"DTYPES": FLOAT32}), ("scale", {"DTYPES": ALL_DTYPES})]


@pytest.mark.slow
def test_under_the_interpreter():
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    command += [str(TESTS / "interpreted_grad_norm.py")]
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    print(result.stdout)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.slow
@pytest.mark.parametrize("capability", [80, 90, 100])
def test_compiles_without_spills(capability, tmp_path):
    from cubin import usage
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from fastclip.kernels.grad_norm import launch as kernels

    for name, constants in VARIANTS:
        arguments = SOURCES[name] | (HALVES if name in ("finish", "scale") else {})
        source = ASTSource(
            fn=getattr(kernels, name),
            signature={**arguments, **dict.fromkeys(constants, "constexpr")},
            constexprs=constants,
        )
        target = GPUTarget("cuda", capability, 32)
        options = {"num_warps": kernels.WARPS, "enable_fp_fusion": True}
        compiled = triton.compile(source, target=target, options=options)
        if constants.get("DTYPES") == FLOAT32:
            assert re.search(r"ld\.global.*v4", compiled.asm["ptx"])  # 16 bytes a load
        registers, spilled = usage(compiled, tmp_path)
        print(f"sm_{capability} {name} {constants}: {registers} registers")
        assert spilled == 0


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
