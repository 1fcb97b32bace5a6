"""Score against cost: multiply-accumulates and measured latency, and which models no other beats (Figure 2c, d)."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

from ard.analysis import flops
from ard.analysis.labels import short_labels
from ard.analysis.latency import Latency
from ard.core.config import fingerprint_of
from ard.core.types import Latents, Trajectory
from ard.evaluation.evaluate import Row, Scores, number, student_row
from ard.evaluation.references import Comparison, teacher_rows
from ard.networks.condition import Condition
from ard.reporting.figures import Curve, Panel, plot_panels
from ard.reporting.table import COLUMNS, as_text, cell, describe, floor_note, merge_seeds
from ard.student.sampling import sample
from ard.student.student import Student
from ard.teacher.teacher import solve_pf_ode

FRONT_STYLE = 6  # Black.


@dataclass(frozen=True, kw_only=True)
class Model:
    """A model that was evaluated and can be timed; students that differ in their training seed only are one."""

    rows: tuple[Row, ...]
    """A row per seed."""
    macs: int
    """Multiply-accumulates per image."""
    draw: Callable[[Latents, Condition], object]
    """Make images from noises."""


@dataclass(frozen=True, kw_only=True)
class Point:
    """What a model costs and how good it is."""

    rows: tuple[Row, ...]
    macs: int
    latency: Latency

    def mean(self, score: Callable[[Scores], float]) -> float:
        """The mean over seeds."""
        return fmean(self.values(score))

    def values(self, score: Callable[[Scores], float]) -> list[float]:
        """The score of every seed."""
        return [score(row.scores) for row in self.rows]


Cost = Callable[[Point], float]

COSTS: dict[str, Cost] = {"macs": lambda point: float(point.macs), "latency": lambda point: point.latency.median}
SCORES: dict[str, Callable[[Scores], float]] = {
    "fd_teacher": lambda scores: scores.fd_teacher,
    "fd_real": lambda scores: number(scores.fd_real),
}


def evaluated_models(
    comparison: Comparison, teacher_folder: Path, *, batch_size: int, progress: Callable[[int], object]
) -> list[Model]:
    """The guided teacher, its untrained runs on the students' grids, and the students."""
    models = _teacher_models(comparison, teacher_folder, batch_size=batch_size)
    student_of, rows = {}, []
    for student, card in comparison.students:
        batch = comparison.evaluation_batch(card)
        rows.append(student_row(comparison.judge, student, card, batch, batch_size=batch_size)[0])
        student_of[id(rows[-1])] = student, card
        progress(1)
    for seeds in merge_seeds(rows):
        student, card = student_of[id(seeds[0])]
        macs = flops.student_row(card.network, card.student).cost.total
        models.append(Model(rows=tuple(seeds), macs=macs, draw=partial(_sample, student)))
    return models


def pareto_front(costs: Sequence[float], scores: Sequence[float]) -> list[int]:
    """The points that no other beats, cheapest first: none is at most as costly and as bad, and less in one of both."""
    points = list(zip(costs, scores, strict=True))
    beaten = [any(c <= cost and s <= score and (c, s) != (cost, score) for c, s in points) for cost, score in points]
    return sorted((index for index, lost in enumerate(beaten) if not lost), key=lambda index: points[index])


def scores_of(points: Sequence[Point]) -> list[str]:
    """The scores that the points have: without real images there is one."""
    return [name for name, score in SCORES.items() if not any(math.isnan(one.mean(score)) for one in points)]


def fronts(points: Sequence[Point]) -> dict[tuple[str, str], list[int]]:
    """The front for every pair of a cost and a score."""
    return {
        (cost, score): pareto_front([COSTS[cost](one) for one in points], [one.mean(SCORES[score]) for one in points])
        for cost in COSTS
        for score in scores_of(points)
    }


def pareto_rows(points: Sequence[Point], *, batch_size: int) -> list[dict[str, Any]]:
    """Every point as plain values: what it is, its costs, its scores with their range, and the fronts it is on."""
    on = fronts(points)
    return [
        {
            **_description(point),
            "macs": point.macs,
            "seconds_per_batch": point.latency.median,
            "seconds_lower_quartile": point.latency.lower_quartile,
            "seconds_upper_quartile": point.latency.upper_quartile,
            "images_per_second": batch_size / point.latency.median,
            **_ranges(point),
            "fd_floor": point.rows[0].scores.fd_floor,
            **{f"front_{cost}_{score}": index in front for (cost, score), front in on.items()},
        }
        for index, point in enumerate(points)
    ]


