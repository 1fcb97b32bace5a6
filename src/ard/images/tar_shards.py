"""WebDataset's shards: uncompressed tars in which a sample's files share a name, such as 17.jpg and 17.cls.

Python's tarfile finds where each picture lies, and it is read from there: any picture at any time, which the package
webdataset's streams cannot, and nothing is decoded but pictures and whole numbers.
"""

import os
import tarfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import torch

from ard.core.errors import InputError
from ard.core.files import require_file
from ard.core.types import Labels
from ard.images.file_part import open_part
from ard.images.picture_file import READ, SUFFIXES
from ard.images.picture_set import PictureSet, in_words
from ard.images.shard_pattern import shards_of

MAX_DIGITS = 9  # Of a class's number.
END = bytes(tarfile.BLOCKSIZE)  # What stands behind the last member.


@dataclass(frozen=True, kw_only=True)
class TarPicture:
    """Where a picture lies."""

    shard: Path
    name: str
    offset: int
    size: int
    label: int | None


@dataclass(frozen=True, kw_only=True)
class ShardContent:
    """What one tar holds."""

    pictures: list[tuple[str, tarfile.TarInfo]] = field(default_factory=list)
    labels: dict[str, int] = field(default_factory=dict)
    unused: Counter[str] = field(default_factory=Counter)


def open_tar_shards(where: Path, *, column: str, classes: bool) -> PictureSet:
    """The pictures of the tars that `where` names: a folder, one file, or a pattern with *, ? or {000..146}.

    `column` is the ending of the pictures' names, such as jpg or input.png; empty: whatever is a picture. With
    `classes` the numbers beside them are read. InputError when there is none, a tar is damaged or compressed, only some
    pictures have a class, or two share one.
    """
    shards = shards_of(where)
    pictures, unused = list[TarPicture](), Counter[str]()
    for shard in shards:
        content = _look_into(shard, column, classes=classes)
        pictures += _labelled(shard, content)
        unused += content.unused
    if not pictures:
        wanted = f"that end in .{column}" if column else f"({READ})"
        raise InputError(
            f"{where} holds no pictures {wanted} in {len(shards)} tars, but {in_words(unused) or 'nothing'}"
        )
    root = Path(os.path.commonpath([shard.resolve().parent for shard in shards]))
    return PictureSet(
        path=where,
        kind="tars",
        names=[f"{one.shard.resolve().relative_to(root).as_posix()}/{one.name}" for one in pictures],
        labels=_labels(pictures),
        class_names=(),
        open=lambda index: open_part(pictures[index].shard, offset=pictures[index].offset, size=pictures[index].size),
        name_of=lambda index: f"{pictures[index].name} in {pictures[index].shard}",
        unused=unused,
    )


def _look_into(shard: Path, column: str, *, classes: bool) -> ShardContent:
    """One tar's pictures in their order, the classes by name, and the rest counted; InputError for a damaged tar."""
    require_file(shard)
    content = ShardContent()
    try:
        with tarfile.open(shard, "r:") as tar:
            for member in tar:
                stem, _, ending = member.name.rpartition(".")
                match _kind(member, column):
                    case "picture":
                        content.pictures.append((stem, member))
                    case "class" if classes:
                        content.labels[stem] = _whole_number(tar, member, shard)
                    case "folder":
                        pass
                    case kind:
                        content.unused[f".{ending} file" if kind == "class" else kind] += 1
            _require_end(tar, shard)
    except (tarfile.TarError, EOFError, OSError) as error:
        raise InputError(f"{shard} is damaged, or no uncompressed tar ({error})") from None
    return content


def _kind(member: tarfile.TarInfo, column: str) -> str:
    """What a member is: a picture, a class, a folder, or else the kind of what is not used."""
    if member.size < 0:  # Reading on from there would never end.
        raise tarfile.ReadError(f"{member.name} has {member.size} bytes")
    file = PurePosixPath(member.name)
    if member.isdir():
        return "folder"
    if not member.isfile() or member.issparse():
        return "special file"
    if file.name.startswith("."):
        return "hidden file"
    if file.name.endswith(f".{column}") if column else file.suffix.lower() in SUFFIXES:
        return "picture"
    return "class" if file.suffix == ".cls" else f"{file.suffix or 'suffixless'} file"


def _require_end(tar: tarfile.TarFile, shard: Path) -> None:
    """InputError unless the tar ends as tars do: tarfile itself takes any end between two members for it."""
    assert tar.fileobj is not None  # noqa: S101 it was opened by its name
    tar.fileobj.seek(tar.offset)  # Where the first header stands that is none.
    if tar.fileobj.read(len(END)) != END:
        raise InputError(f"{shard} is damaged or incomplete: it has no end behind its last file; make or copy it again")
    while block := tar.fileobj.read(1 << 20):
        if block.strip(b"\0"):
            raise InputError(f"{shard} goes on behind its end, as joined tars do; give each tar by itself")


def _whole_number(tar: tarfile.TarFile, member: tarfile.TarInfo, shard: Path) -> int:
    """The class that a file holds."""
    content = tar.extractfile(member)
    text = content.read(MAX_DIGITS + 3).strip() if content else b""
    if not text.isdigit() or len(text) > MAX_DIGITS:
        raise InputError(
            f"{member.name} in {shard} holds {text.decode(errors='replace')!r}; a class is a whole number of at most "
            f"{MAX_DIGITS} digits"
        )
    return int(text)


def _labelled(shard: Path, content: ShardContent) -> Iterator[TarPicture]:
    """The pictures with their classes; InputError for two that share one."""
    sharing: dict[str, str] = {}
    for stem, member in content.pictures:
        key = next((name for name in _shorter(stem) if name in content.labels), "")
        if key and (other := sharing.setdefault(key, member.name)) != member.name:
            raise InputError(
                f"{other} and {member.name} in {shard} share {key}.cls; say which pictures are meant, such as "
                f"--image-column {member.name.removeprefix(f'{key}.')}"
            )
        label, place = content.labels.get(key), member.offset_data
        yield TarPicture(shard=shard, name=member.name, offset=place, size=member.size, label=label)


def _shorter(stem: str) -> Iterator[str]:
    """A name, and what is left of it before each of its dots, the last first: a.b.input, a.b, a."""
    yield stem
    while "." in PurePosixPath(stem).name:
        stem = stem.rpartition(".")[0]
        yield stem


def _labels(pictures: Sequence[TarPicture]) -> Labels:
    """Every picture's class, or nothing when none has one; InputError when some have."""
    labels = [picture.label for picture in pictures if picture.label is not None]
    if 0 < len(labels) < len(pictures):
        without = next(picture for picture in pictures if picture.label is None)
        raise InputError(
            f"{without.name} in {without.shard} has no .cls beside it, and others have; give each its class"
        )
    return torch.tensor(labels, dtype=torch.long)
