"""Sweeps from end to end: tuning, every student trained once, one table; and the stages that they are made of."""

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file

from ard import cli
from ard.core.model_folder import load_config, save_model
from ard.studies import stages
from ard.studies.stages import Stage, run_missing

Made = Callable[..., str]
Refused = Callable[..., str]
GRID = ["--num-steps", "1,2", "--masks", "diagonal,causal", "--iterations", 4, "--batch-size", 8, "--jobs", 1]


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The commands that stages start; they run in this process, which is quicker."""
    commands: list[list[str]] = []

    def start(arguments: list[str], *_: object) -> int:
        commands.append(arguments)
        return cli.run(arguments)

    monkeypatch.setattr(stages, "start", start)
    return commands


@pytest.fixture
def sweep(toys: Path, references: Path, tmp_path: Path, made: Made, started: list[list[str]]) -> Made:  # noqa: ARG001 it must be there
    """Run a small sweep into tmp_path/sweep; further options win."""

    def run(*options: object) -> str:
        places = ["--trajectories", toys / "store", "--references", references, "--out", tmp_path / "sweep"]
        return made("sweep", *places, *GRID, "--num", 100, "--device", "cpu", *options)

    return run


def published(folder: Path) -> dict[str, object]:
    return json.loads((folder / "results.json").read_text())


@pytest.mark.slow
def test_a_sweep_compares_every_cell_and_runs_none_twice(
    sweep: Made,
    tmp_path: Path,
    started: list[list[str]],
    made: Made,
    references: Path,
    contents: Callable[[Path], dict[str, bytes]],
) -> None:
    printed = sweep("--seeds", "0-1")
    assert [command[0] for command in started] == ["distill"] * 6
    result = published(tmp_path / "sweep")
    names = [cell["row"]["model"] for cell in result["cells"]]
    assert sorted(names) == ["ard", "ard", "kd", "kd", "step", "step"]
    lines = (tmp_path / "sweep" / "table.md").read_text().splitlines()
    assert len(lines) == 2 + 3 + 3  # Header; the teacher, twice untrained; three groups of two seeds.
    assert all("±" in line for line in lines[5:])
    assert f"{result['floor']:.2f}" in printed
    assert (tmp_path / "sweep" / "sweep.svg").read_text().startswith("<svg")

    before = contents(tmp_path / "sweep")
    started.clear()
    again = sweep("--seeds", "0-1")
    assert again[again.index("model ") :] == printed[printed.index("model ") :]
    assert not started
    assert contents(tmp_path / "sweep") == before

    sweep("--seeds", "0-2")
    assert len(started) == 3, "a grid that has grown trains what is missing"

    student = next(folder for folder in (tmp_path / "sweep").iterdir() if "causal" in folder.name)
    options = ["--references", references, "--num", 100, "--json", tmp_path / "row.json", "--device", "cpu"]
    made("evaluate", "--student", student, *options)
    row = json.loads((tmp_path / "row.json").read_text())["rows"][-1]
    assert row in [cell["row"] for cell in published(tmp_path / "sweep")["cells"]]


@pytest.mark.slow
def test_of_several_rates_each_arm_takes_the_one_with_the_least_error_on_separate_trajectories(
    sweep: Made, tmp_path: Path, started: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ard.studies.sweep.NUM_TUNING", 20)
    sweep("--learning-rates", "1e-4,1e-1", "--seeds", "5", "--num-steps", "2")
    kept = json.loads((tmp_path / "sweep" / "tuning.json").read_text())["entries"]
    errors = {entry["identity"]["cell"]: entry["value"] for entry in kept}
    rates = published(tmp_path / "sweep")["learning_rates"]
    assert len(errors) == 4
    assert len(rates) == 2
    for arm, rate in rates.items():
        mask = "diagonal" if arm.endswith("step") else "causal"
        assert f"lr{rate:g}-" in min((name for name in errors if mask in name), key=errors.__getitem__)
    assert len(started) == 4, "the chosen trials are the students: none is trained twice"


def test_a_trial_that_fails_loses_and_does_not_end_the_sweep(
    sweep: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, started: list[list[str]]
) -> None:
    monkeypatch.setattr("ard.studies.sweep.NUM_TUNING", 20)
    well = stages.start
    monkeypatch.setattr(stages, "start", lambda words, *_: 2 if "0.5" in words else well(words))
    sweep("--learning-rates", "1e-4,0.5", "--seeds", "5", "--num-steps", "2", "--masks", "diagonal")
    assert published(tmp_path / "sweep")["learning_rates"] == {"x_t solver_step step": 1e-4}
    assert len(started) == 1


def test_a_student_that_was_trained_anew_is_evaluated_anew(
    sweep: Made, tmp_path: Path, started: list[list[str]]
) -> None:
    options = ["--seeds", "0", "--num-steps", "2", "--masks", "diagonal"]
    sweep(*options)
    (folder,) = (path for path in (tmp_path / "sweep").iterdir() if path.is_dir())
    before = published(tmp_path / "sweep")["cells"]
    weights = load_file(folder / "model.safetensors")
    changed = {name: value + 0.5 for name, value in weights.items()}
    save_model(folder, "student", load_config(folder, "student"), changed)
    sweep(*options)
    assert len(started) == 1
    assert published(tmp_path / "sweep")["cells"][0]["row"]["paired_mse"] != before[0]["row"]["paired_mse"]


def test_students_of_a_store_that_has_grown_are_not_taken_for_its_own(
    sweep: Made, workspace: Path, tmp_path: Path, made: Made, collect_options: list[object], complaint: Made
) -> None:
    options = ["--seeds", "0", "--num-steps", "2", "--masks", "diagonal"]
    sweep("--trajectories", workspace / "store", *options)
    more = ["--keep", "all", "--states", "x_t", "x_0_hat", "--num", 24]
    made("collect", "--teacher", workspace / "teacher", "--out", workspace / "store", *collect_options, *more)
    places = ["--trajectories", workspace / "store", "--out", tmp_path / "sweep", "--device", "cpu"]
    assert "stopped" in complaint("sweep", *places, *GRID, *options).splitlines()[-1]


def test_the_folder_of_all_stages_stands_where_out_is_a_whole_word(tmp_path: Path) -> None:
    stage = Stage("x", ("sample", "OUT", "OUT/a", "runs/OUTPUT/b", "--outer"))
    assert stage.command(tmp_path)[:5] == ["sample", str(tmp_path), f"{tmp_path}/a", "runs/OUTPUT/b", "--outer"]


def test_a_child_ends_soon_after_its_parent_was_killed(tmp_path: Path) -> None:
    child = f"""
