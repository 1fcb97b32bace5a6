"""Reading a store: rows in any order, and the checks behind `ard trajectories verify`."""

import contextlib
import functools
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from ard.core.errors import InputError
from ard.core.sharded.rows import Shards
from ard.core.sharded.store import open_in_place, open_shards, problems_of
from ard.core.types import Labels
from ard.student.student import StateKind
from ard.text.encoded import open_referred
from ard.trajectories.manifest import Manifest, load_manifest
from ard.trajectories.source import Order, TrajectoryBatch, TrajectorySource


class TrajectoryReader(TrajectorySource):
    """A complete store as a sequence of trajectories, read at the states that a student uses."""

    def __init__(self, folder: Path, *, state: StateKind, num_steps: int, grid: tuple[int, ...] | None = None) -> None:
        self.folder, self.state = folder, state
        self.manifest, checksums = load_manifest(folder)
        self.positions = list(self.manifest.positions(num_steps, grid))
        if state not in self.manifest.states:
            raise InputError(
                f"{folder} has no {state} states, only {', '.join(self.manifest.states)}; see collect --states"
            )
        self.shards = Shards(open_shards(folder, self.manifest, checksums), self.manifest.KIND)
        if self.manifest.text:
            self.text = open_referred(self.manifest.text, folder)

    def __len__(self) -> int:
        return self.manifest.num

    @property
    def tau(self) -> tuple[float, ...]:
        """The times of the states that are read, noise first."""
        return tuple(self.manifest.ode.times[self.manifest.kept[position]] for position in self.positions)

    @functools.cached_property
    def labels(self) -> Labels:
        """Every trajectory's label."""
        return self.manifest.labels(torch.arange(len(self)) + self.manifest.first_seed)

    def batch_at(self, step: int, order: Order) -> TrajectoryBatch:
        """Update `step`'s trajectories; InputError that names the shard when one is infinite or not a number."""
        ids = order(len(self), step)
        batch = self.read(ids)
        self.require_finite(batch, ids)
        return batch

    def draw_at(self, step: int, num: int, generator: torch.Generator) -> TrajectoryBatch:  # noqa: ARG002 all are there at every step
        """So many trajectories, each drawn from the whole store."""
        return self.read(torch.randint(len(self), (num,), generator=generator))

    def first_of_labels(self, *, num_labels: int, per_label: int) -> TrajectoryBatch:
        """The first trajectories, at most `per_label`, of each of the store's first labels."""
        labels = self.labels.unique()[:num_labels]
        return self.read(torch.cat([(self.labels == label).nonzero().flatten()[:per_label] for label in labels]))

    def read(self, ids: Tensor) -> TrajectoryBatch:
        """The trajectories `ids`, in that order and in the stored precision."""
        states = self.shards.rows(self.state, ids, shard_size=self.manifest.shard_size)
        if len(self.positions) != len(self.manifest.kept):
            states = states[:, self.positions]
        return TrajectoryBatch(states, self.labels[ids])

    def require_finite(self, batch: TrajectoryBatch, ids: Tensor) -> None:
        """InputError that names the shard, when a value of `batch` is infinite or not a number."""
        finite = batch.states.flatten(1).isfinite().all(dim=1)
        if not finite.all():
            shard = int(ids[~finite][0]) // self.manifest.shard_size
            raise InputError(_not_finite(self.shards.shards[shard].path))


def verify(folder: Path) -> list[str]:
    """Everything that is wrong with a store, a line each; an empty list means it is whole. Reads all of it."""
    manifest, checksums = load_manifest(folder)
    return problems_of(folder, manifest, checksums) + list(_without_numbers(folder, manifest))


def _without_numbers(folder: Path, manifest: Manifest) -> Iterator[str]:
    """A line for each shard that holds values which are infinite or no numbers, whatever its checksums say."""
    for index in range(manifest.num_shards):
        with contextlib.suppress(InputError):  # It is told of already.
            shard = open_in_place(folder, manifest, {}, index)
            if not all(shard.read(state).isfinite().all() for state in manifest.states):
                yield _not_finite(shard.path)


def _not_finite(path: Path) -> str:
    return f"{path} holds infinite or not-a-number values; delete it and run the same ard collect command again"
