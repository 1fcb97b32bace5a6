"""Every path that a command writes to is looked at before its work: one that cannot be written is told at once."""

import csv
import io
import os
import shutil
import stat
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from ard.errors import InputError
from ard.files import is_stream, json_bytes, remove_leftovers, write_atomically
from ard.marks import is_marked, marked_json, marked_svg, png_mark

RESERVE = 1 << 20  # Bytes that stay free for what is small: configurations, logs.


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


def require_file(path: Path, *, size: int = 0) -> None:
    """InputError unless a file of `size` bytes can be written at `path`, with its folders where they are missing."""
    mode = _mode(path)
    if mode is not None and stat.S_ISDIR(mode):
        raise InputError(f"{path} is a folder; name a file in it")
    if mode is not None and stat.S_ISSOCK(mode):
        raise InputError(f"{path} is a socket; name a file, a pipe or a device")
    if mode is not None and not os.access(path, os.W_OK):
        raise InputError(f"{path} cannot be written: it is write-protected; choose another name")
    if not is_stream(path):
        _require_space(_require_place(path.resolve().parent, path), path, size)


def require_folder(folder: Path, *, size: int = 0) -> None:
    """InputError unless files of `size` bytes together can be written below `folder`, made where it is missing."""
    mode = _mode(folder)
    if mode is not None and not stat.S_ISDIR(mode):
        raise InputError(f"{folder} is a file; name a folder")
    _require_space(_require_place(folder.resolve(), folder), folder, size)


def size_of(*folders: Path | None) -> int:
    """The bytes below folders that may be missing: so much less has to be written to complete them."""
    files = (file for folder in folders if folder and folder.is_dir() for file in folder.rglob("*") if file.is_file())
    return sum(file.stat().st_size for file in files)


def _mode(path: Path) -> int | None:
    """What lies at `path`, links followed; None for nothing. InputError for a path that cannot be one."""
    try:
        return path.stat().st_mode
    except FileNotFoundError:
        return None
    except NotADirectoryError:
        raise InputError(f"{path} cannot be written: {_first_file(path)} is a file, not a folder") from None
    except (OSError, ValueError, RuntimeError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise InputError(f"{path} cannot be written: {reason}; choose another name") from None


def _first_file(path: Path) -> Path:
    return next(part for part in reversed(path.parents) if part.exists() and not part.is_dir())


def _require_place(folder: Path, named: Path) -> Path:
    """The lowest folder there is on the way to `folder`; InputError unless a file can be made in it."""
    there = next(part for part in (folder, *folder.parents) if part.exists())
    if not there.is_dir():
        raise InputError(f"{named} cannot be written: {there} is a file, not a folder")
    try:
        with tempfile.TemporaryFile(dir=there):
            return there
    except OSError as error:
        raise InputError(f"{named} cannot be written in {there}: {error.strerror}; choose another place") from None


def _require_space(there: Path, named: Path, size: int) -> None:
    free = shutil.disk_usage(there).free
    if size and size + RESERVE > free:
        raise InputError(
            f"{named} will need about {size / 1e9:.3g} GB, and its disk has {free / 1e9:.3g} GB left; free some or "
            "choose another place"
        )