import os, time
from ard.core.processes import die_with_parent
die_with_parent(os.getppid())
open({str(tmp_path / "pid")!r}, "w").write(str(os.getpid()))
time.sleep(60)
"""
    script = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    parent = subprocess.Popen([sys.executable, "-c", script])
    while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text():
        time.sleep(0.05)
    pid = int((tmp_path / "pid").read_text())
    parent.kill()
    parent.wait()
    deadline = time.monotonic() + 20
    while Path(f"/proc/{pid}").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not Path(f"/proc/{pid}").exists()


def test_a_stage_that_stops_ends_the_sweep_with_one_line(
    toys: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, complaint: Made
) -> None:
    monkeypatch.setattr(stages, "start", lambda *_: 2)
    line = complaint("sweep", "--trajectories", toys / "store", "--out", tmp_path / "sweep", *GRID)
    assert "the stage" in line
    assert "the same command goes on from here" in line
    assert not (tmp_path / "sweep" / "results.json").exists()


def test_a_stage_is_recorded_when_it_has_ended_well_and_not_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair = [Stage("one", ("sample",)), Stage("two", ("sample",), option="--json", computes=False)]
    seen: list[list[str]] = []

    def start(arguments: list[str], *_: object) -> int:
        seen.append(arguments)
        next(Path(word) for word in arguments if word.startswith(str(tmp_path))).mkdir()
        return 0

    monkeypatch.setattr(stages, "start", start)
    assert run_missing(tmp_path, pair, device="cpu", jobs=1, title="x") == pair
    assert seen == [
        ["sample", "--out", str(tmp_path / "one"), "--device", "cpu"],
        ["sample", "--json", str(tmp_path / "two")],
    ]
    assert not run_missing(tmp_path, pair, device="cpu", jobs=1, title="x")
    other = [Stage("one", ("sample", "--seeds", "1"))]
    (tmp_path / "one").rmdir()
    assert run_missing(tmp_path, other, device="cpu", jobs=1, title="x") == other, "another command makes it anew"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--masks", "diagonal,M5"], ["--masks", "'M5'", "diagonal, window, anchor, causal"]),
        (["--state", "x"], ["--state", "'x'", "x_t, x_0_hat"]),
        (["--seeds", "2-0"], ["--seeds 2-0", "backwards"]),
        (["--learning-rates", "1e-3;2e-3"], ["--learning-rates", "commas"]),
        (["--own-history", "0,2"], ["own_histories has 2", "0 to 1"]),
        (["--learning-rates", "0"], ["learning_rates has 0"]),
        (["--num-steps", "0-99999999999"], ["99999999999", "at most"]),
        (["--num-steps", "13"], ["13", "12"]),
        (["--history-blocks", "9"], ["history_blocks is 9", "0 to 4"]),
        (["--iterations", 0], ["iterations is 0"]),
        (["--jobs", -1], ["jobs is -1"]),
        (["--num", 5], ["num is 5", "100"]),
    ],
)
def test_what_cannot_be_meant_is_refused_before_anything_is_made(
    toys: Path, tmp_path: Path, refused: Refused, options: list[object], words: list[str]
) -> None:
    line = refused("sweep", "--trajectories", toys / "store", "--out", tmp_path / "sweep", *options)
    assert all(word in line for word in words), line


def test_a_store_without_the_states_is_named(toys: Path, tmp_path: Path, refused: Refused) -> None:
    options = ["--trajectories", toys / "grid_store", "--out", tmp_path / "sweep", "--state", "x_0_hat"]
    assert "has no x_0_hat states" in refused("sweep", *options)
