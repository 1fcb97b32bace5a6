"""Score against training iterations, from the checkpoints that a student kept (Figure 6a)."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from ard.analysis.labels import short_labels
from ard.core.errors import InputError
from ard.core.model_folder import checksum, read_weights
from ard.core.result_cache import Kept
from ard.evaluation.evaluate import Judge, Row, Scores, number, student_row
from ard.reporting.figures import Curve, Panel, plot_panels
from ard.reporting.table import COLUMNS, as_text, cell, floor_note, merge_seeds
from ard.student.folder import StudentCard
from ard.student.lora import A as ADAPTER
from ard.student.student import Student
from ard.training.state import DamagedCheckpointError, checkpoints, read_note
from ard.trajectories.source import TrajectoryBatch

HOW_TO_KEEP = "train with ard distill --keep-checkpoints 0 --checkpoint-every 100 to keep them"
NEAR = 1.1  # Within 10 % of the final distance.


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A checkpoint of a training run, without its tensors."""

    path: Path
    step: int
    seconds: float
    """Training time so far."""
    checksum: str


@dataclass(frozen=True, kw_only=True)
class ConvergenceCurve:
    """One student's rows of `ard evaluate`, one per checkpoint, oldest first."""

    student: str
    rows: tuple[Row, ...]


@dataclass(frozen=True, kw_only=True)
class Arm:
    """Students that differ in their training seed only, at the checkpoints that all of them kept."""

    student: str
    """The first of them."""
    steps: tuple[int, ...]
    rows: tuple[tuple[Row, ...], ...]
    """For each of `steps`, a row per seed."""

    def mean(self, score: Callable[[Scores], float]) -> list[float]:
        """The mean over seeds at every step."""
        return [fmean(score(row.scores) for row in seeds) for seeds in self.rows]


def kept_checkpoints(folder: Path) -> list[Checkpoint]:
    """The checkpoints of the student in `folder`, oldest first; InputError for fewer than two or a damaged one."""
    paths = checkpoints(folder / "checkpoints")
    if len(paths) < 2:
        there = f"only {len(paths)}" if paths else "no"
        raise InputError(f"{folder} has {there} checkpoint{'s' * (not paths)}, and a curve needs two; {HOW_TO_KEEP}")
    return [_read_note(path) for path in paths]


def load_averaged(student: Student, checkpoint: Checkpoint) -> None:
    """Give `student` the averaged weights of a checkpoint: what would have been published at its step."""
    tensors = read_weights(checkpoint.path)
    if checksum(tensors) != checkpoint.checksum:
        raise InputError(f"{checkpoint.path} is damaged: its checksum does not match; delete it to leave it out")
    prefix = "average."
    weights = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
    try:
        student.load_state_dict(weights)
    except RuntimeError:
        raise InputError(f"{checkpoint.path} is of another network; delete it to leave it out") from None


class KeptScores:
    """convergence.json: the row of every checkpoint evaluated so far, so that only new ones are evaluated.

    A row is used again for the same recipe, seed, iterations, weights, number of samples and teacher, and when the
    `judge`, its identity, is the same.
    """

    def __init__(self, path: Path, *, teacher: str, judge: Mapping[str, Any], num: int) -> None:
        self.kept = Kept(path)
        self.judged = {"teacher": teacher, "num": num, **judge}

    def row(self, card: StudentCard, checkpoint: Checkpoint, evaluate: Callable[[], Row]) -> Row:
        """The kept row, or the one that `evaluate` makes, which is then kept."""
        identity = {
            **self.judged,
            "recipe": card.recipe,
            "seed": card.seed,
            "iterations": checkpoint.step,
            "checksum": checkpoint.checksum,
        }
        return Row.from_plain(self.kept.get(identity, lambda: evaluate().plain()))


def convergence_curve(
    name: str,
    judge: Judge,
    student: Student,
    card: StudentCard,
    batch: TrajectoryBatch,
    found: Sequence[Checkpoint],
    kept: KeptScores,
    *,
    batch_size: int,
    progress: Callable[[int], object],
) -> ConvergenceCurve:
    """The curve of one student; `batch` holds the teacher's trajectories on its grid, in its kind of state."""
    rows = []
    for checkpoint in found:
        facts = replace(card, iterations=checkpoint.step, seconds=checkpoint.seconds)

        def evaluate(checkpoint: Checkpoint = checkpoint, facts: StudentCard = facts) -> Row:
            load_averaged(student, checkpoint)
            return student_row(judge, student, facts, batch, batch_size=batch_size)[0]

        rows.append(kept.row(card, checkpoint, evaluate))
        progress(1)
    return ConvergenceCurve(student=name, rows=tuple(rows))


