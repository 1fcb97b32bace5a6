"""ard bench latency: how long drawing a batch takes."""

from dataclasses import dataclass
from typing import Any

from ard.analysis.latency import machine_facts
from ard.bench.contenders import contenders, random_batch, random_network
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
from ard.student.history import HistoryAttention


@dataclass(frozen=True, kw_only=True)
class LatencyBench(NetworkBench):
    """Time teachers and students of one network side by side (the paper's Table 1, latency).

    The weights are random: time does not depend on them. In every round each model draws a batch, so that what slows
    the machine down meets all of them; models that must draw the same images are checked before. Models are teacherT
    (T guided steps), kd1, stepS, ardS-nN and ardS-all; a student with -fast or -compiled draws as `ard sample --speed`
    does, one with -recomputed without the cache. For instance:

        ard bench latency --model DiT-XL/2 --models teacher25,step4,ard4-n6,ard4-all,kd1 --batch 1,8,32,128
        ard bench latency --model DiT-B/2 --models step4,ard4-n6 --batch 1 --json latency.json
        ard bench latency --model runs/teacher --models ard4-all,ard4-all-recomputed,ard4-all-fast
    """

    models: str = "step4,ard4-n6,kd1"
    """What to time, with commas between."""
    history: HistoryAttention = HistoryAttention.SHARED
    """How the history enters attention: shared (the paper's) or gated."""

    def run(self) -> dict[str, Any] | None:
        """Check, time, print; what --json writes."""
        require_at_least(1, {"rounds": self.rounds})
        device, config, batches = resolve_device(self.device), named_network(self.model), parse_batches(self.batch)
        names = self.models.split(",")
        if self.dry_run:
            print_plan({"network": config, "models": names, "batches": batches, "machine": machine_facts(device)})
            return None
        check_json(self, "latency")
        network = random_network(config, device)
        made = {
            size: contenders(names, network, random_batch(config, size, device), history=self.history)
            for size in batches
        }
        timed = timed_alike(made, device)
        return time_and_tell("latency", timed, ceilings_for(config, batches, device), self, device)
