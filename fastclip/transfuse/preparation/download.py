"""`fastclip download`: a public data set, checked and unpacked, ready for `fastclip train`."""

from __future__ import annotations

from pathlib import Path

from fastclip.transfuse.config.preparation import DownloadConfig
from fastclip.transfuse.data import layouts
from fastclip.transfuse.data.archives import fetch, unpack
from fastclip.transfuse.data.load import describe
from fastclip.transfuse.data.public import PUBLIC_SETS, PublicSet
from fastclip.transfuse.data.samples import printable
from fastclip.transfuse.distributed.launch import require_alone
from fastclip.transfuse.errors import usage_errors
from fastclip.transfuse.safety.lock import FolderLock


def run_download(config: DownloadConfig) -> int:
    """Fetch, check and unpack; print terms, citation and how to train."""
    with usage_errors():
        require_alone()
        return download(config.name, PUBLIC_SETS[config.name], config.out / config.name)


def download(name: str, public: PublicSet, folder: Path) -> int:
    """As `run_download`, of one data set into its folder; 1 where an archive is left packed.

    Raises:
        DataError: what cannot be fetched, is another file than expected, or is hostile.
        ValueError: another process is at it.
    """
    print(f"{name}: {public.page}\nterms: {public.licence}\nplease cite: {public.citation}")
    archives = folder / "archives"
    archives.mkdir(parents=True, exist_ok=True)
    lock = FolderLock(archives)  # or two would add to one partial file
    try:
        packed = _fetch_all(public, archives, folder)
    finally:
        lock.release()
    if packed:
        files = ", ".join(printable(file) for file in packed)
        print(f"{files} is of a kind that is not unpacked here: unpack it into {printable(folder)}")
        return 1
    found = layouts.find(str(folder))
    print(f"{found.layout}: {describe(found)}\nfastclip train --data {printable(folder)}")
    return 0


def _fetch_all(public: PublicSet, archives: Path, folder: Path) -> list[Path]:
    """Fetch and unpack; the archives of kinds that are not unpacked here."""
    packed = []
    for archive in public.archives:
        file = fetch(archive, archives)
        if file.suffix == ".zip":
            unpack(file, folder)
            print(f"{archive.file}: unpacked into {printable(folder)}")
        else:
            packed.append(file)
    return packed
