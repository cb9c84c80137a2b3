"""The cache of resized images, and names that are not UTF-8."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from pathlib import Path

import needs_train  # noqa: F401
import numpy as np
import pytest
from pairs import SIZE, gray, pair, truths, write
from PIL import Image

from fastclip.transfuse.data import DataError, load_split
from fastclip.transfuse.data.options import ReadOptions

READER = """
import sys
from pathlib import Path
from fastclip.transfuse.data import load_split
from fastclip.transfuse.data.options import ReadOptions

folder, cache, barrier = map(Path, sys.argv[1:4])
(barrier / sys.argv[4]).touch()
while len(list(barrier.iterdir())) < 2:
    pass
for size in range(16, 80, 16):
    samples = load_split(str(folder), "all", (size, size), options=ReadOptions(cache=cache))
    print(int(samples.images.long().sum()), int(samples.masks.long().sum()))
"""


@pytest.mark.slow
def test_two_processes_fill_one_cache(tmp_path: Path) -> None:
    write(tmp_path / "set")
    (tmp_path / "barrier").mkdir()
    places = [str(tmp_path / name) for name in ("set", "cache", "barrier")]
    command = [sys.executable, "-c", READER, *places]
    both = [
        subprocess.Popen(
            [*command, name], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for name in "ab"
    ]
    results = [process.communicate(timeout=120) for process in both]
    assert [process.returncode for process in both] == [0, 0], results
    assert results[0][0] == results[1][0] != ""
    entries = list((tmp_path / "cache").iterdir())
    assert len(entries) == 4  # one a size, and nothing half made beside them
    for size in range(16, 80, 16):
        plain = load_split(str(tmp_path / "set"), "all", (size, size))
        assert f"{int(plain.images.long().sum())} " in results[0][0]


def test_the_cache_is_keyed_by_content_and_size(tmp_path: Path) -> None:
    write(tmp_path / "set")
    cache = tmp_path / "cache"
    options = ReadOptions(cache=cache)

    def load(size: tuple[int, int] = SIZE) -> np.ndarray:
        return load_split(str(tmp_path / "set"), "all", size, options=options).masks.numpy()

    first = load()
    assert np.array_equal(first[:, 0] > 0, truths())
    (entry,) = cache.iterdir()
    stamp = (entry / "images.npy").stat().st_mtime_ns
    assert np.array_equal(load(), first)
    assert (entry / "images.npy").stat().st_mtime_ns == stamp
    assert load((16, 16)).shape == (4, 1, 16, 16)
    gray(~pair(0)[1]).save(tmp_path / "set" / "masks" / "case00.png")
    assert np.array_equal(load()[0, 0] > 0, ~pair(0)[1])
    assert len(list(cache.iterdir())) == 3
    (tmp_path / "file").write_text("")
    options = ReadOptions(cache=tmp_path / "file")
    with pytest.raises(DataError, match="--cache"):
        load()


def test_names_that_are_not_utf8_are_written_readably(tmp_path: Path) -> None:
    root = os.fsencode(tmp_path) + b"/d\xe9r"
    for folder, pixels in ((b"/images", pair(0)[0]), (b"/masks", pair(0)[1] * np.uint8(255))):
        os.makedirs(root + folder)
        with open(root + folder + b"/caf\xe9.png", "wb") as out:
            Image.fromarray(pixels).save(out, format="PNG")
    samples = load_split(os.fsdecode(root), "all", SIZE)
    assert samples.names == ["caf\\xe9"]
    assert samples.source == "d\\xe9r all"
    csv.writer((tmp_path / "x.csv").open("w", encoding="utf-8")).writerow(samples.names)
