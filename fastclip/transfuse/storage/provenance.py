"""config.yaml of a run: the flags that reproduce it, and how it came about."""

from __future__ import annotations

import platform
import subprocess
from dataclasses import fields
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
import yaml

import fastclip
from fastclip.transfuse.config.train import SUBJECTS, TrainConfig
from fastclip.transfuse.storage.files import write_file

# Flags that say where a run goes and what happens to an earlier one there: of no effect on it.
NOT_KEPT = ("config", "out", "resume", "overwrite")
LIBRARIES = ("torchvision", "timm", "numpy")
GIT_SECONDS = 10


def write_config(file: Path, config: TrainConfig, **made_from: Any) -> None:
    """Write a file that `fastclip train --config` reads.

    Args:
        file: appears whole or not at all.
        config: every flag of it is written, those of the defaults too: a later version may have
            other ones.
        made_from: what else describes the run; goes under `provenance`, beside versions and commit.
    """
    text = ["# fastclip train --config THIS_FILE --out FOLDER  runs it again."]
    for subject in SUBJECTS:
        names = [f.name for f in fields(subject) if f.name not in NOT_KEPT]
        if names:
            text.append(f"\n# {subject.__doc__}")
            values = {name: getattr(config, name) for name in names}
            if "data" in values:
                values["data"] = _absolute(config.data)
            text.append(_yaml({name: _plain(value) for name, value in values.items()}))
    text.append("\n# How this run came about; no flags.")
    text.append(_yaml({"provenance": {**versions(), **made_from}}))
    content = "\n".join(text).encode("utf-8")
    write_file(file, lambda stream: stream.write(content))


def versions() -> dict[str, str | None]:
    """Versions of what computes, and the commit of fastclip where it runs from a checkout."""
    return {
        "fastclip": fastclip.__version__,
        "commit": commit(Path(fastclip.__file__).parent),
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        **{name: _version(name) for name in LIBRARIES},
        "system": f"{platform.system()} {platform.machine()}",
    }


def commit(folder: Path) -> str | None:
    """Commit of a git checkout, with '+changes' where files differ from it.

    None where `folder` is in none: as the installed package is not, though its environment may
    lie within a checkout of something else.
    """
    try:
        _git(folder, "ls-files", "--error-unmatch", "__init__.py")
        changed = _git(folder, "status", "--porcelain", "--untracked-files=no", "--", ".")
        return _git(folder, "rev-parse", "HEAD") + ("+changes" if changed else "")
    except (OSError, subprocess.SubprocessError):
        return None


def _git(folder: Path, *arguments: str) -> str:
    command = ["git", "-C", str(folder), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=GIT_SECONDS)
    return done.stdout.strip()


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _yaml(values: dict[str, Any]) -> str:
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=100).rstrip()


def _absolute(data: str | tuple[str, ...]) -> str | list[str]:
    """Names of data that hold from any other working directory."""
    names = [data] if isinstance(data, str) else list(data)
    there = [str(Path(name).absolute()) if Path(name).exists() else name for name in names]
    return there[0] if isinstance(data, str) else there


def _plain(value: Any) -> Any:
    """As YAML has it; paths are absolute."""
    if isinstance(value, Path):
        return str(value.absolute())
    if isinstance(value, (list, tuple)):
        return [_plain(part) for part in value]
    return value
