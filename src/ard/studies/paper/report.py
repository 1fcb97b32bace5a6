"""The report of the tiny study: Table 1 beside the paper's numbers, a verdict on each claim, and every figure."""

import math
import os
import platform
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

import ard
from ard.analysis.flops import student_row
from ard.core.files import read_json
from ard.evaluation.evaluate import Row
from ard.networks.transformer import TransformerConfig
from ard.reporting.table import COLUMNS, as_markdown, cell
from ard.studies.grid import Design, canonical_student
from ard.studies.paper.paper import CLAIMS, TABLE_1, Claim, Metric, PaperRow, Setting
from ard.studies.paper.recipes import RECIPES, Recipe
from ard.studies.sweep import Result, Results

FIGURES = (
    ("Figure 2c, d: score against cost", "figure-2/pareto-*.svg"),
    ("Figure 3b: the masks", "figure-3b/*.svg"),
    ("Figure 4: where a step looks", "figure-4/*.svg"),
    ("Figure 5: the same noises, several models", "figure-5.png"),
    ("Figure 6a: score against iterations", "figure-6a/*.svg"),
    ("Figure 6b: the first k steps by the teacher", "figure-6b/*.svg"),
    ("Figure 6c: masks and N", "figure-6c.svg"),
)
MIN_SEEDS = 3  # With fewer, one lies above the other too often by chance.
VERDICTS = (
    "A claim holds (**yes**) when every seed of the one is better than every seed of the other, and is contradicted "
    "(**no**) when every seed is worse. Otherwise (≈), and when the means differ by less than the evaluation can tell: "
    "a tenth of the noise floor, or the standard error of a difference of two shares. Behind each: both means. "
    "Three seeds of equal students lie apart by chance in 1 of 10 comparisons, half of them each way. The paper's FID "
    "is to real images; here FD to the teacher stands for it, because that is what distillation aims at."
)
SHOWN = tuple(column for column in COLUMNS if column[0] not in {"train s", "accuracy"})


def report(out: Path, results: Results, network: TransformerConfig, *, num: int, facts: dict[str, Any]) -> str:
    """The report in Markdown; every model made `num` images. Pictures are linked relative to `out`."""
    tables = [f"### {one.name}: {one.about}\n\n{table_1(results, one, network)}" for one in RECIPES]
    teacher = as_markdown(
        ["model", "steps", "NFE", *(name for name, _, _ in SHOWN)],
        [
            [row.model, f"{row.num_steps}", f"{row.nfe}", *(cell([row], one) for one in SHOWN)]
            for row in results.teacher
        ],
    )
    parts = [
        "# The paper's study on the embedded digits",
        _introduction(results, facts),
        "## Table 1",
        *tables,
        f"### The teacher, and its own solver with few guided steps\n\n{teacher}",
        "## The paper's claims",
        claims_table(results, network.depth, num=num),
        VERDICTS,
        *_sentences(out),
        "## Figures",
        *_figures(out),
    ]
    return "\n\n".join(parts) + "\n"


def results_of(results: Results, recipe: Recipe, setting: Setting, depth: int) -> list[Result]:
    """The results of one setting over the seeds; empty when there are none."""
    blocks = setting.history_blocks(depth)
    wanted = canonical_student(
        recipe.state, recipe.prediction, setting.num_steps, setting.mask, blocks, recipe.history, depth=depth
    )
    return [result for result in results.cells if result.cell.design == Design(student=wanted, own_history=0.0)]


def table_1(results: Results, recipe: Recipe, network: TransformerConfig) -> str:
    """The paper's rows, and ours behind them."""
    header = ["method", "S", "N of 28", "paper: FID", "IS", "precision", "recall", "GFLOPs"]
    header += [f"ours: N of {network.depth}", "MMAC", "rate", *(name for name, _, _ in SHOWN)]
    body = []
    for line in TABLE_1:
        found = results_of(results, recipe, line.setting, network.depth)
        if found:
            student = found[0].cell.design.student
            cost = student_row(network, student).cost.total / 1e6
            rows = [result.row for result in found]
            ours = [str(student.history_blocks), f"{cost:.1f}", f"{found[0].cell.learning_rate:g}"]
            body.append([*_paper_cells(line), *ours, *(cell(rows, column) for column in SHOWN)])
    return as_markdown(header, body)


def claims_table(results: Results, depth: int, *, num: int) -> str:
    """Each claim with the paper's numbers and a verdict in each recipe."""
    header = ["claim", "paper", *(recipe.name for recipe in RECIPES)]
    body = [
        [one.text, one.paper, *(verdict(results, one, recipe, depth, num=num) for recipe in RECIPES)] for one in CLAIMS
    ]
    return as_markdown(header, body)


