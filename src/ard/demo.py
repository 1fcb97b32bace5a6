"""The whole pipeline on the embedded digits: each stage is one `ard` command, two run at a time, all of them resume."""

import os
import platform
import shlex
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import ard
from ard.config import to_plain
from ard.datasets import load_data
from ard.devices import DeviceName, resolve_device
from ard.errors import require_at_least
from ard.evaluation.evaluate import Row
from ard.figures import require_matplotlib
from ard.files import read_json, write_atomically, write_json
from ard.models.student import Prediction
from ard.pictures import labelled_sheet, png_bytes, to_pixels
from ard.presets import NUM_TEACHER_STEPS
from ard.references import MIN_SAMPLES, evaluate_students, references_in
from ard.report import Report, write_report
from ard.seeds import require_seed
from ard.stages import Stage, digits_stages, run_missing
from ard.table import describe, format_rows, merge_seeds
from ard.timegrid import uniform_indices
from ard.training.loop import read_log


@dataclass(frozen=True, kw_only=True)
class DemoConfig:
    """The size of the demonstration. The defaults take under six minutes on two idle cores."""

    num_steps: int = 2
    """S of the step-distillation and ARD students."""
    num_seeds: int = 2
    """Training seeds per student, for the spread."""
    num: int = 4000
    """Training trajectories."""
    num_evaluation: int = 1500
    """Images per model in the evaluation."""
    teacher_iterations: int = 1300
    """Updates of the teacher."""
    student_iterations: int = 0
    """Updates of every student; 0: as many as its preset says, equal for both arms of a pair."""
    seed: int = 0
    """Seed of the teacher and first seed of the students."""

    def __post_init__(self) -> None:
        """Refuse numbers that cannot be meant."""
        require_at_least(1, {"num_steps": self.num_steps, "num_seeds": self.num_seeds, "num": self.num})
        require_at_least(1, {"teacher_iterations": self.teacher_iterations})
        require_at_least(MIN_SAMPLES, {"num_evaluation": self.num_evaluation})
        require_at_least(0, {"seed": self.seed, "student_iterations": self.student_iterations})
        require_seed(f"the last of {self.num_seeds} seeds from {self.seed} on", self.seed + self.num_seeds - 1)
        uniform_indices(NUM_TEACHER_STEPS, self.num_steps)


ARMS = ("kd", "step", "ard", "step-x0", "ard-x0")


def students_of(config: DemoConfig) -> list[Stage]:
    """A student per arm and seed; both arms of a pair have equal trajectories and updates."""
    stages = []
    for seed in range(config.seed, config.seed + config.num_seeds):
        for arm in ARMS:
            steps = 1 if arm == "kd" else config.num_steps
            arguments = ("distill", "--preset", arm, "--trajectories", "OUT/trajectories-train")
            numbers = ("--num-steps", str(steps), "--seed", str(seed))
            updates = ("--iterations", str(config.student_iterations)) if config.student_iterations else ()
            stages.append(Stage(f"{arm}-s{steps}-seed{seed}", (*arguments, *numbers, *updates)))
    return stages


def plan(config: DemoConfig) -> list[tuple[str, list[Stage]]]:
    """The stages in order; those of one group do not depend on one another."""
    data = digits_stages(
        teacher_iterations=config.teacher_iterations,
        num=config.num,
        num_evaluation=config.num_evaluation,
        seed=config.seed,
    )
    return [*data, ("students", students_of(config))]


