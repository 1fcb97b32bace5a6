"""The JSON settings that diffusers keeps with its models: the fields that are read, each checked."""

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

from ard.core.config import from_plain, to_plain
from ard.core.errors import InputError
from ard.core.files import read_json

Settings = TypeVar("Settings")


def read_settings(
    cls: type[Settings], path: Path, class_names: tuple[str, ...], defaults: Mapping[str, Any] | None = None
) -> Settings:
    """The fields of `cls` in a JSON file of diffusers, else `defaults`, else those of `cls`.

    InputError for another class and for what is not supported.
    """
    plain = read_json(path)
    require(f"{path}: _class_name", plain.get("_class_name"), class_names)
    known = {field.name: field.default for field in fields(cls)}  # type: ignore[arg-type]  # cls is a dataclass
    given = {name: plain[name] for name in known if name in plain}
    return from_plain(cls, {**to_plain(cls()), **(defaults or {}), **given}, where=str(path))


def require(name: str, value: Any, allowed: tuple[Any, ...]) -> None:
    """InputError unless `value` is one of the allowed ones."""
    if value not in allowed:
        raise InputError(f"{name} is {value}; allowed: {', '.join(map(str, allowed))}")
