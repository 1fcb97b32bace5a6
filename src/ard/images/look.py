"""A look at all pictures before the work: what cannot be read is told at once, and not after hours."""

from enum import StrEnum
from pathlib import Path
from typing import NamedTuple

from ard.core.errors import InputError
from ard.core.progress import progress_bar
from ard.images.picture_file import Header
from ard.images.picture_set import PictureSet, in_threads
from ard.images.real import USUAL, Columns, open_pictures

DECODED = 64  # Pictures of the sample.
TOGETHER = 1024
TOLD = 3


class Check(StrEnum):
    """How pictures are looked at."""

    SAMPLE = "sample"  # Every header, and 64 pictures, evenly spread, as a whole.
    ALL = "all"  # Every picture as a whole.


class Seen(NamedTuple):
    """Pictures, and what each says of itself."""

    pictures: PictureSet
    headers: list[Header]


def look_over(path: Path, columns: Columns = USUAL, check: Check = Check.SAMPLE, *, classes: bool) -> Seen:
    """The pictures at `path`, with classes or without; InputError for what cannot be read."""
    pictures = open_pictures(path, columns, classes=classes)
    return Seen(pictures, look_at(pictures, check))


def look_at(pictures: PictureSet, check: Check) -> list[Header]:
    """What every picture says of itself; InputError that names those that cannot be read."""
    headers: list[Header] = []
    faults: list[str] = []
    step = 1 if check is Check.ALL else max(1, pictures.count // DECODED)

    def look(index: int) -> Header | str:
        try:
            if index % step == 0:
                pictures.picture(index, "RGB")
            return pictures.header(index)
        except InputError as fault:
            return str(fault)

    with progress_bar(pictures.count, "look at the pictures", unit="image", delay=2.0) as bar:
        for start in range(0, pictures.count, TOGETHER):
            for found in in_threads(look, range(start, min(start + TOGETHER, pictures.count))):
                if isinstance(found, str):
                    faults.append(found)
                else:
                    headers.append(found)
                bar.update()
    if faults:
        more = f", and so it is with {len(faults) - TOLD} more" if len(faults) > TOLD else ""
        raise InputError("; ".join(faults[:TOLD]) + more)
    return headers
