"""What the commands that compare students begin with: their cards, teacher, references and device, checked."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ard.core.devices import DeviceName, resolve_device
from ard.core.errors import InputError, require_at_least
from ard.evaluation.feature_space import FeatureKind
from ard.evaluation.references import MIN_SAMPLES, References, references_in
from ard.student.folder import StudentCard, load_card
from ard.teacher.origin import find_teacher


@dataclass(frozen=True, kw_only=True)
class Compared:
    """Everything that is resolved before the first model is loaded."""

    cards: list[StudentCard]
    teacher: Path
    references: References
    device: torch.device

    def plan(self) -> dict[str, Any]:
        """What --dry-run tells of it."""
        where = {"teacher": self.teacher, "references": self.references, "device": str(self.device)}
        return {"students": self.cards, **where}


def resolve_compared(
    students: Sequence[Path],
    *,
    teacher: Path | None,
    references: Path | None,
    num: int,
    batch_size: int,
    device: DeviceName,
    features: FeatureKind | None = None,
    real: Path | None = None,
) -> Compared:
    """The values of the options; InputError for one that cannot be meant."""
    require_at_least(1, {"batch_size": batch_size})
    require_at_least(MIN_SAMPLES, {"num": num})
    if not students:
        raise InputError("--student is empty; name at least one student's folder")
    where, cards = resolve_device(device), [load_card(folder) for folder in students]
    teacher = teacher or find_teacher(cards[0].teacher, students[0])
    kept = references_in(references or teacher / "evaluation", num=num, features=features, real=real)
    return Compared(cards=cards, teacher=teacher, references=kept, device=where)
