"""Gradients whose memory is not what it seems: missing, freed, shared, exchanged, read-only."""

from __future__ import annotations

import gc
import math
import threading
import time
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import fastclip
from fastclip import native
from fastclip.ops.grad_norm.backends import collect

pytestmark = [
    pytest.mark.core,
    pytest.mark.skipif(native.core is None, reason=f"no core: {native.why_missing}"),
]


def parameter(grad: torch.Tensor) -> nn.Parameter:
    p = nn.Parameter(torch.ones(grad.shape, dtype=grad.dtype))
    p.grad = grad
    return p


def freed(numel: int, offset: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    grad = torch.ones(numel + offset, dtype=dtype)[offset:]
    grad.untyped_storage().resize_(0)
    return grad


CALLS = {
    "clip_grad_norm_": lambda p: fastclip.clip_grad_norm_([p], 1.0),
    "clip_grad_norm_, checked": lambda p: fastclip.clip_grad_norm_(
        [p], 1.0, error_if_nonfinite=True
    ),
    "get_total_norm": lambda p: fastclip.get_total_norm([torch.ones(3), p.grad]),
    "clip_grads_with_norm_": lambda p: fastclip.clip_grads_with_norm_([p], 1.0, torch.tensor(9.0)),
    "clip_grad_value_": lambda p: fastclip.clip_grad_value_([p], 0.5),
    "clip_tensors_": lambda p: fastclip.clip_tensors_([p.grad], 1.0),
    "AGC": lambda p: fastclip.AGC(0.01).clip_([p]),
    "grad_norms": lambda p: fastclip.grad_norms([("p", p)]).total,
}


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.complex64])
def test_zeros_without_memory_do_as_torch(name, dtype):
    """autograd makes them, in the backward of sgn(); torch measures but never writes them."""
    p = parameter(torch._efficientzerotensor(1000, dtype=dtype))
    if "norm" in name and not name.startswith("clip"):
        expected = math.sqrt(3) if name == "get_total_norm" else 0.0
        assert float(CALLS[name](p)) == pytest.approx(expected, rel=1e-6)
    else:
        with pytest.raises(RuntimeError, match="ZeroTensors are immutable"):
            CALLS[name](p)


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("offset", [0, 1, 10_000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.complex64, torch.uint8])
def test_a_freed_storage_raises(name, offset, dtype):
    p = nn.Parameter(torch.ones(1000, dtype=dtype), requires_grad=False)
    p.grad = freed(1000, offset, dtype)
    if name == "grad_norms" and dtype == torch.uint8:
        assert fastclip.grad_norms([("p", p)]).skipped == ("p",)  # it reads no integers
        return
    with pytest.raises(ValueError, match=r"needs .* bytes, but its storage holds 0"):
        CALLS[name](p)


def test_a_freed_gradient_is_found_beside_a_norm_that_no_kernel_reads():
    class Tagged(torch.Tensor):
        pass

    p = nn.Parameter(torch.ones(1000))
    p.grad = freed(1000)
    for norm in (torch.tensor(9.0).as_subclass(Tagged), torch.ones(2), torch.tensor(9)):
        with pytest.raises((ValueError, RuntimeError), match=r"storage holds 0|total_norm"):
            fastclip.clip_grads_with_norm_([p], 1.0, norm)


def test_a_freed_storage_is_named_by_its_place():
    grads = [torch.ones(3), torch.ones(3), freed(5)]
    with pytest.raises(ValueError, match="tensor 2 of the list needs 20 bytes"):
        fastclip.get_total_norm(grads)
    assert all(g.tolist() == [1.0] * 3 for g in grads[:2])


@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64])
def test_a_freed_norm_is_named(dtype):
    p = parameter(torch.ones(4))
    norm = torch.ones(4, dtype=dtype)[3]
    norm.untyped_storage().resize_(0)
    with pytest.raises(ValueError, match=r"total_norm needs \d bytes"):
        fastclip.clip_grads_with_norm_([p], 1.0, norm)
    assert p.grad.tolist() == [1.0] * 4


