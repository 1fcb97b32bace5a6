"""Real pictures by their path: a folder of files, WebDataset's tars, or a saved Hugging Face data set."""

from dataclasses import dataclass
from pathlib import Path

from ard.core.errors import InputError
from ard.images.image_folder import open_image_folder
from ard.images.picture_set import PictureSet
from ard.images.saved import open_saved
from ard.images.tar_shards import open_tar_shards


@dataclass(frozen=True, kw_only=True)
class Columns:
    """Where pictures and classes lie in a source that has several of them."""

    image: str = ""
    """A saved data set's column of images, or the ending of the pictures' names in tars; empty: the only one."""
    label: str = ""
    """A saved data set's column of classes; empty: the only one."""


USUAL = Columns()


def open_pictures(path: Path, columns: Columns = USUAL, *, classes: bool = True) -> PictureSet:
    """What lies at `path`, with classes or without; InputError when it holds no pictures, or no such columns."""
    if path.suffix == ".tar":
        found = open_tar_shards(path, column=columns.image, classes=classes)
    elif not path.is_dir():
        raise InputError(
            f"{path} is no folder of pictures, no .tar file or pattern such as train-{{000..146}}.tar, and no saved "
            "data set"
        )
    elif _is_saved(path):
        return open_saved(path, image_column=columns.image, label_column=columns.label, classes=classes)
    elif any(path.glob("*.tar")):
        found = open_tar_shards(path, column=columns.image, classes=classes)
    else:
        found = open_image_folder(path, classes=classes)
        if columns.image:
            raise InputError(f"--image-column {columns.image} has no meaning for {path}, a folder of pictures")
    if columns.label:
        raise InputError(f"--label-column {columns.label} has no meaning for {path}, which is no saved data set")
    return found


def _is_saved(path: Path) -> bool:
    return any((path / name).is_file() for name in ("state.json", "dataset_dict.json"))
