"""ard bench collect: how long the teacher needs for a batch of trajectories."""

from dataclasses import dataclass
from pathlib import Path

from ard.cli.bench.latency import LatencyBench
from ard.devices import DeviceName
from ard.errors import require_at_least


@dataclass(frozen=True, kw_only=True)
class CollectBench:
    """Time the guided teacher over its whole trajectory, as `ard collect` runs it, without the disk.

    The inverse of "over floor" is the model FLOP utilisation. For instance:

        ard bench collect --model DiT-XL/2 --batch 128
    """

    model: str = "DiT-S/2"
    """Size and patch on its usual data, such as DiT-XL/2 or tiny/2; or a teacher's folder."""
    num_teacher_steps: int = 25
    """Steps of the solver; the guidance doubles the network evaluations."""
    batch: str = "1"
    """Trajectories made together, such as 1,128."""
    rounds: int = 5
    """How often it is timed."""
    json: Path | None = None
    """Where to write the rows as JSON."""
    device: DeviceName = "auto"
    """Where to compute."""
    dry_run: bool = False
    """Print the resolved configuration and do nothing."""

    def run(self) -> None:
        """Time, print."""
        require_at_least(1, {"num_teacher_steps": self.num_teacher_steps})
        LatencyBench(
            model=self.model,
            models=f"teacher{self.num_teacher_steps}",
            batch=self.batch,
            rounds=self.rounds,
            json=self.json,
            device=self.device,
            dry_run=self.dry_run,
        ).run()
