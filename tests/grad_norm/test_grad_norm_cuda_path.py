"""The way of a clip to CUDA's kernels, all of it but the device: tests/cuda_on_host."""

from __future__ import annotations

import pytest
import torch
from gpu_backend import ON_HOST

import fastclip

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
    work = torch.empty(core.cuda_work_size(tensors, False), dtype=torch.float64)
    for bad in (work[:4], work.float(), torch.empty(2, len(work)).double().T):
        with pytest.raises(ValueError, match="work"):
            core.cuda_grad_norm(tensors, 2.0, 1.0, True, bad, None, None, None)
    with pytest.raises(ValueError, match="total is too small"):
        core.cuda_grad_norm(tensors, 2.0, 1.0, True, work, torch.empty(0), None, None)
    with pytest.raises(ValueError, match="per_tensor has a wrong dtype"):
        core.cuda_grad_norm(tensors, 2.0, 1.0, True, work, None, torch.empty(1), None)
    with pytest.raises(ValueError, match="optimizer is too small"):
        core.cuda_grad_norm(tensors, 2.0, 1.0, True, work, None, None, torch.empty(1))
    with pytest.raises(ValueError, match="p must be"):
        core.cuda_grad_norm(tensors, 3.0, 1.0, True, work, None, None, None)
    with pytest.raises(ValueError, match="norm"):
        core.cuda_scale_grads(tensors, 1.0, torch.empty(0))
    assert (x == 1).all()
