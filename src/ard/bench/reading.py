"""How many trajectories per second one core reads from a store, in shuffled batches."""

import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from ard.core.sharded.making import Claim, publish_shard
from ard.diffusion.process import Diffusion, Solver
from ard.student.student import StateKind
from ard.teacher.teacher import Guidance, Ode, TeacherRef
from ard.trajectories.manifest import Manifest
from ard.trajectories.reader import TrajectoryReader

BATCHES = 50  # Per round.


@dataclass(frozen=True, kw_only=True)
class ReadingRate:
    """Trajectories per second over the rounds."""

    median: float
    slowest: float
    fastest: float


def reading_rate(*, num: int, batch_size: int, rounds: int) -> ReadingRate:
    """Of a store of `num` random 5 x 4 x 32 x 32 float16 trajectories (ImageNet-256 at S = 4), page cache warm."""
    with tempfile.TemporaryDirectory() as name:
        _make_store(Path(name), num)
        reader = TrajectoryReader(Path(name), state=StateKind.X_T, num_steps=4)
        reader.read(torch.arange(num))
        rates = [_round(reader, batch_size) for _ in range(rounds)]
    return ReadingRate(median=statistics.median(rates), slowest=min(rates), fastest=max(rates))


def _round(reader: TrajectoryReader, batch_size: int) -> float:
    batches = torch.randint(len(reader), (BATCHES, batch_size))
    start = time.perf_counter()
    for ids in batches:
        reader.read(ids)
    return BATCHES * batch_size / (time.perf_counter() - start)


def _make_store(folder: Path, num: int) -> None:
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
    claim = Claim(folder, manifest)
    for shard in range(manifest.num_shards):
        seed = torch.tensor(manifest.seeds(shard))
        states = torch.randn(len(seed), 5, 4, 32, 32, dtype=torch.float16)
        tensors = {"x_t": states, "seed": seed, "label": manifest.labels(seed)}
        publish_shard(folder, manifest, shard, tensors)
    claim.finish()
