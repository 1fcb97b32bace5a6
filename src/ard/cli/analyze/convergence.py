"""ard analyze convergence: a student's scores at each of its checkpoints."""

from dataclasses import dataclass
from pathlib import Path

from ard.analysis.convergence import (
    Checkpoint,
    ConvergenceCurve,
    KeptScores,
    arms_of,
    convergence_curve,
    convergence_figure,
    convergence_rows,
    convergence_table,
    kept_checkpoints,
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
class Convergence:
    """Measure students at each checkpoint of their training: score against iterations (the paper's Figure 6a).

    The averaged weights of every checkpoint are evaluated as ard evaluate does it, whose references are used or made.
    To keep checkpoints, train with ard distill --keep-checkpoints 0 --checkpoint-every 100. --out gets convergence.csv,
    convergence.svg and convergence.json, which keeps the scores: running again evaluates new checkpoints only.
    Students that differ in their training seed only share a curve. For instance:

        ard analyze convergence --student runs/ard runs/step --out runs/convergence
        ard analyze convergence --student runs/ard-0 runs/ard-1 --num 5000 --json rows.json --out runs/convergence
    """

    student: tuple[Path, ...]
    """Folders of one or more students of the same teacher, with their checkpoints."""
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
    """Images per checkpoint."""
    json: Path | None = None
    """Where to write the rows of these students as JSON too."""
    batch_size: int = 256
    """Images drawn together."""
    overwrite: bool = False
    """Replace files that are no earlier output of this command, too."""
    device: DeviceName = "auto"
    """Where to compute."""
    dry_run: bool = False
    """Print the resolved configuration and do nothing."""

    def run(self) -> None:
        """Measure what is not measured yet, print the table, write the rows and the picture."""
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
        found = [kept_checkpoints(folder) for folder in self.student]
        if self.dry_run:
            steps = {str(folder): [one.step for one in some] for folder, some in zip(self.student, found, strict=True)}
            return print_plan({**compared.plan(), "checkpoints": steps})
        require_matplotlib()
        outputs = Outputs(command="analyze convergence", overwrite=self.overwrite)
        outputs.check(self.out / "convergence.svg", self.json, self.out / "convergence.csv")
        curves = self._curves(found, compared)
        arms, rows = arms_of(curves), convergence_rows(curves)
        print(convergence_table(arms))
        outputs.svg(self.out / "convergence.svg", convergence_figure(arms))
        outputs.csv(self.out / "convergence.csv", rows)
        if self.json:
            outputs.json(self.json, {"rows": rows})
        print(f"written to {self.out}: convergence.csv, convergence.svg")

    def _curves(self, found: list[list[Checkpoint]], compared: Compared) -> list[ConvergenceCurve]:
        models = prepare_comparison(self.student, compared.teacher, compared.references, device=compared.device)
        kept = KeptScores(
            self.out / "convergence.json", teacher=models.teacher.hash, judge=models.judge.identity, num=self.num
        )
        curves = []
        with progress_bar(sum(map(len, found)), "convergence", unit="run") as bar:
            for folder, (student, card), some in zip(self.student, models.students, found, strict=True):
                one = convergence_curve(
                    str(folder),
                    models.judge,
                    student,
                    card,
                    models.evaluation_batch(card),
                    some,
                    kept,
                    batch_size=self.batch_size,
                    progress=bar.update,
                )
                curves.append(one)
        return curves
