"""Short labels for students in one figure: mask, N and kind of state, and what else they differ in."""

from collections.abc import Sequence

from ard.analysis.masks import mask_label
from ard.evaluation.evaluate import Row
from ard.student.history import HistoryMask

ALWAYS = 3  # How many of the parts are told in any case.


def short_labels(students: Sequence[Row], *, with_steps: bool) -> list[str]:
    """Labels such as M4 causal, N = 6, x_t; S (with `with_steps`), output and history only where students differ."""
    parts = [_parts(row, with_steps=with_steps) for row in students]
    choices = [set(words) - {""} for words in zip(*parts, strict=True)]
    told = [place for place, words in enumerate(choices) if place < ALWAYS or len(words) > 1]
    return [", ".join(words[place] for place in told if words[place]) for words in parts]


def _parts(row: Row, *, with_steps: bool) -> list[str]:
    """What a label may tell of a student, in its order; empty where it has no meaning."""
    mask, history = mask_label(HistoryMask(row.mask or "")), row.history if row.model == "ard" else ""
    steps = [f"S = {row.num_steps}"] if with_steps else []
    return [mask, f"N = {row.history_blocks}", row.state or "", *steps, row.prediction or "", history or ""]
