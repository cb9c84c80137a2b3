"""Checkpoints and other files: written beside, synced, renamed; read with weights_only=True."""

from __future__ import annotations

import contextlib
import csv
import io
import os
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, BinaryIO

import torch

from fastclip.transfuse.config import TrainConfig
from fastclip.transfuse.factory import create_model
from fastclip.transfuse.model import ARCHITECTURES, TransFuse

FORMAT = "fastclip.transfuse/1"


class CheckpointError(ValueError):
    """A file that cannot be read or used; the text names it and what to do."""


class RunError(RuntimeError):
    """The work cannot go on; what was written before stands."""


def save_checkpoint(file: Path, content: dict[str, Any]) -> None:
    """Write `content` so that `file` is always the old checkpoint or the whole new one.

    Raises:
        RunError: the write failed (disk full, no permission); the old file is untouched.
    """
    write_file(file, lambda stream: torch.save({"format": FORMAT, **content}, stream))


def write_file(file: Path, write: Callable[[BinaryIO], object]) -> None:
    """Let `write` fill a file beside `file`, sync it, and rename it; RunError where that fails."""
    beside = file.with_name(f".{file.name}.part")
    try:
        with open(beside, "wb") as stream:
            write(stream)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(beside, file)
        _sync_folder(file.parent)
    # torch's zip writer turns a failed write into RuntimeError.
    except (OSError, RuntimeError) as error:
        with contextlib.suppress(OSError):
            beside.unlink(missing_ok=True)
        kept = f"; the earlier {file.name} is untouched" if file.exists() else ""
        raise RunError(
            f"cannot write {file} ({error}): make room or choose another{kept}"
        ) from error


def write_csv(file: Path, rows: list[dict[str, Any]]) -> None:
    """Write rows of the same keys under a header; floats to six digits."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(rows[0]) if rows else [])
    writer.writeheader()
    for row in rows:
        writer.writerow({k: f"{v:.6g}" if isinstance(v, float) else v for k, v in row.items()})
    write_file(file, lambda stream: stream.write(text.getvalue().encode()))


def _sync_folder(folder: Path) -> None:
    if os.name != "posix":  # Windows opens no folders
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def load_checkpoint(file: Path) -> dict[str, Any]:
    """Read a checkpoint of this trainer, or a published state dict, onto the CPU.

    Raises:
        CheckpointError: no such file, a damaged one, or another program's.
    """
    if not Path(file).is_file():
        raise CheckpointError(f"no checkpoint at {file}")
    try:
        content = torch.load(file, map_location="cpu", weights_only=True)
    # A damaged zip, a refused class and a short read raise classes of their own each.
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(f"{file} is damaged or no checkpoint ({reason})") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{file} was not written by `fastclip train`")
    if content.get("format") != FORMAT:
        content = _published(content, file)
    return content


def _published(weights: dict[str, Any], file: Path) -> dict[str, Any]:
    """A bare state dict, as the authors publish them, dressed as a checkpoint of this trainer."""
    weights = {key.removeprefix("module."): value for key, value in weights.items()}
    pos_embed = weights.get("transformer.pos_embed")
    for name, arch in ARCHITECTURES.items():
        shape = (1, arch.grid[0] * arch.grid[1], arch.width)
        if isinstance(pos_embed, torch.Tensor) and tuple(pos_embed.shape) == shape:
            config = asdict(TrainConfig(data="", model=name))
            return {"format": FORMAT, "model": name, "weights": weights, "config": config}
    raise CheckpointError(
        f"{file} was not written by `fastclip train`, and is no TransFuse state dict either"
    )


def load_model(file: Path) -> tuple[TransFuse, dict[str, Any]]:
    """The model of a checkpoint, or of a published state dict, in eval mode; and the checkpoint."""
    content = load_checkpoint(file)
    model = create_model(content["model"])
    load_weights(model, content, file)
    return model.eval(), content


def load_weights(model: TransFuse, content: dict[str, Any], file: Path) -> None:
    """Put a checkpoint's weights into `model`; CheckpointError where they do not fit."""
    try:
        model.load_state_dict(content["weights"])
    except RuntimeError as error:
        first = str(error).splitlines()[1].strip() if "\n" in str(error) else str(error)
        raise CheckpointError(f"{file} does not fit {content['model']}: {first}") from error