def pareto_table(points: Sequence[Point]) -> str:
    """A line per model, with the costs for which it is on the front of each score."""
    names, on = scores_of(points), fronts(points)
    columns = [column for column in COLUMNS if column[0].lower().replace(" ", "_") in names]
    header = ["model", "seeds", "GMAC", "s per batch", "quartiles", *(name for name, _, _ in columns)]
    body = [
        [
            describe(point.rows[0]),
            str(len(point.rows)),
            f"{point.macs / flops.GIGA:.4g}",
            f"{point.latency.median:.4f}",
            f"{point.latency.lower_quartile:.4f} - {point.latency.upper_quartile:.4f}",
            *(cell(point.rows, column) for column in columns),
            *(", ".join(cost for cost in COSTS if index in on[cost, score]) or "–" for score in names),
        ]
        for index, point in enumerate(points)
    ]
    table = as_text([*header, *(f"front of {name}" for name, _, _ in columns)], body)
    return f"{table}\n{floor_note(points[0].rows[0].scores)}"


def pareto_figure(points: Sequence[Point], *, cost: str, x_label: str) -> str:
    """Figure 2c (`cost` is macs) or 2d (latency) as SVG: both distances against a cost, with the front of each."""
    floor = ("teacher (noise floor)", points[0].rows[0].scores.fd_floor)
    panels = [
        _panel(points, cost, "fd_teacher", "FD to the teacher (not FID)", floor),
        *(
            [_panel(points, cost, "fd_real", "FD to the data (not FID)", None)]
            if "fd_real" in scores_of(points)
            else []
        ),
    ]
    return plot_panels([[panel] for panel in panels], x_label=x_label, x_scale="log", whole_x=False, legend_columns=2)


def _teacher_models(comparison: Comparison, teacher_folder: Path, *, batch_size: int) -> list[Model]:
    teacher, ode = comparison.teacher, comparison.ode
    few = {fingerprint_of(card.tau): replace(ode, times=card.tau) for _, card in comparison.students}
    models = []
    for row, _ in teacher_rows(comparison, teacher_folder, batch_size=batch_size):
        one = few[row.recipe] if row.recipe else ode
        draw = partial(solve_pf_ode, teacher, ode=one, kept=(0, one.num_teacher_steps))
        macs = flops.teacher_row(teacher.network.config, one).cost.total
        models.append(Model(rows=(row,), macs=macs, draw=draw))
    return models


def _sample(student: Student, noise: Latents, condition: Condition) -> Trajectory:
    return sample(student, noise, condition=condition)


def _description(point: Point) -> dict[str, Any]:
    row = point.rows[0].plain()
    names = ("num_steps", "nfe", "mask", "history_blocks", "history", "state", "prediction")
    return {"model": describe(point.rows[0]), **{name: row[name] for name in names}, "seeds": len(point.rows)}


def _ranges(point: Point) -> dict[str, float]:
    ranges: dict[str, float] = {}
    for name, score in SCORES.items():
        values = point.values(score)
        if any(map(math.isnan, values)):
            continue
        ranges |= {name: fmean(values), f"{name}_low": min(values), f"{name}_high": max(values)}
    return ranges


def _families(points: Sequence[Point]) -> dict[str, list[Point]]:
    """Points that differ in their number of steps only, under the label that they share."""
    students = [point for point in points if point.rows[0].mask]
    labels = iter(short_labels([point.rows[0] for point in students], with_steps=False))
    families: dict[str, list[Point]] = {}
    for point in points:
        named = next(labels) if point.rows[0].mask else f"{point.rows[0].model}, guided solver"
        families.setdefault(named, []).append(point)
    return families


def _panel(points: Sequence[Point], cost: str, score: str, name: str, floor: tuple[str, float] | None) -> Panel:
    curves = []
    for style, (label, family) in enumerate(_families(points).items()):
        values = [point.values(SCORES[score]) for point in family]
        curves.append(
            Curve(
                label=label,
                x=[COSTS[cost](point) for point in family],
                y=[fmean(seeds) for seeds in values],
                style=style,
                marked=True,
                joined=False,
                low=[min(seeds) for seeds in values],
                high=[max(seeds) for seeds in values],
                notes=[_note(point.rows[0]) for point in family],
            )
        )
    return Panel(title="", y_label=name, curves=[_front(points, cost, score), *curves], floor=floor)


def _note(row: Row) -> str:
    return "KD" if row.model == "kd" else f"{row.num_steps} steps" if row.model == "teacher" else f"S = {row.num_steps}"


def _front(points: Sequence[Point], cost: str, score: str) -> Curve:
    """The best score that each cost buys, as stairs."""
    corners: list[tuple[float, float]] = []
    for index in fronts(points)[cost, score]:
        paid, best = COSTS[cost](points[index]), points[index].mean(SCORES[score])
        corners += [(paid, corners[-1][1]), (paid, best)] if corners else [(paid, best)]
    x, y = zip(*corners, strict=True)
    return Curve(label="Pareto front", x=x, y=y, style=FRONT_STYLE, dash=1)
