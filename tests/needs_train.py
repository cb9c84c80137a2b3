"""Importing this skips, visibly, where fastclip[train] is not installed."""

import pytest

for module in ("timm", "torchvision", "tqdm", "matplotlib", "tyro"):
    pytest.importorskip(module, reason="needs fastclip[train]")
