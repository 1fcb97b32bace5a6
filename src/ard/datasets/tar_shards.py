"""WebDataset's shards: uncompressed tars in which a sample's files share a name, such as 17.jpg and 17.cls.

Python's tarfile finds where each picture lies, and it is read from there: any picture at any time, which the package
webdataset's streams cannot, and nothing is decoded but pictures and whole numbers.
"""

import glob
import os
import re
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from ard.datasets.picture_set import SUFFIXES, PictureSet, identity_of
from ard.errors import InputError
from ard.types import Labels


@dataclass(frozen=True, kw_only=True)
class TarPicture:
    """Where a picture lies."""

    shard: Path
    name: str
    offset: int
    size: int
    label: int | None


def open_tar_shards(where: Path) -> PictureSet:
    """The pictures of the tars that `where` names: a folder, one file, or a pattern with *, ? or {000..146}.

    InputError when there is none, a tar is damaged or compressed, or only some pictures have a class.
    """
    shards = shards_of(where)
    pictures = [picture for shard in shards for picture in _pictures_in(shard)]
    if not pictures:
        raise InputError(f"{where} holds no pictures: no .jpg, .jpeg or .png in {len(shards)} tars")
    return PictureSet(
        path=where,
        kind="tars",
        count=len(pictures),
        labels=_labels(pictures),
        class_names=(),
        identity=identity_of(
            [shard.resolve() for shard in shards],
            Path(os.path.commonpath([shard.resolve().parent for shard in shards])),
        ),
        read=lambda index: _read(pictures[index]),
        name_of=lambda index: f"{pictures[index].name} in {pictures[index].shard}",
    )


def shards_of(where: Path) -> list[Path]:
    """The tars that a folder or a pattern names, in the order of their names; InputError when one is missing."""
    if where.is_dir():
        return sorted(where.glob("*.tar"))
    found = [(text, sorted(glob.glob(text))) for text in _expanded(str(where))]  # noqa: PTH207 the pattern is a whole path
    if missing := [text for text, paths in found if not paths]:
        raise InputError(f"{missing[0]} does not exist; name .tar files, a folder of them or a pattern")
    return [Path(path) for _, paths in found for path in paths]


def _expanded(text: str) -> list[str]:
    """The texts that {000..146} stands for; the text itself where there is none."""
    if not (match := re.search(r"\{(\d+)\.\.(\d+)\}", text)):
        return [text]
    first, last = match.groups()
    numbers = range(int(first), int(last) + 1)
    return [
        rest
        for number in numbers
        for rest in _expanded(f"{text[: match.start()]}{number:0{len(first)}}{text[match.end() :]}")
    ]


def _pictures_in(shard: Path) -> list[TarPicture]:
    """One tar's pictures in their order."""
    found: list[tuple[str, tarfile.TarInfo]] = []
    labels: dict[str, int] = {}
    try:
        with tarfile.open(shard, "r:") as tar:
            for member in tar:
                folder, _, file = member.name.rpartition("/")
                key, _, extension = file.partition(".")
                if member.isfile() and key and f".{extension.lower()}" in SUFFIXES:
                    found.append((f"{folder}/{key}", member))
                elif member.isfile() and key and extension == "cls":
                    content = tar.extractfile(member)
                    labels[f"{folder}/{key}"] = _whole_number(content.read() if content else b"", member, shard)
    except (tarfile.TarError, EOFError, OSError) as error:
        raise InputError(f"{shard} is damaged, or no uncompressed tar ({error})") from None
    return [
        TarPicture(shard=shard, name=member.name, offset=member.offset_data, size=member.size, label=labels.get(key))
        for key, member in found
    ]


def _whole_number(text: bytes, member: tarfile.TarInfo, shard: Path) -> int:
    if not text.strip().isdigit():
        raise InputError(f"{member.name} in {shard} holds {text[:20]!r}; a class is a whole number")
    return int(text)


def _labels(pictures: Sequence[TarPicture]) -> Labels:
    """Every picture's class, or nothing when none has one; InputError when some have."""
    labels = [picture.label for picture in pictures if picture.label is not None]
    if 0 < len(labels) < len(pictures):
        without = next(picture for picture in pictures if picture.label is None)
        raise InputError(
            f"{without.name} in {without.shard} has no .cls beside it, and others have; give each its class"
        )
    return torch.tensor(labels, dtype=torch.long)


def _read(picture: TarPicture) -> bytes:
    with picture.shard.open("rb") as file:
        file.seek(picture.offset)
        return file.read(picture.size)
