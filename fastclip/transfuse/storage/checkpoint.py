"""Checkpoints of this trainer and weights from anywhere else; read with weights_only=True."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from fastclip.transfuse.config.train import TrainConfig
from fastclip.transfuse.data.samples import printable
from fastclip.transfuse.network.factory import create_model
from fastclip.transfuse.network.model import ARCHITECTURES, TransFuse
from fastclip.transfuse.storage.files import write_file

FORMAT = "fastclip.transfuse/1"
WRAPPERS = ("module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
NESTED = ("state_dict", "model_state_dict", "model", "weights", "net", "network", "params")
POS_EMBED = "transformer.pos_embed"
HEAD = "final_2.1.conv.weight"
SHOWN = 4  # keys that an error lists


class CheckpointError(ValueError):
    """A file that cannot be read or used; the text names it and what to do."""


def save_checkpoint(file: Path, content: dict[str, Any]) -> None:
    """Write `content` so that `file` is always the old checkpoint or the whole new one.

    Raises:
        RunError: the write failed (disk full, no permission); the old file is untouched.
    """
    write_file(file, lambda stream: _save({"format": FORMAT, **content}, stream))


def _save(content: dict[str, Any], stream: BinaryIO) -> None:
    try:
        torch.save(content, stream)
    except RuntimeError as error:
        # torch's zip writer hides a failed write behind an error of its own; other errors, of a
        # lost device for instance, are none of the file's.
        if isinstance(error.__context__, OSError):
            raise error.__context__ from error
        if "inline_container" in str(error):
            raise OSError(str(error).splitlines()[0]) from error
        raise


def load_checkpoint(file: Path, model: str | None = None) -> dict[str, Any]:
    """Read a checkpoint of this trainer, or the weights of a TransFuse, onto the CPU.

    Args:
        file: of this trainer; or a state dict, bare or inside another trainer's checkpoint, with
            or without the prefixes of DistributedDataParallel, torch.compile and Lightning.
        model: name of the network of a state dict; found by its shapes where None.

    Raises:
        CheckpointError: no such file, a damaged one, or another program's.
    """
    if not Path(file).is_file():
        raise CheckpointError(f"no checkpoint at {printable(file)}")
    try:
        content = _read(Path(file))
    # A damaged zip, a refused class and a short read raise classes of their own each.
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(
            f"{printable(file)} is damaged or no checkpoint ({printable(reason)})"
        ) from error
    if not isinstance(content, Mapping):
        raise CheckpointError(
            f"{printable(file)} was not written by `fastclip train`: it holds a "
            f"{type(content).__name__}"
        )
    content = dict(content)
    if content.get("format") != FORMAT:
        return _foreign(content, file, model)
    if isinstance(content.get("weights"), Mapping):
        content["weights"] = _unwrapped(content["weights"])
    return content


def require(content: Mapping[str, Any], file: Path, *keys: str) -> None:
    """Raise CheckpointError where a checkpoint of this trainer lacks a part, or holds another."""
    missing = [key for key in keys if key not in content]
    if missing:
        raise CheckpointError(
            f"{printable(file)} lacks {', '.join(missing)}: take another checkpoint of the run; or "
            "save its weights alone and name the network with --model"
        )
    for key in ("weights", "config"):
        if key in keys and not isinstance(content[key], Mapping):
            kind = type(content[key]).__name__
            raise CheckpointError(f"{printable(file)} holds {key} of type {kind}, not a dict")
    if "model" in keys and content["model"] not in ARCHITECTURES:
        raise CheckpointError(
            f"{printable(file)} names {content['model']!r}, none of {', '.join(ARCHITECTURES)}"
        )


def _read(file: Path) -> Any:
    if file.suffix.lower() == ".safetensors":
        from safetensors.torch import load_file

        return load_file(file)
    return torch.load(file, map_location="cpu", weights_only=True)


def _unwrapped(weights: Mapping[str, Any]) -> dict[str, Any]:
    """Keys without the parts that wrappers have put into them."""
    return {
        ".".join(part for part in str(key).split(".") if part not in WRAPPERS): value
        for key, value in weights.items()
    }


def _foreign(content: dict[str, Any], file: Path, model: str | None) -> dict[str, Any]:
    """Weights of a TransFuse, wherever they lie, dressed as a checkpoint of this trainer."""
    inner = next((content[k] for k in NESTED if isinstance(content.get(k), Mapping)), content)
    weights = _unwrapped(inner)
    found = next((key for key in weights if key.endswith(POS_EMBED)), None)
    if found is None:
        keys = ", ".join(printable(str(key)) for key in list(weights)[:SHOWN]) or "nothing"
        raise CheckpointError(
            f"{printable(file)} was not written by `fastclip train`, and is no TransFuse state "
            f"dict either: it holds {keys}{', ...' if len(weights) > SHOWN else ''}"
        )
    prefix = found.removesuffix(POS_EMBED)  # of the attribute that held the model
    weights = {k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)}
    name = model or _architecture(weights[POS_EMBED], file)
    config = asdict(TrainConfig(data="", model=name, classes=_classes(weights)))
    return {"format": FORMAT, "model": name, "weights": weights, "config": config}


def _architecture(pos_embed: Any, file: Path) -> str:
    shape = tuple(pos_embed.shape) if isinstance(pos_embed, Tensor) else None
    for name, arch in ARCHITECTURES.items():
        if shape == (1, arch.grid[0] * arch.grid[1], arch.width):
            return name
    raise CheckpointError(
        f"{printable(file)} holds a {POS_EMBED} of shape {shape}, which is that of no published "
        f"network: name it with --model ({', '.join(ARCHITECTURES)})"
    )


def _classes(weights: Mapping[str, Any]) -> int | None:
    """Classes of the network that weights belong to; None for one map."""
    head = weights.get(HEAD)
    count = len(head) if isinstance(head, Tensor) and head.ndim else 1
    return count if count > 1 else None


def load_model(file: Path, model: str | None = None) -> tuple[TransFuse, dict[str, Any]]:
    """The model of a checkpoint or of a state dict, in eval mode; and the checkpoint.

    Raises:
        CheckpointError: as `load_checkpoint`; or weights that do not fit, or no configuration.
    """
    content = load_checkpoint(file, model)
    require(content, file, "model", "weights")
    network = create_model(content["model"], _classes(content["weights"]) or 1)
    load_weights(network, content, file)
    require(content, file, "config")
    return network.eval(), content


def trained_config(content: Mapping[str, Any]) -> TrainConfig:
    """The configuration of a checkpoint; defaults for what its version did not have."""
    known = {field.name for field in fields(TrainConfig)}
    return TrainConfig(**{k: v for k, v in content["config"].items() if k in known})


def load_weights(model: TransFuse, content: dict[str, Any], file: Path) -> None:
    """Put a checkpoint's weights into `model`; CheckpointError where they do not fit."""
    try:
        model.load_state_dict(content["weights"])
    except (RuntimeError, AttributeError, TypeError) as error:
        first = str(error).splitlines()[1].strip() if "\n" in str(error) else str(error)
        raise CheckpointError(
            f"{printable(file)} does not fit {content['model']}: {printable(first)}"
        ) from error
