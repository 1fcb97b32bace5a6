"""Rows as a table for people: one line per model, seeds merged into mean and spread."""

from collections.abc import Callable, Sequence
from statistics import fmean

from ard.evaluation.evaluate import Row, Scores

Column = tuple[str, Callable[[Row], float | None], str]

COLUMNS: tuple[Column, ...] = (
    ("FD teacher", lambda row: row.scores.fd_teacher, ".2f"),
    ("FD real", lambda row: row.scores.fd_real, ".1f"),
    ("paired MSE", lambda row: row.scores.paired_mse, ".5f"),
    ("precision", lambda row: row.scores.precision, ".3f"),
    ("recall", lambda row: row.scores.recall, ".3f"),
    ("accuracy", lambda row: row.scores.accuracy, ".3f"),
    ("train s", lambda row: row.seconds, ".0f"),
)


NOTHING = "–"


def merge_seeds(rows: Sequence[Row]) -> list[list[Row]]:
    """Rows that differ in their training seed only, together, in order of appearance."""
    groups: dict[tuple[object, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault((describe(row), row.recipe), []).append(row)
    return list(groups.values())


def describe(row: Row) -> str:
    """The row's model in words, such as `ard · 2 steps · x_t · solver_step · causal N=6 gated · then R + D`."""
    parts = [row.model] + ([f"{row.num_steps} step" + ("s" if row.num_steps != 1 else "")] if row.num_steps else [])
    if row.state and row.prediction:
        parts += [row.state, row.prediction]
    if row.model == "ard":
        parts.append(f"{row.mask} N={row.history_blocks} {row.history}")
    if row.loss not in {None, "R"}:
        parts.append(str(row.loss))
    return " · ".join(parts)


def cell(rows: Sequence[Row], column: Column) -> str:
    """The mean over seeds, with half the range behind ± where there are several; a dash where there is no value."""
    _, value, style = column
    values = [found for row in rows if (found := value(row)) is not None]
    if not values:
        return NOTHING
    spread = (max(values) - min(values)) / 2
    return f"{fmean(values):{style}}" + (f" ±{spread:{style}}" if len(values) > 1 else "")


def columns_of(rows: Sequence[Row]) -> list[Column]:
    """The columns in which any row has a value."""
    return [column for column in COLUMNS if any(column[1](row) is not None for row in rows)]


def format_rows(rows: Sequence[Row], *, real_floor: float | None) -> str:
    """The table as text, with the noise floors of the distances below it."""
    groups, columns = merge_seeds(rows), columns_of(rows)
    header = ["model", "NFE", *(name for name, _, _ in columns)]
    body = [[describe(group[0]), str(group[0].nfe), *(cell(group, column) for column in columns)] for group in groups]
    notes = [floor_note(rows[0].scores), against_note(rows[0].scores)]
    notes += [real_floor_note(real_floor)] if real_floor is not None else []
    return "\n".join([as_text(header, body), *filter(None, notes)])


def floor_note(scores: Scores) -> str:
    """The sentence that belongs below every table with a distance to the teacher."""
    return (
        f"noise floor of FD teacher (teacher against teacher): {scores.fd_floor:.2f}; "
        f"FD: Fréchet distance on {scores.measured_on}, not FID"
    )


def against_note(scores: Scores) -> str:
    """The sentence that belongs below precision and recall where they do not compare with real images."""
    return "" if scores.against == "the real images" else f"precision and recall: against {scores.against}"


def real_floor_note(real_floor: float) -> str:
    """The sentence that belongs below a table with a distance to the real images."""
    return f"noise floor of FD real (half of the real images against the other half): {real_floor:.1f}"


def as_text(header: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    """A table in columns for a terminal."""
    widths = [max(len(line[i]) for line in [header, *body]) for i in range(len(header))]
    lines = ["  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)) for line in [header, *body]]
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(lines)


def as_markdown(header: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [header, ["---"] * len(header), *body]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
