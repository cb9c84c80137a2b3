"""Configuration files: YAML, one key per flag, checked as the command line is."""

from __future__ import annotations

import difflib
from collections.abc import Hashable, Mapping
from dataclasses import fields, make_dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_type_hints

from fastclip.arguments.flags import ArgumentError, parse_flags

if TYPE_CHECKING:
    from importlib.resources.abc import Traversable

RECIPES = resources.files("fastclip").joinpath("transfuse/recipes")
# What a run writes beside its flags: how it came about. No flag, and skipped when read.
PROVENANCE = "provenance"


def recipes() -> list[str]:
    """Names of the configurations that come with fastclip."""
    return sorted(
        entry.name.removesuffix(".yaml")
        for entry in RECIPES.iterdir()
        if entry.name.endswith(".yaml")
    )


def read_config(name: str, kind: type) -> dict[str, Any]:
    """Values of the fields of `kind` that a file gives.

    Args:
        name: path of a YAML file, or name of a recipe.
        kind: the dataclass of the command.

    Raises:
        ArgumentError: no such file; not YAML; a key that is unknown or there twice; a value of
            the wrong type. The text names the file and the key.
    """
    content = load_mapping(name)
    types = get_type_hints(kind)
    known = [field.name for field in fields(kind) if field.name != "config"]
    values: dict[str, Any] = {}
    for written, value in content.items():
        key = str(written).replace("-", "_")
        if key == PROVENANCE:
            continue
        if key not in known:
            near = difflib.get_close_matches(key, known, n=3)
            hint = f"nearest: {', '.join(near)}" if near else f"the keys are {', '.join(known)}"
            raise ArgumentError(f"{name}: unknown key {str(written)!r}; {hint}")
        if key in values:
            raise ArgumentError(f"{name}: {key!r} is given twice")
        values[key] = _convert(name, key, value, types[key])
    return values


def load_mapping(name: str) -> dict[Any, Any]:
    """The mapping that a YAML file or recipe holds; ArgumentError where it is none."""
    import yaml

    class Loader(yaml.SafeLoader):
        """Refuses a key that is there twice, of which YAML takes the last."""

        def construct_mapping(self, node: Any, deep: bool = False) -> dict[Hashable, Any]:
            keys = [self.construct_object(key, deep=True) for key, _ in node.value]
            for key in keys:
                if keys.count(key) > 1:
                    raise yaml.constructor.ConstructorError(
                        problem=f"{key!r} is given twice", problem_mark=node.start_mark
                    )
            return super().construct_mapping(node, deep)

    try:
        content = yaml.load(_find(name).read_text(encoding="utf-8"), Loader)
    except (OSError, UnicodeDecodeError) as error:
        raise ArgumentError(f"--config {name} cannot be read: {error}") from error
    except yaml.YAMLError as error:
        reason = " ".join(str(error).split())
        raise ArgumentError(f"--config {name} is not YAML: {reason}") from error
    if content is None:
        return {}
    if not isinstance(content, Mapping):
        raise ArgumentError(
            f"--config {name} must hold one 'key: value' per line, got a {type(content).__name__}"
        )
    return dict(content)


def _find(name: str) -> Path | Traversable:
    if Path(name).exists():
        return Path(name)
    if name in recipes():
        return RECIPES.joinpath(f"{name}.yaml")
    raise ArgumentError(
        f"--config {name}: no such file, and no recipe of that name ({', '.join(recipes())})"
    )


def _convert(file: str, key: str, value: Any, annotation: Any) -> Any:
    """The value as the flag would be read: YAML takes 7e-5 for text, and 'inf' too."""
    import tyro

    if isinstance(value, Mapping):
        raise ArgumentError(f"{file}: {key} holds a mapping; keys are flat, one per flag")
    several = isinstance(value, list)
    arguments = [f"--{key}", *map(str, value)] if several else [f"--{key}={value}"]
    # A flag of one value: true and false are then written out, as in the file.
    single = make_dataclass("Single", [(key, annotation)])
    options = (tyro.conf.FlagConversionOff,)
    try:
        return getattr(parse_flags(single, arguments, config=options), key)
    except ArgumentError as error:
        raise ArgumentError(f"{file}: {key}: {value!r} does not fit: {error}") from None
