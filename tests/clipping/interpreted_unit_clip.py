"""test_unit_clip_gpu.py of Triton's kernel on the CPU. Run by test_unit_clip_triton.py, with
TRITON_INTERPRET=1."""

from __future__ import annotations

import pytest

pytest.importorskip("triton")

from gpu_backend import Backend
from test_unit_clip_gpu import *  # noqa: F403  all tests, those that are added too

from fastclip import native
from fastclip.ops.grad_norm.gpu import tables


@pytest.fixture
def backend(monkeypatch) -> Backend:
    """Triton's kernel in the place of the core, which would have the CPU's tensors."""
    monkeypatch.setattr(native, "core", None)
    monkeypatch.setattr(tables, "is_for_triton", lambda device: device.type == "cpu")
    return Backend("cpu")
