"""Trajectories made while a student trains: a store that is never written, whose shards are pools in memory.

A pool is K trajectories: `pool_batches` batches. Each pool is trained on for `replay_updates` (R) epochs, so that every
trajectory serves exactly R updates, and is then replaced by the next: trajectory i has the i-th seed of the run. In a
pool's first epoch update number k trains on its k-th batch, which the teacher solves just then, all of it together; in
the other epochs the teacher rests, and the order is drawn anew as that of a store. So the trajectories of an update
depend on its number only. A run that goes on after a kill solves the pool's batches again when it needs them, each as
it was solved before, and gets the same bits.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from ard.core.errors import InputError, require_at_least
from ard.core.seeds import NUM_SEEDS
from ard.diffusion.process import Solver
from ard.diffusion.timegrid import check_indices
from ard.student.student import StateKind
from ard.teacher.teacher import Guidance, Teacher, plan_ode
from ard.text.encoded import EncodedText
from ard.trajectories.collect import plan_store
from ard.trajectories.manifest import Manifest
from ard.trajectories.solving import solve_batch
from ard.trajectories.source import Order, TrajectoryBatch, TrajectorySource

EVALUATION_SEEDS = range(1_000_000, 1_000_000_000)  # What evaluation and tuning take their noises from.


@dataclass(frozen=True, kw_only=True)
class OnlineConfig:
    """How the teacher solves trajectories while a student trains."""

    num_teacher_steps: int
    """--online: solver steps of the teacher; the paper's text-to-image teacher takes 48."""
    guidance: Guidance = field(default_factory=Guidance)
    solver: Solver | None = None
    """--online: ddim for VP; euler or heun for flow; dpmpp_2m for both. None: first order."""
    replay_updates: int = 8
    """--online: how many updates each trajectory serves."""
    pool_batches: int = 32
    """--online: how many batches of trajectories are at hand together."""
    first_seed: int | None = None
    """--online: seed of the first trajectory, not of evaluation's, 1000000 to 999999999. None: behind those, and other
    trajectories for every --seed."""

    def __post_init__(self) -> None:
        """Refuse numbers that cannot be meant."""
        require_at_least(1, {"replay_updates": self.replay_updates, "pool_batches": self.pool_batches})

    @property
    def updates_per_pool(self) -> int:
        """How long a pool is trained on."""
        return self.pool_batches * self.replay_updates


