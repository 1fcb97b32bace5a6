"""What was given on a command line, which values do not tell: a default can be typed too."""

import dataclasses
from collections.abc import Collection, Iterable
from itertools import pairwise
from typing import Any, Protocol, runtime_checkable

from ard.core.errors import InputError

Given = frozenset[str]  # The names of fields, such as replay_updates.


@runtime_checkable
class Choosy(Protocol):
    """A command some of whose options have a meaning only with others."""

    def refuse_useless(self, given: Given) -> None:
        """InputError that names an option which was given and would be ignored."""


def given_in(arguments: Iterable[str]) -> Given:
    """The options of a command line by the names of their fields; --no-online gives online."""
    words = [word.partition("=")[0][2:].replace("-", "_") for word in arguments if word.startswith("--")]
    return frozenset([*words, *(word.removeprefix("no_") for word in words)])


def value_of(option: str, arguments: list[str]) -> str | None:
    """What follows an option such as resume-from, also joined to it by =; None when it is not given."""
    names = {f"--{option}", f"--{option.replace('-', '_')}"}
    found = [word.partition("=")[2] for word in arguments if "=" in word and word.partition("=")[0] in names]
    found += [value for name, value in pairwise(arguments) if name in names]
    return found[-1] if found else None


def require_beside(needed: str, options: Iterable[str], given: Collection[str]) -> None:
    """InputError for the first of `options`, names of fields, that was given and has a meaning with `needed` only."""
    for option in options:
        if option in given:
            raise InputError(f"{written(option)} has no meaning without {needed}; add it, or leave the option out")


def names_in(config: Any) -> list[str]:
    """The names of a dataclass's fields, those of a dataclass in it by their own names."""
    names = []
    for field in dataclasses.fields(config):
        part = getattr(config, field.name)
        names += names_in(part) if dataclasses.is_dataclass(part) else [field.name]
    return names


def written(field: str) -> str:
    """A field's name as an option is written."""
    return f"--{field.replace('_', '-')}"
