"""Stores and students that were moved or linked find their teacher, or ask for it."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from ard.core.errors import InputError
from ard.teacher.origin import find_teacher
from ard.trajectories.manifest import load_manifest


def found(store: Path) -> Path:
    return find_teacher(load_manifest(store)[0].teacher, store)


def test_a_store_in_its_place_finds_it_as_it_is_written(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(workspace)
    assert found(Path("grid_store")) == Path("teacher")


def test_a_linked_store_finds_it_where_the_store_is(workspace: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "link").symlink_to(workspace / "grid_store")
    assert found(tmp_path / "elsewhere" / "link") == workspace / "teacher"


def test_a_moved_store_finds_it_by_its_hash_beside_itself(workspace: Path, tmp_path: Path) -> None:
    new = tmp_path / "a" / "b" / "c"
    new.mkdir(parents=True)
    for name, now in (("grid_store", "store"), ("other_teacher", "another"), ("teacher", "mine"), ("student", "s")):
        shutil.move(workspace / name, new / now)
    assert found(new / "store") == new / "mine"


def test_a_renamed_teacher_is_found_and_trained_from(
    workspace: Path, made: Callable[..., str], distill_options: list[object]
) -> None:
    (workspace / "teacher").rename(workspace / "renamed")
    made("distill", "--trajectories", workspace / "grid_store", "--out", workspace / "new", *distill_options)


def test_without_it_the_option_is_named(workspace: Path, tmp_path: Path, refused: Callable[..., str]) -> None:
    store = Path(shutil.move(workspace / "grid_store", tmp_path / "store"))
    shutil.rmtree(workspace)
    with pytest.raises(InputError, match="name its folder with --teacher"):
        found(store)
    assert "name its folder with --teacher" in refused("distill", "--trajectories", store, "--out", tmp_path / "new")


def test_another_teacher_in_its_place_is_told(workspace: Path, refused: Callable[..., str]) -> None:
    shutil.rmtree(workspace / "teacher")
    (workspace / "other_teacher").rename(workspace / "teacher")
    line = refused("distill", "--trajectories", workspace / "grid_store", "--out", workspace / "new")
    assert "did not make" in line
    assert "give the right --teacher" in line
