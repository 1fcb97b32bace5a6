"""ard analyze solvers: what each solver of the teacher's ODE leaves of the error, for its steps."""

from dataclasses import dataclass, field
from pathlib import Path

import torch

from ard.analysis.solvers import Starts, plain_rows, solver_rows, solvers_table
from ard.cli.options import parse_choices, parse_range, print_plan
from ard.core.devices import DeviceName, resolve_device
from ard.core.errors import require_at_least
from ard.core.outputs import Outputs
from ard.core.progress import progress_bar
from ard.core.seeds import require_seed
from ard.diffusion.process import Solver
from ard.diffusion.spacing import TimeSpacing
from ard.teacher.teacher import Guidance, load_teacher, noise_for_seeds
from ard.text.encoded import require_classes


@dataclass(frozen=True, kw_only=True)
class Solvers:
    """Compare solvers and numbers of steps with a solution of many steps: how far their images are from its images.

    The reference is dpmpp_2m with --reference-steps. --guidance counts for all of them alike. With --out the rows are
    written to solvers.json and solvers.csv too. For instance:

        ard analyze solvers --teacher runs/teacher-vp --solvers ddim,dpmpp_2m --steps 6,12,24,48
        ard analyze solvers --teacher runs/teacher --solvers euler,heun,dpmpp_2m --steps 12,24 --out runs/solvers
    """

    teacher: Path
    """Folder of the teacher."""
    solvers: str
    """Which ones, with commas between: ddim for VP, euler or heun for flow, dpmpp_2m for both."""
    steps: str = "6,12,24,48"
    """Numbers of solver steps."""
    spacing: TimeSpacing | None = None
    """VP: which times they visit. None: the teacher's own, and log_snr for dpmpp_2m."""
    reference_steps: int = 384
    """Steps of the reference."""
    guidance: Guidance = field(default_factory=Guidance)
    num: int = 128
    """Images, of the seeds from --seed on and of every class in turn."""
    seed: int = 30_000_000
    """First seed, by default far from those of a store and of ard evaluate."""
    batch_size: int = 128
    """Images solved together."""
    out: Path | None = None
    """Folder for solvers.json and solvers.csv; None: the table only."""
    overwrite: bool = False
    """Replace files that are no earlier output of this command, too."""
    device: DeviceName = "auto"
    """Where to compute."""
    dry_run: bool = False
    """Print the resolved configuration and do nothing."""

    def run(self) -> None:
        """Solve, compare, print."""
        require_at_least(1, {"num": self.num, "batch_size": self.batch_size})
        require_seed("seed", self.seed)
        require_seed("the last seed", self.seed + self.num - 1)
        device, steps = resolve_device(self.device), parse_range(self.steps, "steps")
        solvers, teacher = parse_choices(self.solvers, "solvers", Solver), load_teacher(self.teacher, device)
        require_classes(teacher.network.config, owner=self.teacher, reader="solvers are compared on teachers")
        if self.dry_run:
            return print_plan({"solvers": solvers, "steps": steps, "guidance": self.guidance, "device": str(device)})
        outputs = Outputs(command="analyze solvers", overwrite=self.overwrite)
        files = [self.out / name for name in ("solvers.json", "solvers.csv")] if self.out else []
        outputs.check(*files)
        shape, seeds = teacher.network.config, range(self.seed, self.seed + self.num)
        noise = noise_for_seeds(seeds, (shape.channels, shape.latent_size, shape.latent_size)).to(device)
        label = torch.tensor(seeds, device=device) % shape.num_classes
        with progress_bar(len(solvers) * len(steps) + 1, "solvers", unit="run") as bar:
            rows = solver_rows(
                teacher,
                Starts(noise=noise, label=label, batch_size=self.batch_size),
                solvers=solvers,
                steps=steps,
                reference_steps=self.reference_steps,
                guidance=self.guidance,
                spacing=self.spacing,
                progress=bar.update,
            )
        print(solvers_table(rows))
        if self.out:
            outputs.json(files[0], {"rows": plain_rows(rows)})
            outputs.csv(files[1], plain_rows(rows))
            print(f"written to {files[1]}")
