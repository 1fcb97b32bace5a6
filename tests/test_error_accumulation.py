"""Figure 6b: the teacher takes the first k steps; k = 0 is plain sampling, k = S - 1 the teacher-forced last step."""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ard import cli
from ard.analysis.errors import (
    ErrorCurve,
    arms_of,
    error_rows,
    errors_figure,
    errors_table,
    finished_images,
    paired_figure,
)
from ard.evaluation.evaluate import Row, Scores
from ard.student.folder import load_student
from ard.student.history import HistoryAttention, HistoryMask
from ard.student.sampling import sample
from ard.student.student import Student
from ard.trajectories.reader import TrajectoryBatch, TrajectoryReader

MakeStudent = Callable[..., Student]
MakeLatents = Callable[..., Tensor]

LABEL = torch.tensor([4, 1, 0])

every_mask = pytest.mark.parametrize("mask", HistoryMask)
every_history = pytest.mark.parametrize("history", HistoryAttention)


def finished(student: Student, states: Tensor, teacher_steps: int, *, batch_size: int = 2) -> Tensor:
    return finished_images(student, TrajectoryBatch(states, LABEL), teacher_steps=teacher_steps, batch_size=batch_size)


@every_mask
@every_history
def test_no_steps_by_the_teacher_are_plain_sampling(
    mask: HistoryMask, history: HistoryAttention, make_student: MakeStudent, make_latents: MakeLatents
) -> None:
    student, states = make_student(num_steps=3, mask=mask, history=history), make_latents(3, 4)
    wanted = sample(student, states[:, 0], condition=LABEL)[:, -1]
    torch.testing.assert_close(finished(student, states, 0), wanted, rtol=0, atol=1e-12)


@every_mask
@every_history
@pytest.mark.parametrize("num_steps", [1, 2, 4])
def test_all_steps_but_the_last_by_the_teacher_are_the_teacher_forced_last_step(
    mask: HistoryMask, history: HistoryAttention, num_steps: int, make_student: MakeStudent, make_latents: MakeLatents
) -> None:
    student, states = make_student(num_steps=num_steps, mask=mask, history=history), make_latents(3, num_steps + 1)
    wanted = student(states[:, :-1], LABEL)[:, -1]
    torch.testing.assert_close(finished(student, states, num_steps - 1), wanted, rtol=1e-10, atol=1e-10)


@every_history
def test_a_student_that_continues_its_own_states_gets_the_same_image_for_every_k(
    history: HistoryAttention, make_student: MakeStudent, make_latents: MakeLatents
) -> None:
    student = make_student(num_steps=4, history=history)
    states = sample(student, make_latents(3), condition=LABEL)
    for teacher_steps in range(4):
        torch.testing.assert_close(finished(student, states, teacher_steps), states[:, -1], rtol=1e-10, atol=1e-10)


def test_only_the_given_states_of_the_teacher_matter(make_student: MakeStudent, make_latents: MakeLatents) -> None:
    student, states = make_student(num_steps=4), make_latents(3, 5)
    other = torch.cat([states[:, :3], make_latents(3, 2, seed=1)], dim=1)
    assert torch.equal(finished(student, states, 2), finished(student, other, 2))
    assert (finished(student, states, 3) - finished(student, other, 3)).abs().max() > 1e-3


def test_the_images_do_not_depend_on_the_batch_size(make_student: MakeStudent, make_latents: MakeLatents) -> None:
    student, states = make_student(num_steps=3), make_latents(3, 4)
    torch.testing.assert_close(
        finished(student, states, 1, batch_size=3), finished(student, states, 1, batch_size=1), rtol=1e-10, atol=1e-10
    )


# Curves, arms, rows.


