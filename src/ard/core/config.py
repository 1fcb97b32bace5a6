"""Frozen dataclasses to plain JSON values and back; unknown and missing keys fail."""

import dataclasses
import hashlib
import json
import math
import types
import typing
from enum import StrEnum
from pathlib import Path
from typing import Any, TypeVar

from ard.core.errors import InputError

Config = TypeVar("Config")
MAX_TOLD = 80  # Characters of a value that a message repeats.


def later(default: Any) -> Any:
    """A field that came later: older artefacts lack it, and the plain form leaves it out while it has its default.

    So they load, and their fingerprints stay.
    """
    return dataclasses.field(default=default, metadata={"later": True})


def to_plain(value: Any) -> Any:
    """`value` as JSON can hold it: dataclasses become objects, tuples lists, paths and enums strings."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        items = ((field, getattr(value, field.name)) for field in dataclasses.fields(value))
        return {field.name: to_plain(item) for field, item in items if not (_is_later(field) and item == field.default)}
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
    known = {field.name: field for field in dataclasses.fields(cls)}  # type: ignore[arg-type]  # cls is a dataclass
    if wrong := [name for name in sorted(known.keys() ^ value.keys()) if name in value or not _is_later(known[name])]:
        raise InputError(f"{where}: the fields of {cls.__name__} do not match this version of ard: {', '.join(wrong)}")
    fields = {name: _convert(hints[name], item, f"{where}: {name}") for name, item in value.items()}
    try:
        return cls(**fields)
    except InputError as error:
        raise InputError(f"{where}: {error}") from None


def differences(old: dict[str, Any], new: dict[str, Any], *, ignore: frozenset[str] = frozenset()) -> list[str]:
    """What changed between two plain configurations, as `name old → new`; nested names are dotted."""
    before, after = flatten(old), flatten(new)
    names = [name for name in sorted(before | after) if name not in ignore and before.get(name) != after.get(name)]
    return [f"{name} {_shortened(before.get(name))} → {_shortened(after.get(name))}" for name in names]


def _shortened(value: Any) -> str:
    text = str(value)
    return text if len(text) <= MAX_TOLD else f"{text[:MAX_TOLD]}…"


def flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    """Nested objects as one level, with dotted names."""
    if not isinstance(value, dict):
        return {prefix: value}
    parts = (flatten(part, f"{prefix}.{name}".lstrip(".")) for name, part in value.items())
    return {name: part for flat in parts for name, part in flat.items()}


def fingerprint_of(plain: Any) -> str:
    """SHA-256 of a plain value, in 16 hexadecimal digits."""
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:16]


def _is_later(field: "dataclasses.Field[Any]") -> bool:
    return "later" in field.metadata


def _convert(hint: Any, value: Any, where: str) -> Any:
    """`value` as the type `hint`, which is one of those that the configurations use."""
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        if value is None:
            return None
        hint = next(part for part in typing.get_args(hint) if part is not type(None))
    if dataclasses.is_dataclass(hint):
        return from_plain(typing.cast("type[Any]", hint), value, where=where)
    if typing.get_origin(hint) is tuple:
        if not isinstance(value, list):
            raise InputError(f"{where} is {value!r}; a list is expected")
        kinds = typing.get_args(hint)
        if ... not in kinds and len(value) != len(kinds):
            raise InputError(f"{where} is {value!r}; a list of {len(kinds)} is expected")
        return tuple(_convert(kinds[0], item, where) for item in value)
    if issubclass(hint, StrEnum) and value not in list(hint):
        raise InputError(f"{where} is {value!r}; allowed: {', '.join(hint)}")
    accepted = {float: (int, float), Path: (str,)}.get(hint, (str,) if issubclass(hint, str) else (hint,))
    if not isinstance(value, accepted) or (isinstance(value, bool) and hint is not bool):
        raise InputError(f"{where} is {value!r}; a value of type {hint.__name__} is expected")
    if isinstance(value, float) and not math.isfinite(value):
        raise InputError(f"{where} is {value}; a finite number is expected")
    return hint(value)
