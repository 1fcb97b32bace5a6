"""ard evaluate: students to a table of numbers."""

from dataclasses import dataclass
from pathlib import Path

from ard.cli.options import print_plan
from ard.devices import DeviceName, resolve_device
from ard.errors import InputError, require_at_least
from ard.files import write_json
from ard.references import MIN_SAMPLES, evaluate_students, references_in
from ard.students import load_card
from ard.table import format_rows


@dataclass(frozen=True, kw_only=True)
class Evaluate:
    """Measure students against their teacher, its untrained few-step run, and the real data.

    All models start from the same noises. The distances are Fréchet distances on the features of a small classifier
    that is trained once and kept, with two batches of the teacher's samples, in the teacher's folder. For instance:

        ard evaluate --student runs/ard --json runs/ard/metrics.json
        ard evaluate --student runs/ard runs/step
    """

    student: tuple[Path, ...]
    """Folders of one or more students of the same teacher."""
    teacher: Path | None = None
    """Folder of the teacher; None: where the first student says."""
    references: Path | None = None
    """Folder for the classifier and the teacher's batches; None: evaluation/ in the teacher's folder."""
    num: int = 1500
    """Images per model."""
    json: Path | None = None
    """Where to write the rows as JSON."""
    batch_size: int = 256
    """Images drawn together."""
    device: DeviceName = "auto"
    """Where to compute."""
    dry_run: bool = False
    """Print the resolved configuration and do nothing."""

    def run(self) -> None:
        """Evaluate, print the table, write the JSON."""
        require_at_least(1, {"batch_size": self.batch_size})
        require_at_least(MIN_SAMPLES, {"num": self.num})
        if not self.student:
            raise InputError("--student is empty; name at least one student's folder")
        device = resolve_device(self.device)
        cards = [load_card(folder) for folder in self.student]
        teacher = self.teacher or cards[0].teacher.folder(self.student[0])
        references = references_in(self.references or teacher / "evaluation", num=self.num)
        if self.dry_run:
            return print_plan({"students": cards, "teacher": teacher, "references": references, "device": str(device)})
        result = evaluate_students(self.student, teacher, references, device=device, batch_size=self.batch_size)
        print(format_rows(result.rows))
        if self.json:
            write_json(self.json, {"rows": [row.plain() for row in result.rows]})
            print(f"written to {self.json}")
