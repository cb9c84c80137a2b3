"""docs/trainer.md: each flag and command that its table of features names exists."""

from __future__ import annotations

import re
from dataclasses import fields
from importlib import import_module
from pathlib import Path

import needs_train  # noqa: F401
import pytest

from fastclip.cli import COMMANDS

PAGE = Path(__file__).parents[2] / "docs" / "trainer.md"
pytestmark = pytest.mark.skipif(not PAGE.is_file(), reason="needs the sources")


def rows() -> list[list[str]]:
    """Cells of the table of features, without its head."""
    table = PAGE.read_text(encoding="utf-8").partition("## Features")[2]
    lines = [line for line in table.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def flags() -> set[str]:
    """Every flag of every command that has a configuration."""
    found = set()
    for command in COMMANDS.values():
        if command.config:
            module, _, name = command.config.partition(":")
            kind = getattr(import_module(module), name)
            found |= {f"--{field.name.replace('_', '-')}" for field in fields(kind)}
    return found


def missing(cells: list[str]) -> list[str]:
    """What cells name that does not exist; a cell that names nothing must say no."""
    known = flags()
    wrong = []
    for cell in cells:
        named = re.findall(r"`([^`]+)`", cell)
        if not named and cell != "no":
            wrong.append(cell)
        for word in named:
            command = word.removeprefix("fastclip ")
            if word not in known and (command == word or command not in COMMANDS):
                wrong.append(word)
    return wrong


def test_every_flag_of_the_table_exists() -> None:
    table = rows()
    assert len(table) > 30
    assert {len(row) for row in table} == {6}
    assert missing([row[1] for row in table]) == []


def test_a_flag_that_does_not_exist_is_found() -> None:
    cells = ["`--nothing`", "`fastclip nothing`", "maybe", "no", "`--lr`", "`fastclip train`"]
    assert missing(cells) == ["--nothing", "fastclip nothing", "maybe"]


def test_the_page_names_every_recipe() -> None:
    from fastclip.arguments.config_file import recipes

    page = PAGE.read_text(encoding="utf-8")
    assert all(f"| `{name}` |" in page for name in recipes())
