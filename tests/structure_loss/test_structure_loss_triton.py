"""The structure loss through Triton: interpreted on the CPU, compiled without a GPU, run on one."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from test_structure_loss import DEFAULTS, check, run, scene
from test_structure_loss_autograd import check_total

import fastclip
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
        [*command, str(here / "interpreted_structure_loss.py")],
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
    for name in ("column_sums", "image_sums", "finish", "weighted_total", "gradients"):
        monkeypatch.setattr(launch, name, Recorder(getattr(launch, name), launches))
    xs = [torch.empty(shape, dtype=logits, device="meta") for _ in range(heads)]
    m = torch.empty(shape, dtype=mask, device="meta")
    v = None if valid is None else torch.empty(shape, dtype=valid, device="meta")
    pixel, positive = kind or (False, False)
    real = torch.float64 if logits == torch.float64 else torch.float32
    p = torch.empty(shape[1], dtype=real, device="meta") if positive else None
    options = (window, 5.0, 1.0, True, pixel, p)
    outputs = op._fake_forward(xs, m, v, *options)
    columns = torch.empty(shape, dtype=outputs[0].dtype, device="meta")
    launch.forward(*outputs[:2], columns, xs, m, v, *options)
    factors = [0.5] * heads
    launch.total(outputs[0].new_empty(()), outputs[0], factors)
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
    return triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)


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
}


@needs_triton
@pytest.mark.slow
@pytest.mark.parametrize("arch", [80, 90, 100])
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
        assert "atom" not in binary.asm["ptx"]
        if kind == "bf16" and name in ("image_sums", "gradients"):
            assert "bar.sync" not in binary.asm["ptx"]  # a program is one warp


@needs_triton
def test_launches(monkeypatch):
    def names(heads):
        with monkeypatch.context() as patch:
            found = recorded(patch, (2, 1, 8, 8), BF16, torch.uint8, heads)
            return [kernel.__name__ for kernel, *_ in found]

    every = ["column_sums", "image_sums", "finish", "weighted_total", "gradients"]
    assert names(3) == every
    once = ("column_sums", "finish")
    assert names(5) == [name for name in every for _ in range(1 if name in once else 2)]


@pytest.mark.gpu
class TestOnAGpu:
    @pytest.fixture(autouse=True)
    def _everything_there(self):
        with torch.device("cuda"):
            yield

    @pytest.mark.parametrize("logits", [F32, F64, BF16, torch.float16])
    @pytest.mark.parametrize("mask", [F32, torch.uint8, torch.bool, BF16, torch.int64])
    def test_against_float64(self, logits, mask):
        for shape in ((2, 1, 352, 352), (1, 3, 37, 53), (1, 1, 1, 1), (1, 1, 300, 1025)):
            xs, m = scene(shape, logits, mask, 3, soft=mask.is_floating_point)
            check(xs, m)
            check_total(xs, m, None, DEFAULTS, 0.37)
            check(xs, m, torch.rand(shape) > 0.3, (101, 5.0, 1.0, False))

    def test_nonfinite_logits_do_as_the_reference(self):
        xs, m = scene((3, 1, 40, 40))
        for image, bad in enumerate((float("nan"), float("inf"), -float("inf"))):
            xs[0][image, 0, 4, 7] = bad
        ours, theirs = run(op.structure_loss, xs, m), run(op.structure_loss_ref, xs, m)
        torch.testing.assert_close(ours[0], theirs[0], equal_nan=True)

    def test_graph_replay_follows_its_inputs(self):
        xs, m = scene((2, 1, 64, 80), BF16, heads=3)
        leaves = [x.requires_grad_() for x in xs]

        def step():
            loss = fastclip.structure_loss(leaves, m, head_weights=(0.5, 0.3, 0.2))
            return loss, *torch.autograd.grad(loss, leaves)

        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            step()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            outputs = step()
        with torch.no_grad():
            for leaf in leaves:
                leaf.normal_()
            m.copy_(1 - m)
        graph.replay()
        for replayed, fresh in zip(outputs, step(), strict=True):
            assert torch.equal(replayed, fresh)

    def test_no_sync_and_bit_equal_reruns(self):
        xs, m = scene((4, 1, 352, 352), BF16, torch.uint8, 3)
        first = run(op.structure_loss, xs, m, upstream=torch.ones(3, 4, 1))
        torch.cuda.set_sync_debug_mode("error")
        try:
            second = run(op.structure_loss, xs, m, upstream=torch.ones(3, 4, 1))
        finally:
            torch.cuda.set_sync_debug_mode("default")
        assert torch.equal(first[0], second[0])
        assert all(map(torch.equal, first[1], second[1]))

    def test_compile_autocast_and_opcheck(self):
        (x,), m = scene((2, 1, 64, 64))
        convolution = torch.nn.Conv2d(1, 1, 3, padding=1)

        def step(x):
            with torch.autocast("cuda", torch.bfloat16):
                logits = convolution(x)
                assert logits.dtype == BF16
                return fastclip.structure_loss(logits, m)

        traced = torch.compile(step, fullgraph=True)(x)
        torch.testing.assert_close(traced, step(x), rtol=1e-2, atol=0)  # of a bf16 convolution
        step(x).backward()
        assert convolution.weight.grad.isfinite().all()
        inputs = ([x.requires_grad_()], m, None, *DEFAULTS)
        torch.library.opcheck(torch.ops.fastclip.structure_loss, inputs)

    def test_more_than_2_to_the_31_pixels(self):
        if torch.cuda.mem_get_info()[0] < 40 * 2**30:
            pytest.skip("needs 40 GB of device memory")
        x = torch.randn(2050, 1, 1024, 1024, dtype=BF16).requires_grad_()
        m = x.detach() > 0
        loss = fastclip.structure_loss(x, m, reduction="none")
        (grad,) = torch.autograd.grad(loss.sum(), x)
        last = x.detach()[-1:].clone().requires_grad_()
        alone = fastclip.structure_loss(last, m[-1:], reduction="none")
        assert torch.equal(loss[-1:], alone)
        assert torch.equal(grad[-1:], torch.autograd.grad(alone.sum(), last)[0])
