"""A folder of drawn pictures, one PNG per seed, and samples.json, which says what drew them: models are never mixed."""

import functools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ard.core.config import differences
from ard.core.errors import InputError
from ard.core.files import read_json, remove_leftovers, write_atomically, write_json
from ard.core.marks import marked_json
from ard.core.places import require_folder
from ard.core.seeds import in_words
from ard.images.pictures import Pixels, png_bytes, to_pictures

RECORD, SCHEMA = "samples.json", 1
OWN = re.compile(r"seed-[0-9]{7,}-label-[0-9]{4,}\.png")
PICTURES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"}


@dataclass(frozen=True, kw_only=True)
class SampleFolder:
    """A folder, what it is to hold, and what draws it."""

    folder: Path
    made_by: Mapping[str, Any]
    """Everything that decides a picture beside its seed and label, as JSON holds it."""
    seeds: Sequence[int]
    labels: Sequence[int]
    asked: Mapping[str, str]
    """What the labels stand for, where they have names."""

    @functools.cached_property
    def names(self) -> list[str]:
        """The file of every seed."""
        return [f"seed-{seed:07d}-label-{label:04d}.png" for seed, label in zip(self.seeds, self.labels, strict=True)]

    def missing(self, *, overwrite: bool, size: int) -> list[int]:
        """Which pictures are still to be drawn, by their places; InputError unless the others are this very model's.

        With `overwrite` older pictures are replaced, but what `ard sample` did not write is refused all the same.
        `size` is what all pictures need in bytes, by estimate.
        """
        require_folder(self.folder, size=size)
        there, names = own_pictures(self.folder), self.names
        self._refuse_strangers()
        if overwrite and there and self._reason(there):
            return list(range(len(names)))
        if there and (reason := self._reason(there)):
            raise InputError(f"{self.folder} {reason}; choose another --out, or add --overwrite to replace them")
        return [place for place, name in enumerate(names) if name not in there]

    def begin(self) -> None:
        """Delete older pictures that are not to stay, and note what the folder will hold."""
        remove_leftovers(self.folder)
        there = own_pictures(self.folder)
        if there and self._reason(there):
            (self.folder / RECORD).unlink(missing_ok=True)  # First: pictures without it are nobody's.
            for name in there:
                (self.folder / name).unlink()
        record = {"schema": SCHEMA, "num": len(self.names), "seeds": in_words(self.seeds), "labels": self.asked}
        write_json(self.folder / RECORD, marked_json({**record, "made_by": self.made_by}, "sample"))

    def save(self, places: Sequence[int], pixels: Pixels) -> None:
        """Publish the pictures at some places."""
        names = self.names
        for place, picture in zip(places, to_pictures(pixels), strict=True):
            write_atomically(self.folder / names[place], png_bytes(picture))

    def _refuse_strangers(self) -> None:
        """InputError for what `ard sample` did not write: a picture beside its own, or anything where there is none."""
        known = (self.folder / RECORD).is_file()
        others = [path for path in _visible(self.folder) if not OWN.fullmatch(path.name) and path.name != RECORD]
        wrong = [path for path in others if not known or path.is_dir() or path.suffix.lower() in PICTURES]
        if wrong:
            raise InputError(
                f"{self.folder} holds {wrong[0].name}, which ard sample did not write, and whoever measures the folder "
                "would take it for a sample; choose another --out"
            )

    def _reason(self, there: set[str]) -> str:
        """Why the pictures that are there cannot stay; empty when they can."""
        if not (self.folder / RECORD).is_file():
            return f"holds {len(there)} pictures and no {RECORD}, which says what drew them"
        stored = read_json(self.folder / RECORD).get("made_by")
        changes = differences(stored if isinstance(stored, dict) else {}, dict(self.made_by))
        if changes:
            return f"holds samples of another model or setting ({'; '.join(changes[:3])})"
        if others := sorted(there - set(self.names)):
            return f"holds {others[0]} and more samples that are not asked for now ({len(others)})"
        return ""


def own_pictures(folder: Path) -> set[str]:
    """The names of the pictures in a folder that `ard sample` wrote; empty where there is none."""
    return {path.name for path in _visible(folder) if OWN.fullmatch(path.name)}


def require_whole(folder: Path) -> None:
    """InputError when `ard sample` has been stopped before the folder had all its pictures."""
    if (folder / RECORD).is_file():
        wanted, found = read_json(folder / RECORD).get("num"), len(own_pictures(folder))
        if wanted != found:
            raise InputError(
                f"{folder} holds {found} of {wanted} samples; run the same ard sample again to complete it"
            )


def _visible(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.name[0] != ".") if folder.is_dir() else []
