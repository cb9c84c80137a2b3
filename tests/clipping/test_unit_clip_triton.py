"""unit_clip's Triton kernel without a device: interpreted, and compiled to machine code."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

triton = pytest.importorskip("triton")

TESTS = Path(__file__).parent
TYPES = {"table": "*i64", "pairs": "i32", "units": "i32"}
TYPES |= {f"{name}_{half}": "i32" for name in ("clipping", "eps") for half in ("low", "high")}
TARGETS = [("cuda", capability, 32) for capability in (80, 90, 100, 120)]
TARGETS += [("hip", "gfx942", 64)]


@pytest.mark.slow
def test_under_the_interpreter():
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    command += [str(TESTS / "interpreted_unit_clip.py")]
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS, ids=lambda target: str(target[1]))
@pytest.mark.parametrize("dtypes", [1, 13])
def test_compiles_without_spills(target, dtypes, tmp_path):
    from cubin import usage
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from fastclip.kernels.unit_clip import launch

    for shape in (launch.SHORT, launch.LONG):
        kernel = launch.clip_units
        source = ASTSource(
            fn=kernel,
            signature={name: TYPES.get(name, "constexpr") for name in kernel.arg_names},
            constexprs={"DTYPES": dtypes, "TILE": shape.tile(launch.ITEMS)},
        )
        options = {"num_warps": shape.warps, "enable_fp_fusion": True}
        compiled = triton.compile(source, target=GPUTarget(*target), options=options)
        if target[0] == "cuda":
            registers, spilled = usage(compiled, tmp_path)
            print(f"sm_{target[1]} {shape}: {registers} registers")
            assert spilled == 0
        else:
            assert compiled.asm["hsaco"]
