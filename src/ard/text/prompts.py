"""Prompts from a text file with one per line, JSON lines, a table, or a Hugging Face data set on disk."""

import csv
from collections.abc import Iterator, Sequence
from io import StringIO
from pathlib import Path

from ard.core.errors import InputError
from ard.core.files import parse_json
from ard.images.from_disk import open_from_disk

KEYS = ("prompt", "text", "caption")  # The first of these that a JSON line, a table or a data set has is its prompt.
DELIMITERS = {".csv": ",", ".tsv": "\t"}
MAX_CHARACTERS = 4000  # The 300 tokens that PixArt-Sigma reads at most are about 1500 characters.


def read_prompts(source: Path) -> tuple[str, ...]:
    """The prompts in `source`, in its order; InputError that names the first one that is too long.

    One may be empty: its pictures are those of no prompt.
    """
    prompts = []
    for where, prompt in _found(source):
        if len(prompt) > MAX_CHARACTERS:
            raise InputError(f"{where} has {len(prompt)} characters; at most {MAX_CHARACTERS} are taken as a prompt")
        prompts.append(prompt)
    if not prompts:
        raise InputError(f"{source} holds no prompts; at least one is needed")
    return tuple(prompts)


def _found(source: Path) -> Iterator[tuple[str, str]]:
    """Each prompt, behind words that say where it is."""
    if source.is_dir():
        return _of_data_set(source)
    if not source.is_file():
        raise InputError(f"{source} does not exist; a .txt, .jsonl, .csv or .tsv, or a data set's folder, is expected")
    match source.suffix.lower():
        case ".txt":
            return _lines(source)
        case ".jsonl":
            return _of_json_lines(source)
        case ".csv" | ".tsv":
            return _of_table(source, DELIMITERS[source.suffix.lower()])
    allowed = ".txt (a prompt per line), .jsonl, .csv and .tsv"
    raise InputError(f"{source} ends in {source.suffix or 'nothing'}; allowed: {allowed}")


def _lines(path: Path) -> Iterator[tuple[str, str]]:
    """The lines, numbered from 1; the last may end without a line break."""
    text = _text_of(path)
    for number, line in enumerate(text.removesuffix("\n").split("\n") if text else [], start=1):
        yield f"{path}, line {number},", line.rstrip("\r")


def _text_of(path: Path) -> str:
    """What a file in UTF-8 says, without the mark that some editors put before it."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise InputError(f"{path} is no text in UTF-8; save it as that") from None


def _of_json_lines(path: Path) -> Iterator[tuple[str, str]]:
    for where, line in _lines(path):
        try:
            value = parse_json(line, where=where)
        except InputError:
            raise InputError(f"{where} is not JSON; an object with a {_or(KEYS)} is expected in each line") from None
        key = next((key for key in KEYS if isinstance(value, dict) and isinstance(value.get(key), str)), None)
        if key is None:
            raise InputError(f"{where} has no text under {_or(KEYS)}")
        yield where, value[key]


def _of_table(path: Path, delimiter: str) -> Iterator[tuple[str, str]]:
    """The rows under a first one that names the columns."""
    rows = csv.DictReader(StringIO(_text_of(path), newline=""), delimiter=delimiter, strict=True)
    try:
        key = _column(rows.fieldnames or (), path)
        for row in rows:
            if (prompt := row[key]) is None:
                raise InputError(f"{path}, line {rows.line_num}, has no {key}: it ends before that column")
            yield f"{path}, line {rows.line_num},", prompt
    except csv.Error as error:
        raise InputError(f"{path}, line {rows.line_num}, is no row of a table ({error})") from None


def _column(names: Sequence[str], where: Path) -> str:
    """The column that holds the prompts."""
    key = next((key for key in KEYS if key in names), None)
    if key is None:
        told = ", ".join(names)[:200] or "none"
        raise InputError(f"{where} has the columns {told}; one called {_or(KEYS)} is needed")
    return key


def _of_data_set(folder: Path) -> Iterator[tuple[str, str]]:
    rows = open_from_disk(folder)
    key = _column(rows.column_names, folder)
    for number, prompt in enumerate(rows[key]):
        if not isinstance(prompt, str):
            raise InputError(f"{folder}, row {number}, has {prompt!r} as its {key}; a text is expected")
        yield f"{folder}, row {number},", prompt


def _or(words: tuple[str, ...]) -> str:
    return f"{', '.join(words[:-1])} or {words[-1]}"
