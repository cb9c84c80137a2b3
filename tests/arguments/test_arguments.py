"""Flags from dataclasses and YAML files: the command line wins, errors name the file."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import needs_train  # noqa: F401
import pytest

from fastclip.arguments.config_file import RECIPES, load_mapping, recipes
from fastclip.arguments.flags import ArgumentError, HelpShown
from fastclip.arguments.parse import parse


@dataclass(kw_only=True)
class LearningConfig:
    """What is learned."""

    lr: float = 0.1
    """Peak learning rate."""
    steps: int | None = 5
    """Steps."""
    optimizer: Literal["adam", "sgd"] = "adam"
    """Which."""
    augment: bool = True
    """Vary the images."""


@dataclass(kw_only=True)
class StoringFilesConfig:
    """What is stored."""

    out: Path
    """Folder."""
    data: str | tuple[str, ...] = "synthetic"
    """Folders."""
    tags: tuple[str, ...] = ()
    """Words."""


@dataclass(kw_only=True)
class Both(LearningConfig, StoringFilesConfig):
    """Learn, and store."""


@dataclass(kw_only=True)
class Plain:
    """Fields of its own."""

    out: Path
    """Folder."""


def yaml_file(tmp_path: Path, text: str) -> str:
    file = tmp_path / "given.yaml"
    file.write_text(text)
    return str(file)


def test_flags_are_flat_and_help_is_in_groups(capsys: pytest.CaptureFixture[str]) -> None:
    assert parse(Both, "x", ["--out", "o", "--lr", "2", "--no-augment"]) == Both(
        out=Path("o"), lr=2.0, augment=False
    )
    with pytest.raises(HelpShown):
        parse(Both, "x", ["--help"])
    shown = capsys.readouterr().out
    places = [
        shown.index(text)
        for text in ("Learn, and store", "learning options", "--lr", "storing-files", "--out")
    ]
    assert places == sorted(places)
    assert "--config" in shown


def test_a_file_gives_values_of_every_type(tmp_path: Path) -> None:
    text = "lr: 7e-5\nsteps: null\noptimizer: sgd\naugment: no\nout: a/b\ndata: [x, y]\ntags: []\n"
    expected = Both(
        lr=7e-5, steps=None, optimizer="sgd", augment=False, out=Path("a/b"), data=("x", "y")
    )
    assert parse(Both, "x", ["--config", yaml_file(tmp_path, text)]) == expected
    assert parse(Plain, "x", [f"--config={yaml_file(tmp_path, 'out: z')}"]) == Plain(out=Path("z"))


def test_the_command_line_wins_over_the_file_wherever_it_stands(tmp_path: Path) -> None:
    file = yaml_file(tmp_path, "lr: .inf\naugment: false\nout: a\ndata: [x, y]\n")
    flags = ["--augment", "--data", "z", "--lr", "3"]
    expected = Both(out=Path("a"), lr=3.0, augment=True, data="z")
    for arguments in ([*flags, "--config", file], ["--config", file, *flags]):
        parsed = parse(Both, "x", arguments)
        assert (parsed.lr, parsed.augment, parsed.out) == (3.0, True, expected.out)
        assert parsed.data in ("z", ("z",))
    assert parse(Both, "x", ["--config", file]).lr == float("inf")


def test_what_neither_gives_is_asked_for(tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match="--out"):
        parse(Both, "x", ["--config", yaml_file(tmp_path, "lr: 3")])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("optimiser: sgd", r"given.yaml: unknown key 'optimiser'; nearest: optimizer"),
        ("zzz: 1", r"unknown key 'zzz'; the keys are .*augment"),
        ("config: other.yaml", r"unknown key 'config'"),
        ("steps: 1.5", r"given.yaml: steps: 1.5 does not fit"),
        ("lr: fast", r"given.yaml: lr: 'fast' does not fit"),
        ("optimizer: adagrad", r"given.yaml: optimizer: 'adagrad' does not fit"),
        ("augment: maybe", r"given.yaml: augment: 'maybe' does not fit"),
        ("lr: {peak: 3}", r"given.yaml: lr holds a mapping"),
        ("lr: [1, 2]", r"given.yaml: lr: \[1, 2\] does not fit"),
        ("lr: 1\nlr: 2", r"'lr' is given twice"),
        ("out-dir: 1\nout: [", r"given.yaml is not YAML"),
        ("- lr", r"must hold one 'key: value' per line, got a list"),
    ],
)
def test_a_wrong_file_is_an_error_with_its_name(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        parse(Both, "x", ["--out", "o", "--config", yaml_file(tmp_path, text)])


def test_a_key_written_in_two_ways_is_there_twice(tmp_path: Path) -> None:
    @dataclass
    class Two:
        """Two words."""

        batch_size: int = 1
        """Size."""

    assert parse(Two, "x", ["--config", yaml_file(tmp_path, "batch-size: 3")]).batch_size == 3
    with pytest.raises(ArgumentError, match="'batch_size' is given twice"):
        parse(Two, "x", ["--config", yaml_file(tmp_path, "batch-size: 3\nbatch_size: 4")])


def test_wrong_names_of_files(tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match=r"--config nope: no such file.*cpu-small"):
        parse(Plain, "x", ["--config", "nope"])
    with pytest.raises(ArgumentError, match="cannot be read"):
        parse(Plain, "x", ["--config", str(tmp_path)])
    with pytest.raises(ArgumentError, match="given 2 times"):
        parse(Plain, "x", ["--config", "a", "--config=b"])


def test_recipes_parse_and_the_help_names_them_all() -> None:
    from fastclip.transfuse.config.train import TrainConfig

    assert recipes()
    for name in recipes():
        config = parse(TrainConfig, "train", ["--config", name])
        config.check()
        for key in load_mapping(name):
            assert hasattr(config, key)
        assert RECIPES.joinpath(f"{name}.yaml").is_file()
    published = parse(TrainConfig, "train", ["--config", "transfuse-published"])
    assert (published.optimizer, published.lr, published.clip_norm) == ("adam", 7e-5, 2.0)
    assert (published.size, published.batch_size) == ("192x256", 16)
    polyps = parse(TrainConfig, "train", ["--config", "polyp-pranet"])
    assert (polyps.size, polyps.clip, polyps.clip_value) == ("352x352", "value", 0.5)
    assert polyps.multi_scale == (0.75, 1.0, 1.25)


def test_the_help_of_train_names_the_recipes(capsys: pytest.CaptureFixture[str]) -> None:
    from fastclip.transfuse.config.train import TrainConfig

    with pytest.raises(HelpShown):
        parse(TrainConfig, "train", ["--help"])
    shown = " ".join(capsys.readouterr().out.split())
    assert all(name in shown for name in recipes())


@pytest.fixture
def in_encoding(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], io.BytesIO]:
    """Let stdout be a terminal of that encoding, which fails at what it has not."""

    def replace(encoding: str) -> io.BytesIO:
        written = io.BytesIO()
        stream = io.TextIOWrapper(written, encoding=encoding, errors="strict", write_through=True)
        monkeypatch.setattr(sys, "stdout", stream)
        return written

    return replace


OUT = ["--out", "o"]
WRONG = [[*words, *OUT] for words in (["--lr", "abc"], ["--unknown", "1"], ["extra"])]
WRONG += [["--optimizer", "sgdd", *OUT], []]


@pytest.mark.parametrize("arguments", WRONG)
@pytest.mark.parametrize("columns", ["40", "200"])
def test_an_error_is_the_same_line_on_any_terminal(
    in_encoding: Callable[[str], io.BytesIO],
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    columns: str,
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    said = set()
    for encoding in ("utf-8", "cp1252", "ascii"):
        in_encoding(encoding)
        with pytest.raises(ArgumentError) as caught:
            parse(Both, "x", arguments)
        said.add(str(caught.value))
    (line,) = said
    assert line.isascii()
    assert (arguments or ["--out"])[0].removeprefix("--") in line
    assert "---" not in line
    assert "\n" not in line


def test_help_prints_on_a_terminal_that_is_not_utf_8(
    in_encoding: Callable[[str], io.BytesIO],
) -> None:
    for encoding in ("cp1252", "ascii"):
        written = in_encoding(encoding)
        with pytest.raises(HelpShown):
            parse(Both, "x", ["--help"])
        assert b"--config" in written.getvalue()
