"""What a resumed run must share with its first part to be its continuation."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastclip.transfuse.config.train import TrainConfig
from fastclip.transfuse.data.decoder import in_threads
from fastclip.transfuse.data.samples import Samples, printable
from fastclip.transfuse.distributed.processes import Processes
from fastclip.transfuse.storage.checkpoint import CheckpointError, require

STATE = ("optimizer", "step", "epoch", "batch", "validated", "seconds", "best", "rng")
DIGEST_BYTES = 16
SHOWN = 4  # names that an error lists


def require_same_run(content: Mapping[str, Any], config: TrainConfig, file: Path) -> None:
    """Raise CheckpointError where a checkpoint lacks a part, or another flag was given."""
    if "optimizer" not in content:
        raise CheckpointError(f"{printable(file)} holds no optimizer state: resume from a last.pt")
    require(content, file, "model", "weights", "config", *STATE, "rng_cuda", "record")
    keys = TrainConfig.SAME_ON_RESUME
    if "data" not in content:  # saved by a version that compared the names of data
        keys = (*keys, "data")
    given = asdict(config)
    for key in keys:
        # What the version that wrote the file did not have was as the default is.
        old = content["config"].get(key, getattr(TrainConfig, key))
        if _plain(old) != _plain(given[key]):
            flag = key.replace("_", "-")
            raise CheckpointError(
                f"{printable(file)} was trained with --{flag} {old}, not {given[key]}: give the "
                "same, or start a new run in another --out"
            )


def budget_flags(config: Mapping[str, Any]) -> dict[str, Any]:
    """The flags of a configuration that say how long training lasts."""
    names = ("epochs", "max_steps", "max_time")
    return {name: config[name] for name in names if name in config}


def _plain(value: object) -> object:
    """One name and a sequence of one name are the same; a path is its text."""
    if isinstance(value, (list, tuple)):
        return value[0] if len(value) == 1 else tuple(value)
    return str(value) if isinstance(value, Path) else value


@contextmanager
def restoring(file: Path | None) -> Iterator[None]:
    """Turn what a checkpoint of wrong contents raises into CheckpointError with the file."""
    name = printable(file or "the checkpoint")
    try:
        yield
    except CheckpointError:
        raise
    except KeyError as error:
        raise CheckpointError(
            f"{name} lacks {error.args[0]}: take another checkpoint of the run"
        ) from error
    except (TypeError, ValueError, RuntimeError, AttributeError, IndexError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise CheckpointError(
            f"{name} does not fit this run ({printable(reason)}): take another checkpoint of it"
        ) from error


def sample_digests(samples: Samples) -> dict[str, Any]:
    """Names of samples, and a digest of the pixels of each: `digests`, uint8 [N, 16]."""
    digests = torch.zeros(len(samples), DIGEST_BYTES, dtype=torch.uint8)
    if samples.source.startswith("synthetic"):  # the seed says it, whatever a machine's rounding
        return {"names": list(samples.names), "digests": digests}

    def read(row: int) -> None:
        digest = hashlib.blake2b(digest_size=DIGEST_BYTES)
        for pixels in (samples.images[row], samples.target(row)):
            digest.update(repr(tuple(pixels.shape)).encode())
            digest.update(pixels.contiguous().numpy().data)
        digests[row] = torch.tensor(list(digest.digest()), dtype=torch.uint8)

    in_threads(read, len(samples))
    return {"names": list(samples.names), "digests": digests}


def digests_of(**parts: Samples) -> dict[str, dict[str, Any]]:
    """`sample_digests` of each part of a data set, by its name."""
    return {part: sample_digests(samples) for part, samples in parts.items()}


def data_digest(parts: Mapping[str, Mapping[str, Any]]) -> str:
    """One hexadecimal digest of the parts of a data set: names and pixels, not where they lie."""
    digest = hashlib.blake2b(digest_size=DIGEST_BYTES)
    for part in sorted(parts):
        digest.update(repr((part, parts[part]["names"])).encode("utf-8", "surrogateescape"))
        digest.update(parts[part]["digests"].numpy().data)
    return digest.hexdigest()


def require_same_data(content: Mapping[str, Any], now: Mapping[str, Any], file: Path) -> None:
    """Raise CheckpointError with names where images or masks are not those of the first part.

    Args:
        content: the checkpoint; one without digests passes.
        now: `sample_digests` of 'train' and 'val'.
        file: of the checkpoint.
    """
    for part, samples in now.items():
        if "data" not in content:
            return
        before = content["data"][part]
        if before["names"] != samples["names"]:
            names = sorted(set(before["names"]) ^ set(samples["names"])) or ["the order"]
            what, count = f"names differ: {_listed(names)}", len(names)
        else:
            changed = _changed(before["digests"], samples["digests"])
            names = [samples["names"][row] for row in changed]
            count = len(names)
            what = f"{count} of {len(before['names'])} differ: {_listed(names)}"
        if count:
            raise CheckpointError(
                f"{printable(file)} was trained on other {part} images or masks ({what}): put "
                "them back, or start a new run in another --out"
            )


def require_equal_data(parts: Mapping[str, Mapping[str, Any]], processes: Processes) -> None:
    """Raise ValueError where another process of the run has read other images or masks."""
    digests = processes.gathered(data_digest(parts))
    others = [str(rank) for rank, digest in enumerate(digests) if digest != digests[0]]
    if others:
        raise ValueError(
            f"--data: processes {', '.join(others)} have read other images or masks than process "
            "0: it must hold the same files on every machine"
        )


def _changed(before: Tensor, now: Tensor) -> list[int]:
    return torch.nonzero((before != now).any(1)).flatten().tolist()


def _listed(names: list[str]) -> str:
    more = ", ..." if len(names) > SHOWN else ""
    return ", ".join(map(printable, names[:SHOWN])) + more
