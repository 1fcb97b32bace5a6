"""ard analyze pareto: scores against multiply-accumulates and against measured latency."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from ard.analysis.latency import Latency, machine_facts, measure_latencies
from ard.analysis.pareto import Model, Point, evaluated_models, pareto_figure, pareto_rows, pareto_table
from ard.cli.compared import Compared, resolve_compared
from ard.cli.options import print_plan
from ard.core.devices import DeviceName
from ard.core.errors import require_at_least
from ard.core.outputs import Outputs
from ard.core.progress import progress_bar
from ard.evaluation.evaluate import Judge
from ard.evaluation.feature_space import FeatureKind
from ard.evaluation.references import prepare_comparison
from ard.reporting.figures import require_matplotlib


@dataclass(frozen=True, kw_only=True)
class Pareto:
    """Measure what students, their teacher and its untrained few-step runs cost, and how good they are (Figure 2c, d).

    Scores are those of ard evaluate, whose references are used or made. Costs are multiply-accumulates per image, which
    are those of ard flops, and seconds per batch, measured here: in every round each model draws a batch. --out gets
    pareto.csv, pareto.json, pareto-flops.svg and pareto-latency.svg. A model is on the front when none is at most as
    costly and as bad. Students that differ in their training seed only are one point. For instance:

        ard analyze pareto --student runs/kd runs/step runs/ard --out runs/pareto
        ard analyze pareto --student runs/ard --batch-size 128 --rounds 21 --out runs/pareto
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
    """Images per model for the scores."""
    json: Path | None = None
    """Where to write the rows as JSON; None: pareto.json in --out."""
    batch_size: int = 64
    """Images drawn together, which is the batch that is timed."""
    rounds: int = 7
    """How often every model is timed."""
    overwrite: bool = False
    """Replace files that are no earlier output of this command, too."""
    device: DeviceName = "auto"
    """Where to compute."""
    dry_run: bool = False
    """Print the resolved configuration and do nothing."""

    def run(self) -> None:
        """Evaluate, time, print the table, write the rows and pictures."""
        require_at_least(1, {"rounds": self.rounds})
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
        machine = {**machine_facts(compared.device), "batch_size": self.batch_size, "rounds": self.rounds}
        if self.dry_run:
            return print_plan({**compared.plan(), "machine": machine})
        require_matplotlib()
        outputs = Outputs(command="analyze pareto", overwrite=self.overwrite)
        json = self.json or self.out / "pareto.json"
        csv, *figures = (self.out / name for name in ("pareto.csv", "pareto-flops.svg", "pareto-latency.svg"))
        outputs.check(json, *figures, csv)
        points = self._points(compared)
        rows = pareto_rows(points, batch_size=self.batch_size)
        print(pareto_table(points))
        print(f"s per batch: {', '.join(f'{name} {value}' for name, value in machine.items())}")
        outputs.json(json, {"machine": machine, "rows": rows})
        costs = {
            "macs": "multiply-accumulates per image",
            "latency": f"seconds per batch of {self.batch_size} on {machine['device']}",
        }
        for path, (cost, x_label) in zip(figures, costs.items(), strict=True):
            outputs.svg(path, pareto_figure(points, cost=cost, x_label=x_label))
        outputs.csv(csv, rows)
        print(f"written to {self.out}: pareto.csv, pareto-flops.svg, pareto-latency.svg")

    def _points(self, compared: Compared) -> list[Point]:
        comparison = prepare_comparison(self.student, compared.teacher, compared.references, device=compared.device)
        with progress_bar(len(self.student), "scores", unit="run") as bar:
            models = evaluated_models(comparison, compared.teacher, batch_size=self.batch_size, progress=bar.update)
        latencies = self._latencies(models, comparison.judge, compared)
        return [
            Point(rows=model.rows, macs=model.macs, latency=latency)
            for model, latency in zip(models, latencies, strict=True)
        ]

    def _latencies(self, models: list[Model], judge: Judge, compared: Compared) -> list[Latency]:
        rows = torch.arange(self.batch_size) % len(judge.noise)
        noise, condition = judge.noise[rows].to(compared.device), judge.conditions(judge.labels[rows])
        draws = [partial(model.draw, noise, condition.to(compared.device)) for model in models]
        with progress_bar(len(draws) * (self.rounds + 1), "latency", unit="batch") as bar:
            return measure_latencies(draws, rounds=self.rounds, device=compared.device, progress=bar.update)
