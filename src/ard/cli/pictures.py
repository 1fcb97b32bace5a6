"""The pictures that an option names: opened, told, and looked at before the work."""

import sys
from pathlib import Path
from typing import NamedTuple

from ard.datasets.decoding import Header
from ard.datasets.look import Check, look_at
from ard.datasets.picture_set import PictureSet, in_words
from ard.datasets.real import Columns, open_pictures
from ard.distributed import rank_and_world

CLASSES_TOLD = 10


class Seen(NamedTuple):
    """Pictures, and what each says of itself."""

    pictures: PictureSet
    headers: list[Header]


def look_over(path: Path, columns: Columns, check: Check, *, classes: bool) -> Seen:
    """The pictures at `path`, all of which can be read; one line on standard error says what there is.

    InputError for what cannot be read.
    """
    pictures = open_pictures(path, columns, classes=classes)
    if rank_and_world()[0] == 0:
        print(told(pictures, classes=classes), file=sys.stderr)
    return Seen(pictures, look_at(pictures, check))


def told(pictures: PictureSet, *, classes: bool) -> str:
    """How many pictures there are, which label each class has, and what else is there and not used."""
    line = f"{pictures.path}: {pictures.count} pictures"
    if classes:
        line += f" in {pictures.num_classes} classes" if pictures.num_classes else " without classes"
    if names := pictures.class_names:
        shown = ", ".join(f"{label} = {name}" for label, name in enumerate(names[:CLASSES_TOLD]))
        line += f" ({shown}{', …' if len(names) > CLASSES_TOLD else ''})"
    return f"{line}; not used: {in_words(pictures.unused)}" if pictures.unused else line
