"""ard demo: the whole pipeline on the embedded digits."""

import os
from dataclasses import dataclass, field
from pathlib import Path

from ard.cli.options import print_plan
from ard.core.devices import DeviceName
from ard.core.errors import InputError
from ard.core.places import require_own_folder
from ard.studies.demo import DemoConfig, plan, run_demo


@dataclass(frozen=True, kw_only=True)
class Demo:
    """Teach, collect, distil, evaluate and report on scikit-learn's digits, in minutes on a laptop.

    Run again, it goes on where it stopped, and ends at once when all is there. For instance:

        ard demo --out runs/demo
        ard demo --out runs/demo --num-steps 4
    """

    out: Path = Path("runs/demo")
    """Folder for every stage, results.json and report.html."""
    demo: DemoConfig = field(default_factory=DemoConfig)
    jobs: int = 0
    """Commands that run at a time; 0: one per core."""
    device: DeviceName = "auto"
    """Where to compute."""
    dry_run: bool = False
    """Print the resolved configuration and do nothing."""

    def run(self) -> None:
        """Run what is missing."""
        if self.jobs < 0:
            raise InputError(f"jobs is {self.jobs}; 0 means one per core, otherwise at least 1")
        jobs = self.jobs or os.cpu_count() or 1
        if self.dry_run:
            stages = {
                name: [" ".join(["ard", *stage.command(self.out)]) for stage in group]
                for name, group in plan(self.demo)
            }
            return print_plan({"demo": self.demo, "jobs": jobs, "out": self.out, "stages": stages})
        require_own_folder(self.out, "stages.json", "demo.json", "results.json", "report.html", "samples.png")
        run_demo(self.out, self.demo, device=self.device, jobs=jobs)
