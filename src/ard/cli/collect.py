"""ard collect: a teacher to a trajectory store."""

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from ard.cli.options import print_plan
from ard.core.devices import DeviceName, default_workers, resolve_device
from ard.core.errors import InputError
from ard.core.progress import progress_bar
from ard.diffusion.process import Solver
from ard.diffusion.spacing import TimeSpacing
from ard.diffusion.timegrid import check_indices, uniform_indices
from ard.presets import NUM_TEACHER_STEPS
from ard.student.student import StateKind
from ard.teacher.teacher import Guidance, load_teacher, plan_ode
from ard.text.encoded import EncodedText
from ard.trajectories.collect import collect, plan_store, with_measured_error
from ard.trajectories.execution import Execution, executed


@dataclass(frozen=True, kw_only=True)
class Collect:
    """Solve the teacher's ODE from many noises and keep the trajectories; students are trained on them.

    Trajectory i has the seed SEED + i and the label (SEED + i) mod the number of classes, or of prompts for a teacher
    that reads text. A killed run goes on with the same command and ends with the same bytes; a larger --num adds to the
    store. For instance:

        ard collect --teacher runs/teacher --out runs/trajectories --num 3000 --num-steps 4 --seed 0
        ard collect --teacher runs/teacher --out runs/all --num 3000 --keep all --states x_t x_0_hat
        ard collect --teacher runs/pixart --text runs/text --cfg-scale 4.5 --num 10000 --out runs/trajectories
        ard collect --preset imagenet256-ard --teacher runs/dit --out runs/imagenet256
    """

    teacher: Path
    """Folder of the teacher."""
    out: Path
    """Folder of the trajectory store."""
    text: Path | None = None
    """Folder of encoded prompts, for a teacher that reads text; see ard text encode."""
    preset: str | None = None
    """Fills in what follows as a preset of `ard distill` needs it, such as imagenet256-ard."""
    num: int = 3000
    """Number of trajectories."""
    num_steps: int = 4
    """S of the students to come: S + 1 points are kept."""
    keep: Literal["grid", "all"] = "grid"
    """grid: the S + 1 points; all: every teacher point, so that S and the grid can change later."""
    grid: tuple[int, ...] = ()
    """The S + 1 points as indices of teacher steps, noise first, e.g. 0 10 15 20 25; empty: evenly spaced."""
    seed: int = 0
    """Seed of the first trajectory."""
    num_teacher_steps: int = NUM_TEACHER_STEPS
    """Solver steps of the teacher."""
    guidance: Guidance = field(default_factory=Guidance)
    solver: Solver | None = None
    """ddim for VP; euler or heun for flow; dpmpp_2m for both. None: first order. Another solver is another teacher."""
    spacing: TimeSpacing | None = None
    """VP: which times the solver visits. None: the teacher's own, and log_snr for dpmpp_2m."""
    states: tuple[StateKind, ...] = (StateKind.X_T,)
    """What is stored: x_t, x_0_hat, or both."""
    dtype: Literal["float16", "bfloat16", "float32"] = "float16"
    """Stored precision; the ODE's state is float32 while it is solved."""
    shard_size: int = 256
    """Trajectories per file."""
    batch_size: int = 128
    """Trajectories solved together."""
    execution: Execution = field(default_factory=Execution)
    workers: int = 0
    """Processes; 0: one per core on a CPU, one on a GPU."""
    device: DeviceName = "auto"
    """Where to compute."""
    dry_run: bool = False
    """Print the resolved configuration and do nothing."""

    def run(self) -> None:
        """Collect and publish."""
        if self.workers < 0:
            raise InputError(f"workers is {self.workers}; 0 means one per core, otherwise at least 1")
        if not self.states:
            raise InputError("--states is empty; allowed: x_t, x_0_hat, or both")
        if self.grid and self.keep == "all":
            raise InputError("--grid has no meaning with --keep all, which keeps every point: leave one of them out")
        device = resolve_device(self.device)
        teacher = load_teacher(self.teacher, device)
        ode = plan_ode(
            teacher,
            num_teacher_steps=self.num_teacher_steps,
            guidance=self.guidance,
            solver=self.solver,
            spacing=self.spacing,
        )
        manifest = plan_store(
            self.out,
            self.teacher,
            teacher,
            ode,
            kept=self._kept(),
            states=self.states,
            num=self.num,
            first_seed=self.seed,
            dtype=self.dtype,
            shard_size=self.shard_size,
            batch_size=self.batch_size,
            execution=self.execution,
            text=EncodedText(self.text) if self.text else None,
        )
        if manifest.text and (unused := manifest.text.num - self.num) > 0:
            told = f"{unused:,} of {manifest.text.num:,} prompts have no trajectory"
            print(f"{told}: --num is {self.num}, and {manifest.text.num} takes them all", file=sys.stderr)
        workers = self.workers or default_workers(device)
        if self.dry_run:
            return print_plan({"manifest": manifest, "device": str(device), "workers": workers, "out": self.out})
        runner = executed(teacher, self.execution)
        manifest = with_measured_error(self.out, manifest, teacher, runner, device=device)
        if manifest.x_0_error is not None:
            told = f"first {min(self.num, self.batch_size)} images against eager fp32"
            print(f"{told}: relative error {manifest.x_0_error:.3g}")
        with progress_bar(self.num, "collect", unit="traj") as bar:
            collect(self.out, manifest, runner, device=device, workers=workers, progress=bar.update)
        print(f"trajectories {self.out}: {self.num} in {manifest.num_shards} shards")

    def _kept(self) -> tuple[int, ...]:
        """The points to keep, as indices of the teacher's grid."""
        if self.keep == "all":
            return tuple(range(self.num_teacher_steps + 1))
        if self.grid:
            return check_indices(self.grid, self.num_teacher_steps)
        return uniform_indices(self.num_teacher_steps, self.num_steps)
