"""Artefacts appear whole or not at all: write aside, flush to the disk, rename."""

import glob
import hashlib
import json
import os
import platform
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ard.core.errors import InputError

MAX_JSON_BYTES = 256 << 20
MAX_JSON_DEPTH = 64
MAX_DIGITS = 20  # Of a whole number; the largest seed has as many.
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


def remove_leftovers(folder: Path, *, of: str | None = None) -> None:
    """Delete what killed writers left aside in `folder`, if given only of the file that is named `of`.

    What writers that still run have there is left alone.
    """
    name = "*" if of is None else glob.escape(_short(of))
    for aside in folder.glob(f".{name}.{_HOST}.*.tmp"):
        writer = aside.suffixes[-2].lstrip(".")
        if not writer.isdigit() or _is_being_written(aside, int(writer)):
            continue
        if aside.is_dir():
            shutil.rmtree(aside, ignore_errors=True)
        else:
            aside.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Publish `value` as indented JSON with a final newline."""
    write_atomically(path, json_bytes(value))


def json_bytes(value: Any) -> bytes:
    """`value` as indented JSON with a final newline."""
    return (json.dumps(value, indent=2) + "\n").encode()


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in `path`; InputError when it is missing, damaged, too large or not an object."""
    value = parse_json(read_whole(path, at_most=MAX_JSON_BYTES), where=str(path))
    if not isinstance(value, dict):
        raise InputError(f"{path} is damaged: a JSON object is expected")
    return value


def parse_json(text: bytes | str, *, where: str) -> Any:
    """The value of a JSON text, as JSON's own types; `where` names the text in errors.

    InputError for what is no JSON, and for more nesting and longer whole numbers than anything that is meant has.
    """
    try:
        value = json.loads(text, parse_int=_whole_number)
    except RecursionError:
        raise InputError(f"{where} is damaged: it is nested more than {MAX_JSON_DEPTH} deep") from None
    except ValueError as error:
        raise InputError(f"{where} is damaged: not JSON ({error})") from None
    if _is_deeper(value, MAX_JSON_DEPTH):
        raise InputError(f"{where} is damaged: it is nested more than {MAX_JSON_DEPTH} deep")
    return value


def read_whole(path: Path, *, at_most: int) -> bytes:
    """The bytes of a regular file; InputError when it is none or holds more than `at_most` bytes."""
    require_file(path)
    if (size := path.stat().st_size) > at_most:
        raise InputError(f"{path} has {size} bytes; at most {at_most} are read")
    return path.read_bytes()


def require_file(path: Path) -> None:
    """InputError unless `path` is a regular file: a pipe may never give anything, and a device never ends."""
    if not path.exists():
        raise InputError(f"{path} does not exist")
    if not path.is_file():
        kind = "a folder" if path.is_dir() else "no regular file"
        raise InputError(f"{path} is {kind}; a file is expected")


def followed(relative: str, *, seen_from: Path) -> Path:
    """The path that was recorded as `relative` to the folder `seen_from`, whose links were followed then."""
    straight = Path(os.path.normpath(seen_from.absolute()))
    start = seen_from if straight == seen_from.resolve() else seen_from.resolve()
    return Path(os.path.normpath(start / relative))


def sha256_of(*paths: Path) -> str:
    """The SHA-256 of files, one after the other; of a single file it is what `sha256sum` prints."""
    digest = hashlib.sha256()
    for path in paths:
        require_file(path)
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def once_per_content(path: Path, wanted: str, check: Callable[[], None]) -> None:
    """Call `check`, which raises when `path` does not hold what `wanted` stands for.

    Not when it went well in this process before and the file was not written since.
    """
    stat = path.stat()
    key = (stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, wanted)
    if key not in _CHECKED:
        check()
        _CHECKED.add(key)


_CHECKED: set[tuple[int, int, int, int, str]] = set()


def _whole_number(text: str) -> int:
    """Python takes time that grows with the square of a number's length, and stops at 4,300 digits."""
    if len(text.lstrip("-")) > MAX_DIGITS:
        raise ValueError(f"a whole number has {len(text)} digits; at most {MAX_DIGITS} are read")
    return int(text)


def _is_deeper(value: Any, depth: int) -> bool:
    """Whether lists and objects in `value` lie in each other more than `depth` deep."""
    level = [value]
    for _ in range(depth):
        parts = (one.values() if isinstance(one, dict) else one for one in level if isinstance(one, dict | list))
        level = [part for inner in parts for part in inner if isinstance(part, dict | list)]
        if not level:
            return False
    return True


def _is_being_written(aside: Path, writer: int) -> bool:
    """Whether the process that writes `aside` still runs; a later one may have got its number, as in containers."""
    if not _is_running(writer):
        return False
    try:
        return aside.stat().st_mtime >= _start_of(writer) - 1  # A second, because clocks are read in ticks.
    except FileNotFoundError:  # Another rank has removed it just now.
        return False


def _start_of(process: int) -> float:
    """When a process was started, as files are dated; 0 where the system does not say."""
    try:
        ticks = int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[19])
        boot = next(line for line in Path("/proc/stat").read_text().splitlines() if line.startswith("btime "))
    except (OSError, StopIteration):
        return 0.0
    return int(boot.split()[1]) + ticks / os.sysconf("SC_CLK_TCK")


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
    return path.with_name(f".{_short(path.name)}.{_HOST}.{os.getpid()}.tmp")


def _short(name: str) -> str:
    """`name`, or for one that is too long to be made longer some digits that stand for it."""
    long = len(os.fsencode(name)) > _MAX_NAME
    return hashlib.sha256(os.fsencode(name)).hexdigest()[:16] if long else name


def _flush(path: Path) -> None:
    """Make a file's content, or the renames in a folder, survive a power loss."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
