"""When and how a run saves: last.pt, then best.pt, then the checkpoints of --keep."""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from fastclip.transfuse.config.safety import Interval
from fastclip.transfuse.data.samples import printable
from fastclip.transfuse.errors import RunError
from fastclip.transfuse.safety import run_files
from fastclip.transfuse.safety.lock import FolderLock
from fastclip.transfuse.storage.checkpoint import save_checkpoint
from fastclip.transfuse.storage.files import write_file

BEST_KEYS = ("model", "weights", "config", "step", "dice", "loss")
SHOWN = 4  # names that an error lists


def best_of(content: Mapping[str, Any]) -> dict[str, Any]:
    """What best.pt holds of a last.pt that was saved at the best step."""
    return {key: content[key] for key in BEST_KEYS if key in content}


class Saver:
    """Writes the checkpoints of one run.

    last.pt holds all that best.pt does and is written first. Whenever the process ends, the
    folder holds a last.pt to go on from, and `complete()` makes what is missing beside it.

    Args:
        folder: of the run.
        lock: of the folder; None where another process has it.
        every: how often to save besides after each validation; None does not.
        keep: how many of the newest saves to keep as step-<step>.pt.
    """

    def __init__(
        self, folder: Path, lock: FolderLock | None, every: Interval | None = None, keep: int = 0
    ) -> None:
        self.folder, self.lock, self.every, self.keep = folder, lock, every, keep
        self.saved_at = time.monotonic()
        self.last, self.best = folder / "last.pt", folder / "best.pt"

    def due(self, step: int) -> bool:
        """Whether --save-every asks for a save after this step."""
        if self.every is None:
            return False
        if self.every.steps is not None:
            return step % self.every.steps == 0
        return time.monotonic() - self.saved_at >= (self.every.seconds or 0.0)

    def save(self, content: dict[str, Any]) -> None:
        """Write last.pt; and best.pt, where its `best_step` is its step.

        Raises:
            RunError: a weight is not finite, the folder was taken by another process, or a file
                could not be written. The checkpoints of before stand.
        """
        _require_finite(content["weights"], content["step"], self.folder)
        if self.lock is not None and not self.lock.held():
            raise RunError(
                f"{printable(self.lock.file)} was removed, or another process has taken the "
                "folder: nothing more is written to it; --resume goes on from its last.pt"
            )
        save_checkpoint(self.last, content)
        self.complete(content)
        self.saved_at = time.monotonic()

    def standing(self) -> str:
        """What is there to go on from, for the end of a sentence."""
        if not self.last.exists():
            return "nothing was saved yet"
        return f"{printable(self.last)} is from before: the same command with --resume goes on"

    def complete(self, content: Mapping[str, Any]) -> None:
        """Write what belongs beside a last.pt of this content."""
        if content.get("best_step") == content["step"]:
            save_checkpoint(self.best, best_of(content))
        if self.keep:
            self._keep(content["step"])

    def _keep(self, step: int) -> None:
        """Give last.pt a second name, and remove the oldest of those names beyond `keep`."""
        file = self.folder / f"step-{step:08d}.pt"
        beside = file.with_name(f".{file.name}.{os.getpid()}-{secrets.token_hex(4)}.part")
        try:
            os.link(self.last, beside)
            os.replace(beside, file)
            # A rename onto another name of the same file leaves both.
            beside.unlink(missing_ok=True)
        except OSError:  # a file system without hard links
            write_file(file, lambda stream: stream.write(self.last.read_bytes()))
        kept = [at for at in run_files.kept_checkpoints(self.folder) if at <= step]
        run_files.remove([self.folder / f"step-{at:08d}.pt" for at in kept[self.keep :]])


def _require_finite(weights: Mapping[str, Any], step: int, folder: Path) -> None:
    bad = [
        name
        for name, value in weights.items()
        if isinstance(value, Tensor) and value.is_floating_point() and not _finite(value)
    ]
    if bad:
        more = ", ..." if len(bad) > SHOWN else ""
        raise RunError(
            f"{len(bad)} of {len(weights)} weights are not finite after step {step} "
            f"({', '.join(bad[:SHOWN])}{more}): not saved; the checkpoints in "
            f"{printable(folder)} are from before. Try a lower --lr"
        )


def _finite(value: Tensor) -> bool:
    # The sum is one read without a temporary; where it overflows the elements are looked at.
    return bool(value.sum().isfinite()) or bool(value.isfinite().all())
