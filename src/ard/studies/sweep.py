"""A sweep: every cell of a grid is trained once on one trajectory store, all are compared in one table and figure."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from ard.core.config import to_plain
from ard.core.devices import DeviceName, resolve_device
from ard.core.errors import InputError
from ard.core.files import write_atomically, write_json
from ard.core.progress import progress_bar
from ard.core.result_cache import Kept
from ard.evaluation.evaluate import Row, Scores, number, paired_error, run_student, student_row
from ard.evaluation.references import (
    Comparison,
    References,
    collect_batch,
    prepare_comparison,
    read_batch,
    teacher_rows,
)
from ard.reporting.figures import COLOURS, Curve, Panel, plot_panels
from ard.reporting.table import COLUMNS, as_markdown, cell
from ard.student.decoding import space_of_student
from ard.student.folder import StudentCard, find_text, load_student
from ard.student.history import HistoryMask
from ard.student.student import Student
from ard.studies.grid import Cell, Grid
from ard.studies.stages import run_missing
from ard.teacher.teacher import load_teacher
from ard.text.encoded import condition_of, open_referred
from ard.trajectories.manifest import load_manifest

TUNING_SEED = 5_000_000  # Noises that neither training nor evaluation uses.
NUM_TUNING = 1000
BATCH_SIZE = 256  # Images drawn together.
SHOWN = tuple(column for column in COLUMNS if column[0] in {"FD teacher", "paired MSE", "precision", "recall"})


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a sweep lies, what it learns from and what it is compared with."""

    out: Path
    """Folder of the students, of the tuning trajectories and of the results."""
    store: Path
    """Training trajectories."""
    teacher: Path
    references: References
    device: DeviceName
    jobs: int

    def train(self, cells: Sequence[Cell], title: str, *, checkpoint_every: int = 0, tolerant: bool = False) -> None:
        """Train the cells that are missing; `tolerant` goes on when one of them fails."""
        manifest, _ = load_manifest(self.store)
        inputs = f"{manifest.identity} {manifest.num}"
        stages = [
            cell.stage(self.store, self.teacher, inputs=inputs, checkpoint_every=checkpoint_every) for cell in cells
        ]
        run_missing(self.out, stages, device=self.device, jobs=self.jobs, title=title, tolerant=tolerant)


@dataclass(frozen=True)
class Result:
    """A trained cell and its numbers."""

    cell: Cell
    row: Row


@dataclass(frozen=True)
class Results:
    """A whole sweep: the teacher's rows (itself, and untrained on each grid) and every cell's."""

    teacher: list[Row]
    cells: list[Result]

    @property
    def scores(self) -> Scores:
        """The teacher's, whose notes are those of every row."""
        return self.teacher[0].scores

    def groups(self) -> list[list[Result]]:
        """The results that differ in their seed only, together, in order of appearance."""
        groups: dict[str, list[Result]] = {}
        for result in self.cells:
            groups.setdefault(result.cell.group, []).append(result)
        return list(groups.values())


def tune(place: Place, grid: Grid, depth: int, *, checkpoint_every: int) -> dict[str, float]:
    """Each arm's learning rate: of several, the one with the least error to the teacher on separate trajectories.

    A trial that fails, because its loss is no number any more, has an infinite error.
    """
    if len(grid.learning_rates) < 2:
        return grid.default_rates(depth)
    trials = grid.trials(depth)
    place.train(trials, "tuning", checkpoint_every=checkpoint_every, tolerant=True)
    manifest = load_manifest(place.store)[0]
    device = resolve_device(place.device)
    store, teacher = place.out / "trajectories-tuning", load_teacher(place.teacher, device)
    collect_batch(
        store,
        place.teacher,
        teacher,
        manifest.ode,
        num=NUM_TUNING,
        first_seed=TUNING_SEED,
        whole=True,
        text=open_referred(manifest.text, place.store) if manifest.text else None,
        device=device,
    )
    kept, errors = Kept(place.out / "tuning.json"), {}
    judged = {"teacher": teacher.hash, "seed": TUNING_SEED, "num": NUM_TUNING}
    with progress_bar(len(trials), "tuning scores", unit="run") as bar:
        for cell in trials:
            folder = place.out / cell.name
            if (folder / "config.json").exists():
                measure = partial(_tuning_error, folder, store, device)
                errors[cell] = kept.get(_identity(cell, folder, judged), measure)
            bar.update()
    if failed := {cell.design.arm for cell in trials} - {cell.design.arm for cell in errors}:
        raise InputError(f"every learning rate failed for {min(failed)} (see above); give smaller ones")
    ranked = sorted(errors, key=lambda cell: errors[cell], reverse=True)
    return {cell.design.arm: cell.learning_rate for cell in ranked}  # The last of an arm is its best.


