"""ard reproduce: the paper's study, tables and figures."""

import os
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from ard.cli.options import print_plan
from ard.core.config import differences, to_plain
from ard.core.devices import DeviceName
from ard.core.errors import InputError
from ard.core.places import require_own_folder
from ard.studies.paper.imagenet import ImagenetConfig, imagenet_plan, run_imagenet
from ard.studies.paper.tiny import TinyConfig, plan, run_tiny


class Scale(StrEnum):
    """How large the study is."""

    TINY = "tiny"  # On scikit-learn's digits, 95 minutes of processor time.
    IMAGENET256 = "imagenet256"  # The paper's own run.


@dataclass(frozen=True, kw_only=True)
class Reproduce:
    """Run the paper's study, and write report.md with a verdict on each of the paper's claims.

    tiny runs on the embedded digits: Table 1 in three recipes, and Figures 2 to 6. imagenet256 is the paper's own run
    of Table 1; it needs the teacher's weights, the autoencoder, the Inception network and ADM's reference batch. Both
    go on where they stopped. For instance:

        ard reproduce --scale tiny
        ard reproduce --scale imagenet256 --tflops 3200 --dry-run
    """

    scale: Scale
    """tiny or imagenet256."""
    out: Path | None = None
    """Folder for everything that is made; None: runs/reproduce-tiny or runs/reproduce-imagenet256."""
    tiny: TinyConfig = field(default_factory=TinyConfig)
    imagenet: ImagenetConfig = field(default_factory=ImagenetConfig)
    jobs: int = 0
    """Commands that run at a time; 0: one per core for tiny, one for imagenet256."""
    device: DeviceName = "auto"
    """Where to compute."""
    dry_run: bool = False
    """Print the commands, what they need and what they cost, and do nothing."""

    @property
    def folder(self) -> Path:
        """Where everything lies."""
        return self.out or Path("runs") / f"reproduce-{self.scale}"

    def run(self) -> None:
        """Run what is missing."""
        if self.jobs < 0:
            raise InputError(f"jobs is {self.jobs}; 0 means the default, otherwise at least 1")
        other, default = ("imagenet", ImagenetConfig()) if self.scale is Scale.TINY else ("tiny", TinyConfig())
        if changed := differences(to_plain(default), to_plain(getattr(self, other))):
            raise InputError(
                f"--scale {self.scale} does not take {changed[0]}; see which scale an option names in --help"
            )
        out = self.folder
        if not self.dry_run:
            require_own_folder(out, "stages.json", "report.md")
        match self.scale:
            case Scale.TINY if self.dry_run:
                print_plan({"tiny": self.tiny, "out": out, "stages": plan(out, self.tiny)})
            case Scale.TINY:
                report = run_tiny(out, self.tiny, device=self.device, jobs=self.jobs or os.cpu_count() or 1)
                print(f"report: {report}")
            case Scale.IMAGENET256 if self.dry_run:
                print_plan({"imagenet": self.imagenet, "out": out, **imagenet_plan(out, self.imagenet)})
            case Scale.IMAGENET256:
                print(f"report: {run_imagenet(out, self.imagenet, device=self.device, jobs=self.jobs or 1)}")