def make_curve(
    name: str, distances: list[float], *, model: str = "ard", seed: int = 0, recipe: str = "one"
) -> ErrorCurve:
    """A curve with these distances; the paired errors are a tenth of them."""
    rest = {"fd_real": 20.0, "precision": 0.9, "recall": 0.8, "accuracy": 0.95}
    shape = {"state": "x_t", "prediction": "solver_step", "mask": "causal", "history_blocks": 6, "history": "gated"}
    numbers = {"num_steps": len(distances), "nfe": len(distances), "iterations": 8, "seconds": 1.0}
    rows = [
        Row(
            model=model,
            seed=seed,
            recipe=recipe,
            scores=Scores(fd_teacher=distance, fd_floor=0.25, paired_mse=distance / 10, **rest),
            **shape,
            **numbers,
        )
        for distance in distances
    ]
    return ErrorCurve(student=name, rows=tuple(rows))


def curves() -> list[ErrorCurve]:
    """Two seeds of ARD, and one of step distillation between them."""
    return [
        make_curve("ard-0", [3.0, 2.0, 1.0]),
        make_curve("step", [9.0, 5.0, 1.5], model="step", recipe="two"),
        make_curve("ard-1", [4.0, 2.5, 1.0], seed=1),
    ]


def test_students_that_differ_in_their_seed_only_are_one_arm() -> None:
    arms = arms_of(curves())
    assert [[curve.student for curve in arm] for arm in arms] == [["ard-0", "ard-1"], ["step"]]


def test_every_point_is_a_row_with_its_k() -> None:
    rows = error_rows(curves())
    assert [(row["student"], row["teacher_steps"], row["fd_teacher"]) for row in rows[:4]] == [
        ("ard-0", 0, 3.0),
        ("ard-0", 1, 2.0),
        ("ard-0", 2, 1.0),
        ("step", 0, 9.0),
    ]
    assert len(rows) == 9
    assert all(row["paired_mse"] == row["fd_teacher"] / 10 for row in rows)


def test_the_table_has_means_over_seeds_and_the_floor() -> None:
    lines = [line.split() for line in errors_table(arms_of(curves())).splitlines()]
    cells = [line[-6:] for line in lines if line and line[0] == "ard"]
    assert cells == [
        ["3.50", "±0.50", "2.25", "±0.25", "1.00", "±0.00"],
        ["0.35000", "±0.05000", "0.22500", "±0.02500", "0.10000", "±0.00000"],
    ]
    assert [line[-3:] for line in lines if line and line[0] == "step"] == [
        ["9.00", "5.00", "1.50"],
        ["0.90000", "0.50000", "0.15000"],
    ]
    assert "0.25;" in lines[-1]


def test_arms_of_different_lengths_share_a_table() -> None:
    arms = arms_of([*curves(), make_curve("kd", [7.0], model="kd", recipe="three")])
    line = next(line for line in errors_table(arms).splitlines() if line.startswith("kd"))
    assert line.split()[-1] == "7.00"


def test_two_recipes_of_one_description_are_told_apart_by_their_students() -> None:
    arms = arms_of([make_curve("short", [2.0, 1.0]), make_curve("long", [1.5, 1.0], recipe="two")])
    table = errors_table(arms)
    assert "(short)" in table
    assert "(long)" in table
    assert "(" not in errors_table(arms_of(curves()))


def test_the_figures_show_every_arm_and_the_floor() -> None:
    pytest.importorskip("matplotlib")
    picture, paired = errors_figure(arms_of(curves())), paired_figure(arms_of(curves()))
    for text in ("ard · 3 steps", "step · 3 steps"):
        assert text in picture
        assert text in paired
    assert "noise floor" in picture
    assert "noise floor" not in paired
    assert "not FID" in picture
    for k in ("0", "1", "2"):
        assert f">{k}</text>" in picture
        assert f">{k}</text>" in paired
    assert ">0.5</text>" not in picture, "k is a whole number"


# The command.

DISTILL = ["--num-steps", 3, "--batch-size", 8, "--warmup", 0, "--iterations", 3]