def evaluate_cells(place: Place, cells: Sequence[Cell]) -> Results:
    """The rows of all cells; what was evaluated before is kept in rows.json."""
    device, folders = resolve_device(place.device), [place.out / cell.name for cell in cells]
    comparison = prepare_comparison(folders, place.teacher, place.references, device=device)
    kept = Kept(place.out / "rows.json")
    judged = {
        "teacher": comparison.teacher.hash,
        "num": place.references.num,
        **comparison.judge.identity,
    }
    results = []
    with progress_bar(len(cells), "evaluate", unit="run") as bar:
        for cell, folder, (student, card) in zip(cells, folders, comparison.students, strict=True):
            measure = partial(_plain_row, comparison, student, card)
            results.append(Result(cell, Row.from_plain(kept.get(_identity(cell, folder, judged), measure))))
            bar.update()
    teacher = [row for row, _ in teacher_rows(comparison, place.teacher, batch_size=BATCH_SIZE)]
    return Results(teacher, results)


def run_sweep(place: Place, grid: Grid, *, depth: int, checkpoint_every: int = 0) -> Results:
    """Tune, train and evaluate what is missing, and publish results.json, table.md and sweep.svg."""
    rates = tune(place, grid, depth, checkpoint_every=checkpoint_every)
    cells = grid.cells(depth, rates)
    place.train(cells, "students", checkpoint_every=checkpoint_every)
    results = evaluate_cells(place, cells)
    write_results(place.out, results, {"grid": to_plain(grid), "learning_rates": rates})
    return results


def write_results(out: Path, results: Results, facts: dict[str, Any]) -> None:
    """Publish the numbers as results.json, the table as table.md and the figure as sweep.svg."""
    cells = [{"cell": to_plain(result.cell), "row": result.row.plain()} for result in results.cells]
    teacher = [row.plain() for row in results.teacher]
    write_json(out / "results.json", {**facts, "floor": results.scores.fd_floor, "teacher": teacher, "cells": cells})
    write_atomically(out / "table.md", (as_markdown(HEADER, body_of(results)) + "\n").encode())
    write_atomically(out / "sweep.svg", sweep_figure(results).encode())


HEADER = ("model", "S", "state", "prediction", "mask", "N", "history", "own", "rate", "NFE", *(c[0] for c in SHOWN))


def body_of(results: Results) -> list[list[str]]:
    """The table's lines: the teacher, its untrained runs, and the cells, seeds merged to mean ± half the range."""
    lines = [
        [row.model, str(row.num_steps), *["–"] * 7, str(row.nfe), *(cell([row], column) for column in SHOWN)]
        for row in results.teacher
    ]
    for group in results.groups():
        one, row = group[0].cell, group[0].row
        reads = bool(one.design.student.history_blocks)
        facts = [row.model, str(row.num_steps), str(row.state), str(row.prediction), str(row.mask)]
        facts += [str(row.history_blocks), str(row.history) if reads else "–", f"{one.design.own_history:g}"]
        facts += [f"{one.learning_rate:g}", str(row.nfe)]
        lines.append([*facts, *(cell([result.row for result in group], column) for column in SHOWN)])
    return lines