def plan_online(
    out: Path,
    teacher_folder: Path,
    teacher: Teacher,
    config: OnlineConfig,
    *,
    batch_size: int,
    iterations: int,
    seed: int,
    text: EncodedText | None = None,
) -> Manifest:
    """The manifest of the store that the trajectories of a training would make, with every point of the teacher's."""
    solver, guidance = config.solver, config.guidance
    ode = plan_ode(teacher, num_teacher_steps=config.num_teacher_steps, guidance=guidance, solver=solver)
    pool = config.pool_batches * batch_size
    num = -(-iterations // config.updates_per_pool) * pool
    manifest = plan_store(
        out,
        teacher_folder,
        teacher,
        ode,
        kept=tuple(range(ode.num_teacher_steps + 1)),
        states=tuple(StateKind),
        num=num,
        first_seed=_own_first_seed(seed, num) if config.first_seed is None else config.first_seed,
        dtype="float32",
        shard_size=pool,
        batch_size=batch_size,
        text=text,
    )
    _refuse_evaluation_seeds(manifest)
    return manifest


class OnlineTrajectories(TrajectorySource):
    """A teacher at work as a sequence of trajectories, at the states that a student uses."""

    def __init__(
        self,
        teacher: Callable[[], Teacher],
        manifest: Manifest,
        config: OnlineConfig,
        *,
        state: StateKind,
        grid: tuple[int, ...],
        device: torch.device,
        text: EncodedText | None = None,
    ) -> None:
        """`teacher` is asked for when the first trajectory is solved; its weights must stay as they are."""
        grid = check_indices(grid, manifest.ode.num_teacher_steps)
        self.manifest = replace(manifest, kept=grid, states=(state,))
        self.teacher, self.config, self.state, self.device = teacher, config, state, device
        self.text = text
        self.seconds = 0.0  # How long the teacher has worked in all.
        self._pool = -1
        self._batches: dict[int, TrajectoryBatch] = {}  # The pool's, as far as they are solved.

    @property
    def tau(self) -> tuple[float, ...]:
        """The times of the states, noise first."""
        return tuple(self.manifest.ode.times[index] for index in self.manifest.kept)

    def batch_at(self, step: int, order: Order) -> TrajectoryBatch:
        """Update `step`'s trajectories, solved now in a pool's first epoch."""
        place = step % self.config.updates_per_pool
        if place < self.config.pool_batches:
            return self._batch(step, place)
        return self._rows(step, order(self.manifest.shard_size, step))

    def draw_at(self, step: int, num: int, generator: torch.Generator) -> TrajectoryBatch:
        """So many trajectories, drawn from those of the pool that update `step` and the ones before have asked for."""
        batches = min(step % self.config.updates_per_pool + 1, self.config.pool_batches)
        return self._rows(step, torch.randint(batches * self.manifest.batch_size, (num,), generator=generator))

    def first_of_labels(self, *, num_labels: int, per_label: int) -> TrajectoryBatch:
        """The first `per_label` trajectories of each of the first labels, solved apart from the pools."""
        first, count = self.manifest.first_seed, self.manifest.num_conditions
        starts = [first + (label - first) % count for label in range(min(num_labels, count))]
        return _joined([self._solve(range(start, start + per_label * count, count)) for start in starts])

    def _rows(self, step: int, ids: Tensor) -> TrajectoryBatch:
        """Single trajectories of update `step`'s pool."""
        places = [divmod(row, self.manifest.batch_size) for row in ids.tolist()]
        batches = [self._batch(step, index) for index, _ in places]
        return _joined(
            [
                TrajectoryBatch(batch.states[row : row + 1], batch.labels[row : row + 1])
                for batch, (_, row) in zip(batches, places, strict=True)
            ]
        )

    def _batch(self, step: int, index: int) -> TrajectoryBatch:
        """A batch of update `step`'s pool, solved once; what belongs to another pool is forgotten."""
        if (pool := step // self.config.updates_per_pool) != self._pool:
            self._pool, self._batches = pool, {}
        if index not in self._batches:
            size = self.manifest.batch_size
            self._batches[index] = self._solve(self.manifest.seeds(pool)[index * size : (index + 1) * size])
        return self._batches[index]

    def _solve(self, seeds: range) -> TrajectoryBatch:
        """These trajectories, all solved together."""
        teacher = self.teacher()
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)  # What the student has still to do is not the teacher's time.
        started = time.monotonic()
        solution = solve_batch(teacher, self.manifest, seeds, self.text, self.device)
        self.seconds += time.monotonic() - started
        return TrajectoryBatch(getattr(solution, self.state), self.manifest.labels(torch.tensor(seeds)))


def _joined(batches: Sequence[TrajectoryBatch]) -> TrajectoryBatch:
    return TrajectoryBatch(*(torch.cat(parts) for parts in zip(*batches, strict=True)))


def _own_first_seed(seed: int, num: int) -> int:
    """Where the `num` trajectories of a training with `seed` start: runs of one length and low seeds share none."""
    start = EVALUATION_SEEDS.stop
    return start + seed * num % max(NUM_SEEDS - start - num, 1)


def _refuse_evaluation_seeds(manifest: Manifest) -> None:
    """InputError when the trajectories would have noises that students are evaluated on."""
    first, stop = manifest.first_seed, manifest.first_seed + manifest.num
    if first < EVALUATION_SEEDS.stop and stop > EVALUATION_SEEDS.start:
        raise InputError(
            f"the online trajectories would have the seeds {first} to {stop - 1}, and those from "
            f"{EVALUATION_SEEDS.start} to {EVALUATION_SEEDS.stop - 1} are for evaluation; give another --first-seed"
        )
