"""Figure 6a: scores at every checkpoint; the last is the row of ard evaluate, and a kept one is not redone."""

import csv
import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import AdamW

from ard import cli
from ard.analysis import convergence
from ard.analysis.convergence import (
    Checkpoint,
    ConvergenceCurve,
    KeptScores,
    arm_labels,
    arms_of,
    convergence_figure,
    convergence_rows,
    convergence_table,
    kept_checkpoints,
    load_averaged,
    steps_to_final,
)
from ard.core.errors import InputError
from ard.evaluation.evaluate import Row, Scores
from ard.student.folder import StudentCard, load_card, load_student, save_student
from ard.student.lora import add_adapters
from ard.student.student import Student
from ard.training.state import new_state, save_checkpoint

MakeStudent = Callable[..., Student]

SHAPE = {"state": "x_t", "prediction": "solver_step", "mask": "causal", "history_blocks": 6, "history": "gated"}


def make_row(distance: float, *, step: int = 4, **changes: Any) -> Row:
    """A row with this distance to the teacher; its paired error is a tenth of it."""
    scores = {"fd_real": 20.0, "fd_floor": 0.25, "precision": 0.9, "recall": 0.8, "accuracy": 0.95}
    plain = {"model": "ard", "num_steps": 4, "nfe": 4, "recipe": "one", "seed": 0, "seconds": 1.0, **SHAPE, **changes}
    return Row(iterations=step, scores=Scores(fd_teacher=distance, paired_mse=distance / 10, **scores), **plain)


def make_curve(name: str, distances: dict[int, float], **changes: Any) -> ConvergenceCurve:
    """A curve with these distances by step."""
    rows = tuple(make_row(distance, step=step, **changes) for step, distance in distances.items())
    return ConvergenceCurve(student=name, rows=rows)


STEP = {"model": "step", "mask": "diagonal", "history_blocks": 0, "recipe": "two"}


def curves() -> list[ConvergenceCurve]:
    """Two seeds of ARD, of which the second kept fewer checkpoints, and one of step distillation between them."""
    return [
        make_curve("runs/ard-0", {2: 9.0, 4: 3.0, 6: 2.0}),
        make_curve("runs/step", {2: 12.0, 6: 5.0}, **STEP),
        make_curve("runs/ard-1", {4: 5.0, 6: 2.5}, seed=1),
    ]


def test_seeds_of_one_recipe_are_one_arm_at_the_steps_that_all_of_them_kept() -> None:
    ard, step = arms_of(curves())
    assert (ard.student, ard.steps) == ("runs/ard-0", (4, 6))
    assert [[row.seed for row in rows] for rows in ard.rows] == [[0, 1], [0, 1]]
    assert ard.mean(lambda scores: scores.fd_teacher) == [4.0, 2.25]
    assert (step.student, step.steps) == ("runs/step", (2, 6))


def test_seeds_without_a_common_step_are_refused() -> None:
    with pytest.raises(InputError, match=r"^a, b are seeds of one recipe .* no checkpoint of the same step"):
        arms_of([make_curve("a", {2: 1.0}), make_curve("b", {4: 1.0}, seed=1)])


@pytest.mark.parametrize(
    ("distances", "step"),
    [
        ([2.0, 2.0, 2.0], 10),  # There from the beginning.
        ([9.0, 2.19, 2.0], 20),
        ([9.0, 2.21, 2.0], 30),
        ([9.0, 2.1, 2.3, 2.2, 2.0], 40),  # Near it at 20, but not to stay.
        ([9.0, 1.0, 2.0], 20),  # Below it is near enough.
    ],
)
def test_a_run_has_come_within_ten_per_cent_when_it_stays_there(distances: list[float], step: int) -> None:
    by_step = {10 * (place + 1): distance for place, distance in enumerate(distances)}
    (arm,) = arms_of([make_curve("one", by_step)])
    assert steps_to_final(arm) == step


def test_a_label_has_mask_n_and_states_and_what_else_differs() -> None:
    assert arm_labels(arms_of(curves())) == ["M4 causal, N = 6, x_t", "M1 diagonal, N = 0, x_t"]
    other = make_curve("runs/x0", {2: 1.0}, recipe="three", state="x_0_hat", prediction="next_state", history="shared")
    assert arm_labels(arms_of([*curves(), other])) == [
        "M4 causal, N = 6, x_t, solver_step, gated",
        "M1 diagonal, N = 0, x_t, solver_step",
        "M4 causal, N = 6, x_0_hat, next_state, shared",
    ]
    longer = make_curve("runs/s8", {2: 1.0}, recipe="four", num_steps=8, mask="window")
    assert arm_labels(arms_of([longer, *curves()]))[:2] == [
        "M2 window, N = 6, x_t, S = 8",
        "M4 causal, N = 6, x_t, S = 4",
    ]


