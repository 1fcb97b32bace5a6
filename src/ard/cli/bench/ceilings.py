"""ard bench ceilings: what the machine can do at best."""

from dataclasses import asdict, dataclass
from typing import Any

from ard.analysis.latency import machine_facts
from ard.cli.bench.common import NetworkBench, ceilings_for, check_json, dtype_of, named_network, parse_batches, written
from ard.cli.options import print_plan
from ard.core.devices import resolve_device
from ard.reporting.table import as_text


@dataclass(frozen=True, kw_only=True)
class CeilingsBench(NetworkBench):
    """Measure matrix products at a network's shapes, large square ones, and a copy: the floors of all benchmarks.

    For instance:

        ard bench ceilings --model DiT-XL/2 --batch 32
    """

    def run(self) -> dict[str, Any] | None:
        """Measure, print; what --json writes."""
        device, config, batches = resolve_device(self.device), named_network(self.model), parse_batches(self.batch)
        if self.dry_run:
            print_plan({"network": config, "batches": batches, "machine": machine_facts(device)})
            return None
        check_json(self, "ceilings")
        found = ceilings_for(config, batches, device, rounds=self.rounds)
        body = [
            [one.name, f"{one.rate:.3g}", f"{one.lower_quartile:.3g}", f"{one.upper_quartile:.3g}", one.unit]
            for one in found
        ]
        print(as_text(["what", "median", "lower quartile", "upper quartile", "unit"], body))
        print(f"{dtype_of(device)}, " + ", ".join(f"{key} {value}" for key, value in machine_facts(device).items()))
        return written(self, "ceilings", {"machine": machine_facts(device), "rows": [asdict(one) for one in found]})