def run(*words: object) -> int:
    return cli.run([*map(str, words), "--device", "cpu"])


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a teacher, three students on different kinds of state, and what the command wrote into out."""
    root = tmp_path_factory.mktemp("runs")
    assert run("teach", "--model", "tiny/4", "--iterations", 6, "--batch-size", 16, "--out", root / "teacher") == 0
    collect = ["--num", 20, "--num-teacher-steps", 12, "--keep", "all", "--states", "x_t", "x_0_hat", "--workers", 1]
    assert run("collect", "--teacher", root / "teacher", "--out", root / "store", *collect) == 0
    for name, options in {"ard-0": ["--seed", 0], "ard-1": ["--seed", 1], "x0": ["--preset", "ard-x0"]}.items():
        assert run("distill", "--trajectories", root / "store", "--out", root / name, *DISTILL, *options) == 0
    return root


def students(root: Path) -> list[object]:
    return ["--student", root / "ard-0", root / "x0", root / "ard-1", "--num", 100]


@pytest.fixture(scope="module")
def analysed(runs: Path) -> list[dict[str, Any]]:
    """The rows that the command wrote."""
    pytest.importorskip("matplotlib")
    assert run("analyze", "errors", *students(runs), "--out", runs / "out") == 0
    return list(json.loads((runs / "out" / "errors.json").read_text())["rows"])


def test_the_command_measures_every_student_at_every_k(runs: Path, analysed: list[dict[str, Any]]) -> None:
    places = [(Path(row["student"]).name, row["teacher_steps"]) for row in analysed]
    assert places == [(name, k) for name in ("ard-0", "x0", "ard-1") for k in range(3)]
    assert {path.name for path in (runs / "out").iterdir()} == {
        "errors.csv",
        "errors.json",
        "errors.svg",
        "errors-paired.svg",
    }
    with (runs / "out" / "errors.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert [float(line["fd_teacher"]) for line in lines] == [row["fd_teacher"] for row in analysed]


def test_k_zero_is_the_students_row_in_ard_evaluate(runs: Path, analysed: list[dict[str, Any]]) -> None:
    assert run("evaluate", *students(runs), "--json", runs / "rows.json") == 0
    wanted = json.loads((runs / "rows.json").read_text())["rows"][-3:]
    found = [row for row in analysed if row["teacher_steps"] == 0]
    for row, want in zip(found, wanted, strict=True):
        assert {name: row[name] for name in want if not name.startswith("error_")} == {
            name: value for name, value in want.items() if not name.startswith("error_")
        }


@pytest.mark.parametrize("name", ["ard-0", "x0"])
def test_the_last_k_has_the_paired_error_of_the_teacher_forced_last_step(
    name: str, runs: Path, analysed: list[dict[str, Any]]
) -> None:
    student, card = load_student(runs / name, torch.device("cpu"))
    folder = runs / "teacher" / "evaluation" / "trajectories-evaluation"
    batch = TrajectoryReader(folder, state=card.student.state, num_steps=3).read(torch.arange(100))
    states = batch.states.float()
    images, wanted = student(states[:, :-1], batch.labels)[:, -1].clamp(-1, 1), states[:, -1].clamp(-1, 1)
    errors = [row["paired_mse"] for row in analysed if Path(row["student"]).name == name]
    assert errors[2] == pytest.approx(float((images - wanted).square().mean()), rel=1e-3)
    assert len(set(errors)) == 3, "the teacher's steps change the images"


def test_the_command_refuses_what_it_cannot_compare(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = ["--out", tmp_path / "out"]
    assert run("analyze", "errors", "--student", runs / "ard-0", "--num", 99, *out) == 2
    assert "num is 99" in capsys.readouterr().err
    assert run("analyze", "errors", "--student", runs / "teacher", *out) == 2
    assert "is no student" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_dry_run_prints_the_plan_and_writes_nothing(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--references", tmp_path / "references", "--out", tmp_path / "out", "--dry-run"]
    assert run("analyze", "errors", "--student", runs / "ard-0", *options) == 0
    assert json.loads(capsys.readouterr().out)["references"]["num"] == 1500
    assert not list(tmp_path.iterdir())
