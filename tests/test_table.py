"""The table: rows of several seeds become one line, a mean and half the range."""

from typing import Any

from ard.evaluation.evaluate import Row, Scores
from ard.reporting.table import COLUMNS, cell, describe, format_rows, merge_seeds

COLUMN = {column[0]: column for column in COLUMNS}
SCORES = {
    "fd_teacher": 1.0,
    "fd_real": 20.0,
    "fd_floor": 0.25,
    "paired_mse": 0.03,
    "precision": 0.9,
    "recall": 0.8,
    "accuracy": 0.95,
}


def make_row(*, seed: int | None = 0, scores: dict[str, float] | None = None, **changes: Any) -> Row:
    shape = {"state": "x_t", "prediction": "solver_step", "mask": "causal", "history_blocks": 6, "history": "gated"}
    plain = {
        "model": "ard",
        "num_steps": 4,
        "nfe": 4,
        "iterations": 800,
        "recipe": "one",
        "seconds": 10.0,
        **shape,
        **changes,
    }
    return Row(seed=seed, scores=Scores(**{**SCORES, **(scores or {})}), **plain)


def seeds(*values: float) -> list[Row]:
    return [make_row(seed=seed, scores={"fd_teacher": value}) for seed, value in enumerate(values)]


def test_seeds_merge_to_their_mean_and_half_their_range() -> None:
    assert cell(seeds(1.0, 2.0, 6.0), COLUMN["FD teacher"]) == "3.00 ±2.50"


def test_one_seed_has_no_spread() -> None:
    assert cell(seeds(1.5), COLUMN["FD teacher"]) == "1.50"


def test_every_column_shows_its_own_number() -> None:
    shown = {name: cell([make_row()], column) for name, column in COLUMN.items()}
    assert shown == {
        "FD teacher": "1.00",
        "FD real": "20.0",
        "paired MSE": "0.03000",
        "precision": "0.900",
        "recall": "0.800",
        "accuracy": "0.950",
        "train s": "10",
    }


def test_rows_merge_when_they_differ_in_their_seed_only() -> None:
    rows = [make_row(seed=0), make_row(seed=0, num_steps=2), make_row(seed=1), make_row(seed=1, num_steps=2)]
    assert merge_seeds(rows) == [[rows[0], rows[2]], [rows[1], rows[3]]]


def test_rows_that_differ_in_anything_else_stay_apart() -> None:
    changes = [
        {},
        {"model": "step"},
        {"num_steps": 2},
        {"state": "x_0_hat"},
        {"prediction": "next_state"},
        {"mask": "window"},
        {"history_blocks": 1},
        {"history": "shared"},
        {"recipe": "another"},
    ]
    rows = [make_row(seed=seed, **change) for seed, change in enumerate(changes)]
    assert merge_seeds(rows) == [[row] for row in rows]


def test_a_model_is_described_in_words() -> None:
    assert describe(make_row()) == "ard · 4 steps · x_t · solver_step · causal N=6 gated"
    assert describe(make_row(model="kd", num_steps=1)) == "kd · 1 step · x_t · solver_step"
    assert describe(make_row(loss="then R + D")).endswith("causal N=6 gated · then R + D")
    teacher = {"state": None, "prediction": None, "mask": None, "history_blocks": None, "history": None, "seed": None}
    assert describe(make_row(model="teacher", num_steps=24, **teacher)) == "teacher · 24 steps"


def test_the_table_has_one_line_per_model_under_one_header() -> None:
    rows = [make_row(model="teacher", nfe=48, scores={"fd_floor": 0.5}), *seeds(1.0, 3.0)]
    header, rule, teacher, student, note, real = format_rows(rows, real_floor=7.64).splitlines()
    assert header.split()[:4] == ["model", "NFE", "FD", "teacher"]
    assert set(rule) == {"-", " "}
    assert "48" in teacher.split()
    assert "2.00 ±1.00" in student
    assert "0.50" in note
    assert "not FID" in note
    assert real.endswith("7.6")


def test_columns_are_aligned() -> None:
    lines = format_rows([make_row(model="teacher", num_steps=100), *seeds(1.0, 3.0)], real_floor=0.0).splitlines()[:-2]
    starts = {line.index(text) for line, text in zip(lines[2:], ("1.00 ", "2.00 ±1.00"), strict=True)}
    assert starts == {lines[0].index("FD teacher")}


def test_a_row_comes_back_from_its_plain_form() -> None:
    row = make_row()
    plain = row.plain()
    assert plain["fd_teacher"] == 1.0
    assert Row.from_plain(dict(plain)) == row
