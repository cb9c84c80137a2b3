"""Training starts with OpenMP threads that spin briefly, unless the user has decided otherwise."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from fastclip.openmp import DECIDED, SHORT, SPIN, short_spin

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="libgomp's variable")

# What a console script does, but that it says with which spin count it starts.
COMMAND = (
    "import os, sys; print(os.environ.get('GOMP_SPINCOUNT'), flush=True); "
    "sys.argv = ['fastclip', {0!r}, '--no-such-flag']; "
    "from fastclip.cli import main; sys.exit(main())"
)


def spins(command: str, **decided: str) -> list[str]:
    """The spin count at each start of a command that ends at its first flag."""
    environment = {k: v for k, v in os.environ.items() if k not in DECIDED} | decided
    done = subprocess.run(
        [sys.executable, "-c", COMMAND.format(command)],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2, done.stderr
    assert "no-such-flag" in done.stderr
    return done.stdout.split()


def test_the_environment_has_a_short_spin_or_stays() -> None:
    assert short_spin({"HOME": "/root"}) == {"HOME": "/root", SPIN: SHORT}
    for name in DECIDED:
        assert short_spin({name: "x"}) is None


def test_training_starts_anew_once() -> None:
    assert spins("train") == ["None", SHORT]
    assert spins("info") == ["None"]


def test_what_the_user_has_set_stays() -> None:
    assert spins("train", OMP_WAIT_POLICY="passive") == ["None"]
    assert spins("train", GOMP_SPINCOUNT="77") == ["77"]
