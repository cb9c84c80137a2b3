"""Fetches archives with pooch, goes on where a broken download ended, and unpacks them safely."""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
import zipfile
from functools import partial
from pathlib import Path
from typing import Any

from fastclip.transfuse.data.formats import optional
from fastclip.transfuse.data.public import Archive
from fastclip.transfuse.data.samples import DataError, printable

PURPOSE = "fastclip download"
BLOCK = 1 << 16  # bytes; what a broken connection may lose
TIMEOUT_S = 60


def fetch(archive: Archive, folder: Path) -> Path:
    """Download an archive, or take the one that is there, and check its digest.

    Where no digest is published, that of the first download is kept beside it and checked later.

    Raises:
        DataError: no connection, or another digest than expected.
    """
    pooch = optional("pooch", PURPOSE)
    folder.mkdir(parents=True, exist_ok=True)
    kept = folder / f"{archive.file}.sha256"
    expected = archive.sha256 or (kept.read_text().split()[0] if kept.is_file() else None)
    try:
        file = pooch.retrieve(
            archive.url,
            known_hash=None if expected is None else f"sha256:{expected}",
            fname=archive.file,
            path=folder,
            downloader=partial(_resume, folder / f"{archive.file}.partial"),
        )
    # requests, urllib3 and pooch's check of the digest raise classes of their own.
    except Exception as error:
        raise DataError(
            f"{archive.url} cannot be fetched ({printable(str(error))}): the same command goes on "
            f"where it ended, or put the file at {printable(folder / archive.file)}"
        ) from error
    if expected is None:
        digest = pooch.file_hash(file, alg="sha256")
        kept.write_text(f"{digest}  {archive.file}\n")
        print(f"{archive.file}: no digest is published; kept for the next time: sha256 {digest}")
    return Path(file)


def _resume(kept: Path, url: str, output_file: str, pooch: Any) -> None:
    """Write the answer to `output_file`, by way of `kept`, which outlives a broken connection."""
    requests = optional("requests", PURPOSE)
    etag_file = kept.with_suffix(".etag")
    for file in (kept, etag_file):
        if file.is_symlink():  # never written through
            file.unlink()
    headers = {}
    if kept.is_file() and etag_file.is_file():
        # If-Range: a file that was changed meanwhile comes whole.
        headers = {"Range": f"bytes={kept.stat().st_size}-", "If-Range": etag_file.read_text()}
    with requests.get(url, headers=headers, stream=True, timeout=TIMEOUT_S) as answer:
        if answer.status_code != 416:  # 416: all of it is there
            answer.raise_for_status()
            etag_file.write_text(answer.headers.get("ETag", ""))
            with open(kept, "ab" if answer.status_code == 206 else "wb") as stream:
                for block in answer.iter_content(BLOCK):
                    stream.write(block)
    shutil.move(kept, output_file)
    etag_file.unlink(missing_ok=True)


def unpack(archive: Path, folder: Path) -> None:
    """Unpack a zip archive into a folder, whole or not at all.

    Raises:
        DataError: no zip; a name that leads out of the folder, or a link; more than the disk
            holds. Nothing is unpacked then.
    """
    try:
        with zipfile.ZipFile(archive) as content:
            members = content.infolist()
            _check(members, archive, folder)
            beside = Path(tempfile.mkdtemp(prefix=".unpacking-", dir=folder))
            try:
                content.extractall(beside)
                for entry in sorted(beside.iterdir()):
                    _merge(entry, folder / entry.name)
            finally:
                shutil.rmtree(beside, ignore_errors=True)
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, OSError) as error:
        raise DataError(
            f"{printable(archive)} cannot be unpacked ({printable(str(error))}): remove it, and "
            "fetch it again"
        ) from error


def _check(members: list[zipfile.ZipInfo], archive: Path, folder: Path) -> None:
    for member in members:
        parts = member.filename.replace("\\", "/").split("/")
        mode = member.external_attr >> 16
        kind = stat.S_IFMT(mode)
        outside = ".." in parts or member.filename.startswith(("/", "\\")) or ":" in parts[0]
        if outside or kind not in (0, stat.S_IFREG, stat.S_IFDIR):
            what = "leads out of its folder" if outside else "is no plain file"
            raise DataError(
                f"{printable(archive)} holds {member.filename!r}, which {what}: nothing was "
                "unpacked; do not use this archive"
            )
    needed, free = sum(m.file_size for m in members), shutil.disk_usage(folder).free
    if needed > 0.95 * free:
        raise DataError(
            f"{printable(archive)} needs {needed / 1e9:.1f} GB and {free / 1e9:.1f} GB are free "
            f"in {printable(folder)}: make room"
        )


def _merge(source: Path, target: Path) -> None:
    """Move a folder's files into one that is there, or the whole of it; files are replaced."""
    if target.is_symlink():
        raise OSError(f"{printable(target)} is a link")
    if source.is_dir() and target.is_dir():
        for entry in source.iterdir():
            _merge(entry, target / entry.name)
    else:
        os.replace(source, target)
