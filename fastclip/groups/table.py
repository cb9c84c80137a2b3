"""Tables as text, markdown and JSON; a list may have 100,000 rows."""

import json
from collections.abc import Sequence
from typing import Any

FORMATS = ("text", "markdown", "json")


def plain(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns of spaces."""
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    lines = [head, ["-" * width for width in widths], *rows]
    return "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in lines)


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of GitHub's markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(
        "| " + " | ".join(cell.replace("|", r"\|") for cell in x) + " |" for x in lines
    )


def as_json(value: Any) -> str:
    """JSON; what JSON cannot hold, such as a function among the options, as its text."""
    return json.dumps(value, default=str, indent=1)
