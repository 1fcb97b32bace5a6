"""Artefacts appear whole or not at all."""

import errno
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from ard.core.errors import InputError
from ard.core.files import MAX_JSON_BYTES, read_json, remove_leftovers, sha256_of, write_atomically, write_json
from ard.core.model_folder import read_weights


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


@pytest.mark.skipif(sys.platform != "linux", reason="reads the start of a process in /proc")
def test_a_leftover_is_older_than_the_process_that_has_its_writers_number_now(
    tmp_path: Path, leftover: Callable[[Path, int], Path]
) -> None:
    old = leftover(tmp_path, os.getpid())
    os.utime(old, (10**9, 10**9))
    remove_leftovers(tmp_path)
    assert not old.exists()


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


DAMAGED = {
    "nothing": (b"", "not JSON"),
    "half": (b'{"a": 1', "not JSON"),
    "no text": (b"\xff\xfe", "not JSON"),
    "a list": (b"[1, 2]", "a JSON object is expected"),
    "a number": (b"3", "a JSON object is expected"),
    "nested 65 deep": (b'{"a":' + 64 * b"[" + 64 * b"]" + b"}", "nested more than 64 deep"),
    "nested 100,000 deep": (b'{"a":' + 100_000 * b"[" + 100_000 * b"]" + b"}", "nested more than 64 deep"),
    "a number of 400 digits": (b'{"a": ' + 400 * b"7" + b"}", "400 digits; at most 20"),
    "a number of 5,000 digits": (b'{"a": -' + 5_000 * b"7" + b"}", "at most 20"),
}


@pytest.mark.parametrize("damage", DAMAGED)
def test_damaged_json_is_refused_with_its_name(tmp_path: Path, damage: str) -> None:
    content, told = DAMAGED[damage]
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(InputError, match=r"config\.json is damaged") as refusal:
        read_json(tmp_path / "config.json")
    assert told in str(refusal.value)


def test_json_within_the_limits_is_read(tmp_path: Path) -> None:
    nested: list[object] = []
    for _ in range(62):
        nested = [nested]
    value = {"a": nested, "seed": 2**64 - 1, "low": -(2**63)}
    write_json(tmp_path / "value.json", value)
    assert read_json(tmp_path / "value.json") == value


def test_only_regular_files_are_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/zero"), tmp_path):
        for read in (read_json, sha256_of, read_weights):
            with pytest.raises(InputError, match="a file is expected"):
                read(path)


def test_a_file_that_is_too_long_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "long.json").open("wb") as file:
        file.truncate(MAX_JSON_BYTES + 1)
    with pytest.raises(InputError, match="at most"):
        read_json(tmp_path / "long.json")


def test_missing_json_is_refused_with_its_name(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nothing\.json does not exist"):
        read_json(tmp_path / "nothing.json")
