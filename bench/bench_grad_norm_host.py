"""What a clip on CUDA costs the host, all but the driver: no device is needed.

    pytest bench/bench_grad_norm_host.py --benchmark-enable

The whole path of a call (Python, torch's answers, entries, the tables of both launches) runs with
the stand-in for the CUDA runtime of tests/cuda_on_host, whose launches return at once; CPU tensors
pass for tensors on a device. A device adds what its driver takes for two launches. `listing` is the
part in which torch is asked for every gradient and its address.
"""

from __future__ import annotations

import sys
from pathlib import Path

import measure
import pytest
from gpu import cases

import fastclip

sys.path.append(str(Path(__file__).parents[1] / "tests"))
CASES = ("transfuse_s fp32", "1000 x 1000 fp32", "10000 x 100 fp32")


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    """The native core with CUDA's kernels on the host, none of them run."""
    import cuda_on_host

    core, interface = cuda_on_host.extension(tmp_path_factory.mktemp("cuda_on_host"))
    interface.set_device(132, 4, 0, False)
    interface.set_host_only(True)
    with pytest.MonkeyPatch.context() as patch:
        cuda_on_host.install(core, patch)
        yield core


@pytest.mark.parametrize("case", CASES)
def bench_host_cost(path, case, benchmark):
    parameters = cases.parameters_of(case, "cpu")
    variants = {
        "fastclip CUDA, but for the driver": lambda: fastclip.clip_grad_norm_(parameters, 1.0),
        "listing": lambda: path.TensorList(parameters, True),
    }
    medians = measure.interleaved_ms(variants, repeats=200)
    rows = measure.rows("clip, host", case, "float32", medians, baseline="listing")
    measure.save("clip_host_cost", rows)
    benchmark(variants["fastclip CUDA, but for the driver"])
