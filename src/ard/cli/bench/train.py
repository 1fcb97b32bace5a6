"""ard bench train: how long an update of a student takes."""

from dataclasses import dataclass, field
from pathlib import Path

from ard.analysis.latency import machine_facts
from ard.bench.ceilings import best_flops
from ard.bench.contenders import random_network
from ard.bench.measure import Timed, measure_rows
from ard.bench.training import update_macs, updates
from ard.cli.bench.common import ceilings_for, named_network, parse_batches, tell
from ard.cli.options import print_plan
from ard.devices import DeviceName, resolve_device
from ard.errors import InputError, require_at_least
from ard.history import HistoryAttention
from ard.models.student import StudentConfig
from ard.progress import progress_bar


@dataclass(frozen=True, kw_only=True)
class TrainBench:
    """Time an update of a student: as we lay history out, and with the usual dense mask and adaLN per token.

    Both have the same weights, and equal gradients, which is checked before. For instance:

        ard bench train --model DiT-B/2 --history-blocks 6 --batch 4
        ard bench train --model tiny/2 --batch 32 --json train.json
    """

    model: str = "DiT-S/2"
    """Size and patch on its usual data, such as DiT-XL/2 or tiny/2; or a teacher's folder."""
    student: StudentConfig = field(default_factory=lambda: StudentConfig(history=HistoryAttention.SHARED))
    batch: str = "4"
    """Trajectories per update, such as 4,64."""
    rounds: int = 7
    """How often every variant is timed."""
    json: Path | None = None
    """Where to write the rows as JSON."""
    device: DeviceName = "auto"
    """Where to compute."""
    dry_run: bool = False
    """Print the resolved configuration and do nothing."""

    def run(self) -> None:
        """Check, time, print."""
        require_at_least(1, {"rounds": self.rounds})
        if self.student.history is HistoryAttention.GATED or self.student.per_step_heads:
            raise InputError("the dense layout has one softmax and one head: --history shared, --no-per-step-heads")
        device, config, batches = resolve_device(self.device), named_network(self.model), parse_batches(self.batch)
        if self.dry_run:
            return print_plan(
                {"network": config, "student": self.student, "batches": batches, "machine": machine_facts(device)}
            )
        network = random_network(config, device)
        timed = [
            Timed(name=one.name, batch=size, run=one.run, macs=update_macs(self.student, network) * size)
            for size in batches
            for one in updates(network, self.student, size)
        ]
        tokens = [size * self.student.num_steps for size in batches]
        ceilings = ceilings_for(config, tokens, device)
        with progress_bar(len(timed) * (self.rounds + 1), "train", unit="run") as bar:
            rows = measure_rows(
                timed, flops=best_flops(ceilings), rounds=self.rounds, device=device, progress=bar.update
            )
        tell("train", rows, ceilings, device, self.json)