def arms_of(curves: Sequence[ConvergenceCurve]) -> list[Arm]:
    """Curves of one recipe together, in order of appearance; InputError when they share no step."""
    curve_of = {id(curve.rows[-1]): curve for curve in curves}
    return [_arm([curve_of[id(row)] for row in rows]) for rows in merge_seeds([curve.rows[-1] for curve in curves])]


def steps_to_final(arm: Arm) -> int:
    """The iterations from which on the mean FD to the teacher is at most 10 % above that of the last checkpoint."""
    distances = arm.mean(lambda scores: scores.fd_teacher)
    far = [index for index, distance in enumerate(distances) if distance > NEAR * distances[-1]]
    return arm.steps[far[-1] + 1 if far else 0]


def convergence_rows(curves: Sequence[ConvergenceCurve]) -> list[dict[str, Any]]:
    """Every point as plain values, with the names that `ard evaluate` gives them."""
    return [
        {"student": curve.student, **{name: value for name, value in row.plain().items() if "error_" not in name}}
        for curve in curves
        for row in curve.rows
    ]


def convergence_table(arms: Sequence[Arm]) -> str:
    """The last point of every arm, and the iterations that it needed; the mean over seeds ± half the range."""
    columns = [column for column in COLUMNS if column[0] in {"FD teacher", "paired MSE"}]
    header = ["student", "seeds", "iterations", *(name for name, _, _ in columns), "within 10 % of final FD after"]
    body = [
        [
            label,
            str(len(arm.rows[-1])),
            str(arm.steps[-1]),
            *(cell(arm.rows[-1], column) for column in columns),
            str(steps_to_final(arm)),
        ]
        for label, arm in zip(arm_labels(arms), arms, strict=True)
    ]
    return f"{as_text(header, body)}\n{floor_note(arms[0].rows[0][0].scores)}"


def convergence_figure(arms: Sequence[Arm]) -> str:
    """Figure 6a as SVG: FD to the teacher with the noise floor, and paired MSE; bars are the range over seeds."""
    floor = ("teacher (noise floor)", arms[0].rows[0][0].scores.fd_floor)
    panels = [
        _panel("FD to the teacher (not FID)", arms, lambda scores: scores.fd_teacher, floor),
        _panel("MSE to the teacher's image", arms, lambda scores: number(scores.paired_mse), None),
    ]
    return plot_panels([[panel] for panel in panels], x_label="training iterations", whole_x=False, legend_columns=2)


def arm_labels(arms: Sequence[Arm]) -> list[str]:
    """Short labels, with the name of its first student where an arm has the same as another."""
    labels = short_labels([arm.rows[-1][0] for arm in arms], with_steps=True)
    return [
        f"{label} ({Path(arm.student).name})" if labels.count(label) > 1 else label
        for label, arm in zip(labels, arms, strict=True)
    ]


def _panel(name: str, arms: Sequence[Arm], score: Callable[[Scores], float], floor: tuple[str, float] | None) -> Panel:
    curves = []
    for style, (label, arm) in enumerate(zip(arm_labels(arms), arms, strict=True)):
        ranges = [[score(row.scores) for row in seeds] for seeds in arm.rows] if len(arm.rows[0]) > 1 else []
        curves.append(
            Curve(
                label=label,
                x=[float(step) for step in arm.steps],
                y=arm.mean(score),
                style=style,
                marked=True,
                low=[min(values) for values in ranges],
                high=[max(values) for values in ranges],
            )
        )
    return Panel(title="", y_label=name, curves=curves, floor=floor)


def _arm(curves: Sequence[ConvergenceCurve]) -> Arm:
    """Seeds of one recipe, at the steps that they have in common."""
    rows = [{row.iterations: row for row in curve.rows} for curve in curves]
    steps = sorted(set.intersection(*(set(by_step) for by_step in rows)))
    if not steps:
        names = ", ".join(curve.student for curve in curves)
        raise InputError(f"{names} are seeds of one recipe and kept no checkpoint of the same step; analyze them apart")
    seeds = tuple(tuple(by_step[step] for by_step in rows) for step in steps)
    return Arm(student=curves[0].student, steps=tuple(steps), rows=seeds)


def _read_note(path: Path) -> Checkpoint:
    """What a checkpoint says of itself."""
    try:
        note, names = read_note(path)
    except DamagedCheckpointError as error:
        raise InputError(f"{error}; delete it to leave it out") from None
    if any(name.endswith(ADAPTER) for name in names):
        raise InputError(f"{path} holds adapters only; a curve needs a student trained without --lora-rank")
    return Checkpoint(path=path, step=note.step, seconds=note.seconds, checksum=note.crc32)
