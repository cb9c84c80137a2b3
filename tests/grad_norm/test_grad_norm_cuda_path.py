"""The way of a clip to CUDA's kernels, all of it but the device: tests/cuda_on_host."""

from __future__ import annotations

import functools
import warnings

import pytest
import torch
from gpu_backend import ON_HOST

import fastclip
from fastclip.ops.grad_norm import backends
from fastclip.ops.grad_norm.backends import cuda_why_not

PAGE, OLD_PAGE = 2040, 250  # tensors in one launch; where the driver is older than CUDA 12.1
pytestmark = [
    pytest.mark.slow,  # builds the core a second time
    pytest.mark.parametrize("backend", [ON_HOST], indirect=True),
]


@pytest.fixture
def path(backend, cuda_on_host):
    """The core under the whole path of a clip, and what it launches."""
    yield cuda_on_host
    cuda_on_host[1].set_driver(13000)


@pytest.mark.parametrize(
    ("count", "driver", "pages"),
    [(1, 13000, 1), (382, 13000, 1), (PAGE + 1, 13000, 2), (382, 12000, 2), (OLD_PAGE, 12000, 1)],
)
def test_a_clip_is_a_launch_that_reads_and_one_that_scales(path, count, driver, pages):
    path[1].set_driver(driver)
    launches = path[1].launches
    parameters = [torch.nn.Parameter(torch.zeros(2)) for _ in range(count)]
    for p in parameters:
        p.grad = torch.ones(2)
    before = launches()
    fastclip.get_total_norm([p.grad for p in parameters])
    assert launches() - before == pages
    for max_norm in (1e9, 1.0):  # only the device knows whether the second has to write
        before = launches()
        fastclip.clip_grad_norm_(parameters, max_norm)
        assert launches() - before == 2 * pages


def test_bindings_refuse_buffers_that_are_not_what_kernels_write(path):
    core = path[0]
    x = torch.ones(4)
    tensors = core.TensorList([x], False)
    work = torch.empty(core.cuda_work_size(tensors), dtype=torch.float64)
    for bad in (work[:4], work.float(), torch.empty(2, len(work)).double().T):
        with pytest.raises(ValueError, match="work"):
            core.cuda_grad_norm(tensors, 2.0, 1.0, True, bad, None, None, None)
    with pytest.raises(ValueError, match="total is too small"):
        core.cuda_grad_norm(tensors, 2.0, 1.0, True, work, torch.empty(0), None, None)
    for name, at in (("per_tensor", 6), ("units", 7)):
        for bad, reason in ((torch.empty(1), "wrong dtype"), (work[:0], "too small")):
            arguments = [tensors, 2.0, 1.0, True, work, None, None, None]
            arguments[at] = bad
            with pytest.raises(ValueError, match=f"{name} .*{reason}"):
                core.cuda_grad_norm(*arguments)
    with pytest.raises(ValueError, match="p must be"):
        core.cuda_grad_norm(tensors, 3.0, 1.0, True, work, None, None, None)
    with pytest.raises(ValueError, match="norms of tensors alone"):
        core.cuda_grad_norm(tensors, 3.0, 1.0, False, work, None, None, None)
    with pytest.raises(ValueError, match="norm"):
        core.cuda_scale_grads(tensors, 1.0, torch.empty(0))
    with pytest.raises(ValueError, match="factor"):
        core.cuda_multiply(tensors, torch.empty(0))
    for bad in (torch.ones(1), work[:0], None):
        with pytest.raises(ValueError, match="factors"):
            core.cuda_scale_each(tensors, bad)
    for bad in (-1.0, float("nan"), 1e300):
        with pytest.raises(ValueError, match="limit"):
            core.cuda_clamp(tensors, bad)
    assert (x == 1).all()


def test_a_build_without_code_for_the_device_says_so_once(path, monkeypatch):
    real = cuda_why_not.__wrapped__
    monkeypatch.setattr(backends, "cuda_why_not", functools.cache(real))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    path[1].set_capability(90, 100)
    try:
        with pytest.warns(RuntimeWarning, match=r"cuda:0: this build has no code.* 9\.0.*instead"):
            assert backends.cuda_why_not(0)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert backends.cuda_why_not(0)
            assert backends.implementation("cuda")[0].startswith(("Triton", "torch"))
    finally:
        path[1].set_capability(90, 80)
    assert real(0) == ""
