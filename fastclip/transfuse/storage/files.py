"""Files that appear whole or not at all: written beside, synced, renamed."""

from __future__ import annotations

import contextlib
import csv
import io
import os
import secrets
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

from fastclip.transfuse.data.samples import printable
from fastclip.transfuse.errors import RunError

EVENT = "fastclip.write"
POINTS = ("created", "written", "synced", "renamed", "done")


def write_file(file: Path, write: Callable[[BinaryIO], object]) -> None:
    """Let `write` fill a file beside `file`, sync it, and rename it; RunError where that fails.

    The file beside is new and of this process alone: what lies there under any name, a link for
    instance, is never written through. Each point that it has come to is an audit event
    (sys.addaudithook) named EVENT, with the point and the file.
    """
    beside = file.with_name(f".{file.name}.{os.getpid()}-{secrets.token_hex(4)}.part")
    created = False
    try:
        with open(beside, "xb") as stream:
            created = True
            sys.audit(EVENT, "created", str(file))
            write(stream)
            stream.flush()
            sys.audit(EVENT, "written", str(file))
            os.fsync(stream.fileno())
        sys.audit(EVENT, "synced", str(file))
        os.replace(beside, file)
        sys.audit(EVENT, "renamed", str(file))
        _sync_folder(file.parent)
        sys.audit(EVENT, "done", str(file))
    except OSError as error:
        kept = f"; the earlier {printable(file.name)} is untouched" if file.exists() else ""
        raise RunError(
            f"cannot write {printable(file)} ({printable(str(error))}): make room or choose "
            f"another{kept}"
        ) from error
    finally:
        if created:
            with contextlib.suppress(OSError):
                beside.unlink(missing_ok=True)


def write_csv(file: Path, rows: list[dict[str, Any]]) -> None:
    """Write rows of the same keys under a header; floats to six digits."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(rows[0]) if rows else [])
    writer.writeheader()
    for row in rows:
        writer.writerow({k: f"{v:.6g}" if isinstance(v, float) else v for k, v in row.items()})
    content = text.getvalue().encode("utf-8", "backslashreplace")
    write_file(file, lambda stream: stream.write(content))


def _sync_folder(folder: Path) -> None:
    if os.name != "posix":  # Windows opens no folders
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
