"""Artefacts appear whole or not at all: write aside, flush to the disk, rename."""

import hashlib
import json
import os
import platform
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ard.errors import InputError

_OPEN_FILES = re.compile(r"/proc/[0-9]+(/task/[0-9]+)?/fd|/dev/fd")
_MAX_LINKS = 40  # As many as Linux follows.
_MAX_NAME = 150  # Bytes; what is written aside has a longer name, and file systems take 255.
_HOST = re.sub(r"[^A-Za-z0-9-]", "-", platform.node()) or "host"


def write_atomically(path: Path, data: bytes) -> None:
    """Publish `data` at `path`; a reader sees the old file or the new one, never a part. A full disk leaves the old.

    A link stays one: what it leads to is written. A device or pipe, which cannot be replaced, is written to.
    """
    if is_stream(path):
        with path.open("ab") as file:
            file.write(data)
        return
    path = path.resolve()
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = _aside(path)
    try:
        with aside.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        if path.exists():
            shutil.copymode(path, aside)
        aside.replace(path)
    except BaseException as error:
        aside.unlink(missing_ok=True)
        if isinstance(error, OSError):
            error.filename = error.filename or str(path)  # A full disk does not say where.
        raise
    _flush(path.parent)


def is_stream(path: Path) -> bool:
    """Whether `path` is a device, a pipe, or a name of what is open already, such as /dev/stdout."""
    for _ in range(_MAX_LINKS):
        if _OPEN_FILES.fullmatch(str(path.parent.resolve())):
            return True
        if not path.is_symlink():
            break
        path = path.parent / path.readlink()
    return path.exists() and not (path.is_file() or path.is_dir())


@contextmanager
def written_aside(folder: Path) -> Iterator[Path]:
    """A new folder to fill, which is published as `folder` at the end of the block; of one that fails nothing is left.

    `folder` must be missing or empty.
    """
    folder = folder.resolve()
    folder.parent.mkdir(parents=True, exist_ok=True)
    aside = _aside(folder)
    try:
        aside.mkdir()
        yield aside
        for path in aside.rglob("*"):
            _flush(path)
        aside.rename(folder)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise
    _flush(folder.parent)


def remove_leftovers(folder: Path) -> None:
    """Delete what killed writers left aside in `folder`; what writers that still run have there is left alone."""
    for aside in folder.glob(f".*.{_HOST}.*.tmp"):
        writer = aside.suffixes[-2].lstrip(".")
        if not writer.isdigit() or _is_running(int(writer)):
            continue
        if aside.is_dir():
            shutil.rmtree(aside, ignore_errors=True)
        else:
            aside.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Publish `value` as indented JSON with a final newline."""
    write_atomically(path, (json.dumps(value, indent=2) + "\n").encode())


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in `path`; InputError when it is missing, damaged or not an object."""
    try:
        value = json.loads(path.read_text())
    except FileNotFoundError:
        raise InputError(f"{path} does not exist") from None
    except (ValueError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is damaged: not JSON ({error})") from None
    if not isinstance(value, dict):
        raise InputError(f"{path} is damaged: a JSON object is expected")
    return value


def sha256_of(*paths: Path) -> str:
    """The SHA-256 of files, one after the other; of a single file it is what `sha256sum` prints."""
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _aside(path: Path) -> Path:
    """Where `path` is written before it is published."""
    name, long = path.name, len(os.fsencode(path.name)) > _MAX_NAME
    name = hashlib.sha256(os.fsencode(name)).hexdigest()[:16] if long else name
    return path.with_name(f".{name}.{_HOST}.{os.getpid()}.tmp")


def _flush(path: Path) -> None:
    """Make a file's content, or the renames in a folder, survive a power loss."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
