"""The demonstration: its plan parses and compares like with like, its sentences follow from the rows."""

from pathlib import Path
from typing import Any

from ard import cli
from ard.cli.distill import Distill
from ard.evaluation.evaluate import Row, Scores
from ard.studies.demo import ARMS, FURTHER_ARMS, DemoConfig, findings, further_students_of, plan, students_of

ADVERSARIAL = DemoConfig(adversarial=True, further_iterations=300)


def row(loss: str | None, *, model: str = "ard", seed: int | None = 0, **scores: float) -> Row:
    numbers = {"fd_teacher": 2.0, "fd_real": 20.0, "fd_floor": 1.0, "paired_mse": 0.1, "precision": 0.5, "recall": 0.5}
    kind: dict[str, Any] = {"state": "x_t", "prediction": "solver_step"} if loss else {}
    made = Scores(**{**numbers, "accuracy": 1.0, **scores})
    return Row(model=model, num_steps=2, nfe=2, loss=loss, seed=seed, iterations=1, seconds=0.0, scores=made, **kind)


def test_the_adversarial_stage_is_added_when_it_is_asked_for() -> None:
    assert further_students_of(DemoConfig()) == []
    assert [name for name, _ in plan(ADVERSARIAL)][:-1] == [name for name, _ in plan(DemoConfig())]
    assert len(students_of(ADVERSARIAL)) == 2 * len(ARMS)


def test_r_and_r_plus_d_go_on_from_the_same_students_for_as_many_updates(tmp_path: Path) -> None:
    stages = further_students_of(ADVERSARIAL)
    made: list[Distill] = [cli.parse("distill", stage.command(tmp_path)[1:]) for stage in stages]
    starts = {tmp_path / stage.folder for stage in students_of(ADVERSARIAL)}
    judged, plain = ([one for one in made if one.adversarial is wanted] for wanted in (True, False))
    assert [one.resume_from for one in judged] == [one.resume_from for one in plain]
    assert {one.resume_from for one in made} < starts
    assert len(judged) == len({one.resume_from for one in judged}) == 2 * len(FURTHER_ARMS)
    assert {one.train.iterations for one in made} == {300}


def test_a_start_that_was_trained_otherwise_is_another_stage() -> None:
    longer = DemoConfig(adversarial=True, further_iterations=300, student_iterations=7)
    pairs = zip(further_students_of(ADVERSARIAL), further_students_of(longer), strict=True)
    assert all(one.arguments == other.arguments and one.note != other.note for one, other in pairs)


def test_the_sentences_of_the_adversarial_stage_stand_beside_the_teacher() -> None:
    teacher = row(None, model="teacher", fd_real=18.0, recall=0.7)
    start = row("R", seed=0)
    judged = [row("then R + D", seed=seed, fd_real=fd) for seed, fd in enumerate((10.0, 12.0))]
    plain = [row("then R", seed=seed, fd_real=19.0) for seed in range(2)]
    assert len(findings([teacher, start])) == 1, "nothing of a stage that there was not"
    sentence = findings([teacher, start, *judged, *plain])[-1]
    assert "ard, trained further" in sentence
    assert "FD real 11.0 and 19.0 (teacher 18.0)" in sentence
    assert "(0.700)" in sentence
