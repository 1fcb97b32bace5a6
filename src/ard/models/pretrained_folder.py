"""Where a published component lies: in its own folder or a pipeline's, whole or in shards, under a variant's name."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ard.errors import InputError
from ard.files import read_json

INDEX = "model_index.json"
DIFFUSERS, TRANSFORMERS = ("diffusion_pytorch_model",), ("model", "pytorch_model")
"""How the two libraries call their files of weights; transformers has another name for pickled ones."""

BAD_FILES = (
    *(OSError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError),
    *(RuntimeError, AssertionError, ImportError, MemoryError),
)
"""What the libraries raise for a configuration or weights that they cannot use; SafetensorError is told apart."""


@dataclass(frozen=True, kw_only=True)
class WeightFiles:
    """The files of a component's weights, and what the libraries are told to find them."""

    paths: tuple[Path, ...]
    variant: str | None
    """The word in their names, such as fp16; None without one."""
    safetensors: bool
    """Otherwise pickled, of which only tensors are read."""


def component_folder(folder: Path, name: str) -> Path:
    """The component `name`, such as vae: the sub-folder of a whole pipeline's folder, or `folder` itself."""
    return folder / name if (folder / INDEX).is_file() else folder


def find_weights(folder: Path, stems: tuple[str, ...], *, option: str) -> WeightFiles:
    """The weights in `folder`: those without a variant and as safetensors where there are several.

    InputError when there are none, or when an index names a file that is not there.
    """
    found = [files for path in sorted(folder.glob("*")) if (files := _started_by(path, stems))]
    if not found:
        raise InputError(
            f"{folder} has no weights: no {' or '.join(stems)} as .safetensors or .bin is there; give {option} a whole "
            "folder"
        )
    best = min(found, key=lambda files: (not files.safetensors, files.variant is not None, len(files.paths)))
    if missing := [path.name for path in best.paths if not path.is_file()]:
        raise InputError(f"{folder} lacks {missing[0]}, which its index names; give {option} a whole folder")
    return best


def first_line(error: BaseException) -> str:
    """An error of a library in one line of at most 200 characters."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    return (lines[0].strip(" .") if lines else type(error).__name__)[:200]


def _started_by(path: Path, stems: tuple[str, ...]) -> WeightFiles | None:
    """The weights that the file at `path` is, or is the index of; None for any other file."""
    stem, variant = f"({'|'.join(map(re.escape, stems))})", r"(?:\.(?P<variant>[\w-]+))?"
    kind = r"\.(?P<kind>safetensors|bin)"
    if whole := re.fullmatch(stem + variant + kind, path.name):
        if re.search(r"-\d{5}-of-\d{5}", path.name):
            return None  # A shard, which its index names.
        return WeightFiles(paths=(path,), variant=whole["variant"], safetensors=whole["kind"] == "safetensors")
    index = re.fullmatch(stem + kind + r"\.index" + variant + r"\.json", path.name)
    if index is None:
        return None
    return WeightFiles(paths=_shards(path), variant=index["variant"], safetensors=index["kind"] == "safetensors")


def _shards(index: Path) -> tuple[Path, ...]:
    """The files that an index names, each once; InputError for one that names none, or some elsewhere."""
    names: Any = read_json(index).get("weight_map")
    values = list(dict.fromkeys(names.values())) if isinstance(names, dict) and _are_texts(names) else []
    if not values or any(Path(name).name != name for name in values):
        raise InputError(f"{index} is damaged: weight_map is to name a file beside it for every tensor")
    return tuple(index.parent / name for name in sorted(values))


def _are_texts(names: dict[str, Any]) -> bool:
    return all(isinstance(value, str) for value in names.values())
