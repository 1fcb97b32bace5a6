"""What the commands share: ranges such as 0-63, plans that --dry-run prints, and what is already there."""

import json
import math
import re
import sys
from enum import StrEnum
from typing import Any, TypeVar

from ard.core.config import to_plain
from ard.core.errors import InputError
from ard.core.ranks import rank_and_world
from ard.core.seeds import require_seed

MAX_COUNT = 10**7


def parse_range(text: str, name: str) -> list[int]:
    """The numbers of a text such as 0-9, 3 or 0-3,7; InputError for anything else, a range backwards included."""
    bounds = _bounds(text, name)
    if (count := sum(last + 1 - first for first, last in bounds)) > MAX_COUNT:
        raise InputError(f"--{name} {text}: these are {count} numbers; at most {MAX_COUNT} are taken at a time")
    return [number for first, last in bounds for number in range(first, last + 1)]


def parse_seeds(text: str) -> list[int]:
    """The seeds of the option --seeds; InputError also for those that would repeat lower ones."""
    require_seed(f"the largest of --seeds {text}", max(last for _, last in _bounds(text, "seeds")))
    return parse_range(text, "seeds")


def _bounds(text: str, name: str) -> list[tuple[int, int]]:
    """First and last number of every part between commas; InputError as `parse_range` says."""
    bounds: list[tuple[int, int]] = []
    for part in text.split(","):
        if not re.fullmatch(r"[0-9]{1,18}(-[0-9]{1,18})?", part):
            raise InputError(f"--{name} {text}: {part!r} is no number or range below 10^18; write 0-9 or 0,3,7")
        first, _, last = part.partition("-")
        if last and int(last) < int(first):
            raise InputError(f"--{name} {text}: the range {part} runs backwards; write {last}-{first}")
        bounds.append((int(first), int(last or first)))
    return bounds


Choice = TypeVar("Choice", bound=StrEnum)


def parse_choices(text: str, name: str, kind: type[Choice]) -> tuple[Choice, ...]:
    """The members of a text such as window,causal; InputError for anything else."""
    choices = []
    for word in text.split(","):
        try:
            choices.append(kind(word))
        except ValueError:
            allowed = ", ".join(kind)
            raise InputError(f"--{name} {text}: {word!r} is unknown; allowed, with commas between: {allowed}") from None
    return tuple(choices)


def parse_numbers(text: str, name: str) -> tuple[float, ...]:
    """The numbers of a text such as 1e-3,3e-3; InputError for anything else and for what is not finite."""
    try:
        numbers = tuple(float(word) for word in text.split(","))
    except ValueError:
        numbers = (math.nan,)
    if not all(math.isfinite(number) for number in numbers):
        raise InputError(f"--{name} {text}: numbers with commas between are expected, such as 1e-3,3e-3")
    return numbers


def print_plan(plan: dict[str, Any]) -> None:
    """The fully resolved configuration, as JSON."""
    print(json.dumps(to_plain_dict(plan), indent=2))


def to_plain_dict(plan: dict[str, Any]) -> dict[str, Any]:
    """Every value as JSON holds it."""
    return {name: to_plain(value) for name, value in plan.items()}


def tell(*lines: str) -> None:
    """Say on standard error what a command works on, once, when its work begins; empty lines say nothing."""
    if rank_and_world()[0] == 0:
        for line in filter(None, dict.fromkeys(lines)):
            print(line, file=sys.stderr)
