"""A stretch of a file as a file of its own, of which only what is asked for is read."""

import io
from pathlib import Path


class _Part(io.RawIOBase):
    """Reads from a stretch of an open file."""

    def __init__(self, path: Path, offset: int, size: int) -> None:
        self.file = path.open("rb", buffering=0)
        self.offset, self.size, self.place = offset, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, place: int, whence: int = io.SEEK_SET) -> int:
        origin = {io.SEEK_SET: 0, io.SEEK_CUR: self.place, io.SEEK_END: self.size}[whence]
        self.place = max(0, origin + place)
        return self.place

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]  # io allows any buffer
        wanted = min(len(buffer), max(0, self.size - self.place))
        self.file.seek(self.offset + self.place)
        found = self.file.readinto(memoryview(buffer)[:wanted])
        self.place += found
        return found

    def close(self) -> None:
        self.file.close()
        super().close()


def open_part(path: Path, *, offset: int, size: int) -> io.BufferedReader:
    """The `size` bytes of a file from `offset` on."""
    return io.BufferedReader(_Part(path, offset, size))
