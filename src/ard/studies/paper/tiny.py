"""The paper's study on the embedded digits: a plan of `ard` commands, several run at a time, all of them resume."""

import json
import shlex
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ard.core.config import to_plain
from ard.core.devices import DeviceName, resolve_device
from ard.core.errors import require_at_least
from ard.core.files import read_json, write_atomically, write_json
from ard.evaluation.references import MIN_SAMPLES, references_in
from ard.images import load_data
from ard.networks.transformer import SIZES
from ard.reporting.figures import require_matplotlib
from ard.student.history import HistoryMask
from ard.studies.grid import Cell, Grid
from ard.studies.paper.recipes import RECIPES, Recipe
from ard.studies.paper.report import report
from ard.studies.stages import Stage, digits_stages, run_missing
from ard.studies.sweep import Place, Results, evaluate_cells, sweep_figure, write_results
from ard.teacher.teacher import load_teacher_card

SEEDS = "1000000-1000009"  # Noises that no student has seen.
DEPTH = SIZES["tiny"][0]
CHECKPOINTS = 6  # Of each student with 4 steps, for the convergence curves.


@dataclass(frozen=True, kw_only=True)
class TinyConfig:
    """The size of the tiny study. The defaults take 95 minutes of processor time."""

    num_seeds: int = 3
    """tiny: training seeds per student."""
    num: int = 4000
    """tiny: training trajectories."""
    num_evaluation: int = 1500
    """tiny: images per model in the evaluation."""
    teacher_iterations: int = 1300
    """tiny: updates of the teacher."""
    student_iterations: int = 600
    """tiny: updates of every student."""

    def __post_init__(self) -> None:
        """Refuse numbers that cannot be meant."""
        require_at_least(1, {"num_seeds": self.num_seeds, "num": self.num})
        require_at_least(1, {"teacher_iterations": self.teacher_iterations})
        require_at_least(CHECKPOINTS, {"student_iterations": self.student_iterations})
        require_at_least(MIN_SAMPLES, {"num_evaluation": self.num_evaluation})


def grids_of(recipe: Recipe, config: TinyConfig) -> list[Grid]:
    """Table 1's students in the recipe; in the first recipe every mask with every N besides (Figure 6c)."""
    every_mask, few, everything = tuple(HistoryMask), (1,), (DEPTH,)
    axes: list[tuple[int, tuple[HistoryMask, ...], tuple[int, ...]]] = [
        (1, (HistoryMask.DIAGONAL,), few),
        (2, (HistoryMask.DIAGONAL, HistoryMask.CAUSAL), few),
        (2, (HistoryMask.CAUSAL,), everything),
        (4, every_mask, tuple(range(1, DEPTH + 1)) if recipe is RECIPES[0] else few),
        (4, (HistoryMask.CAUSAL,), everything),
    ]
    return [
        Grid(
            num_steps=(num_steps,),
            masks=masks,
            history_blocks=blocks,
            states=(recipe.state,),
            predictions=(recipe.prediction,),
            histories=(recipe.history,),
            seeds=tuple(range(config.num_seeds)),
            iterations=config.student_iterations,
        )
        for num_steps, masks, blocks in axes
    ]


def cells_of(recipe: Recipe, config: TinyConfig) -> list[Cell]:
    """The recipe's students, without repetitions, seed after seed."""
    grids = grids_of(recipe, config)
    cells = (cell for grid in grids for cell in grid.cells(DEPTH, grid.default_rates(DEPTH)))
    return sorted(dict.fromkeys(cells), key=lambda cell: cell.seed)


def all_cells(config: TinyConfig) -> list[Cell]:
    """The students of all recipes; those with one step are shared by two."""
    cells = (cell for recipe in RECIPES for cell in cells_of(recipe, config))
    return sorted(dict.fromkeys(cells), key=lambda cell: cell.seed)


def data_stages(config: TinyConfig) -> list[tuple[str, list[Stage]]]:
    """The teacher and its trajectories."""
    return digits_stages(
        teacher_iterations=config.teacher_iterations, num=config.num, num_evaluation=config.num_evaluation, seed=0
    )


def latency_stage(config: TinyConfig) -> Stage:
    """Figure 2, apart from the others: it measures seconds, so nothing runs beside it."""
    cells = [cell for cell in cells_of(RECIPES[0], config) if cell.design.student.history_blocks in {0, 1, DEPTH}]
    num = ("--references", "OUT", "--num", str(config.num_evaluation))
    return Stage("figure-2", ("analyze", "pareto", *_students(_ends(cells)), *num))


