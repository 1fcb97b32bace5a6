"""Real pictures by their path: a folder of files, WebDataset's tars, or a saved Hugging Face data set."""

from pathlib import Path

from ard.datasets.image_folder import open_image_folder
from ard.datasets.picture_set import PictureSet
from ard.datasets.saved import open_saved
from ard.datasets.tar_shards import open_tar_shards
from ard.errors import InputError


def is_plain_folder(path: Path) -> bool:
    """Whether `path` is a folder that holds neither tars nor a saved data set."""
    return path.is_dir() and not _is_saved(path) and not any(path.glob("*.tar"))


def open_pictures(path: Path) -> PictureSet:
    """What lies at `path`; InputError when it holds no pictures."""
    if path.suffix == ".tar":
        return open_tar_shards(path)
    if not path.is_dir():
        raise InputError(
            f"{path} is no folder of pictures, no .tar file or pattern such as train-{{000..146}}.tar, and no saved "
            "data set"
        )
    if _is_saved(path):
        return open_saved(path)
    return open_image_folder(path) if is_plain_folder(path) else open_tar_shards(path)


def _is_saved(path: Path) -> bool:
    return any((path / name).is_file() for name in ("state.json", "dataset_dict.json"))
