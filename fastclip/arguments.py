"""Command-line arguments into a configuration: flat flags, help in groups, errors of one line."""

from __future__ import annotations

import inspect
import io
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import field, fields, is_dataclass, make_dataclass
from typing import Any

FRAME = " │|╭╮╰╯─"


class ArgumentError(Exception):
    """Arguments that do not parse; one line says why."""

    exit_code = 2


class HelpShown(Exception):
    """--help was given, and has been printed."""


def parse(kind: type, command: str, arguments: Sequence[str]) -> Any:
    """An instance of `kind` from command-line arguments.

    Args:
        kind: a dataclass; where it is composed of others, without fields of its own, the help
            has a group for each of them. Flags carry no prefix in either case.
        command: name of the command, for the help.
        arguments: what follows it.

    Raises:
        ArgumentError: an unknown or missing flag, or a value of the wrong type.
        HelpShown: --help was among them.
    """
    import tyro

    flags = _grouped(kind)
    errors = io.StringIO()
    try:
        with _captured(errors, arguments):
            parsed: Any = tyro.cli(
                flags,
                prog=f"fastclip {command}",
                description=kind.__doc__,
                args=list(arguments),
                config=(tyro.conf.OmitArgPrefixes,),
            )
    except SystemExit as stop:
        if stop.code in (0, None):
            raise HelpShown from None
        raise ArgumentError(_one_line(errors.getvalue())) from None
    return parsed if flags is kind else kind(**_flat(parsed))


def _subjects(kind: type) -> dict[str, type]:
    """The dataclasses that `kind` is composed of, by name; none where it has its own fields."""
    if inspect.get_annotations(kind).keys() & {f.name for f in fields(kind)}:
        return {}
    return {_title(base): base for base in kind.__bases__ if is_dataclass(base)}


def _title(subject: type) -> str:
    words = re.findall("[A-Z][a-z]*", subject.__name__.removesuffix("Config"))
    return "_".join(words).lower()


def _grouped(kind: type) -> type:
    """`kind` with a field for each of its subjects; `kind` itself where it has none."""
    subjects = _subjects(kind)
    if not subjects:
        return kind
    parts = [(name, subject, field()) for name, subject in subjects.items()]
    return make_dataclass(kind.__name__, parts, kw_only=True)


def _flat(grouped: Any) -> dict[str, Any]:
    parts = [getattr(grouped, part.name) for part in fields(grouped)]
    return {f.name: getattr(part, f.name) for part in parts for f in fields(part)}


@contextmanager
def _captured(errors: io.StringIO, arguments: Sequence[str]) -> Iterator[None]:
    """Keep what is written to stderr; the frame of errors is that of UTF-8 on any terminal."""
    with redirect_stderr(errors):
        if {"-h", "--help"} & set(arguments):
            yield
        else:
            with redirect_stdout(io.TextIOWrapper(io.BytesIO(), encoding="utf-8")):
                yield


def _one_line(box: str) -> str:
    """The text of tyro's error box, without frame, title and the help text of the argument."""
    kept = []
    for line in box.splitlines():
        text = line.strip(FRAME)
        if text.startswith(("Argument helptext", "For full helptext")):
            break
        if text and not line.startswith(("╭", "╰")):
            kept.append(text)
    return " ".join(kept) or box
