"""Frozen dataclasses to plain JSON values and back; unknown and missing keys fail."""

import dataclasses
import types
import typing
from enum import StrEnum
from pathlib import Path
from typing import Any, TypeVar

from ard.errors import InputError

Config = TypeVar("Config")


def to_plain(value: Any) -> Any:
    """`value` as JSON can hold it: dataclasses become objects, tuples lists, paths and enums strings."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: to_plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, tuple | list):
        return [to_plain(item) for item in value]
    if isinstance(value, StrEnum | Path):
        return str(value)
    return value


def from_plain(cls: type[Config], value: Any, *, where: str) -> Config:
    """The dataclass `cls` from its `to_plain` form; `where` names the source in errors."""
    if not isinstance(value, dict):
        raise InputError(f"{where}: an object with the fields of {cls.__name__} is expected, not {value!r}")
    hints = typing.get_type_hints(cls)
    names = {field.name for field in dataclasses.fields(cls)}  # type: ignore[arg-type]  # cls is a dataclass
    if names != set(value):
        wrong = ", ".join(sorted(names ^ set(value)))
        raise InputError(f"{where}: the fields of {cls.__name__} do not match this version of ard: {wrong}")
    return cls(**{name: _convert(hints[name], value[name], f"{where}: {name}") for name in names})


def _convert(hint: Any, value: Any, where: str) -> Any:
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        if value is None:
            return None
        hint = next(part for part in typing.get_args(hint) if part is not type(None))
    if typing.get_origin(hint) is tuple:
        return tuple(_convert(typing.get_args(hint)[0], item, where) for item in value)
    if isinstance(hint, type) and issubclass(hint, StrEnum):
        if value not in list(hint):
            raise InputError(f"{where} is {value!r}; allowed: {', '.join(hint)}")
        return hint(value)
    if dataclasses.is_dataclass(hint):
        return from_plain(typing.cast("type[Any]", hint), value, where=where)
    return Path(value) if hint is Path else value
