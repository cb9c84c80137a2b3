"""The structure loss through Triton: interpreted on the CPU, compiled without a GPU, run on one."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fastclip.ops.structure_loss import dispatch as op
from fastclip.ops.structure_loss import triton as gpu

needs_triton = pytest.mark.skipif(not gpu.HAS_TRITON, reason="triton is not installed")


def test_import_fastclip_does_not_import_triton():
    code = "import sys, fastclip; sys.exit('triton' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_triton_owns_cuda_and_says_where_it_is_missing(monkeypatch):
    monkeypatch.setattr(gpu, "HAS_TRITON", True)
    assert op.implementation("cuda") == ("triton", "")
    monkeypatch.setattr(gpu, "HAS_TRITON", False)
    assert op.implementation("cuda") == ("reference", "triton is not installed")


@needs_triton
@pytest.mark.slow
def test_interpreted():
    here = Path(__file__).parent
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-W", "ignore"]
    done = subprocess.run(
        [*command, *map(str, sorted(here.glob("interpreted_structure_loss*.py")))],
        env=os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    print(done.stdout[-8000:], done.stderr[-2000:])
    assert done.returncode == 0
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed
    assert int(passed[1]) > 100
    assert "skipped" not in done.stdout


class Recorder:
    """Stands for a kernel, and notes what it is launched with."""

    def __init__(self, kernel, launches):
        self.kernel, self.launches = kernel, launches

    def __getitem__(self, grid):
        assert all(0 < size < 2**31 for size in grid)
        return lambda *args, **constants: self.launches.append((self.kernel, args, constants))


def recorded(monkeypatch, shape, logits, mask, heads, valid=None, window=31, kind=None):
    """The launches of forward and backward on tensors without memory."""
    from fastclip.kernels.structure_loss import launch

    launches = []
    for name in ("column_sums", "image_sums", "gradients"):
        monkeypatch.setattr(launch, name, Recorder(getattr(launch, name), launches))
    xs = [torch.empty(shape, dtype=logits, device="meta") for _ in range(heads)]
    m = torch.empty(shape, dtype=mask, device="meta")
    if shape[1] == 5:
        xs = [x.to(memory_format=torch.channels_last) for x in xs]
        m = m.to(memory_format=torch.channels_last)
    v = None if valid is None else torch.empty(shape, dtype=valid, device="meta")
    pixel, positive = kind or (False, False)
    real = torch.float64 if logits == torch.float64 else torch.float32
    p = torch.empty(shape[1], dtype=real, device="meta") if positive else None
    options = (window, 5.0, 1.0, True, pixel, p)
    outputs = op._fake_forward(xs, m, v, *options)
    columns = torch.empty(shape, dtype=outputs[0].dtype, device="meta")
    factors = [0.5] * heads
    launch.forward(*outputs[:2], columns, xs, m, v, *options, outputs[0].new_empty(()), factors)
    grads = [torch.empty_like(x) for x in xs]
    launch.backward(grads, outputs[0], factors, outputs[1], columns, xs, m, v, *options)
    return launches


def compiled(kernel, args, constants, arch):
    """The kernel as the launch would specialise it: types, ones, and multiples of 16."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource
    from triton.runtime.jit import mangle_type

    options = {k: constants.pop(k) for k in ("num_warps", "enable_fp_fusion")}
    values = dict(zip(kernel.arg_names, args, strict=False)) | constants
    signature, known, multiples = {}, {}, {}
    for i, parameter in enumerate(kernel.params):
        value = values[parameter.name]
        if parameter.name in constants or (isinstance(value, int) and value == 1):
            signature[parameter.name], known[(i,)] = "constexpr", value
        elif isinstance(value, tuple):
            signature[parameter.name] = tuple(mangle_type(item) for item in value)
            multiples |= {(i, j): [["tt.divisibility", 16]] for j in range(len(value))}
        else:
            signature[parameter.name] = parameter.annotation_type or mangle_type(value)
            if isinstance(value, torch.Tensor) or (isinstance(value, int) and value % 16 == 0):
                multiples[(i,)] = [["tt.divisibility", 16]]
    source = ASTSource(kernel, signature=signature, constexprs=known, attrs=multiples)
    target = GPUTarget("hip", arch, 64) if isinstance(arch, str) else GPUTarget("cuda", arch, 32)
    return triton.compile(source, target=target, options=options)


