"""Which files of a folder a run has written: what --overwrite removes, and nothing else."""

from __future__ import annotations

import re
from pathlib import Path

CHECKPOINTS = ("last.pt", "best.pt")
RESULTS = (*CHECKPOINTS, "metrics.csv", "steps.csv")  # the plain command does not write over them
KEPT = re.compile(r"step-(\d{8,})\.pt")
NAMES = (
    *RESULTS,
    *("split.csv", "skipped.csv", "config.yaml", "curves.png", "overlays.png"),
    *("norms.csv", "images.csv", "report.json", "report.html", "wandb-id.txt", "trace.json"),
)
PATTERNS = (
    KEPT,
    re.compile(r"events\.out\.tfevents\..+"),
    # What a process that was killed has left beside a file.
    re.compile(rf"\.({'|'.join(map(re.escape, NAMES))}|{KEPT.pattern})\.\d+-[0-9a-f]{{8}}\.part"),
)


CASES = "cases"  # folder of the report's pictures
CASE = re.compile(r"(worst|median|best)-\d+\.png")


def kept_checkpoints(folder: Path) -> dict[int, Path]:
    """The checkpoints of --keep by step, the newest first."""
    if not folder.is_dir():
        return {}
    found = {int(m[1]): f for f in folder.iterdir() if (m := KEPT.fullmatch(f.name))}
    return dict(sorted(found.items(), reverse=True))


def written_files(folder: Path) -> list[Path]:
    """What a run has written into its folder, in the order in which it is to be removed.

    last.pt comes first: were the removal cut short, nothing would go on from what is left.
    """
    first = [folder / name for name in NAMES]
    others = sorted(f for f in folder.iterdir() if any(p.fullmatch(f.name) for p in PATTERNS))
    cases = sorted(f for f in (folder / CASES).glob("*.png") if CASE.fullmatch(f.name))
    written = (*first[:1], *others, *first[1:], *cases)
    return [file for file in written if file.is_file() or file.is_symlink()]


def results(folder: Path) -> list[Path]:
    """Checkpoints first, then tables: what shows that a run has been here."""
    checkpoints = [folder / name for name in CHECKPOINTS]
    tables = [folder / name for name in RESULTS if name not in CHECKPOINTS]
    return [f for f in (*checkpoints, *kept_checkpoints(folder).values(), *tables) if f.exists()]


def leftovers(folder: Path) -> list[Path]:
    """Unfinished files of processes that were killed."""
    return [file for file in folder.iterdir() if PATTERNS[-1].fullmatch(file.name)]


def remove(files: list[Path]) -> None:
    """Remove files, those that are gone already among them."""
    for file in files:
        file.unlink(missing_ok=True)
