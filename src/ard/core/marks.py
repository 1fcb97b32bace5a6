"""Files that commands write for people say which command it was, so that no other file is taken for an earlier output.

JSON has it as a field, NumPy's archives as an array, PNG as a text chunk and SVG as a comment. CSV and Markdown have no
place for it: they are known by a marked file beside them, which is written first.
"""

import io
import json
import os
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray
from PIL import Image, PngImagePlugin

from ard.core.errors import InputError
from ard.core.files import read_json

FIELD = "written_by"
PROVENANCE = "ard"  # The array of an .npz that holds a JSON text.
CARRIERS = (".json", ".npz", ".png", ".svg")  # The files that have a place for a mark.
MAX_TEXT = 1 << 16  # Bytes; more of a provenance is not read.
MAX_COMMENT = 200


def marked_json(value: Mapping[str, Any], command: str) -> dict[str, Any]:
    """A JSON object with the mark of a command such as evaluate."""
    return {**value, FIELD: f"ard {command}"}


def marked_svg(text: str, command: str) -> str:
    """An SVG element with the mark behind it."""
    return f"{text.rstrip()}\n{_comment(command)}\n"


def png_mark(command: str) -> PngImagePlugin.PngInfo:
    """What Pillow saves with a PNG."""
    info = PngImagePlugin.PngInfo()
    info.add_text("Software", f"ard {command}")
    return info


def npz_mark(command: str, facts: Mapping[str, Any]) -> NDArray[Any]:
    """The array called `PROVENANCE`: the mark and more facts as a JSON text."""
    return np.array(json.dumps(marked_json(facts, command)))


def is_marked(path: Path, command: str) -> bool:
    """Whether a file is an earlier output of a command. Whatever cannot be read is none."""
    try:
        match path.suffix.lower():
            case ".json":
                return bool(read_json(path).get(FIELD) == f"ard {command}")
            case ".npz":
                return bool(_provenance(path).get(FIELD) == f"ard {command}")
            case ".png":
                with Image.open(path, formats=["PNG"]) as picture:
                    return bool(picture.info.get("Software") == f"ard {command}")
            case ".svg":
                return _end_of(path).rstrip().endswith(_comment(command))
    except (InputError, OSError, SyntaxError, ValueError, zipfile.BadZipFile, KeyError, RecursionError):
        return False
    return _has_marked_neighbour(path, command)


def _has_marked_neighbour(path: Path, command: str) -> bool:
    near = (one for one in path.parent.iterdir() if one.suffix.lower() in CARRIERS and one.is_file())
    return any(is_marked(one, command) for one in near)


def _end_of(path: Path) -> str:
    with path.open("rb") as file:
        file.seek(-min(MAX_COMMENT, path.stat().st_size), os.SEEK_END)
        return file.read().decode(errors="replace")


def _comment(command: str) -> str:
    return f"<!-- ard {command} -->"


def _provenance(path: Path) -> dict[str, Any]:
    """The JSON text of an archive, read without its other arrays; KeyError or ValueError where there is none."""
    with zipfile.ZipFile(path) as archive, archive.open(f"{PROVENANCE}.npy") as member:
        array = npy.read_array(io.BytesIO(member.read(MAX_TEXT)))
    value = json.loads(str(array))
    return value if isinstance(value, dict) else {}
