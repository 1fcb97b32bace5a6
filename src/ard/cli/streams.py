"""The standard streams of a process: a reader that goes away stops no work, a poor terminal no line."""

import codecs
import io
import os
import sys
from typing import TextIO

PLAIN = str.maketrans({"±": "+-", "×": "x", "→": "->", "…": "...", "≤": "<=", "≥": ">="}) | str.maketrans(
    "╌─–—−│┃╭╮╰╯├┤┌┐└┘·•\u00a0", "-----||++++++++++** "
)


def make_patient() -> None:
    """Replace stdout and stderr of this process by ones that write to the same places with patience."""
    codecs.register_error("plain", _plainly)
    sys.stdout, sys.stderr = _patient(sys.stdout), _patient(sys.stderr)


class _Pipe(io.RawIOBase):
    """A file descriptor; once its reader is gone, what is written to it is dropped. A full disk is told once."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor

    def readable(self) -> bool:
        return False

    def seekable(self) -> bool:
        return False

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self.descriptor

    def isatty(self) -> bool:
        return os.isatty(self.descriptor)

    def write(self, data: "memoryview | bytes") -> int:  # type: ignore[override]  # Any buffer is one of both.
        try:
            return os.write(self.descriptor, data)
        except BrokenPipeError:
            self._drop()
            return len(data)
        except OSError:
            self._drop()
            raise

    def _drop(self) -> None:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self.descriptor)
        os.close(nowhere)


def _patient(stream: TextIO | None) -> TextIO:
    """The same stream with patience; None, a stream that was closed from the start, stays one."""
    if stream is None or not isinstance(stream, io.TextIOWrapper):
        return stream  # type: ignore[return-value]  # Python itself has None there.
    stream.flush()
    raw = io.BufferedWriter(_Pipe(stream.fileno()))  # type: ignore[type-var]  # typeshed wants it to have a name
    return io.TextIOWrapper(raw, encoding=stream.encoding, errors="plain", line_buffering=stream.line_buffering)


def _plainly(error: UnicodeError) -> tuple[str, int]:
    """What cannot be encoded, in ASCII: our own signs as others like them, letters as escapes."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = error.object[error.start : error.end].translate(PLAIN)
    return text.encode("ascii", "backslashreplace").decode(), error.end
