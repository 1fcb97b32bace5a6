"""The files that a command writes for people: no other file is replaced without --overwrite."""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from ard.core.errors import InputError
from ard.core.files import is_stream, json_bytes, remove_leftovers, write_atomically
from ard.core.marks import is_marked, marked_json, marked_svg, png_mark
from ard.core.places import require_file


@dataclass(frozen=True, kw_only=True)
class Outputs:
    """The files that one command writes for people. A file that is none of its own earlier outputs is not replaced."""

    command: str
    """Its verb, such as analyze errors."""
    overwrite: bool = False
    """Whether any file may be replaced."""

    def check(self, *paths: Path | None, size: int = 0) -> None:
        """InputError for the first path that cannot be written, or must not be; before any work.

        `size` is what they need together in bytes, by estimate.
        """
        given = [path for path in paths if path is not None]
        if doubled := next((path for index, path in enumerate(given) if path in given[:index]), None):
            raise InputError(f"{doubled} is named for two outputs; give each its own")
        for path in given:
            require_file(path, size=size)
            if not (self.overwrite or self._may_replace(path)):
                raise InputError(
                    f"{path} is there already and is no earlier output of ard {self.command}; choose another name, or "
                    "add --overwrite to replace it"
                )

    def json(self, path: Path, value: Mapping[str, Any]) -> None:
        """Publish an object with the command's mark."""
        self.write(path, json_bytes(marked_json(value, self.command)))

    def svg(self, path: Path, text: str) -> None:
        """Publish an SVG element with the command's mark."""
        self.write(path, marked_svg(text, self.command).encode())

    def png(self, path: Path, picture: Image.Image) -> None:
        """Publish a picture with the command's mark."""
        buffer = io.BytesIO()
        picture.save(buffer, "PNG", pnginfo=png_mark(self.command))
        self.write(path, buffer.getvalue())

    def csv(self, path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
        """Publish rows that have the same columns, None as an empty cell; a marked file lies beside them by now."""
        text = io.StringIO()
        writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        self.write(path, text.getvalue().encode())

    def write(self, path: Path, data: bytes) -> None:
        """Publish `data`, marked already, and take away what killed runs left of it."""
        write_atomically(path, data)
        if not is_stream(path):
            target = path.resolve()
            remove_leftovers(target.parent, of=target.name)

    def _may_replace(self, path: Path) -> bool:
        if is_stream(path) or not path.exists() or path.stat().st_size == 0:
            return True
        return is_marked(path, self.command)