def test_a_freed_tensor_beside_one_that_no_kernel_takes():
    grads = [torch.ones(8)[::2], torch.ones(3).to_sparse(), freed(5, 2)]
    for call in (
        lambda: fastclip.get_total_norm(grads),
        lambda: fastclip.clip_tensors_(grads, 1.0),
        lambda: fastclip.clip_grad_value_([SimpleNamespace(grad=g) for g in grads], 1.0),
    ):
        with pytest.raises(ValueError, match="tensor 2 of the list needs 20 bytes"):
            call()


def test_an_empty_tensor_needs_no_memory():
    assert fastclip.get_total_norm([torch.empty(0), torch.empty(3, 0), torch.ones(4)]).item() == 2


@pytest.mark.parametrize("change", ["data", "set_"])
@pytest.mark.parametrize("call", ["scale_", "clip_by_", "clip_", "exact_norm"])
def test_memory_exchanged_between_norm_and_scaling(change, call):
    """What a gradient holds by then is scaled, as by torch, and never what it held before."""
    p = parameter(torch.ones(50_000))
    grads = collect([p], take_grads=True)
    assert grads.exact_norm(2.0).item() == pytest.approx(math.sqrt(50_000))
    new = torch.full((70_000,), 2.0)
    if change == "data":
        p.grad.data = new
    else:
        p.grad.set_(new)
    gc.collect()
    others = [torch.full((50_000,), 3.0) for _ in range(4)]  # may lie where the gradient lay
    if call == "scale_":
        grads.scale_(torch.tensor(0.5))
    elif call == "clip_by_":
        grads.clip_by_(1.0, torch.tensor(2.0))
    elif call == "clip_":
        grads.scale_(torch.tensor(1.0))  # forgets the norm
        assert grads.clip_(math.sqrt(70_000), 2.0).item() == pytest.approx(2 * math.sqrt(70_000))
    else:
        grads.scale_(torch.tensor(0.5))
        assert grads.exact_norm(2.0).item() == pytest.approx(math.sqrt(70_000))
    assert p.grad.mean().item() == pytest.approx(1.0, rel=1e-5)
    assert all(bool((other == 3).all()) for other in others)


@pytest.mark.parametrize("limit", [1.0, 1e9])
def test_memory_exchanged_by_another_thread_during_the_call(limit):
    """What the call reads and writes is not given back to the system before it ends."""
    numel = 20_000_000
    new = torch.empty(numel)
    for _ in range(15):
        p = parameter(torch.ones(numel))
        called = threading.Event()

        def exchange(p=p, called=called):
            called.wait()
            time.sleep(2e-3)
            p.grad.data = new

        new.fill_(2.0)
        thread = threading.Thread(target=exchange)
        thread.start()
        called.set()
        norm = fastclip.clip_grad_norm_([p], limit).item()
        thread.join()
        assert norm in (pytest.approx(math.sqrt(numel)), pytest.approx(2 * math.sqrt(numel)))


