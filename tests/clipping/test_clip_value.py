"""clip_grad_value_ against torch's: every dtype, limit, stride, and what is written."""

from __future__ import annotations

import math
import mmap
import os
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import fastclip
from fastclip import native

pytestmark = pytest.mark.core
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
SPECIAL = [0.0, -0.0, 1.0, -1.0, 0.1, -0.1, 1e-40, math.inf, -math.inf, math.nan, 7.0, -65504.0]


def parameter(grad: torch.Tensor) -> nn.Parameter:
    p = nn.Parameter(torch.zeros(grad.shape, dtype=grad.dtype), requires_grad=False)
    p.grad = grad
    return p


def outcome(function, grads, limit, **options):
    try:
        function([parameter(g) for g in grads], limit, **options)
    except Exception as error:  # whatever torch raises is the contract
        return type(error), str(error)
    return None


def check(grads: list[torch.Tensor], limit: float, **options) -> None:
    mine = [torch.empty_like(g).copy_(g) for g in grads]
    theirs = [torch.empty_like(g).copy_(g) for g in grads]
    assert outcome(fastclip.clip_grad_value_, mine, limit, **options) == outcome(
        nn.utils.clip_grad_value_, theirs, limit, **options
    )
    for a, b in zip(mine, theirs, strict=True):
        assert a.stride() == b.stride()
        torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("foreach", [None, False, True])
@pytest.mark.parametrize("limit", [0.0, 0.1, 1.0, -0.5, -3.0, 7.0, 1e4, math.inf, -math.inf, 1e-41])
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_dtype_and_limit(dtype, limit, foreach):
    grads = [torch.tensor(SPECIAL, dtype=torch.float64).to(dtype).repeat(n) for n in (1, 7, 200)]
    check(grads, limit, foreach=foreach)


@pytest.mark.parametrize("limit", [math.nan, 1e6, 65510.0, 1e39, -1e39, 1e300])
@pytest.mark.parametrize("dtype", DTYPES)
def test_limits_that_are_torchs_to_judge(dtype, limit):
    check([torch.tensor([1.0, -2.0, 3.0], dtype=dtype)], limit)


@pytest.mark.parametrize("numel", [0, 1, 15, 16, 17, 511, 1023, 1024, 1025, 70_001])
@pytest.mark.parametrize("dtype", DTYPES)
def test_sizes_around_each_block(dtype, numel):
    torch.manual_seed(numel)
    check([torch.randn(numel).to(dtype), torch.randn(max(numel - 1, 0)).to(dtype)], 0.5)
    last = torch.zeros(numel, dtype=dtype)
    if numel:
        last[-1] = -9.0
        check([last], 0.5)


@settings(max_examples=40, deadline=None)
@given(
    shape=st.lists(st.integers(0, 9), min_size=0, max_size=4),
    order=st.randoms(use_true_random=False),
    step=st.integers(1, 3),
    dtype=st.sampled_from(DTYPES),
    limit=st.floats(-4, 4),
)
def test_any_strides(shape, order, step, dtype, limit):
    dims = list(range(len(shape)))
    order.shuffle(dims)
    grad = torch.randn([n * step for n in shape]).to(dtype).permute(dims)
    for d in range(grad.ndim):
        grad = grad[(slice(None),) * d + (slice(None, None, step),)]
    ours, theirs = grad.clone(), grad.clone()
    check([ours], limit)
    check([grad, theirs.contiguous()], limit)


def test_mixed_lists_and_what_no_kernel_takes():
    check([torch.randn(100).to(d) for d in DTYPES], 0.5)
    check([torch.randn(100), torch.randint(-5, 5, (9,))], 2.0)
    check([torch.randn(20, dtype=torch.complex64)], 0.5)
    check([torch.randn(20), torch.randn(40)[::2], torch.randn(5, 6).t()], 0.5)
    negative = torch.randn(5, dtype=torch.complex64).conj().imag
    expected = negative.resolve_neg().clamp(-0.25, 0.25)
    fastclip.clip_grad_value_([parameter(negative)], 0.25, foreach=False)
    assert torch.equal(negative.resolve_neg(), expected)
    assert fastclip.clip_grad_value_([nn.Parameter(torch.ones(2))], 1.0) is None


def test_a_negative_view_without_gaps_keeps_its_sign():
    for limit in (0.25, -0.25):
        ours, theirs = (torch._neg_view(torch.tensor([1.0, -1.0, 0.1])) for _ in range(2))
        fastclip.clip_grad_value_([parameter(ours)], limit, foreach=False)
        nn.utils.clip_grad_value_([parameter(theirs)], limit, foreach=False)
        assert ours.tolist() == theirs.tolist()


@pytest.mark.skipif(native.core is None, reason=f"no core: {native.why_missing}")
def test_only_what_is_clipped_is_written():
    inside, outside = parameter(torch.full((5,), 0.5)), parameter(torch.tensor([0.5, 2.0]))
    nan = parameter(torch.tensor([math.nan]))
    before = [p.grad._version for p in (inside, outside, nan)]
    fastclip.clip_grad_value_([inside, outside, nan], 1.0)
    moved = [p.grad._version - v for p, v in zip((inside, outside, nan), before, strict=True)]
    assert [m > 0 for m in moved] == [False, True, False]


@pytest.mark.skipif(native.core is None, reason=f"no core: {native.why_missing}")
@pytest.mark.filterwarnings("ignore:The given buffer is not writable")
def test_nothing_is_written_where_nothing_is_clipped(tmp_path):
    """Not even an equal value: these pages cannot be written."""
    path = tmp_path / "gradient"
    path.write_bytes(bytes(1 << 24))
    with path.open("rb") as file:
        pages = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    for dtype in DTYPES:
        fastclip.clip_grad_value_([parameter(torch.frombuffer(pages, dtype=dtype))], 1.0)


@pytest.mark.slow
@pytest.mark.skipif(native.core is None, reason=f"no core: {native.why_missing}")
@pytest.mark.parametrize("isa", ["baseline", "v3", "v4"])
def test_every_level(isa):
    code = "import sys, pytest; sys.exit(pytest.main(['-q', '-p', 'no:cacheprovider', sys.argv[1],"
    code += " '-k', 'sizes or dtype_and_limit']))"
    environment = dict(os.environ, FASTCLIP_ISA=isa)
    command = [sys.executable, "-c", code, __file__]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:]


def test_threads_and_overlaps_change_nothing():
    threads = torch.get_num_threads()
    try:
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            flat = torch.linspace(-2, 2, 3_000_001)
            expected = flat.clamp(-1, 1)
            fastclip.clip_grad_value_([parameter(flat[:-1]), parameter(flat[1:])], 1.0)
            assert torch.equal(flat, expected)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("limit", ["abc", None, [1.0]])
def test_a_limit_that_is_no_number(limit):
    p = parameter(torch.tensor([3.0]))
    with pytest.raises((TypeError, ValueError), match="clip_value must be a number"):
        fastclip.clip_grad_value_([p], limit)
    assert p.grad.item() == 3.0


def test_compiles_to_torchs_ops():
    p = parameter(torch.tensor([3.0, -0.5]))
    compiled = torch.compile(
        lambda ps: fastclip.clip_grad_value_(ps, 1.0), fullgraph=True, backend="aot_eager"
    )
    compiled([p])
    assert p.grad.tolist() == [1.0, -0.5]
