"""ard sweep: a grid of students on one trajectory store."""

from dataclasses import dataclass
from pathlib import Path

from ard.cli.options import parse_choices, parse_numbers, parse_range, parse_seeds, print_plan
from ard.core.devices import DeviceName, default_workers, resolve_device
from ard.core.errors import InputError, require_at_least
from ard.core.places import require_own_folder
from ard.evaluation.feature_space import FeatureKind
from ard.evaluation.references import MIN_SAMPLES, references_in
from ard.reporting.figures import require_matplotlib
from ard.reporting.table import as_text, floor_note
from ard.student.history import HistoryAttention, HistoryMask
from ard.student.student import Prediction, StateKind
from ard.studies.grid import Grid
from ard.studies.sweep import HEADER, Place, body_of, run_sweep
from ard.teacher.origin import find_teacher
from ard.teacher.teacher import Teacher, load_teacher
from ard.trajectories.manifest import load_manifest
from ard.trajectories.reader import TrajectoryReader

ALL_BLOCKS, AUTO = "all", "auto"


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """Train and compare every combination of the given values, each with every seed, on one trajectory store.

    Lists have commas between, numbers may be ranges. What another value makes equal is trained once: without history
    (diagonal, or N = 0) there is one student, with 1 step too, and with 2 steps all other masks are the same. A grid
    that grows, or that was killed, trains only what is missing. For instance:

        ard sweep --trajectories runs/all --num-steps 2,4 --masks M1,M4 --seeds 0-2 --out runs/steps
        ard sweep --trajectories runs/all --masks M1,M2,M3,M4 --history-blocks 1-4 --out runs/blocks
        ard sweep --trajectories runs/all --state x_t,x_0_hat --prediction next_state,solver_step --out runs/kinds
        ard sweep --trajectories runs/all --learning-rates 1e-3,2e-3,4e-3 --out runs/tuned
    """

    trajectories: Path
    """Folder of the training trajectories: `ard collect --keep all --states x_t x_0_hat` serves every grid."""
    out: Path
    """Folder of the students, results.json, table.md and sweep.svg."""
    num_steps: str = "4"
    """S, such as 1,2,4."""
    masks: str = "diagonal,causal"
    """Any of diagonal, window, anchor, causal, or M1 to M4."""
    history_blocks: str = ALL_BLOCKS
    """N, such as 1-3 or 1,all; all means every block."""
    history: str = "gated"
    """How the history enters attention: gated or shared; gated,shared for both."""
    state: str = "x_t"
    """x_t or x_0_hat; x_t,x_0_hat for both."""
    prediction: str = AUTO
    """auto: what suits the teacher; or any of solver_step, bounded_step, velocity, clean, next_state."""
    own_history: str = "0"
    """Final probability that training reads the student's own states, such as 0,1."""
    learning_rates: str = ""
    """One for all; or several: each arm takes the one that is best on separate trajectories; empty: the defaults."""
    seeds: str = "0-2"
    """Training seeds."""
    iterations: int = 600
    """Updates of every student."""
    batch_size: int = 32
    """Trajectories per update."""
    checkpoint_every: int = 0
    """Keep a checkpoint of every so many updates, for `ard analyze convergence`; 0: only the last. It is for students
    that are still to be trained."""
    teacher: Path | None = None
    """Folder of the teacher; None: where the store says."""
    references: Path | None = None
    """Folder for the classifier and the teacher's batches; None: evaluation/ in the teacher's folder."""
    features: FeatureKind | None = None
    """What distances are measured on; see ard evaluate."""
    real: Path | None = None
    """Real images to compare with; see ard evaluate."""
    num: int = 1500
    """Images per model in the evaluation."""
    jobs: int = 0
    """Students that train at a time; 0: one per core on a CPU, one on a GPU."""
    device: DeviceName = "auto"
    """Where to compute."""
    dry_run: bool = False
    """Print the resolved grid and do nothing."""

    def run(self) -> None:
        """Train, evaluate and publish what is missing."""
        require_at_least(0, {"jobs": self.jobs, "checkpoint_every": self.checkpoint_every})
        require_at_least(MIN_SAMPLES, {"num": self.num})
        device = resolve_device(self.device)
        require_matplotlib()
        place = self._place(default_workers(device))
        teacher, made_by = load_teacher(place.teacher, device), load_manifest(self.trajectories)[0].teacher
        if teacher.hash != made_by.hash:
            raise InputError(
                f"the teacher in {place.teacher} ({teacher.hash}) did not make {self.trajectories} ({made_by.hash}); "
                "give the right --teacher"
            )
        grid = self._grid(teacher)
        depth = teacher.network.config.depth
        designs = grid.designs(depth)
        for design in designs:
            TrajectoryReader(self.trajectories, state=design.student.state, num_steps=design.student.num_steps)
        if self.dry_run:
            tuned = len(grid.learning_rates) > 1
            cells = grid.cells(depth, grid.default_rates(depth))
            names = [f"{cell.design.name}-seed{cell.seed}, rate to be tuned" if tuned else cell.name for cell in cells]
            trials = [cell.name for cell in grid.trials(depth)] if tuned else []
            return print_plan({"grid": grid, "place": place, "trials": trials, "students": names})
        require_own_folder(self.out, "stages.json", "results.json", "table.md", "sweep.svg")
        results = run_sweep(place, grid, depth=depth, checkpoint_every=self.checkpoint_every)
        print(as_text(HEADER, body_of(results)))
        print(floor_note(results.scores))
        print(f"numbers: {self.out / 'results.json'}\nfigure: {self.out / 'sweep.svg'}")

    def _grid(self, teacher: Teacher) -> Grid:
        """The options as values."""
        return Grid(
            num_steps=tuple(parse_range(self.num_steps, "num-steps")),
            masks=parse_choices(self.masks, "masks", HistoryMask),
            history_blocks=self._history_blocks(),
            histories=parse_choices(self.history, "history", HistoryAttention),
            states=parse_choices(self.state, "state", StateKind),
            predictions=self._predictions(),
            own_histories=parse_numbers(self.own_history, "own-history"),
            learning_rates=parse_numbers(self.learning_rates, "learning-rates") if self.learning_rates else (),
            seeds=tuple(parse_seeds(self.seeds)),
            iterations=self.iterations,
            batch_size=self.batch_size,
            diffusion=teacher.diffusion,
            width=teacher.network.config.width,
        )

    def _predictions(self) -> tuple[Prediction | None, ...]:
        """What the students predict, None for auto."""
        words = self.prediction.split(",")
        named = ",".join(word for word in words if word != AUTO)
        chosen = parse_choices(named, "prediction", Prediction) if named else ()
        return (*((None,) if AUTO in words else ()), *chosen)

    def _history_blocks(self) -> tuple[int, ...]:
        """Every N, -1 for all blocks."""
        words = self.history_blocks.split(",")
        numbers = ",".join(word for word in words if word != ALL_BLOCKS)
        return (*(parse_range(numbers, "history-blocks") if numbers else ()), *((-1,) if ALL_BLOCKS in words else ()))

    def _place(self, workers: int) -> Place:
        """Where everything lies."""
        manifest, _ = load_manifest(self.trajectories)
        teacher = self.teacher or find_teacher(manifest.teacher, self.trajectories)
        return Place(
            out=self.out,
            store=self.trajectories,
            teacher=teacher,
            references=references_in(
                self.references or teacher / "evaluation", num=self.num, features=self.features, real=self.real
            ),
            device=self.device,
            jobs=self.jobs or workers,
        )
