"""The sweeps over timm and transformers give the committed tables (`make groups-table`)."""

import difflib

import pytest
import sweep


@pytest.mark.slow
@pytest.mark.parametrize("library", ["timm", "transformers"])
def test_the_table_is_that_of_the_installed_release(library):
    pytest.importorskip(library)
    committed = (sweep.EXPECTED / f"{library}.csv").read_text()
    every = "every architecture" in committed.splitlines()[0]
    found = sweep.table(library, every)
    changes = difflib.unified_diff(
        committed.splitlines()[1:], found.splitlines()[1:], "committed", "installed", lineterm=""
    )
    told = "\n".join(changes)
    assert not told, f"look at each change, then run make groups-table:\n{told}"


def test_there_are_sixty_families_or_more():
    assert len(set(sweep.FAMILIES)) == len(sweep.FAMILIES) >= 60
