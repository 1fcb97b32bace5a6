"""Damaged binaries: cut, filled, flipped and given headers that promise too much."""

import os
import random
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

TEXT = {".json", ".jsonl", ".txt", ".md"}
HUGE = struct.pack("<Q", 1 << 62)

Change = Callable[[bytes, random.Random], bytes]


def _flip(data: bytes, rng: random.Random, within: int | None = None) -> bytes:
    place = rng.randrange(min(len(data), within or len(data)))
    return data[:place] + bytes([data[place] ^ (1 << rng.randrange(8))]) + data[place + 1 :]


def _spliced(data: bytes, rng: random.Random) -> bytes:
    start, end = sorted(rng.randrange(len(data)) for _ in range(2))
    return data[:start] + data[end:]


def _repeated(data: bytes, rng: random.Random) -> bytes:
    start, end = sorted(rng.randrange(len(data)) for _ in range(2))
    return data[:end] + data[start:]


CHANGES: dict[str, Change] = {
    "empty": lambda _data, _rng: b"",
    "one byte": lambda data, _rng: data[:1],
    "a number's length": lambda data, _rng: data[:8],
    "half": lambda data, _rng: data[: len(data) // 2],
    "without its end": lambda data, _rng: data[:-3],
    "cut": lambda data, rng: data[: rng.randrange(len(data))],
    "longer": lambda data, _rng: data + b"\0" * 100,
    "zeros": lambda data, _rng: bytes(len(data)),
    "noise": lambda data, rng: rng.randbytes(len(data)),
    "text": lambda _data, _rng: b"<html>404 Not Found</html>\n",
    "a JSON text": lambda _data, _rng: b'{"x": 1}',
    "a huge header": lambda data, _rng: HUGE + data[8:],
    "a header of nothing": lambda data, _rng: struct.pack("<Q", 2) + b"{}" + data[8:],
    "a header of brackets": lambda data, _rng: struct.pack("<Q", 3000) + b"[" * 3000 + data,
    "an npy header of brackets": lambda _data, _rng: b"\x93NUMPY\x01\x00" + struct.pack("<H", 3000) + b"[" * 3000,
    "a huge npy": lambda _data, _rng: _npy("{'descr': '<f8', 'fortran_order': False, 'shape': (99999999999, 99999)}"),
    "a npy of objects": lambda _data, _rng: _npy("{'descr': '|O', 'fortran_order': False, 'shape': (1,)}"),
    "a PostScript": lambda _data, _rng: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\nshowpage\n",
    "a pickle": lambda _data, _rng: b"\x80\x04cposix\nsystem\n(S'touch ran'\ntR.",
    "a flip at the start": lambda data, rng: _flip(data, rng, 64),
    "a flip": _flip,
    "another flip": _flip,
    "a flip in the header": lambda data, rng: _flip(data, rng, 512),
    "a part less": _spliced,
    "a part twice": _repeated,
}
KINDS = ("gone", "a folder", "a pipe", "a loop", "unreadable")


@dataclass(frozen=True)
class Damage:
    """`file` with one of `CHANGES`, drawn with `seed`, or something else in its place."""

    file: Path
    change: str
    seed: int

    def __str__(self) -> str:
        return f"{self.file}: {self.change} ({self.seed})"

    def apply(self) -> None:
        """Change the file, below the current folder."""
        if self.change in CHANGES:
            data = self.file.read_bytes()
            self.file.write_bytes(CHANGES[self.change](data, random.Random(f"{self.file}/{self.change}/{self.seed}")))
            return
        self.file.unlink()
        match self.change:
            case "a folder":
                self.file.mkdir()
            case "a pipe":
                os.mkfifo(self.file)
            case "a loop":
                self.file.symlink_to(self.file.name)
            case "unreadable":
                self.file.write_bytes(b"")
                self.file.chmod(0)


def all_damages(world: Path, names: list[str], *, repeats: int) -> Iterator[Damage]:
    """Every damage of the files in the folders and files `names` of a world; texts only as something else."""
    for name in names:
        for path in sorted(one for one in [world / name, *(world / name).rglob("*")] if one.is_file()):
            file, changes = path.relative_to(world), () if path.suffix in TEXT or not path.stat().st_size else CHANGES
            yield from (Damage(file, kind, 0) for kind in KINDS)
            yield from (Damage(file, change, seed) for change in changes for seed in range(repeats))


def _npy(header: str) -> bytes:
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header.encode()
