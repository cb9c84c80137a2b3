"""What installed this package: fastclip-torch; and the other library that has its import name."""

from __future__ import annotations

import sys
from importlib import metadata

NAME = "fastclip-torch"
"""What pip installs. The package index's `fastclip` is a library of somebody else's."""


def install_hint(extra: str) -> str:
    """The command that installs one of the extras."""
    return f"pip install '{NAME}[{extra}]'"


def other_library() -> str:
    """What is wrong where a distribution called fastclip shares this folder; else an empty text."""
    try:
        other = metadata.distribution("fastclip")
    except metadata.PackageNotFoundError:
        return ""
    remedy = f"pip uninstall fastclip, then pip install --force-reinstall --no-deps {NAME}"
    if other.metadata["Author"] == "The fastclip authors":
        return f"an older install of this package, named fastclip {other.version}: {remedy}"
    return (
        f"fastclip {other.version} is installed too, another library that writes to the same"
        f" folder: {remedy}"
    )


def overwritten() -> str:
    """What is wrong where `import fastclip` gives another library than this; else an empty text."""
    package = sys.modules["fastclip"]
    if hasattr(package, "clip_grad_norm_"):
        return ""
    place = getattr(package, "__file__", None) or list(getattr(package, "__path__", []))
    cause = other_library() or f"pip install --force-reinstall --no-deps {NAME}"
    return f"`import fastclip` gives another library, at {place}: {cause}"
