"""A folder of picture files, with a sub-folder per class or none."""

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch

from ard.core.errors import InputError
from ard.images.class_names import in_label_order
from ard.images.picture_file import READ, SUFFIXES
from ard.images.picture_set import PictureSet, in_words

# What NAS, macOS, Windows, file systems and Python put beside the user's files, apart from what is hidden.
NOT_THE_USERS = {
    *("@eaDir", "@Recycle", "@Recently-Snapshot", "#recycle", "#snapshot", "__MACOSX", "__pycache__"),
    *("$RECYCLE.BIN", "System Volume Information", "lost+found"),
}


@dataclass(frozen=True, kw_only=True)
class FolderContent:
    """What lies below a folder."""

    files: list[Path] = field(default_factory=list)
    """The pictures, in the order of their paths."""
    unused: Counter[str] = field(default_factory=Counter)
    """Everything else, by its kind."""


def open_image_folder(folder: Path, *, classes: bool) -> PictureSet:
    """The pictures below `folder`, with the `classes` that its sub-folders are, or none.

    InputError when there is no picture; with classes also for one without a picture, and for pictures with and without
    a class.
    """
    content = look_into(folder)
    if not content.files:
        there = in_words(content.unused) or "nothing"
        raise InputError(f"{folder} holds no pictures ({READ}), no .tar file and no saved data set, but {there}")
    parts = [file.relative_to(folder).parts for file in content.files]
    names = in_label_order(class_folders(folder)) if classes and _have_classes(folder, parts) else ()
    number = {name: label for label, name in enumerate(names)}
    if empty := sorted(set(names) - {first for first, *_ in parts}):
        raise InputError(f"the class folder {folder / empty[0]} holds no picture; fill it or take it away")
    return PictureSet(
        path=folder,
        kind="folder",
        names=["/".join(one) for one in parts],
        labels=torch.tensor([number[first] for first, *_ in parts] if names else [], dtype=torch.long),
        class_names=names,
        open=lambda index: content.files[index].open("rb"),
        name_of=lambda index: str(content.files[index]),
        unused=content.unused,
    )


def class_folders(folder: Path) -> list[str]:
    """The names of the folders in `folder`, also linked ones, that may be classes."""
    return [child.name for child in folder.iterdir() if child.is_dir() and _is_the_users(child.name)]


def look_into(folder: Path) -> FolderContent:
    """The pictures and all else below `folder`; links to folders are followed, but never in a circle."""
    content = FolderContent()
    for entry in _walk(folder, above=frozenset()):
        kind = _kind_of_unused(entry)
        if kind is None:
            content.files.append(Path(entry.path))
        else:
            content.unused[kind] += 1
    content.files.sort()
    return content


def _walk(folder: Path, above: frozenset[tuple[int, int]]) -> Iterator["os.DirEntry[str]"]:
    """Everything below a folder but the folders that are entered."""
    status = folder.stat()
    here = above | {(status.st_dev, status.st_ino)}
    with os.scandir(folder) as entries:
        for entry in entries:
            if not entry.is_dir() or not _is_the_users(entry.name):
                yield entry
            elif (entry.stat().st_dev, entry.stat().st_ino) not in here:
                yield from _walk(Path(entry.path), here)


def _kind_of_unused(entry: "os.DirEntry[str]") -> str | None:
    """What an entry is that is no picture; None for a picture."""
    suffix = Path(entry.name).suffix
    if entry.is_dir():
        return f"{entry.name} folder"
    if entry.name.startswith("."):
        return "hidden file"
    if not entry.is_file():
        return "special file" if Path(entry.path).exists() else "broken link"
    return None if suffix.lower() in SUFFIXES else f"{suffix or 'suffixless'} file"


def _is_the_users(name: str) -> bool:
    return not name.startswith(".") and name not in NOT_THE_USERS


def _have_classes(folder: Path, parts: list[tuple[str, ...]]) -> bool:
    """Whether the pictures lie in sub-folders; InputError when some do."""
    flat = [one[0] for one in parts if len(one) == 1]
    if flat and len(flat) < len(parts):
        raise InputError(f"{folder / flat[0]} lies beside the class folders; put every picture into a class, or none")
    return not flat
