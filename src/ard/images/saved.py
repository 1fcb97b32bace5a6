"""Pictures of a Hugging Face data set that `save_to_disk` wrote."""

from collections.abc import Sequence
from io import BufferedIOBase, BytesIO
from pathlib import Path
from typing import Any

import torch

from ard.core.errors import InputError
from ard.core.files import require_file
from ard.core.types import Labels
from ard.images.from_disk import open_from_disk
from ard.images.picture_set import PictureSet

LABEL_COLUMNS = ("label", "labels", "cls")


def open_saved(folder: Path, *, image_column: str, label_column: str, classes: bool) -> PictureSet:
    """The pictures of a column of images, and with `classes` those of another column.

    Empty names stand for the one column of images, and for the one of named classes or else the whole numbers of a
    column that is called label. Rows that all have none, or a number below 0, as test sets do, have no classes.
    InputError where that leaves a choice, and for rows without a picture or, beside others, without a class.
    """
    data = open_from_disk(folder)
    columns: dict[str, Any] = data.features.to_dict()
    image = _image_column(columns, image_column, folder)
    label = _label_column(columns, label_column, folder) if classes else None
    labels = _labels(list(data[label]), label, folder) if label else torch.tensor([], dtype=torch.long)
    pictures = data.select_columns([image]).cast_column(image, type(data.features[image])(decode=False))

    def open_row(index: int) -> BufferedIOBase:
        entry = pictures[index][image]
        if entry is None or (entry["bytes"] is None and entry["path"] is None):
            raise InputError(f"row {index} of {folder} has no picture in {image}; take it away")
        if entry["bytes"] is not None:
            return BytesIO(entry["bytes"])
        require_file(Path(entry["path"]))
        return Path(entry["path"]).open("rb")

    return PictureSet(
        path=folder,
        kind="data set",
        names=_names(pictures.data.column(image)),
        labels=labels,
        class_names=tuple(columns[label].get("names", ())) if label and len(labels) else (),
        open=open_row,
        name_of=lambda index: f"row {index} of {folder}",
        unused={f"column {name}": 1 for name in columns if name not in {image, label}},
    )


def _names(column: Any) -> list[str]:
    """What the pictures were called as files, read without their bytes, or else the numbers of their rows."""
    paths = (path for chunk in column.chunks for path in chunk.field("path").to_pylist())
    return [path or f"row {index}" for index, path in enumerate(paths)]


def _image_column(columns: dict[str, Any], wanted: str, folder: Path) -> str:
    """The column of images that is `wanted`, or the only one."""
    found = [name for name, column in columns.items() if column.get("_type") == "Image"]
    if not found:
        raise InputError(f"{folder} has no column of images, only {', '.join(columns)}")
    if wanted and wanted not in found:
        raise InputError(f"--image-column {wanted}: {folder} has the columns of images {', '.join(found)}")
    if not wanted and len(found) > 1:
        raise InputError(f"{folder} has several columns of images ({', '.join(found)}); name one with --image-column")
    return wanted or found[0]


def _label_column(columns: dict[str, Any], wanted: str, folder: Path) -> str | None:
    """The column of classes that is `wanted`, or the only one; None where there is none."""
    named = [name for name, column in columns.items() if column.get("_type") == "ClassLabel"]
    numbers = [name for name, column in columns.items() if str(column.get("dtype", "")).startswith(("int", "uint"))]
    if wanted:
        if wanted not in {*named, *numbers}:
            there = ", ".join([*named, *numbers]) or "none"
            raise InputError(f"--label-column {wanted}: {folder} has these columns of whole numbers: {there}")
        return wanted
    if len(named) > 1:
        raise InputError(f"{folder} has several columns of classes ({', '.join(named)}); name one with --label-column")
    usual = [name for name in LABEL_COLUMNS if name in numbers]
    return next(iter([*named, *usual]), None)


def _labels(values: Sequence[int | None], column: str, folder: Path) -> Labels:
    """Every row's class, or nothing when no row has one; InputError when some have none."""
    without = [index for index, value in enumerate(values) if value is None or value < 0]
    if 0 < len(without) < len(values):
        raise InputError(
            f"row {without[0]} of {folder} has no class: its {column} is {values[without[0]]}, and other rows have "
            "one; take away such rows, or give them their class"
        )
    return torch.tensor([] if without else values, dtype=torch.long)
