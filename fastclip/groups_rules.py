"""What a parameter group is decided from: names without wrappers, patterns, no-decay rules."""

import difflib
import fnmatch
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

T = TypeVar("T")
Source = nn.Module | Iterable[nn.Module] | Iterable[tuple[str, Tensor]]

RULES = ("norm", "bias", "ndim", "model")

_RESERVED = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
_RESERVED_PATH = re.compile(rf"(?:(?<=^)|(?<=\.)|(?<=\^))(?:{'|'.join(_RESERVED)})\\?\.")
_MODULE_PATH = re.compile(r"^(\^?)module\\?\.")
_MODULE_WRAPPERS = (nn.DataParallel, nn.parallel.DistributedDataParallel, AveragedModel)

_NORM_NAME = re.compile(r"norm|^GRN$", re.IGNORECASE)
_NORM_TYPES = (
    nn.modules.batchnorm._NormBase,  # every BatchNorm, SyncBatchNorm and InstanceNorm
    nn.LayerNorm,
    nn.GroupNorm,
    nn.RMSNorm,
)


@dataclass
class Entry:
    """One parameter and every place where it hangs; several places mean tied weights."""

    param: Tensor
    names: list[str] = field(default_factory=list)
    owners: list[nn.Module | None] = field(default_factory=list)


def unwrap(module: nn.Module) -> nn.Module:
    """The module inside torch.compile, (Distributed)DataParallel, FSDP and checkpoint wrappers."""
    for name in _RESERVED:
        if isinstance(inner := module._modules.get(name), nn.Module):
            return unwrap(inner)
    return unwrap(module.module) if isinstance(module, _MODULE_WRAPPERS) else module


def strip_wrappers(name: str) -> str:
    """`name` without the path components that wrappers add; `module.` is not one of them."""
    return _RESERVED_PATH.sub("", name)


def walk(module: nn.Module, path: str = "") -> Iterator[tuple[str, nn.Module]]:
    """(path, module), parents first; wrappers leave no trace and shared modules come each time."""
    module = unwrap(module)
    yield path, module
    for name, child in module._modules.items():
        if child is not None:
            yield from walk(child, join(path, name))


def join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def as_list(argument: str, values: Iterable[T]) -> list[T]:
    """`values` read once; an iterator that is already spent is an error, not an empty list."""
    if not isinstance(values, Iterable):
        raise TypeError(f"{argument} must be an iterable, got {type(values).__name__}")
    listed = list(values)
    if not listed and isinstance(values, Iterator):
        raise ValueError(f"{argument} is an exhausted {type(values).__name__}: pass a list")
    return listed


def read_modules(model: Source) -> list[tuple[str, nn.Module]] | None:
    """The top modules of `model` with their paths; None where it is (name, parameter) pairs."""
    if isinstance(model, nn.Module):
        return [("", model)]
    if not isinstance(model, list) or not all(isinstance(m, nn.Module) for m in model):
        return None
    seen: dict[int, str] = {}
    for i, top in enumerate(model):
        if id(unwrap(top)) in seen:
            raise ValueError(f"model[{i}] is given twice: it is {seen[id(unwrap(top))]} already")
        inside = {id(m): f"part of model[{i}] ({p})" if p else f"model[{i}]" for p, m in walk(top)}
        if outer := next((j for j in range(i) if id(unwrap(model[j])) in inside), None):
            raise ValueError(f"model[{outer}] is given twice: it is {inside[id(model[outer])]} too")
        seen = inside | seen
    return [(str(i), top) for i, top in enumerate(model)]


def read_entries(model: Source) -> list[Entry]:
    """Every parameter of `model` once, in order, with all its names."""
    entries: dict[int, Entry] = {}
    for name, owner, param in _read_slots(model):
        _check_parameter(name, param)
        entry = entries.setdefault(id(param), Entry(param))
        if name not in entry.names:
            entry.names.append(name)
            entry.owners.append(owner)
    if not entries:
        raise ValueError("model has no parameters")
    return list(entries.values())


def _read_slots(model: Source) -> Iterator[tuple[str, nn.Module | None, Tensor]]:
    tops = read_modules(model)
    if tops is not None:
        for top_path, top in tops:
            for path, module in walk(top, top_path):
                for name, param in module._parameters.items():
                    if param is not None:
                        yield join(path, name), module, param
        return
    named: dict[str, Tensor] = {}
    for pair in model:  # type: ignore[union-attr]
        if not (isinstance(pair, tuple) and len(pair) == 2 and isinstance(pair[0], str)):
            raise TypeError(
                "model must be a module, modules, or (name, parameter) pairs such as "
                f"model.named_parameters(): names are what the rules read; got a {_typename(pair)}"
            )
        name = strip_wrappers(pair[0])
        if name in named:
            raise ValueError(f"model has the name {name!r} twice")
        named[name] = pair[1]
        yield name, None, pair[1]


def _typename(value: object) -> str:
    return type(value).__name__


def _check_parameter(name: str, param: object) -> None:
    if not isinstance(param, Tensor):
        raise TypeError(f"model: {name!r} must be a parameter, got {_typename(param)}")
    if isinstance(param, nn.parameter.UninitializedTensorMixin):
        raise ValueError(f"model: {name!r} has no shape yet: run the lazy module once first")
    if _typename(param) == "FlatParameter" or getattr(param, "_is_flat_param", False):
        raise ValueError(
            f"model: {name!r} is a flat parameter of FSDP1, which joins weights, biases and norms "
            "into one vector, so that no rule can tell them apart. Use use_orig_params=True, or "
            "torch.distributed.fsdp.fully_shard."
        )


