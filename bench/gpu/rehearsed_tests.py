"""Tests that go wrong on purpose, for rehearsals (FASTCLIP_REHEARSE): never collected otherwise."""

from __future__ import annotations

import pytest

from gpu import rehearsal


@pytest.mark.parametrize("fault", rehearsal.WANTED)
def test_rehearsed(fault):
    found = rehearsal.FAULTS[fault]()
    assert not found["failed"]


def test_after_the_faults():
    assert rehearsal.WANTED
