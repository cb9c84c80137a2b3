"""Every code block of the guide page runs."""

import pytest
from doc_pages import blocks, run

PAGE = "param_groups.md"


@pytest.mark.core
def test_blocks_that_need_torch_only(capsys):
    chosen = [block for block in blocks(PAGE) if not block[1]]
    assert len(chosen) == 12
    run(PAGE, chosen)
    assert "group 0: lr 0.001, weight_decay 0.05" in capsys.readouterr().out


@pytest.mark.parametrize("package", ["timm", "transformers"])
def test_blocks_of_other_packages(package):
    pytest.importorskip(package)
    chosen = [block for block in blocks(PAGE) if block[1] in ("", package)]
    assert len(chosen) == {"timm": 17, "transformers": 14}[package]
    run(PAGE, chosen)
