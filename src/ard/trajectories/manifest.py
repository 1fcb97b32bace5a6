"""What a trajectory store says of itself: which teacher made it, how, which points it keeps, and its shards."""

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from ard.core.config import fingerprint_of, flatten, later, to_plain
from ard.core.errors import InputError, require_at_least, require_at_most
from ard.core.seeds import require_seed
from ard.core.sharded.store import Checksums, Expected, Kind, ShardedManifest, read_record, require_sizes
from ard.core.types import Labels
from ard.diffusion.process import Diffusion
from ard.diffusion.timegrid import check_indices, uniform_indices
from ard.networks.transformer import MAX_CLASSES, check_shape
from ard.student.student import StateKind
from ard.teacher.teacher import Ode, TeacherRef
from ard.text.encoded import TextRef
from ard.trajectories.execution import Execution

_FREE = frozenset({"num", "teacher.path", "text.path", "x_0_error"})  # A store may grow or move; x_0_error is measured.
TRAJECTORIES = Kind(
    record="manifest.json",
    head={"schema": 1},
    stem="traj",
    name="trajectory store",
    holds="trajectories",
    command="ard collect",
    free=_FREE,
)
DTYPES = ("float16", "bfloat16", "float32")


@dataclass(frozen=True, kw_only=True)
class Manifest(ShardedManifest):
    """Everything that decides a store's content, apart from how many trajectories it has."""

    KIND: ClassVar[Kind] = TRAJECTORIES

    teacher: TeacherRef
    diffusion: Diffusion
    ode: Ode
    kept: tuple[int, ...]
    """The indices in `ode.times` of the points that are stored."""
    states: tuple[StateKind, ...]
    dtype: str
    shape: tuple[int, ...]
    """Channel, height, width."""
    num_classes: int
    first_seed: int
    num: int
    """How many trajectories; trajectory i has the seed first_seed + i and the label seed mod num_conditions."""
    shard_size: int
    batch_size: int
    execution: Execution = later(Execution())
    x_0_error: float | None = later(None)
    """Of the first batch's images as `execution` makes them, relative to those of eager float32; None where it is
    that."""
    text: TextRef | None = later(None)
    """The prompts of a teacher that reads text; a label is then a prompt's number."""

    def __post_init__(self) -> None:
        """Refuse what no store can be."""
        require_sizes(num=self.num, shard_size=self.shard_size)
        require_at_least(1, {"batch_size": self.batch_size, "num_conditions": self.num_conditions})
        require_seed("first_seed", self.first_seed)
        require_seed("the last seed", self.first_seed + self.num - 1)
        require_at_most(MAX_CLASSES, {"num_classes": self.num_classes})
        check_shape(self.shape)
        if self.dtype not in DTYPES:
            raise InputError(f"dtype is {self.dtype}; allowed: {', '.join(DTYPES)}")
        if not self.states:
            raise InputError(f"states is empty; allowed: {', '.join(StateKind)}")
        last, kept = self.ode.num_teacher_steps, set(self.kept)
        if len(kept) < 2 or list(self.kept) != [point for point in range(last + 1) if point in kept]:
            raise InputError(f"kept is {str(self.kept)[:60]}; rising points from 0 to {last} are needed")

    @property
    def num_conditions(self) -> int:
        """How many classes or prompts there are."""
        return self.text.num if self.text else self.num_classes

    @property
    def total(self) -> int:
        """How many there are."""
        return self.num

    @property
    def num_shards(self) -> int:
        """How many shard files there are."""
        return -(-self.num // self.shard_size)

    def rows(self, shard: int) -> int:
        """How many trajectories `shard` holds."""
        return min(self.shard_size, self.num - shard * self.shard_size)

    def seeds(self, shard: int) -> range:
        """The seeds of `shard`'s trajectories."""
        first = self.first_seed + shard * self.shard_size
        return range(first, first + self.rows(shard))

    def labels(self, seeds: Tensor) -> Labels:
        """What the trajectories of `seeds` show: the number of a class or of a prompt."""
        return seeds % self.num_conditions

    def expected(self, shard: int) -> Expected:
        """What `shard` must hold: its states, its seeds and their labels."""
        seeds = torch.tensor(self.seeds(shard))
        states = (getattr(torch, self.dtype), (len(seeds), len(self.kept), *self.shape))
        shapes = {str(state): states for state in self.states}
        known = {"seed": seeds, "label": self.labels(seeds)}
        return Expected({**shapes, **{name: (torch.int64, (len(seeds),)) for name in known}}, known)

    @property
    def shard_identity(self) -> str:
        """What every shard carries."""
        return self.identity

    @functools.cached_property
    def identity(self) -> str:
        """A fingerprint of everything that decides a trajectory."""
        return fingerprint_of({name: value for name, value in flatten(to_plain(self)).items() if name not in _FREE})

    def positions(self, num_steps: int, grid: tuple[int, ...] | None = None) -> tuple[int, ...]:
        """Where the S + 1 states of a student are among the kept points; InputError when they are not all kept."""
        num_teacher_steps = self.ode.num_teacher_steps
        wanted = check_indices(grid, num_teacher_steps) if grid else uniform_indices(num_teacher_steps, num_steps)
        if len(wanted) != num_steps + 1:
            raise InputError(f"num_steps is {num_steps}, but the grid has {len(wanted) - 1} steps")
        if lacking := [index for index in wanted if index not in self.kept]:
            raise InputError(
                f"{num_steps} steps need the teacher's points {_commas(wanted)}, and the stored grid "
                f"{_commas(self.kept)} lacks {_commas(lacking)}; collect with --num-steps {num_steps} or --keep all"
            )
        return tuple(self.kept.index(index) for index in wanted)


def load_manifest(folder: Path) -> tuple[Manifest, Checksums]:
    """The manifest of a store and its shards' checksums; InputError when `folder` is no store."""
    return read_record(Manifest, folder)


def _commas(values: tuple[int, ...] | list[int]) -> str:
    return ",".join(map(str, values))
