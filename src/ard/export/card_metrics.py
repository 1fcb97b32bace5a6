"""The numbers of a student out of what `ard evaluate --json` wrote, as Markdown for its model card."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ard.core.config import to_plain
from ard.core.errors import InputError
from ard.core.files import read_json
from ard.evaluation.evaluate import Row
from ard.evaluation.result import NAMES
from ard.reporting.table import as_markdown, cell, columns_of, describe, floor_note
from ard.student.folder import StudentCard


def measured(path: Path, card: StudentCard) -> str:
    """The numbers in `path` of the student with this card; InputError when there are none of it."""
    plain = read_json(path)
    try:
        match plain:
            case {"rows": list(rows)}:
                return _table([Row.from_plain(row) for row in rows], card, path)
            case {"metrics": dict(metrics), "samples": dict(samples)}:
                return _protocol(metrics, samples, card, path)
    except (KeyError, TypeError):
        raise InputError(f"{path} is damaged or of another version of ard; evaluate again") from None
    raise InputError(f"{path} holds no metrics; --metrics takes what ard evaluate --json wrote")


def _table(rows: list[Row], card: StudentCard, path: Path) -> str:
    """The rows of the student, of its teacher, and of its teacher's untrained run in as many steps."""
    own = [row for row in rows if (row.recipe, row.seed) == (card.recipe, card.seed)]
    if not own:
        raise InputError(f"{path} has no row of this student; evaluate it, or give the file that has it")
    steps = card.student.num_steps
    others = [row for row in rows if row.model == "teacher" or (row.model, row.num_steps) == ("untrained", steps)]
    columns = [column for column in columns_of([*others, *own]) if column[0] != "train s"]
    header = ["model", "NFE", *(name for name, _, _ in columns)]
    body = [[describe(row), str(row.nfe), *(cell([row], column) for column in columns)] for row in (*others, *own)]
    return f"{as_markdown(header, body)}\n\n{floor_note(own[0].scores)}"


def _protocol(metrics: Mapping[str, Any], samples: Mapping[str, Any], card: StudentCard, path: Path) -> str:
    """The metrics of the ADM protocol, and what they were measured on."""
    if (samples.get("teacher"), samples.get("student")) != (card.teacher.hash, to_plain(card.student)):
        raise InputError(f"{path} measured other samples than this student's; give the file that measured them")
    body = [[NAMES.get(name, name), f"{value:.4g}"] for name, value in metrics.items()]
    return f"{as_markdown(['metric', 'value'], body)}\n\n{samples['num']} samples, seeds {samples['seeds']}."
