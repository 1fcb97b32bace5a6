"""Progress bars with an ETA, on standard error."""

import os
import sys
from typing import Any

from tqdm import tqdm


def progress_bar(
    total: int, description: str, *, unit: str, done: int = 0, line: int = 0, delay: float = 0.0
) -> "tqdm[Any]":
    """A bar for `total` units of which `done` exist already, on the terminal's line `line`; not before `delay` seconds.

    Where standard error is no terminal, a line every 15 seconds at most. ARD_PROGRESS_LINE is added to the line: it
    is that of a process that shares its terminal with others.
    """
    return tqdm(
        total=total,
        initial=done,
        desc=description,
        unit=unit,
        position=line + int(os.environ.get("ARD_PROGRESS_LINE", "0")),
        dynamic_ncols=True,
        delay=delay,
        mininterval=0.2 if sys.stderr.isatty() else 15.0,
    )


def say(text: str) -> None:
    """Print a line on standard error, above the progress bars."""
    tqdm.write(text, file=sys.stderr)