def figure_stages(config: TinyConfig) -> list[Stage]:
    """The paper's other figures, each an `ard analyze` or `ard sample` of the students it is about."""
    num = ("--references", "OUT", "--num", str(config.num_evaluation))
    code, ours = (cells_of(recipe, config) for recipe in (RECIPES[0], RECIPES[2]))
    first = [cell for cell in code if cell.seed == 0]
    four = [cell for cell in code if cell.design.student.num_steps == 4]
    few = [cell for cell in four if cell.design.student.history_blocks <= 1]
    ends = _ends(few)
    causal = [cell for cell in first if cell in four and cell.design.student.mask is HistoryMask.CAUSAL]
    shown = [cell for cell in first if cell.design.student.num_steps == 1 or cell in ends]
    ours_few = [one for one in ours if one.design.student.num_steps == 4 and one.design.student.history_blocks <= 1]
    attention = [cell for cell in causal if cell.design.student.history_blocks in {1, DEPTH}]
    return [
        Stage("figure-3b", ("analyze", "masks"), computes=False),
        Stage("figure-4", ("analyze", "attention", *_students(attention))),
        Stage("figure-6a", ("analyze", "convergence", *_students(few), *num)),
        Stage("figure-6b", ("analyze", "errors", *_students([*ends, *_ends(ours_few)]), *num)),
        Stage("figure-5.png", ("sample", *_students(shown), "--teacher", "OUT/teacher", "--grid", "--seeds", SEEDS)),
    ]


def run_tiny(out: Path, config: TinyConfig, *, device: DeviceName, jobs: int) -> Path:
    """Run what is missing, and publish report.md with its figures in `out`; the path of the report.

    What the last stage needs is asked for before the first one starts.
    """
    resolve_device(device)
    load_data("digits")
    require_matplotlib()
    with _stopwatch(out / "seconds.json"):
        for number, (name, stages) in enumerate(data_stages(config), 1):
            run_missing(out, stages, device=device, jobs=jobs, title=f"[{number}/5] {name}")
        place = tiny_place(out, config, device=device, jobs=jobs)
        for every, cells in checkpointed(config):
            place.train(cells, f"[3/5] students, {len(cells)} of {len(all_cells(config))}", checkpoint_every=every)
        print("[4/5] evaluation", flush=True)
        results = evaluate_cells(place, all_cells(config))
        write_results(place.out, results, {"config": to_plain(config)})
        write_atomically(out / "figure-6c.svg", sweep_figure(_blocks(results, config)).encode())
        run_missing(out, figure_stages(config), device=device, jobs=jobs, title="[5/5] figures")
        run_missing(out, [latency_stage(config)], device=device, jobs=1, title="[5/5] latency")
    seconds = read_json(out / "seconds.json")["seconds"]
    facts = {"configuration": json.dumps(to_plain(config)), "wall time": f"{seconds:.0f} s, {jobs} commands at a time"}
    network = load_teacher_card(out / "teacher").network
    write_atomically(out / "report.md", report(out, results, network, num=config.num_evaluation, facts=facts).encode())
    return out / "report.md"


def checkpointed(config: TinyConfig) -> list[tuple[int, list[Cell]]]:
    """The students with 4 steps, which keep a checkpoint of every so many updates, and the others."""
    cells = all_cells(config)
    four = [cell for cell in cells if cell.design.student.num_steps == 4]
    return [
        (max(1, config.student_iterations // CHECKPOINTS), four),
        (0, [cell for cell in cells if cell not in four]),
    ]


def tiny_place(out: Path, config: TinyConfig, *, device: DeviceName, jobs: int) -> Place:
    """Where the students lie and what they are compared with."""
    return Place(
        out=out / "students",
        store=out / "trajectories-train",
        teacher=out / "teacher",
        references=references_in(out, num=config.num_evaluation),
        device=device,
        jobs=jobs,
    )


def plan(out: Path, config: TinyConfig) -> dict[str, list[str]]:
    """Every command, by stage, as --dry-run shows it."""
    place = tiny_place(out, config, device="cpu", jobs=1)
    students = [
        cell.stage(place.store, place.teacher, inputs="", checkpoint_every=every)
        for every, cells in checkpointed(config)
        for cell in cells
    ]
    groups = [*data_stages(config), ("students", students)]
    groups.append(("figures", [*figure_stages(config), latency_stage(config)]))
    return {
        name: [shlex.join(["ard", *stage.command(place.out if name == "students" else out)]) for stage in stages]
        for name, stages in groups
    }


def _blocks(results: Results, config: TinyConfig) -> Results:
    """The students with 4 steps of the first recipe, which Figure 6c shows."""
    code = cells_of(RECIPES[0], config)
    found = [one for one in results.cells if one.cell in code and one.cell.design.student.num_steps == 4]
    return Results(results.teacher, found)


@contextmanager
def _stopwatch(path: Path) -> Iterator[None]:
    """Add the time inside to that of the runs before it, however it ends; a look at a finished study adds little."""
    before = read_json(path)["seconds"] if path.exists() else 0.0
    started = time.monotonic()
    try:
        yield
    finally:
        write_json(path, {"seconds": before + time.monotonic() - started})


def _students(cells: Sequence[Cell]) -> tuple[str, ...]:
    return ("--student", *(f"OUT/students/{cell.name}" for cell in cells))


def _ends(cells: Sequence[Cell]) -> list[Cell]:
    """Step distillation and ARD with the whole history, without the masks between."""
    return [cell for cell in cells if cell.design.student.mask in {HistoryMask.DIAGONAL, HistoryMask.CAUSAL}]
