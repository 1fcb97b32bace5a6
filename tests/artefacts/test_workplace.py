"""One process works in one folder; ranks work together where they share, and nowhere else."""

import errno
import fcntl
import importlib
import subprocess
import sys
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import pytest

from ard.cli import COMMANDS
from ard.cli.workplace import ALONE, SHARED
from ard.core.errors import InputError
from ard.core.processes import working_in

HOLDER = """
import sys
from pathlib import Path
from ard.core.processes import working_in
with working_in(Path(sys.argv[1]), shared=sys.argv[2] == "shared"):
    print("held", flush=True)
    sys.stdin.read()
"""
MAKES_NO_FOLDER = {"plan", "evaluate"}  # Numbers, or one file, which ranks may share.


@pytest.fixture
def holding(tmp_path: Path) -> Callable[..., "subprocess.Popen[str]"]:
    """holding(folder, how): another process that works in a folder until its input ends."""

    def hold(folder: Path, how: str = "alone") -> "subprocess.Popen[str]":
        process = subprocess.Popen(
            [sys.executable, "-c", HOLDER, str(folder), how],
            cwd=tmp_path,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stdout
        assert process.stdout.readline() == "held\n"
        return process

    return hold


def test_every_command_that_has_an_out_is_in_the_table() -> None:
    classes = {verb: getattr(importlib.import_module(module), name) for verb, (module, name, _) in COMMANDS.items()}
    with_out = {verb for verb, command in classes.items() if "out" in {field.name for field in fields(command)}}
    assert with_out - MAKES_NO_FOLDER == ALONE.keys() | SHARED.keys()
    for verb, attribute in (ALONE | SHARED).items():
        assert attribute in dir(classes[verb]) or attribute in {field.name for field in fields(classes[verb])}


def test_a_second_process_is_refused_and_a_killed_one_leaves_no_lock(
    toys: Path,
    tmp_path: Path,
    made: Callable[..., str],
    holding: Callable[..., "subprocess.Popen[str]"],
    complaint: Callable[..., str],
    collect_options: list[object],
    distill_options: list[object],
) -> None:
    new = tmp_path / "new/store"
    process = holding(new)
    arguments = ["collect", "--teacher", toys / "teacher", *collect_options, "--out", new]
    try:
        assert complaint(*arguments) == f"ard: another command works in {new}; wait for it, or choose another --out"
        student = [
            "distill",
            "--trajectories",
            toys / "store",
            *distill_options,
            "--out",
            tmp_path / "new/../new/store",
        ]
        assert "another command works in" in complaint(*student)
        made(*arguments, "--dry-run")
    finally:
        process.kill()
        process.communicate()
    made(*arguments)
    assert {path.name for path in new.parent.iterdir()} == {"store"}


def test_ranks_share_a_folder_and_refuse_who_is_alone(
    tmp_path: Path, holding: Callable[..., "subprocess.Popen[str]"]
) -> None:
    folder = tmp_path / "store"
    first = holding(folder, "shared")
    with working_in(folder, shared=True), pytest.raises(InputError), working_in(folder):
        pytest.fail("it is not alone")
    with pytest.raises(InputError), working_in(folder):
        pytest.fail("the first one is still there")
    first.communicate()
    with working_in(folder):
        pass
    assert not list(tmp_path.iterdir())


def test_folders_that_were_made_for_the_lock_go_with_it_unless_they_are_used(tmp_path: Path) -> None:
    with working_in(tmp_path / "a/b/c"):
        pass
    assert not list(tmp_path.iterdir())
    with working_in(tmp_path / "a/b/c"):
        (tmp_path / "a/other").mkdir()
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["other"]


def test_where_nothing_can_be_written_there_is_no_lock_and_no_complaint() -> None:
    with working_in(Path("/proc/self/store")):
        pass
    with working_in(Path("/dev/null/store")):
        pass


def test_a_folder_that_knows_no_locks_is_told_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def unknown(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", unknown)
    with working_in(tmp_path / "store"):
        pass
    told = f"ard: {tmp_path / 'store'} knows no locks; let no other command work there meanwhile\n"
    assert capsys.readouterr().err == told
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("verb", "options"),
    [
        ("distill", ["--trajectories", "store", "--out", "new", "--num-steps", 2]),
        ("teach", ["--out", "new"]),
        ("sample", ["--student", "student", "--out", "new"]),
        ("demo", ["--out", "new"]),
    ],
)
def test_ranks_are_refused_where_they_share_nothing(
    toys: Path, refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch, verb: str, options: list[object]
) -> None:
    monkeypatch.chdir(toys)
    monkeypatch.setenv("WORLD_SIZE", "2")
    line = refused(verb, *options)
    assert f"WORLD_SIZE is 2, and ard {verb} runs in one process" in line


@pytest.mark.parametrize("world", ["", "x", "-1", "0"])
def test_ranks_that_cannot_be_are_refused_by_the_commands(
    toys: Path, refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch, world: str, collect_options: list[object]
) -> None:
    monkeypatch.setenv("WORLD_SIZE", world)
    line = refused("collect", "--teacher", toys / "teacher", "--out", "new", *collect_options)
    assert "WORLD_SIZE is" in line
