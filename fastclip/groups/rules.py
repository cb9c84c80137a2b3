"""The patterns that a user writes, and the rules that spare a parameter from weight decay."""

import difflib
import fnmatch
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Generic, TypeVar

from torch import Tensor, nn

from fastclip.groups.names import Entry, Source, read_modules
from fastclip.names import join, strip_wrappers, walk

T = TypeVar("T")

RULES = ("norm", "bias", "ndim", "model")

_MODULE_PATH = re.compile(r"^(\^?)module\\?\.")
_NORM_NAME = re.compile(r"norm|^GRN$", re.IGNORECASE)
_NORM_TYPES = (
    nn.modules.batchnorm._NormBase,  # every BatchNorm, SyncBatchNorm and InstanceNorm
    nn.LayerNorm,
    nn.GroupNorm,
    nn.RMSNorm,
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
    wrong = f"{argument}[{i}] must be a pattern (a string), got {type(pattern).__name__}"
    if not isinstance(pattern, Tensor):
        return wrong
    name = next((e.names[0] for e in entries if e.param is pattern), None)
    return f"{wrong}: {f'write {name!r}' if name else 'it is not a parameter of this model'}"


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
    holds no other module, and its parameters vary along one dimension at most: a `NormedLinear`
    is none.
    """
    if module is None or isinstance(module, _NORM_TYPES):
        return module is not None
    own = [p for p in module._parameters.values() if p is not None]
    if module._modules or any(p.numel() != max(p.shape, default=1) for p in own):
        return False
    epsilons = ("eps", "epsilon", "variance_epsilon")
    return bool(_NORM_NAME.search(type(module).__name__)) or any(
        hasattr(module, e) for e in epsilons
    )


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
                return f"norm layer ({type(owner).__name__})"
            if rule == "bias" and (leaf.startswith("bias_") or re.search(r"(^|_)bias$", leaf)):
                return "bias"
            if rule == "ndim" and entry.param.ndim <= 1:
                return f"ndim {entry.param.ndim}"
            if rule == "model" and getattr(entry.param, "_no_weight_decay", False):
                return "_no_weight_decay"
            if rule == "model" and any(fnmatch.fnmatchcase(name, n) for n in listed):
                return "no_weight_decay()"
    return None
