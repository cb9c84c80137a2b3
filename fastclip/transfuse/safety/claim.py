"""The folder of a run: locked, and the checkpoint in it that the run goes on from."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fastclip.transfuse.config.train import TrainConfig
from fastclip.transfuse.data.samples import printable
from fastclip.transfuse.distributed.processes import Processes
from fastclip.transfuse.safety import run_files
from fastclip.transfuse.safety.continuation import require_same_run
from fastclip.transfuse.safety.lock import FolderLock
from fastclip.transfuse.storage.checkpoint import CheckpointError, load_checkpoint


@dataclass(frozen=True)
class Claim:
    """A folder that is this run's alone, and what the run starts from."""

    folder: Path
    lock: FolderLock | None  # None where another process of the run holds it
    checkpoint: dict[str, Any] | None = None
    file: Path | None = None  # of the checkpoint
    earlier: list[Path] = field(default_factory=list)  # files of a run that this one replaces

    def replace_earlier(self) -> None:
        """Remove the earlier run; once nothing that is wrong can stop this one any more."""
        run_files.remove(self.earlier)


def claim_together(config: TrainConfig, processes: Processes) -> Claim:
    """`claim_folder` by the main process; the others learn what it has found there."""
    mine = claim_folder(config) if processes.main else None

    def found() -> tuple[Path, dict[str, Any] | None, Path | None]:
        assert mine is not None
        return mine.folder, mine.checkpoint, mine.file

    folder, checkpoint, file = processes.from_main(found)
    return mine or Claim(folder, None, checkpoint, file)


def claim_folder(config: TrainConfig, say: Callable[[str], object] = print) -> Claim:
    """Make and lock the output folder.

    Args:
        config: checked.
        say: called with a sentence on what is not as it should be and does no harm.

    Raises:
        CheckpointError: the folder holds another run, or none to resume.
        ValueError: another process is in it, or it cannot be made.
    """
    if config.resume:
        assert config.out is not None
        if not config.out.is_dir():
            raise CheckpointError(f"no checkpoint at {printable(config.out / 'last.pt')}")
        out = config.out
    else:
        out = _make(config)
    lock = FolderLock(out, say)
    try:
        if config.resume:
            return _resumed(config, out, lock, say)
        if lock.former is None and not run_files.results(out):
            return Claim(out, lock)  # no run has been here, whatever the names of files
        if not config.overwrite:
            _require_no_results(out, lock)
        return Claim(out, lock, earlier=run_files.written_files(out))
    except BaseException:
        lock.release()
        raise


def _make(config: TrainConfig) -> Path:
    named = config.out or Path(f"runs/{config.model}-{time.strftime('%Y%m%d-%H%M%S')}")
    out, number = named, 1
    while True:
        try:
            out.mkdir(parents=True, exist_ok=config.out is not None)
            return out
        except FileExistsError as error:
            if config.out is not None:
                raise ValueError(f"--out {printable(out)} is a file") from error
            # Another run began in the same second.
            number += 1
            out = named.with_name(f"{named.name}-{number}")
        except OSError as error:
            raise ValueError(f"--out {printable(out)}: {error.strerror}") from error


def _require_no_results(out: Path, lock: FolderLock) -> None:
    """A run that was killed before its first checkpoint is no earlier run: it starts again."""
    results = run_files.results(out)
    if lock.former is not None:
        results = [file for file in results if file.suffix == ".pt"]
    if results:
        raise CheckpointError(
            f"--out {printable(out)} holds an earlier run: --resume continues it, --overwrite "
            "replaces it, or choose another folder"
        )


def _resumed(
    config: TrainConfig, out: Path, lock: FolderLock, say: Callable[[str], object]
) -> Claim:
    """The newest checkpoint that can be read; the start where a killed run has left none."""
    files = [f for f in (out / "last.pt", *run_files.kept_checkpoints(out).values()) if f.exists()]
    if not files and (out / "best.pt").exists():
        raise CheckpointError(
            f"no checkpoint at {printable(out / 'last.pt')}: best.pt beside it holds weights "
            "alone; --overwrite starts anew, in another --out nothing is lost"
        )
    if not files:
        if lock.former is None:
            raise CheckpointError(f"no checkpoint at {printable(out / 'last.pt')}")
        say(f"the run in {printable(out)} was killed before its first checkpoint: it starts again")
        return Claim(out, lock, earlier=run_files.written_files(out))
    damaged: list[str] = []
    for file in files:
        try:
            content = load_checkpoint(file)
        except CheckpointError as error:
            damaged.append(str(error))
            continue
        require_same_run(content, config, file)
        run_files.remove(run_files.leftovers(out))
        for line in damaged:
            say(f"{line}: goes on from {printable(file.name)}, step {content['step']}")
        return Claim(out, lock, content, file)
    raise CheckpointError(damaged[0])
