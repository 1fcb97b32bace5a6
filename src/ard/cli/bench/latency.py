"""ard bench latency: how long drawing a batch takes."""

from dataclasses import dataclass
from pathlib import Path

from ard.analysis.latency import machine_facts
from ard.bench.ceilings import best_flops
from ard.bench.contenders import Contender, contenders, random_batch, random_network, require_equal
from ard.bench.measure import Timed, measure_rows
from ard.cli.bench.common import ceilings_for, named_network, parse_batches, tell
from ard.cli.options import print_plan
from ard.devices import DeviceName, resolve_device
from ard.errors import require_at_least
from ard.history import HistoryAttention
from ard.progress import progress_bar


@dataclass(frozen=True, kw_only=True)
class LatencyBench:
    """Time teachers and students of one network side by side (the paper's Table 1, latency).

    The weights are random: time does not depend on them. In every round each model draws a batch, so that what slows
    the machine down meets all of them; models that must draw the same images are checked before. Models are teacherT
    (T guided steps), kd1, stepS, ardS-nN, ardS-all, and ardS-all-recomputed (without the cache). For instance:

        ard bench latency --model DiT-XL/2 --models teacher25,step4,ard4-n6,ard4-all,kd1 --batch 1,8,32,128
        ard bench latency --model DiT-B/2 --models step4,ard4-n6 --batch 1 --json latency.json
        ard bench latency --model runs/teacher --models ard4-all,ard4-all-recomputed
    """

    model: str = "DiT-B/2"
    """Size and patch on its usual data, such as DiT-XL/2 or tiny/2; or a teacher's folder."""
    models: str = "step4,ard4-n6,kd1"
    """What to time, with commas between."""
    batch: str = "1"
    """Images drawn together, such as 1,8,32."""
    history: HistoryAttention = HistoryAttention.SHARED
    """How the history enters attention: shared (the paper's) or gated."""
    rounds: int = 7
    """How often every model is timed."""
    json: Path | None = None
    """Where to write the rows as JSON."""
    device: DeviceName = "auto"
    """Where to compute."""
    dry_run: bool = False
    """Print the resolved configuration and do nothing."""

    def run(self) -> None:
        """Check, time, print."""
        require_at_least(1, {"rounds": self.rounds})
        device, config, batches = resolve_device(self.device), named_network(self.model), parse_batches(self.batch)
        names = self.models.split(",")
        if self.dry_run:
            return print_plan(
                {"network": config, "models": names, "batches": batches, "machine": machine_facts(device)}
            )
        network = random_network(config, device)
        made = {
            size: contenders(names, network, random_batch(config, size, device), history=self.history)
            for size in batches
        }
        for one in made.values():
            require_equal(one, tolerance=1e-4 if device.type == "cpu" else 2e-2)
        ceilings = ceilings_for(config, batches, device)
        timed = [_timed(one, size) for size, group in made.items() for one in group]
        with progress_bar(len(timed) * (self.rounds + 1), "latency", unit="run") as bar:
            rows = measure_rows(
                timed, flops=best_flops(ceilings), rounds=self.rounds, device=device, progress=bar.update
            )
        tell("latency", rows, ceilings, device, self.json)


def _timed(one: Contender, batch: int) -> Timed:
    return Timed(name=one.name, batch=batch, run=one.run, macs=one.macs * batch)