def layouts(name: str) -> list[torch.Tensor]:
    numel, size = 2_000_000, 16_000
    flat = torch.ones(numel + 1)
    slices = [flat[at : at + size] for at in range(1, numel, size)]
    return {
        "a flat buffer and slices": [flat[:numel], *slices],
        "slices and a flat buffer": [*slices[::-1], flat[:numel]],
        "halves that meet": [flat[: numel // 2 + 5], flat[numel // 2 :]],
        "mixed order": [*slices[1::2], flat[:numel], *slices[::2]],
        "disjoint, in disorder": [*slices[1::2], *slices[::2]],
    }[name]


@pytest.mark.parametrize(
    "name",
    ["a flat buffer and slices", "slices and a flat buffer", "halves that meet", "mixed order"],
)
def test_overlapping_gradients_are_scaled_once_for_each(name):
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        for _ in range(10):
            grads, copies = layouts(name), layouts(name)
            norm = nn.utils.clip_grad_norm_([parameter_of(g) for g in copies], 1.0)
            assert fastclip.clip_grad_norm_([parameter_of(g) for g in grads], 1.0) == pytest.approx(
                norm.item(), rel=1e-4
            )
            for grad, copy in zip(grads, copies, strict=True):
                torch.testing.assert_close(grad, copy, rtol=1e-3, atol=0)
    finally:
        torch.set_num_threads(threads)


def parameter_of(grad: torch.Tensor) -> nn.Parameter:
    p = nn.Parameter(torch.empty(0))
    p.data = grad.detach().clone()
    p.grad = grad
    return p


@pytest.mark.parametrize("seed", range(30))
def test_overlaps_are_found_among_any_addresses(seed):
    """By what follows from them on the device: lists that overlap are not for one launch."""
    from fastclip.ops.grad_norm.tensor_list import layers

    generator = torch.Generator().manual_seed(seed)
    flat = torch.ones(1 << 16)
    spans = []
    for _ in range(40):
        begin = int(torch.randint(0, 65_000, (), generator=generator))
        size = int(torch.randint(0, 300 if seed % 2 else 12, (), generator=generator))
        spans.append((begin, begin + size))
    grads = [flat[a:b] for a, b in spans]
    overlap = any(max(a[0], b[0]) < min(a[1], b[1]) for i, a in enumerate(spans) for b in spans[:i])
    numbers = layers(grads)
    assert any(numbers) == overlap
    for i, a in enumerate(spans):
        for j, b in enumerate(spans[:i]):
            if numbers[i] == numbers[j]:
                assert max(a[0], b[0]) >= min(a[1], b[1])


WRITERS = [name for name in CALLS if "clip" in name or name == "AGC"]


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("make", [lambda: torch.ones(10), lambda: torch.ones(20)[::2]])
def test_an_inference_gradient_is_written_only_in_inference_mode(name, make):
    with torch.inference_mode():
        grad = make()
    p = nn.Parameter(torch.ones(10) * 1e-3)
    p.grad = grad
    with pytest.raises(RuntimeError, match="Inplace update to inference tensor"):
        CALLS[name](p)
    if grad.is_contiguous():  # torch, which has the others, writes before it raises
        assert grad.tolist() == [1.0] * 10
    with torch.inference_mode():
        grad = p.grad = make()
        CALLS[name](p)
    assert grad.norm().item() < math.sqrt(10) / 1.5


def test_one_inference_gradient_among_many_and_none_written():
    grads = [torch.ones(10) for _ in range(60)]
    with torch.inference_mode():
        grads[43] = torch.ones(10)
    ps = [parameter(g) for g in grads]
    with pytest.raises(RuntimeError, match="Inplace update to inference tensor"):
        fastclip.clip_grad_norm_(ps, 1.0)
    assert all(g.tolist() == [1.0] * 10 for g in grads)
    assert fastclip.clip_grad_norm_(ps, 1e9).item() == pytest.approx(math.sqrt(600))


def test_denormal_numbers_are_flushed_in_every_thread_or_in_none():
    grads = [torch.full((100_000,), 1e-40) for _ in range(60)]
    weights = [nn.Parameter(torch.full((1000, 100), 1e-40)) for _ in range(60)]
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        fastclip.get_total_norm(grads)
        if not torch.set_flush_denormal(True):
            pytest.skip("this processor does not flush")
        norms = {fastclip.get_total_norm(grads, p).item() for _ in range(10) for p in (2.0, 1.0)}
        assert norms == {0.0}
        for _ in range(5):
            for w in weights:
                w.grad = torch.ones(1000, 100)
            fastclip.AGC(1.0, eps=0.0).clip_(weights)
            assert {w.grad.abs().max().item() for w in weights} == {0.0}
        torch.set_flush_denormal(False)
        assert fastclip.get_total_norm(grads).item() > 1e-37
    finally:
        torch.set_flush_denormal(False)
        torch.set_num_threads(threads)
