"""`fastclip evaluate --against`: two runs on the same images, or none."""

from __future__ import annotations

from pathlib import Path

import needs_train  # noqa: F401
import pytest
from evaluated import Run, checkpoint
from tiny import one_thread  # noqa: F401

pytestmark = pytest.mark.slow  # it evaluates again and again


def test_two_runs_are_compared_on_the_same_images(
    tmp_path: Path, measured: Run, sample: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    other = checkpoint(tmp_path / "two.pt", seed=5)
    one = measured(*sample, "--csv", tmp_path / "one.csv")
    two = measured("--checkpoint", other, *sample[2:])
    found = measured("--checkpoint", other, *sample[2:], "--against", sample[1])
    text = capsys.readouterr().out
    assert f"minus {sample[1]}, on the same images (paired bootstrap)" in text
    for size in ("own_size", "network_size"):
        for name, difference in found["difference"]["all"][size].items():
            mean = two["all"][size][name]["mean"] - one["all"][size][name]["mean"]
            assert difference["mean"] == pytest.approx(mean, abs=1e-9)
            assert difference["low"] <= difference["mean"] <= difference["high"]
            assert 0 < difference["p_value"] <= 1
    from_file = measured("--checkpoint", other, *sample[2:], "--against", tmp_path / "one.csv")
    for name, difference in from_file["difference"]["all"]["own_size"].items():
        live = found["difference"]["all"]["own_size"][name]
        assert difference["mean"] == pytest.approx(live["mean"], abs=1e-12)
    itself = measured(*sample, "--against", sample[1])["difference"]["all"]["own_size"]["dice"]
    assert itself == {"mean": 0, "low": 0, "high": 0, "p_value": 1}


def test_runs_of_two_sizes_are_compared_at_the_own_size_alone(
    tmp_path: Path, measured: Run, sample: tuple[str, ...]
) -> None:
    other = checkpoint(tmp_path / "two.pt", size="48x64")
    found = measured(*sample, "--against", other)["difference"]["all"]
    assert list(found) == ["own_size"]
    measured("--checkpoint", other, *sample[1:2], *sample[2:], code=2)
    both = measured("--checkpoint", other, sample[1], *sample[2:], "--size", "32x48")
    assert len(both["checkpoints"]) == 2


def test_scores_of_other_images_are_refused(
    tmp_path: Path, measured: Run, sample: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    measured(*sample, "--csv", tmp_path / "one.csv")
    lines = (tmp_path / "one.csv").read_text().splitlines()
    files = {
        "fewer.csv": ("\n".join(lines[:-1]), "no scores of 1 of 6 images (case05)"),
        "other.csv": ("a,b\n1,2\n", "lacks the columns"),
        "nan.csv": (
            "image,dice_own_size\n" + "".join(f"case0{k},nan\n" for k in range(6)),
            "finite",
        ),
        "text.csv": ("image,dice_own_size\n" + "".join(f"case0{k},x\n" for k in range(6)), "'x'"),
    }
    for name, (text, message) in files.items():
        (tmp_path / name).write_text(text)
        measured(*sample, "--against", tmp_path / name, code=2)
        err = capsys.readouterr().err
        assert name in err
        assert message in err
    measured(*sample, "--against", tmp_path / "absent.csv", code=2)
