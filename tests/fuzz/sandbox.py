"""`ard` in a fork of this process: in a folder of its own, unprivileged, with bounds; and what is wrong with its end.

A fork starts in milliseconds, because everything is imported already.
"""

import ctypes
import os
import re
import resource
import shutil
import signal
import struct
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ard.cli import run

NOBODY = 65534
CPU_SECONDS = 10
WALL_SECONDS = 40  # Also of a machine that others use; who waits for ever is found too.
MEMORY = 2 << 30  # Above what this process has.
FILE_SIZE = 64 << 20
LONGEST_LINE = 1000
KILL_EVENTS = {"open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "os.link", "os.symlink"}
READ_ANYTHING = 1 << 2  # CAP_DAC_READ_SEARCH: Python's own files may lie where others do not see them.


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a command ended: its exit status, or minus the signal that ended it, and what it wrote."""

    status: int
    out: str
    err: str
    seconds: float
    operations: int
    """How many times it changed a file or was about to."""


@contextmanager
def own_folder() -> Iterator[Path]:
    """A folder that anybody may look into, deleted at the end."""
    folder = Path(tempfile.mkdtemp(prefix="ard-fuzz-"))
    folder.chmod(0o755)
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


def run_in(
    folder: Path, arguments: list[str], *, prepare: Callable[[], None] = lambda: None, kill_at: int | None = None
) -> Outcome:
    """Call `prepare` and then `ard` in `folder`; `kill_at` kills it before that change of a file."""
    streams = [folder.parent / f"{folder.name}.{name}" for name in ("out", "err", "count")]
    start = time.monotonic()
    child = os.fork()
    if not child:
        os._exit(_child(folder, arguments, prepare, kill_at, streams))
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    seconds = time.monotonic() - start
    out, err, count = (path.read_text(errors="replace") for path in streams)
    for path in streams:
        path.unlink()
    return Outcome(status=status, out=out, err=err, seconds=seconds, operations=int(count or 0))


def complaint(outcome: Outcome) -> str | None:
    """What is wrong with how a command took its input; None when it worked or refused as it should."""
    lines = [line for line in re.split(r"[\r\n]+", outcome.err) if line.strip() and "%|" not in line]
    one_line = len(lines) == 1 and lines[0].startswith("ard: ") and len(lines[0]) <= LONGEST_LINE
    faults = {
        f"hangs: {outcome.seconds:.0f} s": outcome.status in {-signal.SIGXCPU, -signal.SIGALRM},
        f"traceback: {(lines or [''])[-1][:200]}": "Traceback" in outcome.err + outcome.out,
        f"ended by a signal: {-outcome.status}": outcome.status < 0,
        f"exit status: {outcome.status}": outcome.status not in {0, 2},
        f"not one short line: {' / '.join(lines)[:300]!r}": outcome.status != 0 and not one_line,
    }
    return next((fault for fault, is_so in faults.items() if is_so), None)


def _child(
    folder: Path, arguments: list[str], prepare: Callable[[], None], kill_at: int | None, streams: list[Path]
) -> int:
    """The forked process; returns its exit status."""
    out, err, count = (os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600) for path in streams)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(out, 1)
    os.dup2(err, 2)
    sys.stdout = os.fdopen(1, "w", buffering=1)
    sys.stderr = os.fdopen(2, "w", buffering=1, errors="backslashreplace")  # As Python opens it.
    _give_up_rights()
    os.chdir(folder)
    try:
        prepare()
        _bound()
        _count_changes(folder, count, kill_at)
        return run(arguments)
    except SystemExit as stop:
        return int(stop.code or 0)
    except BaseException:  # noqa: BLE001 whatever gets this far, a user would see
        traceback.print_exc()
        return 1


def _give_up_rights() -> None:
    """Where this is root, become nobody, who may read everything and change nothing but its own."""
    if os.geteuid() != 0:
        return
    libc = ctypes.CDLL(None)
    libc.prctl(8, 1, 0, 0, 0)  # PR_SET_KEEPCAPS
    os.setgroups([])
    os.setresgid(NOBODY, NOBODY, NOBODY)
    os.setresuid(NOBODY, NOBODY, NOBODY)
    header = struct.pack("=Ii", 0x20080522, 0)  # _LINUX_CAPABILITY_VERSION_3, this thread
    libc.capset(header, struct.pack("=6I", READ_ANYTHING, READ_ANYTHING, 0, 0, 0, 0))


def _bound() -> None:
    """Time, memory and the size of files."""
    pages = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (pages + MEMORY, pages + MEMORY))
    resource.setrlimit(resource.RLIMIT_FSIZE, (FILE_SIZE, FILE_SIZE))
    used = int(time.process_time())
    resource.setrlimit(resource.RLIMIT_CPU, (used + CPU_SECONDS, used + 2 * CPU_SECONDS))
    signal.alarm(WALL_SECONDS)


def _count_changes(folder: Path, count: int, kill_at: int | None) -> None:
    """Write to the file `count` how often this process changed a file below `folder`; SIGKILL before `kill_at`."""
    root, done, me = str(folder.resolve()), 0, os.getpid()

    def changed(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal done
        if event not in KILL_EVENTS or os.getpid() != me or not _changes(event, arguments, root):
            return
        done += 1
        if done == kill_at:
            os.kill(me, signal.SIGKILL)
        os.pwrite(count, str(done).encode(), 0)

    sys.addaudithook(changed)


def _changes(event: str, arguments: tuple[Any, ...], root: str) -> bool:
    path, *rest = arguments
    if not isinstance(path, str | bytes | os.PathLike):
        return False
    if event == "open" and not (isinstance(rest[1], int) and rest[1] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)):
        return False
    return os.path.abspath(os.fsdecode(path)).startswith(root)  # noqa: PTH100 a broken name is no Path
