"""Damaged JSON: every field of every file, replaced by what it never holds, and whole files that are no such JSON."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MARK = "\ufdd0replaced\ufdd1"
DEEP = 100_000
VALUES = {
    "null": "null",
    "true": "true",
    "zero": "0",
    "minus one": "-1",
    "a half": "0.5",
    "a huge integer": "1" + "0" * 30,
    "an integer of 400 digits": "7" * 400,
    "an integer of 5000 digits": "7" * 5000,
    "a huge float": "1e308",
    "an infinity": "1e999",
    "not a number": "NaN",
    "no text": '""',
    "a text": '"x"',
    "a number as text": '"3"',
    "a surrogate": '"\\ud800"',
    "a NUL": '"a\\u0000b"',
    "a long text": json.dumps("long " * 20_000),
    "an empty list": "[]",
    "an empty object": "{}",
    "a list": "[1, 2]",
    "a nested list": '[["x"], {"y": null}]',
    "an object": '{"x": 1}',
    "a list of nothing": "[null]",
    "deep lists": "[" * DEEP + "]" * DEEP,
    "deep objects": '{"x":' * DEEP + "1" + "}" * DEEP,
}
DOCUMENTS = {
    "empty": "",
    "a number": "3",
    "a list": "[]",
    "an object": "{}",
    "null": "null",
    "open": "{",
    "deep": "[" * DEEP,
    "deep objects": '{"x":' * DEEP,
    "a long number": "7" * 5000,
    "no UTF-8": "\udcff\udcfe",
    "twice": "{}{}",
    "a byte order mark": "\ufeff{}",
    "NULs": "\0" * 1000,
}
GONE = "gone"


@dataclass(frozen=True)
class Damage:
    """`file` with the field at `place` replaced by `value`, or as a whole when there is no place."""

    file: Path
    place: tuple[str | int, ...]
    value: str

    def __str__(self) -> str:
        where = ".".join(map(str, self.place)) if self.place else "the whole"
        return f"{self.file}: {where}: {self.value}"

    def apply(self) -> None:
        """Change the file, below the current folder."""
        text = self.file.read_text()
        self.file.write_text(damaged(text, self), errors="surrogateescape")


def damaged(text: str, damage: Damage) -> str:
    """The damaged text."""
    if not damage.place:
        return DOCUMENTS.get(damage.value) if damage.value in DOCUMENTS else text[: len(text) // 2]
    line, *place = damage.place if damage.file.suffix == ".jsonl" else (None, *damage.place)
    lines = text.splitlines() if line is not None else [text]
    value = json.loads(lines[line or 0])
    if place:
        _replace(value, place, damage.value)
    else:
        value = MARK
    lines[line or 0] = json.dumps(value).replace(json.dumps(MARK), VALUES.get(damage.value, ""))
    return "\n".join(lines)


def all_damages(world: Path, names: list[str]) -> Iterator[Damage]:
    """Every damage of the JSON files in the folders and files `names` of a world."""
    for name in names:
        for path in sorted(files_in(world / name)):
            file = path.relative_to(world)
            yield from (Damage(file, (), value) for value in [*DOCUMENTS, "half"])
            for place in _places(path):
                yield from (Damage(file, place, value) for value in [*VALUES, GONE] if place or value != GONE)


def files_in(path: Path) -> list[Path]:
    """The JSON files below a folder, or the file itself."""
    found = [path] if path.is_file() else [*path.rglob("*")]
    return [one for one in found if one.suffix in {".json", ".jsonl"}]


def _places(path: Path) -> Iterator[tuple[str | int, ...]]:
    if path.suffix == ".jsonl":
        for number, line in enumerate(path.read_text().splitlines()[:3]):
            yield (number,)
            yield from ((number, *place) for place in _fields(json.loads(line)))
    else:
        yield from _fields(json.loads(path.read_text()))


def _fields(value: Any) -> Iterator[tuple[str | int, ...]]:
    """The place of every field; of long lists and objects the first two."""
    pairs = list(value.items() if isinstance(value, dict) else enumerate(value if isinstance(value, list) else ()))
    for key, below in pairs if len(pairs) < 40 else pairs[:2]:
        yield (key,)
        yield from ((key, *place) for place in _fields(below))


def _replace(value: Any, place: list[str | int], kind: str) -> None:
    for key in place[:-1]:
        value = value[key]
    if kind == GONE:
        del value[place[-1]]
    else:
        value[place[-1]] = MARK
