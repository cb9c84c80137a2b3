"""What every test shares: tests marked gpu are skipped, visibly, without a CUDA device."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import pytest
import torch

sys.path.append(str(Path(__file__).parent.parent / "bench"))  # what a bench measures, a test bounds

from gpu_backend import ON_GPU, ON_HOST, Backend

# Minutes each; where files are shared out to processes, what starts last decides the end.
LONGEST = (
    "test_structure_loss_triton.py",
    "test_transfuse_killed.py",
    "test_build.py",
    "test_cuda_launches.py",
    "test_transfuse_options.py",
    "test_transfuse_torchrun.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.path.name not in LONGEST)
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):  # a keyword may be a folder's name
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture(scope="session")
def cuda_on_host(tmp_path_factory):
    """(the native core with CUDA's kernels on the CPU, their C interface): tests/cuda_on_host"""
    import cuda_on_host

    if shutil.which("g++") is None:
        pytest.skip("needs g++")
    pytest.importorskip("pybind11")
    built = os.environ.get("FASTCLIP_ON_HOST")  # by whoever runs these tests
    if built is None and "PYTEST_XDIST_WORKER" in os.environ:
        built = tmp_path_factory.getbasetemp().parent / "cuda_on_host"  # of all workers
    return cuda_on_host.extension(Path(built or tmp_path_factory.mktemp("cuda_on_host")))


@pytest.fixture(scope="session")
def cuda_kernels(tmp_path_factory):
    """The library of CUDA's kernels alone, for the CPU."""
    import cuda_on_host

    if shutil.which("g++") is None:
        pytest.skip("needs g++")
    return cuda_on_host.build(tmp_path_factory.mktemp("cuda_kernels"))


@pytest.fixture
def kernels(cuda_kernels):
    """CUDA's kernels on a stand-in for a device, which is as new as it is at first each time."""
    from cuda_on_host.kernels import Kernels

    yield Kernels(cuda_kernels)
    cuda_kernels.set_driver(13000)
    cuda_kernels.set_capability(90, 80)


@pytest.fixture(params=[*ON_GPU, pytest.param(ON_HOST, marks=pytest.mark.slow)])
def backend(request, monkeypatch) -> Backend:
    """This backend of grad_norm, in the place of whichever has the GPU here."""
    import cuda_on_host

    from fastclip.ops.grad_norm import backends

    if request.param == ON_HOST:
        core, interface = request.getfixturevalue("cuda_on_host")
        interface.set_device(3, 2, 0, False)
        cuda_on_host.install(core, monkeypatch)
        return Backend("cpu")
    if request.param == "triton":
        pytest.importorskip("triton")
        monkeypatch.setattr(backends, "cuda_why_not", lambda index: "Triton is tested")
    elif reason := backends.cuda_why_not(0):
        pytest.skip(f"no CUDA kernels: {reason}")
    return Backend("cuda")
