"""What the classes of a teacher are called: a map from labels to names, a list, or the folders of its data set."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ard.core.errors import InputError
from ard.core.files import MAX_JSON_BYTES, parse_json, read_json, read_whole
from ard.images.class_names import in_label_order
from ard.images.image_folder import class_folders

MAP = "id2label"  # As diffusers and transformers call it.
CONFIGS = ("model_index.json", "config.json")


def read_class_names(path: Path, *, num_classes: int) -> tuple[str, ...]:
    """The names at `path` by their labels; InputError unless there is one for each of the classes.

    A .json holds a map from labels to names, in itself or as `id2label`, or a list; a .txt has a name per line. A
    folder holds such a configuration of diffusers or transformers, or a sub-folder per class, as the data set has it.
    """
    names = _in_folder(path) if path.is_dir() else _in_file(path)
    if len(names) != num_classes or not all(name.strip() for name in names):
        raise InputError(
            f"{path} has {len(list(filter(str.strip, names)))} names of classes, the teacher {num_classes}"
        )
    return names


def names_by_label(plain: Mapping[str, Any], num_classes: int) -> tuple[str, ...]:
    """The `id2label` of a configuration by label, "" for one that it leaves out; empty without a map."""
    names = plain.get(MAP)
    return tuple(str(names.get(str(label), "")) for label in range(num_classes)) if isinstance(names, dict) else ()


def _in_folder(folder: Path) -> tuple[str, ...]:
    for config in (folder / name for name in CONFIGS):
        if config.is_file() and isinstance(names := read_json(config).get(MAP), dict):
            return _of_map(names)
    return in_label_order(class_folders(folder))


def _in_file(path: Path) -> tuple[str, ...]:
    if path.suffix.lower() not in {".json", ".txt"} or not path.is_file():
        raise InputError(f"--class-names {path}: a .json, a .txt with a name per line or a folder is expected")
    content = read_whole(path, at_most=MAX_JSON_BYTES)
    if path.suffix.lower() == ".txt":
        try:
            return tuple(line.strip() for line in content.decode("utf-8-sig").splitlines())
        except UnicodeDecodeError:
            raise InputError(f"{path} is no text in UTF-8; save it as that") from None
    value = parse_json(content, where=str(path))
    if isinstance(value, list):
        return tuple(map(str, value))
    if not isinstance(value, dict):
        raise InputError(f"{path}: a map from labels to names, or a list of names, is expected")
    return _of_map(value[MAP] if isinstance(value.get(MAP), dict) else value)


def _of_map(names: Mapping[str, Any]) -> tuple[str, ...]:
    """The names by label; a map that leaves labels out is too short for its classes."""
    return names_by_label({MAP: names}, len(names))
