"""The patterns that a user writes to name parameters."""

import difflib
import fnmatch
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Generic, NamedTuple, TypeVar

from torch import Tensor

from fastclip.groups.names import Entry
from fastclip.names import strip_wrappers

T = TypeVar("T")

_MODULE_PATH = re.compile(r"^(\^?)module\\?\.")


class Taken(NamedTuple):
    """The parameters that one pattern of one argument matches."""

    argument: str
    pattern: str
    names: list[str]


class Patterns(Generic[T]):
    """The patterns of one argument, each with a value; the longest that matches a name wins.

    `re:` starts a regular expression (searched). A pattern with any of `*?[` is a glob on the
    whole name, unless it stands in a name as it is written. Anything else is a substring, as in
    `any(nd in name for nd in no_decay)`, that does not begin or end inside a number: `blocks.1`
    takes block 1 and leaves block 10.

    Args:
        argument: the name of the argument, for errors.
        values: pattern -> value.
        entries: the parameters that there are.
        missing_ok: whether a pattern may match nothing.

    Raises:
        TypeError: a pattern is not a string.
        ValueError: a pattern matches no name, or is not a regular expression.
    """

    def __init__(
        self, argument: str, values: Mapping[str, T], entries: list[Entry], missing_ok: bool = False
    ) -> None:
        self.argument = argument
        self.values = dict(values)
        names = [name for entry in entries for name in entry.names]
        self._hits: dict[str, list[str]] = {}  # name -> patterns
        self.taken: list[Taken] = []
        for i, pattern in enumerate(self.values):
            if not isinstance(pattern, str):
                raise TypeError(_not_a_string(argument, i, pattern, entries))
            found = _matches(argument, pattern, names)
            if not found and not missing_ok:
                raise ValueError(f"{argument}: {pattern!r} {_matches_nothing(pattern, names)}")
            self.taken.append(Taken(argument, pattern, found))
            for name in found:
                self._hits.setdefault(name, []).append(pattern)

    def all(self, names: Iterable[str]) -> list[str]:
        """The patterns that match one of `names`, the longest last."""
        if not self._hits:
            return []
        found = dict.fromkeys(p for name in names for p in self._hits.get(name, ()))
        return sorted(found, key=len) if len(found) > 1 else list(found)

    def best(self, names: Iterable[str]) -> str | None:
        """The longest pattern that matches one of `names`.

        Raises:
            ValueError: two patterns of that length match and say different things.
        """
        if not self._hits:
            return None
        names = list(names)
        hits = self.all(names)
        if len(hits) < 2:
            return hits[0] if hits else None
        longest = [p for p in hits if len(p) == len(hits[-1])]
        if len({self.values[p] for p in longest}) > 1:
            raise ValueError(disagree(self.argument, names[0], longest[0], longest[1]))
        return longest[0]


def disagree(argument: str, name: str, one: str, other: str) -> str:
    return (
        f"{argument}: {name!r} matches {one!r} and {other!r}, of the "
        "same length but with different values; make one of them longer"
    )


def _not_a_string(argument: str, i: int, pattern: object, entries: list[Entry]) -> str:
    wrong = f"{argument}[{i}] must be a pattern (a string), got {type(pattern).__name__}"
    if not isinstance(pattern, Tensor):
        return wrong
    name = next((e.names[0] for e in entries if e.param is pattern), None)
    return f"{wrong}: {f'write {name!r}' if name else 'it is not a parameter of this model'}"


def _matches(argument: str, pattern: str, names: list[str]) -> list[str]:
    """The names that a pattern takes, with a leading `module.` or without."""
    kind, text = ("re:", pattern[3:]) if pattern.startswith("re:") else ("", pattern)
    text = strip_wrappers(text)
    for candidate in dict.fromkeys((text, _MODULE_PATH.sub(r"\1", text))):
        for match in _matchers(argument, kind, candidate):
            if candidate and (found := [name for name in names if match(name)]):
                return found
    return []


def _matchers(argument: str, kind: str, text: str) -> Iterable[Callable[[str], Any]]:
    """What `text` may mean, in the order in which it is tried."""
    if kind:
        try:
            yield re.compile(text).search
        except re.error as error:
            raise ValueError(f"{argument}: {text!r} is not a regular expression: {error}") from None
        return
    before, after = (
        (r"(?<!\d)" if text[:1].isdigit() else ""),
        (r"(?!\d)" if text[-1:].isdigit() else ""),
    )
    if before or after:
        yield re.compile(before + re.escape(text) + after).search
    else:
        yield lambda name: text in name
    if any(c in text for c in "*?["):
        yield re.compile(fnmatch.translate(text)).match


def _matches_nothing(pattern: str, names: list[str]) -> str:
    text = strip_wrappers(pattern.removeprefix("re:"))
    inside = next((name for name in names if text and text in name), None)
    if inside and text == pattern:
        return (
            f"matches no parameter: in {inside!r} it begins or ends inside a number; "
            f"{_nearest(text, names)}"
        )
    return f"matches no parameter; {_nearest(text, names)}"


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
