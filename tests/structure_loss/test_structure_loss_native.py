"""The structure loss in the native core: instruction-set levels, thread counts, its checks."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from test_structure_loss import DEFAULTS, needs_native, run, scene
from test_structure_loss_autograd import total

from fastclip import native
from fastclip.ops.structure_loss import dispatch as op
from fastclip.ops.structure_loss.dispatch import structure_loss as by_owner

pytestmark = pytest.mark.core
TESTS = Path(__file__).parent


@pytest.mark.slow
@needs_native
@pytest.mark.parametrize("isa", ["baseline", "v3", "v4"])
def test_every_instruction_set_level(isa):
    """Runs the comparisons at the level (or the best one below it here)."""
    only = "dtype_pair or sizes or heads or extreme or nonfinite or valid or one_call or kinds_ag"
    files = [TESTS / f"test_structure_loss{part}.py" for part in ("", "_autograd", "_kinds")]
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *files]
    environment = {**os.environ, "FASTCLIP_ISA": isa}
    result = subprocess.run([*command, "-k", only], env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout[-3000:]
    assert " passed" in result.stdout


@needs_native
def test_threads_do_not_change_a_bit():
    xs, m = scene((3, 1, 200, 50), heads=2)
    before = torch.get_num_threads()
    runs = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            value, together = total(op.structure_loss_total, xs, m, None, DEFAULTS, 1.0)
            losses, grads = run(by_owner, xs, m)
            runs.append((torch.cat([losses.flatten(), value[None]]), [*grads, *together]))
    finally:
        torch.set_num_threads(before)
    for loss, grads in runs[1:]:
        assert torch.equal(loss, runs[0][0])
        assert all(torch.equal(a, b) for a, b in zip(grads, runs[0][1], strict=True))


@needs_native
@pytest.mark.parametrize("wrong", ["dtype", "size", "shape", "layout", "count"])
def test_the_core_checks_what_it_dereferences(wrong):
    xs, m = scene((2, 1, 8, 8))
    loss, sums = torch.empty(1, 2, 1), torch.empty(1, 2, 1, 4, dtype=torch.float64)
    arguments = [xs, m, None, *DEFAULTS, loss, sums]
    changed = {
        "dtype": (8, sums.float()),
        "size": (7, loss[:, :1]),
        "shape": (1, m[:, :, :4]),
        "layout": (1, m.transpose(2, 3)),
        "count": (0, []),
    }
    index, value = changed[wrong]
    arguments[index] = value
    with pytest.raises(ValueError, match=r"must|wrong"):
        native.core.structure_loss_forward(*arguments)


@needs_native
@pytest.mark.parametrize("wrong", ["factors", "grads", "grad size", "dtype", "sums"])
def test_the_core_checks_what_the_total_writes(wrong):
    xs, m = scene((2, 1, 8, 8))
    sums = torch.empty(1, 2, 1, 4, dtype=torch.float64)
    changed = {
        "factors": (7, [1.0, 1.0]),
        "grads": (9, [None, None]),
        "grad size": (9, [torch.empty(2, 1, 8, 7)]),
        "dtype": (0, [xs[0].half()]),
        "sums": (8, torch.empty(2)),
    }
    arguments = [xs, m, None, *DEFAULTS, [1.0], sums, [torch.empty_like(xs[0])]]
    index, value = changed[wrong]
    arguments[index] = value
    with pytest.raises(ValueError, match=r"must|wrong|only"):
        native.core.structure_loss_total(*arguments)


@needs_native
def test_denormal_gradients_are_flushed_in_every_thread_or_in_none():
    xs, m = scene((8, 1, 64, 64))
    upstream = torch.full((1, 8, 1), 1e-37)  # times under 1e-2 for each pixel
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(4)
        kept = run(by_owner, xs, m, upstream=upstream)[1][0]
        if not torch.set_flush_denormal(True):
            pytest.skip("this processor flushes no denormal numbers")
        flushed = run(by_owner, xs, m, upstream=upstream)[1][0].clone()
    finally:
        torch.set_flush_denormal(False)
        torch.set_num_threads(before)
    smallest = torch.finfo(torch.float32).smallest_normal
    denormal = (kept != 0) & (kept.abs() < smallest)
    assert denormal.flatten(1).any(1).all()  # some in every image, so on every thread
    assert not flushed[denormal].any()