F32, F64, BF16 = torch.float32, torch.float64, torch.bfloat16
KINDS = {  # shape, logits, mask, heads, valid, window, (IoU per pixel, weight of positives)
    "bf16": ((16, 1, 352, 352), BF16, torch.uint8, 3, None, 31),
    "fp16": ((4, 2, 353, 351), torch.float16, F32, 1, None, 31),
    "fp32": ((16, 1, 352, 352), F32, F32, 3, None, 31),
    "valid": ((16, 1, 352, 352), F32, F32, 4, torch.bool, 31),
    "fp64": ((2, 1, 64, 64), F64, F64, 4, torch.bool, 31),
    "pixel": ((16, 1, 352, 352), BF16, torch.uint8, 3, None, 31, (True, False)),
    "pixel, positive, valid": ((16, 2, 352, 352), F32, F32, 4, torch.bool, 31, (True, True)),
    "positive": ((16, 1, 352, 352), BF16, torch.uint8, 3, None, 31, (False, True)),
    "pixel, positive, fp64": ((2, 2, 64, 64), F64, F64, 4, torch.bool, 31, (True, True)),
    "wide": ((1, 1, 4, 3000), BF16, torch.uint8, 3, None, 31),
    "ones": ((1, 1, 1, 1), BF16, torch.bool, 3, None, 3),
    "small": ((1, 2, 2, 2), F32, torch.int64, 5, None, 3),
    "short rows": ((16, 1, 44, 44), BF16, torch.uint8, 3, None, 31),
    "short rows, fp32": ((16, 1, 44, 44), F32, F32, 4, torch.bool, 31),
    "channels last": ((4, 5, 64, 352), BF16, torch.uint8, 3, None, 31),
    "channels last, all": ((4, 5, 64, 352), BF16, F32, 4, torch.bool, 31, (True, True)),
}


@needs_triton
@pytest.mark.slow
@pytest.mark.parametrize("arch", [80, 90, 100, 120])
@pytest.mark.parametrize("kind", KINDS)
def test_compiles_without_spills(kind, arch, monkeypatch, tmp_path):
    from cubin import usage

    for kernel, args, constants in recorded(monkeypatch, *KINDS[kind]):
        binary = compiled(kernel, args, constants, arch)
        registers, spilled = usage(binary, tmp_path)
        shared = binary.metadata.shared
        name = kernel.__name__
        print(f"sm_{arch} {kind:<5} {name:<12} {registers:>3} registers, {shared} B shared")
        assert spilled == 0
        # Numbers are added in a fixed order: two tickets alone are counted.
        assert len(re.findall(r"\batom\.", binary.asm["ptx"])) == 2 * (name == "image_sums")
        assert not re.search(r"\bred\.", binary.asm["ptx"])


@needs_triton
@pytest.mark.slow
@pytest.mark.parametrize("kind", ["bf16", "valid", "pixel, positive, fp64"])
def test_compiles_for_other_vendors(kind, monkeypatch):
    for kernel, args, constants in recorded(monkeypatch, *KINDS[kind]):
        assert compiled(kernel, args, constants, "gfx942").asm["hsaco"]


@needs_triton
def test_launches(monkeypatch):
    def names(heads):
        with monkeypatch.context() as patch:
            found = recorded(patch, (2, 1, 8, 8), BF16, torch.uint8, heads)
            return [kernel.__name__ for kernel, *_ in found]

    every = ["column_sums", "image_sums", "gradients"]
    assert names(3) == every
    assert names(5) == [name for name in every for _ in range(1 if name == "column_sums" else 2)]


@needs_triton
@pytest.mark.parametrize("kind", ["bf16", "fp32", "pixel", "positive", "channels last"])
def test_one_map_at_most_beside_the_gradients(kind, monkeypatch):
    shape, logits, mask, heads, *_ = KINDS[kind]
    launches = recorded(monkeypatch, *KINDS[kind])
    tensors = [
        tensor
        for _, args, _ in launches
        for arg in args
        for tensor in (arg if isinstance(arg, tuple) else (arg,))
        if isinstance(tensor, torch.Tensor)
    ]
    bytes_of = {t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in tensors}
    pixels = torch.Size(shape).numel()
    given = pixels * (2 * heads * logits.itemsize + mask.itemsize)  # and the gradients
    assert pixels * 4 <= sum(bytes_of.values()) - given <= pixels * 4 * 1.1
