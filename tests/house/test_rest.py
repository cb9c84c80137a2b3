"""When the core leaves torch's threads alone: csrc/threads/rest.h, over times that are given."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

CSRC = Path(__file__).parents[2] / "csrc"
# Reads "worked waited" in microseconds for each region that runs on the team, and between them
# counts the regions, one every `step` microseconds, that do not.
PROGRAM = """
#include <cstdlib>
#include <iostream>
#include "threads/rest.h"
int main(int, char** arguments) {
  const std::chrono::microseconds step(std::atol(arguments[1]));
  fastclip::Rest rest;
  fastclip::Rest::Clock::time_point time{};
  for (long worked, waited; std::cin >> worked >> waited;) {
    rest.judge(std::chrono::microseconds(worked), std::chrono::microseconds(waited), time);
    int alone = 0;
    for (; rest.now(time); time += step) ++alone;
    std::cout << alone << ' ';
  }
}
"""


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if shutil.which("g++") is None:
        pytest.skip("needs g++")
    folder = tmp_path_factory.mktemp("rest")
    (folder / "rest.cpp").write_text(PROGRAM)
    built = folder / "rest"
    command = ["g++", "-std=c++17", f"-I{CSRC}", str(folder / "rest.cpp"), "-o", str(built)]
    subprocess.run(command, check=True)
    return built


@pytest.mark.parametrize(
    ("step_us", "regions", "alone"),
    [
        # No wait of a quiet machine counts: under a millisecond, or little beside the work.
        (100_000, [(200, 900), (5000, 1200), (0, 0)], [0, 0, 0]),
        # One is chance, and the next in a row is not; a good one in between begins anew.
        (100_000, [(200, 4000), (200, 4000), (200, 4000)], [4, 16, 16]),
        (100_000, [(200, 4000), (200, 0), (200, 4000)], [4, 0, 4]),
        # As many times the wait, where the calls are short.
        (200, [(200, 4000), (200, 4000)], [80, 320]),
        (4000, [(5000, 1250)], [4]),
    ],
)
def test_a_team_rests(program: Path, step_us: int, regions: list, alone: list[int]) -> None:
    text = "\n".join(f"{worked} {waited}" for worked, waited in regions)
    done = subprocess.run(
        [program, str(step_us)], input=text, capture_output=True, text=True, check=True
    )
    assert [int(n) for n in done.stdout.split()] == alone
