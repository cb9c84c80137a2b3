"""Writes the tables and figures of README.md and docs/ from the rows in results/, between marks.

    python bench/tables.py            # writes them
    python bench/tables.py --check    # fails, with the place, where a page says something else

A mark is `<!-- rows NAME -->`, an end `<!-- end rows -->`; what stands between is made by the
function `NAME` of blocks.py (with `_` for `-`). Nothing in it is written by hand.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

import blocks_sharded  # noqa: F401  (registers its blocks)
import blocks_trainer  # noqa: F401
from blocks import BLOCKS

ROOT = Path(__file__).parents[1]
MARK = re.compile(r"(<!-- rows ([\w-]+) -->\n)(.*?)(<!-- end rows -->)", re.DOTALL)


def pages() -> list[Path]:
    """Every page that may have marks."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def written(text: str) -> str:
    """The text of a page with everything between its marks made anew."""

    def made(found: re.Match[str]) -> str:
        if found[2] not in BLOCKS:
            raise LookupError(f"no rows are named {found[2]!r}; there are {', '.join(BLOCKS)}")
        return f"{found[1]}\n{BLOCKS[found[2]]()}\n{found[4]}"

    return MARK.sub(made, text)


def drifted() -> list[str]:
    """The first line of each page that differs from what its rows say."""
    found = []
    for path in pages():
        old = path.read_text(encoding="utf-8").splitlines()
        new = written("\n".join(old) + "\n").splitlines()
        if old != new:
            at = next((i for i, (a, b) in enumerate(zip(old, new)) if a != b), len(old))  # noqa: B905
            found.append(f"{path.relative_to(ROOT)}:{at + 1}: {old[at] if at < len(old) else ''}")
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="only say which pages differ")
    if parser.parse_args().check:
        lines = drifted()
        print(*(lines or ["README and docs say what the rows say"]), sep="\n")
        return int(bool(lines))
    for path in pages():
        text = path.read_text(encoding="utf-8")
        if (new := written(text)) != text:
            path.write_text(new, encoding="utf-8")
            print(f"wrote {path.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
