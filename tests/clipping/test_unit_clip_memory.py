"""The op unit_clip on memory that is laid out otherwise or shared, and what it marks as written."""

from __future__ import annotations

import pytest
import torch
from unit_clips import check, exact, parameter, randn

import fastclip
from fastclip import native

pytestmark = pytest.mark.core

needs_native = pytest.mark.skipif(native.core is None, reason=f"no core: {native.why_missing}")


@needs_native
@pytest.mark.parametrize("layout", ["channels_last", "mixed", "transposed", "sliced", "expanded"])
def test_layouts(layout):
    weight, grad = randn((4, 6, 3, 5)), randn((4, 6, 3, 5), seed=1)
    if layout in ("channels_last", "mixed"):
        grad = grad.to(memory_format=torch.channels_last)
        weight = weight.to(memory_format=torch.channels_last) if layout != "mixed" else weight
    elif layout == "transposed":
        weight, grad = (x.transpose(0, 1) for x in (weight, grad))
    elif layout == "sliced":
        weight, grad = (x[:, ::2] for x in (weight, grad))
    else:
        weight = weight[:1].expand(4, -1, -1, -1)
    p = parameter(weight, grad)
    stride = p.grad.stride()
    _, rest = native.core.clip_units([p], 1e9, 0.0)
    assert (rest == []) == (layout in ("channels_last", "mixed"))
    check([p])
    assert p.grad.stride() == stride


@needs_native
def test_gradients_that_share_memory_are_clipped_one_after_the_other():
    grad = randn((20, 20))
    two = [parameter(randn((20, 20), seed=s), grad) for s in (1, 2)]
    expected = exact(two[0], 0.01, 1e-3)
    expected = exact(parameter(two[1].detach().double(), expected), 0.01, 1e-3)
    assert native.core.clip_units(two, 1e9, 0.0) == ([], tuple(two))
    fastclip.AGC(0.01).clip_(two)
    torch.testing.assert_close(grad.double(), expected, rtol=1e-6, atol=0)
    p = parameter(randn((8, 8)), randn((8, 8), seed=1))
    check([p, p])


def test_only_what_is_written_gets_a_new_version():
    still = parameter(torch.ones(4, 4), torch.full((4, 4), 1e-4))
    clipped = parameter(torch.ones(4, 4), torch.ones(4, 4))
    versions = still.grad._version, clipped.grad._version
    fastclip.AGC(0.01).clip_([still, clipped])
    assert clipped.grad._version > versions[1]
    if native.core is not None:
        assert still.grad._version == versions[0]
    x = torch.ones(4, 4, requires_grad=True)
    y = (x * clipped.grad).sum()
    clipped.grad.fill_(1.0)
    y = (x * clipped.grad).sum()
    fastclip.AGC(0.01).clip_([clipped])
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.backward()


@needs_native
@pytest.mark.parametrize("count", [2, 10, 64, 65, 700])
@pytest.mark.parametrize("seed", range(10))
def test_the_core_finds_overlaps_among_any_addresses(seed, count):
    """By what follows from them: the core leaves all of such a list to the reference."""
    generator = torch.Generator().manual_seed(seed)
    flat = torch.zeros(64 * count)
    begins = 64 * torch.randperm(count, generator=generator)
    apart = [parameter(torch.ones(64), flat[b : b + 64]) for b in begins.tolist()]
    _, rest = native.core.clip_units(apart, 1.0, 1e-3)
    assert not rest
    begin = int(begins[seed % count])
    across = [*apart, parameter(torch.ones(2), flat[begin + 62 : begin + 64])]
    _, rest = native.core.clip_units(across, 1.0, 1e-3)
    assert len(rest) == len(across)
