"""Every code block of the guide page runs."""

import pytest
from doc_pages import blocks, run

PAGE = "clipping.md"


@pytest.mark.core
def test_blocks():
    chosen = blocks(PAGE)
    assert len(chosen) == 9
    assert not any(package for _, package, _ in chosen)
    run(PAGE, chosen)
