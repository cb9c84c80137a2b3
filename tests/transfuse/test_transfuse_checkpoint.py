"""Checkpoints: written whole or not at all, and none is trusted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import needs_train  # noqa: F401
import pytest
import torch

from fastclip.transfuse import create_model
from fastclip.transfuse.errors import RunError
from fastclip.transfuse.storage.checkpoint import (
    CheckpointError,
    load_checkpoint,
    load_model,
    save_checkpoint,
)


def test_a_failed_write_keeps_the_earlier_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "last.pt"
    save_checkpoint(file, {"step": 1})

    def full(content: object, stream: Any) -> None:
        stream.write(b"half of it")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    message = r"cannot write .*last\.pt .*No space left.*earlier last\.pt is untouched"
    with pytest.raises(RunError, match=message):
        save_checkpoint(file, {"step": 2})
    assert load_checkpoint(file)["step"] == 1
    assert [f.name for f in tmp_path.iterdir()] == ["last.pt"]


def test_foreign_and_damaged_checkpoints(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no checkpoint at .*absent\.pt"):
        load_checkpoint(tmp_path / "absent.pt")
    torch.save({"weights": {}}, tmp_path / "foreign.pt")
    with pytest.raises(CheckpointError, match=r"foreign\.pt was not written by"):
        load_checkpoint(tmp_path / "foreign.pt")
    save_checkpoint(tmp_path / "cut.pt", {"weights": torch.zeros(999)})
    (tmp_path / "cut.pt").write_bytes((tmp_path / "cut.pt").read_bytes()[:700])
    with pytest.raises(CheckpointError, match=r"cut\.pt is damaged"):
        load_checkpoint(tmp_path / "cut.pt")
    torch.save({"format": Path}, tmp_path / "code.pt")  # a class: weights_only refuses it
    with pytest.raises(CheckpointError, match=r"code\.pt is damaged or no checkpoint"):
        load_checkpoint(tmp_path / "code.pt")
    save_checkpoint(tmp_path / "other.pt", {"model": "transfuse_t", "weights": {}})
    with pytest.raises(CheckpointError, match=r"other\.pt does not fit transfuse_t: Missing key"):
        load_model(tmp_path / "other.pt")


def test_published_weights_are_recognised(tmp_path: Path) -> None:
    source = create_model("transfuse_t")
    torch.save({f"module.{k}": v for k, v in source.state_dict().items()}, tmp_path / "t.pth")
    model, content = load_model(tmp_path / "t.pth")
    assert content["model"] == "transfuse_t"
    assert content["config"]["size"] is None
    assert all(torch.equal(v, model.state_dict()[k]) for k, v in source.state_dict().items())
