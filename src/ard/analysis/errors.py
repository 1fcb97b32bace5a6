"""Which steps accumulate the error: the teacher takes the first k steps, the student the others (Figure 6b)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any

import torch

from ard.core.types import Latents
from ard.evaluation.evaluate import Conditions, Judge, Row, Scores, classes, number, student_row
from ard.reporting.figures import Curve, plot
from ard.reporting.table import COLUMNS, cell, describe, merge_seeds
from ard.student.folder import StudentCard
from ard.student.sampling import continue_trajectory
from ard.student.student import Student
from ard.trajectories.source import TrajectoryBatch

TITLE, X_LABEL = "The teacher takes the first steps, the student the others", "steps by the teacher"


@dataclass(frozen=True, kw_only=True)
class ErrorCurve:
    """One student's scores against k = 0 … S - 1, the number of steps that the teacher takes."""

    student: str
    rows: tuple[Row, ...]
    """The student's row in `ard evaluate` is the one for k = 0; the others have the scores for k = 1, 2, …"""


Arm = Sequence[ErrorCurve]
"""The curves of students that differ in their training seed only."""


def finished_images(
    student: Student, batch: TrajectoryBatch, *, teacher_steps: int, batch_size: int, conditions: Conditions = classes
) -> Latents:
    """Images whose first `teacher_steps` steps are the teacher's, as stored, and the others the student's."""
    images = []
    for states, label in zip(batch.states.split(batch_size), batch.labels.split(batch_size), strict=True):
        given, condition = states[:, : teacher_steps + 1].to(student.tau), conditions(label).to(student.tau.device)
        images.append(continue_trajectory(student, given, condition=condition)[:, -1].cpu())
    return torch.cat(images)


def error_curve(
    name: str,
    judge: Judge,
    student: Student,
    card: StudentCard,
    batch: TrajectoryBatch,
    *,
    batch_size: int,
    progress: Callable[[int], object],
) -> ErrorCurve:
    """The curve of one student; `batch` holds the teacher's trajectories on its grid, in its kind of state."""
    row, _ = student_row(judge, student, card, batch, batch_size=batch_size)
    progress(1)
    rows = [row]
    for teacher_steps in range(1, card.student.num_steps):
        images = finished_images(
            student, batch, teacher_steps=teacher_steps, batch_size=batch_size, conditions=judge.conditions
        )
        rows.append(replace(row, scores=judge.scores(images)))
        progress(1)
    return ErrorCurve(student=name, rows=tuple(rows))


def arms_of(curves: Sequence[ErrorCurve]) -> list[Arm]:
    """Curves of one recipe together, in order of appearance."""
    curve_of = {id(curve.rows[0]): curve for curve in curves}
    return [[curve_of[id(row)] for row in rows] for rows in merge_seeds([curve.rows[0] for curve in curves])]


def error_rows(curves: Sequence[ErrorCurve]) -> list[dict[str, Any]]:
    """Every point as plain values, with the names that `ard evaluate` gives them; k is teacher_steps."""
    rows = []
    for curve in curves:
        for teacher_steps, row in enumerate(curve.rows):
            columns = {name: value for name, value in row.plain().items() if not name.startswith("error_")}
            rows.append({"student": curve.student, "teacher_steps": teacher_steps, **columns})
    return rows


def errors_table(arms: Sequence[Arm]) -> str:
    """FD to the teacher and paired MSE against k, a line per arm; the mean over seeds ± half the range."""
    steps = max(len(arm[0].rows) for arm in arms)
    lines = []
    for column in [column for column in COLUMNS if column[0] in {"FD teacher", "paired MSE"}]:
        table = [[column[0], *(f"k = {k}" for k in range(steps))]]
        table += [[label, *(cell(_at(arm, k), column) for k in range(len(arm[0].rows)))] for label, arm in _named(arms)]
        width = max(len(line[0]) for line in table)
        lines += ["".join([line[0].ljust(width), *(text.rjust(18) for text in line[1:])]) for line in table]
        lines.append("")
    floor = arms[0][0].rows[0].scores.fd_floor
    return "\n".join(
        [*lines, f"k: how many of the first steps the teacher takes. Noise floor of FD teacher: {floor:.2f}; not FID"]
    )


def errors_figure(arms: Sequence[Arm]) -> str:
    """Figure 6b as SVG: FD to the teacher against k, with the noise floor; bars are the range over seeds."""
    floor = ("teacher (noise floor)", arms[0][0].rows[0].scores.fd_floor)
    curves = _curves(arms, lambda scores: scores.fd_teacher)
    return plot(
        curves,
        title=TITLE,
        x_label=X_LABEL,
        y_label="FD to the teacher (not FID)",
        whole_x=True,
        y_scale="linear",
        floor=floor,
    )


def paired_figure(arms: Sequence[Arm]) -> str:
    """The same for the mean squared distance to the teacher's image from the same noise."""
    curves = _curves(arms, lambda scores: number(scores.paired_mse))
    return plot(curves, title=TITLE, x_label=X_LABEL, y_label="MSE to the teacher's image", whole_x=True)


def _curves(arms: Sequence[Arm], score: Callable[[Scores], float]) -> list[Curve]:
    curves = []
    for style, (label, arm) in enumerate(_named(arms)):
        points = [[score(row.scores) for row in _at(arm, k)] for k in range(len(arm[0].rows))]
        several = len(arm) > 1
        curves.append(
            Curve(
                label=label,
                x=[float(k) for k in range(len(points))],
                y=[fmean(values) for values in points],
                style=style,
                marked=True,
                low=[min(values) for values in points] if several else (),
                high=[max(values) for values in points] if several else (),
            )
        )
    return curves


def _at(arm: Arm, teacher_steps: int) -> list[Row]:
    return [curve.rows[teacher_steps] for curve in arm]


def _named(arms: Sequence[Arm]) -> list[tuple[str, Arm]]:
    """Each arm with its description, and with its first student where two recipes have the same description."""
    words = [describe(arm[0].rows[0]) for arm in arms]
    return [
        (f"{text} ({arm[0].student})" if words.count(text) > 1 else text, arm)
        for text, arm in zip(words, arms, strict=True)
    ]
