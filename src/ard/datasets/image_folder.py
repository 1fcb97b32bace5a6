"""A folder of PNG and JPEG files, with a sub-folder per class or none."""

from pathlib import Path

import torch

from ard.datasets.picture_set import SUFFIXES, PictureSet, identity_of
from ard.errors import InputError


def open_image_folder(folder: Path) -> PictureSet:
    """The pictures below `folder`. Class k is the k-th sub-folder by name, as in torchvision's ImageFolder.

    InputError when there is no picture, a class without one, or pictures with and without a class.
    """
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.name[0] != ".")
    if not files:
        raise InputError(f"{folder} holds no pictures: no PNG or JPEG file, no .tar file, no saved data set")
    found = [file.relative_to(folder).parts for file in files]
    flat = [parts[0] for parts in found if len(parts) == 1]
    names = tuple(sorted(child.name for child in folder.iterdir() if child.is_dir() and child.name[0] != "."))
    if flat and len(flat) < len(found):
        raise InputError(f"{folder / flat[0]} lies beside the class folders; put every picture into a class, or none")
    if not flat and (empty := sorted(set(names) - {parts[0] for parts in found})):
        raise InputError(f"the class folder {folder / empty[0]} holds no picture; fill it or take it away")
    number = {name: label for label, name in enumerate(names)}
    return PictureSet(
        path=folder,
        kind="folder",
        count=len(files),
        labels=torch.tensor([] if flat else [number[parts[0]] for parts in found], dtype=torch.long),
        class_names=() if flat else names,
        identity=identity_of(files, folder),
        read=lambda index: files[index].read_bytes(),
        name_of=lambda index: str(files[index]),
    )
