"""ard bench all: every benchmark of one network, one after the other; and its small preset for a CPU."""

import dataclasses
from dataclasses import dataclass

from ard.cli.bench.ceilings import CeilingsBench
from ard.cli.bench.collect import CollectBench
from ard.cli.bench.common import Bench, NetworkBench, check_json, written
from ard.cli.bench.data import DataBench
from ard.cli.bench.latency import LatencyBench
from ard.cli.bench.train import TrainBench
from ard.cli.options import print_plan
from ard.core.config import to_plain
from ard.core.devices import DeviceName


@dataclass(frozen=True, kw_only=True)
class AllBench(NetworkBench):
    """Run the benchmarks ceilings, latency, train, collect and data, with one table each.

    --json holds what each of them writes, by its name. For instance:

        ard bench all --model DiT-XL/2 --batch 1,8,32,128 --device cuda --json all.json
        ard bench all --model DiT-S/2 --rounds 3
    """

    models: str = "teacher25,step4,ard4-n6,ard4-all,kd1,ard4-all-recomputed,ard4-n6-fast"
    """What `latency` times, with commas between."""
    train_batch: str = "2"
    """Trajectories per update; several such as 8,64."""
    num: int = DataBench.num
    """Trajectories in the store that is read."""

    def run(self) -> None:
        """One benchmark after the other."""
        parts = self._parts()
        if self.dry_run:
            return print_plan({name: to_plain(part) for name, part in parts.items()})
        check_json(self, "all")
        results = {}
        for name, part in parts.items():
            print(f"\nard bench {name}")
            results[name] = part.run()
        written(self, "all", results)

    def _parts(self) -> dict[str, CeilingsBench | LatencyBench | TrainBench | CollectBench | DataBench]:
        common = {name: getattr(self, name) for name in ("model", "rounds", "device")}
        return {
            "ceilings": CeilingsBench(**common, batch=self.batch),
            "latency": LatencyBench(**common, batch=self.batch, models=self.models),
            "train": TrainBench(**common, batch=self.train_batch),
            "collect": CollectBench(**common, batch=self.batch),
            "data": DataBench(num=self.num),
        }


@dataclass(frozen=True, kw_only=True)
class CpuBench(Bench):
    """The benchmarks on a small network, in two minutes on two cores: their ratios are what counts.

    For instance:

        ard bench cpu --json cpu.json
    """

    model: str = "DiT-S/4"
    """Size and patch, or a teacher's folder."""
    rounds: int = 5
    """How often everything is timed."""
    device: DeviceName = "cpu"
    """Where to compute."""

    def run(self) -> None:
        """`ard bench all` with these options."""
        AllBench(**{field.name: getattr(self, field.name) for field in dataclasses.fields(self)}).run()
