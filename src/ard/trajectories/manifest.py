"""What a trajectory store says of itself: which teacher made it, how, which points it keeps, and its shards."""

from dataclasses import dataclass
from pathlib import Path

from ard.config import differences, fingerprint_of, flatten, from_plain, later, to_plain
from ard.diffusion import Diffusion
from ard.errors import InputError
from ard.files import read_json, write_json
from ard.models.student import StateKind
from ard.teacher import Ode, TeacherRef
from ard.timegrid import check_indices, uniform_indices
from ard.trajectories.execution import Execution

SCHEMA = 1
_FREE = frozenset({"num", "teacher.path", "x_0_error"})  # A store may grow or move, and another machine measure.
DTYPES = ("float16", "bfloat16", "float32")


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """Everything that decides a store's content, apart from how many trajectories it has."""

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
    """How many trajectories; trajectory i has the seed first_seed + i and the label seed mod num_classes."""
    shard_size: int
    batch_size: int
    execution: Execution = later(Execution())
    x_0_error: float | None = later(None)
    """Of the first batch's images as `execution` makes them, relative to those of eager float32; None where it is
    that."""

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

    @property
    def identity(self) -> str:
        """A fingerprint that every shard carries, so that a foreign one is found."""
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


def shard_name(shard: int) -> str:
    """The file name of a shard."""
    return f"traj-{shard:06d}.safetensors"


def check_same(folder: Path, stored: Manifest, wanted: Manifest) -> None:
    """InputError that names every difference, when `folder` holds other trajectories than are asked for."""
    if changes := differences(to_plain(stored), to_plain(wanted), ignore=_FREE):
        raise InputError(f"{folder} holds other trajectories ({'; '.join(changes)}); choose another folder")
    if stored.num > wanted.num:
        raise InputError(f"{folder} holds {stored.num} trajectories, more than the {wanted.num} asked for")


def save_manifest(folder: Path, manifest: Manifest, checksums: dict[str, str]) -> None:
    """Publish the manifest; `checksums` (CRC-32 by shard name) is empty until the store is complete."""
    write_json(folder / "manifest.json", {"schema": SCHEMA, **to_plain(manifest), "shards": checksums})


def load_manifest(folder: Path) -> tuple[Manifest, dict[str, str]]:
    """The manifest of a store and its shards' checksums; InputError when `folder` is no store."""
    path = folder / "manifest.json"
    if not path.is_file():
        raise InputError(f"{folder} is no trajectory store: it has no manifest.json")
    plain = read_json(path)
    if plain.pop("schema", None) != SCHEMA:
        raise InputError(f"{path} has another schema than {SCHEMA}, which this version of ard reads")
    checksums = plain.pop("shards", None)
    if not isinstance(checksums, dict):
        raise InputError(f"{path}: shards is {checksums!r}; an object with a checksum per shard is expected")
    return from_plain(Manifest, plain, where=str(path)), checksums


def _commas(values: tuple[int, ...] | list[int]) -> str:
    return ",".join(map(str, values))
