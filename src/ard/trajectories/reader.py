"""Reading a store: memory-mapped rows in any order, and the checks behind `ard trajectories verify`."""

import functools
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ard.errors import InputError
from ard.models.student import StateKind
from ard.text import open_referred
from ard.trajectories.manifest import Manifest, load_manifest, shard_name
from ard.trajectories.shards import REPAIR, Shard, open_shard
from ard.trajectories.source import Order, TrajectoryBatch, TrajectorySource
from ard.types import Labels


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
        if len(checksums) != self.manifest.num_shards:
            raise InputError(f"{folder} is incomplete; run the same ard collect command again")
        self.shards = [_checked(folder, self.manifest, shard, checksums) for shard in range(self.manifest.num_shards)]
        if self.manifest.text:
            self.text = open_referred(self.manifest.text, folder)
        self._maps = [shard.map(state) for shard in self.shards]

    def __len__(self) -> int:
        return self.manifest.num

    @property
    def tau(self) -> tuple[float, ...]:
        """The times of the states that are read, noise first."""
        return tuple(self.manifest.ode.times[self.manifest.kept[position]] for position in self.positions)

    @functools.cached_property
    def labels(self) -> Labels:
        """Every trajectory's label."""
        return torch.cat([shard.read("label") for shard in self.shards])

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
        dtype, shape, _ = self.shards[0].tensors[self.state]
        order = ids.numpy()
        rows = np.empty((len(order), self._maps[0].shape[1]), dtype=np.uint8)
        which = order // self.manifest.shard_size
        for shard in np.unique(which):
            places = np.flatnonzero(which == shard)
            rows[places] = self._maps[shard][order[places] % self.manifest.shard_size]
        states = torch.from_numpy(rows).view(-1).view(dtype).view(len(order), *shape[1:])
        if len(self.positions) != shape[1]:
            states = states[:, self.positions]
        return TrajectoryBatch(states, self.labels[ids])

    def require_finite(self, batch: TrajectoryBatch, ids: Tensor) -> None:
        """InputError that names the shard, when a value of `batch` is infinite or not a number."""
        finite = batch.states.flatten(1).isfinite().all(dim=1)
        if not finite.all():
            shard = int(ids[~finite][0]) // self.manifest.shard_size
            raise InputError(f"{self.shards[shard].path} holds infinite or not-a-number values{REPAIR}")


def verify(folder: Path) -> list[str]:
    """Everything that is wrong with a store, a line each; an empty list means it is whole."""
    manifest, checksums = load_manifest(folder)
    problems = []
    for index in range(manifest.num_shards):
        try:
            shard = _checked(folder, manifest, index, checksums)
        except InputError as error:
            problems.append(str(error))
            continue
        damaged = shard.damaged()
        problems += [f"{shard.path} is damaged: {name} does not match its checksum{REPAIR}" for name in damaged]
        if any(not shard.read(state).isfinite().all() for state in manifest.states):
            problems.append(f"{shard.path} holds infinite or not-a-number values")
    known = {shard_name(index) for index in range(manifest.num_shards)}
    problems += [
        f"{path} is foreign: no such shard belongs here"
        for path in sorted(folder.glob("*.safetensors"))
        if path.name not in known
    ]
    if not checksums and not problems:
        problems.append(
            f"{folder} is incomplete: its manifest lists no checksums; run the same ard collect command again"
        )
    return problems


def is_published(folder: Path, manifest: Manifest, shard: int) -> bool:
    """Whether a whole shard of this store is there; InputError when another store's is in its place."""
    path = folder / shard_name(shard)
    if not path.exists():
        return False
    found = open_shard(path)
    if found.identity != manifest.identity:
        raise InputError(f"{path} is foreign: it belongs to other trajectories; move it away")
    return found.rows == manifest.rows(shard)


def _checked(folder: Path, manifest: Manifest, index: int, checksums: dict[str, str]) -> Shard:
    """A shard that belongs to `manifest`, whose header is as its checksum says, with the right number of rows."""
    shard = open_shard(folder / shard_name(index))
    if shard.identity != manifest.identity:
        raise InputError(f"{shard.path} is foreign: it belongs to other trajectories")
    if checksums and checksums.get(shard.path.name) != shard.header_crc:
        raise InputError(f"{shard.path} is foreign or damaged: the manifest has another checksum for it{REPAIR}")
    if shard.rows != manifest.rows(index):
        raise InputError(f"{shard.path} holds {shard.rows} trajectories, not {manifest.rows(index)}")
    return shard
