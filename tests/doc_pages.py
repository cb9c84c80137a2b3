"""Pages of docs/ as programs: their python blocks, run in order in one namespace."""

from __future__ import annotations

import re
from pathlib import Path

DOCS = Path(__file__).parent.parent / "docs"


def blocks(page: str) -> list[tuple[int, str, str]]:
    """(line, package that the block needs, code) of each python block."""
    text = (DOCS / page).read_text()
    found = re.finditer(r"^```python ?(\w*)\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)
    return [(text.count("\n", 0, m.start()) + 2, m[1], m[2]) for m in found]


def run(page: str, page_blocks: list[tuple[int, str, str]]) -> None:
    """A failing block's traceback names its line in the page."""
    scope: dict = {"__name__": "guide"}
    for line, _, code in page_blocks:
        exec(compile("\n" * (line - 1) + code, DOCS / page, "exec"), scope)
