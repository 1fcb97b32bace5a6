"""Pictures of a Hugging Face data set that `save_to_disk` wrote."""

from pathlib import Path
from typing import Any

import torch

from ard.datasets.from_disk import open_from_disk
from ard.datasets.picture_set import PictureSet, identity_of
from ard.errors import InputError

LABEL_COLUMNS = ("label", "labels", "cls")


def open_saved(folder: Path) -> PictureSet:
    """The pictures of its first image column, and its classes; InputError when it has no image column.

    The classes are its one column of named classes, or the whole numbers of a column that is called label. A label
    below 0, as test sets have it, says that there are none.
    """
    data = open_from_disk(folder)
    columns: dict[str, Any] = data.features.to_dict()
    image = next((name for name, column in columns.items() if column.get("_type") == "Image"), None)
    if image is None:
        raise InputError(f"{folder} has no column of images, only {', '.join(columns)}")
    label = _label_column(columns)
    labels = torch.tensor(list(data[label]) if label else [], dtype=torch.long)
    labels = labels[:0] if (labels < 0).any() else labels
    pictures = data.select_columns([image]).cast_column(image, type(data.features[image])(decode=False))
    files = sorted(path for path in folder.iterdir() if path.suffix in {".arrow", ".json"})

    def read(index: int) -> bytes:
        entry = pictures[index][image]
        return entry["bytes"] if entry["bytes"] is not None else Path(entry["path"]).read_bytes()

    return PictureSet(
        path=folder,
        kind="data set",
        count=len(data),
        labels=labels,
        class_names=tuple(columns[label].get("names", ())) if label and len(labels) else (),
        identity=identity_of(files, folder),
        read=read,
        name_of=lambda index: f"row {index} of {folder}",
    )


def _label_column(columns: dict[str, Any]) -> str | None:
    named = [name for name, column in columns.items() if column.get("_type") == "ClassLabel"]
    if len(named) == 1:
        return named[0]
    numbers = [
        name for name in LABEL_COLUMNS if str(columns.get(name, {}).get("dtype", "")).startswith(("int", "uint"))
    ]
    return numbers[0] if numbers else None
