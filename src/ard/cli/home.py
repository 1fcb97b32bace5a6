"""Paths that begin with ~, as no shell expands them behind --out=."""

import dataclasses
from pathlib import Path
from typing import Any

from ard.core.errors import InputError


def at_home(value: Any) -> Any:
    """A command, or a part of one, its paths with ~ and ~NAME written out; InputError for a name that nobody has."""
    if isinstance(value, Path):
        return _expanded(value)
    if isinstance(value, tuple) and any(isinstance(one, Path) for one in value):
        return tuple(map(at_home, value))
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        parts = {field.name: getattr(value, field.name) for field in dataclasses.fields(value) if field.init}
        changed = {name: new for name, old in parts.items() if (new := at_home(old)) is not old and new != old}
        return dataclasses.replace(value, **changed) if changed else value
    return value


def _expanded(path: Path) -> Path:
    try:
        return path.expanduser()
    except RuntimeError:
        raise InputError(
            f"{path}: there is no user {path.parts[0][1:]!r} here; write ./{path} for such a name"
        ) from None
