"""What `import fastclip` costs over `import torch`, each in processes of their own, files in cache.

    pytest bench/bench_import.py --benchmark-enable

The shortest time counts: whatever else the machine does can only add to it.
"""

from __future__ import annotations

import os
import subprocess
import sys

import measure
import pytest

RUNS = 7
CODE = """
import time
start = time.perf_counter()
import torch
between = time.perf_counter()
import fastclip
print(between - start, time.perf_counter() - between)
"""


def bench_import(request: pytest.FixtureRequest) -> None:
    if not request.config.getoption("--benchmark-enable"):
        pytest.skip("starts processes: --benchmark-enable")
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    times_ms = []
    for _ in range(RUNS):
        out = subprocess.check_output([sys.executable, "-c", CODE], env=environment, text=True)
        times_ms.append(tuple(1e3 * float(seconds) for seconds in out.split()))
    torch_ms, fastclip_ms = (min(column) for column in zip(*times_ms, strict=True))
    medians_ms = {"import torch": torch_ms, "import fastclip": fastclip_ms}
    measure.save(
        "import_cpu", measure.rows("import", "shortest", "", medians_ms, baseline="import torch")
    )
    assert fastclip_ms < 40
