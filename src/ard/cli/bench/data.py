"""ard bench data: how fast a store is read."""

from dataclasses import asdict, dataclass
from typing import Any

import torch

from ard.bench.reading import reading_rate
from ard.cli.bench.common import Bench, check_json, written
from ard.cli.options import print_plan
from ard.core.config import to_plain
from ard.core.devices import one_thread
from ard.core.errors import require_at_least


@dataclass(frozen=True, kw_only=True)
class DataBench(Bench):
    """Read shuffled batches from a store of random 5 x 4 x 32 x 32 float16 trajectories with one thread.

    Training DiT-XL/2 needs about 150 trajectories per second and GPU. For instance:

        ard bench data
        ard bench data --num 100000 --batch-size 256
    """

    num: int = 20_000
    """Trajectories in the store, which lies in a temporary folder."""
    batch_size: int = 64
    """Trajectories per batch."""
    rounds: int = 15
    """Rounds of 50 batches."""

    def run(self) -> dict[str, Any] | None:
        """Make, warm, read, print; what --json writes."""
        require_at_least(1, {"num": self.num, "batch_size": self.batch_size, "rounds": self.rounds})
        if self.dry_run:
            print_plan(to_plain(self))
            return None
        check_json(self, "data")
        with one_thread(torch.device("cpu")):
            rate = reading_rate(num=self.num, batch_size=self.batch_size, rounds=self.rounds)
        print(f"{rate.median:,.0f} trajectories/s (slowest {rate.slowest:,.0f}, fastest {rate.fastest:,.0f})")
        return written(self, "data", asdict(rate))
