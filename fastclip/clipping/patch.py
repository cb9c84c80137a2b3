"""fastclip's clipping inside code that calls torch.nn.utils itself."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator

from torch.nn import utils
from torch.nn.utils import clip_grad

from fastclip.clipping import clip

_lock = threading.Lock()
_depth = 0
_ours: dict[str, Callable] = {
    "clip_grad_norm_": clip.clip_grad_norm_,
    "get_total_norm": clip.get_total_norm,
    "clip_grads_with_norm_": clip.clip_grads_with_norm_,
    "clip_grad_value_": clip.clip_grad_value_,
}
_homes = [(home, name) for home in (utils, clip_grad) for name in _ours if hasattr(home, name)]
_saved: list[Callable] = []


def patch_torch() -> None:
    """Puts fastclip's four clipping functions in the place of torch.nn.utils' own.

    For trainers that call torch's clipping themselves: Lightning, Accelerate, transformers, timm.
    The change is of the whole process. Calls nest: each wants its own :func:`unpatch_torch`. Code
    that did ``from torch.nn.utils import clip_grad_norm_`` before keeps the function it has.
    """
    global _depth
    with _lock:
        if _depth == 0:
            _saved[:] = [getattr(home, name) for home, name in _homes]
            for home, name in _homes:
                setattr(home, name, _ours[name])
        _depth += 1


def unpatch_torch() -> None:
    """Takes one :func:`patch_torch` back; the last one restores what torch.nn.utils held before.

    Raises:
        RuntimeError: torch is not patched.
    """
    global _depth
    with _lock:
        if _depth == 0:
            raise RuntimeError("unpatch_torch() without a patch_torch() before it")
        _depth -= 1
        if _depth == 0:
            for (home, name), function in zip(_homes, _saved, strict=True):
                setattr(home, name, function)


@contextlib.contextmanager
def patched_torch() -> Iterator[None]:
    """:func:`patch_torch` for the length of a ``with`` block, exceptions included."""
    patch_torch()
    try:
        yield
    finally:
        unpatch_torch()
