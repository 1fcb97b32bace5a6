"""ard bench train: how long an update of a student takes."""

from dataclasses import dataclass, field
from typing import Any

from ard.analysis.latency import machine_facts
from ard.bench.contenders import random_network
from ard.bench.measure import Timed
from ard.bench.training import Layout, counted_mb, update_macs, updates
from ard.cli.bench.common import NetworkBench, ceilings_for, check_json, named_network, parse_batches, time_and_tell
from ard.cli.options import parse_choices, print_plan
from ard.core.devices import resolve_device
from ard.core.errors import InputError, require_at_least
from ard.student.history import HistoryAttention
from ard.student.student import StudentConfig


@dataclass(frozen=True, kw_only=True)
class TrainBench(NetworkBench):
    """Time an update of a student: as we lay history out, and with the usual dense mask and adaLN per token.

    All layouts have the same weights, and equal gradients, which is checked before. On a CPU the column of peak memory
    counts the tensors that an update makes; weights, moments and average come on top. For instance:

        ard bench train --model DiT-B/2 --history-blocks 6 --batch 4
        ard bench train --model DiT-B/2 --history-blocks 6 --batch 4 --layouts ours,recomputed,compiled
        ard bench train --model tiny/2 --batch 32 --json train.json
    """

    student: StudentConfig = field(default_factory=lambda: StudentConfig(history=HistoryAttention.SHARED))
    layouts: str = "ours,dense"
    """What is timed: ours, dense, recomputed (--activation-checkpointing), compiled (--compile)."""

    def run(self) -> dict[str, Any] | None:
        """Check, time, print; what --json writes."""
        require_at_least(1, {"rounds": self.rounds})
        layouts = parse_choices(self.layouts, "layouts", Layout)
        own = self.student.history is HistoryAttention.GATED or self.student.per_step_heads
        if own and Layout.DENSE in layouts:
            raise InputError("the dense layout has one softmax and one head: --history shared, --no-per-step-heads")
        device, config, batches = resolve_device(self.device), named_network(self.model), parse_batches(self.batch)
        if self.dry_run:
            plan = {"network": config, "student": self.student, "layouts": layouts, "batches": batches}
            print_plan({**plan, "machine": machine_facts(device)})
            return None
        check_json(self, "train")
        network = random_network(config, device)
        timed = [
            Timed(
                name=one.name,
                batch=size,
                run=one.run,
                macs=update_macs(self.student, network) * size,
                peak_mb=counted_mb(one, device),
            )
            for size in batches
            for one in updates(network, self.student, size, layouts)
        ]
        tokens = [size * self.student.num_steps for size in batches]
        ceilings = ceilings_for(config, tokens, device)
        return time_and_tell("train", timed, ceilings, self, device)