def sweep_figure(results: Results) -> str:
    """Two rows of panels, distance and paired error, over N where it varies, else over S; a panel per kind of state
    and prediction, the range over seeds as bars. Step distillation is N = 0, one step is in every panel of its
    prediction, and with two steps M2, M3 and M4 are one student.
    """
    sizes = {group[0].row.history_blocks for group in results.groups()} - {0}
    over_blocks = len(sizes) > 1
    groups = results.groups()
    kinds = dict.fromkeys(
        (group[0].row.state, group[0].row.prediction) for group in groups if group[0].row.num_steps > 1
    )
    panels = {
        kind: [group for group in groups if _belongs(group[0].row, kind)]
        for kind in kinds or dict.fromkeys((group[0].row.state, group[0].row.prediction) for group in groups)
    }
    rows = [
        [
            Panel(
                title=f"{state}, {prediction}",
                y_label=name,
                curves=_curves(groups, value, over_blocks=over_blocks),
                floor=("noise floor", results.scores.fd_floor) if name == SHOWN[0][0] else None,
            )
            for (state, prediction), groups in panels.items()
        ]
        for name, value, _ in (SHOWN[0], SHOWN[1])
    ]
    return plot_panels(rows, x_label="N, blocks with history" if over_blocks else "S, student steps")


def _curves(
    groups: Sequence[Sequence[Result]], value: Callable[[Row], float | None], *, over_blocks: bool
) -> list[Curve]:
    """A curve per mask, way of reading the history and share of own history."""
    curves: dict[str, list[tuple[int, list[float]]]] = {}
    for group in groups:
        row, own = group[0].row, group[0].cell.design.own_history
        if row.num_steps == 1 and over_blocks:
            continue  # Knowledge distillation has no N.
        label = f"{_reading(row)} {row.history}" if row.history_blocks else _reading(row)
        label += f", own {own:g}" if own else ""
        label += f", S = {row.num_steps}" if over_blocks else ""
        x = group[0].cell.design.student.history_blocks if over_blocks else row.num_steps
        curves.setdefault(label, []).append((x, [number(value(result.row)) for result in group]))
    return [_curve(label, sorted(points), style) for style, (label, points) in enumerate(sorted(curves.items()))]


def _belongs(row: Row, kind: tuple[str | None, str | None]) -> bool:
    """Whether a row is drawn in the panel of a kind of state and prediction; one step has no kind of state."""
    return row.prediction == kind[1] and (row.state == kind[0] or row.num_steps == 1)


def _reading(row: Row) -> str:
    """What a row reads, as the figure calls it."""
    if row.num_steps == 1:
        return "KD"
    if row.num_steps == 2 and row.history_blocks:
        return "M2 = M3 = M4"
    return f"{HistoryMask(str(row.mask)).number} {row.mask}"


def _curve(label: str, points: Sequence[tuple[int, list[float]]], style: int) -> Curve:
    x = [float(place) for place, _ in points]
    means, low, high = ([reduce(values) for _, values in points] for reduce in (fmean, min, max))
    return Curve(label=label, x=x, y=means, low=low, high=high, style=style, dash=style // len(COLOURS), marked=True)


def _plain_row(comparison: Comparison, student: Student, card: StudentCard) -> dict[str, Any]:
    """A student's row as JSON holds it."""
    batch = comparison.evaluation_batch(card)
    return student_row(comparison.judge, student, card, batch, batch_size=BATCH_SIZE)[0].plain()


def _tuning_error(folder: Path, store: Path, device: torch.device) -> float:
    """A student's mean squared error to the teacher's images on the tuning trajectories."""
    student, card = load_student(folder, device)
    batch, text = read_batch(store, card, num=NUM_TUNING), find_text(None, card, folder)
    _, rolled = run_student(student, batch, batch_size=BATCH_SIZE, conditions=partial(condition_of, text))
    pictures = space_of_student(card, folder).is_of_pictures
    return paired_error(rolled[:, -1], batch.states[:, -1].float(), pictures=pictures)


def _identity(cell: Cell, folder: Path, judged: dict[str, Any]) -> dict[str, Any]:
    """Everything that decides a cell's numbers: its weights, and what it is judged with."""
    weights = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()[:16]
    return {"cell": cell.name, "weights": weights, **judged}
