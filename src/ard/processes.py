"""Processes that belong together: a child that ends with its parent, and a folder that one process works in."""

import fcntl
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ard.errors import InputError


def die_with_parent(parent: int) -> None:
    """End this process soon after its parent was killed; it would otherwise work on, or wait for ever."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


@contextmanager
def only_worker(folder: Path) -> Iterator[None]:
    """Hold `folder` for this process; InputError when another one works in it."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(f"another command works in {folder}; wait for it, or choose another --out") from None
        yield