class Patterns(Generic[T]):
    """The patterns of one argument, each with a value; the longest that matches a name wins.

    `re:` starts a regular expression (searched); a pattern with any of `*?[` is a glob on the
    whole name; anything else is a substring, as in `any(nd in name for nd in no_decay)`.

    Raises:
        TypeError: a pattern is not a string.
        ValueError: a pattern matches no name, or is not a regular expression.
    """

    def __init__(self, argument: str, values: Mapping[str, T], entries: list[Entry]) -> None:
        self.argument = argument
        self.values = dict(values)
        names = [name for entry in entries for name in entry.names]
        self.matchers = {}
        for i, pattern in enumerate(self.values):
            if not isinstance(pattern, str):
                raise TypeError(_not_a_string(argument, i, pattern, entries))
            self.matchers[pattern] = _matcher(argument, pattern, names)

    def best(self, names: Iterable[str]) -> str | None:
        """The longest pattern that matches one of `names`.

        Raises:
            ValueError: two patterns of that length match and say different things.
        """
        names = list(names)
        hits = [p for p, match in self.matchers.items() if any(map(match, names))]
        longest = [p for p in hits if len(p) == max(map(len, hits))]
        if len({self.values[p] for p in longest}) > 1:
            raise ValueError(
                f"{self.argument}: {names[0]!r} matches {longest[0]!r} and {longest[1]!r}, of the "
                "same length but with different values; make one of them longer"
            )
        return longest[0] if longest else None


def _not_a_string(argument: str, i: int, pattern: object, entries: list[Entry]) -> str:
    told = f"{argument}[{i}] must be a pattern (a string), got {_typename(pattern)}"
    if not isinstance(pattern, Tensor):
        return told
    name = next((e.names[0] for e in entries if e.param is pattern), None)
    return f"{told}: {f'write {name!r}' if name else 'it is not a parameter of this model'}"


def _matcher(argument: str, pattern: str, names: list[str]) -> Callable[[str], Any]:
    """A predicate on names, which at least one of `names` satisfies."""
    kind, text = ("re:", pattern[3:]) if pattern.startswith("re:") else ("", pattern)
    text = strip_wrappers(text)
    for candidate in dict.fromkeys((text, _MODULE_PATH.sub(r"\1", text))):
        match = _compile(argument, kind, candidate)
        if candidate and any(map(match, names)):
            return match
    raise ValueError(f"{argument}: {pattern!r} matches no parameter; {_nearest(text, names)}")


def _compile(argument: str, kind: str, text: str) -> Callable[[str], Any]:
    if kind:
        try:
            return re.compile(text).search
        except re.error as error:
            raise ValueError(f"{argument}: {text!r} is not a regular expression: {error}") from None
    if any(c in text for c in "*?["):
        return re.compile(fnmatch.translate(text)).match
    return lambda name: text in name


def _nearest(text: str, names: list[str]) -> str:
    """The names, or the ends and beginnings of names, that look most like `text`."""
    parts: dict[str, None] = {}
    for name in names:
        words = name.split(".")
        for i in range(len(words)):
            parts[".".join(words[i:])] = None
            parts[".".join(words[: i + 1])] = None
    near = difflib.get_close_matches(re.sub(r"[*?^$\\\[\]()]", "", text), parts, n=3, cutoff=0.5)
    return "nearest: " + ", ".join(map(repr, near or names[:3]))


def is_norm(module: nn.Module | None) -> bool:
    """Whether `module` is a normalisation layer: torch's by type, look-alikes by duck type.

    A look-alike says so by its class name (`LlamaRMSNorm`, `LayerNorm2d`, `GRN`) or by an epsilon,
    and each of its own parameters varies along one dimension at most: a `NormedLinear` is none.
    """
    if module is None or isinstance(module, _NORM_TYPES):
        return module is not None
    own = [p for p in module._parameters.values() if p is not None]
    if not own or any(p.numel() != max(p.shape, default=1) for p in own):
        return False
    epsilons = ("eps", "epsilon", "variance_epsilon")
    return bool(_NORM_NAME.search(_typename(module))) or any(hasattr(module, e) for e in epsilons)


def no_decay_names(model: Source) -> set[str]:
    """What `no_weight_decay()` of the model and of every sub-module lists, as full names."""
    listed = set()
    for top_path, top in read_modules(model) or []:
        for path, module in walk(top, top_path):
            method = getattr(module, "no_weight_decay", None)
            if callable(method):
                listed |= {join(path, strip_wrappers(name)) for name in method()}
    return listed


def no_decay_rule(entry: Entry, rules: Iterable[str], listed: set[str]) -> str | None:
    """The first of `rules` that spares a parameter, under any of its names, from decay."""
    for rule in rules:
        for name, owner in zip(entry.names, entry.owners, strict=True):
            leaf = name.rpartition(".")[2]
            if rule == "norm" and is_norm(owner):
                return f"norm layer ({_typename(owner)})"
            if rule == "bias" and (leaf.startswith("bias_") or re.search(r"(^|_)bias$", leaf)):
                return "bias"
            if rule == "ndim" and entry.param.ndim <= 1:
                return f"ndim {entry.param.ndim}"
            if rule == "model" and any(fnmatch.fnmatchcase(name, n) for n in listed):
                return "no_weight_decay()"
    return None
