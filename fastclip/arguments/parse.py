"""A command's configuration from its arguments: flat flags, help in groups, --config FILE."""

from __future__ import annotations

import inspect
import re
from collections.abc import Sequence
from dataclasses import MISSING, dataclass, fields, is_dataclass, make_dataclass
from typing import Any

from fastclip.arguments.config_file import read_config
from fastclip.arguments.flags import ArgumentError, parse_flags


@dataclass(kw_only=True)
class FileConfig:
    """Where flags may come from, beside the command line."""

    config: str | None = None
    """YAML file with one 'flag: value' per line; flags on the command line win over it."""


def parse(kind: type, command: str, arguments: Sequence[str]) -> Any:
    """An instance of `kind`: its defaults, what --config gives, and flags, the last of which win.

    Args:
        kind: a dataclass; where it is composed of others, without fields of its own, the help
            has a group for each of them. Flags carry no prefix in either case.
        command: name of the command, for the help.
        arguments: what follows it.

    Raises:
        ArgumentError: an unknown or missing flag, or a value of the wrong type; or the same in
            the file.
        HelpShown: --help was among the arguments.
    """
    import tyro

    subjects = _subjects(kind)
    file = _config_of(arguments)
    given = read_config(file, kind) if file is not None else {}
    flags = make_dataclass(kind.__name__, list(subjects.items()), kw_only=True)
    parsed = parse_flags(
        flags,
        arguments,
        prog=f"fastclip {command}",
        description=inspect.getdoc(kind),
        default=flags(**{name: _default(part, given) for name, part in subjects.items()}),
        config=(tyro.conf.OmitArgPrefixes,),
    )
    return kind(**_flat(parsed, {field.name for field in fields(kind)}))


def _subjects(kind: type) -> dict[str, type]:
    """The dataclasses that `kind` is composed of, by name; itself where it has its own fields."""
    own = inspect.get_annotations(kind).keys() & {field.name for field in fields(kind)}
    parts = [kind] if own else [base for base in kind.__bases__ if is_dataclass(base)]
    if not any(field.name == "config" for field in fields(kind)):
        parts.append(FileConfig)
    return {_title(part): part for part in parts}


def _title(subject: type) -> str:
    words = re.findall("[A-Z][a-z]*", subject.__name__.removesuffix("Config"))
    return "_".join(words).lower()


def _config_of(arguments: Sequence[str]) -> str | None:
    """The value of --config."""
    found: list[str] = []
    for place, argument in enumerate(arguments):
        if argument == "--config":
            found += arguments[place + 1 : place + 2]
        elif argument.startswith("--config="):
            found.append(argument.partition("=")[2])
    if len(found) > 1:
        raise ArgumentError(f"--config is given {len(found)} times: give one file")
    return found[0] if found else None


def _default(subject: type, given: dict[str, Any]) -> Any:
    """An instance with the given values; what has neither value nor default is to be asked for."""
    import tyro

    values = {}
    for field in fields(subject):
        if field.name in given:
            values[field.name] = given[field.name]
        elif field.default is MISSING and field.default_factory is MISSING:
            values[field.name] = tyro.MISSING
    return subject(**values)


def _flat(grouped: Any, names: set[str]) -> dict[str, Any]:
    parts = [getattr(grouped, part.name) for part in fields(grouped)]
    return {
        f.name: getattr(part, f.name) for part in parts for f in fields(part) if f.name in names
    }