def test_two_recipes_of_one_label_are_told_apart_by_their_students() -> None:
    arms = arms_of([*curves(), make_curve("runs/slow", {2: 1.0}, recipe="three")])
    assert arm_labels(arms)[0] == "M4 causal, N = 6, x_t (ard-0)"
    assert arm_labels(arms)[2] == "M4 causal, N = 6, x_t (slow)"


def test_every_checkpoint_is_a_row() -> None:
    rows = convergence_rows(curves())
    assert [(row["student"], row["iterations"], row["seed"], row["fd_teacher"]) for row in rows] == [
        ("runs/ard-0", 2, 0, 9.0),
        ("runs/ard-0", 4, 0, 3.0),
        ("runs/ard-0", 6, 0, 2.0),
        ("runs/step", 2, 0, 12.0),
        ("runs/step", 6, 0, 5.0),
        ("runs/ard-1", 4, 1, 5.0),
        ("runs/ard-1", 6, 1, 2.5),
    ]
    assert not [name for name in rows[0] if name.startswith("error")]


def test_the_table_has_the_last_point_and_the_iterations_to_come_near_it() -> None:
    _, _, ard, step, floor = convergence_table(arms_of(curves())).splitlines()
    assert ard.split("x_t")[1].split() == ["2", "6", "2.25", "±0.25", "0.22500", "±0.02500", "6"]
    assert step.split("x_t")[1].split() == ["1", "6", "5.00", "0.50000", "6"]
    assert "0.25;" in floor


def test_the_figure_shows_both_scores_every_arm_and_the_floor() -> None:
    pytest.importorskip("matplotlib")
    picture = convergence_figure(arms_of(curves()))
    for text in ("M4 causal, N = 6, x_t", "M1 diagonal", "noise floor", "training iterations", "not FID", "MSE to the"):
        assert text in picture


# Checkpoints.


def save_checkpoints(folder: Path, student: nn.Module, steps: list[int]) -> None:
    """Checkpoints of a student whose average is twice its weights."""
    state = new_state(student, AdamW(student.parameters()))
    for value in state.average:
        value *= 2
    for step in steps:
        state.step, state.seconds = step, step / 10
        save_checkpoint(folder / "checkpoints", state, keep=0)


def test_checkpoints_are_found_in_the_order_of_their_steps(make_student: MakeStudent, tmp_path: Path) -> None:
    save_checkpoints(tmp_path, make_student(num_steps=2), [5, 100, 20])
    (tmp_path / "checkpoints" / "step-best.safetensors").write_bytes(b"no checkpoint")
    found = kept_checkpoints(tmp_path)
    assert [(one.step, one.seconds) for one in found] == [(5, 0.5), (20, 2.0), (100, 10.0)]
    assert len({one.checksum for one in found}) == 1, "the same weights"


@pytest.mark.parametrize(("steps", "told"), [([], "has no checkpoints"), ([5], "has only 1 checkpoint,")])
def test_fewer_than_two_checkpoints_are_refused_with_the_way_to_keep_them(
    steps: list[int], told: str, make_student: MakeStudent, tmp_path: Path
) -> None:
    save_checkpoints(tmp_path, make_student(num_steps=2), steps)
    with pytest.raises(InputError, match=r"ard distill --keep-checkpoints 0 --checkpoint-every 100") as refused:
        kept_checkpoints(tmp_path)
    assert told in str(refused.value)


def test_the_averaged_weights_of_a_checkpoint_are_loaded(make_student: MakeStudent, tmp_path: Path) -> None:
    student = make_student(num_steps=2)
    save_checkpoints(tmp_path, student, [5, 6])
    other = make_student(num_steps=2, fresh=True)
    load_averaged(other, kept_checkpoints(tmp_path)[0])
    for (name, value), (_, loaded) in zip(student.named_parameters(), other.named_parameters(), strict=True):
        assert torch.equal(loaded, 2 * value), name


def test_checkpoints_that_hold_adapters_only_are_refused_and_not_called_another_networks(
    make_student: MakeStudent, tmp_path: Path
) -> None:
    student = make_student(num_steps=2).requires_grad_(True)
    add_adapters(student, rank=1, alpha=1.0, generator_of=lambda _: torch.Generator().manual_seed(0))
    for step in (5, 6):
        save_checkpoint(tmp_path / "checkpoints", new_state(student, AdamW(student.parameters())), keep=0)
        (tmp_path / "checkpoints" / "step-0000000.safetensors").rename(
            tmp_path / f"checkpoints/step-{step:07}.safetensors"
        )
    with pytest.raises(InputError, match=r"step-0000005\.safetensors holds adapters only; .* without --lora-rank$"):
        kept_checkpoints(tmp_path)


