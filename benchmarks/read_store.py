"""How many trajectories per second one core reads from a store, in shuffled batches.

    python benchmarks/read_store.py [--num 20000] [--batch-size 64] [--seconds 5]

Makes a store of random 5 x 4 x 32 x 32 float16 trajectories (the ImageNet-256 shape at S = 4) in a temporary folder,
reads it once to warm the page cache, then reads shuffled batches and prints median, slowest and fastest of the rounds.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import torch

from ard.diffusion import Diffusion, Solver
from ard.models.student import StateKind
from ard.teacher import Guidance, Ode, TeacherRef
from ard.trajectories.collect import finish
from ard.trajectories.manifest import Manifest, save_manifest, shard_name
from ard.trajectories.reader import TrajectoryReader
from ard.trajectories.shards import write_shard


def make_store(folder: Path, num: int) -> None:
    """A store of random numbers."""
    manifest = Manifest(
        teacher=TeacherRef(hash="random", path=".", data="random"),
        diffusion=Diffusion(),
        ode=Ode(times=(1.0, 0.75, 0.5, 0.25, 0.0), solver=Solver.EULER, guidance=Guidance()),
        kept=(0, 1, 2, 3, 4),
        states=(StateKind.X_T,),
        dtype="float16",
        shape=(4, 32, 32),
        num_classes=1000,
        first_seed=0,
        num=num,
        shard_size=2560,
        batch_size=128,
    )
    save_manifest(folder, manifest, {})
    for shard in range(manifest.num_shards):
        seed = torch.tensor(manifest.seeds(shard))
        states = torch.randn(len(seed), 5, 4, 32, 32, dtype=torch.float16)
        tensors = {"x_t": states, "seed": seed, "label": seed % 1000}
        write_shard(folder / shard_name(shard), tensors, manifest.identity)
    finish(folder, manifest)


def rounds(reader: TrajectoryReader, batch_size: int, seconds: float) -> list[float]:
    """Trajectories per second of rounds of 50 shuffled batches each, for about `seconds`."""
    rates: list[float] = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        batches = torch.randint(len(reader), (50, batch_size))
        start = time.perf_counter()
        for ids in batches:
            reader.read(ids)
        rates.append(50 * batch_size / (time.perf_counter() - start))
    return rates


def main() -> None:
    """Make, warm, read, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num", type=int, default=20_000)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=5.0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        make_store(Path(name), options.num)
        reader = TrajectoryReader(Path(name), state=StateKind.X_T, num_steps=4)
        rounds(reader, options.batch_size, options.seconds / 2)
        rates = rounds(reader, options.batch_size, options.seconds)
    print(f"{statistics.median(rates):,.0f} trajectories/s (slowest {min(rates):,.0f}, fastest {max(rates):,.0f})")


if __name__ == "__main__":
    main()
