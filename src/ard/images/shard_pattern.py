"""Files that a pattern names: *, ? and numbers in braces, such as train-{000..146}.tar."""

import glob
import itertools
import math
import re
from pathlib import Path

from ard.core.errors import InputError

MAX_SHARDS = 1_000_000
RANGE = re.compile(r"\{(\d{1,18})\.\.(\d{1,18})\}")


def shards_of(where: Path) -> list[Path]:
    """The tars that a folder or a pattern names, in the order of their names; InputError when one is missing."""
    if where.is_dir():
        return sorted(where.glob("*.tar"))
    found: dict[Path, None] = {}
    for text in expanded(str(where)):
        paths = sorted(glob.glob(text))  # noqa: PTH207 the pattern is a whole path
        if not paths:
            raise InputError(f"{text} does not exist; name .tar files, a folder of them or a pattern")
        found |= dict.fromkeys(map(Path, paths))
    return list(found)


def expanded(text: str) -> list[str]:
    """The texts that {000..146} stands for; the text itself where there is none.

    InputError for a range that runs backwards, and for more texts than any data set has files.
    """
    between = RANGE.split(text)
    ranges = list(zip(between[1::3], between[2::3], strict=True))
    for first, last in ranges:
        if int(first) > int(last):
            raise InputError(f"{text}: {{{first}..{last}}} runs backwards; write {{{last}..{first}}}")
    if (count := math.prod(int(last) - int(first) + 1 for first, last in ranges)) > MAX_SHARDS:
        raise InputError(f"{text} names {count} files; at most {MAX_SHARDS} are taken")
    numbers = ([f"{n:0{len(first)}}" for n in range(int(first), int(last) + 1)] for first, last in ranges)
    texts = between[::3]
    return [
        "".join(itertools.chain.from_iterable(zip(texts, (*chosen, ""), strict=True)))
        for chosen in itertools.product(*numbers)
    ]
