"""Sweeps and the paper's study from end to end: tuning, training once, one table, a verdict on each claim."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from ard import cli
from ard.stages import Stage, run_missing

Made = Callable[..., str]
Refused = Callable[..., str]
GRID = ["--num-steps", "1,2", "--masks", "diagonal,causal", "--iterations", 4, "--batch-size", 8, "--jobs", 1]


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The commands that stages start; they run in this process, which is quicker."""
    commands: list[list[str]] = []

    def run(words: list[str], **_: object) -> "CompletedProcess[str]":
        commands.append(words[3:])
        return CompletedProcess(words, cli.run(words[3:]))

    monkeypatch.setattr("ard.stages.subprocess.run", run)
    return commands


@pytest.fixture(scope="module")
def references(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Classifier and teacher batches, made by the first sweep and used by all."""
    return tmp_path_factory.mktemp("references")


@pytest.fixture
def sweep(toys: Path, references: Path, tmp_path: Path, made: Made, started: list[list[str]]) -> Made:  # noqa: ARG001 it must be there
    """Run a small sweep into tmp_path/sweep; further options win."""

    def run(*options: object) -> str:
        places = ["--trajectories", toys / "store", "--references", references, "--out", tmp_path / "sweep"]
        return made("sweep", *places, *GRID, "--num", 100, "--device", "cpu", *options)

    return run


def published(folder: Path) -> dict[str, object]:
    return json.loads((folder / "results.json").read_text())


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


def test_of_several_rates_each_arm_takes_the_one_with_the_least_error_on_separate_trajectories(
    sweep: Made, tmp_path: Path, started: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ard.sweep.NUM_TUNING", 20)
    sweep("--learning-rates", "1e-4,1e-1", "--seeds", "5", "--num-steps", "2")
    errors = json.loads((tmp_path / "sweep" / "tuning.json").read_text())["values"]
    rates = published(tmp_path / "sweep")["learning_rates"]
    assert len(errors) == 4
    assert len(rates) == 2
    for arm, rate in rates.items():
        mask = "diagonal" if arm.endswith("step") else "causal"
        assert f"lr{rate:g}-" in min((name for name in errors if mask in name), key=errors.__getitem__)
    assert len(started) == 4, "the chosen trials are the students: none is trained twice"


def test_a_stage_that_stops_ends_the_sweep_with_one_line(
    toys: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, complaint: Made
) -> None:
    monkeypatch.setattr("ard.stages.subprocess.run", lambda words, **_: subprocess.CompletedProcess(words, 2))
    line = complaint("sweep", "--trajectories", toys / "store", "--out", tmp_path / "sweep", *GRID)
    assert "the stage" in line
    assert "the same command goes on from here" in line
    assert not (tmp_path / "sweep" / "results.json").exists()


def test_a_stage_is_recorded_when_it_has_ended_well_and_not_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stages = [Stage("one", ("sample",)), Stage("two", ("sample",), option="--json", computes=False)]
    seen: list[list[str]] = []

    def run(words: list[str], **_: object) -> "CompletedProcess[str]":
        seen.append(words[3:])
        next(Path(word) for word in words if word.startswith(str(tmp_path))).mkdir()
        return CompletedProcess(words, 0)

    monkeypatch.setattr("ard.stages.subprocess.run", run)
    assert run_missing(tmp_path, stages, device="cpu", jobs=1, title="x") == stages
    assert seen == [
        ["sample", "--out", str(tmp_path / "one"), "--device", "cpu"],
        ["sample", "--json", str(tmp_path / "two")],
    ]
    assert not run_missing(tmp_path, stages, device="cpu", jobs=1, title="x")
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
        (["--own-history", "0,2"], ["--own-history", "2", "0 to 1"]),
        (["--num-steps", "5"], ["5", "12"]),
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