def run_demo(out: Path, config: DemoConfig, *, device: DeviceName, jobs: int) -> None:
    """Run what is missing, evaluate, print the table and write results.json and report.html into `out`.

    What the last stage needs is asked for before the first one starts.
    """
    resolve_device(device)
    load_data("digits")
    require_matplotlib()
    started = time.monotonic()
    groups = plan(config)
    ran = 0
    for number, (name, stages) in enumerate(groups, 1):
        ran += len(run_missing(out, stages, device=device, jobs=jobs, title=f"[{number}/{len(groups) + 1}] {name}"))
    note = to_plain(config)
    whole = all((out / name).exists() for name in ("demo.json", "results.json", "report.html", "samples.png"))
    if ran or not whole or read_json(out / "demo.json") != note:
        print(f"[{len(groups) + 1}/{len(groups) + 1}] evaluation", flush=True)
        _evaluate(out, config, groups, device=resolve_device(device))
        write_json(out / "demo.json", note)
    results = read_json(out / "results.json")
    rows = [Row.from_plain(row) for row in results["rows"]]
    print(format_rows(rows, real_floor=results["fd_real_floor"]))
    print("\n".join(findings(rows)))
    print(
        f"report: {out / 'report.html'}\nnumbers: {out / 'results.json'}\nwall time: {time.monotonic() - started:.0f} s"
    )


def findings(rows: Sequence[Row]) -> list[str]:
    """What the numbers say, in sentences that are made from them."""
    solver = [row for row in rows if row.prediction == Prediction.SOLVER_STEP]
    best = min(solver, key=lambda row: row.scores.fd_teacher)
    ratio = best.scores.fd_teacher / best.scores.fd_floor
    floor = (
        f"The best solver-step student ({best.model}, {best.nfe} network evaluations, seed {best.seed}) is at "
        f"{ratio:.2f} times the noise floor of its teacher."
    )
    sentences = [floor]
    for state, prediction in (("x_t", "solver_step"), ("x_0_hat", "next_state")):
        arm = {model: _means(rows, model, state, prediction) for model in ("step", "ard")}
        if all(arm.values()):
            (fd_step, mse_step, recall_step), (fd_ard, mse_ard, recall_ard) = arm["step"], arm["ard"]
            sentences.append(
                f"{state}, {prediction}: ARD against step distillation, means over seeds: FD teacher {fd_ard:.2f} "
                f"against {fd_step:.2f}, paired MSE {mse_ard:.5f} against {mse_step:.5f}, recall {recall_ard:.3f} "
                f"against {recall_step:.3f}."
            )
    return sentences


def _means(rows: Sequence[Row], model: str, state: str, prediction: str) -> tuple[float, ...]:
    """Mean FD to the teacher, paired MSE and recall over the seeds of one arm; empty when there is none."""
    found = [row.scores for row in rows if (row.model, row.state, row.prediction) == (model, state, prediction)]
    columns = zip(*((score.fd_teacher, score.paired_mse, score.recall) for score in found), strict=True)
    return tuple(sum(column) / len(column) for column in columns)


def _evaluate(out: Path, config: DemoConfig, groups: list[tuple[str, list[Stage]]], *, device: torch.device) -> None:
    folders = tuple(out / stage.folder for stage in students_of(config))
    references = references_in(out, num=config.num_evaluation)
    result = evaluate_students(folders, out / "teacher", references, device=device, batch_size=256)
    write_json(out / "results.json", {"fd_real_floor": result.real_floor, "rows": [row.plain() for row in result.rows]})
    stages = [stage for _, group in groups for stage in group]
    report = Report(
        title=f"ard demo: {config.num_steps} steps on scikit-learn's digits",
        findings=findings(result.rows),
        rows=result.rows,
        images=result.images,
        real_floor=result.real_floor,
        logs={folder.name: read_log(folder) for folder in folders[: len(ARMS)]},
        commands=[shlex.join(["ard", *stage.command(out)]) for stage in stages],
        facts={
            "demo": to_plain(config),
            "runs": {path.parent.name: read_json(path) for path in sorted(out.glob("*/run.json"))},
            "versions": _versions(),
        },
    )
    write_report(out / "report.html", report)
    groups_of_rows = [result.rows.index(group[0]) for group in merge_seeds(result.rows)]
    labels = [describe(result.rows[index]) for index in groups_of_rows]
    pictures = [to_pixels(result.images[index]) for index in groups_of_rows]
    write_atomically(out / "samples.png", png_bytes(labelled_sheet(labels, pictures, scale=5)))


def _versions() -> dict[str, Any]:
    return {
        "ard": ard.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
    }
