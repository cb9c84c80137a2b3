"""The native core, bound to torch, or the reason why it is not there.

FASTCLIP_NATIVE=0 leaves it out; =1 makes it an error where it cannot be had. Unset, a warning says
why once, and the pure-torch references run.
"""

from __future__ import annotations

import os
import sys
import warnings
from pathlib import Path
from types import ModuleType

import torch

ISA_LEVELS = ("baseline", "v3", "v4")
REMEDY = (
    "pip install --force-reinstall --no-deps --no-cache-dir fastclip-torch;"
    " FASTCLIP_NATIVE=0 in the environment accepts the slower pure-torch references in silence"
)
FROM_SOURCES = (
    "from another folder Python finds what pip installed, and pip install --editable . builds one"
    " here"
)


def _switch(variable: str, values: tuple[str, ...]) -> str:
    value = os.environ.get(variable, "")
    if value not in ("", *values):
        raise ImportError(
            f"the environment has {variable}={value!r}: set it to {' or '.join(values)}, or not"
        )
    return value


def bind(module: ModuleType) -> None:
    """Tells a build of the core about this torch, with tensors to try its layout on."""
    with torch.inference_mode():
        inference = [torch.empty(1, device="cpu"), torch.empty(2, 3, device="cpu").t()]
    with torch.inference_mode(False):
        normal = [torch.empty(1, device="cpu"), torch.empty(2, 3, device="cpu").t()]
        normal.append(torch.nn.Parameter(torch.empty(2, device="cpu")))
    increment_version = torch.autograd.graph.increment_version
    module.bind_torch(torch.Tensor, torch.nn.Parameter, increment_version, inference, normal)
    module.bind_threads(torch.get_num_threads)


def _load() -> tuple[ModuleType | None, str]:
    wanted = _switch("FASTCLIP_NATIVE", ("0", "1"))
    _switch("FASTCLIP_ISA", ISA_LEVELS)
    if wanted == "0":
        return None, "FASTCLIP_NATIVE=0 is set"
    try:
        from fastclip import _native

        bind(_native)
        return _native, ""
    except (ImportError, RuntimeError, AttributeError) as error:
        reason = _explained(error)
        if wanted == "1":
            raise ImportError(
                f"FASTCLIP_NATIVE=1, but fastclip's native core cannot be used: {reason}."
                f" Remedy: {REMEDY}"
            ) from error
    message = f"fastclip runs without its native core, slower: {reason}. Remedy: {REMEDY}"
    warnings.warn(message, RuntimeWarning, stacklevel=3)
    return None, reason


def _explained(error: Exception) -> str:
    """The reason in a sentence: no binary, one of another Python's, or one that does not load."""
    if isinstance(error, RuntimeError):
        return str(error)
    if isinstance(error, AttributeError):
        return f"the binary is of another version than these files ({error})"
    if not (isinstance(error, ImportError) and error.name == "fastclip"):
        return f"the binary does not load ({error})"
    folder = Path(__file__).parent
    binaries = sorted(path.name for path in folder.glob("_native.*") if path.suffix != ".pyi")
    if not binaries:
        missing = f"this install has no native core: none was built in {folder}"
        # Python looks in the current folder first, and then where pip installed it.
        sources = (folder.parent / "csrc").is_dir()
        return missing + (f", which are the sources: {FROM_SOURCES}" if sources else "")
    python = f"{sys.implementation.cache_tag} on {sys.platform}"
    return f"{', '.join(binaries)} in {folder} is for another Python than this {python}"


core, why_missing = _load()
"""The extension module, or None; and why it is None."""

name = f"native ({core.build_info()['isa']})" if core is not None else ""
"""How a report calls the core, with the instruction-set level that it chose."""


def require() -> ModuleType:
    """The extension module, where a caller has made sure that it is there."""
    if core is None:
        raise RuntimeError(f"fastclip's native core is not available: {why_missing}")
    return core
