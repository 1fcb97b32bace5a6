"""Processes that belong together: a child that ends with its parent, and a folder that one command works in."""

import errno
import fcntl
import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from ard.core.errors import InputError


def die_with_parent(parent: int) -> None:
    """End this process soon after its parent was killed; it would otherwise work on, or wait for ever."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


@contextmanager
def working_in(folder: Path, *, shared: bool = False, wait: bool = False) -> Iterator[None]:
    """Hold `folder`, which need not be there yet, for this process; `shared`: together with others that share it.

    InputError when another command works in it; `wait` waits for that one instead. The lock is the kernel's, on a file
    beside the folder, and ends with the process however that ends. Where nothing can be written there is none, and
    where locks are not known, as in some network folders, a line says so.
    """
    folder = folder.resolve()
    with _parents(folder):
        path = _lock_file(folder)
        file = _locked(path, folder, shared=shared, wait=wait) if path else None
        try:
            yield
        finally:
            if path and file:
                _release(file, path)


@contextmanager
def _parents(folder: Path) -> Iterator[None]:
    """Make the folders above, as far as that goes: the command tells what does not. Those that stay empty go again."""
    missing = [parent for parent in folder.parents if not parent.exists()]
    with suppress(OSError):
        folder.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield
    finally:
        for parent in missing:
            with suppress(OSError):  # It is not empty.
                parent.rmdir()


def _lock_file(folder: Path) -> Path | None:
    """Where the lock lies: beside the folder, or in a mounted one beside which nothing may be written; else nowhere."""
    places = (folder.parent / f".{folder.name}.lock", folder / ".lock")
    return next((place for place in places if place.parent.is_dir() and os.access(place.parent, os.W_OK)), None)


def _locked(path: Path, folder: Path, *, shared: bool, wait: bool) -> IO[bytes] | None:
    """The file, locked; None where there are no locks. InputError when another process has it."""
    mode = (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB)
    while True:
        file = path.open("ab")
        try:
            fcntl.flock(file, mode)
        except OSError as error:
            file.close()
            if error.errno in {errno.EWOULDBLOCK, errno.EACCES}:
                raise InputError(f"another command works in {folder}; wait for it, or choose another --out") from None
            path.unlink(missing_ok=True)
            print(f"ard: {folder} knows no locks; let no other command work there meanwhile", file=sys.stderr)
            return None
        if _is_at(file, path):
            return file
        file.close()  # The one who had it has deleted it meanwhile.


def _release(file: IO[bytes], path: Path) -> None:
    """Delete the lock's file unless others share it; who opened it meanwhile sees that it is no more."""
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return
        path.unlink(missing_ok=True)


def _is_at(file: IO[bytes], path: Path) -> bool:
    try:
        return os.fstat(file.fileno()).st_ino == path.stat().st_ino
    except FileNotFoundError:
        return False
