"""Every path that a command writes to is looked at before its work: one that cannot be written is told at once."""

import os
import shutil
import stat
import tempfile
from pathlib import Path

from ard.core.errors import InputError
from ard.core.files import is_stream

RESERVE = 1 << 20  # Bytes that stay free for what is small: configurations, logs.


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


def require_own_folder(folder: Path, record: str, *names: str) -> None:
    """InputError unless a folder can be written, and files of these names in it are those of an earlier run.

    A command that runs others keeps a `record` of them; where that is missing, the files are somebody else's.
    """
    require_folder(folder)
    there = [name for name in names if (folder / name).exists()]
    if there and not (folder / record).exists():
        raise InputError(
            f"{folder / there[0]} is there already, and no {record} that says that it is an earlier run's; choose "
            "another --out"
        )


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
    if size > 0 and size + RESERVE > free:
        raise InputError(
            f"{named} will need about {size / 1e9:.3g} GB, and its disk has {free / 1e9:.3g} GB left; free some or "
            "choose another place"
        )
