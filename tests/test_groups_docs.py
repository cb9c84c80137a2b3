"""Every code block of the guide page runs."""

import re
from pathlib import Path

import pytest

PAGE = Path(__file__).parent.parent / "docs" / "param_groups.md"


def blocks() -> list[tuple[int, str, str]]:
    """(line, package that the block needs, code) of each python block."""
    text = PAGE.read_text()
    found = re.finditer(r"^```python ?(\w*)\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)
    return [(text.count("\n", 0, m.start()) + 2, m[1], m[2]) for m in found]


def run(page_blocks: list[tuple[int, str, str]]) -> None:
    scope: dict = {"__name__": "guide"}
    for line, _, code in page_blocks:
        exec(compile("\n" * (line - 1) + code, PAGE, "exec"), scope)


@pytest.mark.core
def test_blocks_that_need_torch_only(capsys):
    chosen = [block for block in blocks() if not block[1]]
    assert len(chosen) == 8
    run(chosen)
    assert "group 0: lr 0.001, weight_decay 0.05" in capsys.readouterr().out


@pytest.mark.parametrize("package", ["timm", "transformers"])
def test_blocks_of_other_packages(package):
    pytest.importorskip(package)
    chosen = [block for block in blocks() if block[1] in ("", package)]
    assert len(chosen) == 9
    run(chosen)
