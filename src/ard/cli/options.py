"""What the commands share: ranges such as 0-63, plans that --dry-run prints, and what is already there."""

import json
import re
from typing import Any

from ard.config import to_plain
from ard.errors import InputError


def parse_range(text: str, name: str) -> list[int]:
    """The numbers of a text such as 0-9, 3 or 0-3,7; InputError for anything else, a range backwards included."""
    numbers: list[int] = []
    for part in text.split(","):
        if not re.fullmatch(r"[0-9]{1,18}(-[0-9]{1,18})?", part):
            raise InputError(f"--{name} {text}: {part!r} is no number or range below 10^18; write 0-9 or 0,3,7")
        first, _, last = part.partition("-")
        if last and int(last) < int(first):
            raise InputError(f"--{name} {text}: the range {part} runs backwards; write {last}-{first}")
        numbers += range(int(first), int(last or first) + 1)
    return numbers


def print_plan(plan: dict[str, Any]) -> None:
    """The fully resolved configuration, as JSON."""
    print(json.dumps(to_plain_dict(plan), indent=2))


def to_plain_dict(plan: dict[str, Any]) -> dict[str, Any]:
    """Every value as JSON holds it."""
    return {name: to_plain(value) for name, value in plan.items()}
