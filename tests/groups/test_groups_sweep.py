"""The sweeps over timm and transformers give the committed tables (`make groups-table`)."""

import difflib
import os

import pytest
import sweep


@pytest.mark.slow
@pytest.mark.parametrize("library", ["timm", "transformers"])
def test_the_table_is_that_of_the_installed_release(library):
    """Of timm one architecture of each module; all of them where FASTCLIP_SWEEP=all."""
    pytest.importorskip(library)
    models = sweep.FAMILIES
    if library == "timm":
        every = os.environ.get("FASTCLIP_SWEEP") == "all"
        models = sweep.timm_models() if every else sweep.timm_sample()
        assert len(models) > (1000 if every else 80)
    known = [",".join(row) for row in sweep.committed(library) if row[0] in models]
    assert known
    found = [",".join(row) for row in sweep.rows(library, models)]
    changes = difflib.unified_diff(known, found, "committed", "installed", lineterm="")
    told = "\n".join(changes)
    assert not told, f"look at each change, then run make groups-table:\n{told}"


def test_the_table_is_of_all_architectures():
    """Rows that no architecture of the test's own stands for are there too."""
    pytest.importorskip("timm")
    assert {row[0] for row in sweep.committed("timm")} - set(sweep.timm_sample())


def test_there_are_sixty_families_or_more():
    assert len(set(sweep.FAMILIES)) == len(sweep.FAMILIES) >= 60
