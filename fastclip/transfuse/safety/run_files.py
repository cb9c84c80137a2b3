"""Which files of a folder a run has written: what --overwrite removes, and nothing else."""

from __future__ import annotations

import contextlib
import re
import shutil
from pathlib import Path

CHECKPOINTS = ("last.pt", "best.pt")
RESULTS = (*CHECKPOINTS, "metrics.csv", "steps.csv")  # the plain command does not write over them
KEPT = re.compile(r"step-(\d{8,})\.pt")
WANDB_ID = "wandb-id.txt"  # of the run in --out, so that a resumed part continues it
NAMES = (
    *RESULTS,
    *("split.csv", "skipped.csv", "config.yaml", "curves.png", "overlays.png"),
    *("norms.csv", "images.csv", "report.json", "report.html", WANDB_ID),
    *("trace.json", "profile.csv"),
)
CASES = "cases"  # folder of the report's pictures
PICTURE = re.compile(r"\.?(worst|median|best)-\d+\.png(\.\d+-[0-9a-f]{8}\.part)?")
WANDB_LINKS = ("latest-run", "debug.log", "debug-internal.log")
PATTERNS = (
    KEPT,
    re.compile(r"events\.out\.tfevents\..+"),
    # What a process that was killed has left beside a file.
    re.compile(rf"\.({'|'.join(map(re.escape, NAMES))}|{KEPT.pattern})\.\d+-[0-9a-f]{{8}}\.part"),
)


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
    others += pictures(folder)
    written = [f for f in (*first[:1], *others, *first[1:]) if f.is_file() or f.is_symlink()]
    return written + wandb_files(folder)


def wandb_files(folder: Path) -> list[Path]:
    """What wandb keeps in the folder of a run: a folder for each part of it, and links."""
    kept, name = folder / "wandb", folder / WANDB_ID
    if not name.is_file() or not kept.is_dir() or kept.is_symlink():
        return []
    ending = f"-{name.read_text(errors='replace').strip()}"
    return sorted(f for f in kept.iterdir() if f.name.endswith(ending) or f.name in WANDB_LINKS)


def pictures(folder: Path) -> list[Path]:
    """The pictures of the report, whole ones and unfinished ones."""
    cases = folder / CASES
    if not cases.is_dir() or cases.is_symlink():
        return []
    return sorted(file for file in cases.iterdir() if PICTURE.fullmatch(file.name))


def results(folder: Path) -> list[Path]:
    """Checkpoints first, then tables: what shows that a run has been here."""
    checkpoints = [folder / name for name in CHECKPOINTS]
    tables = [folder / name for name in RESULTS if name not in CHECKPOINTS]
    return [f for f in (*checkpoints, *kept_checkpoints(folder).values(), *tables) if f.exists()]


def leftovers(folder: Path) -> list[Path]:
    """Unfinished files of processes that were killed."""
    return [file for file in folder.iterdir() if PATTERNS[-1].fullmatch(file.name)]


def remove(files: list[Path]) -> None:
    """Remove files and folders, those that are gone already among them."""
    for file in files:
        if file.is_dir() and not file.is_symlink():
            shutil.rmtree(file)
        else:
            file.unlink(missing_ok=True)
    for folder in {file.parent for file in files if file.parent.name in ("cases", "wandb")}:
        with contextlib.suppress(OSError):  # holds files of others
            folder.rmdir()
