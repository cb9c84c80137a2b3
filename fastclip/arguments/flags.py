"""One call of tyro: its errors as one line, the same on any terminal."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from typing import Any

FRAME = " │|╭╮╰╯─"


class ArgumentError(Exception):
    """Arguments that do not parse; one line says why."""

    exit_code = 2


class HelpShown(Exception):
    """--help was given, and has been printed."""


def parse_flags(flags: type, arguments: Sequence[str], **options: Any) -> Any:
    """An instance of the dataclass `flags`.

    Args:
        flags: its fields are the flags.
        arguments: of the command line.
        options: of `tyro.cli`.

    Raises:
        ArgumentError: an unknown or missing flag, or a value of the wrong type.
        HelpShown: --help was among the arguments.
    """
    import tyro

    errors = io.StringIO()
    try:
        with _captured(errors, arguments):
            return tyro.cli(flags, args=list(arguments), **options)
    except SystemExit as stop:
        if stop.code in (0, None):
            raise HelpShown from None
        raise ArgumentError(_one_line(errors.getvalue())) from None


@contextmanager
def _captured(errors: io.StringIO, arguments: Sequence[str]) -> Iterator[None]:
    """Keep what is written to stderr; the frame of errors is that of UTF-8 on any terminal."""
    with redirect_stderr(errors):
        if {"-h", "--help"} & set(arguments):
            yield
        else:
            # tyro asks stdout for its encoding, and draws another frame where it is not UTF-8.
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
