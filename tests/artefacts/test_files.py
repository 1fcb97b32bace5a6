"""Artefacts appear whole or not at all."""

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from ard.errors import InputError
from ard.files import read_json, remove_leftovers, write_atomically, write_json


def full_disk(_descriptor: int) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def names_in(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


def test_a_file_is_written_with_its_folders_and_nothing_beside_it(tmp_path: Path) -> None:
    write_atomically(tmp_path / "a" / "b" / "c.bin", b"content")
    assert (tmp_path / "a" / "b" / "c.bin").read_bytes() == b"content"
    assert names_in(tmp_path / "a" / "b") == ["c.bin"]


def test_a_reader_sees_the_old_content_until_the_new_one_is_on_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, seen = tmp_path / "file", []
    path.write_bytes(b"old")
    monkeypatch.setattr(os, "fsync", lambda _: seen.append(path.read_bytes()))
    write_atomically(path, b"new")
    assert seen == [b"old", b"new"], "the file is flushed before the rename, its folder after it"


def test_a_full_disk_leaves_the_old_content_and_no_leftover(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match="No space left"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert names_in(tmp_path) == ["file"]


def test_leftovers_of_dead_writers_go_and_those_of_living_ones_stay(
    tmp_path: Path, leftover: Callable[[Path, int], Path], dead: int
) -> None:
    gone, stays = leftover(tmp_path, dead), leftover(tmp_path, os.getpid())
    assert gone != stays
    remove_leftovers(tmp_path)
    assert list(tmp_path.iterdir()) == [stays]


@pytest.mark.parametrize("name", [".cache.tmp", ".file.name.tmp", "visible.json.1.tmp", "file"])
def test_files_of_others_are_no_leftovers(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"theirs")
    remove_leftovers(tmp_path)
    assert names_in(tmp_path) == [name]


def test_json_goes_out_and_comes_back(tmp_path: Path) -> None:
    value = {"b": [1, 2.5, None], "a": {"nested": "ü"}}
    write_json(tmp_path / "value.json", value)
    assert read_json(tmp_path / "value.json") == value
    assert (tmp_path / "value.json").read_text().endswith("}\n")


@pytest.mark.parametrize("content", [b"", b'{"a": 1', b"\xff\xfe", b"[1, 2]", b"3"])
def test_damaged_json_is_refused_with_its_name(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(InputError, match=r"config\.json is damaged"):
        read_json(tmp_path / "config.json")


def test_missing_json_is_refused_with_its_name(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nothing\.json does not exist"):
        read_json(tmp_path / "nothing.json")
