"""config.yaml of a run, and recipes: the same flags, the same weights."""

from __future__ import annotations

import subprocess
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import needs_train  # noqa: F401
import pytest
import torch
import yaml
from tiny import one_thread  # noqa: F401

from fastclip.arguments.parse import parse
from fastclip.cli import main
from fastclip.transfuse.config.train import SUBJECTS, TrainConfig
from fastclip.transfuse.distributed.launch import read_launch
from fastclip.transfuse.storage.checkpoint import load_checkpoint
from fastclip.transfuse.storage.provenance import NOT_KEPT, commit, write_config

pytestmark = pytest.mark.slow  # it trains

TINY = [
    *("train", "--model", "transfuse_t", "--size", "32x32", "--batch-size", "4"),
    *("--synthetic-images", "8", "--max-steps", "2", "--device", "cpu"),
]


def flags_of(config: TrainConfig) -> dict[str, Any]:
    return {name: value for name, value in asdict(config).items() if name not in NOT_KEPT}


def other_value(value: Any) -> Any:
    """A value of the same type that is not the default."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, (int, float)):
        return value + 1
    return value


@pytest.mark.parametrize("subject", SUBJECTS)
def test_every_flag_comes_back_from_the_file(tmp_path: Path, subject: type) -> None:
    names = [name for name in asdict(subject()) if name not in NOT_KEPT]
    config = TrainConfig()
    config = replace(config, **{name: other_value(getattr(config, name)) for name in names})
    write_config(tmp_path / "config.yaml", config)
    again = parse(TrainConfig, "train", ["--config", str(tmp_path / "config.yaml")])
    assert flags_of(again) == flags_of(config)
    written = yaml.safe_load((tmp_path / "config.yaml").read_text())
    assert written.keys() == {*flags_of(config), "provenance"}


def test_values_that_yaml_could_take_for_others(tmp_path: Path) -> None:
    config = TrainConfig(
        lr=1e-7,
        clip_norm=float("inf"),
        max_time=0.1 + 0.2,
        fold="1/5",
        group_by="^(é|no|1e3): #",
        size="32x48",
        mask_colors=("#ff0000", "#00ff00"),
        classes=2,
        resnet_weights=Path("a b/c.pth"),
    )
    write_config(tmp_path / "config.yaml", config)
    again = parse(TrainConfig, "train", ["--config", str(tmp_path / "config.yaml")])
    assert again.resnet_weights == Path("a b/c.pth").absolute()
    assert flags_of(replace(again, resnet_weights=config.resnet_weights)) == flags_of(config)


def test_a_run_is_reproduced_by_its_file_alone(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    assert main([*TINY, "--lr", "3e-4", "--seed", "5", "--out", str(first)]) == 0
    file = first / "config.yaml"
    assert main(["train", "--config", str(file), "--out", str(second)]) == 0
    assert (second / "config.yaml").read_text() == file.read_text()
    one, other = (load_checkpoint(out / "last.pt")["weights"] for out in (first, second))
    assert all(torch.equal(value, other[key]) for key, value in one.items())
    provenance = yaml.safe_load(file.read_text())["provenance"]
    assert provenance["torch"] == torch.__version__
    assert provenance["precision"] == "fp32"


def test_flags_win_over_a_recipe(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = [*TINY[3:], "--epochs", "1", "--precision", "fp32", "--out", str(tmp_path / "run")]
    assert main(["train", "--config", "cpu-small", *flags]) == 0
    written = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert (written["size"], written["schedule"], written["optimizer"]) == (
        "32x32",
        "cosine",
        "adamw",
    )
    assert main(["train", "--config", "cpu-smal", *flags]) == 2
    assert "no recipe of that name (cpu-small" in capsys.readouterr().err


def test_data_are_named_for_any_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "set").mkdir()
    write_config(tmp_path / "config.yaml", TrainConfig(data=("set", "elsewhere")))
    written = yaml.safe_load((tmp_path / "config.yaml").read_text())
    assert written["data"] == [str(tmp_path / "set"), "elsewhere"]
    write_config(tmp_path / "config.yaml", TrainConfig(data="synthetic"))
    assert yaml.safe_load((tmp_path / "config.yaml").read_text())["data"] == "synthetic"


def test_the_commit_is_that_of_a_checkout(tmp_path: Path) -> None:
    def git(*arguments: str) -> str:
        author = ["-c", "user.name=x", "-c", "user.email=x@example.org"]
        command = ["git", "-C", str(tmp_path), *author, *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        git("init", "-q")
    except (OSError, subprocess.SubprocessError):
        pytest.skip("git is not here")
    package = tmp_path / "package"
    package.mkdir()
    (package / "__init__.py").write_text("")
    assert commit(package) is None  # in a checkout, and no part of it
    git("add", ".")
    git("commit", "-qm", "first")
    assert commit(package) == git("rev-parse", "HEAD")
    (package / "__init__.py").write_text("x = 1\n")
    assert commit(package) == git("rev-parse", "HEAD") + "+changes"


def test_half_an_environment_of_torchrun_is_refused_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    assert main([*TINY, "--out", str(tmp_path / "run")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "torchrun" in line
    assert "WORLD_SIZE=2" in line
    assert "without MASTER_ADDR, MASTER_PORT" in line
    assert not (tmp_path / "run").exists()
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert main([*TINY, "--out", str(tmp_path / "run")]) == 0


@pytest.mark.parametrize(
    ("name", "value"), [("RANK", "2"), ("RANK", "one"), ("WORLD_SIZE", "-2"), ("MASTER_PORT", "0")]
)
def test_a_launch_of_wrong_numbers_is_refused(name: str, value: str) -> None:
    right = {"WORLD_SIZE": "2", "RANK": "1", "MASTER_ADDR": "here", "MASTER_PORT": "29500"}
    launch = read_launch(right)
    assert launch is not None
    assert (launch.rank, launch.world, launch.local_rank, launch.local_world) == (1, 2, 1, 2)
    with pytest.raises(ValueError, match=f"{name}={value} in the environment"):
        read_launch({**right, name: value})


@pytest.mark.parametrize(
    "arguments",
    [
        ("evaluate", "--checkpoint", "best.pt", "--data", "synthetic"),
        ("predict", "--checkpoint", "best.pt", "--images", "x.png", "--out", "masks"),
        ("export", "best.pt"),
        ("report", "--run", "run"),
        ("download", "--name", "kvasir-seg"),
    ],
)
def test_commands_that_nothing_divides_are_refused_under_torchrun(
    arguments: tuple[str, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run").mkdir()
    launch = {"WORLD_SIZE": "2", "RANK": "1", "MASTER_ADDR": "here", "MASTER_PORT": "29500"}
    for name, value in launch.items():
        monkeypatch.setenv(name, value)
    assert main([*arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "WORLD_SIZE=2" in line
    assert "only `fastclip train` divides" in line


def test_fsdp_in_one_process_is_refused_with_how_to_start_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*TINY, "--fsdp", "--out", str(tmp_path / "run")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "torchrun --nproc-per-node=2 -m fastclip train --fsdp" in line
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "flags",
    [
        {"compile": True},
        {"freeze": ("resnet",), "freeze_epochs": 1},
        {"reference_ops": True},
        {"precision": "fp16"},
    ],
)
def test_what_a_sharded_run_cannot_do_is_refused_by_name(flags: dict[str, Any]) -> None:
    TrainConfig(**flags).check()
    TrainConfig(fsdp=True).check()
    flag = list(flags)[-1].replace("_", "-")
    with pytest.raises(ValueError, match=f"--fsdp does not go with --{flag}"):
        TrainConfig(fsdp=True, **flags).check()
