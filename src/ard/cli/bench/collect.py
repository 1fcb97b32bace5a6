"""ard bench collect: how long the teacher needs for a batch of trajectories, in each way to run it."""

from dataclasses import dataclass
from typing import Any

from ard.analysis.latency import machine_facts
from ard.bench.collecting import ways
from ard.bench.contenders import random_batch, random_network
from ard.cli.bench.common import (
    NetworkBench,
    ceilings_for,
    check_json,
    named_network,
    parse_batches,
    time_and_tell,
    timed_alike,
)
from ard.cli.options import print_plan
from ard.core.devices import resolve_device
from ard.core.errors import require_at_least


@dataclass(frozen=True, kw_only=True)
class CollectBench(NetworkBench):
    """Time the guided teacher over its whole trajectory, as `ard collect` runs it, without the disk.

    Ways to run it are eager (float32), compiled, bf16, interval (guidance in the middle half of the time only), and
    several of these together. Compiled images must equal eager ones. The inverse of "over floor" is the model FLOP
    utilisation. For instance:

        ard bench collect --model DiT-XL/2 --batch 128 --ways eager,bf16,bf16-compiled
        ard bench collect --model DiT-S/2 --ways eager,interval,compiled
    """

    num_teacher_steps: int = 25
    """Steps of the solver; where it guides, the guidance doubles the network evaluations."""
    ways: str = "eager,interval"
    """What to time, with commas between."""

    def run(self) -> dict[str, Any] | None:
        """Check, time, print; what --json writes."""
        require_at_least(1, {"num_teacher_steps": self.num_teacher_steps, "rounds": self.rounds})
        device, config, batches = resolve_device(self.device), named_network(self.model), parse_batches(self.batch)
        names = self.ways.split(",")
        if self.dry_run:
            print_plan({"network": config, "ways": names, "batches": batches, "machine": machine_facts(device)})
            return None
        check_json(self, "collect")
        network = random_network(config, device)
        made = {
            size: ways(names, network, random_batch(config, size, device), num_teacher_steps=self.num_teacher_steps)
            for size in batches
        }
        timed = timed_alike(made, device)
        return time_and_tell("collect", timed, ceilings_for(config, batches, device), self, device)
