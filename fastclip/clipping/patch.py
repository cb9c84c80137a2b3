"""fastclip's clipping inside code that calls torch.nn.utils itself."""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Callable, Iterator
from types import ModuleType

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
_private = {
    "_get_total_norm": "get_total_norm",
    "_clip_grads_with_norm_": "clip_grads_with_norm_",
}  # that FSDP2 recipes call in torch.nn.utils.clip_grad
_public = {name: _private.get(name, name) for name in (*_ours, *_private)}
_homes = [(home, name) for home in (utils, clip_grad) for name in _public if hasattr(home, name)]
_torchs = {getattr(home, name): _public[name] for home, name in _homes}
_saved: list[tuple[ModuleType, str, Callable]] = []
_saved_copies: list[tuple[ModuleType, str, Callable]] = []


def patch_torch(everywhere: bool = False) -> None:
    """Puts fastclip's four clipping functions in the place of torch.nn.utils' own.

    For trainers that call torch's clipping themselves: Lightning, Accelerate, transformers, timm,
    and recipes that call ``torch.nn.utils.clip_grad._get_total_norm`` or its
    ``_clip_grads_with_norm_``. The change is of the whole process. Calls nest: each wants its own
    :func:`unpatch_torch`, and the last of those restores everything.

    Args:
        everywhere: also replace the copies that modules hold by now, because they ran ``from
            torch.nn.utils import clip_grad_norm_`` before: their module-level names, aliases
            included, in every module that is loaded. Without it such code keeps the function it
            has. What a function, class or container keeps elsewhere is out of reach of both, and
            code that imports the names while torch is patched keeps fastclip's.
    """
    global _depth
    with _lock:
        if _depth == 0:
            _saved[:] = [(home, name, getattr(home, name)) for home, name in _homes]
            for home, name in _homes:
                setattr(home, name, _ours[_public[name]])
        if everywhere:
            _replace_copies()
        _depth += 1


def unpatch_torch() -> None:
    """Takes one :func:`patch_torch` back; the last one restores what torch.nn.utils held before.

    Copies that ``everywhere=True`` replaced are restored then too, but for those that something
    else has been put in the place of.

    Raises:
        RuntimeError: torch is not patched.
    """
    global _depth
    with _lock:
        if _depth == 0:
            raise RuntimeError("unpatch_torch() without a patch_torch() before it")
        _depth -= 1
        if _depth == 0:
            for home, name, function in _saved:
                setattr(home, name, function)
            ours = set(_ours.values())
            for module, name, function in _saved_copies:
                if vars(module).get(name) in ours:
                    setattr(module, name, function)
            _saved.clear()
            _saved_copies.clear()


@contextlib.contextmanager
def patched_torch(everywhere: bool = False) -> Iterator[None]:
    """:func:`patch_torch` for the length of a ``with`` block, exceptions included."""
    patch_torch(everywhere)
    try:
        yield
    finally:
        unpatch_torch()


def _replace_copies() -> None:
    """Replaces torch's functions, and those that stood in their place, in all loaded modules."""
    theirs = {id(function): public for function, public in _torchs.items()}
    theirs |= {id(function): _public[name] for _, name, function in _saved}
    for module_name, module in list(sys.modules.items()):
        # fastclip itself falls back on torch's.
        if not isinstance(module, ModuleType) or module_name.partition(".")[0] == "fastclip":
            continue
        for name, value in list(vars(module).items()):
            if id(value) in theirs and (module, name) not in _homes:
                setattr(module, name, _ours[theirs[id(value)]])
                _saved_copies.append((module, name, value))