def test_damaged_checkpoints_and_those_of_another_network_are_refused(
    make_student: MakeStudent, tmp_path: Path
) -> None:
    student = make_student(num_steps=2)
    save_checkpoints(tmp_path, student, [5, 6, 7])
    first, second, third = kept_checkpoints(tmp_path)
    with pytest.raises(InputError, match="of another network"):
        load_averaged(make_student(num_steps=3), first)
    content = bytearray(second.path.read_bytes())
    content[-5] ^= 1
    second.path.write_bytes(content)
    with pytest.raises(InputError, match=r"step-0000006\.safetensors is damaged: its checksum"):
        load_averaged(student, second)
    third.path.write_bytes(content[: len(content) // 2])
    with pytest.raises(InputError, match=r"step-0000007\.safetensors is damaged .*; delete it"):
        kept_checkpoints(tmp_path)


# Scores that are kept.

CHECKPOINT = Checkpoint(path=Path("step-4"), step=4, seconds=1.0, checksum="abc")
JUDGED = {"teacher": "t", "judge": {"measured_on": "x", "fd_floor": 0.25, "fd_real_floor": 7.0}, "num": 100}


@pytest.fixture
def card(runs: Path) -> StudentCard:
    return load_card(runs / "ard-0")


def asked_again(path: Path, card: StudentCard, checkpoint: Checkpoint, **judged: Any) -> bool:
    """Whether a row must be evaluated."""
    asked = []

    def evaluate() -> Row:
        asked.append(checkpoint.step)
        return make_row(3.0)

    row = KeptScores(path, **{**JUDGED, **judged}).row(card, checkpoint, evaluate)
    assert row == make_row(3.0)
    return bool(asked)


def test_a_row_is_evaluated_once_and_kept_in_the_file(card: StudentCard, tmp_path: Path) -> None:
    path = tmp_path / "convergence.json"
    assert asked_again(path, card, CHECKPOINT)
    assert not asked_again(path, card, CHECKPOINT)
    assert len(json.loads(path.read_text())["entries"]) == 1


@pytest.mark.parametrize(
    "changes",
    [
        {"teacher": "u"},
        {"num": 101},
        {"judge": {**JUDGED["judge"], "fd_floor": 0.26}},
        {"judge": {**JUDGED["judge"], "measured_on": "y"}},
        {"judge": {**JUDGED["judge"], "fd_real_floor": 8.0}},
        {"card": {"recipe": "another"}},
        {"card": {"seed": 9}},
        {"checkpoint": {"step": 5}},
        {"checkpoint": {"checksum": "abd"}},
    ],
    ids=str,
)
def test_whatever_changes_a_score_has_it_evaluated_again(
    changes: dict[str, Any], card: StudentCard, tmp_path: Path
) -> None:
    path = tmp_path / "convergence.json"
    asked_again(path, card, CHECKPOINT)
    judged = {name: value for name, value in changes.items() if name in JUDGED}
    other_card = dataclasses.replace(card, **changes.get("card", {}))
    other = dataclasses.replace(CHECKPOINT, **changes.get("checkpoint", {}))
    assert asked_again(path, other_card, other, **judged)
    assert not asked_again(path, card, CHECKPOINT), "the old one stays"


def test_a_moved_folder_keeps_its_scores(card: StudentCard, tmp_path: Path) -> None:
    path = tmp_path / "convergence.json"
    asked_again(path, card, CHECKPOINT)
    assert not asked_again(path, card, dataclasses.replace(CHECKPOINT, path=Path("moved")))


@pytest.mark.parametrize("content", ["{}", '{"entries": [1]}', '{"entries": [{"identity": {}}]}'])
def test_damaged_scores_are_refused(content: str, tmp_path: Path) -> None:
    path = tmp_path / "convergence.json"
    path.write_text(content)
    with pytest.raises(InputError, match=r"convergence.json is damaged or of another version of ard; delete it"):
        KeptScores(path, **JUDGED)


# The command.

DISTILL = ["--num-steps", 3, "--batch-size", 8, "--warmup", 0, "--iterations", 6]
KEPT = ["--checkpoint-every", 2, "--keep-checkpoints", 0]


def run(*words: object) -> int:
    return cli.run([*map(str, words), "--device", "cpu"])


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a teacher, two seeds of a student with checkpoints, and one student without."""
    root = tmp_path_factory.mktemp("runs")
    assert run("teach", "--model", "tiny/4", "--iterations", 6, "--batch-size", 16, "--out", root / "teacher") == 0
    collect = ["--num", 20, "--num-teacher-steps", 12, "--keep", "all", "--workers", 1]
    assert run("collect", "--teacher", root / "teacher", "--out", root / "store", *collect) == 0
    for name, options in {"ard-0": KEPT, "ard-1": [*KEPT, "--seed", 1], "last": []}.items():
        assert run("distill", "--trajectories", root / "store", "--out", root / name, *DISTILL, *options) == 0
    return root


def students(root: Path) -> list[object]:
    return ["--student", root / "ard-0", root / "ard-1", "--num", 100]


@pytest.fixture(scope="module")
def analysed(runs: Path) -> list[dict[str, Any]]:
    """The rows that the command wrote."""
    pytest.importorskip("matplotlib")
    rows = runs / "rows.json"
    assert run("analyze", "convergence", *students(runs), "--out", runs / "out", "--json", rows) == 0
    return list(json.loads(rows.read_text())["rows"])


def test_the_command_measures_every_checkpoint(runs: Path, analysed: list[dict[str, Any]]) -> None:
    places = [(Path(row["student"]).name, row["iterations"]) for row in analysed]
    assert places == [(name, step) for name in ("ard-0", "ard-1") for step in (2, 4, 6)]
    assert len({row["paired_mse"] for row in analysed}) == 6
    names = {path.name for path in (runs / "out").iterdir()}
    assert names == {"convergence.csv", "convergence.json", "convergence.svg"}
    with (runs / "out" / "convergence.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert [float(line["fd_teacher"]) for line in lines] == [row["fd_teacher"] for row in analysed]


def test_the_last_checkpoint_is_the_students_row_in_ard_evaluate(runs: Path, analysed: list[dict[str, Any]]) -> None:
    assert run("evaluate", *students(runs), "--json", runs / "evaluated.json") == 0
    wanted = json.loads((runs / "evaluated.json").read_text())["rows"][-2:]
    for row, want in zip([analysed[2], analysed[5]], wanted, strict=True):
        for name, value in want.items():
            if not name.startswith("error_") and name != "seconds":
                assert row[name] == value, name
        assert row["seconds"] == pytest.approx(want["seconds"])


def test_a_checkpoint_is_evaluated_with_its_own_weights(runs: Path, analysed: list[dict[str, Any]]) -> None:
    """The published student with the weights of a checkpoint, in a folder of its own, has the checkpoint's scores."""
    copy = shutil.copytree(runs / "ard-0", runs / "early")
    student, card = load_student(runs / "ard-0", torch.device("cpu"))
    load_averaged(student, kept_checkpoints(runs / "ard-0")[0])
    save_student(copy, card, student.state_dict())
    assert run("evaluate", "--student", copy, "--num", 100, "--json", runs / "early.json") == 0
    row = json.loads((runs / "early.json").read_text())["rows"][-1]
    assert row["paired_mse"] == analysed[0]["paired_mse"] != analysed[2]["paired_mse"]


def test_running_again_evaluates_what_is_new_only(
    runs: Path, analysed: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluated: list[int] = []

    def counted(judge: Any, student: Any, card: StudentCard, batch: Any, *, batch_size: int) -> tuple[Row, Tensor]:
        evaluated.append(card.iterations)
        return original(judge, student, card, batch, batch_size=batch_size)

    original = convergence.student_row
    monkeypatch.setattr(convergence, "student_row", counted)
    arguments = ["analyze", "convergence", *students(runs), "--out", runs / "out", "--json", runs / "again.json"]
    assert run(*arguments) == 0
    assert evaluated == []
    assert json.loads((runs / "again.json").read_text())["rows"] == analysed
    kept = json.loads((runs / "out" / "convergence.json").read_text())["entries"]
    (runs / "out" / "convergence.json").write_text(json.dumps({"entries": kept[:1] + kept[2:]}))
    assert run(*arguments) == 0
    assert evaluated == [4]
    assert json.loads((runs / "again.json").read_text())["rows"] == analysed


def test_the_command_refuses_what_has_no_curve(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = ["--out", tmp_path / "out"]
    assert run("analyze", "convergence", "--student", runs / "ard-0", runs / "last", *out) == 2
    line = capsys.readouterr().err
    assert "has only 1 checkpoint, and a curve needs two; train with ard distill --keep-checkpoints 0" in line
    assert line.count("\n") == 1
    assert run("analyze", "convergence", "--student", runs / "teacher", *out) == 2
    assert "is no student" in capsys.readouterr().err
    assert run("analyze", "convergence", "--student", runs / "ard-0", "--num", 99, *out) == 2
    assert "num is 99" in capsys.readouterr().err
    assert run("analyze", "convergence", *out, "--student") == 2
    assert "--student is empty" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_dry_run_prints_the_plan_and_writes_nothing(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--references", tmp_path / "references", "--out", tmp_path / "out", "--dry-run"]
    assert run("analyze", "convergence", "--student", runs / "ard-0", *options) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["checkpoints"] == {str(runs / "ard-0"): [2, 4, 6]}
    assert not list(tmp_path.iterdir())
