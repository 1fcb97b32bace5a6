"""ard analyze errors: what a student's error becomes when the teacher takes the first steps."""

from dataclasses import dataclass
from pathlib import Path

from ard.analysis.errors import (
    ErrorCurve,
    arms_of,
    error_curve,
    error_rows,
    errors_figure,
    errors_table,
    paired_figure,
)
from ard.cli.compared import Compared, resolve_compared
from ard.cli.options import print_plan
from ard.core.devices import DeviceName
from ard.core.outputs import Outputs
from ard.core.progress import progress_bar
from ard.evaluation.feature_space import FeatureKind
from ard.evaluation.references import prepare_comparison
from ard.reporting.figures import require_matplotlib


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
    features: FeatureKind | None = None
    """What distances are measured on; see ard evaluate."""
    real: Path | None = None
    """Real images to compare with; see ard evaluate."""
    num: int = 1500
    """Images per student and k."""
    json: Path | None = None
    """Where to write the rows as JSON; None: errors.json in --out."""
    batch_size: int = 256
    """Images drawn together."""
    overwrite: bool = False
    """Replace files that are no earlier output of this command, too."""
    device: DeviceName = "auto"
    """Where to compute."""
    dry_run: bool = False
    """Print the resolved configuration and do nothing."""

    def run(self) -> None:
        """Measure, print the table, write the rows and pictures."""
        compared = resolve_compared(
            self.student,
            teacher=self.teacher,
            references=self.references,
            num=self.num,
            batch_size=self.batch_size,
            device=self.device,
            features=self.features,
            real=self.real,
        )
        if self.dry_run:
            return print_plan(compared.plan())
        require_matplotlib()
        outputs = Outputs(command="analyze errors", overwrite=self.overwrite)
        json = self.json or self.out / "errors.json"
        csv, *figures = (self.out / name for name in ("errors.csv", "errors.svg", "errors-paired.svg"))
        outputs.check(json, *figures, csv)
        curves = self._curves(compared)
        arms, rows = arms_of(curves), error_rows(curves)
        print(errors_table(arms))
        outputs.json(json, {"rows": rows})
        for path, figure in zip(figures, (errors_figure(arms), paired_figure(arms)), strict=True):
            outputs.svg(path, figure)
        outputs.csv(csv, rows)
        print(f"written to {self.out}: errors.csv, errors.svg, errors-paired.svg")

    def _curves(self, compared: Compared) -> list[ErrorCurve]:
        comparison = prepare_comparison(self.student, compared.teacher, compared.references, device=compared.device)
        curves = []
        with progress_bar(sum(card.student.num_steps for _, card in comparison.students), "errors", unit="run") as bar:
            for folder, (student, card) in zip(self.student, comparison.students, strict=True):
                batch, size = comparison.evaluation_batch(card), self.batch_size
                one = error_curve(
                    str(folder), comparison.judge, student, card, batch, batch_size=size, progress=bar.update
                )
                curves.append(one)
        return curves
