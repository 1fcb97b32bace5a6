"""ard analyze errors: what a student's error becomes when the teacher takes the first steps."""

from dataclasses import dataclass
from pathlib import Path

import torch

from ard.analysis.errors import (
    ErrorCurve,
    arms_of,
    error_curve,
    error_rows,
    errors_figure,
    errors_table,
    paired_figure,
)
from ard.analysis.rows import write_csv
from ard.cli.options import print_plan
from ard.devices import DeviceName, resolve_device
from ard.errors import InputError, require_at_least
from ard.figures import require_matplotlib
from ard.files import write_atomically, write_json
from ard.progress import progress_bar
from ard.references import MIN_SAMPLES, References, prepare_comparison, references_in
from ard.students import load_card


@dataclass(frozen=True, kw_only=True)
class Errors:
    """Let the teacher take the first k steps and the student the others, for k = 0 to S - 1 (the paper's Figure 6b).

    What remains at k = S - 1 is the error of the last step alone; what comes on top at k = 0 has accumulated. The
    teacher's states are its stored ones from the noises of ard evaluate, whose references are used or made. --out
    gets errors.csv, errors.json, errors.svg (Fréchet distance to the teacher) and errors-paired.svg (distance to the
    teacher's image from the same noise). Students that differ in their training seed only share a curve. For instance:

        ard analyze errors --student runs/ard runs/step --out runs/errors
        ard analyze errors --student runs/ard-0 runs/ard-1 runs/step-0 runs/step-1 --num 5000 --out runs/errors
    """

    student: tuple[Path, ...]
    """Folders of one or more students of the same teacher."""
    out: Path
    """Folder for the numbers and pictures."""
    teacher: Path | None = None
    """Folder of the teacher; None: where the first student says."""
    references: Path | None = None
    """Folder for the classifier and the teacher's batches; None: evaluation/ in the teacher's folder."""
    num: int = 1500
    """Images per student and k."""
    json: Path | None = None
    """Where to write the rows as JSON; None: errors.json in --out."""
    batch_size: int = 256
    """Images drawn together."""
    device: DeviceName = "auto"
    """Where to compute."""
    dry_run: bool = False
    """Print the resolved configuration and do nothing."""

    def run(self) -> None:
        """Measure, print the table, write the rows and pictures."""
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
        require_matplotlib()
        curves = self._curves(teacher, references, device)
        arms, rows = arms_of(curves), error_rows(curves)
        print(errors_table(arms))
        write_csv(self.out / "errors.csv", rows)
        write_json(self.json or self.out / "errors.json", {"rows": rows})
        write_atomically(self.out / "errors.svg", errors_figure(arms).encode())
        write_atomically(self.out / "errors-paired.svg", paired_figure(arms).encode())
        print(f"written to {self.out}: errors.csv, errors.svg, errors-paired.svg")

    def _curves(self, teacher: Path, references: References, device: torch.device) -> list[ErrorCurve]:
        compared = prepare_comparison(self.student, teacher, references, device=device)
        curves = []
        with progress_bar(sum(card.student.num_steps for _, card in compared.students), "errors", unit="run") as bar:
            for folder, (student, card) in zip(self.student, compared.students, strict=True):
                batch, size = compared.evaluation_batch(card), self.batch_size
                one = error_curve(
                    str(folder), compared.judge, student, card, batch, batch_size=size, progress=bar.update
                )
                curves.append(one)
        return curves
