"""The whole pipeline on the embedded digits: each stage is one `ard` command, two run at a time, all of them resume."""

import os
import platform
import shlex
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

import ard
from ard.core.config import to_plain
from ard.core.devices import DeviceName, resolve_device
from ard.core.errors import require_at_least
from ard.core.files import read_json, write_atomically, write_json
from ard.core.seeds import require_seed
from ard.diffusion.timegrid import uniform_indices
from ard.evaluation.evaluate import Row
from ard.evaluation.references import MIN_SAMPLES, evaluate_students, references_in
from ard.images import load_data
from ard.images.pictures import labelled_sheet, png_bytes, to_pixels
from ard.presets import NUM_TEACHER_STEPS
from ard.reporting.figures import require_matplotlib
from ard.reporting.html import Report, write_report
from ard.reporting.table import describe, format_rows, merge_seeds
from ard.student.student import Prediction
from ard.studies.stages import Stage, digits_stages, run_missing
from ard.training.log import read_log


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
    adversarial: bool = False
    """Train the pair on x_t further, with R and with R + D: as many updates on the same trajectories."""
    further_iterations: int = 600
    """--adversarial: further updates."""
    seed: int = 0
    """Seed of the teacher and first seed of the students."""

    def __post_init__(self) -> None:
        """Refuse numbers that cannot be meant."""
        require_at_least(1, {"num_steps": self.num_steps, "num_seeds": self.num_seeds, "num": self.num})
        require_at_least(1, {"teacher_iterations": self.teacher_iterations})
        require_at_least(MIN_SAMPLES, {"num_evaluation": self.num_evaluation})
        require_at_least(1, {"further_iterations": self.further_iterations})
        require_at_least(0, {"seed": self.seed, "student_iterations": self.student_iterations})
        require_seed(f"the last of {self.num_seeds} seeds from {self.seed} on", self.seed + self.num_seeds - 1)
        uniform_indices(NUM_TEACHER_STEPS, self.num_steps)


ARMS = ("kd", "step", "ard", "step-x0", "ard-x0")
FURTHER_ARMS = ("step", "ard")


def students_of(config: DemoConfig) -> list[Stage]:
    """A student per arm and seed; both arms of a pair have equal trajectories and updates."""
    stages = []
    for seed in _seeds(config):
        for arm in ARMS:
            steps = 1 if arm == "kd" else config.num_steps
            arguments = ("distill", "--preset", arm, "--trajectories", "OUT/trajectories-train")
            numbers = ("--num-steps", str(steps), "--seed", str(seed))
            updates = ("--iterations", str(config.student_iterations)) if config.student_iterations else ()
            stages.append(Stage(f"{arm}-s{steps}-seed{seed}", (*arguments, *numbers, *updates)))
    return stages


def further_students_of(config: DemoConfig) -> list[Stage]:
    """What the adversarial stage adds: a pair trained further with R + D, and with R alone for comparison."""
    stages = []
    starts = {stage.folder: stage for stage in students_of(config)}
    for seed in _seeds(config) if config.adversarial else ():
        for arm in FURTHER_ARMS:
            where = f"s{config.num_steps}-seed{seed}"
            start = starts[f"{arm}-{where}"]
            arguments = ("distill", "--resume-from", f"OUT/{start.folder}", "--trajectories", "OUT/trajectories-train")
            updates = ("--iterations", str(config.further_iterations))
            for name, more in (("gan", ("--adversarial",)), ("more", ())):
                inputs = " ".join(start.arguments)
                stages.append(Stage(f"{arm}-{name}-{where}", (*arguments, *updates, *more), inputs=inputs))
    return stages


def _seeds(config: DemoConfig) -> range:
    return range(config.seed, config.seed + config.num_seeds)


def plan(config: DemoConfig) -> list[tuple[str, list[Stage]]]:
    """The stages in order; those of one group do not depend on one another."""
    data = digits_stages(
        teacher_iterations=config.teacher_iterations,
        num=config.num,
        num_evaluation=config.num_evaluation,
        seed=config.seed,
    )
    further = further_students_of(config)
    return [*data, ("students", students_of(config)), *([("adversarial stage", further)] if further else [])]


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
        arm = {model: _means(rows, model, state, prediction, "R") for model in ("step", "ard")}
        if step := arm["step"]:
            ard_means = arm["ard"]
            sentences.append(
                f"{state}, {prediction}: ARD against step distillation, means over seeds: FD teacher "
                f"{ard_means['fd_teacher']:.2f} against {step['fd_teacher']:.2f}, paired MSE "
                f"{ard_means['paired_mse']:.5f} against {step['paired_mse']:.5f}, recall {ard_means['recall']:.3f} "
                f"against {step['recall']:.3f}."
            )
    return [*sentences, *_further_findings(rows)]


def _further_findings(rows: Sequence[Row]) -> list[str]:
    """What the adversarial stage brought, beside the teacher and the same updates without a discriminator."""
    teacher, sentences = rows[0].scores, []
    for model in ("step", "ard"):
        judged, plain = (_means(rows, model, "x_t", "solver_step", loss) for loss in ("then R + D", "then R"))
        if judged and plain:
            sentences.append(
                f"{model}, trained further with R + D and with R alone, means over seeds: FD real "
                f"{judged['fd_real']:.1f} and {plain['fd_real']:.1f} (teacher {teacher.fd_real:.1f}), precision "
                f"{judged['precision']:.3f} and {plain['precision']:.3f} ({teacher.precision:.3f}), recall "
                f"{judged['recall']:.3f} and {plain['recall']:.3f} ({teacher.recall:.3f})."
            )
    return sentences


def _means(rows: Sequence[Row], model: str, state: str, prediction: str, loss: str) -> dict[str, float]:
    """The mean scores over the seeds of one arm; empty when there is none."""
    wanted = (model, state, prediction, loss)
    found = [asdict(row.scores) for row in rows if (row.model, row.state, row.prediction, row.loss) == wanted]
    numbers = [name for name, value in found[0].items() if isinstance(value, float)] if found else []
    return {name: fmean(scores[name] for scores in found) for name in numbers}


def _evaluate(out: Path, config: DemoConfig, groups: list[tuple[str, list[Stage]]], *, device: torch.device) -> None:
    students, further = students_of(config), further_students_of(config)
    folders = tuple(out / stage.folder for stage in (*students, *further))
    first_seed = [*students[: len(ARMS)], *further[: 2 * len(FURTHER_ARMS)]]
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
        logs={stage.folder: read_log(out / stage.folder) for stage in first_seed},
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
