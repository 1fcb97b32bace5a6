"""Prompts from a text file with one per line, from JSON lines, or from a Hugging Face data set on disk."""

import json
from collections.abc import Iterator
from pathlib import Path

from ard.datasets.from_disk import open_from_disk
from ard.errors import InputError

KEYS = ("prompt", "text", "caption")  # The first of these that a JSON line or a data set has is its prompt.
MAX_CHARACTERS = 4000  # The 300 tokens that PixArt-Sigma reads at most are about 1500 characters.


def read_prompts(source: Path) -> tuple[str, ...]:
    """The prompts in `source`, in its order; InputError that names the first one that is empty or too long."""
    prompts = []
    for where, prompt in _found(source):
        if not prompt.strip():
            raise InputError(f"{where} is empty; the empty prompt, which guidance needs, is always added: delete it")
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
        raise InputError(f"{source} does not exist; a .txt or .jsonl file, or a data set's folder, is expected")
    match source.suffix:
        case ".txt":
            return _lines(source)
        case ".jsonl":
            return _of_json_lines(source)
    raise InputError(f"{source} ends in {source.suffix or 'nothing'}; allowed: .txt (a prompt per line) and .jsonl")


def _lines(path: Path) -> Iterator[tuple[str, str]]:
    """The lines, numbered from 1; the last may end without a line break."""
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise InputError(f"{path} is no text in UTF-8; save it as that") from None
    for number, line in enumerate(text.removesuffix("\n").split("\n") if text else [], start=1):
        yield f"{path}, line {number},", line.rstrip("\r")


def _of_json_lines(path: Path) -> Iterator[tuple[str, str]]:
    for where, line in _lines(path):
        try:
            value = json.loads(line)
        except ValueError:
            raise InputError(f"{where} is not JSON; an object with a {_or(KEYS)} is expected in each line") from None
        key = next((key for key in KEYS if isinstance(value, dict) and isinstance(value.get(key), str)), None)
        if key is None:
            raise InputError(f"{where} has no text under {_or(KEYS)}")
        yield where, value[key]


def _of_data_set(folder: Path) -> Iterator[tuple[str, str]]:
    rows = open_from_disk(folder)
    key = next((key for key in KEYS if key in rows.column_names), None)
    if key is None:
        raise InputError(f"{folder} has the columns {', '.join(rows.column_names)}; one called {_or(KEYS)} is needed")
    for number, prompt in enumerate(rows[key]):
        if not isinstance(prompt, str):
            raise InputError(f"{folder}, row {number}, has {prompt!r} as its {key}; a text is expected")
        yield f"{folder}, row {number},", prompt


def _or(words: tuple[str, ...]) -> str:
    return f"{', '.join(words[:-1])} or {words[-1]}"
