"""ard bench collect: how long the teacher needs for a batch of trajectories."""

from dataclasses import dataclass

from ard.cli.bench.common import NetworkBench
from ard.cli.bench.latency import LatencyBench
from ard.errors import require_at_least


@dataclass(frozen=True, kw_only=True)
class CollectBench(NetworkBench):
    """Time the guided teacher over its whole trajectory, as `ard collect` runs it, without the disk.

    The inverse of "over floor" is the model FLOP utilisation. For instance:

        ard bench collect --model DiT-XL/2 --batch 128
    """

    num_teacher_steps: int = 25
    """Steps of the solver; the guidance doubles the network evaluations."""

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