def verdict(results: Results, claim: Claim, recipe: Recipe, depth: int, *, num: int) -> str:
    """Whether all seeds of the better setting are better (yes), worse (no), or neither (≈), with both means.

    `num` is the number of images that every value comes from. A dash stands for too few seeds.
    """
    values = [
        [_value(result.row, claim.metric) for result in results_of(results, recipe, setting, depth)]
        for setting in (claim.better, claim.worse)
    ]
    if min(len(side) for side in values) < MIN_SEEDS:
        return "–"
    better, worse = ([claim.metric.sign * value for value in side] for side in values)
    word = "**yes**" if max(better) < min(worse) else "**no**" if min(better) > max(worse) else "≈"
    means = [fmean(side) for side in values]
    if abs(means[0] - means[1]) < _resolution(claim.metric, means[0], floor=results.scores.fd_floor, num=num):
        word = "≈"
    digits = 2 if claim.metric is Metric.DISTANCE else 3
    return f"{word} {means[0]:.{digits}f}, {means[1]:.{digits}f}"


def _resolution(metric: Metric, value: float, *, floor: float, num: int) -> float:
    """Below it, a difference says nothing: a tenth of the noise floor, about what a bootstrap over the noises gives, or
    the standard error of a difference of two shares.
    """
    return floor / 10 if metric is Metric.DISTANCE else math.sqrt(2 * value * (1 - value) / num)


def _value(row: Row, metric: Metric) -> float:
    match metric:
        case Metric.DISTANCE:
            return row.scores.fd_teacher
        case Metric.PRECISION:
            return row.scores.precision
        case Metric.RECALL:
            return row.scores.recall


def _introduction(results: Results, facts: dict[str, Any]) -> str:
    machine = f"{os.cpu_count()} cores, {platform.machine()}, PyTorch {torch.__version__}, ard {ard.__version__}"
    told = "\n".join(f"- {name}: {value}" for name, value in facts.items())
    return (
        "Made by `ard reproduce --scale tiny`. The teacher is a small diffusion transformer trained on scikit-learn's "
        "8 x 8 digits; every student of a table has the same trajectories and number of updates, and its arm's own "
        "learning rate, tuned on separate trajectories. FD is the Fréchet "
        "distance on the features of a small classifier, not FID: FD teacher is to an independent batch of the "
        "teacher's samples, and its noise floor (teacher against teacher) is "
        f"**{results.scores.fd_floor:.2f}**; FD real is to the real images. "
        "Paired MSE is to the teacher's sample from the same noise. Mean over the training seeds, ± "
        f"half their range.\n\n- machine: {machine}\n{told}"
    )


def _paper_cells(line: PaperRow) -> list[str]:
    numbers = (f"{line.fid:g}", f"{line.inception_score:g}", f"{line.precision:.3f}", f"{line.recall:.3f}")
    return [line.method, str(line.setting.num_steps), str(line.blocks), *numbers, f"{line.gflops:g}"]


def _sentences(out: Path) -> list[str]:
    """What Figures 6b and 4 say, in numbers made from their files."""
    errors = read_json(out / "figure-6b" / "errors.json")["rows"]
    sentences = []
    for state in ("x_0_hat", "x_t"):
        gaps = [_gap([row for row in errors if row["state"] == state], k) for k in (0, 3)]
        sentences.append(
            f"Figure 6b, {state}: FD of step distillation minus FD of ARD is {gaps[0]:.2f} when the student takes all "
            f"four steps, and {gaps[1]:.2f} when the teacher takes the first three (paper: the gap nearly closes)."
        )
    shares = read_json(out / "figure-4" / "attention.json")["rows"]
    for student in sorted({row["student"] for row in shares}):
        last = [row for row in shares if row["student"] == student and row["step"] == 4 and row["uniform"] < 1]
        means = [fmean(row["share"] for row in last if row["reads"] == step) for step in (1, 2, 3, 4)]
        words = ", ".join(f"{mean:.3f}" for mean in means)
        sentences.append(
            f"Figure 4, {Path(student).name}: in the layers with history the last step's attention goes to the noise, "
            f"the states after steps 1 and 2, and its own state in the shares {words} (paper, N = 6: of the history, "
            "the noise gets most)."
        )
    return sentences


def _gap(rows: Sequence[dict[str, Any]], teacher_steps: int) -> float:
    """FD of step distillation minus FD of ARD, means over seeds, when the teacher takes the first steps."""
    at = [row for row in rows if row["teacher_steps"] == teacher_steps]
    step, ours = (fmean(row["fd_teacher"] for row in at if row["model"] == model) for model in ("step", "ard"))
    return step - ours


def _figures(out: Path) -> list[str]:
    parts = []
    for title, pattern in FIGURES:
        paths = sorted(path.relative_to(out) for path in out.glob(pattern))
        parts.append(f"### {title}\n\n" + "\n\n".join(f"![{title}]({path})" for path in paths))
    return parts
