"""Importing this skips, visibly, where fastclip-torch[train] is not installed."""

import pytest

for module in ("timm", "torchvision", "tqdm", "matplotlib", "tyro", "jinja2", "yaml"):
    pytest.importorskip(module, reason="needs fastclip-torch[train]")
